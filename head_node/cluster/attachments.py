"""The columns of one volume in one epoch: attached at every sled, attached again when a sled comes back (F3).

The attach number rises with each attach at a sled. A column object belongs to one attach; the engine gets a new one
for a new attach, which is how it knows that older commands are over.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final, TypeVar
from uuid import UUID

from head_node.cluster.errors import TakeoverImpossible
from head_node.cluster.sleds import SledDirectory
from head_node.store.records import Column as ColumnRecord
from head_node.store.records import VolumeRecord
from head_node.volume.columns import Buffer
from sled_controller.association import ATTACH_STEP_MAX, Refusal
from sled_controller.backoff import Backoff
from sled_controller.credential import parse_credential
from sled_controller.environment import Environment
from sled_controller.errors import CredentialRefused, FencedOff, SledError, SledUnavailable, Superseded
from sled_controller.fabric.attachment import Attachment
from sled_controller.fabric.client import SledClient
from sled_controller.keyset import KeySet

log = logging.getLogger(__name__)

T = TypeVar("T")

RETRY_SECONDS_MIN: Final = 0.1
RETRY_SECONDS_MAX: Final = 5.0
"""Between two attaches that a sled refuses; it may be waiting for a key set, or be faulty."""


class SledColumn:
    """One namespace through one attach: what the engine writes shards to."""

    __slots__ = ("_alive", "_attachment", "_nsid", "blocks")

    def __init__(self, attachment: Attachment, nsid: int, blocks: int) -> None:
        self._attachment = attachment
        self._nsid = nsid
        self._alive = True
        self.blocks = blocks

    @property
    def available(self) -> bool:
        return self._alive

    def retire(self) -> None:
        """Nothing is sent through this attach any more."""
        self._alive = False

    def write(self, lba: int, buffers: Sequence[Buffer], *, fua: bool) -> asyncio.Future[None]:
        return self._attachment.write(self._nsid, lba, buffers, fua=fua)

    def read(self, lba: int, blocks: int) -> asyncio.Future[Buffer]:
        return self._attachment.read(self._nsid, lba, blocks)

    def flush(self) -> asyncio.Future[None]:
        """A credentialed command that changes nothing: meets the fence if there is one (F6)."""
        return self._attachment.flush(self._nsid)


@dataclass(slots=True)
class _Place:
    """One position of the volume's placement."""

    index: int
    sled: UUID
    attach_number: int = 0
    attachment: Attachment | None = None
    column: SledColumn | None = None
    work: "asyncio.Task[None] | None" = None
    boot_counter: int = 0
    """The sled's start of the newest association that was used."""
    quarantined: bool = False


class VolumeAttachments:
    """Attaches one volume at all its sleds under one credential. Callbacks come on the loop:
    `on_column(index, column or None)`, `on_refused(index, FencedOff)`, `on_credential_refused(CredentialRefused)`."""

    def __init__(
        self, record: VolumeRecord, epoch: int, credential: bytes, sleds: SledDirectory,
        env: Environment | None = None,
    ) -> None:  # fmt: skip
        self._env = env
        self._volume = record.volume
        self._epoch = epoch
        self._credential = credential
        self._sleds = sleds
        self._columns: dict[int, ColumnRecord] = {}
        self._places = {index: _Place(index, sled) for index, sled in enumerate(record.sleds)}
        self._closed = False
        self._changed = asyncio.Event()
        self.on_column: Callable[[int, SledColumn | None], None] = lambda index, column: None
        self.on_refused: Callable[[int, FencedOff], None] = lambda index, error: None
        self.on_credential_refused: Callable[[CredentialRefused], None] = lambda error: None
        self.name_columns(record.columns)
        self._unsubscribe = sleds.subscribe(self._sled_changed)

    @property
    def receipts(self) -> int:
        """Sleds whose receipt for this epoch is held now (F7)."""
        return sum(place.attachment is not None for place in self._places.values())

    @property
    def count(self) -> int:
        return len(self._places)

    @property
    def unnamed(self) -> bool:
        """Whether a sled is attached that has no column in the record yet."""
        return any(self._lacks_column(place) for place in self._places.values())

    @property
    def quarantined(self) -> set[UUID]:
        """Sleds that lied and have not started again since."""
        return {place.sled for place in self._places.values() if place.quarantined}

    def columns(self) -> list[SledColumn | None]:
        """By index, what can be used now."""
        return [self._places[index].column for index in range(len(self._places))]

    def sled_of(self, index: int) -> UUID:
        return self._places[index].sled

    def start(self) -> None:
        """Attach wherever there is an association; sleds that come later are attached as they come."""
        for place in self._places.values():
            self._begin(place)

    def name_columns(self, columns: Sequence[ColumnRecord]) -> None:
        """The record names these columns (with their nsids) now."""
        for column in columns:
            self._columns[column.index] = column
            place = self._places.get(column.index)
            if place is None or place.sled != column.sled:
                self._places[column.index] = _Place(column.index, column.sled)

    async def wait_receipts(self, wanted: int, timeout_s: float) -> None:
        """Wait for `wanted` receipts; raises TakeoverImpossible after `timeout_s` seconds."""
        try:
            async with asyncio.timeout(timeout_s):
                while self.receipts < wanted:
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            raise TakeoverImpossible(f"{self.receipts} receipts after {timeout_s} s, {wanted} are needed") from None

    async def wait_attempts(self, timeout_s: float) -> None:
        """Wait until no attach is under way, at most `timeout_s` seconds."""
        under_way = [place.work for place in self._places.values() if place.work is not None]
        if under_way:
            await asyncio.wait(under_way, timeout=timeout_s)

    async def create_namespaces(self, blocks: int) -> list[ColumnRecord]:
        """Make namespaces of `blocks` times 4096 bytes on the attached sleds that have no column in the record;
        idempotent. Sleds that refuse are left out."""

        async def create(place: _Place) -> ColumnRecord | None:
            assert place.attachment is not None
            try:
                nsid = await place.attachment.create_namespace(place.index, blocks)
            except SledError as error:
                log.warning(
                    "event=column_not_made volume=%s epoch=%d sled=%s error=%s",
                    self._volume, self._epoch, place.sled, error,
                )  # fmt: skip
                self.refused(place.index, error)
                return None
            return ColumnRecord(place.index, place.sled, nsid, blocks)

        places = [place for place in self._places.values() if self._lacks_column(place)]
        made = await asyncio.gather(*(create(place) for place in places))
        return [column for column in made if column is not None]

    async def delete_namespaces(self) -> list[UUID]:
        """Delete the volume's namespaces; returns the sleds that could not be asked and may keep a stray."""

        async def delete(place: _Place) -> bool:
            if place.attachment is None:
                return False
            try:
                for entry in await place.attachment.namespaces():
                    if entry.volume == self._volume:
                        await place.attachment.delete_namespace(entry.nsid)
            except SledError as error:
                log.warning("event=namespace_delete_failed volume=%s sled=%s error=%s", self._volume, place.sled, error)
                return False
            return True

        places = list(self._places.values())
        done = await asyncio.gather(*(delete(place) for place in places))
        return [place.sled for place, deleted in zip(places, done, strict=True) if not deleted]

    def activate(self) -> None:
        """Give out columns for every attachment whose namespace is named."""
        for place in self._places.values():
            self._activate(place)

    async def renew(self, credential: bytes) -> None:
        """Present a credential of the same epoch with a later expiry everywhere, at all sleds at the same time."""
        self._credential = credential
        await self.present()

    async def present(self) -> None:
        """Present the credential again wherever the volume is attached."""

        async def at(place: _Place, attachment: Attachment) -> None:
            try:
                await self._with_key_set(place, partial(attachment.renew, self._credential))
            except SledError as error:
                log.warning("event=renewal_refused volume=%s sled=%s error=%s", self._volume, place.sled, error)

        places = [(place, place.attachment) for place in self._places.values() if place.attachment is not None]
        await asyncio.gather(*(at(*each) for each in places))

    @property
    def key_id(self) -> int:
        """Which signing key the credential is of."""
        return parse_credential(self._credential).credential.key_id

    def probe(self) -> None:
        """Ask every sled whether this epoch still counts, with a flush (F6); refusals come through `on_refused`."""
        for place in self._places.values():
            if place.column is not None and place.column.available:
                place.column.flush().add_done_callback(lambda done, place=place: self._probed(place, done))  # type: ignore[misc]

    def refused(self, index: int, error: SledError) -> None:
        """A command through this column was refused: attach anew if superseded, judge if fenced off."""
        place = self._places[index]
        if isinstance(error, FencedOff):
            self.on_refused(index, error)
        elif isinstance(error, Superseded) and place.work is None:
            if error.attach_number is not None:
                place.attach_number = max(place.attach_number, error.attach_number)
            self._drop(place)
            self._begin(place)

    def quarantine(self, index: int) -> None:
        """The sled lied (F6): do not use this column before the sled has started again."""
        self._places[index].quarantined = True
        self._drop(self._places[index])

    async def close(self) -> None:
        """Use nothing any more. Commands under way are left to the sleds' fences."""
        self._closed = True
        self._unsubscribe()
        running = [place.work for place in self._places.values() if place.work is not None]
        for task in running:
            task.cancel()
        if running:
            await asyncio.wait(running)
        for place in self._places.values():
            self._drop(place)

    def outdated(self, error: CredentialRefused, key_set: KeySet | None) -> bool:
        """Whether a newer credential helps: its key has left the key set, or an older credential took the pair."""
        unknown = error.code == Refusal.SIGNATURE and key_set is not None and self.key_id not in key_set.keys
        return unknown or error.code in (Refusal.KEY_RETIRED, Refusal.OLD_HOLDER)

    def _lacks_column(self, place: _Place) -> bool:
        return place.attachment is not None and place.index not in self._columns

    def _sled_changed(self, sled: UUID, client: SledClient | None) -> None:
        for place in self._places.values():
            if place.sled == sled:
                self._drop(place)
                if client is not None:
                    # What confused the sled's controller may be over with its run; if not, it is judged again.
                    place.quarantined = place.quarantined and client.boot_counter == place.boot_counter
                    self._begin(place)

    def _begin(self, place: _Place) -> None:
        if self._closed or place.quarantined or self._sleds.client(place.sled) is None:
            return
        if place.work is not None:
            place.work.cancel()
        place.work = asyncio.get_running_loop().create_task(self._attach(place))

    async def _attach(self, place: _Place) -> None:
        task, step = asyncio.current_task(), 1
        backoff = Backoff(self._env, RETRY_SECONDS_MIN, RETRY_SECONDS_MAX)
        try:
            while (client := self._sleds.client(place.sled)) is not None and not place.quarantined:
                try:
                    await self._attach_once(place, client)
                    return
                except FencedOff as error:
                    self.on_refused(place.index, error)
                except Superseded as error:
                    # The sled does not say which number stands: it is found in steps that double.
                    place.attach_number = max(place.attach_number + step - 1, error.attach_number or 0)
                    step = min(2 * step, ATTACH_STEP_MAX)
                    continue
                except SledUnavailable:
                    pass
                except SledError as error:
                    log.warning(
                        "event=attach_refused volume=%s epoch=%d sled=%s error=%s",
                        self._volume, self._epoch, place.sled, error,
                    )  # fmt: skip
                    if isinstance(error, CredentialRefused):
                        self.on_credential_refused(error)
                await asyncio.sleep(backoff.next_s())
        finally:
            if place.work is task:
                place.work = None
            self._changed.set()

    async def _attach_once(self, place: _Place, client: SledClient) -> None:
        place.attach_number += 1
        place.boot_counter = client.boot_counter
        attach = partial(client.attach, self._credential, place.attach_number)
        attachment = await self._with_key_set(place, attach)
        receipt = attachment.receipt
        if (receipt.volume, receipt.epoch, receipt.sled) != (self._volume, self._epoch, place.sled):
            raise SledUnavailable(f"sled {place.sled} gave a receipt for something else")
        log.info(
            "event=attached volume=%s epoch=%d attach=%d sled=%s",
            self._volume,
            self._epoch,
            place.attach_number,
            place.sled,
        )
        attachment.on_credential_refused = self.on_credential_refused
        place.attachment = attachment
        self._activate(place)

    async def _with_key_set(self, place: _Place, show: Callable[[], Awaitable[T]]) -> T:
        """Show the credential; once more with the newest key set where the sled does not know its key yet."""
        try:
            return await show()
        except CredentialRefused as error:
            client = self._sleds.client(place.sled)
            if error.code != Refusal.SIGNATURE or client is None:
                raise
            await client.push_key_set()
            return await show()

    def _activate(self, place: _Place) -> None:
        named = self._columns.get(place.index)
        if place.attachment is None or named is None or place.column is not None:
            return
        place.column = SledColumn(place.attachment, named.nsid, named.blocks)
        self.on_column(place.index, place.column)

    def _drop(self, place: _Place) -> None:
        column, place.column, place.attachment = place.column, None, None
        if column is not None:
            column.retire()
            self.on_column(place.index, None)

    def _probed(self, place: _Place, done: "asyncio.Future[None]") -> None:
        error = None if done.cancelled() else done.exception()
        if isinstance(error, SledError) and not self._closed:
            self.refused(place.index, error)
