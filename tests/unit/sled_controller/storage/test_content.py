"""What the records of a table add up to."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kit.drive import fence, volume

from sled_controller.storage.content import TableContent
from sled_controller.storage.errors import DeviceUntrusted
from sled_controller.storage.records import (
    BootEntry,
    Entry,
    FenceEntry,
    FenceRetiredEntry,
    IssuedEntry,
    KeySetEntry,
    MembersEntry,
    NamespaceDeletedEntry,
    NamespaceEntry,
    RetiredEntry,
    TimeEntry,
)
from sled_controller.storage.superblock import plan

LAYOUT = plan(1024, 0, b"S" * 16, b"D" * 16, 64)


def namespace(nsid: int, first_lba: int, blocks: int) -> NamespaceEntry:
    return NamespaceEntry(nsid, volume(1), nsid, first_lba, blocks, volume(nsid))


ENTRIES = st.one_of(
    st.builds(BootEntry, st.integers(0, 9)),
    st.builds(IssuedEntry, st.integers(0, 9)),
    st.builds(RetiredEntry, st.integers(0, 9), st.integers(0, 9)),
    st.builds(lambda number: FenceRetiredEntry(volume(number), 3, 5, 2), st.integers(0, 3)),
    st.builds(TimeEntry, st.integers(1, 9), st.integers(0, 9), st.integers(0, 9)),
    st.builds(lambda version: KeySetEntry(version, b"k%d" % version), st.integers(1, 9)),
    st.builds(lambda number, epoch: FenceEntry(volume(number), fence(epoch)), st.integers(0, 3), st.integers(1, 9)),
    st.builds(lambda nsid: namespace(nsid, 600, 5), st.integers(1, 9)),
    st.builds(NamespaceDeletedEntry, st.integers(1, 9)),
    st.builds(lambda index: MembersEntry(((index, bytes([index]) * 16),)), st.integers(0, 3)),
)


@given(st.lists(ENTRIES, max_size=30))
def test_a_checkpoint_builds_the_same_content(entries: list[Entry]) -> None:
    content = TableContent()
    for entry in entries:
        content.apply(entry)
    again = TableContent()
    checkpoint = content.checkpoint()
    for entry in checkpoint:
        again.apply(entry)
    assert again == content
    assert checkpoint[0].count == len(checkpoint)  # type: ignore[union-attr]
    assert len(checkpoint) <= content.records_reserved() - len(content.fences)


@given(st.lists(ENTRIES, max_size=30))
def test_what_only_rises_never_falls(entries: list[Entry]) -> None:
    content = TableContent()
    for entry in entries:
        fences, boot, issued, stated = dict(content.fences), content.boot_counter, content.issued_ms, content.time
        content.apply(entry)
        if isinstance(entry, FenceRetiredEntry):
            fences.pop(entry.volume, None)
            assert content.retired is not None
            assert (content.retired.over_ms, content.retired.key_id) >= (entry.over_ms, entry.key_id)
        assert all(content.fences[volume_id].epoch >= kept.epoch for volume_id, kept in fences.items())
        assert content.boot_counter >= boot
        assert content.issued_ms >= issued or content.time != stated


def test_room_counts_each_volume_twice_and_each_namespace_once() -> None:
    content = TableContent()
    empty = content.records_reserved()
    assert content.records_reserved([volume(1)]) == empty + 2
    content.apply(FenceEntry(volume(1), fence(1)))
    content.apply(namespace(1, 600, 5))
    assert content.records_reserved([volume(1)], namespaces=2) == empty + 2 + 3


@pytest.mark.parametrize(
    "entries",
    [
        [namespace(1, 511, 5)],
        [namespace(1, 600, 5), namespace(2, 604, 5)],
        [namespace(1, 1020, 4)],
        [namespace(1, 600, 0)],
    ],
)
def test_namespaces_that_cannot_be_are_distrusted(entries: list[NamespaceEntry]) -> None:
    content = TableContent()
    for entry in entries:
        content.apply(entry)
    with pytest.raises(DeviceUntrusted):
        content.check(LAYOUT)


def test_namespaces_side_by_side_are_fine() -> None:
    content = TableContent()
    for entry in (namespace(2, 517, 5), namespace(1, 512, 5), namespace(3, 1018, 5)):
        content.apply(entry)
    content.check(LAYOUT)
