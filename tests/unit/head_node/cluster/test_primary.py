"""A primary around a fenced-off answer, its verdict and the end (F6); its term and its receipts (F7)."""

import asyncio
from typing import Any
from uuid import UUID

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from kit.cluster import BLOCK, TERMS, VOLUME, MemorySledClient, Rack, credential_of, until, with_rack

from head_node.cluster.lease import MS
from head_node.cluster.primary import STRAGGLER_SECONDS, End
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
        assert liar.id in role.attachments.quarantined

    with_rack(scenario)


def test_f6_clients_are_reset_when_the_role_ends_and_nothing_is_served_any_more() -> None:
    async def scenario(rack: Rack) -> None:
        first, _ = await rack.start_serving()
        role, sled = first.controller._role, next(iter(rack.sleds.values()))
        assert role is not None
        dropped: list[tuple[UUID, bool]] = []
        first.head.nbd.drop_clients = lambda volume: dropped.append((volume, first.engine.serving)) or 0  # type: ignore
        sled.lie = credential_of(2)
        role.attachments.probe()
        await until(lambda: bool(dropped))
        sled.lie = None
        await until(lambda: first.serving)  # in a new epoch, as the record still names it
        assert dropped[0] == (VOLUME, False)
        assert first.controller._last_outcome is not None
        assert first.controller._last_outcome.end is End.FENCED

    with_rack(scenario)


def test_f7_a_renewed_term_is_counted_from_before_it_was_asked_for() -> None:
    async def scenario(rack: Rack) -> None:
        first, _ = await rack.start_serving()
        role = first.controller._role
        assert role is not None
        gate = first.api.gates["renew"] = asyncio.Event()
        rack.authority.term_ms *= 2
        role._begin("renew", role._renew())
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        asked_ns = first.clock.boottime_ns()
        first.clock.jump(TERMS.ttl_ms // 4)
        gate.set()
        await until(lambda: "renew" not in role._tasks)
        assert 0 < role.lease._term_end_ns - rack.authority.term_ms * MS <= asked_ns

    with_rack(scenario)


def test_f7_nothing_is_served_before_receipts_of_n_minus_m_sleds(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(rack: Rack) -> None:
        first, second = await rack.start_serving()
        await first.crash()
        attach, answer = MemorySledClient.attach, asyncio.Event()
        prompt = next(iter(rack.sleds.values()))

        async def slow(client: MemorySledClient, credential: bytes, number: int) -> Any:
            if client._sled is not prompt:
                await answer.wait()
            return await attach(client, credential, number)

        monkeypatch.setattr(MemorySledClient, "attach", slow)
        await until(lambda: second.controller._role is not None)
        role = second.controller._role
        assert role is not None
        await until(lambda: role.attachments.receipts == 1)
        await asyncio.wait([role._tasks["office"]], timeout=3 * STRAGGLER_SECONDS)
        assert second.state is VolumeState.ATTACHING
        assert second.engine.tail.epoch == 1
        answer.set()
        await until(lambda: second.serving)

    with_rack(scenario)
