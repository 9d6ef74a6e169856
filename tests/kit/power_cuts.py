"""Cuts of a recorded disk at many moments, and what may be found after each of them."""

from collections.abc import Collection, Hashable, Iterator
from dataclasses import dataclass, field
from itertools import count
from random import Random
from typing import Any, Final, NamedTuple

from kit.power_fuse import Disk, Shelf
from kit.power_model import Kept

NEVER: Final = 1 << 62


@dataclass(slots=True)
class Change:
    """What a program wanted something to become, from when on it might have, and when it was said to have: in steps of
    the disk, and in `turns`, which tell what came first within a step."""

    disk: Disk
    value: Any
    begun: int
    turns: Iterator[int]
    acknowledged: int = NEVER
    answered_turn: int = NEVER
    begun_turn: int = field(init=False)

    def __post_init__(self) -> None:
        self.begun_turn = next(self.turns)

    def acknowledge(self) -> None:
        self.acknowledged, self.answered_turn = self.disk.steps, next(self.turns)


@dataclass(slots=True)
class Claims:
    """What was begun and what was acknowledged on one disk, for each thing that has a value. Of changes that were under
    way together any may be the last one."""

    disk: Disk
    changes: dict[Hashable, list[Change]] = field(default_factory=dict)
    turns: Iterator[int] = field(default_factory=count)

    def begin(self, key: Hashable, value: Any) -> Change:
        """Something is about to become `value`; call `acknowledge` of what this returns when it is durable."""
        change = Change(self.disk, value, self.disk.steps, self.turns)
        self.changes.setdefault(key, []).append(change)
        return change

    def allowed(self, key: Hashable, at: int, before: Any = None) -> list[Any]:
        """Every value that may be found after a cut at that step; `before`: what it was in the beginning."""
        changes = self.changes.get(key, [])
        newest = max((change.begun_turn for change in changes if change.acknowledged <= at), default=-1)
        values = [before] if newest < 0 else []
        return values + [change.value for change in changes if change.begun <= at and change.answered_turn > newest]


class Cut(NamedTuple):
    """A cut at a step, and the disk as it is when the power is back."""

    at: int
    kept: Kept
    found: Disk

    def __str__(self) -> str:
        return f"cut at step {self.at}, {self.kept.value} of the unsynced kept"


def cuts(
    power: Shelf, disk: Disk, moments_max: int, seed: int = 0, only: Collection[int] | None = None
) -> Iterator[Cut]:
    """Cuts in every way at many moments of what a disk has seen, or of `only` these; each is forgotten afterwards."""
    chance = Random(seed)
    moments = _chosen(disk, moments_max, chance, only)
    for at, medium in disk.recorded.moments(moments.__contains__):
        for kept in Kept:
            found = power.disk(medium.after_cut(kept, chance))
            yield Cut(at, kept, found)
            power.discard(found)


def kills(
    power: Shelf, disk: Disk, moments_max: int, only: Collection[int] | None = None
) -> Iterator[tuple[int, Disk]]:
    """The same disk as a program finds it that starts after another one was killed: nothing is lost, nor synced."""
    moments = _chosen(disk, moments_max, Random(0), only)
    for at, medium in disk.recorded.moments(moments.__contains__):
        found = power.disk(medium.copied())
        yield at, found
        power.discard(found)


def _chosen(disk: Disk, moments_max: int, chance: Random, only: Collection[int] | None) -> set[int]:
    every = range(disk.steps + 1) if only is None else sorted(only)
    if len(every) <= moments_max:
        return set(every)
    return {every[-1], *chance.sample(every, moments_max - 1)}
