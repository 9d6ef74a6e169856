"""The receipt: a sled's proof that an epoch's fence is durable and all older commands are over (F2, F3).

128 bytes of fixed layout, little-endian, then HMAC-SHA256 under the session's sled-to-head key.
"""

import hmac
from dataclasses import dataclass
from enum import IntEnum
from struct import Struct
from typing import Final
from uuid import UUID

from construct import Array, Bytes, Const, Int8ul, Int16ul, Int64ul
from construct import Struct as Layout

from sled_controller.errors import ReceiptRefused
from sled_controller.session import RECEIPT_TAG_BYTES, SessionKeys
from spdk_bindings.device import Buffer

MAGIC: Final = b"PLRC"
VERSION: Final = 1
DEVICES_MAX: Final = 32
HEAD_BYTES: Final = 64
BODY_BYTES: Final = HEAD_BYTES + 2 * DEVICES_MAX
RECEIPT_BYTES: Final = BODY_BYTES + RECEIPT_TAG_BYTES

RECEIPT_LAYOUT: Final = Layout(
    "magic" / Const(MAGIC),
    "version" / Const(VERSION, Int16ul),
    "slot" / Int16ul,
    "boot_counter" / Int64ul,
    "sled" / Bytes(16),
    "volume" / Bytes(16),
    "epoch" / Int64ul,
    "attach_number" / Int64ul,
    "devices" / Array(DEVICES_MAX, Layout("index" / Int8ul, "state" / Int8ul)),
    "tag" / Bytes(RECEIPT_TAG_BYTES),
)
BODY: Final = Struct("<4sHHQ16s16sQQ")


class DeviceState(IntEnum):
    """What became of a device's older commands; ABSENT fills the places without a device."""

    ABSENT = 0
    DRAINED = 1  # every older command completed, caches flushed, fence durable
    RESET = 2  # older commands were ended by a device reset
    OFFLINE = 3  # the device takes no commands at all


@dataclass(frozen=True, slots=True)
class Receipt:
    """`devices` are (device index 0 to 255, state), at most 32."""

    sled: UUID
    boot_counter: int
    volume: UUID
    epoch: int
    attach_number: int
    slot: int
    devices: tuple[tuple[int, DeviceState], ...]

    def body(self) -> bytes:
        """The 128 bytes that are authenticated; raises ReceiptRefused when there are too many devices."""
        if len(self.devices) > DEVICES_MAX:
            raise ReceiptRefused(f"{len(self.devices)} devices, at most {DEVICES_MAX}")
        if any(state == DeviceState.ABSENT for _, state in self.devices):
            raise ReceiptRefused("a device in a receipt has a state")
        head = BODY.pack(
            MAGIC, VERSION, self.slot, self.boot_counter, self.sled.bytes, self.volume.bytes, self.epoch,
            self.attach_number,
        )  # fmt: skip
        return (head + b"".join(bytes(pair) for pair in self.devices)).ljust(BODY_BYTES, b"\0")

    def encode(self, keys: SessionKeys) -> bytes:
        """The 160 bytes of this receipt with its MAC."""
        body = self.body()
        return body + keys.receipt_tag(body)

    @classmethod
    def decode(cls, data: Buffer, keys: SessionKeys) -> "Receipt":
        """Read and authenticate a receipt; raises ReceiptRefused."""
        raw = bytes(data)
        if len(raw) != RECEIPT_BYTES:
            raise ReceiptRefused(f"{len(raw)} bytes, a receipt has {RECEIPT_BYTES}")
        if not hmac.compare_digest(keys.receipt_tag(raw[:BODY_BYTES]), raw[BODY_BYTES:]):
            raise ReceiptRefused("its MAC is not the sled's")
        magic, version, slot, boot_counter, sled, volume, epoch, attach_number = BODY.unpack_from(raw)
        if magic != MAGIC or version != VERSION:
            raise ReceiptRefused(f"this is no receipt of version {VERSION}")
        pairs = zip(raw[HEAD_BYTES:BODY_BYTES:2], raw[HEAD_BYTES + 1 : BODY_BYTES : 2], strict=True)
        try:
            devices = tuple((index, DeviceState(state)) for index, state in pairs if state != DeviceState.ABSENT)
        except ValueError:
            raise ReceiptRefused("a device is in a state not known here") from None
        return cls(UUID(bytes=sled), boot_counter, UUID(bytes=volume), epoch, attach_number, slot, devices)
