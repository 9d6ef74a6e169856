"""The monitors of a simulation tell what is wrong when it is, and nothing when it is not."""

from uuid import UUID

import pytest
from kit.target import Rig
from rackctl.consistency.epochs import EpochMonitor
from rackctl.consistency.history import Violation
from rackctl.simulation.monitors import AnswerMonitor, FenceMonitor, NonceMonitor, PlaceMonitor

from sled_controller.association import Association
from sled_controller.fabric.associations import Standing

VOLUME, OTHER = UUID(int=1), UUID(int=2)


def test_a_newer_epoch_takes_over_and_goes_on_answering() -> None:
    monitor = AnswerMonitor()
    for epoch, process in ((1, "a#1"), (1, "a#1"), (2, "b#1"), (3, "a#2")):
        monitor.answered(VOLUME, epoch, process, 0)
    monitor.answered(OTHER, 1, "b#1", 0)
    assert monitor.answers_total == 5


def test_an_older_epoch_that_answers_after_a_newer_one_is_accused() -> None:
    monitor = AnswerMonitor()
    monitor.answered(VOLUME, 1, "a#1", 0)
    monitor.answered(VOLUME, 2, "b#1", 0)
    with pytest.raises(Violation, match=r"a#1 answers a client in epoch 1, b#1 has answered in 2"):
        monitor.answered(VOLUME, 1, "a#1", 0)


def test_two_processes_that_answer_in_one_epoch_are_accused() -> None:
    monitor = AnswerMonitor()
    monitor.answered(VOLUME, 1, "a#1", 0)
    with pytest.raises(Violation, match="both answer clients in epoch 1"):
        monitor.answered(VOLUME, 1, "a#2", 0)


def test_an_answer_that_is_given_twice_is_accused() -> None:
    monitor = AnswerMonitor()
    monitor.answered(VOLUME, 1, "a#1", 0)
    with pytest.raises(Violation, match="answers a request again"):
        monitor.answered(VOLUME, 1, "a#1", 1)


def test_a_shard_of_an_epoch_below_a_receipt_is_accused() -> None:
    monitor = FenceMonitor()
    monitor.written("sled-0", VOLUME, 1, 8)
    monitor.receipt("sled-0", VOLUME, 2, "b#1")
    monitor.written("sled-0", VOLUME, 2, 8)
    monitor.written("sled-1", VOLUME, 1, 8)
    with pytest.raises(Violation, match="written in epoch 1, though b#1 holds a receipt for epoch 2"):
        monitor.written("sled-0", VOLUME, 1, 8)


def test_a_nonce_that_is_used_again_is_accused() -> None:
    monitor = NonceMonitor()
    monitor.used(b"one", 1)
    monitor.used(b"other", 1)
    with pytest.raises(Violation, match="nonce 1 is used again"):
        monitor.used(b"one", 1)


def test_an_epoch_may_fall_only_with_the_store_and_is_never_led_again() -> None:
    monitor = EpochMonitor()
    monitor.recorded(VOLUME, 5)
    monitor.led(VOLUME, 5, "a#1")
    monitor.restored()
    monitor.recorded(VOLUME, 3)
    with pytest.raises(Violation, match="fell from 3 to 2"):
        monitor.recorded(VOLUME, 2)
    with pytest.raises(Violation, match="epoch 5 is led by b#1 after a#1"):
        monitor.led(VOLUME, 5, "b#1")


def test_a_sled_that_trusts_what_holds_nothing_is_accused(monkeypatch: pytest.MonkeyPatch) -> None:
    rig = Rig()
    rig.attached(epoch=5)
    rig.attached(epoch=6)
    (_, association) = rig.subsystem.hosts.values()
    monitor = PlaceMonitor()
    monitor.attached(association)
    monkeypatch.setattr(Association, "standing", Standing.TRUSTED)
    with pytest.raises(Violation, match="which holds nothing now"):
        monitor.attached(association)


def test_a_connect_that_takes_a_queue_is_accused(monkeypatch: pytest.MonkeyPatch) -> None:
    rig = Rig()
    rig.attached()
    (association,) = rig.subsystem.hosts.values()
    monkeypatch.setattr(association, "refuses_queue", lambda: association.end("a second Connect"))
    del association.queues[1]
    with pytest.raises(Violation, match="took a queue"):
        PlaceMonitor().attached(association)
