"""What an application says of itself arrives, whatever else is in its datagrams, and a flood of it costs nothing."""

import asyncio
import os
import socket

import pytest
from sled_board.stage.notices import NOTICES_MAX, Notice, receiving


def test_lines_are_understood_one_by_one() -> None:
    assert Notice.parse(b"READY=1") == Notice(ready=True)
    assert Notice.parse(b"WATCHDOG=1\nSTATUS=all is well\n") == Notice(healthy=True, status="all is well")
    assert Notice.parse(b"WATCHDOG=trigger\nMAINPID=7\nREADY=10") == Notice()
    assert Notice.parse(b"STATUS=\xff\x1b[2J") == Notice(status="\ufffd?[2J")
    assert Notice.parse(b"") == Notice()


def test_datagrams_arrive_in_order_and_too_many_are_dropped() -> None:
    async def run() -> None:
        with receiving() as (address, notices), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            there = address.replace("@", "\0")
            for number in range(3):
                sender.sendto(f"STATUS={number}".encode(), there)
                assert (await notices.get()).status == str(number)
            for _ in range(2 * NOTICES_MAX):
                await asyncio.to_thread(sender.sendto, b"WATCHDOG=1", there)
            while not notices.full():  # noqa: ASYNC110 (the condition is state, no event marks it)
                await asyncio.sleep(0)

    asyncio.run(asyncio.wait_for(run(), 30))


def test_another_user_is_not_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    async def run() -> None:
        with receiving() as (address, notices), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            there = address.replace("@", "\0")
            with monkeypatch.context() as patch:
                patch.setattr(os, "getuid", lambda: 4711)
                sender.sendto(b"READY=1", there)
                await asyncio.sleep(0)
                await asyncio.sleep(0)
            sender.sendto(b"WATCHDOG=1", there)
            assert await notices.get() == Notice(healthy=True)

    asyncio.run(asyncio.wait_for(run(), 30))
