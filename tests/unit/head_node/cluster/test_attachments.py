"""What a head does about a sled that says its attach is not the newest."""

import asyncio
from collections.abc import Callable
from typing import cast
from uuid import UUID

from kit import host

from head_node.cluster.attachments import VolumeAttachments
from head_node.cluster.sleds import Listener
from head_node.store.records import VolumeRecord
from sled_controller.association import Refusal
from sled_controller.errors import CredentialRefused, SledUnavailable, Superseded
from sled_controller.fabric.attachment import Attachment
from sled_controller.fabric.client import SledClient


class Client:
    """Answers ATTACH as `answer` says."""

    boot_counter = 1

    def __init__(self, answer: Callable[[int], Exception]) -> None:
        self.answer = answer
        self.numbers: list[int] = []

    async def attach(self, credential: bytes, attach_number: int) -> Attachment:
        self.numbers.append(attach_number)
        raise self.answer(attach_number)


class Directory:
    """One sled."""

    def __init__(self, client: Client) -> None:
        self._client: Client | None = client

    def client(self, sled: UUID) -> SledClient | None:
        return cast(SledClient | None, self._client)

    def subscribe(self, listener: Listener) -> Callable[[], None]:
        return lambda: None


def attachments(client: Client) -> VolumeAttachments:
    record = VolumeRecord(host.VOLUME, "vol", 4096, sleds=(host.SLED,))
    return VolumeAttachments(record, 5, host.signed(), Directory(client))


def test_a_head_finds_the_attach_number_of_its_epoch_in_steps_that_double() -> None:
    found = asyncio.Event()

    def answer(number: int) -> Exception:
        if number <= 1 << 40:
            return Superseded(5)
        found.set()
        return SledUnavailable("over")

    async def scenario() -> None:
        client = Client(answer)
        volume = attachments(client)
        volume.start()
        await found.wait()
        await volume.close()
        assert client.numbers[:4] == [1, 2, 4, 8]
        assert len(client.numbers) < 300

    asyncio.run(asyncio.wait_for(scenario(), 20))


def test_a_head_whose_pair_was_taken_with_its_own_key_asks_for_a_newer_credential() -> None:
    refused: list[int] = []

    async def scenario() -> None:
        told = asyncio.Event()
        volume = attachments(Client(lambda number: CredentialRefused("taken", Refusal.OLD_HOLDER)))
        volume.on_credential_refused = lambda error: (refused.append(error.code or 0), told.set())[0]
        volume.start()
        await told.wait()
        await volume.close()

    asyncio.run(asyncio.wait_for(scenario(), 20))
    assert refused == [Refusal.OLD_HOLDER]
