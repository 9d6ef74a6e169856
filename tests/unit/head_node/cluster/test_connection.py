"""Links on real sockets: strangers, wrong heads, silence, pauses."""

import asyncio
from uuid import UUID

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from kit.cluster import run, until
from kit.turns import PerTurn

from head_node.cluster import connection as module
from head_node.cluster.connection import PeerConnection, PeerListener, dial
from head_node.cluster.errors import LinkClosed
from head_node.cluster.frames import FrameType, Purpose
from head_node.cluster.link import LinkContext
from sled_controller.environment import Environment
from sled_controller.session import PeerHandshake
from sled_controller.turns import NS_PER_S, STEPS_BURST, STEPS_PER_SECOND, TRUSTED_COMMANDS

ENV = Environment()
KEYS = [Ed25519PrivateKey.from_private_bytes(bytes([value]) * 32) for value in (1, 2)]
PUBLIC = [key.public_key().public_bytes_raw() for key in KEYS]
ACCEPTOR = UUID(int=2)
CONTEXT = LinkContext(Purpose.LOG, UUID(int=7), ACCEPTOR)


class Bench:
    """A listener and what it accepted."""

    def __init__(self, own_id: UUID = ACCEPTOR) -> None:
        self.accepted: list[PeerConnection] = []
        self.frames: list[tuple[FrameType, bytes]] = []
        self.closed: list[str] = []
        self.listener = PeerListener(KEYS[1], own_id, lambda: PUBLIC[:1], self._accept, ENV)

    def _accept(self, connection: PeerConnection, context: LinkContext, public: bytes) -> None:
        assert (context, public) == (CONTEXT, PUBLIC[0])
        self.accepted.append(connection)
        connection.on_frame = lambda kind, payload: self.frames.append((kind, bytes(payload)))
        connection.on_closed = self.closed.append

    async def dial(self, key: Ed25519PrivateKey = KEYS[0]) -> PeerConnection:
        self.address = await self.listener.start("127.0.0.1", 0)
        return await dial(self.address, key, PUBLIC[1], CONTEXT, ENV)


def test_frames_arrive_and_the_end_is_told_once() -> None:
    async def work() -> None:
        bench = Bench()
        link = await bench.dial()
        link.resume_receiving()
        link.send(FrameType.RECORDS, b"ab", b"cd")
        await until(lambda: bench.frames == [(FrameType.RECORDS, b"abcd")])
        link.abort()
        await until(lambda: len(bench.closed) == 1)
        link.send(FrameType.RECORDS, b"nobody hears this")
        await bench.listener.close()

    run(work())


def test_what_was_sent_before_the_dialler_listens_is_kept_for_it() -> None:
    async def work() -> None:
        bench = Bench()
        link = await bench.dial()
        await until(lambda: bool(bench.accepted))
        bench.accepted[0].send(FrameType.HEARTBEAT, b"x")
        got: list[FrameType] = []
        link.on_frame = lambda kind, payload: got.append(kind)
        assert got == []
        link.resume_receiving()
        await until(lambda: got == [FrameType.HEARTBEAT])
        await bench.listener.close()

    run(work())


def test_no_frame_is_delivered_while_receiving_is_paused() -> None:
    async def work() -> None:
        bench = Bench()
        link = await bench.dial()
        link.resume_receiving()
        await until(lambda: bool(bench.accepted))
        other = bench.accepted[0]
        other.on_frame = lambda kind, payload: (bench.frames.append((kind, b"")), other.pause_receiving())  # type: ignore[func-returns-value]
        for _ in range(3):
            link.send(FrameType.RECORDS, b"x")
        await until(lambda: len(bench.frames) == 1)
        other.resume_receiving()
        await until(lambda: len(bench.frames) == 2)
        await bench.listener.close()

    run(work())


def test_an_abort_takes_back_what_the_other_end_has_not_read() -> None:
    async def work() -> None:
        bench = Bench()
        link = await bench.dial()
        link.resume_receiving()
        await until(lambda: bool(bench.accepted))
        other = bench.accepted[0]
        other.pause_receiving()
        for _ in range(64):
            link.send(FrameType.RELAY, bytes(65536))
        link.abort()
        other.resume_receiving()
        await until(lambda: bool(bench.closed))
        assert "reset" in bench.closed[0]
        assert len(bench.frames) < 64
        await bench.listener.close()

    run(work())


def test_a_refusal_reaches_the_other_end_with_its_reason() -> None:
    async def work() -> None:
        bench = Bench()
        link = await bench.dial()
        reasons: list[str] = []
        link.on_closed = reasons.append
        link.resume_receiving()
        await until(lambda: bool(bench.accepted))
        bench.accepted[0].refuse("not here")
        await until(lambda: reasons == ["refused: not here"])
        await bench.listener.close()

    run(work())


def test_a_stranger_and_a_link_meant_for_another_head_get_nowhere() -> None:
    async def work() -> None:
        bench = Bench()
        with pytest.raises(LinkClosed):
            await bench.dial(Ed25519PrivateKey.from_private_bytes(b"z" * 32))
        assert bench.listener.refused_total == 1
        await bench.listener.close()
        other = Bench(own_id=UUID(int=3))
        link = await other.dial()
        link.resume_receiving()
        await until(lambda: link.closed)
        assert other.accepted == []
        await other.listener.close()

    run(work())


def test_a_peer_that_says_nothing_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    async def work() -> None:
        monkeypatch.setattr(module, "HANDSHAKE_SECONDS_MAX", 0.02)
        bench = Bench()
        address = await bench.listener.start("127.0.0.1", 0)
        reader, writer = await asyncio.open_connection(*address)
        with pytest.raises((ConnectionResetError, asyncio.IncompleteReadError)):
            await reader.readexactly(1)
        writer.close()
        await until(lambda: bench.listener.refused_total == 1)
        await bench.listener.close()

    run(work())


def test_strangers_that_are_there_when_it_closes_leave_no_timer(caplog: pytest.LogCaptureFixture) -> None:
    async def work() -> None:
        bench = Bench()
        address = await bench.listener.start("127.0.0.1", 0)
        _, writer = await asyncio.open_connection(*address)
        await until(lambda: len(bench.listener._strangers) == 1)
        await bench.listener.close()
        await until(lambda: bench.listener.refused_total == 1)
        assert caplog.text.count("event=links_refused") == 1
        assert bench.listener._report_timer is None
        writer.close()

    run(work())


def test_the_oldest_stranger_makes_room_for_another_and_a_flood_fills_no_log(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def work() -> None:
        monkeypatch.setattr(module, "STRANGERS_MAX", 1)
        bench = Bench()
        address = await bench.listener.start("127.0.0.1", 0)
        strangers = []
        for _ in range(20):
            strangers.append(await asyncio.open_connection(*address))
        await until(lambda: len(bench.listener._strangers) == 1 and bench.listener.refused_total == 19)
        with pytest.raises((ConnectionResetError, asyncio.IncompleteReadError)):
            await strangers[-2][0].readexactly(1)
        link = await dial(address, KEYS[0], PUBLIC[1], CONTEXT, ENV)
        assert caplog.text.count("event=links_refused") == 1
        link.abort()
        for _, writer in strangers:
            writer.close()
        await until(lambda: not bench.listener._strangers)
        await bench.listener.close()

    run(work())


def test_dialling_nobody_fails_in_time() -> None:
    async def work() -> None:
        bench = Bench()
        link = await bench.dial()
        link.abort()
        await bench.listener.close()
        with pytest.raises(LinkClosed):
            await dial(bench.address, KEYS[0], PUBLIC[1], CONTEXT, ENV)

    run(work())


# --- turns


def hello() -> bytes:
    """Of a head that has the key of the first one's name, not the key."""
    return PeerHandshake.initiator(KEYS[0], PUBLIC[1], ENV, CONTEXT.encode()).start()


def test_handshakes_of_strangers_are_bounded_per_source_and_second(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hello can be made up from what travels in clear, and each costs a signature and a key agreement."""

    async def work() -> None:
        bench, loop, turn = Bench(), asyncio.get_running_loop(), PerTurn()
        address = await bench.listener.start("127.0.0.1", 0)
        monkeypatch.setattr(PeerHandshake, "_receive_hello", turn.counted(PeerHandshake._receive_hello))
        begun, said = loop.time(), hello()
        writers = []
        for _ in range(2 * STEPS_BURST):
            _, writer = await asyncio.open_connection(*address)
            writer.write(said)
            writers.append(writer)
        more = 30
        await until(lambda: turn.total >= STEPS_BURST + more)
        assert loop.time() - begun >= (more - 2) / STEPS_PER_SECOND
        turn.close()
        for writer in writers:
            writer.transport.abort()
        await bench.listener.close()

    run(work())


def test_a_hello_counts_as_a_costly_step_of_its_source(monkeypatch: pytest.MonkeyPatch) -> None:
    async def work() -> None:
        bench, turn = Bench(), PerTurn()
        address = await bench.listener.start("127.0.0.1", 0)
        monkeypatch.setattr(PeerHandshake, "_receive_hello", turn.counted(PeerHandshake._receive_hello))
        _, writer = await asyncio.open_connection(*address)
        writer.write(hello())
        await until(lambda: turn.total == 1)
        assert bench.listener._turns._sources["127.0.0.1"].steps == (STEPS_BURST - 1) * NS_PER_S
        turn.close()
        writer.transport.abort()
        await bench.listener.close()

    run(work())


def test_frames_beyond_a_piece_wait_for_the_next_turn_and_all_come_in_order() -> None:
    async def work() -> None:
        bench = Bench()
        link = await bench.dial()
        link.resume_receiving()
        await until(lambda: bool(bench.accepted))
        turn = PerTurn()
        bench.accepted[0].on_frame = turn.counted(lambda kind, payload: bench.frames.append((kind, bytes(payload))))
        sent = [number.to_bytes(4, "little") for number in range(20 * TRUSTED_COMMANDS)]
        for payload in sent:
            link.send(FrameType.RECORDS, payload)
        await until(lambda: len(bench.frames) == len(sent))
        assert [payload for _, payload in bench.frames] == sent
        assert turn.most <= 2 * TRUSTED_COMMANDS
        turn.close()
        link.abort()
        await bench.listener.close()

    run(work())


def test_a_connection_that_says_nothing_costs_no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    async def work() -> None:
        turn = PerTurn()
        monkeypatch.setattr(
            "sled_controller.session.X25519PrivateKey.from_private_bytes", turn.counted(lambda data: None)
        )
        handshake = PeerHandshake.responder(KEYS[1], PUBLIC[:1], ENV)
        assert handshake.expects
        assert not turn.total
        turn.close()

    run(work())
