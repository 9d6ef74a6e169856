"""Serial ports: what comes through, one flasher at a time, and what is said when a port is not to be had."""

import asyncio
import contextlib
import fcntl
import os
import pty
import re
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import serial
import serial.rfc2217
from sled_board import serial_port
from sled_board.board import load_board
from sled_board.errors import PortLost, PortUnavailable
from sled_board.serial_port import find_port, list_ports, opened

XON, XOFF = b"\x11", b"\x13"
CONSOLE = load_board("qemu-virt-arm64").console


@contextlib.contextmanager
def terminal() -> Iterator[tuple[int, str]]:
    """Our end of a pseudo terminal, and the device that the other end is."""
    ours, theirs = pty.openpty()
    try:
        yield ours, os.ttyname(theirs)
    finally:
        os.close(ours)
        os.close(theirs)


async def read_all(line: object, count: int) -> bytes:
    data = b""
    while len(data) < count:
        data += await line.read(10.0)  # type: ignore[attr-defined]
    return data


def test_a_socket_carries_bytes_both_ways_and_its_end_is_said() -> None:
    async def work() -> None:
        with socket.create_server(("127.0.0.1", 0)) as server:
            url = f"socket://127.0.0.1:{server.getsockname()[1]}"
            async with opened(url, CONSOLE) as line:
                peer, _ = server.accept()
                await line.write(b"question")
                assert peer.recv(100) == b"question"
                peer.sendall(bytes(range(256)) * 16)
                assert await read_all(line, 4096) == bytes(range(256)) * 16
                assert await line.read(0.01) == b""
                peer.close()
                with pytest.raises(PortLost, match=re.escape(url)):
                    await line.read(10.0)

    asyncio.run(work())


def test_a_terminal_server_by_rfc_2217_carries_bytes_and_baud_rate() -> None:
    """pyserial's own server side, before a port that gives back what it is given."""
    far = serial.serial_for_url("loop://", baudrate=9600, timeout=0.05)

    def serve(server: socket.socket) -> None:
        peer, _ = server.accept()
        with peer:
            writer = SimpleNamespace(write=peer.sendall)
            manager = serial.rfc2217.PortManager(far, writer)
            peer.settimeout(0.05)
            while True:
                with contextlib.suppress(TimeoutError):
                    data = peer.recv(1024)
                    if not data:
                        return
                    far.write(b"".join(manager.filter(data)))
                peer.sendall(b"".join(manager.escape(far.read(far.in_waiting))))

    async def work(url: str) -> None:
        async with opened(url, CONSOLE) as line:
            assert far.baudrate == CONSOLE.baud
            await line.write(bytes(range(256)))
            assert await read_all(line, 256) == bytes(range(256))
            await line.set_baud(57600)
            assert far.baudrate == 57600

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=serve, args=(server,))
        thread.start()
        asyncio.run(work(f"rfc2217://127.0.0.1:{server.getsockname()[1]}"))
        thread.join(timeout=10)
        assert not thread.is_alive()


def test_a_device_is_had_by_one_at_a_time() -> None:
    async def work(path: str) -> None:
        async with opened(path, CONSOLE):
            with pytest.raises(PortUnavailable, match="another rackctl is at work on it"):
                async with opened(path, CONSOLE):
                    pass
        async with opened(path, CONSOLE, baud=9600) as line:
            assert line.baud == 9600
            await line.set_baud(57600)
            assert line.baud == 57600

    with terminal() as (_, path):
        asyncio.run(work(path))


def test_two_names_of_one_host_are_one_port() -> None:
    async def work(server: socket.socket) -> None:
        number = server.getsockname()[1]
        async with opened(f"socket://127.0.0.1:{number}", CONSOLE):
            with pytest.raises(PortUnavailable, match="another rackctl is at work on it"):
                async with opened(f"SOCKET://localhost:{number}", CONSOLE):
                    pass

    with socket.create_server(("127.0.0.1", 0)) as server:
        asyncio.run(work(server))


def files(folder: Path) -> list[Path]:
    return list(folder.iterdir())


@pytest.mark.parametrize("wrapped", ["spy://{}", "alt://{}?class=PosixPollSerial", "{}"])
def test_a_device_has_one_lock_whatever_it_is_wrapped_in(wrapped: str) -> None:
    async def work(path: str) -> None:
        async with opened(path, CONSOLE):
            with pytest.raises(PortUnavailable, match="another rackctl is at work on it"):
                async with opened(wrapped.format(path), CONSOLE):
                    pass

    with terminal() as (_, path):
        asyncio.run(work(path))


async def little_by_little(line: serial_port.SerialPort) -> None:
    """Far less than a terminal takes; its XOFF counts once the kernel has found time for it."""
    for _ in range(100):
        await line.write(bytes(10))
        await asyncio.sleep(0.01)


def test_a_line_that_is_held_up_by_flow_control_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """XOFF from the other end; and XON, after which all is well."""
    monkeypatch.setattr(serial_port, "WRITE_SECONDS_MAX", 0.3)
    console = CONSOLE.model_copy(update={"flow_control": "xonxoff"})

    async def work(ours: int, path: str) -> None:
        async with opened(path, console) as line:
            os.write(ours, XOFF)
            with pytest.raises(PortLost, match=r"not be sent within 0.3 s: the other end holds the line up by flow"):
                await little_by_little(line)
        async with opened(path, console) as line:
            os.write(ours, XOFF + XON)
            await line.write(b"and on")
            received = b""
            while not received.endswith(b"and on"):
                received += os.read(ours, 1000)

    with terminal() as (ours, path):
        asyncio.run(work(ours, path))


class Full:
    """A device of pyserial's whose output goes nowhere."""

    out_waiting, in_waiting, baudrate, rtscts, xonxoff = 5, 0, 9600, True, False

    def __init__(self) -> None:
        self.calls: list[str] = []

    def read(self, _: int) -> bytes:
        time.sleep(0.01)
        return b""

    def reset_output_buffer(self) -> None:
        self.calls.append("reset")

    def close(self) -> None:
        self.calls.append("close")


def test_what_never_leaves_is_not_waited_for_when_the_rate_is_changed_or_the_port_closed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(serial_port, "WRITE_SECONDS_MAX", 0.05)

    async def work(device: Full, change: bool) -> None:
        port = serial_port.SerialPort("there", device)
        if change:
            with pytest.raises(PortLost, match=r"57600 baud: .* holds the line up by flow control"):
                await port.set_baud(57600)
        port.close()

    for change, calls in ((True, ["reset", "close"]), (False, ["close"])):
        device = Full()
        asyncio.run(work(device, change))
        assert device.calls == calls


def test_a_device_that_goes_away_is_a_lost_port_and_nothing_else() -> None:
    async def work(ours: int, path: str) -> None:
        async with opened(path, CONSOLE) as line:
            os.close(ours)
            with pytest.raises(PortLost, match=re.escape(path)):
                await line.read(10.0)
            with pytest.raises(PortLost, match=re.escape(path)):
                await line.set_baud(57600)
            with pytest.raises(PortLost, match=re.escape(path)):
                await line.write(b"data")

    ours, theirs = pty.openpty()
    path = os.ttyname(theirs)
    os.close(theirs)
    asyncio.run(work(ours, path))
    assert not [fd for fd in os.listdir("/proc/self/fd") if os.path.realpath(f"/proc/self/fd/{fd}").startswith(path)]


def test_what_was_written_is_not_taken_back_when_the_port_is_closed() -> None:
    async def work(path: str) -> None:
        async with opened(path, CONSOLE) as line:
            await line.write(bytes(range(32, 127)))

    with terminal() as (ours, path):
        asyncio.run(work(path))
        assert os.read(ours, 1000) == bytes(range(32, 127))


def test_a_device_that_another_program_has_locked_is_said_to_be() -> None:
    async def work(path: str) -> None:
        async with opened(path, CONSOLE):
            pass

    with terminal() as (_, path), Path(path).open("rb", buffering=0) as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(PortUnavailable, match="another program has it locked"):
            asyncio.run(work(path))


def test_a_lock_leaves_no_file_and_one_that_was_left_is_no_hindrance(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    seen: list[Path] = []

    async def work() -> None:
        async with opened("loop://", CONSOLE):
            seen.extend(files(tmp_path))

    asyncio.run(work())
    assert (len(seen), files(tmp_path)) == (1, [])
    seen[0].touch()  # by a process that was killed
    asyncio.run(work())
    assert (len(seen), files(tmp_path)) == (2, [])


def test_a_lock_whose_file_was_removed_while_somebody_waited_to_open_it_is_not_had(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other's last act, removal, between our opening and our locking of the file."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    locked: list[int] = []
    flock = fcntl.flock

    def removing(fd: int, operation: int) -> None:
        if not locked:
            files(tmp_path)[0].unlink()
        locked.append(fd)
        flock(fd, operation)

    monkeypatch.setattr(fcntl, "flock", removing)

    async def work() -> None:
        async with opened("loop://", CONSOLE):
            assert len(files(tmp_path)) == 1

    asyncio.run(work())
    assert len(locked) == 2


@pytest.mark.parametrize(
    "url", ["hwgrep://[", "hwgrep://no such port", "loop://?logging=zzz", "socket://[::1", "socket://127.0.0.1:1?x=y"]
)
def test_whatever_pyserial_makes_of_a_port_is_one_error(url: str) -> None:
    async def work() -> None:
        async with opened(url, CONSOLE):
            pass

    with pytest.raises(PortUnavailable, match=re.escape(url)):
        asyncio.run(work())


@pytest.mark.parametrize("url", ["socket://a..b:1", f"socket://{'x' * 64}:1"])
def test_a_host_that_has_no_address_is_named(url: str) -> None:
    async def work() -> None:
        async with opened(url, CONSOLE):
            pass

    with pytest.raises(PortUnavailable, match=re.escape(f"{url}: {url[9:-2]}: ")):
        asyncio.run(work())


@pytest.mark.parametrize("url", ["socket://", "socket://127.0.0.1", "socket://h:99999", "rfc2217://h", "rfc2217://h:0"])
def test_an_address_without_host_or_port_is_said_to_be_that(url: str) -> None:
    async def work() -> None:
        async with opened(url, CONSOLE):
            pass

    scheme = url.partition(":")[0]
    with pytest.raises(PortUnavailable, match=f"names no host and port .*write {scheme}://HOST:PORT"):
        asyncio.run(work())


@pytest.mark.parametrize("url", ["/dev/nonesuch", "nonsense://x", "socket://127.0.0.1:1"])
def test_a_port_that_cannot_be_opened_is_named(url: str) -> None:
    async def work() -> None:
        async with opened(url, CONSOLE):
            pass

    with pytest.raises(PortUnavailable, match=url):
        asyncio.run(work())


PORTS = [
    SimpleNamespace(device="/dev/ttyUSB0", description="CP2102 USB to UART", hwid="USB VID:PID=10C4:EA60"),
    SimpleNamespace(device="/dev/ttyS0", description="ttyS0", hwid="PNP0501"),
]


def test_the_only_port_or_the_only_one_that_matches_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(list_ports, "comports", lambda: PORTS)
    assert find_port("usb") == "/dev/ttyUSB0"
    assert find_port("10c4:ea60") == "/dev/ttyUSB0"
    monkeypatch.setattr(list_ports, "comports", lambda: PORTS[1:])
    assert find_port() == "/dev/ttyS0"


@pytest.mark.parametrize(
    ("ports", "pattern", "told"),
    [
        (PORTS, None, "2 serial ports: choose one with --port or --port-filter: /dev/ttyS0"),
        (PORTS, "acm", "no serial port matches 'acm'; there are"),
        ([], None, "this machine has no serial port"),
        (PORTS, "(", "no regular expression"),
    ],
)
def test_no_port_or_several_are_listed_on_one_line(
    monkeypatch: pytest.MonkeyPatch, ports: list[object], pattern: str | None, told: str
) -> None:
    monkeypatch.setattr(list_ports, "comports", lambda: ports)
    with pytest.raises(PortUnavailable, match=re.escape(told)) as refused:
        find_port(pattern)
    assert "\n" not in str(refused.value)
