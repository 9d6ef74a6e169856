"""A log on a terminal that is too slow for it holds nobody up, and says what it left out."""

import logging
import os
import subprocess
import sys
from queue import Empty

from sled_board.logs import WAITING_MAX, BoundedHandler

PROGRAM = """
import logging
from sled_board import logs
tail = logs.begin("info")
for number in range(5000):
    logging.getLogger("test").info("event=line number=%d", number)
assert tail.last(1)[0].endswith("number=4999")
print("went on", flush=True)
"""


def test_a_terminal_that_takes_nothing_does_not_hold_the_program_up() -> None:
    ours, theirs = os.openpty()
    with subprocess.Popen([sys.executable, "-c", PROGRAM], stderr=theirs, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"went on\n"
        finally:
            process.kill()
            os.close(ours)
            os.close(theirs)


def test_a_terminal_gets_the_lines_as_every_log_has_them() -> None:
    ours, theirs = os.openpty()
    program = PROGRAM.replace("range(5000)", "range(3)").replace("4999", "2")
    ended = subprocess.run([sys.executable, "-c", program], stderr=theirs, capture_output=False, check=True, timeout=60)
    assert ended.returncode == 0
    lines = os.read(ours, 4096).decode().split("\r\n")
    assert [line.split(" INFO ")[1] for line in lines if line] == [f"test event=line number={n}" for n in range(3)]
    os.close(ours)
    os.close(theirs)


def test_what_finds_no_place_is_counted() -> None:
    handler = BoundedHandler()
    for number in range(WAITING_MAX + 5):
        handler.handle(logging.LogRecord("test", logging.INFO, __file__, 1, "line %d", (number,), None))
    handler.queue.get_nowait()
    handler.handle(logging.LogRecord("test", logging.INFO, __file__, 1, "line %d", (7,), None))
    last = None
    try:
        while True:
            last = handler.queue.get_nowait()
    except Empty:
        assert last.getMessage() == "line 7 log_lines_left_out=5"
