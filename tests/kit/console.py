"""Somebody at a sled's console: asks over its terminal, and waits for the reply."""

import os
import select
import time
import tty
from pathlib import Path

from sled_board.console.request import Request

PATIENCE_S = 20.0


def ask(path: Path, command: str) -> list[str]:
    """The lines of the reply; raises CommandNotDone when it is refused, BoardSilent when there is none."""
    descriptor = os.open(path, os.O_RDWR | os.O_NOCTTY)
    try:
        tty.setraw(descriptor)
        return answer(descriptor, Request(command, baud=115200, patience_s=PATIENCE_S))
    finally:
        os.close(descriptor)


def answer(descriptor: int, request: Request) -> list[str]:
    """The same, over an open terminal or the other end of one."""
    os.write(descriptor, request.start(time.monotonic()))
    while not request.done:
        left_s = max(0.0, request.deadline_s - time.monotonic())
        if select.select([descriptor], [], [], left_s)[0]:
            sent = request.receive(os.read(descriptor, 4096), time.monotonic())
        else:
            sent = request.expire(time.monotonic())
        os.write(descriptor, sent)
    return request.lines


def values(lines: list[str]) -> dict[str, str]:
    """Of lines `key=value`."""
    return dict(line.split("=", 1) for line in lines)
