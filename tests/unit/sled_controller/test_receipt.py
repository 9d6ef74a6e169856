"""Receipts: authenticated by the session, fixed in layout."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kit import host

from sled_controller import receipt as module
from sled_controller.errors import ReceiptRefused
from sled_controller.receipt import DEVICES_MAX, RECEIPT_BYTES, RECEIPT_LAYOUT, DeviceState, Receipt

RECEIPT = Receipt(host.SLED, 17, host.VOLUME, 5, 2, 1, ((0, DeviceState.DRAINED), (3, DeviceState.OFFLINE)))
present = st.sampled_from([state for state in DeviceState if state])
receipts = st.builds(
    Receipt,
    sled=st.uuids(),
    boot_counter=st.integers(0, 2**64 - 1),
    volume=st.uuids(),
    epoch=st.integers(0, 2**64 - 1),
    attach_number=st.integers(0, 2**64 - 1),
    slot=st.integers(0, 65535),
    devices=st.lists(st.tuples(st.integers(0, 255), present), max_size=DEVICES_MAX).map(tuple),
)


def test_a_receipt_is_the_golden_one() -> None:
    sled, head = host.session()
    assert RECEIPT.encode(sled) == host.golden("receipt")
    assert Receipt.decode(host.golden("receipt"), head) == RECEIPT


@given(receipts)
def test_what_is_encoded_is_what_is_decoded(receipt: Receipt) -> None:
    sled, head = host.session()
    data = receipt.encode(sled)
    assert Receipt.decode(data, head) == receipt
    fields = RECEIPT_LAYOUT.parse(data)
    assert RECEIPT_LAYOUT.build(fields) == data
    assert len(data) == RECEIPT_BYTES == RECEIPT_LAYOUT.sizeof()
    assert (fields.slot, fields.epoch, fields.volume) == (receipt.slot, receipt.epoch, receipt.volume.bytes)


@pytest.mark.parametrize("position", range(RECEIPT_BYTES))
def test_a_receipt_changed_anywhere_is_refused(position: int) -> None:
    sled, head = host.session()
    data = bytearray(RECEIPT.encode(sled))
    data[position] ^= 2
    with pytest.raises(ReceiptRefused):
        Receipt.decode(data, head)


def test_a_receipt_of_another_session_is_refused() -> None:
    sled, _ = host.session("before")
    _, head = host.session("after")
    with pytest.raises(ReceiptRefused, match="MAC"):
        Receipt.decode(RECEIPT.encode(sled), head)


@given(st.binary(max_size=RECEIPT_BYTES + 4))
def test_garbage_is_refused(data: bytes) -> None:
    with pytest.raises(ReceiptRefused):
        Receipt.decode(data, host.session()[1])


def test_a_device_state_that_does_not_exist_is_refused() -> None:
    sled, head = host.session()
    body = bytearray(RECEIPT.body())
    body[module.HEAD_BYTES + 1] = 77
    with pytest.raises(ReceiptRefused, match="state"):
        Receipt.decode(bytes(body) + sled.receipt_tag(body), head)


def test_a_receipt_holds_32_devices() -> None:
    sled, _ = host.session()
    devices = tuple((index, DeviceState.DRAINED) for index in range(DEVICES_MAX + 1))
    with pytest.raises(ReceiptRefused, match="33 devices"):
        Receipt(host.SLED, 1, host.VOLUME, 1, 1, 0, devices).encode(sled)
