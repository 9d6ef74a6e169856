"""One sled alone under credentialed 4 KiB random writes.

Two sleds run side by side, one as it is and one whose MAC check is replaced by a no-op; the runs take turns, so that
both see the same machine. The client is another process than the sled: a blocking socket, capsules and MACs prepared
before the clock starts, so the sled is what is measured. Flush (fdatasync) is timed apart.
"""

import asyncio
import contextlib
import json
import random
import socket
import statistics
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Final
from uuid import UUID, uuid4

from bench.jobs import processor_seconds
from bench.report import Table
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from peers import spdk
from rackctl import peer_programs
from rackctl.errors import RackError

from sled_controller.credential import ALL_RIGHTS, Credential
from sled_controller.environment import Environment
from sled_controller.fabric import pdu, vendor
from sled_controller.keyset import KeySet
from sled_controller.receipt import RECEIPT_BYTES, Receipt
from sled_controller.session import HELLO_BYTES, HeadHandshake, QueueMac, SessionKeys
from spdk_bindings.nvme import (
    CC_ENABLE,
    CONTROLLER_ID_DYNAMIC,
    AdminOpcode,
    FabricsType,
    Property,
    VendorIo,
    sgl_in_capsule,
    sgl_transport,
)
from spdk_bindings.spdk.build import output
from spdk_bindings.spdk.errors import SpdkError
from spdk_bindings.spdk.native import load

BLOCK: Final = 4096
DEVICE_BYTES: Final = 512 << 20
NAMESPACE_BLOCKS: Final = 64 * 1024  # 256 MiB, the span of the random writes
ENTRIES: Final = 128
WRITES: Final = 40_000
"""In one measurement."""
UNCHECKED: Final = Path(__file__).with_name("unchecked_sled.py")
ON_SPDK: Final = (
    "--spdk-core-mask", "0x2", "--spdk-memory-mib", "128", "--spdk-no-huge", "--spdk-no-pci", "--format-blank",
)  # fmt: skip
START_SECONDS_MAX: Final = 20.0
TARGET_NQN: Final = "nqn.2014-08.org.nvmexpress:uuid:73706468-7400-4000-8000-000000000004"
RESPONSE: Final = pdu.CAPSULE_RESP_BYTES


class BenchFailed(Exception):
    """The sled did not start, or answered a command with an error."""


class Sled:
    """A sled process of its own, over a file unless `drive` is SPDK's name of one that is blank."""

    def __init__(self, folder: Path, root_public: bytes, *, unchecked: bool = False, drive: str | None = None) -> None:
        devices = json.dumps([drive or str(folder / "device")])
        arguments = [
            "--state-dir", str(folder), "--listen-port", "0", "--devices", devices, "--root-public-key",
            root_public.hex(), "--log-level", "warning",
        ]  # fmt: skip
        arguments += ON_SPDK if drive else ["--device-bytes", str(DEVICE_BYTES)]
        program = UNCHECKED if unchecked else Path(sysconfig.get_path("scripts")) / "sled-controller"
        self.process = subprocess.Popen([sys.executable, str(program), *arguments])
        endpoints = folder / "endpoints.json"
        deadline = time.monotonic() + START_SECONDS_MAX
        while not endpoints.exists():
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise BenchFailed("the sled did not start")
            time.sleep(0.02)
        self.identity: dict[str, str] = json.loads((folder / "identity.json").read_text())
        self.address: tuple[str, int] = tuple(json.loads(endpoints.read_text())["nvme_tcp"])

    def stop(self) -> None:
        """End the process."""
        self.process.terminate()
        self.process.wait(10)


class RawQueue:
    """A connected queue on a blocking socket; one command at a time, except in `Writer`."""

    def __init__(self, address: tuple[str, int], queue_id: int, controller_id: int, nqn: str, host_id: bytes) -> None:
        self.socket = socket.create_connection(address)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.sendall(pdu.ic_req(0))
        self.take(pdu.IC_BYTES)
        self.mac: QueueMac | None = None
        self.count = 0
        sqe = pdu.CONNECT_SQE.pack(
            AdminOpcode.FABRICS, pdu.PSDT_SGL, 0, FabricsType.CONNECT, 0, pdu.CONNECT_DATA_BYTES, pdu.SGL_IN_CAPSULE,
            0, queue_id, ENTRIES - 1, 0, 0,
        )  # fmt: skip
        data = pdu.CONNECT_DATA.pack(host_id, controller_id, nqn.encode(), b"nqn.2014-08.org.nvmexpress:uuid:bench")
        self.controller_id = self.command(bytearray(sqe), data)[0]

    def take(self, count: int) -> bytes:
        """Exactly `count` bytes."""
        data = bytearray()
        while len(data) < count:
            part = self.socket.recv(count - len(data))
            if not part:
                raise BenchFailed("the sled closed the connection")
            data += part
        return bytes(data)

    def command(self, sqe: bytearray, data: bytes = b"", expect: int = 0) -> tuple[int, bytes]:
        """Send one command, with a MAC once there is one; (DW0, data) of its answer."""
        if data:
            sqe[24:40] = sgl_in_capsule(len(data))
        elif expect:
            sqe[24:40] = sgl_transport(expect)
        if self.mac is not None and sqe[0] != AdminOpcode.FABRICS:
            sqe[pdu.MAC_OFFSET :] = self.mac.tag_parts(self.count, (bytes(sqe), data))
            self.count += 1
        self.socket.sendall(b"".join(pdu.capsule_cmd(sqe, (data,) if data else ())))
        answer = b""
        while True:
            kind, _, hlen, _, plen = pdu.COMMON.unpack(head := self.take(pdu.COMMON_BYTES))
            rest = self.take(plen - len(head))
            if kind == pdu.PduType.CAPSULE_RESP:
                break
            if kind != pdu.PduType.C2H_DATA:
                raise BenchFailed(f"PDU of type {kind:#x}")
            answer += rest[hlen - len(head) :]
        dw0, _, _, _, _, status = pdu.CQE.unpack(rest)
        if status:
            raise BenchFailed(f"command {sqe[0]:#x} failed with status {status >> 1 & 0x7FF:#05x}")
        return dw0, answer


class Writer:
    """An association with one volume attached and one namespace, ready to write."""

    def __init__(self, sled: Sled, root: Ed25519PrivateKey, seed: int) -> None:
        env = Environment()
        now_ms = env.clock.wall_ms()
        authority, head = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
        keys = KeySet(1, {1: authority.public_key().public_bytes_raw()}, now_ms)
        head_public = head.public_key().public_bytes_raw()
        credential = Credential(
            1,
            uuid4(),
            head_public,
            1,
            ALL_RIGHTS,
            now_ms,
            now_ms + 3_600_000,
            1,
            NAMESPACE_BLOCKS,
            1,
            (UUID(sled.identity["id"]),),
        )
        nqn, host_id = sled.identity["nqn"], uuid4().bytes
        self.admin = RawQueue(sled.address, 0, CONTROLLER_ID_DYNAMIC, nqn, host_id)
        self.admin.command(vendor.property_set(Property.CC, CC_ENABLE))
        self.io = RawQueue(sled.address, 1, self.admin.controller_id, nqn, host_id)
        session = self._session(sled, head, env)
        self.admin.command(vendor.vendor_sqe(AdminOpcode.KEYSET_UPDATE), keys.sign(root))
        self.slot, _ = self.admin.command(vendor.vendor_sqe(AdminOpcode.ATTACH, slba=1), credential.sign(authority))
        _, receipt = self.admin.command(vendor.vendor_sqe(AdminOpcode.RECEIPT, slot=self.slot), expect=RECEIPT_BYTES)
        Receipt.decode(receipt, session)
        create = vendor.vendor_sqe(AdminOpcode.NAMESPACE_CREATE, slot=self.slot, slba=NAMESPACE_BLOCKS)
        self.nsid, _ = self.admin.command(create)
        self._random = random.Random(seed)
        self.lbas: Iterator[int] = iter(())
        self._data = self._random.randbytes(BLOCK)

    def _session(self, sled: Sled, head: Ed25519PrivateKey, env: Environment) -> SessionKeys:
        sled_id, public = UUID(sled.identity["id"]), bytes.fromhex(sled.identity["public_key"])
        handshake = HeadHandshake(head, sled_id, public, sled.identity["nqn"], self.admin.controller_id, env)
        _, hello = self.admin.command(vendor.vendor_sqe(AdminOpcode.SESSION_RECEIVE), expect=HELLO_BYTES)
        self.admin.command(vendor.vendor_sqe(AdminOpcode.SESSION_SEND), handshake.reply(hello))
        self.admin.mac = handshake.keys.queue_mac(0)
        self.io.mac = handshake.keys.queue_mac(1)
        return handshake.keys

    def prepare(self, count: int) -> list[bytes]:
        """Headers of `count` random writes with their MACs; the data is the same block for all."""
        mac = self.io.mac
        assert mac is not None
        prefix = pdu.COMMON.pack(
            pdu.PduType.CAPSULE_CMD, 0, pdu.CAPSULE_CMD_BYTES, pdu.CAPSULE_CMD_BYTES, pdu.CAPSULE_CMD_BYTES + BLOCK
        )
        headers = []
        for index in range(count):
            sqe = vendor.vendor_sqe(VendorIo.WRITE, nsid=self.nsid, slot=self.slot, slba=next(self.lbas))
            sqe[2:4] = (index % ENTRIES).to_bytes(2, "little")
            sqe[24:40] = sgl_in_capsule(BLOCK)
            sqe[pdu.MAC_OFFSET :] = mac.tag(self.io.count, bytes(sqe) + self._data)
            self.io.count += 1
            headers.append(prefix + bytes(sqe))
        return headers

    def write(self, count: int, depth: int) -> float:
        """IOPS of `count` random writes with `depth` outstanding; every completion is checked."""
        headers = self.prepare(count)
        vector: list[bytes] = []
        for header in headers:
            vector += (header, self._data)
        sock = self.io.socket
        answers = bytearray(count * RESPONSE)
        view = memoryview(answers)
        total, got, sent = len(answers), 0, min(depth, count)
        send, receive = sock.sendmsg, sock.recv_into
        begin = time.perf_counter()
        self._send_all(vector[: 2 * sent])
        while got < total:
            got += receive(view[got:])
            room = min(got // RESPONSE + depth, count)
            if room > sent:
                part = vector[2 * sent : 2 * room]
                wanted = (room - sent) * (len(headers[0]) + BLOCK)
                done = send(part)
                if done != wanted:
                    sock.sendall(b"".join(part)[done:])
                sent = room
        seconds = time.perf_counter() - begin
        for at in range(0, total, RESPONSE):
            if answers[at + 22] or answers[at + 23]:
                raise BenchFailed("a write was not completed with success")
        return count / seconds

    def _send_all(self, part: Sequence[bytes]) -> None:
        self.io.socket.sendall(b"".join(part))

    def fill(self) -> None:
        """Write every block once, so that no measurement pays for allocating the file."""
        self.lbas = iter(range(NAMESPACE_BLOCKS))
        self.write(NAMESPACE_BLOCKS, 32)
        self.lbas = iter(partial(self._random.randrange, NAMESPACE_BLOCKS), -1)
        self.flush_ms(1)

    def flush_ms(self, writes: int) -> float:
        """Milliseconds of a flush after `writes` random writes."""
        if writes:
            self.write(writes, 32)
        begin = time.perf_counter()
        self.io.command(vendor.vendor_sqe(VendorIo.FLUSH, nsid=self.nsid, slot=self.slot))
        return (time.perf_counter() - begin) * 1000


def measure(runs: int, count: int, folder: Path) -> dict[str, float]:
    """All figures, medians of `runs`; checked and unchecked sleds take turns."""
    root = Ed25519PrivateKey.generate()
    public = root.public_key().public_bytes_raw()
    sleds: list[Sled] = []
    figures: dict[str, list[float]] = {}
    try:
        writers = {}
        for name, unchecked in (("", False), ("_unchecked", True)):
            sleds.append(Sled(folder / f"sled{name}", public, unchecked=unchecked))
            writers[name] = Writer(sleds[-1], root, seed=1)
            writers[name].fill()
        for turn in range(runs):
            # Whoever comes second may find the disk busy with the first one's pages: take turns at that, too.
            order = list(writers.items())[:: 1 if turn % 2 == 0 else -1]
            for kind, depth, writes in (("write_depth32", 32, count), ("write_depth1", 1, count // 4)):
                for name, writer in order:
                    writer.flush_ms(0)
                    cpu_s = processor_seconds(sleds[name != ""].process.pid)
                    figures.setdefault(f"{kind}{name}_iops", []).append(writer.write(writes, depth))
                    cpu_s = processor_seconds(sleds[name != ""].process.pid) - cpu_s
                    figures.setdefault(f"{kind}{name}_sled_cpu_us", []).append(cpu_s * 1e6 / writes)
            for _, writer in order:
                writer.flush_ms(0)
            figures.setdefault("flush_after_1024_writes_ms", []).append(writers[""].flush_ms(1024))
            figures.setdefault("flush_after_1_write_ms", []).append(writers[""].flush_ms(1))
    finally:
        for sled in sleds:
            sled.stop()
    median = {name: statistics.median(values) for name, values in figures.items()}
    pairs = zip(figures["write_depth32_iops"], figures["write_depth32_unchecked_iops"], strict=True)
    median["verification_cost_percent"] = 100 * statistics.median(1 - checked / plain for checked, plain in pairs)
    return median


def alone(runs: int, scratch: Path) -> Table:
    """A sled with credentialed commands, without heads, and the same with the MAC check left out. Raises RackError."""
    try:
        median = measure(runs, WRITES, scratch)
    except BenchFailed as error:
        raise RackError(f"the sled alone: {error}") from None
    rows = [
        ("4 KiB random write, depth 32", f"{median['write_depth32_iops']:,.0f} IOPS"),
        ("4 KiB random write, depth 1", f"{median['write_depth1_iops']:,.0f} IOPS"),
        ("depth 32 without the check of MACs", f"{median['write_depth32_unchecked_iops']:,.0f} IOPS"),
        ("what the check costs", f"{median['verification_cost_percent']:.1f} %"),
        ("processor of the sled per write, depth 32", f"{median['write_depth32_sled_cpu_us']:.1f} us"),
        ("flush (fdatasync) after 1024 writes", f"{median['flush_after_1024_writes_ms']:.1f} ms"),
        ("flush after 1 write", f"{median['flush_after_1_write_ms']:.1f} ms"),
    ]
    return Table("A sled alone, every command credentialed", ("figure", "median"), rows)


def on_spdk(runs: int, scratch: Path, leave_out: Callable[[str], None]) -> list[Table]:
    """The same sled over a file, and over SPDK whose target serves a file; nothing where SPDK is missing.

    Target, reactor, sled and writer each want a core. Raises RackError.
    """
    try:
        if peer_programs.find("nvmf_tgt") is None:
            raise SpdkError(peer_programs.missing("nvmf_tgt"))
        load(output())
    except SpdkError as error:
        leave_out(str(error))
        return []
    with asyncio.Runner() as runner:
        stack = contextlib.AsyncExitStack()
        image = scratch / "spdk-sled.img"
        with image.open("wb") as file:
            file.truncate(DEVICE_BYTES)
        target = runner.run(stack.enter_async_context(spdk.exported(TARGET_NQN, file=image)))
        drive = f"trtype:TCP adrfam:IPv4 traddr:127.0.0.1 trsvcid:{target.port} subnqn:{target.nqn}"
        try:
            return [_beside(runs, scratch, {"over a file": None, "over SPDK, its target over a file": drive})]
        except BenchFailed as error:
            raise RackError(f"a sled over SPDK: {error}") from None
        finally:
            runner.run(stack.aclose())


def _beside(runs: int, scratch: Path, drives: Mapping[str, str | None]) -> Table:
    root = Ed25519PrivateKey.generate()
    sleds: list[Sled] = []
    figures: dict[tuple[int, str], list[float]] = {}
    try:
        writers = {}
        for name, drive in drives.items():
            folder = scratch / f"sled-beside-{len(sleds)}"
            sleds.append(Sled(folder, root.public_key().public_bytes_raw(), drive=drive))
            writers[name] = Writer(sleds[-1], root, seed=1)
            writers[name].fill()
        for _ in range(runs):
            for depth, writes in ((32, WRITES), (1, WRITES // 4)):
                for name, writer in writers.items():
                    writer.flush_ms(0)
                    figures.setdefault((depth, name), []).append(writer.write(writes, depth))
    finally:
        for sled in sleds:
            sled.stop()
    rows = [
        (
            f"4 KiB random write, depth {depth} (IOPS)",
            *(f"{statistics.median(figures[depth, name]):,.0f}" for name in drives),
        )
        for depth in (32, 1)
    ]
    return Table("A sled over SPDK", ("job", *drives), rows)
