"""`rackctl firmware rollout`: a rack's sleds get an image one after the other, and no client notices.

A sled is a fault domain: a volume has one column on each, and does without two. Before and after each sled the rack has
to be healthy (`gate`). What fails halts the rollout and takes the sleds that were updated back to what they ran before.
"""

import argparse
import contextlib
import fcntl
import json
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from sled_board.durable import open_own
from sled_board.errors import ImageError, RolledBack
from sled_board.image import Image, Trust
from sled_board.printable import escaped
from sled_board.slots import Slot, Slots, SlotState

from rackctl.defaults import Defaults, seconds
from rackctl.errors import RackError
from rackctl.firmware.gate import POLL_S, Gate
from rackctl.firmware.image_files import read_image_file
from rackctl.firmware.sled_access import NvmeAccess, SledAccess, SledAddress, SledRefused
from rackctl.keys import add_root
from rackctl.options import add_directory, add_option
from rackctl.output import say
from rackctl.rack import Rack
from rackctl.signers import read_public
from rackctl.staged_sleds import manager_of, managers_file
from sled_controller.environment import Environment

STATUS_ROLLED_BACK: Final = 1
STATUS_STUCK: Final = 3
ABOUT: Final = (
    "Update the sleds of a rack, one after the other: send the image, have it started, wait until the sled has found it"
    " healthy and the rack is whole again. What fails halts it, and sleds that were updated go back to what they ran."
    " Sleds that run the image already are left alone, so that it may be given again."
)
STATUSES: Final = (
    f"Exit status: 0 every sled runs the image; {STATUS_ROLLED_BACK} halted, and all sleds run what they ran before;"
    f" {STATUS_STUCK} halted, and some sleds could not be taken back; 2 nothing was begun; 128 + N ended by signal N."
)
SETTLE_S: Final = 5.0
GATE_TIMEOUT_S: Final = 120.0
SLED_TIMEOUT_S: Final = 300.0


class Halted(RackError):
    """A sled was not updated; the text says which and why."""


@dataclass(slots=True)
class Rollout:
    """One rollout. `say(event, sled, words)` is told what happens; `sled_timeout_s` is for a sled to be back.

    With `root_public`, which the sleds are provisioned with, an image that is not signed under it is sent to none.
    """

    access: SledAccess
    gate: Gate
    say: Callable[[str, str, str], None]
    root_public: bytes | None = None
    sled_timeout_s: float = SLED_TIMEOUT_S
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep
    _updated: list[tuple[SledAddress, Slot]] = field(default_factory=list)
    """Sleds that may run the new image, with the slot of what they ran before."""

    def run(self, sleds: Sequence[SledAddress], data: bytes, image: Image) -> int:
        """Update all; the exit status. Raises RackError and ImageError when nothing was begun."""
        for sled in sleds:
            self._check(image, sled, self.access.slots(sled))  # it is there, knows us, and would take the image
        self.gate.wait()
        try:
            for sled in sleds:
                self._update(sled, data, image)
        except Exception as error:  # whatever it is, the rack is not left as it is now
            self.say("halted", "", _reason(error))
            return self._roll_back()
        self.say("done", "", f"{len(self._updated)} of {len(sleds)} sleds were updated to {image.version}")
        return 0

    def _check(self, image: Image, sled: SledAddress, slots: Slots) -> None:
        """Refuse what this sled would refuse, as far as that can be known: sending it would cost what is in its other
        slot. Development keys are left to the sled, which knows whether it is locked."""
        if image.counter < slots.counter_min:
            raise RolledBack(
                f"{sled.name}: the image's rollback counter is {image.counter}, the sled accepts"
                f" {slots.counter_min} and above"
            )
        if self.root_public is not None:
            trust = Trust(self.root_public, slots.key_set or None, locked=False)
            try:
                trust.check(image, hardware=image.hardware[0])
            except ImageError as error:
                raise type(error)(f"{sled.name}: {error}") from None

    def _update(self, sled: SledAddress, data: bytes, image: Image) -> None:
        slots = self.access.slots(sled)
        former = slots.active
        if former is None:
            raise Halted(f"{sled.name}: it does not run from a slot")
        if slots[former].image_id == image.id:
            self.say("current", sled.name, f"runs {image.version} already")
            return
        self.say("updating", sled.name, f"from {slots[former].version} to {image.version}")
        percent = -1

        def progress(written: int) -> None:
            nonlocal percent
            if written * 10 // len(data) > percent:
                percent = written * 10 // len(data)
                self.say("sent", sled.name, f"{percent * 10} %")

        self._updated.append((sled, former))  # before: the answer to a commit that was done may be lost
        self.access.update(sled, data, progress)
        self._await(sled, image.id)
        self.gate.mark()
        self.gate.wait()
        self.say("updated", sled.name, f"runs {image.version}, and the rack is healthy")

    def _roll_back(self) -> int:
        stuck = False
        for sled, former in reversed(self._updated):
            try:
                self._take_back(sled, former)
            except Exception as error:
                stuck = True
                self.say("not_taken_back", sled.name, _reason(error))
        return STATUS_STUCK if stuck else STATUS_ROLLED_BACK

    def _take_back(self, sled: SledAddress, former: Slot) -> None:
        slots = self._poll(sled, lambda slots: slots.settled)
        record = slots[former]
        if slots.active is former and slots[former.other].state is not SlotState.TEST:
            self.say("taken_back", sled.name, f"runs {record.version}, without being told to")
            return
        if slots.active is not former and (
            record.state is not SlotState.INACTIVE or record.counter < slots.counter_min
        ):
            raise Halted(f"{sled.name}: what it ran before is {record.state.value}, or of a generation that is over")
        self.access.activate(sled, former)
        self._await(sled, record.image_id)
        self.gate.mark()
        self.gate.wait()
        self.say("taken_back", sled.name, f"runs {record.version}")

    def _await(self, sled: SledAddress, image_id: str) -> None:
        """Wait until the sled has found that image healthy; raises Halted when it has gone back, or is not there."""

        def decided(slots: Slots) -> bool:
            if slots.active is not None and slots.settled and slots[slots.active].image_id == image_id:
                return True
            tried = [slot for slot in Slot if slots[slot].image_id == image_id]
            if not tried or slots[tried[0]].state in (SlotState.BAD, SlotState.INACTIVE):
                raise Halted(f"{sled.name}: it has rolled back: the image was not found healthy there")
            return False

        self._poll(sled, decided)

    def _poll(self, sled: SledAddress, decided: Callable[[Slots], bool]) -> Slots:
        deadline = self.clock() + self.sled_timeout_s
        while True:
            try:
                slots = self.access.slots(sled)
                if decided(slots):
                    return slots
                reason = "it has not found what it runs healthy"
            except SledRefused as error:
                reason = str(error)
            if self.clock() >= deadline:
                raise Halted(f"{sled.name}: not back within {self.sled_timeout_s:g} s: {reason}")
            self.sleep(POLL_S)


def _reason(error: Exception) -> str:
    return str(error) if isinstance(error, RackError) else f"{type(error).__name__}: {error}"


def add_rollout(parser: argparse.ArgumentParser, defaults: Defaults) -> None:
    """The options of the command; IMAGE and `--json` are every firmware command's."""
    parser.description = ABOUT
    parser.epilog = STATUSES
    add_directory(parser, "the rack's directory", defaults)
    add_option(
        parser,
        "--managers",
        variable="RACKCTL_MANAGERS",
        kind=Path,
        default=None,
        metavar="FILE",
        text="TOML file of management hosts, of which the first is who we are; the rack's own without it",
        defaults=defaults,
    )
    add_root(parser, defaults, "the root key of the sleds' firmware; with it a wrong signature is seen before all else")
    for flag, variable, default, text in (
        ("--settle", "RACKCTL_SETTLE", SETTLE_S, "for how long the rack has to be healthy before the next sled"),
        ("--gate-timeout", "RACKCTL_GATE_TIMEOUT", GATE_TIMEOUT_S, "how long that may take"),
        ("--sled-timeout", "RACKCTL_SLED_TIMEOUT", SLED_TIMEOUT_S, "how long a sled may take to be back"),
    ):
        add_option(
            parser, flag, variable=variable, kind=seconds, default=default, metavar="S", text=text, defaults=defaults
        )
    parser.set_defaults(command=_rollout)


def _rollout(arguments: argparse.Namespace) -> int:
    rack = Rack.find(arguments.dir)
    data, image = read_image_file(arguments.image)
    path = arguments.managers or managers_file(rack.directory)
    if arguments.managers is None and not path.exists():
        raise RackError(f"{path}: is not there: sleds of this rack run from no firmware slots (rackctl up --firmware)")
    rollout = Rollout(
        NvmeAccess(manager_of(path), Environment()),
        Gate(rack.api, arguments.settle, arguments.gate_timeout),
        _say_json if arguments.json else _say_text,
        None if arguments.root is None else read_public(arguments.root),
        arguments.sled_timeout,
    )
    with alone(rack.directory), without_a_terminal():
        return rollout.run(sleds_of(rack.api.nodes()), data, image)


@contextlib.contextmanager
def without_a_terminal() -> Iterator[None]:
    """A terminal that is closed, as that of a broken connection, does not end what was begun."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGHUP, before)


@contextlib.contextmanager
def alone(directory: Path) -> Iterator[None]:
    """No other rollout in this rack meanwhile: two would take two sleds down at once. Raises RackError."""
    path = directory / "rollout.lock"
    try:
        file = os.fdopen(open_own(path, os.O_RDWR | os.O_CREAT), "w", encoding="ascii")
    except OSError as error:
        raise RackError(f"{path}: {error.strerror}") from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RackError(f"{directory}: another rollout is at work there; wait until it has ended") from None
        except OSError as error:
            raise RackError(f"{path}: {error.strerror}") from None
        yield


def sleds_of(nodes: dict[str, Any]) -> list[SledAddress]:
    """The rack's sleds by name."""
    found = [SledAddress(sled["name"], sled["address"][0], sled["address"][1], sled["nqn"]) for sled in nodes["sleds"]]
    return sorted(found, key=lambda sled: sled.name)


def _say_text(event: str, sled: str, words: str) -> None:
    say(escaped(f"{sled or 'rack'}: {event.replace('_', ' ')}: {words}"))


def _say_json(event: str, sled: str, words: str) -> None:
    say(json.dumps({"event": event, "sled": sled or None, "text": words}))
