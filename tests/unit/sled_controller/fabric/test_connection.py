"""One queue of a head at a transport that has closed under it."""

import asyncio
from collections.abc import Sequence
from uuid import UUID

from sled_controller.fabric.connection import QueueConnection
from sled_controller.fabric.host import HostQueue
from spdk_bindings.device import Buffer
from spdk_bindings.nvme import CONTROLLER_ID_DYNAMIC, uuid_nqn

SLED, HOST = UUID(int=1), UUID(int=2)


class ClosedUnderneath(asyncio.Transport):
    """What uvloop's transport does when its handle was closed before anybody was told: not closing, but no writing."""

    def __init__(self) -> None:
        super().__init__()
        self.tried = 0

    def is_closing(self) -> bool:
        return False

    def writelines(self, list_of_data: Sequence[Buffer]) -> None:  # type: ignore[override]
        self.tried += 1
        raise RuntimeError("unable to perform operation on <TCPTransport>; the handler is closed")


def test_a_write_to_a_handle_that_is_gone_waits_for_the_news_of_it() -> None:
    async def scenario() -> None:
        core = HostQueue(
            queue_id=0, depth=8, subsystem_nqn=uuid_nqn(SLED), host_nqn=uuid_nqn(HOST), host_id=HOST,
            controller_id=CONTROLLER_ID_DYNAMIC, digests=0, in_capsule_bytes=8192, kato_ms=1000,
        )  # fmt: skip
        lost: list[str] = []
        queue = QueueConnection(core, lost.append)
        transport = ClosedUnderneath()
        queue.connection_made(transport)
        await asyncio.sleep(0)
        assert transport.tried == 1
        assert lost == []
        queue.connection_lost(None)
        assert len(lost) == 1

    asyncio.run(scenario())
