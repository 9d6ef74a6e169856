"""A head's association with one sled: two queues, one session, and the volumes attached in it.

No task per I/O: a command is a future that its completion resolves. Whatever ends the association ends all of it.
"""

import asyncio
import logging
from collections.abc import Callable
from enum import Enum, auto
from functools import partial
from typing import Final
from uuid import UUID

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from sled_controller.association import REFUSALS_KEPT_MAX, REFUSED_ATTACHES
from sled_controller.credential import CREDENTIAL_BYTES, Credential, parse_credential
from sled_controller.environment import Environment
from sled_controller.errors import (
    CommandFailed,
    CredentialMalformed,
    FencedOff,
    ReceiptRefused,
    SledError,
    SledUnavailable,
)
from sled_controller.fabric import vendor
from sled_controller.fabric.attachment import Attachment, Outcome
from sled_controller.fabric.command import Command, Completed
from sled_controller.fabric.connection import QueueConnection
from sled_controller.fabric.host import ADMIN_IN_CAPSULE_BYTES, HostQueue
from sled_controller.fabric.liveness import Liveness
from sled_controller.fabric.refusal import error_of
from sled_controller.keyset import version_of
from sled_controller.receipt import RECEIPT_BYTES, Receipt
from sled_controller.session import HELLO_BYTES, HeadHandshake, SessionKeys
from sled_controller.sled_start import UNKNOWN_START, SledStart
from spdk_bindings.device import Buffer
from spdk_bindings.identify import CONTROLLER_FORMAT, IDENTIFY_BYTES
from spdk_bindings.nvme import (
    CC_ENABLE,
    CONTROLLER_ID_DYNAMIC,
    CSTS_READY,
    SQE_BYTES,
    AdminOpcode,
    LogPage,
    Property,
    Status,
    VendorIo,
    status_name,
    uuid_nqn,
)

log = logging.getLogger(__name__)

ADMIN_DEPTH: Final = 31
IO_DEPTH: Final = 127  # a queue of 128 entries holds one command less
OPEN_SECONDS_MAX: Final = 5.0
READY_POLL_SECONDS: Final = 0.02
SILENCE_SECONDS_MAX: Final = 2.0
COMMAND_SECONDS_MAX: Final = 30.0  # an ATTACH waits for the drain of a slow drive; a dead sled is noticed by silence
KEEP_ALIVE_TIMEOUT_MS: Final = 15_000  # how long the sled is asked to wait for us
CONTROLLER_CONFIGURATION: Final = CC_ENABLE | 6 << 16 | 4 << 20  # SQEs of 2^6 bytes, CQEs of 2^4
NO_NAMESPACE: Final = 0  # a sled refuses a command to it without asking a drive
NAMESPACE_PAGE_BYTES: Final = 4096
NAMESPACE_PAGES_MAX: Final = 512


class ClientState(Enum):
    """The life of an association; it is opened once and never again after it has closed."""

    NEW = auto()
    OPENING = auto()
    OPEN = auto()
    CLOSED = auto()


TRANSITIONS: Final = frozenset(
    {
        (ClientState.NEW, ClientState.OPENING),
        (ClientState.NEW, ClientState.CLOSED),
        (ClientState.OPENING, ClientState.OPEN),
        (ClientState.OPENING, ClientState.CLOSED),
        (ClientState.OPEN, ClientState.CLOSED),
    }
)


class SledClient:
    """One association: admin queue, one I/O queue, one session. Made within a running loop.

    `key_set` gives the newest signed key set that this head has. `silence_s` without a byte from the sled, or an
    admin command without an answer for `command_s`, ends the association. A drive's command that is not answered ends
    nothing: as long as the I/O queue answers a probe it is that drive alone which hangs. `closed` is resolved when it
    is gone, for any reason; `reason` says which; pending commands fail with SledUnavailable.
    """

    def __init__(
        self, *, host: str, port: int, sled_id: UUID, sled_public: bytes, head_key: Ed25519PrivateKey, head_id: UUID,
        env: Environment, key_set: Callable[[], bytes | None], silence_s: float = SILENCE_SECONDS_MAX,
        command_s: float = COMMAND_SECONDS_MAX, digests: int = 0,
    ) -> None:  # fmt: skip
        self.sled_id = sled_id
        self.reason = ""
        self.sled_time_ms = 0
        """The sled's time when the key set was last compared, as it said without proof; 0 before."""
        self.key_set_version = 0
        """The key set that the sled has, as it said; 0 before."""
        self.state = ClientState.NEW
        self._address = (host, port)
        self._sled_public = sled_public
        self._head_key = head_key
        self._head_id = head_id
        self._host_id = env.new_uuid()  # of this association only: a head's own id is in every view
        self._env = env
        self._key_set = key_set
        self._digests = digests
        self._liveness = Liveness(silence_s, command_s)
        self._tick_s = silence_s / 4
        self._loop = asyncio.get_running_loop()
        self.closed: asyncio.Future[None] = self._loop.create_future()
        self._admin: QueueConnection | None = None
        self._io: QueueConnection | None = None
        self._keys: SessionKeys | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._keep_alive_out = False
        self._probe_s: float | None = None
        """Since when a probe of the I/O queue is unanswered."""

    @property
    def boot_counter(self) -> int:
        """Which of the sled's starts this association is with; 0 before it is open."""
        return self.start.boot_counter

    @property
    def start(self) -> SledStart:
        """Which of the sled's starts this association is with, as it has signed."""
        return UNKNOWN_START if self._keys is None else self._keys.start

    async def open(self) -> None:
        """Connect both queues, prove each other's identity, push the key set; raises SledUnavailable."""
        self._move(ClientState.OPENING)
        try:
            async with asyncio.timeout(OPEN_SECONDS_MAX):
                await self._open()
                self._move(ClientState.OPEN)
        except (OSError, SledError) as error:  # TimeoutError is an OSError
            self._close("opening took too long" if isinstance(error, TimeoutError) else f"opening failed: {error}")
            raise SledUnavailable(f"sled {self.sled_id}: {self.reason}") from error
        except BaseException:
            self._close("opening was cancelled")
            raise
        self._liveness.start(self._loop.time())
        self._timer = self._loop.call_later(self._tick_s, self._tick)

    async def attach(self, credential: bytes, attach_number: int) -> Attachment:
        """ATTACH, then the receipt, which is verified; raises FencedOff, Superseded, CredentialRefused and others."""
        fields, slot = await self.send_credential(credential, attach_number)
        sqe = vendor.vendor_sqe(AdminOpcode.RECEIPT, slot=slot)
        answer = await self.admin(sqe, into_bytes=RECEIPT_BYTES, fence_slot=slot)
        keys = self._keys
        assert keys is not None
        receipt = Receipt.decode(_into(answer), keys)
        expected = (self.sled_id, keys.start.boot_counter, fields.volume, fields.epoch, attach_number, slot)
        given = (
            receipt.sled, receipt.boot_counter, receipt.volume, receipt.epoch, receipt.attach_number, receipt.slot
        )  # fmt: skip
        if given != expected:
            raise ReceiptRefused(f"it is for {given}, not for {expected}")
        return Attachment(self, receipt, fields)

    async def push_key_set(self) -> None:
        """Carry the newest key set to the sled if the sled's is older; a refusal is logged and changes nothing."""
        data = self._key_set()
        if data is None:
            return
        page = await self.admin(
            vendor.get_log_page(LogPage.SLED_STATUS, vendor.STATUS.size), into_bytes=vendor.STATUS.size,
            authenticated=False,
        )  # fmt: skip
        _, self.key_set_version, self.sled_time_ms = vendor.STATUS.unpack(_into(page))
        if version_of(data) <= self.key_set_version:
            if version_of(data) < self.key_set_version:
                log.warning(
                    "event=sled_has_newer_key_set sled=%s version=%d known=%d",
                    self.sled_id, self.key_set_version, version_of(data),
                )  # fmt: skip
            return
        try:
            await self.admin(vendor.vendor_sqe(AdminOpcode.KEYSET_UPDATE), data)
            self.key_set_version = version_of(data)
        except SledUnavailable:
            raise
        except SledError as error:
            log.warning("event=key_set_not_taken sled=%s reason=%s", self.sled_id, error)

    async def retire(self, statement: bytes) -> None:
        """Have the sled forget the fence of a deleted volume; durable when this returns. Raises CredentialRefused with
        the sled's reason, CommandFailed when it should be tried again later, SledUnavailable."""
        await self.admin(vendor.vendor_sqe(AdminOpcode.RETIRE), statement)

    async def state_time(self, statement: bytes) -> None:
        """Set the sled's time by a statement of the root key; durable when this returns. Raises CredentialRefused with
        the sled's reason, CommandFailed when it should be tried again later, SledUnavailable."""
        await self.admin(vendor.vendor_sqe(AdminOpcode.TIME_STATEMENT), statement)

    async def close(self) -> None:
        """End the association; commands that are not answered yet fail with SledUnavailable."""
        self._close("closed by this head")

    # --- what an Attachment needs

    def submit_io(self, command: Command) -> None:
        """Send on the I/O queue; raises SledUnavailable, QueueFull."""
        if self.state is not ClientState.OPEN or self._io is None:
            raise SledUnavailable(f"sled {self.sled_id}: {self.reason or 'not open'}")
        self._io.submit(command)

    async def admin(
        self, sqe: bytearray, data: Buffer = b"", into_bytes: int = 0, *, authenticated: bool = True,
        fence_slot: int | None = None,
    ) -> Completed:  # fmt: skip
        """Send on the admin queue; raises SledError for anything but success, FencedOff with the credential."""
        future: asyncio.Future[Completed] = self._loop.create_future()
        self._submit_admin(sqe, data, into_bytes, authenticated, partial(_resolve, future))
        answer = await future
        if not answer.status:
            return answer
        credential = None
        if answer.status == Status.FENCED_OFF and fence_slot is not None:
            known: asyncio.Future[bytes | None] = self._loop.create_future()
            self.fetch_fence(fence_slot, partial(_set_result, known))
            credential = await known
        raise error_of(answer.status, answer.dw0, answer.dw1, credential)

    def fetch_fence(self, slot: int, done: Callable[[bytes | None], None]) -> None:
        """Read log page C0h: `done(credential)`, None when it can't be had."""
        sqe = vendor.get_log_page(LogPage.FENCE, CREDENTIAL_BYTES, specific=slot)
        try:
            self._submit_admin(sqe, b"", CREDENTIAL_BYTES, False, lambda outcome: done(_credential_in(outcome)))
        except SledError:
            done(None)

    async def read_namespaces(self) -> list[vendor.NamespaceEntry]:
        """The sled's whole namespace table."""
        entries: list[vendor.NamespaceEntry] = []
        for page in range(NAMESPACE_PAGES_MAX):
            sqe = vendor.get_log_page(
                LogPage.NAMESPACE_TABLE, NAMESPACE_PAGE_BYTES, offset=page * NAMESPACE_PAGE_BYTES
            )  # fmt: skip
            answer = await self.admin(sqe, into_bytes=NAMESPACE_PAGE_BYTES, authenticated=False)
            found = vendor.parse_namespaces(answer.command.into or b"")
            entries += found
            if len(found) < NAMESPACE_PAGE_BYTES // vendor.NAMESPACE_ENTRY.size:
                break
        return entries

    async def send_credential(self, credential: bytes, attach_number: int) -> tuple[Credential, int]:
        """ATTACH; returns the credential's fields and the slot."""
        fields = parse_credential(credential).credential
        sqe = vendor.vendor_sqe(AdminOpcode.ATTACH, slba=attach_number)
        try:
            answer = await self.admin(sqe, credential)
        except FencedOff as fenced:
            raise FencedOff(fenced.epoch, await self._refusal_of(fields.volume)) from None
        except CommandFailed as error:
            if error.status == Status.CAPACITY_EXCEEDED:
                # A slot's number is given once in an association (F3): only another one has slots again.
                self._close("its slots are used up")
                raise SledUnavailable(f"sled {self.sled_id}: {self.reason}") from error
            raise
        return fields, answer.dw0

    async def _refusal_of(self, volume: UUID) -> bytes | None:
        """The credential in the way of the volume's ATTACH, None when it can't be had. Other volumes may have been
        refused meanwhile."""
        size = REFUSALS_KEPT_MAX * CREDENTIAL_BYTES
        sqe = vendor.get_log_page(LogPage.FENCE, size, specific=REFUSED_ATTACHES)
        try:
            answer = await self.admin(sqe, into_bytes=size, authenticated=False)
        except SledError:
            return None
        page = bytes(answer.command.into or b"")
        for start in range(0, size, CREDENTIAL_BYTES):
            try:
                signed = parse_credential(page[start : start + CREDENTIAL_BYTES])
            except CredentialMalformed:
                continue
            if signed.credential.volume == volume:
                return signed.raw
        return None

    # --- opening

    async def _open(self) -> None:
        self._admin = self._queue(0, CONTROLLER_ID_DYNAMIC, ADMIN_IN_CAPSULE_BYTES)
        controller_id = await self._connect(self._admin)
        await self._enable()
        in_capsule_bytes = await self._identify()
        self._io = self._queue(1, controller_id, in_capsule_bytes)
        await self._connect(self._io)
        await self._start_session(controller_id)
        await self.push_key_set()

    async def _connect(self, connection: QueueConnection) -> int:
        """Dial and wait for Connect's answer; returns the controller id."""
        await self._loop.create_connection(lambda: connection, *self._address)
        return await connection.connected

    def _queue(self, queue_id: int, controller_id: int, in_capsule_bytes: int) -> QueueConnection:
        core = HostQueue(
            queue_id=queue_id, depth=IO_DEPTH if queue_id else ADMIN_DEPTH, subsystem_nqn=uuid_nqn(self.sled_id),
            host_nqn=uuid_nqn(self._head_id), host_id=self._host_id, controller_id=controller_id,
            in_capsule_bytes=in_capsule_bytes, kato_ms=0 if queue_id else KEEP_ALIVE_TIMEOUT_MS,
            digests=self._digests,
        )  # fmt: skip
        return QueueConnection(core, self._close)

    async def _enable(self) -> None:
        await self.admin(vendor.property_set(Property.CC, CONTROLLER_CONFIGURATION), authenticated=False)
        while True:  # bounded by the time allowed for opening
            answer = await self.admin(vendor.property_get(Property.CSTS), authenticated=False)
            if answer.dw0 & CSTS_READY:
                return
            await asyncio.sleep(READY_POLL_SECONDS)

    async def _identify(self) -> int:
        """How many bytes of data a capsule of the I/O queue may carry."""
        answer = await self.admin(vendor.identify_controller(), into_bytes=IDENTIFY_BYTES, authenticated=False)
        fields = CONTROLLER_FORMAT.parse(bytes(_into(answer)))
        if fields.in_capsule_offset_16b:
            return 0
        return max(0, int(fields.command_capsule_16b) * 16 - SQE_BYTES)

    async def _start_session(self, controller_id: int) -> None:
        assert self._admin is not None
        assert self._io is not None
        receive = vendor.vendor_sqe(AdminOpcode.SESSION_RECEIVE)
        hello = await self.admin(receive, into_bytes=HELLO_BYTES, authenticated=False)
        handshake = HeadHandshake(
            self._head_key, self.sled_id, self._sled_public, uuid_nqn(self.sled_id), controller_id, self._env
        )
        reply = handshake.reply(_into(hello))
        await self.admin(vendor.vendor_sqe(AdminOpcode.SESSION_SEND), reply, authenticated=False)
        keys = self._keys = handshake.keys
        self._admin.core.mac = keys.queue_mac(0)
        self._io.core.mac = keys.queue_mac(1)

    # --- inside

    def _move(self, state: ClientState) -> None:
        if (self.state, state) not in TRANSITIONS:
            raise SledError(f"an association that is {self.state.name} can't become {state.name}")
        self.state = state

    def _submit_admin(
        self, sqe: bytearray, data: Buffer, into_bytes: int, authenticated: bool, done: Callable[[Outcome], None]
    ) -> None:
        if self.state is ClientState.CLOSED or self._admin is None:
            raise SledUnavailable(f"sled {self.sled_id}: {self.reason or 'not open'}")
        into = memoryview(bytearray(into_bytes)) if into_bytes else None
        parts = (memoryview(data),) if data else ()
        self._admin.submit(Command(sqe, parts, into, authenticated=authenticated, context=done))

    def _tick(self) -> None:
        assert self._admin is not None
        assert self._io is not None
        now_s = self._loop.time()
        heard_s = max(self._admin.heard_s, self._io.heard_s)
        verdict = self._liveness.judge(now_s, heard_s, self._admin.oldest_s(), self._queue_unanswered_s())
        if verdict:
            self._close(verdict)
            return
        self._probe_io(now_s)
        if not self._keep_alive_out:
            self._keep_alive_out = True
            self._submit_admin(vendor.keep_alive(), b"", 0, False, self._kept_alive)
        self._timer = self._loop.call_later(self._tick_s, self._tick)

    def _queue_unanswered_s(self) -> float | None:
        """Since when the I/O queue itself has answered nothing: a probe, or everything when there is room for none."""
        assert self._io is not None
        return self._io.oldest_s() if self._probe_s is None and not self._io.core.has_room else self._probe_s

    def _probe_io(self, now_s: float) -> None:
        """When a command takes long, ask the queue for something that no drive is needed for."""
        assert self._io is not None
        oldest_s = self._io.oldest_s()
        slow = oldest_s is not None and now_s - oldest_s > self._liveness.silence_s
        if slow and self._probe_s is None and self._io.core.has_room:
            self._probe_s = now_s
            sqe = vendor.vendor_sqe(VendorIo.FLUSH, nsid=NO_NAMESPACE)
            self._io.submit(Command(sqe, authenticated=True, context=self._probed))

    def _probed(self, outcome: Outcome) -> None:
        self._probe_s = None

    def _kept_alive(self, outcome: Outcome) -> None:
        self._keep_alive_out = False
        if isinstance(outcome, Completed) and outcome.status:
            self._close(f"keep-alive failed with {status_name(outcome.status)}")

    def _close(self, reason: str) -> None:
        """The one way out: both connections end, everything pending fails, `closed` is resolved."""
        if self.state is ClientState.CLOSED:
            return
        self._move(ClientState.CLOSED)
        self.reason = reason
        log.info("event=association_closed sled=%s reason=%s", self.sled_id, reason)
        if self._timer is not None:
            self._timer.cancel()
        error = SledUnavailable(f"sled {self.sled_id}: {reason}")
        for connection in (self._admin, self._io):
            if connection is not None:
                connection.abort()
                for command in connection.abandoned():
                    if command.context is not None:
                        command.context(error)
        if not self.closed.done():
            self.closed.set_result(None)


def _resolve(future: asyncio.Future[Completed], outcome: Outcome) -> None:
    if future.done():
        return
    if isinstance(outcome, SledUnavailable):
        future.set_exception(outcome)
    else:
        future.set_result(outcome)


def _set_result(future: asyncio.Future[bytes | None], value: bytes | None) -> None:
    if not future.done():
        future.set_result(value)


def _into(answer: Completed) -> memoryview:
    """The whole answer; raises CommandFailed when the sled sent less than was asked for."""
    into = answer.command.into
    assert into is not None
    if answer.command.received != len(into):
        status = Status.DATA_TRANSFER_ERROR
        raise CommandFailed(status, status_name(status), f"{answer.command.received} of {len(into)} bytes came")
    return into


def _credential_in(outcome: Outcome) -> bytes | None:
    """The credential of a fence log page, if it is one."""
    if isinstance(outcome, SledUnavailable) or outcome.status:
        return None
    try:
        return parse_credential(outcome.command.into or b"").raw
    except CredentialMalformed:
        return None
