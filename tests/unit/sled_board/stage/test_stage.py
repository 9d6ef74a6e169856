"""The stage tries a new image, confirms it once it is healthy, and rolls back what is not, by itself."""

import asyncio
from pathlib import Path

import pytest
from kit import firmware
from kit.staged import NEW, FakeChild, StageBench, crashing, healthy, never_ready, silent
from sled_board.region import Region
from sled_board.slots import ATTEMPTS, Slot, Slots, SlotState
from sled_board.stage.choice import Choice
from sled_board.stage.stage import RECOVERY_STATUS

A, B = Slot.A, Slot.B


@pytest.fixture
def bench(tmp_path: Path) -> StageBench:
    return StageBench(tmp_path)


def state(bench: StageBench, slot: Slot) -> SlotState:
    return bench.board.slots[slot].state


def test_what_is_confirmed_is_started_and_settled_once_it_is_healthy(bench: StageBench) -> None:
    bench.board.store.change(lambda slots: slots.start()[0])
    assert not bench.board.slots.settled
    assert bench.run({"1.4.0": [healthy]}) is None
    assert bench.board.slots.settled
    assert bench.events == ["starting a", "healthy a"]
    assert bench.lines[1].split()[2:] == ["version=1.4.0", f"image={bench.board.slots[A].image_id}"]


def test_a_new_image_is_confirmed_once_it_is_healthy(bench: StageBench) -> None:
    bench.board.install(B, NEW)
    assert bench.run({"1.5.0": [healthy]}) is None
    assert (state(bench, A), state(bench, B)) == (SlotState.INACTIVE, SlotState.CONFIRMED)
    assert bench.board.slots.settled


def test_a_new_image_that_crashes_has_three_attempts(bench: StageBench) -> None:
    bench.board.install(B, NEW)
    bench.run({"1.5.0": [crashing], "1.4.0": [healthy]}, starts=ATTEMPTS + 1)
    assert bench.launcher.versions == ["1.5.0"] * ATTEMPTS + ["1.4.0"]
    assert (state(bench, A), state(bench, B)) == (SlotState.CONFIRMED, SlotState.BAD)
    assert bench.board.slots.settled


def test_a_new_image_that_comes_up_at_the_second_attempt_is_confirmed(bench: StageBench) -> None:
    bench.board.install(B, NEW)
    bench.run({"1.5.0": [crashing, healthy]}, starts=2)
    assert state(bench, B) is SlotState.CONFIRMED


def test_a_new_image_that_is_never_ready_is_rolled_back(bench: StageBench) -> None:
    bench.board.install(B, NEW)
    bench.run({"1.5.0": [never_ready], "1.4.0": [healthy]}, starts=ATTEMPTS + 1)
    assert state(bench, B) is SlotState.BAD
    assert bench.events.count("not_ready b") == ATTEMPTS


def test_three_failed_health_checks_roll_back_at_once(bench: StageBench) -> None:
    bench.board.install(B, NEW)
    bench.run({"1.5.0": [silent], "1.4.0": [healthy]}, starts=2)
    assert bench.launcher.versions == ["1.5.0", "1.4.0"]
    assert state(bench, B) is SlotState.BAD


def test_what_is_confirmed_and_falls_silent_is_started_anew_and_not_given_up(bench: StageBench) -> None:
    bench.run({"1.4.0": [silent, silent, silent, silent, healthy]}, starts=5)
    assert bench.launcher.versions == ["1.4.0"] * 5
    assert bench.board.slots.settled


def test_what_was_confirmed_and_fails_gives_way_to_the_former_image(bench: StageBench) -> None:
    bench.board.install(B, NEW)
    bench.board.store.change(lambda slots: slots.start()[0].confirm(B))
    bench.run({"1.5.0": [crashing], "1.4.0": [healthy]}, starts=ATTEMPTS + 1)
    assert bench.launcher.versions == ["1.5.0"] * ATTEMPTS + ["1.4.0"]
    assert (state(bench, A), state(bench, B)) == (SlotState.CONFIRMED, SlotState.BAD)


def both_good(bench: StageBench) -> None:
    """Slot B runs the new image, slot A keeps the former one."""
    bench.board.install(B, NEW)
    bench.board.store.change(lambda slots: slots.start()[0].confirm(B))


def test_drives_that_are_away_never_lead_to_recovery(bench: StageBench) -> None:
    both_good(bench)
    assert bench.run({"1.5.0": [silent], "1.4.0": [silent]}, starts=12) is None
    assert bench.launcher.versions[:3] == ["1.5.0"] * ATTEMPTS
    bench.run({"1.4.0": [healthy]})
    assert bench.board.slots.settled


def test_power_cycles_never_lead_to_recovery(bench: StageBench) -> None:
    both_good(bench)
    for _ in range(10 * ATTEMPTS):
        bench.board.store.change(lambda slots: slots.start()[0])
    assert bench.board.slots.next is not None


def test_being_stopped_costs_a_confirmed_image_nothing(bench: StageBench) -> None:
    both_good(bench)
    for _ in range(3 * ATTEMPTS):
        assert bench.run({"1.5.0": [starting]}) is None
    assert bench.board.slots[B].attempts_left == ATTEMPTS


def test_a_confirmed_image_does_not_give_way_to_one_that_does_not_verify(bench: StageBench) -> None:
    both_good(bench)
    bench.board.store.region(A).write(500, b"rot")
    bench.run({"1.5.0": [crashing, crashing, crashing, healthy]}, starts=ATTEMPTS + 1)
    assert bench.launcher.versions == ["1.5.0"] * (ATTEMPTS + 1)
    assert (state(bench, A), state(bench, B)) == (SlotState.BAD, SlotState.CONFIRMED)


def test_what_was_verified_is_what_is_started(bench: StageBench) -> None:
    chosen = Choice(bench.board.store).next(watchdog=False)
    assert chosen is not None
    bench.board.write(A, b"\xff" * len(firmware.signed()))
    assert bytes(chosen.image.payload("application")) == firmware.APPLICATION


def test_a_state_that_cannot_be_read_once_is_read_again(bench: StageBench, monkeypatch: pytest.MonkeyPatch) -> None:
    before = bench.board.slots
    fail_reads(bench, monkeypatch, 1)
    Choice(bench.board.store).next(watchdog=False)
    assert bench.board.slots == before.start()[0]


def test_nothing_is_written_over_a_state_that_cannot_be_read(
    bench: StageBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    both_good(bench)
    kept = (bench.board.path.parent / "state").read_bytes()
    with monkeypatch.context() as patch:
        fail_reads(bench, patch, 10_000)
        choice = Choice(bench.board.store)
        chosen = choice.next(watchdog=False)
        assert chosen is not None
        choice.healthy(chosen)
        assert (bench.board.path.parent / "state").read_bytes() == kept
    assert choice.slots == bench.board.slots


def fail_reads(bench: StageBench, monkeypatch: pytest.MonkeyPatch, times: int) -> None:
    """The state's next reads fail."""
    left = [None] * times
    read = Region.read

    def failing(self: Region, offset: int, length: int) -> bytes:
        if self.path.name == "state" and left:
            left.pop()
            raise OSError(5, "Input/output error")
        return read(self, offset, length)

    monkeypatch.setattr(Region, "read", failing)


def test_an_image_of_keys_that_were_taken_out_says_nothing_of_generations(bench: StageBench) -> None:
    newer = firmware.key_set(2, 2, (firmware.SECOND, firmware.THIRD))
    good = firmware.signed(
        firmware.recipe(version="1.5.0"), keys=(firmware.SECOND, firmware.THIRD), under=newer
    )  # fmt: skip
    bench.board.write(B, good)
    bench.board.write(A, firmware.signed(firmware.recipe(counter=0xFFFF_FFFF)))
    (bench.board.path.parent / "state").write_bytes(b"rotten" * 1400)
    bench.run({"1.5.0": [healthy]})
    assert bench.launcher.versions == ["1.5.0"]
    assert bench.board.slots.counter_min == firmware.COUNTER


def test_a_first_state_that_a_power_loss_cut_off_is_made_from_the_images(bench: StageBench) -> None:
    path = bench.board.path.parent / "state"
    path.write_bytes(bytes(path.stat().st_size // 2) + b"rotten" * 600)
    bench.run({"1.4.0": [healthy]})
    assert bench.board.slots.settled


def test_the_watchdog_is_petted_while_a_firmware_starts(bench: StageBench) -> None:
    bench.run({"1.4.0": [never_ready]}, seconds=1.0)
    assert bench.watchdog.petted >= 4


def test_a_watchdog_reset_rolls_a_new_image_back(bench: StageBench) -> None:
    bench.board.install(B, NEW)
    bench.board.store.change(lambda slots: slots.start()[0])
    bench.watchdog._has_reset = True
    bench.run({"1.4.0": [healthy]})
    assert bench.launcher.versions == ["1.4.0"]
    assert state(bench, B) is SlotState.BAD
    assert bench.watchdog.petted > 5


def test_a_damaged_image_is_not_started(bench: StageBench) -> None:
    bench.board.install(B, NEW)
    bench.board.store.region(B).write(500, b"rot")
    bench.run({"1.4.0": [healthy]})
    assert bench.launcher.versions == ["1.4.0"]
    assert state(bench, B) is SlotState.BAD


def test_an_image_whose_signature_counts_no_more_is_not_started(bench: StageBench) -> None:
    newer = firmware.key_set(2, 2, (firmware.SECOND, firmware.THIRD))
    bench.board.store.change(lambda slots: slots.confirm(A, newer))
    assert bench.run({}) == RECOVERY_STATUS
    assert state(bench, A) is SlotState.BAD


def test_with_nothing_left_the_board_recovers(bench: StageBench) -> None:
    for slot in Slot:
        bench.board.write(slot, bytes(4096))
    assert bench.run({}) == RECOVERY_STATUS
    assert bench.events == ["recovery"]


def test_the_newest_key_set_is_kept_with_a_confirmed_image(bench: StageBench) -> None:
    newer = firmware.key_set(2)
    bench.board.install(B, firmware.signed(firmware.recipe(version="1.5.0"), under=newer))
    bench.run({"1.5.0": [healthy]})
    assert bench.board.slots.key_set == newer


def test_an_application_that_asks_for_it_is_started_from_what_the_slots_say_then(bench: StageBench) -> None:
    async def updated(child: object) -> int:
        bench.board.install(B, NEW)
        return 85

    bench.run({"1.4.0": [updated], "1.5.0": [healthy]}, starts=2)
    assert bench.launcher.versions == ["1.4.0", "1.5.0"]
    assert state(bench, B) is SlotState.CONFIRMED


def test_it_ends_in_good_order_when_it_is_told_to(bench: StageBench) -> None:
    assert bench.run({"1.4.0": [healthy]}) is None
    assert bench.launcher.children[0][1].ended_gently


async def starting(child: FakeChild) -> int:
    """Takes longer than anybody waits here."""
    await asyncio.sleep(50)
    return 0


def test_a_power_loss_at_any_point_of_a_test_start_ends_in_a_roll_back_or_a_confirmed_image(bench: StageBench) -> None:
    bench.board.install(B, NEW)
    for _ in range(ATTEMPTS):
        bench.run({"1.5.0": [starting]})  # stopped before anything was decided
        assert state(bench, B) is SlotState.TEST
    bench.run({"1.4.0": [healthy]})
    assert (state(bench, A), state(bench, B)) == (SlotState.CONFIRMED, SlotState.BAD)


def test_a_lost_state_is_made_anew_from_what_verifies(bench: StageBench) -> None:
    bench.board.write(B, firmware.signed(firmware.recipe(version="1.5.0", counter=firmware.COUNTER + 1)))
    (bench.board.path.parent / "state").write_bytes(b"rotten" * 1400)
    bench.run({"1.5.0": [healthy]})
    slots = bench.board.slots
    assert (slots[A].state, slots[B].state) == (SlotState.INACTIVE, SlotState.CONFIRMED)
    assert slots.counter_min == firmware.COUNTER + 1
    assert slots.key_set == firmware.key_set()


def test_a_lost_state_with_nothing_that_verifies_is_recovery(bench: StageBench) -> None:
    bench.board.write(A, bytes(4096))
    (bench.board.path.parent / "state").write_bytes(b"rotten" * 1400)
    assert bench.run({}) == RECOVERY_STATUS
    assert bench.board.slots == Slots()


def test_storage_that_takes_no_state_does_not_stop_what_is_confirmed(bench: StageBench) -> None:
    bench.board.install(B, NEW)
    (bench.board.path.parent / "state").chmod(0o400)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sled_board.region.Region.write", _refuse)
        bench.run({"1.4.0": [healthy]})
    assert bench.launcher.versions == ["1.4.0"]
    assert "healthy a" in bench.events


def _refuse(*_: object) -> None:
    raise OSError(30, "Read-only file system")


def test_an_unreadable_slot_gives_way_to_the_other_one(bench: StageBench) -> None:
    bench.board.install(B, NEW)
    (bench.board.path.parent / "slot-b").unlink()
    bench.run({"1.4.0": [healthy]})
    assert bench.launcher.versions == ["1.4.0"]
