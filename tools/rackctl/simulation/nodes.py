"""The machines of a simulated rack, each running production code: what survives a crash, and what a start does."""

import asyncio
from collections.abc import Callable
from random import Random
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from head_node.api.app import create_app
from head_node.authority.authority import Authority, Policy
from head_node.authority.client import AuthorityClient
from head_node.authority.errors import AuthorityError
from head_node.authority.fencing import SledFencer
from head_node.cluster.head import PEER_SERVICE, Head
from head_node.log_directories import LogDirectories
from head_node.store.records import SledRecord
from head_node.volume.engine import VolumeEngine
from rackctl.simulation.http import SimulatedHttp
from rackctl.simulation.log_disk import MemoryDisk, MemoryRoot
from rackctl.simulation.loop import NOBODY, NS, Process, SimulationLoop
from rackctl.simulation.store import Backup, UncertainStore
from sled_controller.environment import Environment
from sled_controller.fabric.client import SledClient
from sled_controller.fabric.target_server import TargetServer
from sled_controller.storage import superblock
from sled_controller.storage.errors import StorageError
from sled_controller.storage.sled_storage import SledStorage
from sled_controller.storage.timed_device import TimedDevice
from sled_controller.subsystem import Identity, Subsystem
from spdk_bindings.device import Buffer, Device, Done
from spdk_bindings.emulator import MemoryDevice
from spdk_bindings.faults import BitRot, DeadDevice, Misdirected, StatusFault, Wrapper
from spdk_bindings.volatile_cache import VolatileCache

if TYPE_CHECKING:
    from rackctl.simulation.world import World

AUTHORITY_ADDRESS: Final = "10.0.0.1"
AUTHORITY_URL: Final = f"http://{AUTHORITY_ADDRESS}"
PEER_PORT: Final = 7000
NBD_PORT: Final = 10809
SLED_PORT: Final = 4420
EPOCH_MS: Final = 1_700_000_000_000
"""The wall clock when the world begins."""
DRIFT_MAX: Final = 100e-6
"""A healthy quartz."""
DRIFT_BOUND: Final = 0.05
"""As far from true time as a clock may run: 5 % either way makes two of them differ by the 10 % that `guard` covers."""
RETRY_SECONDS: Final = 0.25
STOP_SECONDS_MAX: Final = 25.0
"""After this a service manager kills what was told to stop; a head gives itself 20 s."""


class NodeClock:
    """A node's clocks: CLOCK_BOOTTIME with its own rate, starting again at a reboot, and a wall clock that jumps."""

    def __init__(self, loop: SimulationLoop, random: Random, *, drift: float = DRIFT_MAX) -> None:
        """Runs wrong by as much as `drift` (a fraction), or, when that is beyond a quartz, by exactly so much."""
        self._loop = loop
        self._random = random
        self._rate = 1 + (random.uniform(-drift, drift) if drift <= DRIFT_MAX else random.choice((-drift, drift)))
        self.wall_offset_ms = random.randrange(-500, 500)
        self.on_read: Callable[[], None] | None = None
        """Called with each reading of the boot clock."""
        self.process: Process | None = None
        """Who looks: one that computes is further on than the loop."""
        self._boot_ns = 0
        self._uptime_ns = 0
        self.reboot()

    def reboot(self) -> None:
        """Count from a few seconds on."""
        self._boot_ns = self._loop.now_ns
        self._uptime_ns = self._random.randrange(1 * NS, 20 * NS)

    def boottime_ns(self) -> int:
        if self.on_read is not None:
            self.on_read()
        return self._uptime_ns + int((self._now_ns() - self._boot_ns) * self._rate)

    def wall_ms(self) -> int:
        return EPOCH_MS + self._now_ns() // 1_000_000 + self.wall_offset_ms

    def _now_ns(self) -> int:
        return self._loop.now_ns if self.process is None else round(self.process.now_s * NS)


class SeededEntropy:
    """The same bytes in each run."""

    def __init__(self, random: Random) -> None:
        self._random = random

    def bytes(self, count: int) -> bytes:
        return self._random.randbytes(count)


def private_key(random: Random) -> Ed25519PrivateKey:
    """A key from a seed."""
    return Ed25519PrivateKey.from_private_bytes(random.randbytes(32))


class Node:
    """A machine with one program. `start`, then any of the ends; `start` again afterwards."""

    program = "program"

    def __init__(self, world: "World", name: str, address: str, *, drift: float = DRIFT_MAX) -> None:
        self.world = world
        self.name = name
        self.address = address
        self.random = world.stream(name)
        self.clock = NodeClock(world.loop, world.stream(f"{name} clock"), drift=drift)
        self.process: Process | None = None
        self.powered = True
        self.ending = False
        """It was told to end in good order and has not yet."""
        self.starts = 0
        self.turn_cost_s = self.work_cost_s = 0.0

    @property
    def up(self) -> bool:
        """Its program runs, or stands still."""
        return self.process is not None and not self.process.dead

    @property
    def running(self) -> bool:
        return self.process is not None and self.process.running

    def start(self) -> None:
        """Begin a process."""
        if self.up:
            return
        if not self.powered:
            self.powered = True
            self.clock.reboot()
            self.power_on()
            self.world.network.power_on(self.address)
        self.starts += 1
        self.process = Process(self.world.loop, self.address, f"{self.name}#{self.starts}")
        self.process.turn_cost_s, self.process.work_cost_s = self.turn_cost_s, self.work_cost_s
        self.clock.process = self.process
        entropy = SeededEntropy(self.world.stream(f"{self.name} entropy {self.starts}"))
        self.process.spawn(self._supervise(Environment(self.clock, entropy)), name=self.name)

    def kill(self) -> None:
        """SIGKILL; the kernel and its caches stay."""
        if self.up:
            self._end()
            assert self.process is not None
            self.world.network.process_ended(self.process)
            self.world.http.process_ended(self.process, silently=False)
            self.crashed()

    def power_cut(self) -> None:
        """The machine is off."""
        if not self.powered:
            return
        self.powered = False
        self._end()
        if self.process is not None:
            self.world.http.process_ended(self.process, silently=True)
        self.world.network.power_loss(self.address)
        self.crashed()
        self.power_lost()

    def slow_down(self, turn_cost_s: float, work_cost_s: float) -> None:
        """Make each callback, and each encoding or application of records, cost so much time of its one thread."""
        self.turn_cost_s, self.work_cost_s = turn_cost_s, work_cost_s
        if self.process is not None:
            self.process.turn_cost_s, self.process.work_cost_s = turn_cost_s, work_cost_s

    def pause(self) -> None:
        """SIGSTOP."""
        if self.process is not None:
            self.process.pause()

    def resume(self) -> None:
        """SIGCONT."""
        if self.process is not None:
            self.process.resume()

    async def stop(self) -> None:
        """SIGTERM: end in good order."""
        if self.process is not None and self.process.running:
            await asyncio.wait([self.process.spawn(self.close(), name=f"stop {self.name}")])

    def terminate(self) -> None:
        """SIGTERM from a service manager: the process ends in good order, or is killed when that takes too long."""
        process = self.process
        if process is None or process.dead or self.ending:
            return
        self.ending = True

        def ended(_: object = None) -> None:
            if self.process is process:
                self.kill()

        process.spawn(self.close(), name=f"stop {self.name}").add_done_callback(ended, context=NOBODY)
        self.world.loop.call_later(STOP_SECONDS_MAX, ended, context=NOBODY)

    def _end(self) -> None:
        self.ending = False
        if self.process is not None and not self.process.dead:
            self.process.kill()

    async def _supervise(self, env: Environment) -> None:
        """A program that cannot start is started again by the machine's service manager."""
        while True:
            try:
                await self.run(env)
                return
            except (AuthorityError, StorageError, OSError) as error:
                self.world.note(self.name, f"cannot start: {error}")
                await asyncio.sleep(1.0)

    async def run(self, env: Environment) -> None:
        """The program: returns when it serves."""
        raise NotImplementedError

    async def close(self) -> None:
        """End in good order."""
        raise NotImplementedError

    def crashed(self) -> None:
        """The program is gone; what it had in memory too."""

    def power_lost(self) -> None:
        """What was cached is gone too."""

    def power_on(self) -> None:
        """Drives come up."""


class AuthorityNode(Node):
    """The authority over a store that keeps what it has acknowledged."""

    def __init__(self, world: "World", policy: Policy) -> None:
        super().__init__(world, "authority", AUTHORITY_ADDRESS)
        self.store = UncertainStore()
        self.store.on_put = world.watchers.stored
        self.root_key = private_key(world.stream("root key"))
        self.root_public = self.root_key.public_key().public_bytes_raw()
        self.authority: Authority | None = None
        self.operator_token: str | None = None
        self._policy = policy

    async def run(self, env: Environment) -> None:
        fencer = SledFencer(env)
        authority = await Authority.start(self.store, self.root_key, env, self._policy, fencer)
        fencer.bind(authority)
        self.operator_token = await authority.operator_token(self.operator_token)
        self.authority = authority
        self.world.http.serve(create_app(authority))

    async def close(self) -> None:
        if self.authority is not None:
            await self.authority.stop()

    def crashed(self) -> None:
        self.authority = None

    def restore(self, backup: Backup) -> None:
        """What an operator does with the store of an authority that does not run."""
        assert not self.up
        self.world.watchers.epochs.restored()
        self.store = UncertainStore.restored_from(backup)
        self.store.on_put = self.world.watchers.stored


class LyingDevice(Wrapper):
    """A drive that says that data of volumes is on its medium when it is in its cache.

    What it says of its metadata is true: a sled whose fences are not where the drive says cannot keep them (F2), and no
    design survives that.
    """

    def __init__(self, device: Device, data_lba: int) -> None:
        super().__init__(device)
        self.lies = False
        self._data_lba = data_lba

    def write(self, lba: int, data: Buffer, fua: bool, done: Done) -> int:
        """Write, into the cache only while it lies."""
        return self.device.write(lba, data, fua and not (self.lies and lba >= self._data_lba), done)


class Drive:
    """One drive of a sled: medium, volatile cache, and the faults that a run may switch on."""

    def __init__(self, world: "World", sled: str, number: int, blocks: int, random: Random) -> None:
        self.medium = MemoryDevice(blocks, serial=f"SIM-{sled}-{number}")
        self.cache = VolatileCache(self.medium, latency_s=lambda: random.uniform(10e-6, 150e-6))
        self.rot = BitRot(self.cache)
        self.misdirected = Misdirected(self.rot)
        self.errors = StatusFault(self.misdirected)
        self.death = DeadDevice(self.errors)
        self.lying = LyingDevice(self.death, superblock.plan(blocks, 0, bytes(16), bytes(16)).data_lba)
        self.device = world.watchers.device(sled, self.lying)
        self.present = True

    def data_blocks(self) -> list[int]:
        """The blocks that hold data of volumes."""
        begins = superblock.plan(self.medium.block_count, 0, bytes(16), bytes(16)).data_lba
        return sorted(lba for lba in self.medium.blocks if lba >= begins)


class SledNode(Node):
    """A sled with its drives."""

    def __init__(self, world: "World", number: int, drives: int, blocks: int) -> None:
        name = f"sled-{number}"
        super().__init__(world, name, f"10.0.2.{number + 1}")
        self.id = UUID(bytes=self.random.randbytes(16), version=4)
        self.key = private_key(self.random)
        self.drives = [Drive(world, name, drive, blocks, self.random) for drive in range(drives)]
        self.subsystem: Subsystem | None = None
        self._server: TargetServer | None = None

    def record(self) -> dict[str, Any]:
        """What the operator enrols."""
        identity = Identity(self.id, self.key, self.world.root_public, self.name)
        capacity = sum(drive.medium.block_count for drive in self.drives)
        return {
            "id": str(self.id), "name": self.name, "public_key": self.key.public_key().public_bytes_raw().hex(),
            "nqn": identity.nqn, "host": self.address, "port": SLED_PORT, "capacity_blocks": capacity,
        }  # fmt: skip

    async def run(self, env: Environment) -> None:
        identity = Identity(self.id, self.key, self.world.root_public, self.name)
        devices = [TimedDevice(drive.device) for drive in self.drives if drive.present]
        storage = await SledStorage.open(devices, sled_id=self.id, env=env, format=self.starts == 1)
        for device in devices:
            device.on_unresponsive = storage.unresponsive
        self.subsystem = Subsystem(identity, storage, env, self.world.loop.call_later)
        self._server = TargetServer(self.subsystem)
        await self._server.start(self.address, SLED_PORT)

    async def close(self) -> None:
        if self._server is not None and self.subsystem is not None:
            await self._server.close()
            self.subsystem.storage.close()

    def crashed(self) -> None:
        for drive in self.drives:
            drive.cache.forget_host()
        self.subsystem = self._server = None

    def power_lost(self) -> None:
        for drive in self.drives:
            drive.cache.power_cut(self.random)

    def power_on(self) -> None:
        for drive in self.drives:
            drive.cache.power_on()


class HeadNode(Node):
    """A head with one disk for its logs."""

    def __init__(self, world: "World", number: int, *, drift: float) -> None:
        super().__init__(world, f"head-{number}", f"10.0.1.{number + 1}", drift=drift)
        self.disk = MemoryDisk()
        self.disk.gate = self._sync
        self.sync_slowness = 1.0
        self.former_ids: list[UUID] = []
        self._take_identity()
        self.join_token: str | None = None
        self.root_public: bytes | None = None
        self.head: Head | None = None
        self._client: AuthorityClient | None = None

    def _take_identity(self) -> None:
        self.id = UUID(bytes=self.random.randbytes(16), version=4)
        self.key = private_key(self.random)

    def erase(self) -> None:
        """What an operator does with a head that was revoked: empty disk, new identity, to be enrolled anew."""
        self.kill()
        self.disk.files.clear()
        self.former_ids.append(self.id)
        self._take_identity()
        self.join_token = self.root_public = None

    @property
    def nbd_address(self) -> tuple[str, int]:
        """Where clients connect."""
        return self.address, NBD_PORT

    def engine_of(self, volume: UUID) -> VolumeEngine | None:
        """The engine that it has open for the volume."""
        controller = None if self.head is None else self.head.controllers.get(volume)
        return None if controller is None else controller._engine

    def log_of(self, volume: UUID) -> UUID | None:
        """The id of the log that it has open for the volume."""
        engine = self.engine_of(volume)
        return None if engine is None else engine.log_id

    def log_names(self) -> set[str]:
        """The directories on its disk."""
        return {path.partition("/")[0] for path in self.disk.files}

    def highest_epoch(self, volume: UUID) -> int:
        """The highest epoch that its log of the volume has seen, 0 when it is not open."""
        engine = self.engine_of(volume)
        return 0 if engine is None else engine.highest_epoch

    async def run(self, env: Environment) -> None:
        client = AuthorityClient(
            AUTHORITY_URL, head_id=self.id, head_key=self.key, env=env, root_public=self.root_public,
            transport=SimulatedHttp(self.world.http),
        )  # fmt: skip
        logs = LogDirectories(MemoryRoot(self.disk), self.id, env, self.world.limits)

        def make_client(sled: SledRecord) -> SledClient:
            host, port = sled.address
            return SledClient(
                host=host, port=port, sled_id=sled.id, sled_public=sled.public_key, head_key=self.key,
                head_id=self.id, env=env, key_set=lambda: head.key_set_bytes,
            )  # fmt: skip

        head = Head(
            self.id, self.key, client, root_public=lambda: client.root_public, make_client=make_client,
            open_engine=logs.open, remove_log=logs.remove, set_log_aside=logs.set_aside,
                terms=self.world.terms, env=env,
        )  # fmt: skip
        await head.listener.start(self.address, PEER_PORT)
        await head.nbd.start(*self.nbd_address)
        self._client, self.head = client, head
        enrolling = asyncio.get_running_loop().create_task(self._enrol(client))
        if self.root_public is None:
            await enrolling
        await head.start()

    async def close(self) -> None:
        if self.head is not None and self._client is not None:
            await self.head.stop()
            await self._client.close()

    def crashed(self) -> None:
        self.disk.crash()
        self.head = self._client = None

    def power_lost(self) -> None:
        self.disk.power_cut(self.random)

    async def _enrol(self, client: AuthorityClient) -> None:
        addresses = {PEER_SERVICE: (self.address, PEER_PORT), "nbd": self.nbd_address}
        while True:
            try:
                if self.root_public is None:
                    assert self.join_token is not None
                    await client.enrol(self.join_token, name=self.name, addresses=addresses)
                    self.root_public = client.root_public
                else:
                    await client.announce(addresses)
                return
            except AuthorityError:
                await asyncio.sleep(RETRY_SECONDS)

    def _sync(self, finish: Callable[[], None]) -> None:
        self.world.loop.call_later(self.random.uniform(30e-6, 300e-6) * self.sync_slowness, finish)
