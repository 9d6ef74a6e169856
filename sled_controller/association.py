"""A sled's association: one host's two queues, its session, its slots, and the vendor admin commands on them.

Knows nothing of PDUs: a queue hands over an opcode, the fields of its SQE and its data, and gets an answer by callback.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from functools import partial
from typing import TYPE_CHECKING, Final, TypeVar
from uuid import UUID

from sled_controller.attach import ON_TABLE, Attach, Slot, VolumeState
from sled_controller.credential import Credential, holder_of, parse_credential, verify
from sled_controller.errors import CredentialMalformed, CredentialRefused, HandshakeFailed
from sled_controller.fabric.associations import HostAssociation, Standing
from sled_controller.fencing import RIGHT_MANAGE, AttachVerdict, Fence, Verdict, decide, decide_attach
from sled_controller.keyset import KeySet
from sled_controller.receipt import DeviceState, Receipt
from sled_controller.retirement import Retirement
from sled_controller.served import then
from sled_controller.session import SessionKeys, SledHandshake
from sled_controller.storage.records import StoredFence
from sled_controller.time_statement import TimeStatement
from spdk_bindings.nvme import AdminOpcode, Status

if TYPE_CHECKING:
    from sled_controller.storage.sled_storage import SledStorage
    from sled_controller.subsystem import Subsystem

Statement = TypeVar("Statement")

log = logging.getLogger(__name__)

SLOTS_MAX: Final = 4096  # attaches in the life of one association, since numbers are not used twice
VOLUMES_MAX: Final = 65536  # volumes that this sled remembers a fence of
REFUSED_ATTACHES: Final = 0xFFFF  # "slot" of log page C0h that names the ATTACHes refused by a fence
REFUSALS_KEPT_MAX: Final = 16
"""Volumes of one association whose last refusal is remembered: a head attaches all its volumes at once when a sled
comes back, and asks for the credential in the way of each as soon as it is refused. What is forgotten goes unproven."""
ATTACH_STEP_MAX: Final = 1 << 32  # an attach number that jumps to the end leaves none for the epoch's holder
U32: Final = 0xFFFF_FFFF


class Refusal(IntEnum):
    """DW0 of REFUSED; 1 to 15 are fence verdicts."""

    OTHER_VOLUME = Verdict.OTHER_VOLUME
    NO_RIGHT = Verdict.NO_RIGHT
    KEY_RETIRED = Verdict.KEY_RETIRED
    MALFORMED = 16
    SIGNATURE = 17
    OTHER_HEAD = 18  # presented by somebody else than the holder of the head key it names
    OTHER_HOLDER = 19  # the epoch stands already, with another holder (F2)
    NO_KEY_SET = 20
    HANDSHAKE = 21
    KEY_SET = 22
    ATTACH_NUMBER = 23
    NAMESPACES_REMAIN = 24  # RETIRE of a volume that has a namespace here
    NOT_OVER = 25  # RETIRE before sled time is there, or of a fence whose credential expires later
    NEWER_EPOCH = 26  # RETIRE of a volume whose fence is above the epoch that the statement knows of
    OLD_HOLDER = 27  # the epoch's pair went to another association: its attach number does not bring it back
    TIME_SERIAL = 28  # TIME STATEMENT with a serial that is not above the one taken last
    OTHER_SLED = 29  # TIME STATEMENT for another sled, or another start of this one
    NO_SPACE = 30  # NAMESPACE CREATE beyond what the credential lets the volume take on a sled
    NO_PLACE = 31  # the credential does not count on this sled


STATUS_OF: Final[dict[int, int]] = {
    Verdict.NOT_ATTACHED: Status.NOT_ATTACHED,
    Verdict.FENCED_OFF: Status.FENCED_OFF,
    Verdict.SUPERSEDED: Status.SUPERSEDED,
    Verdict.OTHER_VOLUME: Status.REFUSED,
    Verdict.NO_RIGHT: Status.REFUSED,
    Verdict.KEY_RETIRED: Status.REFUSED,
    Verdict.EXPIRED: Status.CREDENTIAL_EXPIRED,
}


def refusal_of(verdict: Verdict, fence: Fence | None) -> tuple[int, int, int]:
    """(status, DW0, DW1) of a refused command: the standing epoch where a fence refused it, else a `Refusal`."""
    if fence is not None and verdict in (Verdict.FENCED_OFF, Verdict.SUPERSEDED):
        return STATUS_OF[verdict], fence.epoch & U32, fence.epoch >> 32
    status = STATUS_OF[verdict]
    return status, int(verdict) if status == Status.REFUSED else 0, 0


@dataclass(frozen=True, slots=True)
class AdminFields:
    """The fields of a vendor admin SQE."""

    nsid: int
    slot: int
    nlb: int
    slba: int


Reply = Callable[[int, int, int, bytes], None]
"""status, DW0, DW1, data to the host"""


class Association(HostAssociation):
    """One host's admin queue and I/O queue, its session and its slots."""

    def __init__(self, subsystem: "Subsystem", controller_id: int, host_nqn: bytes, host_id: bytes) -> None:
        super().__init__(controller_id, host_nqn, host_id)
        self.subsystem = subsystem
        self.slots: list[Slot] = []
        self.keys: SessionKeys | None = None
        self.holder = b""
        self.placed = False  # it makes room for no other one while it holds something
        self.held_once = False
        self._held: dict[Slot, None] = {}
        """Slots that may hold their volume's pair; asked when it matters."""
        self._lost: dict[UUID, int] = {}
        """By volume, the epoch whose pair another association of the same head took away."""
        self._refused_by: dict[UUID, Fence] = {}
        """By volume, the newest refusal last."""
        self._handshake: SledHandshake | None = None
        self._noted: set[tuple[Verdict, int | None]] = set()

    @property
    def standing(self) -> Standing:
        """A credential makes the difference while it is good for something, or a host's secret: a session takes no more
        than a key of one's own."""
        if self.placed and (self.manages or self.holds):
            return Standing.TRUSTED
        return Standing.CONNECTED if self.keys is None else Standing.SESSION

    @property
    def holds(self) -> bool:
        """Whether a volume is held through it now: a pair that stands, with a credential that is neither over nor of
        a key that has left the set."""
        now_ms = self.subsystem.time.now_ms()
        while self._held:
            slot = next(reversed(self._held))
            if slot.holds(now_ms):
                return True
            del self._held[slot]
        self.placed = self.manages
        return False

    @property
    def key(self) -> bytes:
        """Whose it is: a manager's name, also when it opens a session later, or the hash of a head's key."""
        return self.host_nqn if self.manages else self.holder

    def _hold(self, slot: Slot) -> None:
        self._held[slot] = None
        self.held_once = True
        self.subsystem.places.hold(self)

    def prove(self) -> None:
        """Its host has authenticated, as one that manages the sled."""
        super().prove()
        self.subsystem.places.opened(self)
        self.subsystem.places.hold(self)

    def queue_gone(self, queue_id: int, reason: str) -> None:
        """With a session it ends as a whole: a queue that came back would count its nonces anew."""
        if self.keys is not None:
            self.end(reason)
        else:
            super().queue_gone(queue_id, reason)

    def disabled(self) -> None:
        self._forget_firmware()
        if self.keys is not None:
            self.end("the host disabled the controller")
        else:
            super().disabled()

    @property
    def manages(self) -> bool:
        """Whether its host has proved to be a management host: the only one that updates firmware."""
        return self.authentication is not None and self.proven

    def closing(self) -> None:
        """What is in flight is left to a later drain."""
        self._forget_firmware()
        self.subsystem.places.forget(self)
        for slot in self.slots:
            self._drop(slot)

    def _forget_firmware(self) -> None:
        if self.subsystem.firmware is not None:
            self.subsystem.firmware.forget(self)

    def _drop(self, slot: Slot) -> None:
        slot.attached = False
        if slot.state.attach is not None and slot.state.attach.slot is slot:
            slot.state.attach.cancel()
        if slot.state.holder is slot:
            slot.state.retire_holder()

    def keys_changed(self, key_set: KeySet) -> None:
        """Slots whose credential's key has left the set are refused until they are renewed, or it is back (F1)."""
        for slot in self.slots:
            slot.key_current = key_set.keys.get(slot.key_id) == slot.key_public
            if slot.key_current and slot.state.holder is slot:
                self._hold(slot)

    def _public(self, credential: Credential) -> bytes | None:
        key_set = self.subsystem.key_set
        return None if key_set is None else key_set.keys.get(credential.key_id)

    def slot(self, number: int) -> Slot | None:
        """The slot of that number."""
        return self.slots[number] if number < len(self.slots) else None

    def fence_page(self, number: int) -> bytes | None:
        """Log page C0h: the credential that raised the fence in the slot's way; None for an unknown slot.

        For REFUSED_ATTACHES those in the way of several volumes, one after the other, the newest refusal first.
        """
        if number == REFUSED_ATTACHES:
            return b"".join(fence.credential for fence in reversed(self._refused_by.values()))
        slot = self.slot(number)
        return None if slot is None else slot.fence.credential

    # --- vendor admin commands

    @property
    def greeted(self) -> bool:
        """Whether the hello that is asked for next is made already."""
        return self._handshake is not None

    def session_receive(self, reply: Reply) -> None:
        """The sled's hello. It is made once for each SESSION_SEND, however often it is asked for."""
        if self.keys is not None:
            reply(Status.COMMAND_SEQUENCE_ERROR, 0, 0, b"")
            return
        if self._handshake is None:
            identity = self.subsystem.identity
            self._handshake = SledHandshake(
                identity.key, identity.sled_id, identity.nqn, self.controller_id, self.subsystem.storage.boot_counter,
                self.subsystem.env, self.subsystem.boot_id,
            )  # fmt: skip
            self.subsystem.boot_id = self._handshake.boot_id
        hello = self._handshake.hello()
        reply(Status.SUCCESS, len(hello), 0, hello)

    def session_send(self, data: bytes, reply: Reply) -> None:
        """The head's reply; the session is live when this succeeds."""
        if self._handshake is None or self.keys is not None:
            reply(Status.COMMAND_SEQUENCE_ERROR, 0, 0, b"")
            return
        handshake, self._handshake = self._handshake, None
        try:
            self.keys = handshake.accept(data)
        except HandshakeFailed as error:
            log.warning("event=handshake_failed controller=%d reason=%s", self.controller_id, error.reason)
            reply(Status.REFUSED, Refusal.HANDSHAKE, 0, b"")
            return
        self.holder = holder_of(self.keys.head_public)
        reply(Status.SUCCESS, 0, 0, b"")
        self.subsystem.places.opened(self)

    def execute(self, opcode: int, fields: AdminFields, data: bytes, reply: Reply) -> None:
        """A vendor admin command whose MAC was verified."""
        if opcode == AdminOpcode.ATTACH:
            self._attach(data, fields.slba, reply)
        elif opcode == AdminOpcode.RECEIPT:
            self._receipt(fields.slot, reply)
        elif opcode == AdminOpcode.KEYSET_UPDATE:
            self.subsystem.update_key_set(data, lambda status, code: reply(status, code, 0, b""))
        elif opcode == AdminOpcode.DETACH:
            self._detach(fields.slot, reply)
        elif opcode == AdminOpcode.RETIRE:
            self._retire(data, reply)
        elif opcode == AdminOpcode.TIME_STATEMENT:
            self._state_time(data, reply)
        elif opcode in (AdminOpcode.NAMESPACE_CREATE, AdminOpcode.NAMESPACE_DELETE):
            self._manage(opcode, fields, reply)
        else:
            reply(Status.INVALID_OPCODE, 0, 0, b"")

    def _credential(self, data: bytes, reply: Reply) -> Credential | None:
        """The verified credential, or None after refusing it."""
        key_set = self.subsystem.key_set
        if key_set is None:
            self._refuse(reply, Refusal.NO_KEY_SET, "the sled has no key set")
            return None
        credential = self._opened(lambda: verify(parse_credential(data), key_set), reply)
        if credential is None:
            return None
        if credential.holder != self.holder:
            self._refuse(reply, Refusal.OTHER_HEAD, "presented by another head")
            return None
        if self.subsystem.identity.sled_id not in credential.sleds:
            self._refuse(reply, Refusal.NO_PLACE, f"volume {credential.volume} has no place on this sled")
            return None
        if self.subsystem.has_expired(credential):
            self.subsystem.counters.refused += 1
            log.warning(
                "event=refused controller=%d code=EXPIRED volume=%s epoch=%d expires_ms=%d",
                self.controller_id, credential.volume, credential.epoch, credential.expires_ms,
            )  # fmt: skip
            reply(Status.CREDENTIAL_EXPIRED, 0, 0, b"")
            return None
        return credential

    def _refuse(self, reply: Reply, code: Refusal, reason: str) -> None:
        self.subsystem.counters.refused += 1
        log.warning("event=refused controller=%d code=%s reason=%s", self.controller_id, code.name, reason)
        reply(Status.REFUSED, code, 0, b"")

    def _attach(self, data: bytes, attach_number: int, reply: Reply) -> None:
        self.subsystem.counters.attaches += 1
        credential = self._credential(data, reply)
        if credential is None:
            return
        if attach_number == 0:
            self._refuse(reply, Refusal.ATTACH_NUMBER, "attach numbers start at 1")
            return
        if credential.volume not in self.subsystem.volumes and len(self.subsystem.volumes) >= VOLUMES_MAX:
            reply(Status.NAMESPACE_INSUFFICIENT_CAPACITY, 0, 0, b"")
            return
        state = self.subsystem.volume(credential.volume)
        held = state.holder if state.holder is not None and state.holder.owner is self else None
        verdict = decide_attach(state.fence, credential.epoch, attach_number, self.holder, held is not None)
        age = credential.issued_ms, credential.serial
        within = verdict is AttachVerdict.RAISE and credential.epoch == state.fence.epoch
        if within and attach_number - state.fence.attach_number > ATTACH_STEP_MAX:
            self._refuse(reply, Refusal.ATTACH_NUMBER, f"attach number {attach_number} is too far ahead")
        elif within and self._is_old_holder(state, age):
            self._refuse(reply, Refusal.OLD_HOLDER, "another association has the volume; a newer credential is needed")
        elif verdict is AttachVerdict.RAISE:
            self._raise(state, credential, attach_number, data, reply)
        elif verdict is AttachVerdict.RENEW and held is not None:
            self._renew(held, credential, reply)
        elif verdict is AttachVerdict.OTHER_HOLDER:
            self._refuse(reply, Refusal.OTHER_HOLDER, f"epoch {credential.epoch} stands with another holder")
        else:
            log.warning(
                "event=refused controller=%d code=%s volume=%s epoch=%d attach=%d fence_epoch=%d fence_attach=%d",
                self.controller_id, verdict.name, credential.volume, credential.epoch, attach_number,
                state.fence.epoch, state.fence.attach_number,
            )  # fmt: skip
            self._refuse_fenced(verdict is AttachVerdict.FENCED_OFF, credential.volume, state.fence, reply)

    def _is_old_holder(self, state: VolumeState, age: tuple[int, int]) -> bool:
        """Whether it takes a newer credential to get the epoch's pair: after another association of the same head has
        taken it, or brought a newer one."""
        lost = self._lost.get(state.fence.volume) == state.fence.epoch
        return age < state.newest or (lost and age == state.newest)

    def _retire(self, data: bytes, reply: Reply) -> None:
        """Forget a deleted volume's fence (F2): for whoever brings the authority's word, as with a key set."""
        key_set = self.subsystem.key_set
        if key_set is None:
            self._refuse(reply, Refusal.NO_KEY_SET, "the sled has no key set")
            return
        statement = self._opened(lambda: Retirement.open(data, key_set), reply)
        if statement is not None:
            self.subsystem.retire(statement, self._told(reply, f"the fence of volume {statement.volume} stays"))

    def _state_time(self, data: bytes, reply: Reply) -> None:
        """Take the root key's word on what time it is, no matter who brings it, as with a key set."""
        statement = self._opened(lambda: TimeStatement.open(data, self.subsystem.identity.root_public), reply)
        if statement is not None:
            why = f"the time statement of serial {statement.serial} is not taken"
            self.subsystem.state_time(statement, self._told(reply, why))

    def _opened(self, opened: Callable[[], Statement], reply: Reply) -> Statement | None:
        """What a signature vouches for; None when it is refused."""
        try:
            return opened()
        except CredentialMalformed as error:
            self._refuse(reply, Refusal.MALFORMED, str(error))
        except CredentialRefused as error:
            self._refuse(reply, Refusal.SIGNATURE, error.reason)
        return None

    def _told(self, reply: Reply, why: str) -> Callable[[int, int], None]:
        """Answers what became of a statement: (status, refusal)."""

        def done(status: int, code: int) -> None:
            if status == Status.REFUSED:
                self._refuse(reply, Refusal(code), why)
            else:
                reply(status, 0, 0, b"")

        return done

    def note_refusal(self, verdict: Verdict, slot: Slot | None) -> None:
        """Count a command that the fence decision refused; the first of its kind in its slot is worth a log line."""
        self.subsystem.count_refusal(verdict)
        kind = (verdict, None if slot is None else slot.number)
        if kind in self._noted:
            return
        self._noted.add(kind)
        log.warning(
            "event=command_refused controller=%d code=%s slot=%s volume=%s epoch=%s fence_epoch=%s",
            self.controller_id, verdict.name, kind[1], slot and slot.volume, slot and slot.epoch,
            slot and slot.fence.epoch,
        )  # fmt: skip

    def _refuse_fenced(self, fenced_off: bool, volume: UUID, fence: Fence, reply: Reply) -> None:
        self._refused_by.pop(volume, None)
        self._refused_by[volume] = fence
        if len(self._refused_by) > REFUSALS_KEPT_MAX:
            del self._refused_by[next(iter(self._refused_by))]
        counters = self.subsystem.counters
        if fenced_off:
            counters.fenced_off += 1
        else:
            counters.superseded += 1
        reply(*refusal_of(Verdict.FENCED_OFF if fenced_off else Verdict.SUPERSEDED, fence), b"")

    def _renew(self, slot: Slot, credential: Credential, reply: Reply) -> None:
        if not slot.attached:
            reply(Status.NOT_ATTACHED, 0, 0, b"")  # its drain still runs; the first ATTACH will be answered
            return
        if (credential.issued_ms, credential.serial) >= (slot.issued_ms, slot.serial):
            slot.renew(credential)
            slot.key_public = self._public(credential)
            slot.state.newest = max(slot.state.newest, (credential.issued_ms, credential.serial))
            self._hold(slot)
        reply(Status.SUCCESS, slot.number, 0, b"")

    def _raise(self, state: VolumeState, credential: Credential, attach_number: int, raw: bytes, reply: Reply) -> None:
        """A higher pair: from the next line on, nothing below it is admitted (F3)."""
        number = len(self.slots)
        if number >= SLOTS_MAX:
            reply(Status.CAPACITY_EXCEEDED, 0, 0, b"")
            return
        fence, lost_by = state.fence, None if state.holder is None else state.holder.owner
        former_holder = fence.holder
        if credential.epoch > fence.epoch:
            state.newest = (0, 0)
        elif lost_by is not None and lost_by is not self:
            lost_by._lost[fence.volume] = fence.epoch
        state.newest = max(state.newest, (credential.issued_ms, credential.serial))
        fence.raise_to(credential.epoch, attach_number, self.holder, bytes(raw))
        former = state.attach
        if former is not None:
            former.cancel()
            former.superseded()
        state.retire_holder()
        slot = Slot(state, self, number, credential, attach_number)
        slot.key_public = self._public(credential)
        self.slots.append(slot)
        state.holder = slot
        self._lost.pop(fence.volume, None)
        self._hold(slot)
        if former_holder != self.holder:
            self.subsystem.places.fenced(former_holder, lost_by)
        log.info("event=fence volume=%s epoch=%d attach=%d slot=%d", fence.volume, fence.epoch, attach_number, number)
        done, superseded = partial(self._attached, slot, reply), partial(self._attach_superseded, slot, reply)
        attach = Attach(slot, self.subsystem, self.subsystem.call_later, done, superseded)
        attach.start()
        if state.durable_epoch < fence.epoch:
            record = StoredFence(fence.epoch, fence.holder, fence.credential)
            start = partial(self.subsystem.storage.raise_fence, fence.volume, record)
            then(start, partial(_fence_kept, state, attach, fence.epoch))

    def _attach_superseded(self, slot: Slot, reply: Reply) -> None:
        if not self.ended:
            self._refuse_fenced(slot.epoch < slot.fence.epoch, slot.volume, slot.fence, reply)

    def _attached(self, slot: Slot, reply: Reply, status: int, states: tuple[tuple[int, DeviceState], ...]) -> None:
        if self.ended:
            return
        if status:
            self._drop(slot)
            reply(status, 0, 0, b"")
            return
        slot.attached = True
        slot.device_states = states
        reply(Status.SUCCESS, slot.number, 0, b"")

    def _receipt(self, number: int, reply: Reply) -> None:
        slot = self.slot(number)
        if slot is None or not slot.attached or self.keys is None:
            reply(Status.NOT_ATTACHED, 0, 0, b"")
            return
        subsystem = self.subsystem
        receipt = Receipt(
            subsystem.identity.sled_id, subsystem.storage.boot_counter, slot.volume, slot.epoch, slot.attach_number,
            number, slot.device_states,
        )  # fmt: skip
        subsystem.counters.receipts += 1
        data = receipt.encode(self.keys)
        reply(Status.SUCCESS, len(data), 0, data)

    def _detach(self, number: int, reply: Reply) -> None:
        slot = self.slot(number)
        if slot is None:
            reply(Status.NOT_ATTACHED, 0, 0, b"")
            return
        self._drop(slot)
        slot.when_settled(lambda: reply(Status.SUCCESS, 0, 0, b""))

    def _manage(self, opcode: int, fields: AdminFields, reply: Reply) -> None:
        """Create or delete a namespace: admitted like I/O, and counted in flight like it (F1, F3)."""
        subsystem = self.subsystem
        slot = self.slot(fields.slot)
        if slot is None:
            reply(Status.NOT_ATTACHED, 0, 0, b"")
            return
        volume = slot.volume
        if opcode == AdminOpcode.NAMESPACE_DELETE:
            served = subsystem.served.get(fields.nsid)
            if served is None:
                reply(Status.INVALID_NAMESPACE, 0, 0, b"")
                return
            volume = served.volume
        verdict = decide(slot, slot.fence, volume, RIGHT_MANAGE, subsystem.time.now_ms())
        if verdict:
            self.note_refusal(verdict, slot)
            reply(*refusal_of(verdict, slot.fence), b"")
            return
        storage = subsystem.storage
        if opcode == AdminOpcode.NAMESPACE_CREATE and not _may_take(slot, storage, fields.nlb, fields.slba):
            self._refuse(reply, Refusal.NO_SPACE, f"{fields.slba} blocks more for volume {volume}")
            return
        slot.enter(ON_TABLE)
        if opcode == AdminOpcode.NAMESPACE_CREATE:
            start = partial(storage.create_namespace, volume, fields.nlb, fields.slba)
            then(start, partial(self._managed, slot, fields.nlb, reply))
            return
        served = subsystem.served.pop(fields.nsid)  # nothing more is admitted to it
        served.when_idle(partial(self._delete, slot, fields.nsid, reply))

    def _delete(self, slot: Slot, nsid: int, reply: Reply) -> None:
        """Nothing is in flight in the namespace any more. The decision is taken again with the submission (F1): a
        newer pair may have come in between, and its receipt vouches that nothing of this one follows (F3)."""
        verdict = decide(slot, slot.fence, slot.volume, RIGHT_MANAGE, self.subsystem.time.now_ms())
        if verdict:
            self.note_refusal(verdict, slot)
            self._managed(slot, None, reply, *refusal_of(verdict, slot.fence))
            return
        then(partial(self.subsystem.storage.delete_namespace, nsid), partial(self._managed, slot, None, reply))

    def _managed(self, slot: Slot, column: int | None, reply: Reply, status: int, dw0: int = 0, dw1: int = 0) -> None:
        self.subsystem.refresh_namespaces()
        namespace = None if column is None else self.subsystem.storage.namespace_of(slot.volume, column)
        if namespace is not None and status == Status.SUCCESS:
            dw0 = namespace.nsid
        if not self.ended:
            reply(status, dw0, dw1, b"")
        slot.leave(ON_TABLE)


def _may_take(slot: Slot, storage: "SledStorage", column: int, blocks: int) -> bool:
    """Whether the slot's credential covers a namespace of that column and size, beside all that the volume has here.

    One that exists is asked for again after an answer was lost: it takes nothing.
    """
    if storage.has_column(slot.volume, column):
        return True
    held = storage.columns_of(slot.volume)
    return len(held) < slot.namespaces and sum(size for _, size in held) + blocks <= slot.blocks


def _fence_kept(state: VolumeState, attach: Attach, epoch: int, status: int) -> None:
    """The storage has written the fence's records, or could not."""
    if status:
        log.error("event=fence_not_durable volume=%s epoch=%d status=%#05x", state.fence.volume, epoch, status)
        attach.fail(status)
        return
    state.durable_epoch = max(state.durable_epoch, epoch)
    if state.attach is not None:
        state.attach.fence_durable()
