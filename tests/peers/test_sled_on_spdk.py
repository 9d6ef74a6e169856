"""A sled-controller process whose drive is behind SPDK's own target, where SPDK is installed and the shim is built."""

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from kit import real_sled, spdk_drive
from kit.real_sled import RealSled
from peers import spdk

NQN = "nqn.2014-08.org.nvmexpress:uuid:73706468-7400-4000-8000-000000000003"
BLOCK = 4096


@pytest.fixture
def drive() -> Iterator[str]:
    """The transport id of a blank drive of 64 MiB."""
    spdk_drive.shim()
    with asyncio.Runner() as runner:
        stack = contextlib.AsyncExitStack()
        target = runner.run(stack.enter_async_context(spdk.exported(NQN)))
        yield spdk_drive.address(target.port, target.nqn)
        runner.run(stack.aclose())


def test_a_sled_serves_the_drive_and_knows_it_again(tmp_path: Path, drive: str) -> None:
    one = bytes([1]) * BLOCK

    def written(sled: RealSled) -> None:
        head = sled.head()
        head.attach(5, 1)
        head.nsid = head.create()
        assert head.write(0, one).status == 0
        assert head.write(1, one * 3).status == 0

    def kept(sled: RealSled) -> None:
        head = sled.head()
        assert head.try_attach(4, 1).status != 0, "the fence is on the drive"
        head.attach(5, 2)
        head.nsid = 1
        assert head.read(0).data == one
        assert head.read(1, 3).data == one * 3
        assert head.read(4).data == bytes(BLOCK)

    steps: tuple[Callable[[RealSled], None], ...] = (written, kept)
    for step in steps:
        with real_sled.running(tmp_path, drives=[drive]) as sled:
            step(sled)
