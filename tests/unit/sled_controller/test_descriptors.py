"""A process raises its limit, and refuses by name before it runs out of descriptors."""

import resource
import socket
import subprocess
import sys

from sled_controller.descriptors import COUNT_SECONDS, RESERVE, Descriptors, count_open


class Machine:
    """What is open, and the time."""

    def __init__(self) -> None:
        self.open = 10
        self.now = 0.0
        self.counted = 0

    def seconds(self) -> float:
        return self.now

    def count(self) -> int:
        self.counted += 1
        return self.open


def test_a_reserve_is_kept_for_what_is_open_already() -> None:
    machine = Machine()
    machine.open = 980 - RESERVE
    descriptors = Descriptors(1000, machine.seconds, machine.count)
    assert descriptors.left == 20
    assert descriptors.take(20)
    assert not descriptors.take(1)
    assert descriptors.short
    machine.now += COUNT_SECONDS
    assert descriptors.left == 20  # what was granted was not taken
    machine.open = 1000 - RESERVE
    machine.now += COUNT_SECONDS
    assert (descriptors.left, descriptors.short) == (0, True)


def test_a_limit_that_is_changed_meanwhile_counts() -> None:
    machine, limit = Machine(), [80]
    descriptors = Descriptors(limit[0], machine.seconds, machine.count, lambda: limit[0])
    assert descriptors.left == 60
    limit[0], machine.now = 40, 1.0
    assert descriptors.left == 25
    assert descriptors.limit == 40


def test_they_are_not_counted_for_each_connection_of_a_flood() -> None:
    machine = Machine()
    descriptors = Descriptors(1000, machine.seconds, machine.count)
    for _ in range(500):
        descriptors.take(1)
    assert machine.counted == 1


def test_what_is_open_is_counted() -> None:
    before = count_open()
    with socket.socket(), socket.socket():
        assert count_open() == before + 2


def in_a_process(code: str, soft: int, hard: int) -> str:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, preexec_fn=limit, check=True)
    return done.stdout.strip()


def test_the_soft_limit_is_raised_to_the_hard_one() -> None:
    code = (
        "import resource; from sled_controller.descriptors import raise_limit;"
        "print(raise_limit(), *resource.getrlimit(resource.RLIMIT_NOFILE))"
    )
    assert in_a_process(code, 128, 512) == "512 512 512"
    assert in_a_process(code, 512, 512) == "512 512 512"
