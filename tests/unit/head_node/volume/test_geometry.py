"""The shape of a stripe is one type from the volume record to the engine."""

from dataclasses import replace
from uuid import UUID

import pytest

from head_node.store.errors import RecordMalformed
from head_node.store.records import VolumeRecord
from head_node.volume.geometry import Geometry

RECORD = VolumeRecord(UUID(int=1), "v", 1 << 20, Geometry(data_shards=8, parity_shards=3, shard_blocks=16))


def test_a_records_geometry_is_the_engines() -> None:
    read = VolumeRecord.from_json(RECORD.to_json()).geometry
    assert read == RECORD.geometry
    assert (read.columns, read.stripe_blocks) == (11, 8 * 15)


def test_a_record_whose_geometry_no_engine_could_have_is_malformed() -> None:
    written = RECORD.to_json()
    written["geometry"]["shard_blocks"] = 1
    with pytest.raises(RecordMalformed):
        VolumeRecord.from_json(written)
    with pytest.raises(ValueError, match="parity"):
        replace(RECORD.geometry, parity_shards=0)
