"""The Linux guest does what it is told, and says what became of it."""

import asyncio
import os

import pytest
from peers.guest import GATEWAY, Guest, GuestError


def test_a_command_gives_its_status_output_and_errors(guest: Guest) -> None:
    result = asyncio.run(guest.run("echo said; echo complained >&2; exit 7"))
    assert (result.status, result.stdout, result.stderr) == (7, "said\n", "complained\n")


def test_a_check_that_fails_shows_what_was_said(guest: Guest) -> None:
    with pytest.raises(GuestError, match=r"status 1 of: ls /nowhere\n.*No such file"):
        asyncio.run(guest.check("ls /nowhere"))


def test_files_come_out_as_they_went_in(guest: Guest) -> None:
    data = bytes(range(256)) + os.urandom(300_000) + b"\nrun 1 2 3\n\0"

    async def there_and_back() -> bytes:
        await guest.put("/tmp/a file", data)
        return await guest.get("/tmp/a file")

    assert asyncio.run(there_and_back()) == data


def test_commands_run_side_by_side(guest: Guest) -> None:
    async def scenario() -> None:
        # The first ends only if the second runs meanwhile.
        waiting = asyncio.create_task(guest.check("mkfifo /tmp/fifo && cat /tmp/fifo"))
        writer = "until [ -p /tmp/fifo ]; do usleep 1000; done; echo through >/tmp/fifo; rm /tmp/fifo"
        await guest.check(writer)
        assert await waiting == "through\n"

    asyncio.run(scenario())


def test_a_command_that_takes_too_long_is_killed_with_all_it_started(guest: Guest) -> None:
    with pytest.raises(GuestError, match=r"still running after .*\nbegun\n"):
        asyncio.run(guest.run("echo begun; sleep 1111 | cat", timeout_s=0.25))
    assert "sleep 1111" not in asyncio.run(guest.check("ps"))


def test_what_a_command_leaves_behind_holds_nothing_up(guest: Guest) -> None:
    left = asyncio.run(guest.check("sleep 2222 & echo $!"))
    asyncio.run(guest.check(f"kill {left}"))


def test_it_reaches_our_loopback_and_we_reach_it(guest: Guest) -> None:
    async def scenario() -> None:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(await reader.readline())
            writer.close()

        async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            assert await guest.check(f"echo there and back | nc {GATEWAY} {port}") == "there and back\n"

        port = await guest.forward(7777)
        listening = asyncio.create_task(guest.check("echo hello | nc -l -p 7777"))
        await guest.check("until netstat -ltn | grep -q :7777; do usleep 1000; done")
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        assert await reader.readline() == b"hello\n"
        writer.close()
        await listening

    asyncio.run(scenario())


def test_the_kernels_log_is_there_to_be_shown(guest: Guest) -> None:
    assert "Run /init as init process" in guest.log_end(1000)
