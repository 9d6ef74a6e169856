"""A sled-controller process of its own, and hosts on real sockets that may say anything."""

import json
import os
import resource
import signal
import socket
import struct
import subprocess
import sysconfig
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kit import host
from kit.target import Answer, Head, Pdu, Wire

from sled_controller.environment import Environment
from sled_controller.fabric import pdu, vendor
from sled_controller.fabric.pdu import PduType
from spdk_bindings.device import Buffer
from spdk_bindings.nvme import LogPage

PROGRAM = str(Path(sysconfig.get_path("scripts")) / "sled-controller")
DEVICE_BYTES = 64 << 20
READY_SECONDS_MAX = 15.0
ANSWER_SECONDS_MAX = 8.0
COUNTERS = (
    "admitted", "fenced_off", "superseded", "refused", "bad_macs", "protocol_errors", "attaches", "receipts",
    "device_errors", "connections", "timeouts", "out_of_range", "denied",
)  # fmt: skip


def now_ms() -> int:
    """Unix time, as the sled has it."""
    return time.time_ns() // 1_000_000


class SocketWire(Wire):
    """A `Wire` whose target is another process."""

    def __init__(self, port: int, digests: int = 0) -> None:
        self.digests = digests
        self.mac: Any = None
        self.count = 0
        self._cid = 0
        self.ended = False
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=ANSWER_SECONDS_MAX)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def send(self, *parts: Buffer) -> None:
        """Send `parts`; a target that has closed already is no error here."""
        try:
            self.socket.sendall(b"".join(parts))
        except OSError:
            self.ended = True

    def receive(self) -> list[Pdu]:
        """The PDUs up to the next that is no data, or to the end of the connection."""
        pdus: list[Pdu] = []
        while not pdus or pdus[-1].kind == PduType.C2H_DATA:
            head = self._exactly(8)
            if len(head) < 8:
                self.ended = True
                break
            kind, flags, hlen, pdo, plen = pdu.COMMON.unpack(head)
            whole = head + self._exactly(plen - 8)
            end = plen - 4 * bool(flags & pdu.PduFlag.DDGST)
            data = whole[hlen:] if kind == PduType.C2H_TERM_REQ else whole[pdo:end] if pdo else b""
            pdus.append(Pdu(kind, whole[:hlen], data))
        return pdus

    def gone(self) -> bool:
        """Wait for the end of the connection; what comes before it is dropped."""
        while not self.ended:
            self.receive()
        return True

    def _exactly(self, count: int) -> bytes:
        parts = b""
        while len(parts) < count:
            try:
                more = self.socket.recv(count - len(parts))
            except ConnectionError:
                more = b""
            if not more:
                break
            parts += more
        return parts


class SocketHead(Head):
    """A `Head` whose credentials are valid now."""

    rig: "ReachableSled"  # type: ignore[assignment]

    def start_attach(self, epoch: int, number: int, **fields: Any) -> int:
        raw = fields.pop("raw", None)
        if raw is None:
            fields.setdefault("issued_ms", now_ms() - 1000)
            raw = host.signed(epoch=epoch, head=fields.pop("head", self.key), **fields)
        return self.admin.start(vendor.vendor_sqe(0xC9, slba=number), raw)

    def close(self) -> None:
        self.admin.socket.close()  # type: ignore[attr-defined]
        self.io.socket.close()  # type: ignore[attr-defined]


@dataclass(kw_only=True)
class ReachableSled:
    """A sled at a port of our loopback, wherever it runs; the `rig` of its heads."""

    port: int
    heads: list[SocketHead] = field(default_factory=list)
    env: Environment = field(default_factory=Environment)

    def connection(self, digests: int = 0, hpda: int = 0) -> SocketWire:
        """A connection after ICReq and ICResp."""
        wire = self.wire(digests)
        wire.send(pdu.ic_req(digests, hpda=hpda))
        assert wire.receive()[0].kind == PduType.IC_RESP
        return wire

    def wire(self, digests: int = 0) -> SocketWire:
        """A connection on which nothing was said yet."""
        return SocketWire(self.port, digests)

    def head(self, key: int = host.HEAD_KEY, digests: int = 0) -> SocketHead:
        """An association with a live session."""
        head = SocketHead(self, key, digests)  # type: ignore[arg-type]
        self.heads.append(head)
        return head

    def counters(self) -> dict[str, int]:
        """Log page C2h."""
        size = 32 + 8 * len(COUNTERS)
        wire = self.connection()
        assert wire.connect().status == 0
        assert wire.ask(vendor.property_set(0x14, 1), signed=False).status == 0  # type: ignore[arg-type]
        answer: Answer = wire.ask(vendor.get_log_page(LogPage.SLED_STATUS, size), room=size, signed=False)
        wire.socket.close()
        assert answer.status == 0, hex(answer.status)
        return dict(zip(COUNTERS, struct.unpack_from(f"<{len(COUNTERS)}Q", answer.data, 32), strict=True))

    def close_heads(self) -> None:
        for head in self.heads:
            head.close()
        self.heads.clear()


@dataclass(kw_only=True)
class RealSled(ReachableSled):
    """A sled that runs as a process of this machine."""

    state_dir: Path
    process: "subprocess.Popen[bytes]"
    log_file: Path

    def log(self) -> str:
        return self.log_file.read_text(encoding="utf-8")

    def resident_mib(self) -> int:
        """What the process holds in memory."""
        status = Path(f"/proc/{self.process.pid}/status").read_text(encoding="ascii")
        (line,) = [line for line in status.splitlines() if line.startswith("VmRSS")]
        return int(line.split()[1]) // 1024


def identity() -> str:
    """What is in the file identity.key of a sled with the fixed identity of the tests."""
    key = host.private_key(host.SLED_KEY).private_bytes_raw().hex()
    return json.dumps({"id": str(host.SLED), "private_key": key})


def prepare(state_dir: Path) -> None:
    """Give a sled the fixed identity of the tests."""
    state_dir.mkdir(parents=True, exist_ok=True)
    (state_dir / "identity.key").write_text(identity(), encoding="ascii")


def command(state_dir: Path, devices: int = 1, drives: Sequence[str] = ()) -> list[str]:
    """A sled over files, or over NVMe drives by SPDK."""
    paths = [str(state_dir / f"device-{number}") for number in range(devices)]
    spdk = ("--spdk-core-mask", "0x2", "--spdk-memory-mib", "128", "--spdk-no-huge", "--spdk-no-pci", "--format-blank")
    return [
        *(PROGRAM, "--state-dir", str(state_dir), "--listen-port", "0", "--devices", json.dumps(drives or paths)),
        *(spdk if drives else ("--device-bytes", str(DEVICE_BYTES))),
        *("--root-public-key", host.public_key(host.ROOT).hex()),
    ]


@contextmanager
def running(
    state_dir: Path, *, devices: int = 1, drives: Sequence[str] = (), file_bytes_max: int | None = None
) -> Iterator[RealSled]:
    """A sled until the block ends; `file_bytes_max` stands for a full disk. It must end in good order."""
    if not (state_dir / "identity.key").exists():
        prepare(state_dir)
    log_file = state_dir / "log"
    endpoints = state_dir / "endpoints.json"
    before = endpoints.stat().st_ino if endpoints.exists() else None
    with log_file.open("ab") as log:
        process = subprocess.Popen(command(state_dir, devices, drives), stderr=log)
    try:
        deadline = time.monotonic() + READY_SECONDS_MAX
        while not endpoints.exists() or endpoints.stat().st_ino == before:
            assert process.poll() is None, log_file.read_text(encoding="utf-8")
            assert time.monotonic() < deadline, "the sled is not ready"
            os.sched_yield()
        port = json.loads(endpoints.read_text(encoding="utf-8"))["nvme_tcp"][1]
        if file_bytes_max is not None:
            resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (file_bytes_max, file_bytes_max))
        sled = RealSled(port=port, state_dir=state_dir, process=process, log_file=log_file)
        yield sled
        sled.close_heads()
        assert process.poll() is None, sled.log()
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=10) == 0, sled.log()
        assert "Traceback" not in sled.log(), sled.log()
        assert "never retrieved" not in sled.log(), sled.log()
    finally:
        process.kill()
        process.wait()
