"""The routes that heads use, every request signed (RFC 9421); `AuthorityClient` is the other side."""

from collections.abc import Mapping
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Depends, Query, Request

from head_node.api import models
from head_node.authority.audit import Actor, asks
from head_node.authority.authentication import Received
from head_node.authority.authority import Authority
from head_node.authority.nodes import checked_address, parse_key
from head_node.store.records import Address, Column, HeadRecord, LogEnd, LostRange, Member

WAIT_MS_MAX = 60_000

router = APIRouter(prefix="/v1", tags=["heads"])


def authority_of(request: Request) -> Authority:
    found: Authority = request.app.state.authority
    return found


async def rack_of(request: Request) -> Authority:
    """The same as a dependency: a plain function would cost a thread per request."""
    return authority_of(request)


async def received(request: Request) -> Received:
    scope = request.scope
    path = scope.get("raw_path") or scope["path"].encode()
    headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
    query = scope.get("query_string", b"").decode("latin-1")
    return Received(request.method, path.decode("latin-1").partition("?")[0], query, headers, await request.body())


async def signing_head(request: Request) -> HeadRecord:
    found = await authority_of(request).authenticator.head(await received(request))
    asks(Actor(f"head:{found.id}", source_of(request)))
    request.state.authenticated = True  # from now on its connection is no stranger's (connections.py)
    return found


async def newcomer() -> None:
    """A dependency that says: the route checks a join token's proof itself."""


def source_of(request: Request) -> str:
    """The address that a request came from."""
    client = request.client
    return "" if client is None else f"{client.host}:{client.port}"


Rack = Annotated[Authority, Depends(rack_of)]
Head = Annotated[HeadRecord, Depends(signing_head)]


@router.post("/heads", operation_id="enrolHead", dependencies=[Depends(newcomer)])
async def enrol(request: Request, rack: Rack, body: models.EnrolmentRequest) -> models.HeadAnswer:
    """Enrol a head with a join token; signed with the key that it enrols."""
    key = parse_key(body.public_key)
    proof = bytes.fromhex(body.proof)
    # Before the nonce is remembered: who has no token takes no memory.
    await rack.nodes.check_proof(body.id, key, body.token_id, proof)
    rack.authenticator.newcomer(await received(request), body.id, key)
    asks(Actor(f"head:{body.id}", source_of(request)))
    head = await rack.nodes.enrol_head(body.id, body.name, key, _addresses(body.addresses), body.token_id, proof)
    return models.HeadAnswer(head=models.HeadDocument.model_validate(head.to_json()))


@router.put("/heads/self/addresses", operation_id="announceAddresses")
async def announce(rack: Rack, head: Head, body: models.AddressesRequest) -> models.HeadAnswer:
    """Say where this head listens now."""
    record = await rack.nodes.announce(head.id, _addresses(body.addresses))
    return models.HeadAnswer(head=models.HeadDocument.model_validate(record.to_json()))


@router.put("/heads/self/status", operation_id="reportStatus", status_code=204)
async def report(rack: Rack, head: Head, body: dict[str, Any]) -> None:
    """Heartbeat: what this head does and sees; kept in memory, the latest only."""
    rack.reports.add_report(head.id, body)
    if "newer_key_set" in body:
        await rack.judge_key_set(head.id, body["newer_key_set"])


@router.get("/view", operation_id="viewRack")
async def view(
    rack: Rack,
    head: Head,
    after: Annotated[int | None, Query(ge=0, lt=1 << 63)] = None,
    wait_ms: Annotated[int, Query(ge=0, le=WAIT_MS_MAX)] = 0,
) -> models.ViewDocument:
    """Nodes, key set and this head's volumes; waits for a revision other than `after`."""
    found = await rack.view(head.id, after, wait_ms)
    return models.ViewDocument.model_validate(found.to_json())


@router.post("/volumes/{volume}/takeover", operation_id="takeOver")
async def takeover(rack: Rack, head: Head, volume: UUID, body: models.TakeoverRequest) -> models.TakeoverAnswer:
    """Take the volume's next epoch (F4): one transaction, then a credential."""
    record, credential = await rack.volumes.takeover(
        head.id, volume, expected_version=body.expected_version, log=body.log, claim=body.claim, in_doubt=body.in_doubt
    )
    document = models.VolumeDocument.model_validate(record.to_json())
    return models.TakeoverAnswer(record=document, credential=credential.hex())


@router.post("/volumes/{volume}/members", operation_id="changeMembers")
async def change_members(rack: Rack, head: Head, volume: UUID, body: models.MembersRequest) -> models.RecordAnswer:
    """Add or remove a member of `current`, as primary of the epoch (F5)."""
    record = await rack.volumes.change_members(
        head.id,
        volume,
        epoch=body.epoch,
        expected_version=body.expected_version,
        claim=body.claim,
        add=_member(body.add),
        remove=_member(body.remove),
        lost=body.lost,
    )
    return _answer(record.to_json())


@router.post("/volumes/{volume}/columns", operation_id="setColumns")
async def set_columns(rack: Rack, head: Head, volume: UUID, body: models.ColumnsRequest) -> models.RecordAnswer:
    """Name the volume's columns, as primary of the epoch; a new volume becomes active."""
    record = await rack.volumes.set_columns(
        head.id,
        volume,
        epoch=body.epoch,
        expected_version=body.expected_version,
        claim=body.claim,
        columns=[Column(column.index, column.sled, column.nsid, column.blocks) for column in body.columns],
    )
    return _answer(record.to_json())


@router.post("/volumes/{volume}/lost-declared", operation_id="lostDeclared")
async def lost_declared(rack: Rack, head: Head, volume: UUID, body: models.LostDeclaredRequest) -> models.RecordAnswer:
    """Say, as primary of the epoch, that blocks of a range are declared lost where they could not be read."""
    record = await rack.volumes.lost_declared(
        head.id,
        volume,
        epoch=body.epoch,
        expected_version=body.expected_version,
        claim=body.claim,
        lost=LostRange(body.first, body.blocks, body.sleds_away),
    )
    return _answer(record.to_json())


@router.post("/volumes/{volume}/credential", operation_id="renewCredential")
async def renew(rack: Rack, head: Head, volume: UUID, body: models.RenewalRequest) -> models.CredentialAnswer:
    """A credential of the same epoch with a new term."""
    credential = await rack.renew(head.id, volume, epoch=body.epoch, claim=body.claim, expired=body.expired)
    return models.CredentialAnswer(credential=credential.hex())


@router.post("/volumes/{volume}/deleted", operation_id="confirmDeleted", status_code=204)
async def confirm_deleted(rack: Rack, head: Head, volume: UUID, body: models.DeletedRequest) -> None:
    """Say that the namespaces of a volume that is being deleted are gone, but for those on `strays`; its record goes
    too."""
    await rack.volumes.confirm_deleted(head.id, volume, epoch=body.epoch, claim=body.claim, strays=body.strays)


@router.post("/volumes/{volume}/log-removed", operation_id="confirmLogRemoved", status_code=204)
async def confirm_log_removed(rack: Rack, head: Head, volume: UUID) -> None:
    """Say that nothing of a deleted volume's log is left on this head."""
    await rack.cleanups.settle(volume, head=head.id)


@router.post("/volumes/{volume}/diverged", operation_id="reportDivergence")
async def diverged(rack: Rack, head: Head, volume: UUID, body: models.DivergenceRequest) -> models.RecordAnswer:
    """Say, as primary of the epoch, that another log holds committed records which the own one lacks: the volume
    freezes until an operator names the head whose log counts (D1)."""
    ends = [LogEnd(**end.model_dump()) for end in body.logs]
    record = await rack.recovery.freeze_diverged(
        head.id, volume, epoch=body.epoch, claim=body.claim, parted=body.parted, ends=ends
    )
    return _answer(record.to_json())


@router.post("/evidence", operation_id="reportCredential")
async def evidence(rack: Rack, head: Head, body: models.EvidenceRequest) -> models.RecordAnswer:
    """Hand in a credential that a sled showed; a valid one newer than the record freezes the volume (F4)."""
    record = await rack.recovery.judge_credential(head.id, bytes.fromhex(body.credential))
    return _answer(record.to_json())


def _answer(record: Mapping[str, Any]) -> models.RecordAnswer:
    return models.RecordAnswer(record=models.VolumeDocument.model_validate(record))


def _member(document: models.MemberDocument | None) -> Member | None:
    return None if document is None else Member(document.head, document.log)


def _addresses(addresses: Mapping[str, tuple[str, int]]) -> dict[str, Address]:
    return {service: checked_address(address) for service, address in addresses.items()}
