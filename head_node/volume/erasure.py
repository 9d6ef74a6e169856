"""Reed-Solomon over ISA-L through PyECLib, without the fragment headers that liberasurecode puts before each shard.

The code is systematic: data shards are the client's bytes as they are, only parity is computed.
"""

from functools import lru_cache
from typing import Final

from pyeclib.ec_iface import ECDriver, ECDriverError

from head_node.volume.errors import NotEnoughColumns

EC_TYPE: Final = "isa_l_rs_cauchy"
"""Cauchy: any k of k + m shards suffice for every k and m (ISA-L's Vandermonde matrices do not promise that)."""

_HEADER_BYTES: Final = 80
"""sizeof(fragment_header_t) of liberasurecode 1.x."""


class ErasureCode:
    """k data and m parity shards; every shard of one call has the same length, a multiple of 16 bytes."""

    def __init__(self, data_shards: int, parity_shards: int) -> None:
        self.data_shards = data_shards
        self.shards = data_shards + parity_shards
        self._driver = ECDriver(k=data_shards, m=parity_shards, ec_type=EC_TYPE)
        probe = self._driver.encode(bytes(data_shards * 16))
        if len(probe) != self.shards or any(len(fragment) != _HEADER_BYTES + 16 for fragment in probe):
            raise NotEnoughColumns("liberasurecode has another fragment header than the 80 bytes known here")
        self._headers = lru_cache(maxsize=64)(self._fragment_headers)

    def parity(self, payload: bytes) -> list[memoryview]:
        """The m parity shards of `payload`, k data shards one after the other."""
        fragments = self._driver.encode(payload)
        return [memoryview(fragment)[_HEADER_BYTES:] for fragment in fragments[self.data_shards :]]

    def rebuild(self, shards: dict[int, bytes], missing: int) -> memoryview:
        """Shard `missing` from at least k others by index; raises NotEnoughColumns."""
        if len(shards) < self.data_shards:
            raise NotEnoughColumns(f"{len(shards)} shards are readable, {self.data_shards} are needed")
        headers = self._headers(len(next(iter(shards.values()))))
        fragments = [headers[index] + shard for index, shard in sorted(shards.items())]
        try:
            return memoryview(self._driver.reconstruct(fragments, [missing])[0])[_HEADER_BYTES:]
        except ECDriverError as error:
            raise NotEnoughColumns(f"reconstruction failed: {error}") from error

    def _fragment_headers(self, shard_bytes: int) -> list[bytes]:
        """liberasurecode's headers for shards of this length; they do not depend on the content."""
        return [fragment[:_HEADER_BYTES] for fragment in self._driver.encode(bytes(self.data_shards * shard_bytes))]


@lru_cache(maxsize=8)
def erasure_code(data_shards: int, parity_shards: int) -> ErasureCode:
    """One driver per geometry for the whole process."""
    return ErasureCode(data_shards, parity_shards)
