"""Identify structures have their fields where the specification puts them."""

from uuid import UUID

import pytest

from spdk_bindings import identify

NAMESPACE_UUID = UUID("11111111-2222-4333-8444-555555555555")


def controller(**changes: object) -> identify.ControllerIdentity:
    fields: dict[str, object] = {
        "serial": "SLED1",
        "model": "Palisade sled",
        "firmware": "0.1.0",
        "subsystem_nqn": "nqn.2014-08.org.nvmexpress:uuid:x",
        "controller_id": 7,
        "max_transfer_bytes": 1 << 20,
        "in_capsule_data_bytes": 16384,
        "max_commands": 128,
        "namespaces_max": 1000,
    }
    return identify.ControllerIdentity(**(fields | changes))  # type: ignore[arg-type]


def test_controller_fields_are_at_the_offsets_of_the_specification() -> None:
    page = identify.identify_controller(controller(total_capacity_bytes=1 << 40))
    assert len(page) == 4096
    assert page[4:24] == b"SLED1".ljust(20)
    assert page[64:72] == b"0.1.0   "
    assert page[77] == 8  # MDTS: 2**8 pages of 4 KiB
    assert page[78:80] == b"\x07\x00"
    assert page[111] == 1
    assert int.from_bytes(page[280:296], "little") == 1 << 40
    assert page[512] == 0x66
    assert page[513] == 0x44
    assert int.from_bytes(page[514:516], "little") == 128
    assert int.from_bytes(page[516:520], "little") == 1000
    assert page[525] & 1
    assert page[768:801] == b"nqn.2014-08.org.nvmexpress:uuid:x"
    assert int.from_bytes(page[1792:1796], "little") == (64 + 16384) // 16
    assert int.from_bytes(page[1796:1800], "little") == 1


def test_a_discovery_controller_has_no_namespaces() -> None:
    page = identify.identify_controller(controller(discovery=True))
    assert page[111] == 2
    assert page[516:520] == bytes(4)


@pytest.mark.parametrize("changes", [{"max_transfer_bytes": 5000}, {"serial": "S" * 21}, {"model": "ä"}])
def test_an_identity_that_does_not_fit_is_refused(changes: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"power of two|longer|ascii"):
        identify.identify_controller(controller(**changes))


def test_a_namespace_shows_its_size_and_4096_byte_blocks() -> None:
    page = identify.identify_namespace(identify.NamespaceIdentity(1000, NAMESPACE_UUID, 1000, reservations=2))
    assert len(page) == 4096
    assert [int.from_bytes(page[at : at + 8], "little") for at in (0, 8, 16)] == [1000] * 3
    assert page[104:120] == NAMESPACE_UUID.bytes
    assert page[128:132] == bytes((0, 0, 12, 0))
    assert int.from_bytes(page[48:64], "little") == 1000 * 4096


def test_the_active_list_is_sorted_and_starts_after_the_given_id() -> None:
    page = identify.active_namespaces([5, 1, 3], after=1)
    assert page[:12] == (3).to_bytes(4, "little") + (5).to_bytes(4, "little") + bytes(4)
    assert len(identify.active_namespaces(range(1, 3000), after=0)) == 4096


def test_descriptors_name_nguid_uuid_and_command_set() -> None:
    page = identify.namespace_descriptors(NAMESPACE_UUID)
    assert page[:4] == bytes((2, 16, 0, 0))
    assert page[20:24] == bytes((3, 16, 0, 0))
    assert page[24:40] == NAMESPACE_UUID.bytes
    assert page[40:45] == bytes((4, 1, 0, 0, 0))
    assert not any(page[45:])


def test_an_inactive_namespace_is_all_zero() -> None:
    assert identify.inactive_namespace() == bytes(4096)
