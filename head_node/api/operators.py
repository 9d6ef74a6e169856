"""The routes that people and rackctl use, with an operator's bearer token.

A route's `dependencies` name the least role that may use it (`access.py`).
"""

from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Query, Request, Response

from head_node.api import models, overview, time_models
from head_node.api.access import ADMIN, BEARER, OPERATOR, VIEWER
from head_node.api.heads import Rack
from head_node.authority.errors import Conflict, RequestRefused
from head_node.authority.hosts import Hosts
from head_node.authority.key_push import TAKEN
from head_node.authority.keyring import KeyRing
from head_node.authority.nodes import checked_address, parse_key
from head_node.authority.recovery import Heir
from head_node.authority.time_repair import TAKEN as TIME_TAKEN
from head_node.authority.time_repair import SledTimeReport
from head_node.authority.volumes import Unchanged
from head_node.store.records import LostRange, VolumeRecord
from sled_controller.environment import civil_ms
from sled_controller.errors import SecretMalformed
from sled_controller.fabric.dhchap.algorithms import GroupId, HashId
from sled_controller.fabric.dhchap.secret import Secret
from sled_controller.fabric.dhchap.terms import Terms

BACKUP_FILE = "store.backup"

router = APIRouter(prefix="/v1", tags=["operators"], dependencies=[BEARER])


@router.post("/volumes", operation_id="createVolume", dependencies=[OPERATOR], status_code=201)
async def create_volume(rack: Rack, body: models.VolumeRequest, response: Response) -> models.VolumeStatus:
    """Place a volume on the rack; heads make it within seconds (state `creating`, then `active`)."""
    record = await rack.volumes.create(
        body.name, body.size_bytes, body.hosts, body.min_members,
        exposed_stripes=body.exposed_stripes, read_wait_s=body.read_wait_s, nbd=body.nbd, nvme=body.nvme,
    )  # fmt: skip
    response.headers["location"] = f"/v1/volumes/{record.volume}"
    return await overview.volume_status(rack, record)


@router.get("/volumes", operation_id="listVolumes", dependencies=[VIEWER])
async def list_volumes(rack: Rack) -> models.VolumeList:
    """All volumes, by name."""
    volumes = sorted((entry.value for entry in (await rack.ledger.rack()).volumes.values()), key=lambda v: v.name)
    return models.VolumeList(volumes=[await overview.volume_status(rack, volume) for volume in volumes])


@router.get("/volumes/{volume}", operation_id="inspectVolume", dependencies=[VIEWER])
async def inspect_volume(rack: Rack, volume: str) -> models.VolumeStatus:
    """One volume by id or name: record and health."""
    return await overview.volume_status(rack, await rack.volumes.find(volume))


@router.patch("/volumes/{volume}", operation_id="setVolumePolicy", dependencies=[OPERATOR])
async def set_policy(rack: Rack, volume: str, body: models.VolumePolicyRequest) -> models.VolumeStatus:
    """Say by what clients reach a volume, and what it does while sleds are away; its heads obey within moments, also
    where clients are connected."""
    record = await rack.volumes.find(volume)
    if body.nbd is not None or body.nvme is not None:
        record = await rack.hosts.choose_exports(record.volume, nbd=body.nbd, nvme=body.nvme)
    given = "read_wait_s" in body.model_fields_set
    if given or body.exposed_stripes is not None:
        record = await rack.volumes.set_sled_policy(
            record.volume,
            exposed_stripes=body.exposed_stripes,
            read_wait_s=body.read_wait_s if given else Unchanged.UNCHANGED,
        )
    return await overview.volume_status(rack, record)


@router.get("/volumes/{volume}/unreadable", operation_id="listUnreadable", dependencies=[VIEWER])
async def list_unreadable(rack: Rack, volume: str) -> models.UnreadableDocument:
    """Blocks that no k shards give, as far as the primary has met them."""
    return overview.unreadable(rack, await rack.volumes.find(volume))


@router.post("/volumes/{volume}/lost", operation_id="declareLost", dependencies=[ADMIN], status_code=202)
async def declare_lost(rack: Rack, volume: str, body: models.LostRangeRequest) -> models.VolumeStatus:
    """Declare blocks lost. The primary reads each block of the range: what can be read stays, the rest is an error
    until it is written, and holds nothing up. The range is in the volume's `lost` until that is done."""
    found = await rack.volumes.find(volume)
    lost = LostRange(body.first, body.blocks, body.sleds_away)
    return await overview.volume_status(rack, await rack.volumes.declare_lost(found.volume, lost))


@router.delete("/volumes/{volume}", operation_id="deleteVolume", dependencies=[OPERATOR], status_code=202)
async def delete_volume(rack: Rack, volume: str) -> models.DeletionDocument:
    """Delete a volume by id or name: its primary removes the namespaces, then the record goes."""
    record = await rack.volumes.delete((await rack.volumes.find(volume)).volume)
    return models.DeletionDocument(gone=record is None, record=None if record is None else _volume(record))


@router.get("/cleanups", operation_id="listCleanups", dependencies=[VIEWER])
async def list_cleanups(rack: Rack) -> models.CleanupList:
    """Deleted volumes that something may be left of, on sleds and heads that were away."""
    found = sorted((entry.value for entry in (await rack.ledger.rack()).cleanups.values()), key=lambda c: c.name)
    return models.CleanupList(cleanups=[models.CleanupDocument.model_validate(c.to_json()) for c in found])


@router.delete("/cleanups/{volume}/sleds/{sled}", operation_id="giveUpCleanup", dependencies=[ADMIN], status_code=204)
async def give_up_cleanup(rack: Rack, volume: UUID, sled: UUID) -> None:
    """Say that a sled is gone for good: what is left of a deleted volume there is not waited for any more."""
    await rack.cleanups.give_up(volume, sled)


@router.get("/volumes/{volume}/hosts", operation_id="listHosts", dependencies=[VIEWER])
async def list_hosts(rack: Rack, volume: str) -> models.HostList:
    """Who may connect to a volume by NVMe/TCP, and who has to prove himself."""
    return _hosts(await rack.hosts.of((await rack.volumes.find(volume)).volume))


@router.post("/volumes/{volume}/hosts", operation_id="admitHost", dependencies=[OPERATOR])
async def admit_host(rack: Rack, volume: str, body: models.HostRequest) -> models.HostList:
    """Let a host connect by NVMe/TCP, `*` any host; nothing changes when it may already."""
    found = await rack.volumes.find(volume)
    return _hosts(await rack.hosts.admit(found.volume, body.nqn))


@router.delete("/volumes/{volume}/hosts/{nqn:path}", operation_id="expelHost", dependencies=[OPERATOR])
async def expel_host(rack: Rack, volume: str, nqn: str) -> models.HostList:
    """Take a host off the list, and forget its secrets; its connections are ended by the heads within moments."""
    found = await rack.volumes.find(volume)
    return _hosts(await rack.hosts.expel(found.volume, nqn))


@router.put("/volumes/{volume}/host-secrets/{nqn:path}", operation_id="setHostSecret", dependencies=[OPERATOR])
async def set_host_secret(rack: Rack, volume: str, nqn: str, body: models.HostSecretRequest) -> models.HostList:
    """Have a host prove itself with this secret from now on, in place of a former one; the host is admitted with it.

    Connections made with a former secret end after a minute in which the host did not authenticate with this one; those
    of a host that had none are ended. Secrets are never shown.
    """
    found = await rack.volumes.find(volume)
    return _hosts(await rack.hosts.authenticate(found.volume, nqn, _terms(body)))


@router.delete("/volumes/{volume}/host-secrets/{nqn:path}", operation_id="removeHostSecret", dependencies=[OPERATOR])
async def remove_host_secret(rack: Rack, volume: str, nqn: str) -> models.HostList:
    """Believe a host by its name from now on. It stays on the list."""
    found = await rack.volumes.find(volume)
    return _hosts(await rack.hosts.trust(found.volume, nqn))


@router.post("/volumes/{volume}/freeze", operation_id="freezeVolume", dependencies=[OPERATOR])
async def freeze_volume(rack: Rack, volume: str) -> models.VolumeStatus:
    """Stop a volume: its primary steps down when it hears of it, nobody takes it over, until it is recovered."""
    found = await rack.volumes.find(volume)
    return await overview.volume_status(rack, await rack.recovery.freeze(found.volume, "an operator has frozen it"))


@router.post("/volumes/{volume}/recover", operation_id="recoverVolume", dependencies=[ADMIN])
async def recover_volume(rack: Rack, volume: str, body: models.RecoverRequest) -> models.VolumeStatus:
    """Set a frozen volume going again, above the highest epoch that was seen anywhere, once the term of every
    credential that may be about is over (F7). With `head` it goes on from the log of that head alone: one that is no
    member, or, where two logs differ below what was committed, the one that counts. What that may lose is said in the
    refusal (`may-lose`) of a request without `may_lose`."""
    found = await rack.volumes.find(volume)
    heir = None
    if body.head is not None:
        heir = Heir(overview.find_head(await rack.ledger.rack(), body.head), body.may_lose)
    return await overview.volume_status(rack, await rack.recovery.recover(found.volume, body.epoch, heir))


@router.get("/nodes", operation_id="listNodes", dependencies=[VIEWER])
async def list_nodes(rack: Rack) -> models.NodeList:
    """Heads with roles and latest report, sleds with what is placed on them."""
    seen = await rack.ledger.rack()
    return models.NodeList(heads=overview.heads(rack, seen), sleds=overview.sleds(rack, seen))


@router.get("/heads", operation_id="listHeads", dependencies=[VIEWER])
async def list_heads(rack: Rack) -> list[models.HeadStatus]:
    """Heads with roles and latest report."""
    return overview.heads(rack, await rack.ledger.rack())


@router.get("/sleds", operation_id="listSleds", dependencies=[VIEWER])
async def list_sleds(rack: Rack) -> list[models.SledStatus]:
    """Sleds with what is placed on them."""
    return overview.sleds(rack, await rack.ledger.rack())


@router.post("/sleds", operation_id="enrolSled", dependencies=[ADMIN], status_code=201)
async def enrol_sled(rack: Rack, body: models.SledRequest) -> models.SledDocument:
    """Enrol a sled, or tell its new name, address or capacity; key and NQN stay."""
    record = await rack.nodes.enrol_sled(
        body.id,
        body.name,
        parse_key(body.public_key),
        body.nqn,
        checked_address((body.host, body.port)),
        body.capacity_blocks,
    )
    return models.SledDocument.model_validate(record.to_json())


@router.post("/sleds/{sled}/accept", operation_id="acceptSled", dependencies=[ADMIN])
async def accept_sled(rack: Rack, sled: UUID) -> models.SledDocument:
    """Let a sled serve again whose boot counter went back: it was put back to an older state, and may have forgotten
    fences until the volumes' heads raise them again."""
    return models.SledDocument.model_validate((await rack.starts.accept(sled)).to_json())


@router.post("/heads/{head}/revoke", operation_id="revokeHead", dependencies=[ADMIN])
async def revoke_head(rack: Rack, head: str) -> models.RevocationDocument:
    """Put a head (by id or name) out: unenrol it, take a new epoch on its volumes, fence it off now on every sled of
    each volume of which it may hold a credential, also one that it is no member of any more. What is away is fenced
    when it is back (`/v1/unfenced`)."""
    record = overview.find_head(await rack.ledger.rack(), head)
    done = await rack.nodes.revoke_head(record.id)
    rack.authenticator.forget(record.id)
    return models.RevocationDocument(
        head=models.HeadDocument.model_validate(done.head.to_json()),
        volumes=[_volume(volume) for volume in done.changed],
        orphaned=list(done.orphaned),
        fences={volume: dict(sleds) for volume, sleds in done.fences.items()},
        credentials_end_ms=rack.issue.now_ms() + rack.policy.credential_term_ms,
    )


@router.get("/unfenced", operation_id="listUnfenced", dependencies=[VIEWER])
async def list_unfenced(rack: Rack) -> models.UnfencedList:
    """Revoked heads that may hold a credential which has not expired, and the sleds not fenced above it yet."""
    found = await rack.ledger.unfenced()
    return models.UnfencedList(unfenced=[models.UnfencedDocument.model_validate(one.to_json()) for one in found])


@router.delete(
    "/unfenced/{volume}/{head}/sleds/{sled}", operation_id="giveUpFencing", dependencies=[ADMIN], status_code=204
)
async def give_up_fencing(rack: Rack, volume: UUID, head: UUID, sled: UUID) -> None:
    """Say that a sled is gone for good: it is not waited for any more to fence a revoked head off."""
    await rack.unfenced.give_up(volume, head, sled)


@router.post("/join-tokens", operation_id="createJoinToken", dependencies=[ADMIN], status_code=201)
async def create_token(rack: Rack, body: models.TokenRequest | None = None) -> models.TokenDocument:
    """A token with which a limited number of heads can enrol for a limited time."""
    asked = body or models.TokenRequest()
    authority_ca = None if rack.certificate is None else rack.certificate.fingerprint
    text, kept = await rack.nodes.new_token(asked.uses, asked.valid_s * 1000, authority_ca)
    return models.TokenDocument(token=text, id=kept["id"], uses_left=kept["uses_left"], expires_ms=kept["expires_ms"])


@router.get("/join-tokens", operation_id="listJoinTokens", dependencies=[VIEWER])
async def list_tokens(rack: Rack) -> models.TokenList:
    """Tokens without their secrets."""
    return models.TokenList(tokens=[models.TokenStatus.model_validate(token) for token in await rack.nodes.tokens()])


@router.delete("/join-tokens/{token}", operation_id="deleteJoinToken", dependencies=[ADMIN], status_code=204)
async def delete_token(rack: Rack, token: str) -> None:
    """Make a token unusable."""
    await rack.nodes.delete_token(token)


@router.get("/keys", operation_id="listKeys", dependencies=[VIEWER])
async def list_keys(rack: Rack) -> models.KeyList:
    """The keys that sign credentials, in the key set that sleds get."""
    return models.KeyList(**_keys(rack, await rack.keyring.current()), sleds_due=sorted(await rack.key_push.due()))


@router.post("/keys/rotate", operation_id="rotateKeys", dependencies=[ADMIN])
async def rotate_keys(rack: Rack, body: models.RotateRequest | None = None) -> models.KeyRotation:
    """Publish a new signing key; it signs after the publication time, the older ones retire after a term.

    With `now` the older ones leave the set at once, for when one may be stolen: the set is brought to all sleds, and
    heads get new credentials. The answer says which sleds have it; the others are tried until they do (`sleds_due`).
    """
    if body is not None and body.now:
        ring, sleds = await rack.key_push.rotate_at_once()
        due = sorted(sled for sled, result in sleds.items() if result != TAKEN)
        return models.KeyRotation(**_keys(rack, ring), sleds_due=due, sleds=dict(sleds))
    ring = await rack.keyring.rotate()
    rack.reports.add_event("keys-rotated", version=ring.version)
    return models.KeyRotation(**_keys(rack, ring))


@router.post("/keys/reply/rotate", operation_id="rotateReplyKey", dependencies=[ADMIN])
async def rotate_reply_key(rack: Rack) -> models.KeyList:
    """Make a new key that signs replies to heads; the one before is worthless at every head that has seen it."""
    made = await rack.replies.rotate()
    rack.reports.add_event("reply-key-rotated", number=made.certificate.number)
    return models.KeyList(**_keys(rack, await rack.keyring.current()))


@router.get("/keys/requests", operation_id="listRootRequests", dependencies=[ADMIN])
async def list_root_requests(rack: Rack) -> models.RootRequestList:
    """What waits for the signature of a root key that is away."""
    waiting = await rack.requests.waiting()
    requests = [
        models.RootRequestDocument(kind=kind, domain=prepared.domain.hex(), body=prepared.body.hex())
        for kind, prepared in sorted(waiting.items())
    ]
    return models.RootRequestList(root_public_key=rack.root_public.hex(), requests=requests)


@router.post("/keys/install", operation_id="installRootSignature", status_code=204, dependencies=[ADMIN])
async def install_root_signature(rack: Rack, body: models.RootSignatureRequest) -> None:
    """Put in place what waited, with the signature that the root key has made elsewhere."""
    await rack.requests.install(body.kind, bytes.fromhex(body.body), bytes.fromhex(body.signature))
    await rack.make_keys()


@router.get("/time", operation_id="showTime", dependencies=[VIEWER])
async def show_time(rack: Rack) -> time_models.TimeDocument:
    """What time it is for the authority, and for each sled, which is asked."""
    serial, pending, sleds = await rack.time.look()
    return _time(rack, serial, sleds, set(pending))


@router.post("/time", operation_id="setTime", dependencies=[ADMIN])
async def set_time(rack: Rack, body: time_models.TimeRequest) -> time_models.TimeDocument:
    """Say that the authority's clock is right now, after clocks were wrong. Issue time goes on from it, forward or
    back; each sled is brought a statement of time by the root key; a new key signs. Sleds that are away get it when
    they are back."""
    serial, sleds = await rack.time.set(body.now_ms)
    return _time(rack, serial, sleds, {each.sled.id for each in sleds if each.result != TIME_TAKEN})


@router.get("/events", operation_id="listEvents", dependencies=[VIEWER])
async def list_events(rack: Rack, after: Annotated[int, Query(ge=0, lt=1 << 63)] = 0) -> models.EventList:
    """What happened lately (takeovers, fenced-off heads, ...), oldest first, above sequence `after`."""
    return models.EventList(events=[event.to_json() for event in rack.reports.events(after)])


@router.post("/backup", operation_id="backUpStore", dependencies=[ADMIN], status_code=201)
async def back_up(request: Request, rack: Rack) -> models.BackupDocument:
    """Write a consistent copy of the store, sealed to the operator's key if one is set; a rack started from it begins
    frozen. No copy holds what signs."""
    folder = request.app.state.backup_folder
    if folder is None:
        raise Conflict("this authority has no directory for backups")
    revision = await rack.back_up(folder / BACKUP_FILE)
    public = rack.policy.backup_public
    return models.BackupDocument(
        file=BACKUP_FILE, revision=revision, sealed_to=None if public is None else public.hex()
    )


def _terms(body: models.HostSecretRequest) -> Terms:
    """Raises RequestRefused, which repeats no secret."""
    try:
        return Terms(
            Secret.parse(body.secret),
            None if body.controller_secret is None else Secret.parse(body.controller_secret),
            HashId[body.hash.upper()],
            GroupId[body.group.upper()],
        )
    except (SecretMalformed, ValueError) as error:
        raise RequestRefused(str(error)) from None


def _hosts(found: Hosts) -> models.HostList:
    record, secrets = found
    proofs = {
        nqn: models.HostProof(
            hash=terms.hash_floor.name.lower(),
            group=terms.group_floor.name.lower(),
            both_ways=terms.controller_secret is not None,
        )
        for nqn, terms in secrets.terms.items()
    }
    return models.HostList(hosts=list(record.hosts), proofs=proofs)


def _volume(record: VolumeRecord) -> models.VolumeDocument:
    return models.VolumeDocument.model_validate(record.to_json())


def _time(rack: Rack, serial: int, sleds: list[SledTimeReport], pending: set[UUID]) -> time_models.TimeDocument:
    return time_models.TimeDocument(
        clock_ms=civil_ms(rack.env.clock),
        issue_ms=rack.issue.now_ms(),
        serial=serial,
        sleds=[
            time_models.SledTimeDocument(
                sled=each.sled.id,
                name=each.sled.name,
                time_ms=each.time_ms or None,
                pending=each.sled.id in pending,
                result=each.result,
            )
            for each in sorted(sleds, key=lambda each: each.sled.name)
        ],
    )


def _keys(rack: Rack, ring: KeyRing) -> dict[str, Any]:
    """What there is to say of a key ring, as the fields of `KeyList`."""
    signer = ring.signer(rack.issue.now_ms())
    keys = [
        models.KeyDocument(
            key_id=key.key_id,
            public_key=key.public.hex(),
            signing=key is signer,
            use_from_ms=key.use_from_ms,
            retire_ms=key.retire_ms,
        )
        for key in ring.keys
    ]
    reply = None if rack.replies.current is None else rack.replies.current.certificate
    return {
        "version": ring.version,
        "root_public_key": rack.root_public.hex(),
        "root_key": rack.root.kind,
        "root_key_needed": rack.root_needed,
        "reply_key": None
        if reply is None
        else models.ReplyKeyDocument(
            number=reply.number,
            public_key=reply.public.hex(),
            issued_ms=reply.issued_ms,
            expires_ms=reply.expires_ms,
        ),
        "keys": keys,
    }
