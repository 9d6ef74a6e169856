"""Forgetting the fences of deleted volumes: what each sled has to be told, and when (F2).

A deletion leaves a tombstone in the store: the volume's last epoch, the time before which every credential for it
expires, and the sleds that have to confirm. When that time is over the authority brings each of them a signed
statement, again and again until it has confirmed; then the tombstone goes. Why this is safe:
docs/decisions/0008-forgetting-a-fence.md.
"""

import asyncio
import logging
from collections.abc import Mapping, Sequence
from typing import Any, Final, Protocol
from uuid import UUID

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from head_node.authority.errors import NotFound
from head_node.authority.issue_time import IssueTime
from head_node.authority.keyring import Keyring
from head_node.authority.ledger import HORIZON_KEY, Ledger, revision_of, tombstone_key, volume_key
from head_node.authority.reports import Reports
from head_node.store.records import SledRecord, VolumeRecord
from sled_controller.retirement import Retirement

HORIZON_STEP_MS: Final = 60_000
"""The horizon rises in steps, of a term where that is shorter: a credential costs a commit once a minute at most."""
TERM_MS_MAX: Final = 86_400_000
"""The longest term that can be set: what a run before a restored backup may have signed is over after it."""
SETTLE_MS: Final = 5_000
"""A sled's clock may run behind this one's: it would only refuse."""
STATEMENTS_AT_ONCE_MAX: Final = 256
"""Statements to one sled in one visit; the rest follows with the next."""
SLEDS_AT_ONCE_MAX: Final = 8
CONFIRMED: Final = "confirmed"

_log = logging.getLogger(__name__)


class Retirer(Protocol):
    """Brings statements to sleds."""

    async def retire(self, sled: SledRecord, statements: Mapping[UUID, bytes]) -> dict[UUID, str]:
        """What came of each volume's: `confirmed`, or why not."""


class Retirements:
    """Tombstones, and the horizon: every credential ever signed expires before it, as the store durably says."""

    def __init__(
        self, ledger: Ledger, keyring: Keyring, reports: Reports, issue: IssueTime, retirer: Retirer | None
    ) -> None:
        self._ledger = ledger
        self._keyring = keyring
        self._reports = reports
        self._issue = issue
        self._retirer = retirer

    # --- for what signs credentials and deletes volumes

    async def cover(self, expires_ms: int) -> None:
        """Raise the horizon above a credential that is about to be signed."""

        async def attempt() -> None:
            found = await self._ledger.json(HORIZON_KEY)
            if found is None or found.value <= expires_ms:
                step_ms = min(HORIZON_STEP_MS, expires_ms - self._issue.now_ms())
                raised = {HORIZON_KEY: expires_ms + step_ms}
                await self._ledger.commit(compare={HORIZON_KEY: revision_of(found)}, put=raised)

        await self._ledger.until_settled(attempt)

    async def check_epoch(self, epoch: int) -> None:
        """Raises Conflict where no key signs that epoch: it is not to be kept."""
        (await self._keyring.current()).signer(self._issue.now_ms(), epoch)

    async def note_signed(self, volume: UUID, epoch: int) -> None:
        """A credential was signed and may leave now: its volume exists, or its tombstone takes it into account.

        Raises NotFound when the volume is deleted and nothing remembers it: then it must not leave.
        """

        async def attempt() -> None:
            if await self._ledger.json(volume_key(volume)) is not None:
                return
            found = await self._ledger.json(tombstone_key(volume))
            horizon = await self._ledger.json(HORIZON_KEY)
            if found is None or horizon is None:
                raise NotFound(f"there is no volume {volume}")
            value = found.value | {
                "epoch": max(epoch, found.value["epoch"]),
                "over_ms": max(horizon.value, found.value["over_ms"]),
            }
            if value != found.value:
                compare = {tombstone_key(volume): found.revision}
                await self._ledger.commit(compare=compare, put={tombstone_key(volume): value})

        await self._ledger.until_settled(attempt)

    async def tombstone(self, record: VolumeRecord, compare: dict[str, int], put: dict[str, Any]) -> None:
        """Add what a commit that deletes the volume has to compare and to put."""
        horizon = await self._ledger.json(HORIZON_KEY)
        compare[HORIZON_KEY] = revision_of(horizon)
        sleds = list(dict.fromkeys([*record.sleds, *(column.sled for column in record.columns)]))
        if record.epoch and horizon is not None:  # without an epoch there never was a credential
            put[tombstone_key(record.volume)] = {
                "epoch": record.epoch,
                "over_ms": horizon.value,
                "sleds": [str(sled) for sled in sleds],
            }

    async def restored(self) -> None:
        """The store was restored from a backup: what was signed since is not in it, but over after the longest term."""

        async def attempt() -> None:
            horizon = await self._ledger.json(HORIZON_KEY)
            known = 0 if horizon is None else horizon.value
            raised = max(known, self._issue.now_ms() + TERM_MS_MAX)
            await self._ledger.commit(compare={HORIZON_KEY: revision_of(horizon)}, put={HORIZON_KEY: raised})

        await self._ledger.until_settled(attempt)
        for volume in await self._ledger.json_list(tombstone_key("")):
            await self.note_signed(UUID(volume), 0)

    async def bring_back(self) -> None:
        """No key is left that signed while the clock was wrong: what was promised to expire far away is void."""
        over_ms = self._issue.now_ms() + TERM_MS_MAX

        async def attempt() -> None:
            horizon = await self._ledger.json(HORIZON_KEY)
            if horizon is not None and horizon.value > over_ms:
                await self._ledger.commit(compare={HORIZON_KEY: horizon.revision}, put={HORIZON_KEY: over_ms})
            for volume, found in (await self._ledger.json_list(tombstone_key(""))).items():
                if found.value["over_ms"] > over_ms:
                    key, value = tombstone_key(volume), found.value | {"over_ms": over_ms}
                    await self._ledger.commit(compare={key: found.revision}, put={key: value})

        await self._ledger.until_settled(attempt)

    # --- upkeep

    async def advance(self) -> None:
        """Bring the statements that are due to the sleds that have not confirmed; those that do not answer have their
        next turn with the next call. A sled that something of the volume is still to be deleted on is not asked: that
        takes a credential, and nothing could be signed for a volume of which nothing is left here.
        """
        retirer = self._retirer
        found = await self._ledger.json_list(tombstone_key(""))
        now_ms = self._issue.now_ms()
        due = {UUID(key): entry.value for key, entry in found.items() if entry.value["over_ms"] + SETTLE_MS <= now_ms}
        if not due or retirer is None:
            return
        key = (await self._keyring.current()).signer(now_ms)
        private = Ed25519PrivateKey.from_private_bytes(key.private)
        cleanups = (await self._ledger.rack("cleanup/")).cleanups
        by_sled: dict[UUID, list[UUID]] = {}
        for volume, value in due.items():
            unclean = cleanups[volume].value.sleds if volume in cleanups else ()
            for sled in map(UUID, value["sleds"]):
                if sled not in unclean:
                    by_sled.setdefault(sled, []).append(volume)
        enrolled = (await self._ledger.rack("sled/")).sleds
        turns = asyncio.Semaphore(SLEDS_AT_ONCE_MAX)

        async def visit(sled: UUID, volumes: list[UUID]) -> tuple[UUID, Sequence[UUID]]:
            if sled not in enrolled:
                return sled, volumes
            if self._reports.sled_reachable(sled) is False:
                return sled, []
            async with turns:
                statements = {
                    volume: Retirement(key.key_id, volume, due[volume]["epoch"], due[volume]["over_ms"]).sign(private)
                    for volume in volumes[:STATEMENTS_AT_ONCE_MAX]
                }
                results = await retirer.retire(enrolled[sled].value, statements)
            refused = {volume: result for volume, result in results.items() if result != CONFIRMED}
            for result in sorted(set(refused.values())):
                count = list(refused.values()).count(result)
                _log.warning("event=fences-not-retired sled=%s volumes=%d reason=%r", sled, count, result)
            return sled, [volume for volume in results if volume not in refused]

        for sled, confirmed in await asyncio.gather(*(visit(*each) for each in by_sled.items())):
            for volume in confirmed:
                await self._confirm(volume, sled, due[volume]["over_ms"])

    async def give_up(self, volume: UUID, sled: UUID) -> None:
        """An operator says that this sled will not come back: it is not waited for."""
        await self._confirm(volume, sled, None)

    async def _confirm(self, volume: UUID, sled: UUID, over_ms: int | None) -> None:
        async def attempt() -> None:
            found = await self._ledger.json(tombstone_key(volume))
            if found is None or over_ms not in (None, found.value["over_ms"]):
                return  # another credential was signed meanwhile: what was confirmed does not cover it
            left = [other for other in found.value["sleds"] if other != str(sled)]
            key = tombstone_key(volume)
            if left:
                await self._ledger.commit(compare={key: found.revision}, put={key: found.value | {"sleds": left}})
                return
            await self._ledger.commit(compare={key: found.revision}, put={}, delete=[key])
            _log.info("event=volume-retired volume=%s epoch=%d", volume, found.value["epoch"])

        await self._ledger.until_settled(attempt)
