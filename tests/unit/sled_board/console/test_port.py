"""A console on a terminal: served by the event loop, bounded, given back as it was."""

import asyncio
import contextlib
import os
import termios
import tty
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from sled_board.console.port import WRITE_BYTES, ConsolePort
from sled_board.console.session import REPLY_BYTES_MAX, Command, ConsoleSession

LIMIT_S = 30.0
BIG = "x" * 300


def session() -> ConsoleSession:
    return ConsoleSession("sled", [
        Command("hello", "", lambda words: ["world=1"]),
        Command("big", "", lambda words: [BIG] * 200),
    ])  # fmt: skip


@contextlib.asynccontextmanager
async def served(tmp_path: Path) -> AsyncIterator[tuple[ConsolePort, Path]]:
    port = ConsolePort.on_pty(session(), tmp_path / "console")
    try:
        yield port, tmp_path / "console"
    finally:
        port.close()


class Terminal:
    """Somebody at the console."""

    def __init__(self, path: Path) -> None:
        self.descriptor = os.open(path, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK)
        self.seen = b""

    async def type(self, data: bytes) -> None:
        async def whole() -> None:
            rest = data
            while rest:
                with contextlib.suppress(BlockingIOError):
                    rest = rest[os.write(self.descriptor, rest) :]
                await asyncio.sleep(0)

        await asyncio.wait_for(whole(), LIMIT_S)

    async def read_until(self, enough: Callable[[bytes], bool]) -> bytes:
        async def look() -> None:
            while not enough(self.seen):
                with contextlib.suppress(BlockingIOError):
                    self.seen += os.read(self.descriptor, 1 << 16)
                await asyncio.sleep(0)

        await asyncio.wait_for(look(), LIMIT_S)
        return self.seen

    def close(self) -> None:
        os.close(self.descriptor)


def ends(with_: bytes) -> Callable[[bytes], bool]:
    return lambda seen: seen.endswith(with_)


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_somebody_comes_asks_leaves_and_comes_again(tmp_path: Path) -> None:
    async def story() -> None:
        async with served(tmp_path) as (_, path):
            for _ in range(2):
                terminal = Terminal(path)
                await terminal.type(b"\x03hello\r")
                assert b": world=1\r\n: ok\r\n" in await terminal.read_until(ends(b": ok\r\nsled> "))
                terminal.close()

    asyncio.run(story())


def test_nothing_is_left_when_it_is_closed(tmp_path: Path) -> None:
    async def story() -> None:
        before = open_descriptors()
        async with served(tmp_path) as (port, path):
            assert path.is_symlink()
            port.close()
        assert open_descriptors() == before

    asyncio.run(story())
    assert list(tmp_path.iterdir()) == []


def test_a_link_that_was_left_over_is_replaced(tmp_path: Path) -> None:
    async def story() -> None:
        (tmp_path / "console").symlink_to("/dev/null")
        async with served(tmp_path) as (_, path):
            assert path.resolve().is_relative_to("/dev/pts")

    asyncio.run(story())


def test_what_nobody_reads_waits_and_holds_nobody_up(tmp_path: Path) -> None:
    async def story() -> None:
        async with served(tmp_path) as (port, path):
            terminal = Terminal(path)
            await terminal.type(b"big\r" * 20)
            for _ in range(100):
                await asyncio.sleep(0)
            assert len(port._waiting) <= 2 * REPLY_BYTES_MAX
            await terminal.type(b"\x03hello\r")
            seen = await terminal.read_until(ends(b": world=1\r\n: ok\r\nsled> "))
            assert seen.count(b": " + BIG.encode()) == 20 * 200
            terminal.close()

    asyncio.run(story())


def test_little_is_written_at_a_time_so_that_a_log_finds_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    write = os.write

    def counted(descriptor: int, data: bytes) -> int:
        sizes.append(len(data))
        return write(descriptor, data)

    async def story() -> None:
        async with served(tmp_path) as (_, path):
            terminal = Terminal(path)
            await terminal.type(b"big\r")
            monkeypatch.setattr("sled_board.console.port.os.write", counted)
            await terminal.read_until(ends(b": ok\r\nsled> "))
            terminal.close()

    asyncio.run(story())
    assert max(sizes) <= WRITE_BYTES


def test_a_terminal_that_echoes_does_not_make_it_talk_to_itself(tmp_path: Path) -> None:
    async def story() -> None:
        async with served(tmp_path) as (_, path):
            terminal = Terminal(path)
            attributes = termios.tcgetattr(terminal.descriptor)
            attributes[3] |= termios.ECHO
            termios.tcsetattr(terminal.descriptor, termios.TCSANOW, attributes)
            await terminal.type(b"nonsense\r")
            await terminal.read_until(lambda seen: b"! there is no command" in seen)
            await terminal.type(b"\x03hello\r")
            await terminal.read_until(ends(b": world=1\r\n: ok\r\nsled> "))
            assert not termios.tcgetattr(terminal.descriptor)[3] & termios.ECHO
            terminal.close()

    asyncio.run(story())


def test_a_device_is_raw_while_it_is_served_and_keeps_speed_and_output(tmp_path: Path) -> None:
    async def story() -> None:
        near, far = os.openpty()
        before = termios.tcgetattr(far)
        port = ConsolePort.on_device(session(), Path(os.ttyname(far)))
        now = termios.tcgetattr(far)
        assert not now[3] & (termios.ICANON | termios.ECHO | termios.ISIG)
        assert now[1] == before[1]
        assert now[4:6] == before[4:6]
        os.write(near, b"hello\r")
        os.set_blocking(near, False)
        seen = b""
        async with asyncio.timeout(LIMIT_S):
            while b": ok" not in seen:
                with contextlib.suppress(BlockingIOError):
                    seen += os.read(near, 4096)
                await asyncio.sleep(0)
        assert b"hello\r\n: world=1\r\n: ok" in seen  # one CR, which is the terminal's
        port.close()
        assert termios.tcgetattr(far) == before
        os.close(near)
        os.close(far)

    asyncio.run(story())


def test_a_device_that_goes_away_ends_the_console_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    async def story() -> None:
        near, far = os.openpty()
        tty.setraw(far)
        lost = asyncio.Event()
        monkeypatch.setattr("sled_board.console.port.log.error", lambda *_: lost.set())
        before = open_descriptors()
        port = ConsolePort.on_device(session(), Path(os.ttyname(far)))
        os.close(near)
        await asyncio.wait_for(lost.wait(), LIMIT_S)
        port.close()
        assert open_descriptors() == before - 1
        os.close(far)

    asyncio.run(story())


@pytest.mark.parametrize(("path", "said"), [("/dev/nonesuch", "No such file"), ("/dev/null", "no terminal device")])
def test_what_is_no_terminal_is_named(path: str, said: str) -> None:
    async def story() -> None:
        with pytest.raises(OSError, match=said) as refused:
            ConsolePort.on_device(session(), Path(path))
        assert path in str(refused.value)

    asyncio.run(story())
