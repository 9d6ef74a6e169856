"""SPDK's target, started once for all tests of a module that need one, whatever event loops they have."""

import asyncio
import contextlib
from collections.abc import Iterator

import pytest
from peers import spdk

NQN = "nqn.2014-08.org.nvmexpress:uuid:73706468-7400-4000-8000-000000000002"


@pytest.fixture(scope="module")
def target() -> Iterator[spdk.Target]:
    """A subsystem over 64 MiB of memory; skips without SPDK."""
    with asyncio.Runner() as runner:
        stack = contextlib.AsyncExitStack()
        yield runner.run(stack.enter_async_context(spdk.exported(NQN)))
        runner.run(stack.aclose())
