"""What a deleted volume may have left behind, and its removal: intentions in the store, kept until confirmed.

A volume's record goes when its primary has deleted what it could reach. Sleds that were away keep a namespace, heads
that were away a log; nothing of a volume without a record can be deleted by a head (F1). So the same commit that drops
the record names them, and the authority deletes at each sled itself when it is back, in an epoch of its own that no
head holds; each head removes its log when its view says so. An operator may say that a sled is gone for good; a head
that is revoked is.
"""

import asyncio
import logging
from dataclasses import replace
from functools import partial
from typing import Final
from uuid import UUID

from head_node.authority.errors import AuthorityError, NotFound
from head_node.authority.ledger import Ledger, cleanup_key
from head_node.authority.nodes import Fencer
from head_node.authority.reports import Reports
from head_node.authority.retirement import Retirements
from head_node.authority.retries import LOOK_S as LOOK_S
from head_node.authority.retries import RETRY_NS as RETRY_NS
from head_node.authority.retries import SledRetries
from head_node.store.records import Cleanup
from sled_controller.environment import Environment

CLEANED: Final = "cleaned"
AT_ONCE_MAX: Final = 8

_log = logging.getLogger(__name__)


class Cleanups:
    """Reads, carries out and settles them."""

    def __init__(
        self, ledger: Ledger, reports: Reports, retirements: Retirements, env: Environment, fencer: Fencer | None
    ) -> None:
        self._ledger = ledger
        self._reports = reports
        self._retirements = retirements
        self._fencer = fencer
        self._retries = SledRetries(reports, env)
        self._turns = asyncio.Semaphore(AT_ONCE_MAX)

    async def run(self) -> None:
        """Look again and again, until cancelled."""
        while True:
            try:
                await self.look()
            except AuthorityError as error:
                _log.warning("event=cleanup-failed error=%s", error)
            await asyncio.sleep(LOOK_S)

    async def look(self) -> None:
        """Try every sled that something is left on and that may answer."""
        cleanups = (await self._ledger.rack("cleanup/")).cleanups
        self._retries.keep_only(cleanups)
        if not cleanups:
            return
        heads, sleds = (await self._ledger.rack("head/")).heads, (await self._ledger.rack("sled/")).sleds
        for cleanup in (entry.value for entry in cleanups.values()):
            for gone in [sled for sled in cleanup.sleds if sled not in sleds]:
                await self.settle(cleanup.volume, sled=gone)
            for revoked in [head for head in cleanup.heads if head not in heads or heads[head].value.revoked]:
                await self.settle(cleanup.volume, head=revoked)
        due = [
            (entry.value, sled)
            for entry in cleanups.values()
            for sled in entry.value.sleds
            if sled in sleds and self._retries.due(entry.value.volume, sled)
        ]
        await asyncio.gather(*(self._clean(cleanup, sled) for cleanup, sled in due))

    async def settle(self, volume: UUID, *, sled: UUID | None = None, head: UUID | None = None) -> None:
        """Nothing of a deleted volume is left there (or it does not matter any more). No error if that is known."""

        async def attempt() -> bool:
            found = await self._ledger.cleanup(volume)
            if found is None:
                return False
            left = replace(
                found.value,
                sleds=tuple(other for other in found.value.sleds if other != sled),
                heads=tuple(other for other in found.value.heads if other != head),
            )
            if left == found.value:
                return False
            key = cleanup_key(volume)
            done = not left.sleds and not left.heads
            await self._ledger.commit(
                compare={key: found.revision}, put={} if done else {key: left.to_json()}, delete=[key] if done else []
            )
            return True

        if await self._ledger.until_settled(attempt):
            _log.info("event=cleaned-up volume=%s sled=%s head=%s", volume, sled, head)

    async def give_up(self, volume: UUID, sled: UUID) -> None:
        """An operator says that this sled will not come back: neither is anything deleted there, nor the fence
        forgotten. Raises NotFound."""
        found = await self._ledger.cleanup(volume)
        if found is None or sled not in found.value.sleds:
            raise NotFound(f"nothing of volume {volume} is to be deleted on sled {sled}")
        await self._retirements.give_up(volume, sled)
        await self.settle(volume, sled=sled)
        self._reports.add_event("cleanup-given-up", volume=str(volume), sled=str(sled))

    async def _clean(self, cleanup: Cleanup, sled: UUID) -> None:
        if self._fencer is None:
            return
        async with self._turns:
            self._retries.begun(cleanup.volume, sled)
            result = await self._fencer.clean(cleanup, sled, partial(self._next_epoch, cleanup.volume))
        if result == CLEANED:
            await self.settle(cleanup.volume, sled=sled)
            self._reports.add_event("volume-cleaned", volume=str(cleanup.volume), name=cleanup.name, sled=str(sled))
        else:
            self._retries.failed(cleanup.volume, sled)
            _log.info("event=cleanup-waits volume=%s sled=%s reason=%r", cleanup.volume, sled, result)

    async def _next_epoch(self, volume: UUID, seen: int) -> int:
        """An epoch above `seen` and all before, which belongs to one visit of one sled (F4: durable before it is
        signed)."""

        async def attempt() -> int:
            found = await self._ledger.cleanup(volume)
            if found is None:
                raise NotFound(f"nothing of volume {volume} is left")
            taken = replace(found.value, epoch=max(found.value.epoch, seen) + 1)
            await self._retirements.check_epoch(taken.epoch)
            key = cleanup_key(volume)
            await self._ledger.commit(compare={key: found.revision}, put={key: taken.to_json()})
            return taken.epoch

        return await self._ledger.until_settled(attempt)
