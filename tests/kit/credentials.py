"""The keys and the volume of a rack in memory, and credentials signed with them."""

import time
from collections.abc import Sequence
from typing import Any
from uuid import UUID

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from head_node.cluster.lease import MS
from head_node.store.records import VolumeRecord
from head_node.volume.geometry import Geometry
from sled_controller.credential import ALL_RIGHTS, Credential
from sled_controller.keyset import KeySet

VOLUME = UUID(int=7)
BLOCK = 4096
GEOMETRY = Geometry(data_shards=2, parity_shards=1, shard_blocks=4)
ROOT_KEY = Ed25519PrivateKey.from_private_bytes(b"r" * 32)
SIGNING_KEY = Ed25519PrivateKey.from_private_bytes(b"s" * 32)
ROOT_PUBLIC = ROOT_KEY.public_key().public_bytes_raw()
KEY_SET = KeySet(1, {1: SIGNING_KEY.public_key().public_bytes_raw()}, 1)


def credential_of(epoch: int, *, volume: UUID = VOLUME, key: Ed25519PrivateKey = SIGNING_KEY, key_id: int = 1,
                  head: bytes = b"h" * 32, term_ms: int = 600_000, serial: int = 1,
                  ahead_ms: int = 0) -> bytes:  # fmt: skip
    """A signed credential."""
    now_ms = time.time_ns() // MS + ahead_ms
    return Credential(key_id, volume, head, epoch, ALL_RIGHTS, now_ms, now_ms + term_ms, serial, 1 << 20, 16).sign(key)


def record_of(heads: Sequence[UUID], sleds: Sequence[UUID], **changes: Any) -> VolumeRecord:
    fields: dict[str, Any] = {
        "volume": VOLUME, "name": "vol", "size_bytes": 64 * BLOCK, "geometry": GEOMETRY, "heads": tuple(heads),
        "sleds": tuple(sleds),
    }  # fmt: skip
    return VolumeRecord(**{**fields, **changes})
