"""One volume attached on one association: its I/O, its namespaces, the renewal of its credential.

Each command is a future. *Fenced off* and *superseded* are final: the first such answer ends the attachment.
"""

import asyncio
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final, Protocol, TypeAlias

from sled_controller.association import Refusal
from sled_controller.credential import Credential
from sled_controller.errors import CommandFailed, CredentialRefused, FencedOff, SledError, SledUnavailable, Superseded
from sled_controller.fabric import vendor
from sled_controller.fabric.command import Command, Completed, Data
from sled_controller.fabric.refusal import error_of, reason_of
from sled_controller.fabric.vendor import NamespaceEntry
from sled_controller.receipt import Receipt
from spdk_bindings.device import BLOCK_BYTES, Buffer
from spdk_bindings.nvme import CONTROL_FUA, AdminOpcode, Status, VendorIo, status_name

TRANSFER_BLOCKS_MAX: Final = 256  # MDTS: 1 MiB of data in one command
RANGE_BLOCKS_MAX: Final = 65536  # NLB is 16 bits, 0's based
HELD_SECONDS_MAX: Final = 1.5
"""A renewal takes two round trips, one of them to the authority; below what a column may leave unanswered."""
HELD_MAX: Final = 1024
"""More than a queue takes at once."""

Outcome: TypeAlias = Completed | SledUnavailable


class Association(Protocol):
    """What an attachment needs of the association that it belongs to."""

    def submit_io(self, command: Command) -> None:
        """Send on the I/O queue; raises SledError."""

    async def admin(
        self, sqe: bytearray, data: Buffer = b"", into_bytes: int = 0, *, authenticated: bool = True,
        fence_slot: int | None = None,
    ) -> Completed:  # fmt: skip
        """Send on the admin queue; raises SledError for anything but success."""

    def fetch_fence(self, slot: int, done: Callable[[bytes | None], None]) -> None:
        """The credential that raised the fence in the slot's way, None when it can't be had."""

    async def read_namespaces(self) -> list[NamespaceEntry]:
        """The sled's namespace table."""

    async def send_credential(self, credential: bytes, attach_number: int) -> tuple[Credential, int]:
        """ATTACH; returns the credential and the slot."""


class Attachment:
    """`receipt` is the sled's, verified. Blocks are 4096 bytes; lba and counts are in blocks."""

    def __init__(self, association: Association, receipt: Receipt, credential: Credential) -> None:
        self.receipt = receipt
        self.credential = credential
        self._association = association
        self._loop = asyncio.get_running_loop()
        self._error: SledError | None = None
        self._fenced: list[asyncio.Future[None]] | list[asyncio.Future[Buffer]] = []
        self._fence_asked = False
        self._held: list[tuple[Command, asyncio.Future[None] | asyncio.Future[Buffer]]] = []
        self._held_timer: asyncio.TimerHandle | None = None
        self.on_credential_refused: Callable[[CredentialRefused], None] | None = None
        """A command was refused because of the credential: it is over in the sled's time, or its key is retired. In the
        second case, if there is a callback, the command waits for `renew`: a key that is taken out of the key set at
        once is no reason for errors."""

    def write(self, nsid: int, lba: int, data: Sequence[Buffer], *, fua: bool = False) -> asyncio.Future[None]:
        """Write `data` (together 1 to 256 blocks), which must stay as it is until the future is done."""
        views = tuple(_view(buffer) for buffer in data)
        length = sum(map(len, views))
        if length % BLOCK_BYTES or not 0 < length <= TRANSFER_BLOCKS_MAX * BLOCK_BYTES:
            raise ValueError(f"{length} bytes are not 1 to {TRANSFER_BLOCKS_MAX} blocks")
        control = CONTROL_FUA if fua else 0
        return self._submit(VendorIo.WRITE, nsid, lba, length // BLOCK_BYTES, control, views)

    def read(self, nsid: int, lba: int, blocks: int) -> asyncio.Future[Buffer]:
        """Read 1 to 256 blocks; the result is a buffer that nobody else holds."""
        if not 0 < blocks <= TRANSFER_BLOCKS_MAX:
            raise ValueError(f"{blocks} blocks, 1 to {TRANSFER_BLOCKS_MAX} are possible")
        future: asyncio.Future[Buffer] = self._loop.create_future()
        into = memoryview(bytearray(blocks * BLOCK_BYTES))
        sqe = vendor.vendor_sqe(VendorIo.READ, nsid=nsid, slot=self.receipt.slot, nlb=blocks - 1, slba=lba)
        self._start(Command(sqe, (), into, authenticated=True, context=partial(self._read, future)), future)
        return future

    def flush(self, nsid: int) -> asyncio.Future[None]:
        """Put every completed write of the namespace on the medium."""
        return self._submit(VendorIo.FLUSH, nsid, 0, 1)

    def write_zeroes(self, nsid: int, lba: int, blocks: int, *, fua: bool = False) -> asyncio.Future[None]:
        """Zero 1 to 65536 blocks."""
        _check_range(blocks)
        return self._submit(VendorIo.WRITE_ZEROES, nsid, lba, blocks, CONTROL_FUA if fua else 0)

    def deallocate(self, nsid: int, lba: int, blocks: int) -> asyncio.Future[None]:
        """Give 1 to 65536 blocks back; they read as zeroes."""
        _check_range(blocks)
        return self._submit(VendorIo.DEALLOCATE, nsid, lba, blocks)

    async def create_namespace(self, column: int, blocks: int) -> int:
        """The nsid of the volume's column (0 to 65535), made with `blocks` blocks if it is not there."""
        sqe = vendor.vendor_sqe(AdminOpcode.NAMESPACE_CREATE, slot=self.receipt.slot, nlb=column, slba=blocks)
        return (await self._association.admin(sqe, fence_slot=self.receipt.slot)).dw0

    async def delete_namespace(self, nsid: int) -> None:
        """Delete a namespace of this volume and what is in it."""
        sqe = vendor.vendor_sqe(AdminOpcode.NAMESPACE_DELETE, slot=self.receipt.slot, nsid=nsid)
        await self._association.admin(sqe, fence_slot=self.receipt.slot)

    async def namespaces(self) -> list[NamespaceEntry]:
        """The namespaces of this volume on the sled."""
        return [entry for entry in await self._association.read_namespaces() if entry.volume == self.receipt.volume]

    async def renew(self, credential: bytes) -> None:
        """Present a newer credential of the same volume and epoch: the expiry moves, nothing else."""
        fresh, slot = await self._association.send_credential(credential, self.receipt.attach_number)
        if slot != self.receipt.slot:
            raise CommandFailed(Status.INVALID_FIELD, status_name(Status.INVALID_FIELD), "the renewal moved the slot")
        self.credential = fresh
        held, self._held = self._held, []
        self._stop_holding()
        for command, future in held:
            self._start(command.again(), future)

    async def detach(self) -> None:
        """Give the slot up; what is in flight completes first."""
        await self._association.admin(vendor.vendor_sqe(AdminOpcode.DETACH, slot=self.receipt.slot))

    # --- inside

    def _submit(
        self, opcode: VendorIo, nsid: int, lba: int, blocks: int, control: int = 0, data: Data = ()
    ) -> asyncio.Future[None]:
        future: asyncio.Future[None] = self._loop.create_future()
        sqe = vendor.vendor_sqe(
            opcode, nsid=nsid, slot=self.receipt.slot, nlb=blocks - 1, control=control, slba=lba
        )  # fmt: skip
        self._start(Command(sqe, data, authenticated=True, context=partial(self._written, future)), future)
        return future

    def _start(self, command: Command, future: asyncio.Future[None] | asyncio.Future[Buffer]) -> None:
        if self._error is not None:
            future.set_exception(self._error)
            return
        try:
            self._association.submit_io(command)
        except SledError as error:
            future.set_exception(error)

    def _written(self, future: asyncio.Future[None], outcome: Outcome) -> None:
        if isinstance(outcome, Completed) and outcome.status == Status.SUCCESS:
            if not future.done():
                future.set_result(None)
            return
        self._fail(future, outcome)

    def _read(self, future: asyncio.Future[Buffer], outcome: Outcome) -> None:
        if isinstance(outcome, Completed) and outcome.status == Status.SUCCESS:
            command = outcome.command
            assert command.into is not None
            if command.received == len(command.into):
                if not future.done():
                    future.set_result(command.into)
                return
            outcome = outcome._replace(status=Status.DATA_TRANSFER_ERROR)
        self._fail(future, outcome)

    def _fail(self, future: asyncio.Future[None] | asyncio.Future[Buffer], outcome: Outcome) -> None:
        if isinstance(outcome, SledUnavailable):
            _set_exception(future, outcome)
            return
        if outcome.status == Status.FENCED_OFF and self._error is None:
            self._fenced.append(future)  # type: ignore[arg-type]
            if not self._fence_asked:
                self._fence_asked = True
                epoch = outcome.dw0 | outcome.dw1 << 32
                self._association.fetch_fence(self.receipt.slot, partial(self._fence_known, epoch))
            return
        error = error_of(outcome.status, outcome.dw0, outcome.dw1)
        if isinstance(error, Superseded):
            self._error = error
        elif isinstance(error, CredentialRefused) and self.on_credential_refused is not None:
            if error.code == Refusal.KEY_RETIRED and len(self._held) < HELD_MAX:
                self._hold(outcome.command, future)
                self.on_credential_refused(error)
                return
            self.on_credential_refused(error)
        if isinstance(error, FencedOff) and self._error is not None:
            error = self._error
        _set_exception(future, error)

    def _hold(self, command: Command, future: asyncio.Future[None] | asyncio.Future[Buffer]) -> None:
        self._held.append((command, future))
        if self._held_timer is None:
            self._held_timer = self._loop.call_later(HELD_SECONDS_MAX, self._give_up_held)

    def _give_up_held(self) -> None:
        held, self._held = self._held, []
        self._stop_holding()
        for _, future in held:
            _set_exception(future, CredentialRefused(reason_of(Refusal.KEY_RETIRED), Refusal.KEY_RETIRED))

    def _stop_holding(self) -> None:
        if self._held_timer is not None:
            self._held_timer.cancel()
            self._held_timer = None

    def _fence_known(self, epoch: int, credential: bytes | None) -> None:
        error = self._error = FencedOff(epoch, credential)
        fenced, self._fenced = self._fenced, []
        for future in fenced:
            _set_exception(future, error)


def _set_exception(future: asyncio.Future[None] | asyncio.Future[Buffer], error: SledError) -> None:
    if not future.done():
        future.set_exception(error)


def _check_range(blocks: int) -> None:
    if not 0 < blocks <= RANGE_BLOCKS_MAX:
        raise ValueError(f"{blocks} blocks, 1 to {RANGE_BLOCKS_MAX} are possible")


def _view(buffer: Buffer) -> memoryview:
    view = memoryview(buffer)
    return view if view.format == "B" and view.ndim == 1 else view.cast("B")
