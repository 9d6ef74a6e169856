"""What a primary does between a fenced-off answer and its verdict, and what its clients see of the end (F6)."""

import asyncio
from collections.abc import Callable
from uuid import UUID

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from kit.cluster import BLOCK, VOLUME, Rack, credential_of, until, with_rack

from head_node.cluster.states import VolumeState

ONE = bytes([1]) * BLOCK
UNKNOWN_KEY = Ed25519PrivateKey.from_private_bytes(b"x" * 32)


def test_f6_nothing_is_acknowledged_while_a_fenced_off_answer_is_judged() -> None:
    async def scenario(rack: Rack) -> None:
        first, _ = await rack.start_serving()
        role, liar = first.controller._role, next(iter(rack.sleds.values()))
        assert role is not None
        asked = first.api.gates["view"] = asyncio.Event()
        liar.lie = credential_of(9, key=UNKNOWN_KEY, key_id=2)  # only the authority can say what it is worth
        role.attachments.probe()
        await until(lambda: "judge" in role._tasks)
        assert first.state is VolumeState.HOLDING
        assert not first.engine.serving
        tail = first.engine.tail.opnum
        answer = first.write(0, ONE)
        assert first.engine.tail.opnum == tail
        asked.set()
        assert await answer == 0
        assert liar.id in role.faulty_sleds

    with_rack(scenario)


def test_f6_clients_are_reset_with_their_requests_unanswered_when_the_role_ends() -> None:
    async def scenario(rack: Rack) -> None:
        first, second = await rack.start_serving()
        role, sled = first.controller._role, next(iter(rack.sleds.values()))
        assert role is not None
        dropped: list[tuple[UUID, bool]] = []
        first.head.nbd.drop_clients = lambda volume: dropped.append((volume, first.engine.serving)) or 0  # type: ignore
        held: list[Callable[[], None]] = []
        second.disk.gate = held.append
        answer = first.write(0, ONE)
        sled.lie = credential_of(2)
        role.attachments.probe()
        await until(lambda: first.controller._last_outcome is not None and bool(dropped))
        assert dropped[0] == (VOLUME, False)
        assert not answer.done()
        second.disk.gate = sled.lie = None
        for finish in held:
            finish()

    with_rack(scenario)
