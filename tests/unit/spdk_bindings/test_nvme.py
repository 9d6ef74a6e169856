"""The hot paths' structs are the constructs, and statuses go to the CQE and back."""

import struct

import construct
import pytest

from spdk_bindings import nvme

PAIRS = {
    "SGL": (nvme.SGL, nvme.SGL_FORMAT),
    "CQE": (nvme.CQE, nvme.CQE_FORMAT),
    "SQE": (nvme.SQE, nvme.SQE_FORMAT),
    "VENDOR_SQE": (nvme.VENDOR_SQE, nvme.VENDOR_SQE_FORMAT),
    "CONNECT_SQE": (nvme.CONNECT_SQE, nvme.CONNECT_SQE_FORMAT),
    "CONNECT_DATA": (nvme.CONNECT_DATA, nvme.CONNECT_DATA_FORMAT),
    "PROPERTY_SQE": (nvme.PROPERTY_SQE, nvme.PROPERTY_SQE_FORMAT),
    "DATASET_RANGE": (nvme.DATASET_RANGE, nvme.DATASET_RANGE_FORMAT),
    "NAMESPACE_ENTRY": (nvme.NAMESPACE_ENTRY, nvme.NAMESPACE_ENTRY_FORMAT),
}


@pytest.mark.parametrize("name", PAIRS)
def test_struct_and_construct_agree(name: str) -> None:
    fast, described = PAIRS[name]
    assert isinstance(fast, struct.Struct)
    data = bytearray((37 * at + 11) % 256 for at in range(fast.size))
    if name == "NAMESPACE_ENTRY":
        data[6:8] = bytes(2)
    parsed = described.parse(bytes(data))
    values = [value for key, value in parsed.items() if key != "_io"]
    assert list(fast.unpack(data)) == values
    assert described.build(parsed) == fast.pack(*values)
    assert isinstance(described, construct.Struct)


def test_the_mac_is_the_last_field_of_the_vendor_sqe() -> None:
    assert nvme.VENDOR_SQE.size == nvme.SQE_BYTES
    packed = nvme.VENDOR_SQE.pack(0x81, 0x40, 7, 1, 2, 3, 1, 0, bytes(16), 9, b"M" * 16)
    assert packed[nvme.VENDOR_MAC_OFFSET :] == b"M" * nvme.MAC_BYTES
    assert packed[40:48] == (9).to_bytes(8, "little")


@pytest.mark.parametrize("status", list(nvme.Status))
def test_a_status_survives_the_cqe(status: nvme.Status) -> None:
    value, do_not_retry = nvme.status_of_cqe(nvme.cqe_status(status))
    assert value == status
    assert do_not_retry is (status >> 8 == 7)
    assert nvme.status_of_cqe(nvme.cqe_status(status, do_not_retry=True)) == (status, True)
    assert nvme.status_name(status) == status.name


def test_generic_statuses_have_the_numbers_of_the_specification() -> None:
    assert nvme.Status.HOST_IDENTIFIER_INCONSISTENT == 0x18
    assert nvme.Status.KEEP_ALIVE_EXPIRED == 0x19
    assert nvme.Status.ABORTED_PREEMPT == 0x1B
    assert nvme.Status.RESERVATION_CONFLICT == 0x83


def test_a_status_without_a_name_is_shown_as_a_number() -> None:
    assert nvme.status_name(0x3AB) == "STATUS_3AB"


def test_vendor_opcodes_encode_their_data_direction() -> None:
    to_controller = {nvme.AdminOpcode.SESSION_SEND, nvme.AdminOpcode.ATTACH, nvme.AdminOpcode.KEYSET_UPDATE}
    to_host = {nvme.AdminOpcode.SESSION_RECEIVE, nvme.AdminOpcode.RECEIPT}
    for opcode in nvme.AdminOpcode:
        if opcode >= 0xC0 and opcode in to_controller | to_host:
            assert opcode & 3 == (1 if opcode in to_controller else 2)
    assert [opcode & 3 for opcode in nvme.VendorIo] == [1, 2, 0, 0, 0]


def test_capabilities_say_queue_size_and_refuse_nonsense() -> None:
    assert nvme.capabilities(128) & 0xFFFF == 127
    with pytest.raises(ValueError, match="queue_entries"):
        nvme.capabilities(0)
