"""What the operator of a simulated rack does: revoke and replace heads, rotate keys, make and delete volumes, restore
the store and recover what is frozen.

The operator sits at a machine that no fault touches, and asks again until the authority has answered.
"""

import asyncio
from collections.abc import Coroutine, Mapping
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

import httpx

from head_node.authority.unfenced import FENCED
from head_node.store.records import VolumeRecord, VolumeState
from rackctl.consistency.history import Violation
from rackctl.simulation.loop import Process
from rackctl.simulation.nodes import RETRY_SECONDS, HeadNode
from rackctl.simulation.store import Backup
from sled_controller.credential import holder_of

if TYPE_CHECKING:
    from rackctl.simulation.world import World

ANSWER_SECONDS_MAX: Final = 20.0
"""A revocation waits 8 s for each sled that does not answer."""
LOOK_SECONDS: Final = 0.1
COMPARE_SECONDS_MAX: Final = 300.0
THAWED_SECONDS: Final = 3.0
"""A volume that has gone on for so long after its recovery is not frozen again by what somebody still held."""


class Operator:
    """Runs each piece of work as a task of its own; `idle` when all is done."""

    def __init__(self, world: "World") -> None:
        self._world = world
        self._process = Process(world.loop, "10.0.3.2", "operator")
        self._work: dict[asyncio.Task[None], None] = {}

    @property
    def idle(self) -> bool:
        return not self._work

    def begin(self, work: Coroutine[Any, Any, None], name: str) -> "asyncio.Task[None]":
        """Do something; what it raises ends the run."""
        task = self._process.spawn(work, name=name)
        self._work[task] = None
        task.add_done_callback(self._done)
        return task

    def _done(self, task: "asyncio.Task[None]") -> None:
        del self._work[task]
        if not task.cancelled() and (error := task.exception()) is not None:
            raise error

    # heads and keys

    async def revoke(self, head: HeadNode) -> None:
        """Put a head out; what the fences say about it is watched at the drives, and the answer compared with them."""
        holder = holder_of(head.key.public_key().public_bytes_raw())
        done = await self._ask("POST", f"/v1/heads/{head.id}/revoke")
        check_fences(self._world, holder, done["fences"])
        self._world.note("operator", f"has revoked {head.name}")

    async def replace(self, head: HeadNode) -> None:
        """Erase a head that was revoked and let it join as another one."""
        made = await self._ask("POST", "/v1/join-tokens", {"uses": 1, "valid_s": 3600})
        head.erase()
        head.join_token = str(made["token"])
        head.start()
        self._world.note("operator", f"lets {head.name} join anew")

    async def rotate_keys(self, *, now: bool) -> None:
        """Publish a new signing key, unless the set is full; with `now` the others are worth nothing from there on."""
        ring = await self._ask("POST", "/v1/keys/rotate", {"now": now}, refused=(409,))
        how = "at once to" if now else "to"
        said = "finds the key set full" if ring is None else f"has rotated {how} {ring['version']}"
        self._world.note("operator", said)

    # volumes

    async def create(self, name: str) -> UUID:
        """Make a volume, or find it made by a request that was not answered."""
        body = self._world.volume_request(name)
        if await self._ask("POST", "/v1/volumes", body, refused=(409,)) is None:
            self._world.note("operator", f"finds {name} made already")
        return UUID((await self._ask("GET", f"/v1/volumes/{name}"))["volume"])

    async def delete(self, volume: UUID) -> None:
        """Delete a volume and wait until its record is gone."""
        while self._world.record(volume) is not None:
            await self._ask("DELETE", f"/v1/volumes/{volume}", refused=(404,))
            await asyncio.sleep(LOOK_SECONDS)
        self._world.note("operator", f"has deleted {volume}")

    # freezing, the store

    async def freeze(self) -> None:
        """Stop every volume."""
        for record in self._world.records():
            await self._ask("POST", f"/v1/volumes/{record.volume}/freeze")

    async def restore(self, backup: Backup) -> None:
        """Set the authority back to a backup, then `recover`. Only for a backup of the volumes that there are now."""
        world = self._world
        world.note("operator", f"restores the store of revision {backup.revision}")
        known = {record.volume: record for record in world.records()}
        world.authority.kill()
        world.authority.restore(backup)
        world.authority.start()
        await self.recover(known)

    async def recover(self, known: Mapping[UUID, VolumeRecord]) -> None:
        """Compare what is frozen with sleds and heads, and set it going again, until nothing is frozen any more.

        `known` are the records that heads saw last, by volume: who is a member there has all that is acknowledged.
        """
        world = self._world
        thawed_s = world.loop.time()
        while world.loop.time() - thawed_s < THAWED_SECONDS:
            await asyncio.sleep(LOOK_SECONDS)
            for record in world.records():
                if record.state is VolumeState.FROZEN:
                    await self._recover(record, known[record.volume])
                    thawed_s = world.loop.time()

    async def _recover(self, record: VolumeRecord, last: VolumeRecord) -> None:
        """Drop the logs of members that were none any more, then go on above every epoch that anybody has seen."""
        world, volume = self._world, record.volume
        await world.until(self._all_up, COMPARE_SECONDS_MAX, "sleds and heads can be compared with the record")
        for head in world.heads:
            stale = record.member(head.id)
            if stale is not None and stale not in last.current and head.log_of(volume) == stale.log:
                world.note("operator", f"drops the log of {head.name}, which was no member of volume {volume} any more")
                head.kill()
                head.disk.drop(str(volume))
                head.start()
        seen = [record.epoch, last.epoch, *(head.highest_epoch(volume) for head in world.heads)]
        for sled in world.sleds:
            assert sled.subsystem is not None
            fence = sled.subsystem.storage.fence_of(volume)
            seen.append(0 if fence is None else fence.epoch)
        body: dict[str, object] = {"epoch": max(seen)}
        if not set(record.current) & set(last.current):
            body |= {"head": str(last.current[0].head), "may_lose": True}
        await self._ask("POST", f"/v1/volumes/{volume}/recover", body, refused=(403, 409, 422))

    def _all_up(self) -> bool:
        sleds_up = all(sled.subsystem is not None for sled in self._world.sleds)
        return sleds_up and all(node.running for node in self._world.nodes)

    # plumbing

    async def _ask(self, method: str, path: str, body: Any = None, *, refused: tuple[int, ...] = ()) -> Any:
        """The answer, None when it is one of the statuses in `refused`; without any, ask again."""
        while True:
            try:
                return await self._world.ask(method, path, body, timeout_s=ANSWER_SECONDS_MAX)
            except httpx.HTTPStatusError as error:
                if error.response.status_code in refused:
                    return None
                if error.response.status_code < 500:
                    raise
            except httpx.HTTPError:
                pass
            await asyncio.sleep(RETRY_SECONDS)


def check_fences(world: "World", holder: bytes, fences: Mapping[str, Mapping[str, str]]) -> None:
    """Where a revocation says `fenced`, the sled's fence is no longer that head's, and it names every sled of a volume.
    Raises Violation."""
    sleds = {str(sled.id): sled for sled in world.sleds}
    for volume, results in fences.items():
        record = world.record(UUID(volume))
        missing = set() if record is None else {str(sled) for sled in record.sleds} - results.keys()
        if missing:
            raise Violation(f"a revocation does not say what becomes of volume {volume} on sleds {missing}")
        for sled, result in results.items():
            subsystem = sleds[sled].subsystem
            fenced = result == FENCED and subsystem is not None
            if fenced and subsystem is not None and subsystem.volume(UUID(volume)).fence.holder == holder:
                raise Violation(f"{sleds[sled].name} is said to be fenced, but the revoked head stands there (F1)")


def restorable(world: "World", backup: Backup) -> bool:
    """Whether the volumes of now are those of the backup."""
    return {record.volume for record in world.records()} == {record.volume for record in world.records(backup)}
