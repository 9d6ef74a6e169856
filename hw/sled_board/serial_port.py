"""Serial ports by pyserial: device files and every URL that it knows (`socket://`, `rfc2217://`, `loop://`, ...).

pyserial waits in its calls, so a thread of each port reads; what it has read waits in a bounded buffer.
"""

import asyncio
import contextlib
import errno
import fcntl
import hashlib
import os
import re
import socket
import tempfile
import termios
import threading
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import serial
from serial.tools import list_ports

from sled_board.board import Console
from sled_board.durable import open_own
from sled_board.errors import PortLost, PortUnavailable

POLL_S: Final = 0.1
"""How soon the thread notices that the port is to be closed."""
WAITING_BYTES_MAX: Final = 1 << 20
WRITE_SECONDS_MAX: Final = 10.0
"""For some hundred bytes: longer takes only who holds the line up by flow control."""
_LOSSES: Final = (serial.SerialException, OSError, termios.error)
_REFUSALS: Final = (*_LOSSES, ValueError, KeyError, TypeError, re.error)
"""What pyserial raises for ports that are not to be had, its parsers' errors among them."""
NETWORK_SCHEMES: Final = ("socket", "rfc2217")


def find_port(pattern: str | None = None) -> str:
    """The only port of this machine, or the only one whose device, description or hardware id matches `pattern`.

    Raises PortUnavailable, which lists what there is.
    """
    try:
        wanted = re.compile(pattern or "", re.IGNORECASE)
    except re.error as error:
        raise PortUnavailable(f"{pattern!r} is no regular expression: {error}") from None
    ports = sorted(list_ports.comports(), key=lambda port: str(port.device))
    lines = {str(port.device): f"{port.device} ({port.description}; {port.hwid})" for port in ports}
    found = [device for device, text in lines.items() if wanted.search(text)]
    if len(found) == 1:
        return found[0]
    listed = "; ".join(lines.values())
    if not lines:
        raise PortUnavailable("this machine has no serial port: plug one in, or name it with --port")
    if not found:
        raise PortUnavailable(f"no serial port matches {pattern!r}; there are {listed}")
    raise PortUnavailable(f"{len(found)} serial ports: choose one with --port or --port-filter: {listed}")


class SerialPort:
    """An open port: a `uboot.dialogue.Line`. Use `opened`."""

    def __init__(self, url: str, port: Any) -> None:
        self.url = url
        self._port = port
        self._loop = asyncio.get_running_loop()
        self._waiting = bytearray()
        self._arrived = asyncio.Event()
        self._closing = threading.Event()
        self._lost: str | None = None
        self._stuck = False
        self._thread = threading.Thread(target=self._read_all, name=f"read {url}", daemon=True)
        self._thread.start()

    @property
    def baud(self) -> int:
        """Bits per second."""
        return int(self._port.baudrate)

    async def read(self, timeout_s: float) -> bytes:
        """What has come, at least one byte; nothing when none came within the time. Raises PortLost."""
        if not self._waiting and self._lost is None:
            self._arrived.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(timeout_s):
                    await self._arrived.wait()
        if not self._waiting and self._lost is not None:
            raise PortLost(f"{self.url}: {self._lost}")
        data = bytes(self._waiting)
        self._waiting.clear()
        return data

    async def write(self, data: bytes) -> None:
        """Return when all of `data` has been handed over. Raises PortLost."""
        try:
            await asyncio.to_thread(self._port.write, data)
        except serial.SerialTimeoutException:
            self._stuck = True
            raise PortLost(f"{self.url}: {self._held_up}") from None
        except _LOSSES as error:
            raise PortLost(f"{self.url}: {_reason(error)}") from None

    async def set_baud(self, baud: int) -> None:
        """Speak at another rate, once everything written has left. Raises PortLost."""

        def change() -> None:
            deadline = time.monotonic() + WRITE_SECONDS_MAX
            while getattr(self._port, "out_waiting", 0):
                if time.monotonic() > deadline:
                    self._stuck = True
                    raise serial.SerialTimeoutException(self._held_up)
                time.sleep(0.001)
            self._port.flush()
            self._port.baudrate = baud

        try:
            await asyncio.to_thread(change)
        except (*_LOSSES, ValueError) as error:
            raise PortLost(f"{self.url}: {baud} baud: {_reason(error)}") from None

    def close(self) -> None:
        """Give the port back."""
        self._closing.set()
        self._thread.join(timeout=10 * POLL_S)
        if self._stuck:
            with contextlib.suppress(*_LOSSES):
                self._port.reset_output_buffer()  # what the other end does not take would be waited for
        with contextlib.suppress(*_LOSSES):
            self._port.close()

    @property
    def _held_up(self) -> str:
        said = f"what was written could not be sent within {WRITE_SECONDS_MAX:g} s"
        if self._port.rtscts or self._port.xonxoff:
            said += (
                ": the other end holds the line up by flow control; look at the cable, and at flow_control of the board"
            )
        return said

    def _read_all(self) -> None:
        while not self._closing.is_set():
            try:
                # socket:// says 0 or 1 for what is there, whatever is; so one byte and then what has followed.
                data = self._port.read(max(1, self._port.in_waiting))
            except Exception as error:  # pyserial's are of every kind once its port is gone
                self._tell(b"", str(error) or type(error).__name__)
                return
            if data:
                self._tell(data, None)

    def _tell(self, data: bytes, lost: str | None) -> None:
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._take, data, lost)

    def _take(self, data: bytes, lost: str | None) -> None:
        self._waiting += data
        if len(self._waiting) > WAITING_BYTES_MAX:
            del self._waiting[:-WAITING_BYTES_MAX]
        self._lost = lost or self._lost
        self._arrived.set()


@contextlib.asynccontextmanager
async def opened(url: str, console: Console, baud: int | None = None) -> AsyncIterator[SerialPort]:
    """The port at `url`, which nobody else has meanwhile. Raises PortUnavailable."""
    with contextlib.ExitStack() as locks:
        try:
            port = await asyncio.to_thread(_prepared, url, console, baud or console.baud)
            for name in await asyncio.to_thread(_names, port.port):
                locks.enter_context(_locked(url, name))
            await asyncio.to_thread(port.open)
        except _REFUSALS as error:
            raise PortUnavailable(f"{url}: {_reason(error)}") from None
        opened_port = SerialPort(url, port)
        try:
            yield opened_port
        finally:
            await asyncio.to_thread(opened_port.close)


def _prepared(url: str, console: Console, baud: int) -> Any:
    """The port, not open yet: its name is then that of the device behind `hwgrep://`, `spy://` and `alt://`."""
    port = serial.serial_for_url(
        url,
        do_not_open=True,
        baudrate=baud,
        timeout=POLL_S,
        rtscts=console.flow_control == "rtscts",
        xonxoff=console.flow_control == "xonxoff",
    )
    if not port.port.lower().startswith("rfc2217:"):  # which knows no such time, and gives a dead peer up by itself
        port.write_timeout = WRITE_SECONDS_MAX
    if "://" not in port.port:
        port.exclusive = True
    return port


def _names(port: str) -> list[str]:
    """What the port is locked by: its device, or each address of its host. Raises ValueError and OSError."""
    scheme, separator, _ = port.lower().partition("://")
    if not separator:
        return [os.path.realpath(port)]
    if scheme not in NETWORK_SCHEMES:
        return [port]
    parts = urlsplit(port)
    try:
        host, number = parts.hostname, parts.port
    except ValueError:  # out of range
        host, number = None, None
    if not host or not number:
        raise ValueError(f"names no host and port (1 to 65535): write {scheme}://HOST:PORT")
    try:
        found = socket.getaddrinfo(host, number, type=socket.SOCK_STREAM)
    except (socket.gaierror, UnicodeError) as error:
        raise ValueError(f"{host}: {getattr(error, 'strerror', None) or 'is no name of a host'}") from None
    return sorted({f"{address[0]} {number}" for *_, address in found})


def _reason(error: Exception) -> str:
    """In words; pyserial wraps the system's own into several layers of text."""
    if isinstance(error, KeyError):
        return "has an option that is unknown, or a value that is"
    number = error.args[0] if isinstance(error, termios.error) else getattr(error, "errno", None)
    if number == errno.EWOULDBLOCK:
        return "another program has it locked"
    return os.strerror(number) if number is not None and number > 0 else str(error) or type(error).__name__


@contextlib.contextmanager
def _locked(url: str, name: str) -> Iterator[None]:
    """One flasher of this user and machine at a time, also where the port itself would let two in. No file stays."""
    file = f"palisade-port-{os.getuid()}-{hashlib.sha256(name.encode()).hexdigest()[:16]}.lock"
    path = Path(os.environ.get("XDG_RUNTIME_DIR") or tempfile.gettempdir()) / file
    while True:
        try:
            fd = open_own(path, os.O_RDWR | os.O_CREAT)
        except OSError as error:
            raise PortUnavailable(f"{url}: its lock {path}: {error.strerror}") from None
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(fd)
            raise PortUnavailable(f"{url}: another rackctl is at work on it; wait until it has ended") from None
        if _is_at(fd, path):
            break
        os.close(fd)  # whoever had it has removed the file after we had opened it
    try:
        yield
    finally:
        path.unlink(missing_ok=True)  # before it is free: nobody else's, then
        os.close(fd)


def _is_at(fd: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), os.lstat(path))
    except FileNotFoundError:
        return False
