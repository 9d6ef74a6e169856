"""In-band authentication of a target's queues: the commands that carry it, and what passes before it is done.

A subsystem whose hosts may have to prove themselves gives its associations an `InBandAuthentication`; each queue of
such an association has a `QueueAuthentication`. Until that is done a queue takes nothing but these two commands.
Source: NVM Express Base 2.0, 6.1, 6.2 and 8.13.2; which messages they carry is `dhchap`'s.
"""

import logging
from functools import partial
from typing import TYPE_CHECKING, Final

from sled_controller.environment import Entropy
from sled_controller.errors import AuthenticationFailed
from sled_controller.fabric import pdu
from sled_controller.fabric.dhchap.handshake import AuthState, ControllerHandshake, SequenceNumbers
from sled_controller.fabric.dhchap.messages import (
    FAILURE,
    MESSAGE_BYTES_MAX,
    PROTOCOL_SPECIFIC,
    SECURITY_PROTOCOL,
    MessageKind,
    explanation_name,
    kind_of,
)
from sled_controller.fabric.dhchap.terms import Authenticator, Terms
from sled_controller.fabric.exchanges import Exchanges
from spdk_bindings.device import Buffer
from spdk_bindings.nvme import Status

if TYPE_CHECKING:
    from sled_controller.fabric.target import TargetQueue

log = logging.getLogger(__name__)

AUTHENTICATION_NS: Final = 30_000_000_000  # for one handshake; an emulated host needs seconds for a large group
REPLACED_NS: Final = 60_000_000_000
"""How long a live queue stays that was authenticated by a secret which was replaced since: a host that is told the new
one authenticates again on it."""
AUTHENTICATION_REQUIRED: Final = 1 << 17  # ATR, in the answer to Connect: no secure channel, but this


class InBandAuthentication:
    """One subsystem's: who has to prove himself, and how often it went well or not; a port may share its `numbers`."""

    def __init__(
        self, subsystem_nqn: str, authenticator: Authenticator, entropy: Entropy, numbers: SequenceNumbers,
        exchanges: Exchanges,
    ) -> None:  # fmt: skip
        self.subsystem_nqn = subsystem_nqn
        self.authenticator = authenticator
        self.entropy = entropy
        self.numbers = numbers
        self.exchanges = exchanges
        self.succeeded = 0
        self.failed = 0

    def required_of(self, host_nqn: str) -> bool:
        """Whether a queue of this host has to be authenticated when it connects."""
        return self.authenticator.terms(host_nqn) is not None

    def handshake(self, host_nqn: str, terms: Terms | None) -> ControllerHandshake:
        """A fresh one, on these terms."""
        return ControllerHandshake(host_nqn, self.subsystem_nqn, terms, self.entropy, self.numbers)


class QueueAuthentication:
    """One queue's: `pending` until its first authentication is done; the host may start another one later."""

    def __init__(self, shared: InBandAuthentication, host_nqn: str, now_ns: int) -> None:
        self.pending = shared.required_of(host_nqn)
        self._shared = shared
        self._host_nqn = host_nqn
        self._terms = shared.authenticator.terms(host_nqn)
        self._handshake = shared.handshake(host_nqn, self._terms)
        self._began_ns: int | None = now_ns if self.pending else None
        self._proven_by: Terms | None = None
        self._replaced_ns: int | None = None
        """Since when these are known not to be the terms that hold."""
        self._working = False  # a message is being taken; the host waits for that

    @property
    def connect_bits(self) -> int:
        """AUTHREQ, as the answer to Connect has it."""
        return AUTHENTICATION_REQUIRED if self.pending else 0

    def overdue(self, now_ns: int) -> bool:
        """Whether a handshake that was awaited, or begun, has taken too long, or one by a new secret is not made."""
        late = self._began_ns is not None and now_ns - self._began_ns > AUTHENTICATION_NS
        return late or self._replaced(now_ns)

    def _replaced(self, now_ns: int) -> bool:
        """Whether the secret that this queue was authenticated by was replaced, REPLACED_NS ago or earlier."""
        terms = self._shared.authenticator.terms(self._host_nqn)
        if self._proven_by is None or terms is None or terms == self._proven_by:
            self._replaced_ns = None
            return False
        if self._replaced_ns is None:
            self._replaced_ns = now_ns
        return now_ns - self._replaced_ns > REPLACED_NS

    def send(self, queue: "TargetQueue", sqe: bytes, data: Buffer, now_ns: int) -> None:
        """Authentication Send: the message lies in the capsule, which has room for the longest one."""
        cid, _, sgl, length = _fields(sqe)
        if not _ours(sqe) or not 0 < length <= MESSAGE_BYTES_MAX:
            queue.complete(cid, Status.INVALID_FIELD, dnr=True)
        elif sgl != pdu.SGL_IN_CAPSULE:
            queue.complete(cid, Status.SGL_TYPE_INVALID, dnr=True)
        elif length != len(data):
            queue.complete(cid, Status.SGL_LENGTH_INVALID, dnr=True)
        elif self._working:
            queue.complete(cid, Status.COMMAND_SEQUENCE_ERROR, dnr=True)
        else:
            message = bytes(data)
            if self._handshake.state is AuthState.DONE and _begins(message):
                self._terms = self._shared.authenticator.terms(self._host_nqn)
                self._handshake = self._shared.handshake(self._host_nqn, self._terms)  # once more, on a live queue
            if self._began_ns is None:
                self._began_ns = now_ns
            self._working = True
            queue.busy.add(cid)
            taken = partial(self._taken, queue, cid)
            if self._handshake.costly:
                self._shared.exchanges.begin(queue.peer_host, partial(self._handshake.take, message), taken)
            else:
                self._handshake.take(message)
                taken(True)

    def _taken(self, queue: "TargetQueue", cid: int, was_taken: bool) -> None:
        """A message was taken, or there was no time for it."""
        self._working = False
        if not queue.live:
            return
        queue.complete(cid, Status.SUCCESS if was_taken else Status.COMMAND_INTERRUPTED)
        if was_taken:
            self._settle(queue)
        else:
            self._shared.failed += 1
            queue.give_up("too many hosts authenticate at once")
        queue.poke()

    def receive(self, queue: "TargetQueue", sqe: bytes, now_ns: int) -> None:
        """Authentication Receive: a message without padding; one that does not fit fails the command only."""
        cid, room, _, length = _fields(sqe)
        if not _ours(sqe) or length < FAILURE.size or length > room:
            queue.complete(cid, Status.INVALID_FIELD, dnr=True)
            return
        if self._working:
            queue.complete(cid, Status.COMMAND_SEQUENCE_ERROR, dnr=True)
            return
        if self._began_ns is None:
            self._began_ns = now_ns
        message = self._handshake.give(length)
        if message is None:
            queue.complete(cid, Status.INVALID_FIELD, dnr=True)
            return
        queue.complete(cid, Status.SUCCESS, data=message)
        self._settle(queue)

    def _settle(self, queue: "TargetQueue") -> None:
        """Draw the consequence of a handshake that is over. A failed one ends the queue, and what it belongs to."""
        handshake = self._handshake
        if handshake.state is AuthState.DONE:
            again, self.pending, self._began_ns = not self.pending, False, None
            self._proven_by = self._terms
            self._shared.succeeded += 1
            log.info(
                "event=authenticated subsystem=%s host=%r queue=%d again=%s hash=%s group=%s both_ways=%s",
                self._shared.subsystem_nqn, self._host_nqn, queue.queue_id, again, handshake.hash_id.name,
                handshake.group_id.name, handshake.proves,
            )  # fmt: skip
            queue.authenticated()
        elif handshake.state is AuthState.FAILED:
            failure = handshake.failure
            assert failure is not None
            self._shared.failed += 1
            log.warning(
                "event=authentication_failed subsystem=%s host=%r queue=%d explanation=%s reason=%r",
                self._shared.subsystem_nqn, self._host_nqn, queue.queue_id, explanation_name(failure.explanation),
                failure.reason,
            )  # fmt: skip
            queue.give_up(f"authentication failed: {failure.reason}")


def _fields(sqe: bytes) -> tuple[int, int, int, int]:
    """(command id, length of the SGL, its type, TL or AL)."""
    _, _, cid, _, _, room, sgl, _, _, _, length = pdu.AUTHENTICATION_SQE.unpack(sqe)
    return cid, room, sgl, length


def _ours(sqe: bytes) -> bool:
    _, _, _, _, _, _, _, spsp0, spsp1, secp, _ = pdu.AUTHENTICATION_SQE.unpack(sqe)
    return bool(secp == SECURITY_PROTOCOL and spsp1 << 8 | spsp0 == PROTOCOL_SPECIFIC)


def _begins(message: bytes) -> bool:
    try:
        return kind_of(message)[0] is MessageKind.NEGOTIATE
    except AuthenticationFailed:
        return False
