"""One answer from several completions."""

from kit.drive import unexpected

from sled_controller.storage.completion import Gather
from spdk_bindings.device import PENDING
from spdk_bindings.nvme import Status


def test_inline_completions_are_answered_inline() -> None:
    gather = Gather(2, unexpected)
    gather.one(0)
    gather.one(Status.WRITE_FAULT)
    assert gather.result() == 0


def test_the_last_of_late_completions_answers_once() -> None:
    seen: list[int] = []
    gather = Gather(3, seen.append)
    gather.one(Status.WRITE_FAULT)
    assert gather.result() == PENDING
    gather.one(Status.WRITE_FAULT)
    assert seen == []
    gather.one(Status.INTERNAL_PATH_ERROR)
    assert seen == [Status.INTERNAL_PATH_ERROR]


def test_one_success_is_success() -> None:
    seen: list[int] = []
    gather = Gather(2, seen.append)
    assert gather.result() == PENDING
    gather.one(0)
    gather.one(Status.WRITE_FAULT)
    assert seen == [0]
