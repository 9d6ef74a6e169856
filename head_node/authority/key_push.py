"""Bringing a key set to every sled at once, without waiting for heads: after a key was taken out, seconds count.

Which sleds have yet to take it is in the store, put there by the commit that made the set (`Keyring.rotate`). Sleds
that are away get it when they are back, from the authority or from the first head that connects.
"""

import asyncio
import contextlib
import logging
from collections.abc import Collection, Mapping
from typing import Final, Protocol
from uuid import UUID

from head_node.authority.errors import AuthorityError
from head_node.authority.keyring import KeyRing, Keyring
from head_node.authority.ledger import KEYS_DUE_KEY, Ledger, revision_of
from head_node.authority.reports import Reports
from head_node.store.records import SledRecord
from sled_controller.environment import Environment

TAKEN: Final = "taken"
AT_ONCE_MAX: Final = 32
"""Sleds that are asked at the same time: a rack of 512 has the set in seconds, also when some do not answer."""
ANSWER_S_MAX: Final = 5.0
"""An operator waits no longer for sleds that do not answer; they are tried again."""
UNDER_WAY: Final = "no answer yet"
PAUSE_S_MIN: Final = 1.0
PAUSE_S_MAX: Final = 30.0
"""Between two looks while sleds are missing; it doubles."""

_log = logging.getLogger(__name__)


class KeySetCarrier(Protocol):
    """Brings the newest key set to a sled."""

    async def push_key_set(self, sled: SledRecord, version: int) -> str:
        """`taken` when the sled has that version or a newer one, else why not."""


class KeyPush:
    """Carries out what `keys-due` says."""

    def __init__(
        self, ledger: Ledger, keyring: Keyring, reports: Reports, env: Environment, carrier: KeySetCarrier | None
    ) -> None:
        self._ledger = ledger
        self._keyring = keyring
        self._reports = reports
        self._env = env
        self._carrier = carrier
        self._wake = asyncio.Event()
        self._answered = asyncio.Event()
        self._results: dict[UUID, str] = {}
        """What came of the newest set, by sled."""

    async def rotate_at_once(self) -> tuple[KeyRing, Mapping[UUID, str]]:
        """Make a key set of one new key, and bring it everywhere; what came of it by sled, within `ANSWER_S_MAX`.
        Raises AuthorityError."""
        ring = await self._keyring.rotate(at_once=True)
        self._reports.add_event("keys-rotated-at-once", version=ring.version, key_id=ring.keys[-1].key_id)
        if self._carrier is None:
            return ring, {}
        self._results = {}
        self._wake.set()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(ANSWER_S_MAX):
                while not (await self.due()) <= self._results.keys():
                    self._answered.clear()
                    await self._answered.wait()
        return ring, dict.fromkeys(await self.due(), UNDER_WAY) | self._results

    def wake(self) -> None:
        """A new set is in the store: look what is due."""
        self._wake.set()

    async def due(self) -> frozenset[UUID]:
        """Sleds that have not confirmed the newest set yet; those that are enrolled no more do not count."""
        found = await self._ledger.json(KEYS_DUE_KEY)
        if found is None or not found.value:
            return frozenset()
        enrolled = (await self._ledger.rack("sled/")).sleds
        return frozenset(sled for sled in map(UUID, found.value) if sled in enrolled)

    async def run(self) -> None:
        """Go on until every sled has it; until cancelled."""
        pause_s = PAUSE_S_MIN
        while True:
            self._wake.clear()
            try:
                whole = await self._push()
            except AuthorityError as error:
                _log.warning("event=key-push-failed error=%s", error)
                whole = False
            jitter = 1 + self._env.entropy.bytes(1)[0] / 512
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(None if whole else pause_s * jitter):
                    await self._wake.wait()
            pause_s = PAUSE_S_MIN if whole or self._wake.is_set() else min(pause_s * 2, PAUSE_S_MAX)

    async def _push(self) -> bool:
        """Try every sled that is due; whether all have the set."""
        due = await self.due()
        if not due or self._carrier is None:
            return True
        enrolled = (await self._ledger.rack("sled/")).sleds
        version = (await self._keyring.current()).version
        carrier, results = self._carrier, self._results
        sleds = [enrolled[sled].value for sled in due if sled in enrolled]
        turns = asyncio.Semaphore(AT_ONCE_MAX)
        left: list[str] = []

        async def push(sled: SledRecord) -> None:
            async with turns:
                result = await carrier.push_key_set(sled, version)
            results[sled.id] = result
            if result != TAKEN:
                left.append(f"{sled.name}: {result}")

        await asyncio.gather(*map(push, sleds))
        await self._confirm([sled.id for sled in sleds if results.get(sled.id) == TAKEN], version)
        self._answered.set()
        _log.info("event=key-set-pushed version=%d sleds=%d missing=%r", version, len(sleds), "; ".join(sorted(left)))
        return not left

    async def _confirm(self, taken: Collection[UUID], version: int) -> None:
        async def attempt() -> None:
            found = await self._ledger.json(KEYS_DUE_KEY)
            if found is None or (await self._keyring.current()).version != version:
                return  # a newer set is due now
            enrolled = (await self._ledger.rack("sled/")).sleds
            left = [sled for sled in found.value if UUID(sled) not in taken and UUID(sled) in enrolled]
            if left != found.value:
                await self._ledger.commit(compare={KEYS_DUE_KEY: revision_of(found)}, put={KEYS_DUE_KEY: left})

        await self._ledger.until_settled(attempt)
