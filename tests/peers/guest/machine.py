"""A booted guest that is given commands: what tests hold in their hands."""

import asyncio
import contextlib
import itertools
import shlex
import socket
import threading
from collections.abc import AsyncIterator, Iterator, Sequence
from concurrent.futures import Future
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from peers.guest import image
from peers.guest.qemu import Accelerator, Qemu, kvm_is_there

GATEWAY: Final = "10.0.2.2"
"""Where the guest finds the loopback of this machine."""
READY_SECONDS_MAX: Final = 12.0  # of a real machine, which takes one or two
COMMAND_SECONDS_MAX: Final = 10.0  # of a real machine, unless the caller says otherwise
KILL_SECONDS_MAX: Final = 5.0
FILE_BYTES_MAX: Final = 64 << 20  # it passes through the guest's memory
CONSOLE_LINES_SHOWN: Final = 60
_READY: Final = "0"


class GuestError(AssertionError):
    """The guest did not do what it was told; the text has the command's output, or the end of the kernel's log."""


@dataclass(frozen=True, slots=True)
class Result:
    """How a command ended: its exit status (128 + the signal when killed), and what it wrote."""

    status: int
    output: bytes
    errors: bytes

    @property
    def stdout(self) -> str:
        """Standard output as text."""
        return self.output.decode(errors="replace")

    @property
    def stderr(self) -> str:
        """Standard error as text."""
        return self.errors.decode(errors="replace")


class Guest:
    """A running machine. Its methods may be awaited in any event loop, by several tasks at once."""

    def __init__(self, qemu: Qemu, console: Path, slowness: float) -> None:
        self.console = console
        self.slowness = slowness
        self._qemu = qemu
        self._ids = itertools.count(1)
        self._up: Future[Result] = Future()
        self._pending: dict[str, Future[Result]] = {_READY: self._up}
        self._lock = threading.Lock()  # of what is sent, and of `_pending`
        self._gone = False
        self._forwarded: dict[int, int] = {}
        self._reader = threading.Thread(target=self._read, name="guest", daemon=True)
        self._reader.start()

    @classmethod
    @asynccontextmanager
    async def booted(
        cls, directory: Path, *, cpus: int = 1, memory_mib: int = 1024, kernel_arguments: Sequence[str] = (),
        devices: Sequence[str] = (),
    ) -> AsyncIterator[Self]:  # fmt: skip
        """A guest until the block ends; its log is kept in `directory`. Raises packages.Missing, GuestError.

        `devices` are arguments of QEMU that give it more hardware.
        """
        guest = await cls.boot(
            directory, cpus=cpus, memory_mib=memory_mib, kernel_arguments=kernel_arguments, devices=devices
        )
        try:
            yield guest
        finally:
            guest.stop()

    @classmethod
    async def boot(
        cls, directory: Path, *, cpus: int = 1, memory_mib: int = 1024, kernel_arguments: Sequence[str] = (),
        devices: Sequence[str] = (),
    ) -> Self:  # fmt: skip
        """Boot one, which `stop` ends; as `booted`."""
        files = await asyncio.to_thread(image.image)
        refusal = image.CACHE / "kvm-refused"
        failure = GuestError("no accelerator")
        for accelerator in _accelerators(refusal):
            console = directory / f"console-{accelerator.name.lower()}.log"
            console.touch()
            qemu = Qemu(
                files, accelerator, console, cpus=cpus, memory_mib=memory_mib, kernel_arguments=kernel_arguments,
                devices=devices,
            )  # fmt: skip
            guest = cls(qemu, console, accelerator.slowness)
            try:
                await guest._wait(guest._up, READY_SECONDS_MAX * accelerator.slowness)
            except (GuestError, TimeoutError) as error:
                guest.stop()
                failure = GuestError(f"the guest does not boot ({accelerator.name}): {error!r}\n{guest.log_end()}")
                if accelerator is Accelerator.KVM:
                    refusal.write_text(_boot_id())
                continue
            except BaseException:
                guest.stop()
                raise
            return guest
        raise failure

    def stop(self) -> None:
        """Switch it off, as by pulling the plug."""
        with contextlib.suppress(OSError):
            self._qemu.port.shutdown(socket.SHUT_RDWR)
        self._reader.join()
        self._qemu.stop()

    async def run(self, script: str, *, input: bytes = b"", timeout_s: float = COMMAND_SECONDS_MAX) -> Result:  # noqa: A002
        """Run a shell script to its end, whatever that is.

        Raises GuestError when it takes longer than `timeout_s` seconds of a real machine (it is killed then) or the
        guest is gone. A cancelled run is killed too.
        """
        number = str(next(self._ids))
        # Kept here: the reader forgets it as soon as it is resolved, which may be before anybody waits.
        answer: Future[Result] = Future()
        self._pending[number] = answer
        await asyncio.to_thread(self._send_script, number, script.encode(), input)
        try:
            return await self._wait(answer, timeout_s * self.slowness)
        except TimeoutError:
            killed = await self._killed(number, answer)
            raise GuestError(f"still running after {timeout_s * self.slowness:.0f} s: {script}\n{killed}") from None
        except asyncio.CancelledError:
            self._send(f"kill {number}\n".encode())
            raise

    async def check(self, script: str, *, input: bytes = b"", timeout_s: float = COMMAND_SECONDS_MAX) -> str:  # noqa: A002
        """Run a shell script that has to succeed; its standard output."""
        result = await self.run(script, input=input, timeout_s=timeout_s)
        if result.status:
            raise GuestError(f"status {result.status} of: {script}\n{result.stdout}{result.stderr}{self.log_end(15)}")
        return result.stdout

    async def put(self, path: str, data: bytes) -> None:
        """Make a file there, of at most FILE_BYTES_MAX."""
        if len(data) > FILE_BYTES_MAX:
            raise ValueError(f"{len(data)} bytes are too many for the guest's memory")
        await self.check(f"cat >{shlex.quote(path)}", input=data)

    async def get(self, path: str) -> bytes:
        """What a file there holds."""
        result = await self.run(f"cat {shlex.quote(path)}")
        if result.status:
            raise GuestError(result.stderr)
        return result.output

    async def forward(self, port: int) -> int:
        """Make TCP port `port` of the guest reachable on our loopback for as long as it runs; the port to use here."""
        if port not in self._forwarded:
            self._forwarded[port] = await asyncio.to_thread(self._qemu.forward, port)
        return self._forwarded[port]

    async def unplug(self, device: str) -> None:
        """Ask its kernel to let go of a device, by its id; it is gone some time after this."""
        await asyncio.to_thread(self._qemu.unplug, device)

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Its processors stand still in the block; connections to it stay open."""
        self._qemu.freeze()
        try:
            yield
        finally:
            self._qemu.thaw()

    @contextmanager
    def unplugged(self) -> Iterator[None]:
        """Its network drops everything in the block."""
        self._qemu.set_link(False)
        try:
            yield
        finally:
            self._qemu.set_link(True)

    def log_end(self, lines: int = CONSOLE_LINES_SHOWN) -> str:
        """The last lines of the kernel's log."""
        return "\n".join(self.console.read_text(errors="replace").splitlines()[-lines:])

    # --- inside

    async def _wait(self, answer: "Future[Result]", timeout_s: float) -> Result:
        async with asyncio.timeout(timeout_s):
            # Shielded: one who stops waiting leaves it to the reader, who resolves it all the same.
            return await asyncio.shield(asyncio.wrap_future(answer))

    async def _killed(self, number: str, answer: "Future[Result]") -> str:
        """Kill a command; what it had written."""
        self._send(f"kill {number}\n".encode())
        try:
            result = await self._wait(answer, KILL_SECONDS_MAX * self.slowness)
        except TimeoutError:
            return f"it can't be killed\n{self.log_end()}"
        return f"{result.stdout}{result.stderr}{self.log_end(15)}"

    def _send_script(self, number: str, script: bytes, data: bytes) -> None:
        self._send(f"run {number} {len(script)} {len(data)}\n".encode() + script + data)

    def _send(self, frame: bytes) -> None:
        with self._lock:
            if self._gone:
                raise GuestError(f"the guest is gone\n{self.log_end()}")
            with contextlib.suppress(OSError):  # the reader notices
                self._qemu.port.sendall(frame)

    def _read(self) -> None:
        """The reader's thread: resolves what is waited for, until the guest is gone."""
        with contextlib.suppress(OSError), self._qemu.port.makefile("rb") as stream:
            while line := stream.readline():
                _, number, status, output_bytes, errors_bytes = line.decode().split()
                result = Result(int(status), stream.read(int(output_bytes)), stream.read(int(errors_bytes)))
                self._pending.pop(number).set_result(result)
        with self._lock:
            self._gone = True
            abandoned = list(self._pending.values())
        for future in abandoned:
            future.set_exception(GuestError(f"the guest is gone: {self.log_end()}"))


def _accelerators(refusal: Path) -> list[Accelerator]:
    """KVM where it may work, and did not fail since this machine booted; then TCG."""
    refused = refusal.exists() and refusal.read_text() == _boot_id()
    return [Accelerator.KVM, Accelerator.TCG] if kvm_is_there() and not refused else [Accelerator.TCG]


def _boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text()
