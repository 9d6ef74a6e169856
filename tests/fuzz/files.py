"""What programs find at their start (files, variables, rows of the store), join tokens, and the ports of a head."""

import asyncio
import json
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import UUID

from fuzz.fuzzer import Target
from kit import host
from kit.authority import SeededEntropy
from kit.cluster import record_of
from kit.export import MemoryVolume
from rackctl import defaults, state
from rackctl.errors import RackError
from rackctl.simulation.log_disk import Content, MemoryDirectory, MemoryDisk

from head_node.authority.errors import AuthorityError
from head_node.authority.joining import JoinToken, token_text
from head_node.authority.keyring import KeyRing, SigningKey
from head_node.authority.ledger import Ledger
from head_node.cluster.status_server import answer
from head_node.config import HeadSettings
from head_node.export import nbd_protocol as nbd
from head_node.export.budget import MemoryBudget
from head_node.export.counters import NbdCounters
from head_node.export.nbd_server import Transmission
from head_node.export.relay import RELAY_VERSION, Frame, Mode, RelayLink, RelayTiming
from head_node.main import StateDirectory as HeadStateDirectory
from head_node.main import StateDirectoryUnusable as HeadStateUnusable
from head_node.store.errors import RecordMalformed
from head_node.store.memory import MemoryStore
from head_node.store.records import HeadRecord, SledRecord
from head_node.volume.errors import VolumeError
from head_node.volume.geometry import Geometry
from head_node.volume.identity import IDENTITY as layout
from head_node.volume.identity import IDENTITY_FILE, PROMISE_FILE, Identity, PromiseFile, read_identity
from head_node.volume.interface import BLOCK_BYTES
from sled_controller.environment import Environment
from sled_controller.settings import SettingsError, merge
from sled_controller.state_dir import KEY_FILE, StateDirectory, StateDirectoryUnusable
from spdk_bindings.device import Buffer

VOLUME = host.VOLUME
LOG = UUID(int=77)
ENVIRONMENT = Environment(host.FixedClock(), SeededEntropy(1))
PASSING: tuple[type[Exception], ...] = ()


@contextmanager
def folder_with(name: str, data: bytes) -> Iterator[Path]:
    """A folder with one file."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / name).write_bytes(data)
        yield Path(folder)


# --- at the start of a program ----------------------------------------------------------------------------------------


def rack_state(data: bytes) -> None:
    with folder_with("rack.json", data) as folder:
        loaded = state.load(folder)
        state.save(folder, loaded)
        assert state.load(folder) == loaded


def rack_state_seeds() -> list[bytes]:
    node = state.Node("head-0", state.NodeKind.HEAD, "id", "127.0.0.1", {"nbd": 1}, state.ProcessIdentity(5, 6))
    with tempfile.TemporaryDirectory() as folder:
        state.save(Path(folder), state.RackState([node], True, "token", 1 << 30))
        return [(Path(folder) / "rack.json").read_bytes()]


def rackctl_file(data: bytes) -> None:
    with folder_with("rackctl.toml", data) as folder:
        found = defaults.read_defaults(["--config", str(folder / "rackctl.toml")], {})
        for variable in defaults.KEYS.values():
            found.given(variable)


def sled_identity(data: bytes) -> None:
    with folder_with(KEY_FILE, data) as folder:
        StateDirectory(folder).identity("sled-0", bytes(32), ENVIRONMENT)


def head_identity(data: bytes) -> None:
    """A byte says which of the head's files holds the rest."""
    name = ("identity.json", "head.key", "root.pub")[data[0] % 3 if data else 0]
    with folder_with(name, data[1:]) as folder:
        kept = HeadStateDirectory(folder, "head-0", ENVIRONMENT)
        try:
            assert kept.root_public is None or len(kept.root_public) == 32
        finally:
            kept.close()


def environment(data: bytes) -> None:
    """Settings by variables, one a line; the operating system has no NUL in them."""
    texts = data.replace(b"\0", b"").decode("utf-8", "surrogateescape").split("\n")
    names = ("NAME", "STATE_DIR", "AUTHORITY_URL", "PEER_PORT", "LISTEN", "LOG_LEVEL")
    merge(HeadSettings, "head-node", {}, {f"HEAD_NODE_{name}": text for name, text in zip(names, texts, strict=False)})


def log_directory(data: bytes) -> None:
    """`identity` is the first two blocks, of which one may be rotten, `promise` the two behind."""
    disk = MemoryDisk()
    size = len(IDENTITY)
    for name, part in ((IDENTITY_FILE, data[:size]), (PROMISE_FILE, data[size:])):
        disk.files[name] = Content(len(part))
        disk.files[name].durable[:] = part
    directory = MemoryDirectory(disk)
    identity = read_identity(directory, VOLUME)
    told = identity.encode()[: layout.size]
    assert told in (data[: layout.size], data[BLOCK_BYTES : BLOCK_BYTES + layout.size])
    asyncio.run(PromiseFile.open(directory, LOG))


IDENTITY = Identity(LOG, VOLUME, 1024, 32 << 20, Geometry()).encode()


def log_directory_seeds() -> list[bytes]:
    async def made() -> bytes:
        disk = MemoryDisk()
        kept = await PromiseFile.create(MemoryDirectory(disk), LOG)
        await kept.see_epoch(5)
        await kept.intend_cut(7)
        return bytes(disk.files[PROMISE_FILE].durable)

    return [IDENTITY + asyncio.run(made()), IDENTITY]


# --- the authority ----------------------------------------------------------------------------------------------------


def store_rows(data: bytes) -> None:
    """A row of each kind, as the authority reads them at its start."""

    async def read() -> None:
        store = MemoryStore()
        await store.commit(compare={}, put={f"rack/{kind}/x": data for kind in ("head", "sled", "volume")}, delete=[])
        await Ledger(store).rack()

    asyncio.run(read())


def store_seeds() -> list[bytes]:
    key = bytes(32)
    head = HeadRecord(LOG, "head-0", key, {"nbd": ("127.0.0.1", 1)}, 5, False)
    sled = SledRecord(LOG, "sled-0", key, "nqn.x", ("127.0.0.1", 1), 9, 5)
    return [json.dumps(each.to_json()).encode() for each in (head, sled, record_of([LOG], [VOLUME]))]


def key_ring(data: bytes) -> None:
    try:
        found = json.loads(data)
    except (ValueError, RecursionError):
        return
    ring = KeyRing.from_json(found)
    assert KeyRing.from_json(ring.to_json()) == ring


def key_ring_seeds() -> list[bytes]:
    keys = (SigningKey(1, bytes(32), bytes(32), 0, 9), SigningKey(2, bytes(32), bytes(32), 5, None))
    return [json.dumps(KeyRing(3, keys, bytes(8)).to_json()).encode()]


def join_token(data: bytes) -> None:
    token = JoinToken.parse(data.decode("utf-8", "surrogateescape"))
    assert len(token.proof(LOG, bytes(32))) == 64


# --- a head's ports ---------------------------------------------------------------------------------------------------


def status_request(data: bytes) -> None:
    reply = answer(data, lambda: {"volumes": {"v": {"epoch": 3}}, "ready": True}, lambda: True)
    assert reply.startswith(b"HTTP/1.1 ")


def transmission(data: bytes) -> None:
    """A client after its negotiation; the first byte says what was agreed on, and how its bytes are cut."""
    kind, budget = data[0] if data else 0, MemoryBudget()
    core = Transmission(
        MemoryVolume(1 << 17), structured=kind & 1 != 0, allocation=kind & 1 != 0, wake=lambda: None,
        peer_gone=lambda: False, unsent=lambda: 0, evict=lambda reason: None, counters=NbdCounters(), budget=budget,
    )  # fmt: skip
    step = 1000 + (kind >> 1) * 37
    for at in range(1, len(data), step):
        core.feed(data[at : at + step])
        for _ in range(4):
            core.handed_over(sum(map(len, core.take_output())))
            core.resume()
    core.drop()
    assert (budget.free_bytes, len(budget.accounts)) == (budget.common_bytes, 0)


def transmission_seeds() -> list[bytes]:
    ask = nbd.REQUEST.pack
    magic = nbd.REQUEST_MAGIC
    requests = (
        ask(magic, 1, 1, 1, 0, 4096) + b"x" * 4096, ask(magic, 0, 0, 2, 0, 65536), ask(magic, 0, 3, 3, 0, 0),
        ask(magic, 0, 4, 4, 4096, 4096), ask(magic, 3, 6, 5, 0, 8192), ask(magic, 0, 7, 6, 0, 1 << 17),
        ask(magic, 0, 5, 7, 0, 4096), ask(magic, 0, 1, 8, 1, 700) + b"y" * 700, ask(magic, 0, 2, 9, 0, 0),
    )  # fmt: skip
    return [bytes((kind,)) + b"".join(requests) for kind in (0, 1, 255)]


class Idle:
    """A relay link's transport, owner and timers that do nothing but give credit back."""

    link: RelayLink

    def start(self, receiver: object) -> None: ...

    def send(self, buffers: object) -> None: ...

    def abort(self) -> None: ...

    def call_later(self, delay: float, callback: Callable[[], object]) -> "Idle":
        return self

    def cancel(self) -> None: ...

    def link_opened(self, mode: Mode) -> None: ...

    def link_data(self, data: memoryview) -> None:
        self.link.consumed(len(data))

    def link_drained(self) -> None: ...

    def link_closed(self) -> None: ...

    def link_ended(self) -> None: ...

    def link_beat(self) -> None: ...

    def link_lost(self, reason: str) -> None:
        assert "internal error" not in reason, reason


def relay_frames(data: bytes) -> None:
    """Frames of another head: a byte with each one's length first."""
    idle = Idle()
    idle.link = RelayLink(idle, idle, host.FixedClock(), idle, RelayTiming())
    idle.link.start(None)
    at = 0
    while at < len(data):
        idle.link.frame_received(memoryview(data[at + 1 : at + 1 + data[at]]))
        idle.link.send_data([b"z" * 100])
        at += 1 + data[at]


def relay_seeds() -> list[bytes]:
    frames: list[Buffer] = [
        bytes((Frame.OPEN, RELAY_VERSION, 3)), bytes((Frame.DATA,)) + b"abc",
        bytes((Frame.CREDIT,)) + nbd.U32.pack(100), bytes((Frame.HEARTBEAT,)),
        bytes((Frame.CLOSED,)), bytes((Frame.END,)),
    ]  # fmt: skip
    return [b"".join(bytes((len(frame),)) + bytes(frame) for frame in frames)]


TARGETS = (
    Target("rack-state", rack_state, (RackError,), rack_state_seeds, executions=300),
    Target("rackctl-file", rackctl_file, (RackError,), lambda: [b"sleds = 6\ntimeout = 3\nvolume = [\"v:1G\"]\n"],
           executions=1000),
    Target("sled-identity", sled_identity, (StateDirectoryUnusable,), lambda: [
        json.dumps({"id": str(LOG), "private_key": "07" * 32}).encode(),
    ], executions=300),
    Target("head-identity", head_identity, (HeadStateUnusable,), lambda: [
        b"\0" + json.dumps({"id": str(LOG), "name": "head-0"}).encode(), b"\1" + b"07" * 32, b"\2" + b"08" * 32 + b"\n",
    ], executions=300),
    Target("environment", environment, (SettingsError,), lambda: [b"head-1\n/tmp/x\nhttp://127.0.0.1:1\n7000\n[1]\n"]),
    Target("log-directory", log_directory, (VolumeError,), log_directory_seeds, executions=1500),
    Target("store-rows", store_rows, (RecordMalformed,), store_seeds, executions=1500),
    Target("key-ring", key_ring, (RecordMalformed,), key_ring_seeds),
    Target("join-token", join_token, (AuthorityError,), lambda: [
            token_text("0a" * 8, bytes(32), bytes(32), ca).encode() for ca in (None, bytes(32))
        ]),
    Target("status-request", status_request, PASSING, lambda: [
        f"GET /{page} HTTP/1.1\r\n\r\n".encode() for page in ("health", "ready", "status?x", "metrics", "")
    ]),
    Target("nbd-transmission", transmission, PASSING, transmission_seeds, executions=1500),
    Target("relay-frames", relay_frames, PASSING, relay_seeds),
)  # fmt: skip
