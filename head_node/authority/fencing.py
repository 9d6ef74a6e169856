"""What the authority does at sleds itself: fencing a revoked head off at once, deleting what is left of a deleted
volume, and having it forgotten.

To fence it attaches to the volume's sleds with an epoch, a key that it draws for this one occasion and a credential
that may only read, and goes away again. Which epoch that is: unfenced.py. The next primary takes one of its own, in its
own time (F7 makes it wait for the lease).
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Mapping
from typing import TYPE_CHECKING
from uuid import UUID

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from head_node.authority.cleanups import CLEANED
from head_node.authority.errors import AuthorityError
from head_node.authority.evidence import proven_epoch
from head_node.authority.key_push import TAKEN
from head_node.authority.retirement import CONFIRMED
from head_node.authority.surplus import GIVEN_BACK
from head_node.authority.time_repair import TAKEN as TIME_TAKEN
from head_node.authority.time_repair import TAKEN_HIGHER
from head_node.authority.unfenced import FENCED as FENCED
from head_node.authority.unfenced import OTHER_HOLDER
from head_node.store.records import Cleanup, SledRecord, VolumeRecord
from sled_controller.credential import Rights
from sled_controller.environment import Environment
from sled_controller.errors import CommandFailed, CredentialExpired, CredentialRefused, FencedOff, SledError
from sled_controller.sled_start import SledStart

if TYPE_CHECKING:
    from head_node.authority.authority import Authority
    from sled_controller.fabric.client import SledClient
    from sled_controller.fabric.vendor import NamespaceEntry

# A sled that takes longer is told by the next primary, or refuses by itself when the credential ends.
FENCE_S_MAX = 8.0
EXPIRED = "the credential has expired in the sled's time"

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
        """Attach with the record's epoch to every sled of the volume, all at the same time; once more if their time has
        turned out to be another than the authority's."""
        fences, times_ms = await self._fence_all(record)
        if EXPIRED in fences.values() and self._of().issue.follow(times_ms, record.geometry.data_shards):
            fences, _ = await self._fence_all(record)
        for sled, result in fences.items():
            _log.info("event=fence-now volume=%s epoch=%d sled=%s result=%r", record.volume, record.epoch, sled, result)
        return fences

    async def _fence_all(self, record: VolumeRecord) -> tuple[dict[UUID, str], list[int]]:
        """What came of it by sled, and the times of those that answered."""
        from sled_controller.association import Refusal  # as late as `_client`

        key = self._key()
        public = key.public_key().public_bytes_raw()
        sleds, known = await self._sleds_of(record)
        credential = await self._of().volumes.sign_for(record.volume, record.epoch, public, Rights.READ, sleds)
        times_ms: list[int] = []

        async def attach(client: "SledClient") -> str:
            times_ms.append(client.sled_time_ms)
            try:
                await client.attach(credential, 1)
            except FencedOff as error:
                return FENCED if error.epoch >= record.epoch else f"the sled refuses with epoch {error.epoch}"
            except CredentialExpired:
                return EXPIRED
            except CredentialRefused as error:
                if error.code == Refusal.OTHER_HOLDER:
                    return OTHER_HOLDER
                raise
            return FENCED

        results = await asyncio.gather(*(self._visit(sled, key, attach) for sled in known))
        return dict.fromkeys(sleds, "not enrolled") | {s.id: r for s, r in zip(known, results, strict=True)}, times_ms

    async def start_of(self, sled: SledRecord) -> SledStart | str:
        """Which start of a sled answers."""
        start = SledStart()

        async def read(client: "SledClient") -> str:
            nonlocal start
            start = client.start
            return ""

        return await self._visit(sled, self._key(), read, any_start=True) or start

    async def passed(self, record: VolumeRecord) -> dict[UUID, int]:
        """Raise the fences to the record's epoch; implements `FenceReader`."""
        key = self._key()
        credential = await self._of().volumes.sign_for(
            record.volume, record.epoch, key.public_key().public_bytes_raw(), Rights.READ
        )
        _, known = await self._sleds_of(record)
        found: dict[UUID, int] = {}

        async def attach(client: "SledClient") -> str:
            try:
                await client.attach(credential, 1)
            except FencedOff as error:
                found[client.sled_id] = error.epoch
            return ""

        await asyncio.gather(*(self._visit(sled, key, attach) for sled in known))
        return {sled: epoch for sled, epoch in found.items() if epoch > record.epoch}

    async def sled_times(self, record: VolumeRecord) -> list[int]:
        """What time it is for each sled of the volume that answers."""
        times: list[int] = []

        async def read(client: "SledClient") -> str:
            times.append(client.sled_time_ms)
            return ""

        _, known = await self._sleds_of(record)
        await asyncio.gather(*(self._visit(sled, self._key(), read) for sled in known))
        return times

    async def state_time(
        self, sled: SledRecord, statement: Callable[[int], Awaitable[bytes]] | None
    ) -> tuple[int, str]:
        """Bring a sled a statement of time."""
        from sled_controller.association import Refusal  # for the same reason as `_client`

        time_ms = 0

        async def act(client: "SledClient") -> str:
            nonlocal time_ms
            time_ms = client.sled_time_ms
            if statement is None:
                return TIME_TAKEN
            try:
                await client.state_time(await statement(client.boot_counter))
            except CredentialRefused as error:
                if error.code == Refusal.TIME_SERIAL:
                    return TAKEN_HIGHER
                raise
            return TIME_TAKEN

        result = await self._visit(sled, self._key(), act)
        return time_ms, result

    async def clean(self, cleanup: Cleanup, sled: UUID, next_epoch: Callable[[int], Awaitable[int]]) -> str:
        """Delete what is left of a volume on one sled."""
        authority, key, seen = self._of(), self._key(), 0
        public = key.public_key().public_bytes_raw()
        enrolled = (await authority.ledger.rack("sled/")).sleds.get(sled)
        if enrolled is None:
            return "not enrolled"

        async def delete(client: "SledClient") -> str:
            nonlocal seen
            epoch = await next_epoch(seen)
            try:
                attachment = await client.attach(
                    await authority.volumes.sign_for(cleanup.volume, epoch, public, Rights.MANAGE, [sled]), 1
                )
            except FencedOff as error:
                seen = proven_epoch(error, cleanup.volume, await authority.key_set())
                raise
            for entry in await attachment.namespaces():
                await attachment.delete_namespace(entry.nsid)
            return CLEANED

        result = await self._visit(enrolled.value, key, delete)
        return await self._visit(enrolled.value, key, delete) if seen else result

    async def namespaces(self, sled: SledRecord) -> "list[NamespaceEntry] | None":
        """The namespace table of a sled; implements `SledVisitor` with `give_back`."""
        found: list[list[NamespaceEntry]] = []

        async def read(client: "SledClient") -> str:
            found.append(await client.read_namespaces())
            return ""

        await self._visit(sled, self._key(), read)
        return found[0] if found else None

    async def give_back(self, record: VolumeRecord, sled: SledRecord, surplus: Collection[int]) -> str:
        """Delete namespaces that a volume does not need."""
        key = self._key()
        public = key.public_key().public_bytes_raw()
        credential = await self._of().volumes.sign_for(record.volume, record.epoch, public, Rights.MANAGE, [sled.id])

        async def delete(client: "SledClient") -> str:
            attachment = await client.attach(credential, 1)
            for entry in await attachment.namespaces():
                if entry.nsid in surplus:
                    await attachment.delete_namespace(entry.nsid)
            return GIVEN_BACK

        return await self._visit(sled, key, delete)

    async def push_key_set(self, sled: SledRecord, version: int) -> str:
        """Bring the newest key set to a sled; implements `KeySetCarrier`."""

        async def look(client: "SledClient") -> str:
            if client.key_set_version >= version:
                return TAKEN
            return f"it keeps key set {client.key_set_version}"

        return await self._visit(sled, self._key(), look)

    async def retire(self, sled: SledRecord, statements: Mapping[UUID, bytes]) -> dict[UUID, str]:
        """Bring the statements about deleted volumes to a sled; implements `Retirer`."""
        results: dict[UUID, str] = {}
        try:
            async with asyncio.timeout(FENCE_S_MAX):
                key_set = (await self._of().keyring.current()).signed_set
                client = self._client(sled, self._key(), key_set)
                try:
                    await client.open()
                    if why := await self._of().starts.meet(sled, client.start):
                        return dict.fromkeys(statements, why)
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

    def _of(self) -> "Authority":
        assert self._authority is not None
        return self._authority

    def _key(self) -> Ed25519PrivateKey:
        return Ed25519PrivateKey.from_private_bytes(self._env.entropy.bytes(32))

    async def _sleds_of(self, record: VolumeRecord) -> tuple[list[UUID], list[SledRecord]]:
        """The volume's sleds, and those of them that are enrolled."""
        enrolled = (await self._of().ledger.rack("sled/")).sleds
        sleds = list(dict.fromkeys([*record.sleds, *(column.sled for column in record.columns)]))
        return sleds, [enrolled[sled].value for sled in sleds if sled in enrolled]

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

    async def _visit(
        self, sled: SledRecord, key: Ed25519PrivateKey, act: Callable[["SledClient"], Awaitable[str]], *,
        any_start: bool = False,
    ) -> str:  # fmt: skip
        """Do something over an association of its own; what came of it, or why it could not be done. Nothing is done at
        a sled whose start went back, unless it is `any_start` that is asked for."""
        key_set = (await self._of().keyring.current()).signed_set
        client = self._client(sled, key, key_set)
        try:
            async with asyncio.timeout(FENCE_S_MAX):
                await client.open()
                if not any_start and (why := await self._of().starts.meet(sled, client.start)):
                    return why
                return await act(client)
        except TimeoutError:
            return f"no receipt within {FENCE_S_MAX:g} s"
        except (SledError, OSError, AuthorityError) as error:
            return f"{type(error).__name__}: {error}"
        finally:
            await client.close()
