"""A whole association byte for byte: every vendor command, log page and status of ours, as tests/golden has it."""

import hashlib
import hmac
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from kit import host
from kit.target import Rig
from kit.transcript import FILE, HEAD_ENTROPY, GoldenHead

from sled_controller.fabric.vendor import get_log_page, vendor_sqe
from sled_controller.receipt import RECEIPT_BYTES
from spdk_bindings.nvme import CONTROL_FUA, SGL_FLAGS, SQE, AdminOpcode, IoOpcode, LogPage, Status, VendorIo

BLOCK = bytes(range(16)) * 256
COLUMN, BLOCKS = 3, 512
LAST_REFUSED = 0xFFFF
CREDENTIAL_BYTES = 560
HEADER = """\
# One association of a head with a sled, byte for byte; docs/wire-protocol.md says what the bytes mean.
#
# Ed25519 private keys: root 01 (32 times), authority 02, sled 03, head 04, another head 05. Sled
# 11111111-1111-4111-8111-111111111111, volume 22222222-2222-4222-8222-222222222222, head (host id)
# 33333333-3333-4333-8333-333333333333; the wall clock stands at 1700000000000 ms. X25519 private key of the head:
# {ephemeral}
#
# > from the head, < from the sled; sixteen bytes a line, * for lines equal to the one before."""


def association() -> str:
    """Say everything once."""
    rig = Rig()
    head = GoldenHead(rig)
    tell = head.tell
    ephemeral = host.FixedEntropy(HEAD_ENTROPY).bytes(32)
    head.transcript.lines.insert(0, HEADER.format(ephemeral=ephemeral.hex()))

    def write(title: str, slot: int, data: bytes = BLOCK, control: int = 0, status: int = 0, nsid: int = 1) -> None:
        nlb = len(data) // 4096 - 1
        sqe = vendor_sqe(VendorIo.WRITE, nsid=nsid, slot=slot, nlb=nlb, control=control, slba=0x12)
        tell(title, sqe, data, io=True, status=status)

    def attach(title: str, number: int, epoch: int = 5, status: int = 0) -> None:
        tell(title, vendor_sqe(AdminOpcode.ATTACH, slba=number), host.signed(epoch=epoch), status=status)

    def log_page(title: str, page: LogPage, size: int, specific: int = 0) -> None:
        tell(title, get_log_page(page, size, specific=specific), into_bytes=size, signed=False)

    tell(
        "READ before the session: SESSION REQUIRED, and no count is taken",
        vendor_sqe(VendorIo.READ, nsid=1), into_bytes=4096, io=True, signed=False, status=Status.SESSION_REQUIRED,
    )  # fmt: skip
    head.open_session()
    log_page("Log page C2h: boot counter, key set version 0, sled time, uptime, counters", LogPage.SLED_STATUS, 136)
    key_set = host.key_set().sign(host.private_key(host.ROOT))
    tell("KEYSET UPDATE: version 1", vendor_sqe(AdminOpcode.KEYSET_UPDATE), key_set)
    attach("ATTACH with attach number 0: REFUSED, code 23", 0, status=Status.REFUSED)
    attach("ATTACH of epoch 5, attach number 1: slot 0", 1)
    tell("RECEIPT of slot 0", vendor_sqe(AdminOpcode.RECEIPT, slot=0), into_bytes=RECEIPT_BYTES)
    create = vendor_sqe(AdminOpcode.NAMESPACE_CREATE, slot=0, nlb=COLUMN, slba=BLOCKS)
    tell("NAMESPACE CREATE: column 3, 512 blocks: nsid 1", create)
    log_page("Log page C1h: the namespace, and the end", LogPage.NAMESPACE_TABLE, 64)

    write("WRITE of one block at 12h, in the capsule", 0)
    write("WRITE of two blocks at 12h by R2T, FUA", 0, BLOCK * 2, CONTROL_FUA)
    read = vendor_sqe(VendorIo.READ, nsid=1, slot=0, nlb=0, slba=0x12)
    tell("READ of one block at 12h", read, into_bytes=4096, io=True)
    tell("FLUSH", vendor_sqe(VendorIo.FLUSH, nsid=1, slot=0), io=True)
    zeroes = vendor_sqe(VendorIo.WRITE_ZEROES, nsid=1, slot=0, nlb=7, control=CONTROL_FUA, slba=0x12)
    tell("WRITE ZEROES of eight blocks, FUA", zeroes, io=True)
    tell("DEALLOCATE of eight blocks", vendor_sqe(VendorIo.DEALLOCATE, nsid=1, slot=0, nlb=7, slba=0x12), io=True)
    report = bytearray(SQE.pack(IoOpcode.RESERVATION_REPORT, SGL_FLAGS, 0, 1, 0, 0, 0, bytes(16), 31, 1, 0, 0, 0, 0))
    tell("Reservation Report, extended: generation 5, the holder", report, into_bytes=128, io=True, signed=False)

    write("WRITE in a slot that is not there: NOT ATTACHED", 9, status=Status.NOT_ATTACHED)
    attach("ATTACH of epoch 5, attach number 2: slot 1", 2)
    write("WRITE in slot 0: SUPERSEDED by the second attach, DW0 and DW1 are the epoch", 0, status=Status.SUPERSEDED)
    rig.clock.now_ms += host.TERM_MS + 1
    write("WRITE in slot 1 after the credential's term: CREDENTIAL EXPIRED", 1, status=Status.CREDENTIAL_EXPIRED)
    rig.clock.now_ms -= host.TERM_MS + 1
    tell("DETACH of slot 1", vendor_sqe(AdminOpcode.DETACH, slot=1))
    attach("ATTACH of epoch 5, attach number 3: slot 2", 3)
    tell("NAMESPACE DELETE", vendor_sqe(AdminOpcode.NAMESPACE_DELETE, slot=2, nsid=1))
    create = vendor_sqe(AdminOpcode.NAMESPACE_CREATE, slot=2, nlb=COLUMN, slba=BLOCKS)
    assert tell("NAMESPACE CREATE of the same column: another nsid, 2", create).dw0 == 2

    rig.head(host.OTHER_HEAD_KEY).attach(6, 1)
    write(
        "WRITE in slot 2 after another head attached epoch 6: FENCED OFF, DW0 and DW1 are its epoch", 2,
        status=Status.FENCED_OFF, nsid=2,
    )  # fmt: skip
    log_page("Log page C0h of slot 2: the credential of epoch 6", LogPage.FENCE, CREDENTIAL_BYTES, 2)
    attach("ATTACH of epoch 5, attach number 4: FENCED OFF", 4, status=Status.FENCED_OFF)
    title = "Log page C0h, LSI FFFFh: the credential that refused the last ATTACH"
    log_page(title, LogPage.FENCE, CREDENTIAL_BYTES, LAST_REFUSED)
    forged = vendor_sqe(VendorIo.FLUSH, nsid=2, slot=2)
    tell(
        "FLUSH with a wrong MAC: BAD MAC, and the association ends",
        forged,
        io=True,
        signed=False,
        status=Status.BAD_MAC,
    )
    assert head.controller_id not in rig.subsystem.hosts
    return head.transcript.text


def test_an_association_is_the_golden_one(tmp_path: Path) -> None:
    said = association()
    (tmp_path / FILE.name).write_text(said, encoding="ascii")
    kept = FILE.read_text(encoding="ascii")
    assert said == kept, f"{tmp_path / FILE.name} is what it would be; copy it only if the wire was meant to change"


# --- What follows knows the documents only, not our code: it is how a second implementation would begin.


@dataclass
class Pdu:
    """A PDU of the file; `sent` by the head."""

    sent: bool
    queue: str
    title: str
    data: bytes


def golden_pdus() -> Iterator[Pdu]:
    """Read the file."""
    title, head, data = "", "", bytearray()
    for line in [*FILE.read_text(encoding="ascii").splitlines(), ""]:
        found = re.fullmatch("([0-9a-f]{4,}): ([0-9a-f ]+)", line)
        if found is not None:
            missing = int(found[1], 16) - len(data)
            data += data[-16:] * (missing // 16) + bytes.fromhex(found[2])
            continue
        if line == "*":
            continue
        if head:
            mark, queue, _ = head.split()
            assert int.from_bytes(data[4:8], "little") == len(data)
            yield Pdu(mark == ">", queue, title, bytes(data))
        head, data = line if line[:1] in "<>" else "", bytearray()
        title = line[2:] if line.startswith("# ") else title


def hkdf_expand(secret: bytes, info: bytes) -> bytes:
    """One block of HKDF-Expand with SHA-256 (RFC 5869)."""
    return hmac.digest(secret, info + b"\x01", "sha256")


def documented_keys(pdus: list[Pdu]) -> tuple[dict[str, bytes], bytes]:
    """The queue keys from head to sled, and the receipt key, by docs/credentials.md."""
    (hello,) = [each.data[24:184] for each in pdus if each.title.startswith("SESSION RECEIVE") and each.data[0] == 7]
    (reply,) = [each.data[72:216] for each in pdus if each.title.startswith("SESSION SEND") and each.sent]
    found = re.search(r"X25519 private key of the head:\n# ([0-9a-f]{64})", FILE.read_text(encoding="ascii"))
    assert found is not None
    ours = X25519PrivateKey.from_private_bytes(bytes.fromhex(found[1]))
    sized_nqn = len(host.NQN).to_bytes(2, "little") + host.NQN.encode()
    transcript = hashlib.sha256(
        b"palisade session transcript v1\0" + hello[:96] + host.public_key(host.SLED_KEY) + sized_nqn + reply[16:80]
    ).digest()
    secret = hmac.digest(transcript, ours.exchange(X25519PublicKey.from_public_bytes(hello[64:96])), "sha256")
    queues = {
        name: hkdf_expand(secret, b"palisade queue key v1\0" + bytes((number, 0, 0)))
        for number, name in enumerate(("admin", "io"))
    }
    return queues, hkdf_expand(secret, b"palisade receipt key v1\0")


def test_every_mac_of_the_golden_association_follows_from_the_documents() -> None:
    pdus = list(golden_pdus())
    keys, receipt_key = documented_keys(pdus)
    live, counts, checked = False, {"admin": 0, "io": 0}, 0
    for index, each in enumerate(pdus):
        sqe = each.data[8:72]
        live = live or (each.sent and sqe[0] == 0xC5)
        vendor = sqe[0] >= 0xC0 if each.queue == "admin" else sqe[0] >= 0x80
        if not each.sent or each.data[0] != 4 or not vendor or not live or sqe[0] in (0xC2, 0xC5):
            continue
        data = each.data[72:]
        if sqe[0] == 0x81 and sqe[39] == 0x5A:  # by R2T, which the sled sends next
            assert (pdus[index + 1].data[0], pdus[index + 2].data[0]) == (9, 6)
            data = pdus[index + 2].data[24:]
        nonce = counts[each.queue].to_bytes(12, "big")
        counts[each.queue] += 1
        mac = AESGCM(keys[each.queue]).encrypt(nonce, b"", sqe[:48] + bytes(16) + data)
        assert (mac == sqe[48:]) is (each.title.startswith("FLUSH with a wrong MAC") is False), each.title
        checked += 1
    assert checked == sum(counts.values()) == 22
    (receipt,) = [each.data[24:184] for each in pdus if each.title.startswith("RECEIPT") and each.data[0] == 7]
    assert hmac.digest(receipt_key, b"palisade receipt v1\0" + receipt[:128], "sha256") == receipt[128:]
