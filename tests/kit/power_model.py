"""What a disk may hold after a power cut: files and directories of which only what was synced is sure.

The rules are stricter than those of ext4: the data and the size of a file are durable once that file was synced, the
name of a file once the directory that has it was synced. Until then each 4 KiB page, each size and each name may be
found as it was at the last sync or as it was at any moment since, independent of all others: a rename without the data
of the file, the second of two writes without the first, a directory without the files in it.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from enum import Enum
from random import Random
from typing import Final, NamedTuple, TypeAlias, TypeVar

K = TypeVar("K")
V = TypeVar("V")

PAGE_BYTES: Final = 4096
ROOT: Final = 1


class Page(NamedTuple):
    """A page of a file was written; no content: it is a hole."""

    inode: int
    number: int
    content: bytes | None


class Size(NamedTuple):
    """A file got longer or shorter."""

    inode: int
    size: int


class Name(NamedTuple):
    """A name in a directory leads to another inode, or to none."""

    inode: int
    name: str
    target: int | None


class Sync(NamedTuple):
    """What was written to a file, or which names a directory has, is durable; of a file maybe only some pages."""

    inode: int
    pages: range | None = None


class Made(NamedTuple):
    """An inode was made."""

    inode: int
    is_directory: bool
    mode: int


class Mode(NamedTuple):
    """The permissions of an inode; durable at once, since nothing here rests on them."""

    inode: int
    mode: int


Step: TypeAlias = Page | Size | Name | Sync | Made | Mode


class Kept(Enum):
    """What of the unsynced a cut leaves."""

    NOTHING = "nothing"
    EVERYTHING = "everything"
    NAMES = "names"
    DATA = "data"
    SOME = "some"


@dataclass(slots=True)
class Inode:
    """A file or a directory: what a program finds now, what is durable, and all that was there in between."""

    is_directory: bool
    mode: int = 0o700
    pages: dict[int, bytes] = field(default_factory=dict)
    size: int = 0
    names: dict[str, int] = field(default_factory=dict)
    durable_pages: dict[int, bytes] = field(default_factory=dict)
    durable_size: int = 0
    durable_names: dict[str, int] = field(default_factory=dict)
    pages_since: dict[int, list[bytes | None]] = field(default_factory=dict)
    sizes_since: list[int] = field(default_factory=list)
    names_since: dict[str, list[int | None]] = field(default_factory=dict)

    def copied(self) -> "Inode":
        """One that changes independently; pages never change."""
        other = replace(self)
        for name in ("pages", "names", "durable_pages", "durable_names", "sizes_since"):
            setattr(other, name, getattr(self, name).copy())
        other.pages_since = {number: list(versions) for number, versions in self.pages_since.items()}
        other.names_since = {name: list(targets) for name, targets in self.names_since.items()}
        return other

    def sync(self, pages: range | None) -> None:
        """Make durable what there is now."""
        for number in list(self.pages_since) if pages is None else [at for at in pages if at in self.pages_since]:
            del self.pages_since[number]
            _set(self.durable_pages, number, self.pages.get(number))
        self.durable_size = self.size
        self.sizes_since.clear()
        for name in self.names_since:
            _set(self.durable_names, name, self.names.get(name))
        self.names_since.clear()


class Medium:
    """All inodes of a disk."""

    def __init__(self) -> None:
        self.inodes: dict[int, Inode] = {ROOT: Inode(is_directory=True)}

    def copied(self) -> "Medium":
        """One that changes independently."""
        other = Medium()
        other.inodes = {number: inode.copied() for number, inode in self.inodes.items()}
        return other

    def apply(self, step: Step) -> None:
        """Let a step happen."""
        match step:
            case Made(number, is_directory, mode):
                self.inodes[number] = Inode(is_directory, mode)
            case Mode(number, mode):
                self.inodes[number].mode = mode
            case Page(number, page, content):
                inode = self.inodes[number]
                _set(inode.pages, page, content)
                inode.pages_since.setdefault(page, []).append(content)
            case Size(number, size):
                inode = self.inodes[number]
                inode.size = size
                inode.sizes_since.append(size)
            case Name(number, name, target):
                inode = self.inodes[number]
                _set(inode.names, name, target)
                inode.names_since.setdefault(name, []).append(target)
            case Sync(number, pages):
                self.inodes[number].sync(pages)

    def after_cut(self, kept: Kept, chance: Random) -> "Medium":
        """What is found when the power is back: all of it durable."""
        found = Medium()
        for number, inode in self.inodes.items():
            pages, names = dict(inode.durable_pages), dict(inode.durable_names)
            for page, versions in inode.pages_since.items():
                _set(pages, page, _chosen(inode.durable_pages.get(page), versions, kept, Kept.DATA, chance))
            for name, targets in inode.names_since.items():
                _set(names, name, _chosen(inode.durable_names.get(name), targets, kept, Kept.NAMES, chance))
            size = _chosen(inode.durable_size, inode.sizes_since, kept, Kept.DATA, chance)
            pages = _within(pages, size)
            found.inodes[number] = Inode(
                inode.is_directory, inode.mode, pages, size, names, dict(pages), size, dict(names)
            )
        return found


class Recorded:
    """A medium and every step that it has taken: it can be cut wherever it once was."""

    def __init__(self, begun: Medium | None = None) -> None:
        self._begun = begun or Medium()
        self.medium = self._begun.copied()
        self.steps: list[Step] = []

    def apply(self, step: Step) -> None:
        self.steps.append(step)
        self.medium.apply(step)

    def moments(self, chosen: Callable[[int], bool] = lambda at: True) -> Iterator[tuple[int, Medium]]:
        """(number of steps, the medium after that many steps) for each chosen number; to be looked at, or copied."""
        medium = self._begun.copied()
        for at in range(len(self.steps) + 1):
            if chosen(at):
                yield at, medium
            if at < len(self.steps):
                medium.apply(self.steps[at])


def _set(among: dict[K, V], key: K, value: V | None) -> None:
    if value is None:
        among.pop(key, None)
    else:
        among[key] = value


def _chosen(durable: V, since: list[V], kept: Kept, survivors: Kept, chance: Random) -> V:
    """One of the versions since the last sync, or the one of then."""
    if kept is Kept.SOME:
        return chance.choice([durable, *since])
    return since[-1] if since and kept in (Kept.EVERYTHING, survivors) else durable


def _within(pages: dict[int, bytes], size: int) -> dict[int, bytes]:
    """The pages of a file that is so long: what lies behind its end is zero."""
    last, rest = divmod(size, PAGE_BYTES)
    kept = {number: content for number, content in pages.items() if number < last or (number == last and rest)}
    if rest and last in kept:
        kept[last] = kept[last][:rest].ljust(PAGE_BYTES, b"\0")
    return kept
