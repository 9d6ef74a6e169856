"""The client against sleds that lie, babble, hang or are not there."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any
from uuid import UUID

import pytest
from kit import host
from kit.sled import Sled, running_sled

from sled_controller.association import Association
from sled_controller.errors import (
    CredentialMalformed,
    FencedOff,
    HandshakeFailed,
    QueueFull,
    ReceiptRefused,
    SledError,
    SledUnavailable,
)
from sled_controller.fabric import client as client_module
from sled_controller.fabric import connection, pdu
from sled_controller.fabric.client import ClientState, SledClient
from sled_controller.fabric.pdu import PduType
from sled_controller.receipt import Receipt
from spdk_bindings.device import PENDING, Buffer, Done
from spdk_bindings.emulator import MemoryDevice
from spdk_bindings.nvme import uuid_nqn


def run(scenario: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(scenario(), 15))


class Script(asyncio.Protocol):
    """Answers ICReq with `answer`, and then never again."""

    def __init__(self, answer: bytes) -> None:
        self.answer = answer
        self.got = bytearray()
        self.transport: asyncio.Transport | None = None
        self.ended: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        assert self.transport is not None
        if not self.got and self.answer:
            self.transport.write(self.answer)
        self.got += data

    def connection_lost(self, exc: Exception | None) -> None:
        self.ended.set_result(bytes(self.got))


@asynccontextmanager
async def scripted(answer: bytes) -> AsyncIterator[tuple[Sled, Script]]:
    script = Script(answer)
    server = await asyncio.get_running_loop().create_server(lambda: script, "127.0.0.1", 0)
    address, port = server.sockets[0].getsockname()
    try:
        yield Sled(None, None, address, port), script  # type: ignore[arg-type]
    finally:
        server.close()
        await server.wait_closed()


async def fails_to_open(client: SledClient, words: str) -> SledUnavailable:
    with pytest.raises(SledUnavailable, match=words) as failed:
        await client.open()
    assert client.closed.done()
    assert client.state is ClientState.CLOSED
    return failed.value


# --- opening


def test_nobody_listening_is_unavailable() -> None:
    async def scenario() -> None:
        async with scripted(b"") as (sled, _):
            pass
        await fails_to_open(sled.client(), "opening failed")

    run(scenario)


def test_a_sled_that_never_answers_is_unavailable_in_bounded_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "OPEN_SECONDS_MAX", 0.1)

    async def scenario() -> None:
        async with scripted(b"") as (sled, script):
            await fails_to_open(sled.client(), "took too long")
            assert await script.ended == pdu.ic_req(0)

    run(scenario)


@pytest.mark.parametrize("answer", [b"HTTP/1.1 400 Bad Request\r\n\r\n", bytes(200), pdu.ic_resp(0, 1024), b"\xff" * 9])
def test_a_server_of_another_kind_is_told_so_and_left(answer: bytes) -> None:
    async def scenario() -> None:
        async with scripted(answer) as (sled, script):
            await fails_to_open(sled.client(), "unknown|not expected|MAXH2CDATA")
            assert (await script.ended)[pdu.IC_BYTES] == PduType.H2C_TERM_REQ

    run(scenario)


def test_a_termreq_of_the_sled_is_its_reason() -> None:
    async def scenario() -> None:
        async with scripted(pdu.term_req(PduType.C2H_TERM_REQ, 2, 0, b"")) as (sled, script):
            await fails_to_open(sled.client(), "C2HTermReq")
            assert await script.ended == pdu.ic_req(0)

    run(scenario)


def test_a_sled_that_cannot_prove_its_identity_is_not_used() -> None:
    async def scenario() -> None:
        async with running_sled() as sled:
            client = sled.client()
            client._sled_public = host.public_key(host.OTHER_HEAD_KEY)
            error = await fails_to_open(client, "did not prove")
            assert isinstance(error.__cause__, HandshakeFailed)
            assert sled.subsystem.counters.attaches == 0

    run(scenario)


def test_another_sled_at_the_address_is_not_used() -> None:
    async def scenario() -> None:
        async with running_sled() as sled:
            client = sled.client()
            client.sled_id = host.HEAD
            assert uuid_nqn(host.HEAD) != host.NQN
            await fails_to_open(client, "connect was refused")

    run(scenario)


def test_an_association_is_opened_once() -> None:
    async def scenario() -> None:
        async with running_sled() as sled:
            client = sled.client()
            with pytest.raises(SledUnavailable, match="not open"):
                await client.push_key_set()
            await client.open()
            with pytest.raises(SledError, match="OPEN"):
                await client.open()
            await client.close()
            await client.close()
            with pytest.raises(SledError, match="CLOSED"):
                await client.open()

    run(scenario)


# --- attaching


@pytest.mark.parametrize(
    "lie",
    [
        {"sled": host.HEAD},
        {"boot_counter": 99},
        {"volume": host.HEAD},
        {"epoch": 6},
        {"attach_number": 2},
        {"slot": 1},
    ],
)
def test_a_receipt_for_something_else_is_refused(monkeypatch: pytest.MonkeyPatch, lie: dict[str, Any]) -> None:
    honest = Receipt.encode
    monkeypatch.setattr(Receipt, "encode", lambda receipt, keys: honest(replace(receipt, **lie), keys))

    async def scenario() -> None:
        async with running_sled() as sled:
            client = sled.client()
            await client.open()
            with pytest.raises(ReceiptRefused, match="it is for"):
                await client.attach(host.signed(), 1)
            await client.close()

    run(scenario)


def test_a_receipt_with_a_wrong_mac_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Receipt, "encode", lambda receipt, keys: receipt.body() + bytes(32))

    async def scenario() -> None:
        async with running_sled() as sled:
            client = sled.client()
            await client.open()
            with pytest.raises(ReceiptRefused, match="MAC"):
                await client.attach(host.signed(), 1)
            await client.close()

    run(scenario)


def test_a_short_receipt_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Receipt, "encode", lambda receipt, keys: receipt.body()[:100])

    async def scenario() -> None:
        async with running_sled() as sled:
            client = sled.client()
            await client.open()
            with pytest.raises(SledError):
                await client.attach(host.signed(), 1)
            await client.close()

    run(scenario)


def test_garbage_for_a_credential_is_not_even_sent() -> None:
    async def scenario() -> None:
        async with running_sled() as sled:
            client = sled.client()
            await client.open()
            with pytest.raises(CredentialMalformed):
                await client.attach(b"garbage", 1)
            assert sled.subsystem.counters.attaches == 0
            await client.close()

    run(scenario)


@pytest.mark.parametrize("page", [b"", bytes(560), b"\xff" * 560])
def test_a_fence_without_evidence_has_no_credential_to_show(monkeypatch: pytest.MonkeyPatch, page: bytes) -> None:
    monkeypatch.setattr(Association, "fence_page", lambda association, slot: page)

    async def scenario() -> None:
        async with running_sled() as sled:
            first, second = sled.client(), sled.client(head=host.OTHER_HEAD_KEY)
            await first.open()
            await second.open()
            volume = await first.attach(host.signed(), 1)
            nsid = await volume.create_namespace(0, 16)
            await second.attach(host.signed(epoch=6, head=host.OTHER_HEAD_KEY), 1)
            with pytest.raises(FencedOff) as fenced:
                await volume.flush(nsid)
            assert (fenced.value.epoch, fenced.value.credential) == (6, None)
            await first.close()
            await second.close()

    run(scenario)


def test_f6_volumes_refused_at_once_are_each_shown_their_own_credential() -> None:
    volumes = [UUID(int=number) for number in range(1, 5)]

    async def scenario() -> None:
        async with running_sled() as sled:
            stale, newer = sled.client(), sled.client(head=host.OTHER_HEAD_KEY)
            await stale.open()
            await newer.open()
            raised_by = [host.signed(epoch=6, head=host.OTHER_HEAD_KEY, volume=volume) for volume in volumes]
            for credential in raised_by:
                await newer.attach(credential, 1)
            attaches = [stale.attach(host.signed(volume=volume), 1) for volume in volumes]
            refused = await asyncio.gather(*attaches, return_exceptions=True)
            shown = [error.credential for error in refused if isinstance(error, FencedOff)]
            assert shown == raised_by
            await stale.close()
            await newer.close()

    run(scenario)


# --- hanging


class HungDevice(MemoryDevice):
    """A drive whose writes never complete once `hung` is set."""

    hung = False

    def write(self, lba: int, data: Buffer, fua: bool, done: Done) -> int:
        return PENDING if self.hung else super().write(lba, data, fua, done)


def test_a_drive_that_hangs_ends_neither_the_association_nor_the_service_of_the_other_drives() -> None:
    async def scenario() -> None:
        hung, healthy = HungDevice(4096), MemoryDevice(4096)
        async with running_sled(hung, healthy) as sled:
            client = sled.client(command_s=0.3, silence_s=0.2)
            await client.open()
            volume = await client.attach(host.signed(), 1)
            one, other = await volume.create_namespace(0, 16), await volume.create_namespace(1, 16)
            hung.hung = True
            writes = [volume.write(nsid, 0, [bytes(4096)]) for nsid in (one, other)]
            probed, answers = asyncio.Event(), 0
            real = client._probed

            def counting(outcome: Any) -> None:
                nonlocal answers
                real(outcome)
                answers += 1
                if answers == 6:  # half a second and more: past `command_s`
                    probed.set()

            client._probed = counting  # type: ignore[method-assign]
            await probed.wait()
            assert client.state is ClientState.OPEN
            assert sorted(write.done() for write in writes) == [False, True]
            nsid = other if writes[1].done() else one
            await volume.write(nsid, 1, [bytes(4096)])
            hung.hung = False
            await client.close()
            await asyncio.gather(*writes, return_exceptions=True)

    run(scenario)


def test_an_io_queue_that_answers_nothing_ends_the_association() -> None:
    async def scenario() -> None:
        async with running_sled() as sled:
            client = sled.client(command_s=0.3, silence_s=0.2)
            await client.open()
            volume = await client.attach(host.signed(), 1)
            nsid = await volume.create_namespace(0, 16)
            assert client._io is not None
            assert client._io._transport is not None
            client._io._transport.pause_reading()  # type: ignore[attr-defined]
            with pytest.raises(SledUnavailable, match="unanswered"):
                await volume.write(nsid, 0, [bytes(4096)])
            await client.closed

    run(scenario)


def test_a_silent_sled_ends_the_association_and_an_idle_one_does_not() -> None:
    async def scenario() -> None:
        async with running_sled() as sled:
            client = sled.client(silence_s=0.2)
            await client.open()
            volume = await client.attach(host.signed(), 1)
            answered = asyncio.get_running_loop().create_future()
            real = client._kept_alive

            def counting(outcome: Any) -> None:
                real(outcome)
                counting.count += 1  # type: ignore[attr-defined]
                if counting.count == 8 and not answered.done():  # type: ignore[attr-defined]
                    answered.set_result(None)

            counting.count = 0  # type: ignore[attr-defined]
            client._kept_alive = counting  # type: ignore[method-assign]
            await answered  # eight keep-alives: twice the silence allowed, without any other command
            for served in sled.server._connections:
                assert served._transport is not None
                served._transport.pause_reading()
            with pytest.raises(SledUnavailable, match="silent"):
                await volume.flush(1)
            assert client.closed.done()
            assert "silent" in client.reason

    run(scenario)


def test_waiting_commands_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "WAITING_MAX", 10)

    async def scenario() -> None:
        async with running_sled() as sled:
            client = sled.client()
            await client.open()
            volume = await client.attach(host.signed(), 1)
            nsid = await volume.create_namespace(0, 16)
            writes = [volume.write(nsid, 0, [bytes(4096)]) for _ in range(client_module.IO_DEPTH + 15)]
            outcomes = await asyncio.gather(*writes, return_exceptions=True)
            assert [isinstance(outcome, QueueFull) for outcome in outcomes].count(True) == 5
            assert [outcome for outcome in outcomes if outcome is None] == [None] * (client_module.IO_DEPTH + 10)
            await client.close()

    run(scenario)


@pytest.mark.parametrize("length", [0, 1, 4097, 1048576 + 4096])
def test_a_write_that_is_not_1_to_256_blocks_is_the_callers_error(length: int) -> None:
    async def scenario() -> None:
        async with running_sled() as sled:
            client = sled.client()
            await client.open()
            volume = await client.attach(host.signed(), 1)
            with pytest.raises(ValueError, match="blocks"):
                volume.write(1, 0, [bytes(length)])
            with pytest.raises(ValueError, match="blocks"):
                volume.read(1, 0, 257)
            with pytest.raises(ValueError, match="blocks"):
                volume.deallocate(1, 0, 65537)
            await client.close()

    run(scenario)


def test_closing_while_a_connection_is_being_made_leaves_none_behind() -> None:
    async def scenario() -> None:
        async with scripted(b"") as (sled, script):
            client = sled.client()
            opening = asyncio.get_running_loop().create_task(client.open())
            await asyncio.sleep(0)
            await client.close()
            with pytest.raises(SledUnavailable, match="closed by this head"):
                await opening
            assert await script.ended == b""

    run(scenario)
