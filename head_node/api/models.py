"""The JSON of the REST interface: what requests may hold, checked, and what replies hold, described."""

from typing import Annotated, Any, Literal
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field

from head_node.authority.transitions import HOSTS_MAX, MEMBERS_MAX, NQN_CHARS_MAX, READ_WAIT_S_MAX
from head_node.store.records import BLOCK_BYTES, VOLUME_BYTES_MAX, NbdExport, VolumeState
from sled_controller.fabric.dhchap.secret import TEXT_CHARS_MAX

NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$"

U64 = Annotated[int, Field(strict=True, ge=0, lt=1 << 64)]
Name = Annotated[str, Field(pattern=NAME_PATTERN, description="1 to 63 letters, digits, dots, dashes, underscores")]
KeyHex = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$", description="raw Ed25519 public key, 32 bytes in hex")]
Claim = Annotated[str, Field(pattern=r"^[0-9a-f]{32}$", description="names the takeover request, drawn by the head")]
Host = Annotated[str, Field(min_length=1, max_length=253)]
Port = Annotated[int, Field(strict=True, ge=1, le=65535)]
ReadWait = Annotated[
    int | None,
    Field(
        strict=True,
        ge=0,
        le=READ_WAIT_S_MAX,
        description="seconds that a read waits for sleds that are away before it fails; null: for ever",
    ),
]
HostNqn = Annotated[str, Field(min_length=1, max_length=NQN_CHARS_MAX, description="a host's NQN, or `*` for any")]
Service = Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]{0,15}$")]
Addresses = Annotated[
    dict[Service, tuple[Host, Port]], Field(max_length=8, json_schema_extra={"additionalProperties": False})
]


class Body(BaseModel):
    """Base of request bodies: what is not known is refused."""

    model_config = ConfigDict(extra="forbid")


class GeometryDocument(BaseModel):
    data_shards: Annotated[int, Field(description="k")]
    parity_shards: Annotated[int, Field(description="m")]
    shard_blocks: Annotated[int, Field(description="blocks of 4096 bytes in a shard, its header among them")]


class MemberDocument(Body):
    head: UUID
    log: Annotated[UUID, Field(description="made with the log directory: a wiped log is another member")]


class ColumnDocument(Body):
    index: Annotated[int, Field(strict=True, ge=0, le=255)]
    sled: UUID
    nsid: Annotated[int, Field(strict=True, ge=1, lt=0xFFFFFFFF)]
    blocks: Annotated[int, Field(strict=True, ge=1, lt=1 << 52)]


class LostRangeRequest(Body):
    """Blocks of 4096 bytes to be declared lost where they cannot be read: they are errors until they are written."""

    first: Annotated[int, Field(strict=True, ge=0, lt=1 << 52, description="the first block")]
    blocks: Annotated[int, Field(strict=True, ge=1, lt=1 << 52, description="how many")]
    sleds_away: Annotated[
        bool, Field(strict=True, description="also what only sleds that are away may have: they never come back")
    ] = False


class VolumeDocument(BaseModel):
    """A volume record, as the store has it."""

    volume: UUID
    name: str
    size_bytes: int
    geometry: GeometryDocument
    epoch: int
    primary: UUID | None
    current: Annotated[list[MemberDocument], Field(description="members that hold all that was acknowledged")]
    heads: Annotated[list[UUID], Field(description="assigned heads, preferred primary first")]
    sleds: Annotated[list[UUID], Field(description="placement, one per column")]
    columns: list[ColumnDocument]
    state: VolumeState
    min_current: int
    version: int
    hosts: Annotated[list[str], Field(description="NQNs of hosts that may connect by NVMe/TCP; `*` is anybody")]
    exposed_stripes: Annotated[
        bool, Field(description="write stripes of exactly k shards while no more sleds can be had (D1: exposed)")
    ]
    read_wait_s: Annotated[
        int | None, Field(description="seconds that a read waits for sleds before it fails; null: for ever")
    ]
    lost: Annotated[list[LostRangeRequest], Field(description="ranges that the primary has yet to declare lost")]
    forced_epoch: Annotated[
        int, Field(description="epoch in which an operator last chose one log to go on from alone; 0: never")
    ] = 0
    doubtful_epoch: Annotated[
        int, Field(description="last epoch that a recovered log began without knowing where all others end; 0: none")
    ] = 0
    nbd: Annotated[NbdExport, Field(description="served by NBD: to any client, over TLS only, or not")] = NbdExport.ON
    nvme: Annotated[bool, Field(description="served by NVMe/TCP to the hosts on its list")] = True


class HealthDocument(BaseModel):
    """What the record and the live heads' reports say together."""

    exposed: Annotated[bool, Field(description="one more loss may lose acknowledged writes")]
    primary_live: Annotated[bool, Field(description="the primary reported within the last seconds")]
    serving: Annotated[bool, Field(description="the primary reports that it serves clients")]
    stopped: Annotated[str, Field(description="why clients wait: fewer members than `min_current`; empty otherwise")]
    members: Annotated[int, Field(description="size of `current`")]
    degraded: Annotated[str, Field(description="which columns are missing, and why if that is known; empty otherwise")]
    reports: Annotated[dict[UUID, dict[str, Any]], Field(description="by live head, as that head reports it")]


class VolumeStatus(VolumeDocument):
    health: HealthDocument
    frozen_because: str | None = None
    recover_wait_ms: Annotated[
        int | None, Field(description="of a frozen volume: how long until it may be recovered (F7)")
    ] = None


class VolumeList(BaseModel):
    volumes: list[VolumeStatus]


class VolumeRequest(Body):
    name: Name
    size_bytes: Annotated[int, Field(strict=True, ge=BLOCK_BYTES, le=VOLUME_BYTES_MAX, multiple_of=BLOCK_BYTES)]
    hosts: Annotated[list[HostNqn], Field(max_length=HOSTS_MAX)] = []
    min_members: Annotated[
        int,
        Field(
            strict=True,
            ge=1,
            le=MEMBERS_MAX,
            description="heads that must have every acknowledged write: with fewer the volume is stopped, not exposed",
        ),
    ] = 1
    exposed_stripes: Annotated[
        bool,
        Field(
            strict=True,
            description="write stripes of exactly k shards while no more sleds can be had; else writes wait then",
        ),
    ] = True
    read_wait_s: ReadWait = None
    nbd: Annotated[
        NbdExport,
        Field(description="serve it by NBD: to any client as each head allows, over TLS only, or not at all"),
    ] = NbdExport.ON
    nvme: Annotated[bool, Field(strict=True, description="serve it by NVMe/TCP to the hosts on its list")] = True


class VolumePolicyRequest(Body):
    """What changes; a member that is left out stays as it is."""

    exposed_stripes: Annotated[
        bool | None,
        Field(
            strict=True,
            description="write stripes of exactly k shards while no more sleds can be had; else writes wait then",
        ),
    ] = None
    read_wait_s: ReadWait = None
    nbd: Annotated[
        NbdExport | None,
        Field(
            description="serve it by NBD: to any client as each head allows, over TLS only, or not at all; with host"
            " secrets it cannot be `on`"
        ),
    ] = None
    nvme: Annotated[bool | None, Field(strict=True, description="serve it by NVMe/TCP to the hosts on its list")] = None


class LostDeclaredRequest(LostRangeRequest):
    epoch: U64
    expected_version: U64
    claim: Claim


class RangeDocument(BaseModel):
    first: Annotated[int, Field(description="the first block")]
    blocks: int


class UnreadableDocument(BaseModel):
    """What the primary found unreadable when it last read it: no k shards give it, though all sleds answered."""

    blocks: int
    more: Annotated[bool, Field(description="there are more than the primary keeps in mind")]
    ranges: Annotated[list[RangeDocument], Field(description="the first of them")]
    lost: Annotated[int, Field(description="blocks that were declared lost and not written since")]


class HostRequest(Body):
    nqn: HostNqn


class HostProof(BaseModel):
    """On which terms a host proves itself by DH-HMAC-CHAP; secrets are never shown."""

    hash: Annotated[str, Field(description="the weakest that counts: sha256, sha384, sha512")]
    group: Annotated[str, Field(description="the weakest that counts: null, ffdhe2048 ... ffdhe8192")]
    both_ways: Annotated[bool, Field(description="whether there is a secret for the controller to prove itself")]


class HostList(BaseModel):
    hosts: Annotated[list[str], Field(description="NQNs, `*` is anybody; with none nobody may connect by NVMe/TCP")]
    proofs: Annotated[dict[str, HostProof], Field(description="those that have to prove themselves, and how")]


class HostSecretRequest(Body):
    """Secrets in the form that nvme-cli writes and Linux reads, `DHHC-1:hh:base64:`."""

    secret: Annotated[str, Field(max_length=TEXT_CHARS_MAX, description="what the host has to know")]
    controller_secret: Annotated[
        str | None, Field(max_length=TEXT_CHARS_MAX, description="what the heads know, for hosts that ask for a proof")
    ] = None
    hash: Annotated[Literal["sha256", "sha384", "sha512"], Field(description="the weakest that counts")] = "sha256"
    group: Annotated[
        Literal["null", "ffdhe2048", "ffdhe3072", "ffdhe4096", "ffdhe6144", "ffdhe8192"],
        Field(description="the weakest that counts; the cost of a connection rises with it"),
    ] = "ffdhe2048"


class RecoverRequest(Body):
    epoch: Annotated[U64, Field(description="the highest epoch seen on any sled or log; the volume goes on above it")]
    head: Annotated[
        Name | None,
        Field(description="id or name of the head whose log alone is to count"),
    ] = None
    may_lose: Annotated[bool, Field(strict=True, description="with `head`: what that may lose is accepted")] = False


class DeletionDocument(BaseModel):
    gone: Annotated[bool, Field(description="whether the record is gone already")]
    record: VolumeDocument | None


class HeadDocument(BaseModel):
    id: UUID
    name: str
    public_key: str
    addresses: Annotated[dict[str, tuple[str, int]], Field(description="by service: peer, nbd, nvme")]
    enrolled_ms: int
    revoked: bool
    number: Annotated[int, Field(description="no other head's; its NVMe controller ids follow from it")]


class RoleDocument(BaseModel):
    volume: UUID
    name: str
    role: Annotated[str, Field(description="primary, secondary (a member of `current`), or assigned")]
    epoch: int


class HeadStatus(HeadDocument):
    live: Annotated[bool, Field(description="reported within the last seconds")]
    reported_ms: int | None
    roles: list[RoleDocument]
    report: dict[str, Any] | None


class SledDocument(BaseModel):
    id: UUID
    name: str
    public_key: str
    nqn: str
    address: tuple[str, int]
    capacity_blocks: Annotated[int, Field(description="blocks of 4096 bytes; 0 when unknown")]
    enrolled_ms: int
    boot_counter: Annotated[int, Field(description="of the newest start that the authority has seen; 0: none yet")]
    accepted: Annotated[int, Field(description="how often an operator accepted a start that went back")]


class SledStatus(SledDocument):
    reachable: Annotated[bool | None, Field(description="from some live head; null when nobody says")]
    refused: Annotated[
        str, Field(description="why heads and authority refuse it: its boot counter went back; empty otherwise")
    ]
    volumes: Annotated[list[UUID], Field(description="volumes placed here")]
    allocated_blocks: int


class NodeList(BaseModel):
    heads: list[HeadStatus]
    sleds: list[SledStatus]


class SledRequest(Body):
    """The content of the sled's identity.json, with its address."""

    id: UUID
    name: Name
    public_key: KeyHex
    nqn: Annotated[str, Field(min_length=1, max_length=223)]
    host: Host
    port: Port
    capacity_blocks: Annotated[int, Field(strict=True, ge=0, lt=1 << 52)] = 0


class RevocationDocument(BaseModel):
    head: HeadDocument
    volumes: list[VolumeDocument]
    orphaned: Annotated[list[UUID], Field(description="volumes without any member left")]
    fences: Annotated[
        dict[UUID, dict[UUID, str]],
        Field(
            description="by volume of which the head may hold a credential that has not expired, and by sled: `fenced`,"
            " or why not yet; `/v1/unfenced` has what is still tried"
        ),
    ]
    credentials_end_ms: Annotated[int, Field(description="where no fence could be raised, writes may go on until then")]


class UnfencedDocument(BaseModel):
    """A revoked head, and the sleds on which it may still write to a volume."""

    volume: UUID
    head: UUID
    epoch: Annotated[U64, Field(description="the highest that the head was given")]
    above: Annotated[U64, Field(description="the epoch to fence the sleds with, which no head has; 0 for none yet")]
    end_ms: Annotated[int, Field(description="every credential that the head may hold has expired then")]
    sleds: Annotated[list[UUID], Field(description="where the fence is not known to be above it; tried until it is")]


class UnfencedList(BaseModel):
    unfenced: list[UnfencedDocument]


class TokenRequest(Body):
    uses: Annotated[int, Field(strict=True, ge=1, le=1000)] = 1
    valid_s: Annotated[int, Field(strict=True, ge=1, le=30 * 86400)] = 3600


class TokenStatus(BaseModel):
    id: str
    uses_left: int
    expires_ms: int


class TokenDocument(TokenStatus):
    token: Annotated[str, Field(description="shown only here; give it to the head by a safe way")]


class TokenList(BaseModel):
    tokens: list[TokenStatus]


class KeyDocument(BaseModel):
    key_id: int
    public_key: str
    signing: bool
    use_from_ms: int
    retire_ms: int | None


class ReplyKeyDocument(BaseModel):
    """What signs replies to heads; the higher number counts."""

    number: int
    public_key: str
    issued_ms: int
    expires_ms: int


class KeyList(BaseModel):
    version: int
    root_public_key: str
    root_key: Annotated[str, Field(description="where the root key is: file, command, away or memory")]
    root_key_needed: Annotated[str, Field(description="why the root key is needed now; empty when it is not")]
    reply_key: ReplyKeyDocument | None
    keys: list[KeyDocument]
    sleds_due: Annotated[
        list[UUID], Field(description="sleds that have yet to take a set which took keys out at once")
    ] = []


class RotateRequest(Body):
    now: Annotated[
        bool,
        Field(
            strict=True,
            description="take the former keys out of the set at once, and bring it to all sleds: one may be stolen",
        ),
    ] = False


class KeyRotation(KeyList):
    sleds: Annotated[
        dict[UUID, str], Field(description="with `now`: `taken` by sled, or why it could not be brought there yet")
    ] = {}


RootRequestKind = Annotated[str, Field(pattern=r"^[a-z][a-z-]{0,39}$", description="key-set or reply-key")]


class RootRequestDocument(BaseModel):
    kind: RootRequestKind
    domain: Annotated[str, Field(description="hex; the root key signs domain and body, one after the other")]
    body: Annotated[str, Field(description="hex; a key set or a reply key's certificate without its signature")]


class RootRequestList(BaseModel):
    root_public_key: str
    requests: list[RootRequestDocument]


class RootSignatureRequest(Body):
    kind: RootRequestKind
    body: Annotated[str, Field(pattern=r"^([0-9a-f]{2}){1,4096}$", description="as it was requested")]
    signature: Annotated[str, Field(pattern=r"^[0-9a-f]{128}$", description="Ed25519, by the root key")]


class EventList(BaseModel):
    events: list[dict[str, Any]]


class BackupDocument(BaseModel):
    file: Annotated[str, Field(description="path below the authority's state directory")]
    revision: int
    sealed_to: Annotated[str | None, Field(description="the operator's key that opens it; null: it holds no secrets")]


class HealthzDocument(BaseModel):
    status: str


class EnrolmentRequest(Body):
    id: UUID
    name: Name
    public_key: KeyHex
    addresses: Addresses
    token_id: Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")]
    proof: Annotated[str, Field(pattern=r"^[0-9a-f]{128}$", description="the token's signature over id and key")]


class AddressesRequest(Body):
    addresses: Addresses


class HeadAnswer(BaseModel):
    head: HeadDocument


class RecordAnswer(BaseModel):
    record: VolumeDocument


class TakeoverRequest(Body):
    expected_version: U64
    log: UUID
    claim: Claim
    in_doubt: Annotated[
        bool, Field(description="the log was recovered from disk, and where all others end is not known")
    ] = False


class TakeoverAnswer(RecordAnswer):
    credential: Annotated[str, Field(description="560 bytes in hex, see docs/credentials.md")]


class MembersRequest(Body):
    epoch: U64
    expected_version: U64
    claim: Claim
    add: MemberDocument | None = None
    remove: MemberDocument | None = None
    lost: Annotated[bool, Field(description="the removed log is gone: its head has another one now")] = False


class ColumnsRequest(Body):
    epoch: U64
    expected_version: U64
    claim: Claim
    columns: Annotated[list[ColumnDocument], Field(max_length=64)]


class EpochRequest(Body):
    epoch: U64
    claim: Claim


class LogEndDocument(BaseModel):
    """Where the log of one head stands."""

    head: UUID
    log: UUID
    tail: Annotated[U64, Field(description="its last durable operation")]
    tail_epoch: U64
    committed: Annotated[U64, Field(description="the last operation that it knows as committed")]
    committed_epoch: U64


class DivergenceRequest(Body):
    epoch: U64
    claim: Claim
    parted: Annotated[U64, Field(description="the last operation that both logs share")]
    logs: Annotated[list[LogEndDocument], Field(min_length=2, max_length=2)]


class DeletedRequest(EpochRequest):
    strays: Annotated[list[UUID], Field(max_length=64)] = []


class RenewalRequest(EpochRequest):
    expired: bool = False


class CredentialAnswer(BaseModel):
    credential: str


class CleanupDocument(BaseModel):
    """A deleted volume that something may be left of."""

    volume: UUID
    name: str
    epoch: U64
    blocks: Annotated[int, Field(description="of 4096 bytes, of each namespace")]
    sleds: Annotated[list[UUID], Field(description="where a namespace may be left; deleted when they are back")]
    heads: Annotated[list[UUID], Field(description="where a log may be left; removed when they are back")]


class CleanupList(BaseModel):
    cleanups: list[CleanupDocument]


class EvidenceRequest(Body):
    credential: Annotated[str, Field(pattern=r"^([0-9a-f]{2}){1,1024}$")]


class ViewDocument(BaseModel):
    revision: Annotated[int, Field(description="give it back as `after` to wait for the next change")]
    heads: list[HeadDocument]
    sleds: list[SledDocument]
    key_set: Annotated[str, Field(description="signed by the root key, in hex; see docs/credentials.md")]
    volumes: list[VolumeDocument]
    secrets: Annotated[
        dict[UUID, str], Field(description="of their hosts, by volume, sealed to this head; see docs/authentication.md")
    ]
    deleted: Annotated[list[UUID], Field(description="deleted volumes whose log this head has not removed yet")]


class ProblemDocument(BaseModel):
    """RFC 9457. Some types have more members: `record`, `instance`, `errors`."""

    type: str
    title: str
    status: int
    detail: str
