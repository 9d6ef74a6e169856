"""What an application says of itself arrives, whatever else is in its datagrams, and a flood of it costs nothing."""

import asyncio
import socket
from pathlib import Path

from sled_board.stage.notices import NOTICES_MAX, Notice, receiving


def test_lines_are_understood_one_by_one() -> None:
    assert Notice.parse(b"READY=1") == Notice(ready=True)
    assert Notice.parse(b"WATCHDOG=1\nSTATUS=all is well\n") == Notice(healthy=True, status="all is well")
    assert Notice.parse(b"WATCHDOG=trigger\nMAINPID=7\nREADY=10") == Notice()
    assert Notice.parse(b"STATUS=\xff\x1b[2J") == Notice(status="\ufffd?[2J")
    assert Notice.parse(b"") == Notice()


def test_datagrams_arrive_in_order_and_too_many_are_dropped(tmp_path: Path) -> None:
    async def run() -> None:
        path = tmp_path / "notify"
        path.touch()  # left behind by a former stage
        with receiving(path) as notices, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            for number in range(3):
                await asyncio.to_thread(sender.sendto, f"STATUS={number}".encode(), str(path))
            assert [(await notices.get()).status for _ in range(3)] == ["0", "1", "2"]
            for _ in range(2 * NOTICES_MAX):
                await asyncio.to_thread(sender.sendto, b"WATCHDOG=1", str(path))
            while not notices.full():  # noqa: ASYNC110 (the condition is state, no event marks it)
                await asyncio.sleep(0)
        assert not path.exists()

    asyncio.run(asyncio.wait_for(run(), 30))
