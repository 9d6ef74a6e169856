"""What the authority does at sleds itself: it fences a revoked head off at once, and has deleted volumes forgotten.

To fence it attaches to the volume's sleds with the new epoch, a key that it draws for this one occasion and a
credential that may only read, and goes away again. No head holds that epoch; the next primary takes the one after it,
in its own time (F7 makes it wait for the lease).
"""

import asyncio
import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING
from uuid import UUID

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from head_node.authority.retirement import CONFIRMED
from head_node.store.records import SledRecord, VolumeRecord
from sled_controller.credential import Rights
from sled_controller.environment import Environment
from sled_controller.errors import CommandFailed, CredentialRefused, FencedOff, SledError

if TYPE_CHECKING:
    from head_node.authority.authority import Authority
    from sled_controller.fabric.client import SledClient

# A sled that takes longer is told by the next primary, or refuses by itself when the credential ends.
FENCE_S_MAX = 8.0
FENCED = "fenced"

_log = logging.getLogger(__name__)


class SledFencer:
    """Implements `Fencer`, and with it `Retirer`, over the sled client; `bind` it before use."""

    def __init__(self, env: Environment) -> None:
        self._env = env
        self._authority: Authority | None = None

    def bind(self, authority: "Authority") -> None:
        """Name the authority whose records and keys are used."""
        self._authority = authority

    async def fence(self, record: VolumeRecord) -> dict[UUID, str]:
        """Attach with the record's epoch to every sled of the volume, all at the same time."""
        assert self._authority is not None
        key = Ed25519PrivateKey.from_private_bytes(self._env.entropy.bytes(32))
        public = key.public_key().public_bytes_raw()
        credential = await self._authority.volumes.sign_for(record, public, Rights.READ)
        key_set = (await self._authority.keyring.current()).signed_set
        enrolled = (await self._authority.ledger.rack()).sleds
        sleds = list(dict.fromkeys([*record.sleds, *(column.sled for column in record.columns)]))
        known = [enrolled[sled].value for sled in sleds if sled in enrolled]
        results = await asyncio.gather(*(self._fence_one(sled, key, credential, key_set, record) for sled in known))
        fences = dict.fromkeys(sleds, "not enrolled") | {s.id: r for s, r in zip(known, results, strict=True)}
        for sled, result in fences.items():
            _log.info("event=fence-now volume=%s epoch=%d sled=%s result=%r", record.volume, record.epoch, sled, result)
        return fences

    async def retire(self, sled: SledRecord, statements: Mapping[UUID, bytes]) -> dict[UUID, str]:
        """Bring the statements about deleted volumes to a sled; implements `Retirer`."""
        assert self._authority is not None
        results: dict[UUID, str] = {}
        try:
            async with asyncio.timeout(FENCE_S_MAX):
                key_set = (await self._authority.keyring.current()).signed_set
                client = self._client(sled, Ed25519PrivateKey.from_private_bytes(self._env.entropy.bytes(32)), key_set)
                try:
                    await client.open()
                    for volume, statement in statements.items():
                        try:
                            await client.retire(statement)
                        except (CredentialRefused, CommandFailed) as error:
                            results[volume] = str(error)
                        else:
                            results[volume] = CONFIRMED
                finally:
                    await client.close()
        except TimeoutError:
            reason = f"no answer within {FENCE_S_MAX:g} s"
        except (SledError, OSError) as error:
            reason = f"{type(error).__name__}: {error}"
        else:
            reason = ""
        return {volume: results.get(volume, reason) for volume in statements}

    def _client(self, sled: SledRecord, key: Ed25519PrivateKey, key_set: bytes) -> "SledClient":
        # Only revocations and deletions need the host role, and the authority should start fast.
        from sled_controller.fabric.client import SledClient

        return SledClient(
            host=sled.address[0],
            port=sled.address[1],
            sled_id=sled.id,
            sled_public=sled.public_key,
            head_key=key,
            head_id=self._env.new_uuid(),
            env=self._env,
            key_set=lambda: key_set,
        )

    async def _fence_one(
        self, sled: SledRecord, key: Ed25519PrivateKey, credential: bytes, key_set: bytes, record: VolumeRecord
    ) -> str:
        client = self._client(sled, key, key_set)
        try:
            async with asyncio.timeout(FENCE_S_MAX):
                await client.open()
                await client.attach(credential, 1)
        except FencedOff as error:
            return FENCED if error.epoch >= record.epoch else f"the sled refuses with epoch {error.epoch}"
        except TimeoutError:
            return f"no receipt within {FENCE_S_MAX:g} s"
        except (SledError, OSError) as error:
            return f"{type(error).__name__}: {error}"
        finally:
            await client.close()
        return FENCED
