"""Everything that takes bytes from outside: what it may raise, and valid inputs to begin with."""

import asyncio
import hashlib
import json
import struct
import tempfile
from uuid import UUID

import numpy as np
from crc32c import crc32c
from fuzz.fuzzer import Target
from kit import dhchap, firmware, host
from kit.cluster import record_of
from kit.nvme_export import Host as NvmeHost
from kit.nvme_export import Port as NvmePort
from kit.nvme_export import at as blocks_at
from kit.nvme_export import sqe as standard_sqe
from kit.target import Rig, Wire
from rackctl.simulation.log_disk import Content, MemoryDisk, MemoryFile
from sled_board.errors import ImageError
from sled_board.image import KeySet as FirmwareKeySet
from sled_board.image import fit, layout, read_image
from sled_board.image.build import with_signatures
from sled_board.image.key_set import key_id

from head_node.authority import reply_certificate, signatures
from head_node.authority.reply_certificate import CertificateRefused, ReplyCertificate
from head_node.cluster import frames
from head_node.cluster.errors import ClusterError
from head_node.cluster.frames import Purpose
from head_node.cluster.link import LinkContext, PeerLink
from head_node.config import HeadSettings
from head_node.export import nbd_protocol as nbd
from head_node.export.errors import ExportError
from head_node.export.interface import Security
from head_node.export.nbd_client_core import ClientCore
from head_node.export.nbd_negotiation import Negotiation, StartTls
from head_node.export.nvme import reservations as reservation_wire
from head_node.export.nvme.subsystem import Access
from head_node.export.tls import TlsPolicy
from head_node.store.errors import RecordMalformed
from head_node.store.host_secrets import HostSecrets
from head_node.store.records import RackView, VolumeRecord
from head_node.volume import checkpoint, records, segments
from head_node.volume.blockmap import ENTRY, PAGE_BLOCKS
from head_node.volume.errors import VolumeError
from head_node.volume.reservations import Reservations, ReservationType, decide
from head_node.volume.segments import Batch, Position
from head_node.volume.shard import SHARD_BLOCK, decode_shard_header, encode_shard_header
from head_node.volume.stripes import STRIPE_ENTRY
from sled_controller import credential as credentials
from sled_controller import keyset
from sled_controller.credential import parse_credential, verify
from sled_controller.environment import Environment
from sled_controller.errors import SledError
from sled_controller.fabric import pdu, vendor
from sled_controller.fabric.dhchap.algorithms import GroupId, HashId
from sled_controller.fabric.dhchap.messages import MESSAGE_BYTES_MAX
from sled_controller.fabric.dhchap.secret import Secret
from sled_controller.fabric.host import HostQueue
from sled_controller.keyset import KeySet
from sled_controller.session import Hello, PeerHandshake
from sled_controller.settings import SettingsError, merge
from sled_controller.storage import superblock
from sled_controller.storage.records import RECORD, decode_record
from sled_controller.storage.records import RecordMalformed as TableRecordMalformed
from spdk_bindings.nvme import DATASET_RANGE, AdminOpcode, IoOpcode, sgl_in_capsule, sgl_transport

VOLUME = host.VOLUME
LOG = UUID(int=77)
SEGMENT = "segment-000001"
KEYS = host.key_set()
LINK_KEYS = [host.private_key(number) for number in (8, 9)]
LINK_PUBLIC = [key.public_key().public_bytes_raw() for key in LINK_KEYS]
PASSING: tuple[type[Exception], ...] = ()
NULL_GROUP = dhchap.only(dhchap.BOTH_WAYS, HashId.SHA256, GroupId.NULL)


# --- sled: what a head or a stranger sends ----------------------------------------------------------------------------


def target_stream(data: bytes) -> None:
    """A whole connection to a sled."""
    rig = Rig()
    wire = rig.connection() if data[:1] < b"\x80" else None
    if wire is None:
        wire = Wire(rig)
    wire.send(data[1:])


def attached_stream(data: bytes) -> None:
    """An I/O queue with a session and an attached volume."""
    Rig().attached().io.send(data)


def export_stream(data: bytes) -> None:
    """The queue of a host of an exported volume: the first byte says which, and what the path is worth."""
    port = NvmePort(blocks=16)
    exported = NvmeHost(port)
    first = data[0] if data else 0
    if first & 2:
        port.become(Access.INACCESSIBLE)
    wire = exported.admin if first & 1 else exported.io
    half = len(data) // 2
    wire.send(data[1 : 1 + half])
    wire.queue.take_output()
    if first & 4:
        port.server.drop_clients(port.subsystem.exported.volume)
    wire.send(data[1 + half :])


def export_seeds() -> list[bytes]:
    def capsule(opcode: int, data: bytes = b"", room: int = 0, **dwords: int) -> bytes:
        command = standard_sqe(opcode, 1, **dwords)
        command[24:40] = sgl_in_capsule(len(data)) if data else sgl_transport(room)
        return b"".join(map(bytes, pdu.capsule_cmd(command, (data,) if data else ())))

    ranges = DATASET_RANGE.pack(0, 2, 3) + DATASET_RANGE.pack(0, 1, 9)
    io = [
        capsule(IoOpcode.WRITE, b"x" * 4096, **blocks_at(1, 1)),
        capsule(IoOpcode.READ, room=8192, **blocks_at(1, 2)),
        capsule(IoOpcode.WRITE, room=65536, **blocks_at(0, 16)),
        b"".join(map(bytes, pdu.h2c_data(0, 0, 0, (b"y" * 65536,), True))),
        capsule(IoOpcode.COMPARE, b"x" * 4096, **blocks_at(1, 1)),
        capsule(IoOpcode.DATASET_MANAGEMENT, ranges, cdw10=1, cdw11=4),
        capsule(IoOpcode.WRITE_ZEROES, **blocks_at(2, 2)) + capsule(IoOpcode.FLUSH) + capsule(IoOpcode.VERIFY),
    ]
    admin = [
        capsule(AdminOpcode.IDENTIFY, room=4096, cdw10=cns) + capsule(AdminOpcode.GET_LOG_PAGE, room=64, cdw10=cns)
        for cns in (0, 1, 2, 3, 6)
    ]
    return [b"\0" + b"".join(io), b"\4" + io[2] + io[3], b"\1" + b"".join(admin)]


def host_stream(data: bytes) -> None:
    """A whole connection to a head's host role, with commands outstanding."""
    core = HostQueue(
        queue_id=1, depth=8, subsystem_nqn=host.NQN, host_nqn="nqn.host", host_id=host.HEAD, controller_id=3,
        in_capsule_bytes=8192, digests=0,
    )  # fmt: skip
    core.start()
    at = 0
    while at < len(data):
        core.receive(data[at : at + 1 + at % 97])
        at += 1 + at % 97


def sled_seeds() -> list[bytes]:
    sqes = [vendor.property_set(0x14, 1), vendor.get_log_page(2, 512)]
    commands = b"".join(b"".join(map(bytes, pdu.capsule_cmd(sqe))) for sqe in sqes)
    return [b"\0" + commands, b"\xff" + bytes(pdu.ic_req(0)) + commands]


def host_seeds() -> list[bytes]:
    answer = pdu.capsule_resp(pdu.CQE.pack(3, 0, 0, 0, 0, 0), 0)
    return [bytes(pdu.ic_resp(0, 8192)) + bytes(answer) * 3]


def dhchap_controller(data: bytes) -> None:
    """A host that authenticates: two bytes of length before each message, none where it asks for one."""
    controller = dhchap.controller_side(NULL_GROUP)
    at = 0
    while at + 2 <= len(data):
        size = int.from_bytes(data[at : at + 2], "little") % (MESSAGE_BYTES_MAX + 1)
        if size:
            controller.take(data[at + 2 : at + 2 + size])
        else:
            controller.give(MESSAGE_BYTES_MAX)
        at += 2 + size


def dhchap_host(data: bytes) -> None:
    """A controller that answers: two bytes of length before each message."""
    side = dhchap.host_side(NULL_GROUP)
    at = 0
    while at + 2 <= len(data) and not side.over:
        if side.speaks:
            side.give()
            continue
        size = int.from_bytes(data[at : at + 2], "little")
        side.take(data[at + 2 : at + 2 + size])
        at += 2 + size


def dhchap_seeds(from_host: bool) -> list[bytes]:
    host_, controller = dhchap.host_side(NULL_GROUP), dhchap.controller_side(NULL_GROUP)
    seed = b""
    for number, message in enumerate(dhchap.converse(host_, controller)):
        if (number % 2 == 0) is from_host:
            seed += len(message).to_bytes(2, "little") + message
        elif from_host:
            seed += bytes(2)
    return [seed]


def dhchap_secret(data: bytes) -> None:
    Secret.parse(data.decode("latin-1"))


# --- signed structures ------------------------------------------------------------------------------------------------


def credential(data: bytes) -> None:
    verify(parse_credential(data), KEYS)


def sign_credential(data: bytes) -> bytes:
    size = credentials.BODY_BYTES
    body = data[:size].ljust(size, b"\0")
    return body + host.private_key(host.AUTHORITY).sign(credentials.SIGNING_DOMAIN + body)


def key_set(data: bytes) -> None:
    KeySet.open(data, host.public_key(host.ROOT))


def sign_key_set(data: bytes) -> bytes:
    body = data[: keyset.BODY_BYTES].ljust(keyset.BODY_BYTES, b"\0")
    return body + host.private_key(host.ROOT).sign(keyset.SIGNING_DOMAIN + body)


def certificate(data: bytes) -> None:
    ReplyCertificate.open(data, host.public_key(host.ROOT))


def sign_certificate(data: bytes) -> bytes:
    body = data[: reply_certificate.BODY.size].ljust(reply_certificate.BODY.size, b"\0")
    return body + host.private_key(host.ROOT).sign(reply_certificate.SIGNING_DOMAIN + body)


def signature_fields(data: bytes) -> None:
    given, _, signature = data.decode("latin-1").partition("\n")
    signatures.parse({"signature-input": given, "signature": signature})


def signature_seeds() -> list[bytes]:
    digest = signatures.content_digest(b"{}")
    values = signatures.request_values("GET", "rack", "/v1/view", "wait_ms=0", "instance", digest)
    key = host.private_key(host.HEAD_KEY)
    fields = signatures.sign(
        values, key, key_id=str(host.HEAD), created_s=5, nonce="00" * 16, tag=signatures.REQUEST_TAG
    )
    return [f"{fields['signature-input']}\n{fields['signature']}".encode("latin-1")]


# --- firmware images --------------------------------------------------------------------------------------------------


def firmware_image(data: bytes) -> None:
    """What is read has one form only, whoever signed it."""
    image = read_image(data)
    assert with_signatures(image, dict(image.signatures), image.key_set) == data
    firmware.trust().check(image, hardware=firmware.HARDWARE)


def sign_firmware_image(data: bytes) -> bytes:
    """Give the image inside right digests, signatures and a wrapping, as far as its own lengths let it have them."""
    try:
        inner = bytearray(fit.unwrap(data))
    except ImageError:
        inner = bytearray(data[fit.DATA_OFFSET : -fit.FRAME_BYTES_MAX])
    inner = inner.ljust(layout.HEADER_BYTES, b"\0")
    signed_bytes = layout.HEADER_BYTES + int.from_bytes(inner[16:20], "little") % (layout.TLV_AREA_BYTES_MAX + 1)
    at = signed_bytes + layout.SIGNATURE_AREA_BYTES
    for index in range(min(inner[7], layout.PAYLOADS_MAX)):
        place = layout.HEADER_BYTES - PAYLOAD_PLACE_BYTES * (layout.PAYLOADS_MAX - index)
        size = int.from_bytes(inner[place + 16 : place + 24], "little") % (len(inner) + 1)
        inner[place + 24 : place + 56] = hashlib.sha256(inner[at : at + size]).digest()
        at += size
    message = layout.SIGNING_DOMAIN + bytes(inner[:signed_bytes])
    for key in (firmware.FIRST, firmware.SECOND):
        name = key_id(key.public)
        if (found := inner.find(name, signed_bytes)) >= 0:
            inner[found + 8 : found + 72] = key.sign(message)
    architecture = bytes(inner[24:32]).rstrip(b"\0").decode("latin-1").encode("ascii", "replace").decode()
    return b"".join(fit.wrap(bytes(inner), architecture, int.from_bytes(inner[12:16], "little")))


PAYLOAD_PLACE_BYTES = 56


def firmware_key_set(data: bytes) -> None:
    FirmwareKeySet.open(data, firmware.ROOT.public)


def sign_firmware_key_set(data: bytes) -> bytes:
    size = layout.KEY_SET_BYTES - layout.SIGNATURE_BYTES
    body = data[:size].ljust(size, b"\0")
    return body + firmware.ROOT.sign(layout.KEY_SET_DOMAIN + body)


# --- a sled's own records ---------------------------------------------------------------------------------------------


def table_record(data: bytes) -> None:
    block = data[:4096].ljust(4096, b"\0")
    _, _, _, _, device, generation, index, _, _ = RECORD.unpack_from(block)
    decode_record(block, device, generation % 2, index)


def seal_table_record(data: bytes) -> bytes:
    body = bytearray(data[:4092].ljust(4092, b"\0"))
    return bytes(body) + struct.pack("<I", crc32c(bytes(body)))


def device_superblock(data: bytes) -> None:
    superblock.decode(data[:4096].ljust(4096, b"\0"))


# --- what heads keep and send each other ------------------------------------------------------------------------------


def shard_header(data: bytes) -> None:
    decode_shard_header(data[:4096].ljust(4096, b"\0"))


def seal_header(data: bytes) -> bytes:
    block = data[:4096].ljust(4096, b"\0")
    return block[:8] + struct.pack("<I", crc32c(block[12:])) + block[12:]


def shard_seeds() -> list[bytes]:
    return [encode_shard_header(VOLUME, 3, 9, 1, np.zeros(4, SHARD_BLOCK))]


RESERVED = Reservations(7, ReservationType.WRITE_EXCLUSIVE, host.HEAD.bytes, {host.HEAD.bytes: 5, VOLUME.bytes: 6})


def saved_checkpoint(data: bytes) -> None:
    checkpoint.decode_checkpoint(data, VOLUME)


def seal_checkpoint(data: bytes) -> bytes:
    return data[:-4] + struct.pack("<I", crc32c(data[:-4]))


def checkpoint_seeds() -> list[bytes]:
    page = np.zeros(PAGE_BLOCKS, ENTRY)
    made = checkpoint.Checkpoint(
        LOG, VOLUME, 9, 1, Position(3, 1, 7), ((1, 1), (2, 5)), np.zeros(3, STRIPE_ENTRY), {0: page}, RESERVED
    )
    return [b"".join(map(bytes, asyncio.run(made.encode())))]


def log_records(data: bytes) -> None:
    for record in records.parse_records(data, 1, 0):
        if record.kind == records.Kind.WRITE:
            record.block_crcs()
        elif record.kind == records.Kind.ZERO:
            record.block_count()
        elif record.kind == records.Kind.STRIPE:
            records.parse_stripe(record.meta)
        elif record.kind == records.Kind.RESERVATION:
            same_reservations(record.meta)


def same_reservations(data: bytes | memoryview) -> None:
    """What parses is a state, and a state has one form only."""
    assert records.encode_reservations(records.parse_reservations(memoryview(data))) == data


def chain_records(data: bytes) -> bytes:
    """Give every record the opnum and the checksum that it should have."""
    out, at, chain, opnum = bytearray(data), 0, 0, 1
    while at + records.HEADER_BYTES <= len(out):
        fields = list(records.RECORD_HEADER.unpack_from(out, at))
        fields[6] = opnum
        records.RECORD_HEADER.pack_into(out, at, *fields)
        stop = at + records.HEADER_BYTES + fields[4]
        chain = crc32c(bytes(out[at + 4 : stop]), chain)
        struct.pack_into("<I", out, at, chain)
        at, opnum = stop + fields[5], opnum + 1
    return bytes(out)


def record_seeds() -> list[bytes]:
    header, chain = records.epoch_record(1, 1, 0)
    write, chain, _ = records.write_header(2, 1, 5, bytes(4096), chain)
    zero, chain = records.zero_record(3, 1, 9, 4, chain)
    reserved, chain = records.reservation_record(4, 1, RESERVED, chain)
    return [header + write + bytes(4096) + zero + reserved, header]


def log_disk(block: bytes) -> MemoryDisk:
    """A disk with one segment that opens with `block`."""
    disk = MemoryDisk()
    disk.files[SEGMENT] = Content(8192)
    disk.files[SEGMENT].durable[: len(block)] = block
    return disk


def reservation_command(data: bytes) -> None:
    """Opcode by the first byte, CDW10, then what the host sends."""
    opcodes = (IoOpcode.RESERVATION_REGISTER, IoOpcode.RESERVATION_ACQUIRE, IoOpcode.RESERVATION_RELEASE)
    opcode, cdw10 = opcodes[data[0] % 3 if data else 0], int.from_bytes(data[1:5], "little")
    command = reservation_wire.parse(opcode, cdw10, data[5:])
    if command is not None:
        outcome = decide(RESERVED, VOLUME.bytes, command)
        same_reservations(records.encode_reservations(outcome.state))


def segment_header(data: bytes) -> None:
    segments.decode_segment(LOG, MemoryFile(log_disk(data[:4096]), SEGMENT))
    segments.decode_mark(LOG, data, 0)


def segment_seeds() -> list[bytes]:
    opened = segments.Segment(MemoryFile(log_disk(b""), SEGMENT), 1, Position(4, 1, 7), 3, 4096)
    return [
        segments.encode_mark(LOG, 1, Batch(5, 4096, 100, 7, 3), 2).ljust(4096, b"\0"),
        segments.encode_segment(LOG, opened),
    ]


def frame_payloads(data: bytes) -> None:
    kind, payload = (data[0] % 9 if data else 0), data[1:]
    decode = (
        frames.Join.decode, frames.Truncate.decode, frames.Heartbeat.decode, frames.decode_opnum,
        frames.decode_promise, frames.decode_release, frames.decode_chunk, frames.decode_refused,
        frames.Tail.decode,
    )[kind]  # fmt: skip
    decode(payload)


def frame_seeds() -> list[bytes]:
    join = frames.Join(LOG, 1000, 9, 2, 7, 2, ((1, 1), (2, 4)))
    return [
        b"\0" + join.encode(), b"\1" + frames.Truncate(2, False, 7, 0, 0).encode(),
        b"\2" + frames.Heartbeat(1, 2, 3, 1000).encode(), b"\3" + frames.encode_opnum(5),
        b"\4" + frames.encode_promise(1, 2), b"\7" + frames.encode_refused("no"),
        b"\10" + frames.Tail(LOG, 9, 2, 7, 2).encode(),
    ]  # fmt: skip


def link_stream(data: bytes) -> None:
    """A stranger at the port of a head."""
    link = PeerLink(PeerHandshake.responder(LINK_KEYS[1], frozenset(LINK_PUBLIC), ENVIRONMENT))
    link.start(initiator=False)
    link.receive(data)
    while link.next_event() is not None:
        pass


def link_seeds() -> list[bytes]:
    context = LinkContext(Purpose.LOG, VOLUME, LOG).encode()
    link = PeerLink(PeerHandshake.initiator(LINK_KEYS[0], LINK_PUBLIC[1], ENVIRONMENT, context))
    link.start(initiator=True)
    return [b"".join(map(bytes, link.data_to_send()))]


ENVIRONMENT = Environment(host.FixedClock(), host.FixedEntropy())


# --- NBD, both roles --------------------------------------------------------------------------------------------------


def nbd_server(data: bytes) -> None:
    core = Negotiation(lambda security: ["vol"], TlsPolicy.REQUIRED if data[:1] == b"\xff" else TlsPolicy.ALLOWED)
    at = 0
    while at < len(data):
        for event in core.receive(data[at : at + 1 + at % 61]):
            if isinstance(event, StartTls):
                core.secured(Security.ENCRYPTED)
            elif core.state.name == "OPENING":
                core.grant(1 << 20)
        at += 1 + at % 61
    core.data_to_send()


def nbd_server_seeds() -> list[bytes]:
    option = struct.Struct(">8sII")
    go = struct.pack(">I3sH", 3, b"vol", 0)
    asked = option.pack(b"IHAVEOPT", 8, 0) + option.pack(b"IHAVEOPT", 3, 0)
    tls = option.pack(b"IHAVEOPT", 5, 0)
    return [struct.pack(">I", 3) + before + asked + option.pack(b"IHAVEOPT", 7, len(go)) + go for before in (b"", tls)]


def nbd_client(data: bytes) -> None:
    core = ClientCore("vol")
    core.receive(data)
    core.data_to_send()


def nbd_client_seeds() -> list[bytes]:
    reply = struct.Struct(">QIII")
    info = struct.pack(">HQH", 0, 1 << 20, 0x6D)
    hello = nbd.SERVER_HELLO.pack(nbd.NBD_MAGIC, nbd.OPTION_MAGIC, 3)
    return [
        hello + reply.pack(0x3E889045565A9, 8, 1, 0) + reply.pack(0x3E889045565A9, 7, 3, len(info)) + info
        + reply.pack(0x3E889045565A9, 7, 1, 0)
    ]  # fmt: skip


# --- texts ------------------------------------------------------------------------------------------------------------


def json_records(data: bytes) -> None:
    try:
        found = json.loads(data)
    except (ValueError, RecursionError):
        return
    if isinstance(found, dict):
        for kind in (VolumeRecord, RackView, HostSecrets):
            try:
                kind.from_json(found)
            except RecordMalformed:
                continue


def json_seeds() -> list[bytes]:
    secrets = HostSecrets(VOLUME, {"nqn.2014-08.org.nvmexpress:uuid:1": NULL_GROUP})
    return [json.dumps(kept.to_json()).encode() for kept in (record_of([LOG], [VOLUME]), secrets)]


def settings_file(data: bytes) -> None:
    with tempfile.NamedTemporaryFile(suffix=".toml") as file:
        file.write(data)
        file.flush()
        merge(HeadSettings, "head-node", {"config": file.name}, {})


def settings_seeds() -> list[bytes]:
    return [b'name = "head-1"\nstate_dir = "/tmp/x"\nauthority_url = "http://127.0.0.1:1"\npeer_port = 7000\n']


TARGETS = (
    Target("sled-stream", target_stream, PASSING, sled_seeds, executions=800),
    Target("sled-attached", attached_stream, PASSING, lambda: [host.golden("write_sqe")], executions=600),
    Target("export-stream", export_stream, PASSING, export_seeds, executions=800),
    Target("host-stream", host_stream, (SledError,), host_seeds),
    Target("dhchap-controller", dhchap_controller, PASSING, lambda: dhchap_seeds(True), executions=1500),
    Target("dhchap-host", dhchap_host, PASSING, lambda: dhchap_seeds(False), executions=1500),
    Target("dhchap-secret", dhchap_secret, (SledError,), lambda: [dhchap.HOST_SECRET.text().encode()]),
    Target("credential", credential, (SledError,), lambda: [host.golden("credential")], sign_credential),
    Target("key-set", key_set, (SledError,), lambda: [host.golden("keyset")], sign_key_set),
    Target(
        "reply-certificate", certificate, (CertificateRefused,), lambda: [host.golden("reply_certificate")],
        sign_certificate,
    ),
    Target("firmware-image", firmware_image, (ImageError,), lambda: [
        host.golden("firmware_image"), firmware.signed(firmware.recipe(payloads={"a": b"1", "b": b"", "c": b"23"})),
    ], sign_firmware_image, executions=800),
    Target("firmware-key-set", firmware_key_set, (ImageError,), lambda: [
        host.golden("firmware_key_set"),
    ], sign_firmware_key_set, executions=800),
    Target("hello", Hello.parse, (SledError,), lambda: [host.golden("hello")]),
    Target("signature-fields", signature_fields, (signatures.SignatureRefused,), signature_seeds),
    Target("table-record", table_record, (TableRecordMalformed,), lambda: [
        seal_table_record(host.golden(f"sled_{kind}_record")) for kind in ("fence", "namespace", "boot")
    ], seal_table_record),
    Target("superblock", device_superblock, PASSING, lambda: [
        seal_table_record(host.golden("sled_superblock")),
    ], seal_table_record),
    Target("shard-header", shard_header, PASSING, shard_seeds, seal_header),
    Target("checkpoint", saved_checkpoint, (VolumeError,), checkpoint_seeds, seal_checkpoint),
    Target("log-records", log_records, (VolumeError,), record_seeds, chain_records),
    Target("reservations", same_reservations, (VolumeError,), lambda: [records.encode_reservations(RESERVED)]),
    Target("reservation-commands", reservation_command, PASSING, lambda: [
        bytes((0, 2, 0, 0, 0xC0)) + bytes(16), bytes((1, 2, 2, 0, 0, 6)) + bytes(7) + bytes((5,)) + bytes(7),
        bytes((2, 1, 0, 0, 0, 6)) + bytes(7),
    ]),
    Target("segment-header", segment_header, (VolumeError,), segment_seeds),
    Target("frames", frame_payloads, (ClusterError,), frame_seeds),
    Target("link", link_stream, (ClusterError,), link_seeds),
    Target("nbd-server", nbd_server, PASSING, nbd_server_seeds),
    Target("nbd-client", nbd_client, (ExportError,), nbd_client_seeds),
    Target("records-json", json_records, PASSING, json_seeds),
    Target("settings", settings_file, (SettingsError,), settings_seeds),
)  # fmt: skip
