"""The authority of one rack, put together over a store and a root key; knows nothing of HTTP."""

import asyncio
import contextlib
import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import UUID

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from head_node.authority.audit import LINES_KEPT, Audit
from head_node.authority.authentication import Authenticator
from head_node.authority.backups import back_up, replace_blank_secrets
from head_node.authority.certificates import ServerCertificate
from head_node.authority.cleanups import Cleanups
from head_node.authority.errors import AuthorityError, Unenrolled
from head_node.authority.hosts import VolumeHosts
from head_node.authority.issue_time import IssueTime
from head_node.authority.key_push import KeyPush
from head_node.authority.key_requests import KeyRequests
from head_node.authority.keyring import KIND as KEY_SET
from head_node.authority.keyring import RESTORED_VERSIONS_SKIPPED, Keyring
from head_node.authority.ledger import KEYS_KEY, RACK_KEY, Ledger
from head_node.authority.nodes import Fencer, Nodes
from head_node.authority.operator_tokens import OperatorTokens
from head_node.authority.recovery import Recovery
from head_node.authority.reply_keys import KIND as REPLY_KEY
from head_node.authority.reply_keys import ReplyKeys
from head_node.authority.reports import Event, Reports
from head_node.authority.retirement import Retirements
from head_node.authority.root_key import MemoryRoot, RootKey, RootKeyNeeded, RootKeyUnusable
from head_node.authority.sled_starts import SledStarts
from head_node.authority.surplus import Surplus
from head_node.authority.time_repair import TimeRepair
from head_node.authority.unfenced import UnfencedSleds
from head_node.authority.volumes import Volumes
from head_node.store.host_secrets import sealed_for
from head_node.store.interface import ABSENT, Store
from head_node.store.records import RackView
from head_node.volume.geometry import Geometry
from sled_controller.environment import Environment
from sled_controller.errors import KeySetRefused
from sled_controller.keyset import KeySet

# Keys retire by the clock; looking this often keeps them at most as much too long.
UPKEEP_S = 30.0
# Each question goes to all sleds of a volume.
SLED_TIMES_PAUSE_NS = 1_000_000_000

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Policy:
    """What the operator may choose, in the units of the names."""

    credential_term_ms: int = 600_000
    key_publish_ms: int = 60_000
    heads_per_volume: int = 2
    reply_key_term_ms: int = 90 * 24 * 3600 * 1000
    backup_public: bytes | None = None
    """The operator's key that backups are sealed to; without one they hold no secret."""
    geometry: Geometry = field(default_factory=Geometry)
    """Of volumes made from now on."""
    audit_lines_max: int = LINES_KEPT


class Authority:
    """One run of the authority. Make it with `start`, and `stop` it before closing the store."""

    def __init__(self, store: Store, root: RootKey, env: Environment, policy: Policy, fencer: Fencer | None) -> None:
        self.env = env
        self.policy = policy
        self.root = root
        self.root_public = root.public
        self.store = store
        self.ledger = Ledger(store)
        self.reports = Reports(env)
        self.audit = Audit(store, env, policy.audit_lines_max)
        self.reports.on_own_event = self._note_event
        self.tokens = OperatorTokens(self.ledger, self.reports, env)
        self.issue = IssueTime(self.ledger, env)
        self.requests = KeyRequests(self.ledger, root)
        self.requests.on_installed = self._root_signed
        self.replies = ReplyKeys(
            self.ledger, self.requests, self.issue, env,
            root_public=root.public, term_ms=policy.reply_key_term_ms,
        )  # fmt: skip
        self.keyring = Keyring(
            self.ledger,
            self.requests,
            self.issue,
            env,
            term_ms=policy.credential_term_ms,
            publish_ms=policy.key_publish_ms,
        )
        self.key_push = KeyPush(self.ledger, self.keyring, self.reports, env, fencer)
        self.retirements = Retirements(self.ledger, self.keyring, self.reports, self.issue, fencer)
        self.volumes = Volumes(
            self.ledger,
            self.keyring,
            self.reports,
            self.issue,
            env,
            term_ms=policy.credential_term_ms,
            heads_per_volume=policy.heads_per_volume,
            geometry=policy.geometry,
            retirements=self.retirements,
        )
        self.hosts = VolumeHosts(self.ledger, self.reports)
        self.recovery = Recovery(
            self.ledger, self.keyring, self.reports, env,
            key_push=self.key_push, root_public=self.root_public, term_ms=policy.credential_term_ms, fencer=fencer,
        )  # fmt: skip
        self.certificate: ServerCertificate | None = None
        """What it serves TLS with; None: clear text."""
        self._fencer = fencer
        self._sleds_asked_ns: int | None = None
        self.unfenced = UnfencedSleds(self.ledger, self.reports, env, fencer, self.volumes.take_epoch_above)
        self.surplus = Surplus(
            self.ledger, self.reports, self.issue, env, fencer, term_ms=policy.credential_term_ms
        )  # fmt: skip
        self.nodes = Nodes(
            self.ledger, self.volumes, self.reports, env,
            root_public=self.root_public, unfenced=self.unfenced, surplus=self.surplus,
        )  # fmt: skip
        self.cleanups = Cleanups(self.ledger, self.reports, self.retirements, env, fencer)
        self.time = TimeRepair(
            self.ledger, self.keyring, self.reports, self.issue, self.retirements, env, root_key=root, fencer=fencer
        )
        self.starts = SledStarts(self.ledger, self.reports, fencer)
        self.authenticator = Authenticator(self.ledger, env)
        self.root_needed = ""
        """Why the root key is needed, empty when it is not."""
        self._stopping = asyncio.Event()
        self._upkeep: list[asyncio.Task[None]] = []

    @classmethod
    async def start(
        cls,
        store: Store,
        root_key: Ed25519PrivateKey | RootKey,
        env: Environment,
        policy: Policy | None = None,
        fencer: Fencer | None = None,
    ) -> "Authority":
        """Check that the root key is the rack's, freeze a restored store, make the first keys. Where the root key is
        away, what it has to sign waits for it.

        Raises RootKeyUnusable, AuthorityUnavailable.
        """
        root: RootKey = MemoryRoot(root_key) if isinstance(root_key, Ed25519PrivateKey) else root_key
        authority = cls(store, root, env, policy or Policy(), fencer)
        await authority._check_identity()
        await authority.issue.load()
        await authority.replies.load()
        if await store.restored():
            await authority.tokens.drop_all()
            await authority._freeze_restored()
        await authority.make_keys()
        authority._upkeep = [
            asyncio.create_task(authority._keep_up(), name="authority-upkeep"),
            asyncio.create_task(authority.cleanups.run(), name="authority-cleanups"),
            asyncio.create_task(authority.starts.run(), name="authority-sled-starts"),
            asyncio.create_task(authority.unfenced.run(), name="authority-fencing"),
            asyncio.create_task(authority.key_push.run(), name="authority-key-push"),
            asyncio.create_task(authority.surplus.run(), name="authority-surplus"),
        ]
        authority.audit.start()
        return authority

    async def stop(self) -> None:
        """End long polls and timers."""
        self._stopping.set()
        for task in self._upkeep:
            task.cancel()
        await asyncio.gather(*self._upkeep, return_exceptions=True)
        await self.audit.close()

    @property
    def stopping(self) -> bool:
        return self._stopping.is_set()

    def begin_stop(self) -> None:
        """Answer all long polls now, so that connections can be closed."""
        self._stopping.set()

    async def view(self, head: UUID, after: int | None, wait_ms: int) -> RackView:
        """What `head` may know, at once or when the revision is not `after` any more, at most `wait_ms` later.

        Raises Unenrolled when the head was revoked meanwhile.
        """
        if after is not None and wait_ms > 0:
            await self._wait_for_change(after, wait_ms / 1000)
        rack = await self.ledger.rack()
        ring = await self.keyring.current()
        enrolled = {key: entry.value for key, entry in rack.heads.items() if not entry.value.revoked}
        if head not in enrolled:
            raise Unenrolled(f"head {head} is not enrolled any more")
        volumes = {key: entry.value for key, entry in rack.volumes.items() if entry.value.assigned(head)}
        public = enrolled[head].public_key
        return RackView(
            revision=rack.revision,
            heads=enrolled,
            sleds={key: entry.value for key, entry in rack.sleds.items()},
            key_set=ring.signed_set,
            volumes=volumes,
            secrets={
                key: sealed_for(public, entry.value, self.env.entropy)
                for key, entry in rack.secrets.items()
                if key in volumes and entry.value.terms
            },
            deleted=frozenset(key for key, entry in rack.cleanups.items() if head in entry.value.heads),
        )

    async def renew(self, head: UUID, volume: UUID, *, epoch: int, claim: str, expired: bool) -> bytes:
        """A credential of the same epoch with a new term. `expired`: the volume's sleds refuse the present one, whose
        term is not over: they have another time than this authority, which follows them. Raises NotEligible, Frozen,
        NotFound."""
        credential = await self.volumes.renew(head, volume, epoch=epoch, claim=claim)
        if not expired or not await self._follow_sleds(volume):
            return credential
        return await self.volumes.renew(head, volume, epoch=epoch, claim=claim)

    async def _follow_sleds(self, volume: UUID) -> bool:
        """Ask the volume's sleds for their time; whether issue time has moved on with them."""
        now_ns = self.env.clock.boottime_ns()
        if self._fencer is None or now_ns < (self._sleds_asked_ns or 0):
            return False
        self._sleds_asked_ns = now_ns + SLED_TIMES_PAUSE_NS
        record = (await self.ledger.volume(volume)).value
        times_ms = await self._fencer.sled_times(await self.time.without_wrong(record))
        before_ms = self.issue.now_ms()
        followed = self.issue.follow(times_ms, record.geometry.data_shards)
        if followed:
            ahead_ms = self.issue.now_ms() - before_ms
            _log.warning("event=issue-time-follows-sleds volume=%s ahead_ms=%d", volume, ahead_ms)
            self.reports.add_event("issue-time-follows-sleds", volume=str(volume), ahead_ms=ahead_ms)
        return followed

    async def key_set(self) -> KeySet:
        """The current key set, as its receiver opens it."""
        return KeySet.open((await self.keyring.current()).signed_set, self.root_public)

    async def operator_token(self, known: str | None) -> str:
        """The operator's first token: `known` if it is the rack's, else a new one that replaces it."""
        return await self.tokens.bootstrap(known)

    def _note_event(self, event: Event) -> None:
        """What the authority has done is told in the trail too, where it stays."""
        self.audit.note(event.kind, target=str(event.fields.get("volume", "")), details=event.fields)

    async def _wait_for_change(self, after: int, timeout_s: float) -> None:
        changed = asyncio.ensure_future(self.store.watch(after))
        stopping = asyncio.ensure_future(self._stopping.wait())
        try:
            await asyncio.wait({changed, stopping}, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        finally:
            changed.cancel()
            stopping.cancel()
            await asyncio.gather(changed, stopping, return_exceptions=True)

    async def _check_identity(self) -> None:
        found = await self.ledger.json(RACK_KEY)
        if found is None:
            identity: dict[str, Any] = {"rack": str(self.env.new_uuid()), "root_public_key": self.root_public.hex()}
            await self.ledger.commit(compare={RACK_KEY: ABSENT}, put={RACK_KEY: identity})
        elif found.value["root_public_key"] != self.root_public.hex():
            raise RootKeyUnusable(
                f"the root key is {self.root_public.hex()}, but this store belongs to {found.value['root_public_key']};"
                " put back that root key, or start with an empty store"
            )

    async def judge_key_set(self, head: UUID, given: Any) -> None:
        """A key set of this root that is newer than the store's proves that the store is an old copy, put back by other
        means than a backup: nothing of it may be relied on. Anything else proves nothing."""
        try:
            version = KeySet.open(bytes.fromhex(given), self.root_public).version
        except (KeySetRefused, TypeError, ValueError):
            return
        found = await self.ledger.json(KEYS_KEY)
        known = 0 if found is None else int(found.value["version"])
        if version <= max(known, self.keyring.version_min - 1):
            return
        self.keyring.version_min = version + 1
        _log.error("event=store-is-old head=%s key_set_seen=%d key_set_known=%d", head, version, known)
        self.reports.add_event("store-is-old", head=str(head), key_set_seen=version, key_set_known=known)
        await self.tokens.drop_given()
        await self._freeze_restored(
            "the store is an old copy: a head has a newer key set; compare with sleds and logs, then recover"
        )

    async def _freeze_restored(
        self,
        reason: str = "the store was restored from a backup; compare with sleds and logs, then recover",
    ) -> None:
        """A restored store does not know what was issued after the backup (F2, F4): nobody may rely on it."""
        await replace_blank_secrets(self.ledger, self.reports, self.env)
        await self.retirements.restored()
        await self.nodes.drop_tokens()
        await self.time.restored()
        await self.keyring.restored()
        frozen = await self.recovery.freeze_all(reason)
        _log.warning("event=store-restored volumes_frozen=%d", len(frozen))
        # Nothing that the backup has signs or is published again: it may have been rotated out since. Where the root
        # key is away that waits for it, as `make_keys` says, and the mark stays until then.
        with contextlib.suppress(RootKeyNeeded):
            await self.requests.check_none_waits(REPLY_KEY)
            await self.replies.rotate(numbers_skipped=RESTORED_VERSIONS_SKIPPED)
        with contextlib.suppress(RootKeyNeeded):
            if await self.keyring.waits() is None:
                await self.keyring.rotate(at_once=True)
                await self.store.clear_restored()

    async def back_up(self, path: Path) -> int:
        """Write a copy of the store that signs nothing; returns its revision. Raises StoreFailed."""
        return await back_up(self.store, path, self.policy.backup_public, self.env)

    async def make_keys(self) -> None:
        """What signs from now on, as far as the root key can be had."""
        needed = ""
        for step in (self.requests.sign_waiting, self.keyring.current, self.keyring.retire, self.replies.keep_up):
            try:
                await step()
            except RootKeyNeeded as error:  # go on: what else it has to sign goes the same way
                needed = str(error)
        if needed and needed != self.root_needed:
            _log.error("event=root-key-needed reason=%s", needed)
            self.reports.add_event("root-key-needed", reason=needed)
        self.root_needed = needed

    async def _root_signed(self, kind: str) -> None:
        """What was requested is in the store: what it stood in the way of goes on."""
        self.reports.add_event("root-signed", what=kind)
        await self.replies.load()
        if kind == KEY_SET:
            self.key_push.wake()
            await self.store.clear_restored()
            self.root_needed = ""

    async def _keep_up(self) -> None:
        while True:
            try:
                await self.nodes.finish_revocations()
                await self.nodes.close_expired_tokens()
                await self.tokens.clear_expired()
                await self.make_keys()
                await self.time.advance()
                await self.retirements.advance()
            except AuthorityError as error:
                _log.warning("event=upkeep-failed error=%s", error)
            await asyncio.sleep(UPKEEP_S)
