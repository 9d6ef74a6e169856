"""One authentication of one queue by DH-HMAC-CHAP: the controller's side and the host's, bytes in, bytes out.

NVM Express Base 2.0, 8.13.5. A state is named after the message that comes next, so both sides go by one table. A side
that objects does not raise: it says so in its next message (AUTH_Failure1 or 2) and ends in FAILED, with `failure`.
"""

import hmac
from enum import Enum, auto
from typing import Final

from sled_controller.environment import Entropy
from sled_controller.errors import AuthenticationFailed, DhValueRefused
from sled_controller.fabric.dhchap.algorithms import DhKey, GroupId, HashId
from sled_controller.fabric.dhchap.messages import (
    NO_SECURE_CHANNEL,
    Challenge,
    Explanation,
    Failure,
    MessageKind,
    Negotiate,
    Reply,
    Success1,
    Success2,
    explanation_name,
    kind_of,
)
from sled_controller.fabric.dhchap.response import Proof
from sled_controller.fabric.dhchap.terms import Terms

SEQUENCE_NUMBERS: Final = (1 << 32) - 1  # without 0, which would mean a secure channel


class AuthState(Enum):
    """Which message comes next."""

    NEGOTIATE = auto()
    CHALLENGE = auto()
    REPLY = auto()
    SUCCESS1 = auto()
    SUCCESS2 = auto()
    FAILURE1 = auto()  # the controller objects
    FAILURE2 = auto()  # the host objects
    DONE = auto()
    FAILED = auto()


class AuthInput(Enum):
    """What moves an authentication on: a message, or an objection."""

    NEGOTIATE = auto()
    CHALLENGE = auto()
    REPLY = auto()
    SUCCESS1 = auto()  # with the controller's response
    SUCCESS1_ALONE = auto()  # the host did not ask for one
    SUCCESS2 = auto()
    FAILURE1 = auto()
    FAILURE2 = auto()
    CONTROLLER_OBJECTS = auto()
    HOST_OBJECTS = auto()


TRANSITIONS: Final[dict[tuple[AuthState, AuthInput], AuthState]] = {
    (AuthState.NEGOTIATE, AuthInput.NEGOTIATE): AuthState.CHALLENGE,
    (AuthState.CHALLENGE, AuthInput.CHALLENGE): AuthState.REPLY,
    (AuthState.REPLY, AuthInput.REPLY): AuthState.SUCCESS1,
    (AuthState.SUCCESS1, AuthInput.SUCCESS1): AuthState.SUCCESS2,
    (AuthState.SUCCESS1, AuthInput.SUCCESS1_ALONE): AuthState.DONE,
    (AuthState.SUCCESS2, AuthInput.SUCCESS2): AuthState.DONE,
    # The controller may object to whatever the host sends, or asks for, out of turn.
    (AuthState.NEGOTIATE, AuthInput.CONTROLLER_OBJECTS): AuthState.FAILURE1,
    (AuthState.CHALLENGE, AuthInput.CONTROLLER_OBJECTS): AuthState.FAILURE1,
    (AuthState.REPLY, AuthInput.CONTROLLER_OBJECTS): AuthState.FAILURE1,
    (AuthState.SUCCESS1, AuthInput.CONTROLLER_OBJECTS): AuthState.FAILURE1,
    (AuthState.SUCCESS2, AuthInput.CONTROLLER_OBJECTS): AuthState.FAILURE1,
    (AuthState.DONE, AuthInput.CONTROLLER_OBJECTS): AuthState.FAILURE1,
    (AuthState.FAILURE1, AuthInput.FAILURE1): AuthState.FAILED,
    (AuthState.FAILED, AuthInput.FAILURE1): AuthState.FAILED,  # asked again, told again
    # The same as the host sees it: the message that it waits for is a failure.
    (AuthState.CHALLENGE, AuthInput.FAILURE1): AuthState.FAILED,
    (AuthState.SUCCESS1, AuthInput.FAILURE1): AuthState.FAILED,
    # The host objects to the challenge, or to the response; the controller is told in place of what it waits for.
    (AuthState.CHALLENGE, AuthInput.HOST_OBJECTS): AuthState.FAILURE2,
    (AuthState.SUCCESS1, AuthInput.HOST_OBJECTS): AuthState.FAILURE2,
    (AuthState.FAILURE2, AuthInput.FAILURE2): AuthState.FAILED,
    (AuthState.REPLY, AuthInput.FAILURE2): AuthState.FAILED,
    (AuthState.SUCCESS2, AuthInput.FAILURE2): AuthState.FAILED,
    (AuthState.DONE, AuthInput.FAILURE2): AuthState.FAILED,
}

OVER: Final = frozenset({AuthState.DONE, AuthState.FAILED})
HOST_SPEAKS: Final = frozenset({AuthState.NEGOTIATE, AuthState.REPLY, AuthState.SUCCESS2, AuthState.FAILURE2})


class SequenceNumbers:
    """Sequence numbers of one side: never 0, never one twice; from a random one on, so not those of its last start."""

    def __init__(self, entropy: Entropy) -> None:
        self._last = int.from_bytes(entropy.bytes(4), "little") % SEQUENCE_NUMBERS
        self._left = SEQUENCE_NUMBERS

    def take(self) -> int:
        """The next number, 1 to 2^32 - 1; raises AuthenticationFailed when there is none left: restart the process."""
        if not self._left:
            raise AuthenticationFailed(Explanation.FAILED, "every sequence number is spent")
        self._left -= 1
        self._last = self._last % SEQUENCE_NUMBERS + 1
        return self._last


class _Side:
    """What both sides keep: the state, the transaction, the reason of a failure."""

    def __init__(self, host_nqn: str, subsystem_nqn: str, t_id: int) -> None:
        self.host_nqn = host_nqn
        self.subsystem_nqn = subsystem_nqn
        self.state = AuthState.NEGOTIATE
        self.failure: AuthenticationFailed | None = None
        self._t_id = t_id

    @property
    def over(self) -> bool:
        """Whether no message follows."""
        return self.state in OVER

    def _move(self, what: AuthInput) -> None:
        self.state = TRANSITIONS[self.state, what]

    def _object(self, what: AuthInput, failure: AuthenticationFailed) -> None:
        self.failure = failure
        self._move(what)

    def _told(self, kind: MessageKind, data: bytes) -> None:
        """The other side objects."""
        explanation = Failure.decode(data).explanation
        who = "controller" if kind is MessageKind.FAILURE1 else "host"
        self.failure = AuthenticationFailed(explanation, f"the {who} says {explanation_name(explanation)}")
        self._move(AuthInput[kind.name])

    def _check_transaction(self, t_id: int) -> None:
        if t_id != self._t_id:
            raise AuthenticationFailed(Explanation.INCORRECT_PAYLOAD, f"transaction {t_id}, not {self._t_id}")

    def _proof(self, hash_id: HashId, key: DhKey, value: bytes) -> Proof:
        try:
            shared = key.shared(value)
        except DhValueRefused as error:
            raise AuthenticationFailed(Explanation.INCORRECT_PAYLOAD, str(error)) from None
        return Proof(self.host_nqn, self.subsystem_nqn, hash_id, self._t_id, shared)


class ControllerHandshake(_Side):
    """The controller's side: `take` what Authentication Send brings, `give` what Authentication Receive asks for.

    Without terms (the host is not known, or need not authenticate) no protocol is usable. Nothing is raised: the state
    and `failure` say how it went.
    """

    def __init__(
        self, host_nqn: str, subsystem_nqn: str, terms: Terms | None, entropy: Entropy, numbers: SequenceNumbers
    ) -> None:
        super().__init__(host_nqn, subsystem_nqn, 0)
        self._terms = terms
        self._entropy = entropy
        self._numbers = numbers
        self.hash_id = HashId.SHA256
        self._key = DhKey(GroupId.NULL, entropy)
        self._challenge: Challenge | None = None
        self._response: bytes | None = None

    @property
    def group_id(self) -> GroupId:
        """The group that was chosen."""
        return self._key.group

    @property
    def proves(self) -> bool:
        """Whether the host asked for a proof, and gets one."""
        return self._response is not None

    @property
    def costly(self) -> bool:
        """Whether taking the next message may take an exponentiation."""
        return self.state in (AuthState.NEGOTIATE, AuthState.REPLY)

    def take(self, data: bytes) -> None:
        """A message of the host, at most MESSAGE_BYTES_MAX long."""
        try:
            kind, t_id = kind_of(data)
            if self.state is AuthState.NEGOTIATE:
                self._t_id = t_id
            self._check_transaction(t_id)
            if kind is MessageKind.FAILURE2 and (self.state, AuthInput.FAILURE2) in TRANSITIONS:
                self._told(kind, data)
            elif kind.name != self.state.name or self.state not in HOST_SPEAKS:
                raise AuthenticationFailed(Explanation.INCORRECT_MESSAGE, f"{kind.name} came, {self.state.name} is due")
            elif kind is MessageKind.NEGOTIATE:
                self._negotiate(Negotiate.decode(data))
            elif kind is MessageKind.REPLY:
                self._check(Reply.decode(data))
            else:
                Success2.decode(data)
                self._move(AuthInput.SUCCESS2)
        except AuthenticationFailed as failure:
            if (self.state, AuthInput.CONTROLLER_OBJECTS) in TRANSITIONS:
                self._object(AuthInput.CONTROLLER_OBJECTS, failure)

    def give(self, room: int) -> bytes | None:
        """The message for the host, None when it does not fit into `room` bytes; it waits then."""
        if self.state in HOST_SPEAKS or self.state is AuthState.DONE:
            text = f"nothing is due from the controller, {self.state.name} is the next message"
            failure = AuthenticationFailed(Explanation.INCORRECT_MESSAGE, text)
            self._object(AuthInput.CONTROLLER_OBJECTS, failure)
        if self.state is AuthState.CHALLENGE:
            assert self._challenge is not None
            data, moved = self._challenge.encode(), AuthInput.CHALLENGE
        elif self.state is AuthState.SUCCESS1:
            data = Success1(self._t_id, self.hash_id.digest_bytes, self._response).encode()
            moved = AuthInput.SUCCESS1_ALONE if self._response is None else AuthInput.SUCCESS1
        else:
            assert self.failure is not None
            data = Failure(MessageKind.FAILURE1, self._t_id, self.failure.explanation).encode()
            moved = AuthInput.FAILURE1
        if len(data) > room:
            return None
        self._move(moved)
        return data

    def _negotiate(self, offer: Negotiate) -> None:
        terms = self._terms
        if offer.secure_channel != NO_SECURE_CHANNEL:
            text = f"secure channel concatenation ({offer.secure_channel}) is not done here"
            raise AuthenticationFailed(Explanation.SECURE_CHANNEL_MISMATCH, text)
        if terms is None:
            raise AuthenticationFailed(Explanation.PROTOCOL_NOT_USABLE, "there is no secret for this host")
        hashes = [each for each in terms.hashes if each in offer.hashes]
        groups = [each for each in terms.groups_taken if each in offer.groups]
        if not hashes:
            raise AuthenticationFailed(Explanation.HASH_NOT_USABLE, f"no hash from {terms.hash_floor.name} up")
        if not groups:
            span = f"{terms.groups_taken[0].name} to {terms.groups_taken[-1].name}"
            raise AuthenticationFailed(Explanation.GROUP_NOT_USABLE, f"no group from {span}")
        self.hash_id = hashes[0]
        self._key = DhKey(groups[0], self._entropy)
        challenge = self._entropy.bytes(self.hash_id.digest_bytes)
        self._challenge = Challenge(
            self._t_id, self.hash_id, groups[0], self._numbers.take(), challenge, self._key.public
        )
        self._move(AuthInput.NEGOTIATE)

    def _check(self, reply: Reply) -> None:
        terms, sent = self._terms, self._challenge
        assert terms is not None
        assert sent is not None
        if len(reply.response) != self.hash_id.digest_bytes:
            text = f"a response of {len(reply.response)} bytes, not {self.hash_id.digest_bytes}"
            raise AuthenticationFailed(Explanation.INCORRECT_PAYLOAD, text)
        proof = self._proof(self.hash_id, self._key, reply.value)
        expected = proof.of_host(terms.secret.key_for(self.host_nqn), sent.challenge, sent.sequence)
        if not hmac.compare_digest(reply.response, expected):
            raise AuthenticationFailed(Explanation.FAILED, "the host does not know its secret")
        if reply.challenge is not None:
            if terms.controller_secret is None:
                text = "the host asks for a proof, and there is no secret of the controller for it"
                raise AuthenticationFailed(Explanation.FAILED, text)
            key = terms.controller_secret.key_for(self.subsystem_nqn)
            self._response = proof.of_controller(key, reply.challenge, reply.sequence)
        self._move(AuthInput.REPLY)


class HostHandshake(_Side):
    """The host's side: while `speaks`, send what `give` returns, else ask for a message and `take` it, until `over`.

    With a controller's secret in the terms the controller has to prove itself too. `t_id` names the transaction.
    """

    def __init__(
        self, host_nqn: str, subsystem_nqn: str, t_id: int, terms: Terms, entropy: Entropy, numbers: SequenceNumbers
    ) -> None:
        super().__init__(host_nqn, subsystem_nqn, t_id)
        self._terms = terms
        self._entropy = entropy
        self._numbers = numbers
        self._reply: Reply | None = None
        self._expected: bytes | None = None
        self._digest_bytes = 0

    @property
    def speaks(self) -> bool:
        """Whether the next message is the host's."""
        return self.state in HOST_SPEAKS

    def give(self) -> bytes:
        """The message for the controller."""
        assert self.speaks
        moved = AuthInput[self.state.name]
        if self.state is AuthState.NEGOTIATE:
            terms = self._terms
            data = Negotiate(self._t_id, NO_SECURE_CHANNEL, terms.hashes, terms.groups).encode()
        elif self.state is AuthState.REPLY:
            assert self._reply is not None
            data = self._reply.encode()
        elif self.state is AuthState.SUCCESS2:
            data = Success2(self._t_id).encode()
        else:
            assert self.failure is not None
            data = Failure(MessageKind.FAILURE2, self._t_id, self.failure.explanation).encode()
        self._move(moved)
        return data

    def take(self, data: bytes) -> None:
        """A message of the controller; what follows it in the buffer is not looked at."""
        assert not self.speaks
        assert not self.over
        try:
            kind, t_id = kind_of(data)
            self._check_transaction(t_id)
            if kind is MessageKind.FAILURE1:
                self._told(kind, data)
            elif kind.name != self.state.name:
                raise AuthenticationFailed(Explanation.INCORRECT_MESSAGE, f"{kind.name} came, {self.state.name} is due")
            elif kind is MessageKind.CHALLENGE:
                self._answer(Challenge.decode(data))
            else:
                self._check(Success1.decode(data))
        except AuthenticationFailed as failure:
            self._object(AuthInput.HOST_OBJECTS, failure)

    def _answer(self, asked: Challenge) -> None:
        terms = self._terms
        if asked.hash_id not in terms.hashes:
            raise AuthenticationFailed(Explanation.HASH_NOT_USABLE, f"hash {asked.hash_id} was not offered")
        if asked.group_id not in terms.groups:
            raise AuthenticationFailed(Explanation.GROUP_NOT_USABLE, f"group {asked.group_id} was not offered")
        hash_id = HashId(asked.hash_id)
        self._digest_bytes = hash_id.digest_bytes
        if len(asked.challenge) != self._digest_bytes or not asked.sequence:
            text = f"a challenge of {len(asked.challenge)} bytes, number {asked.sequence}"
            raise AuthenticationFailed(Explanation.INCORRECT_PAYLOAD, text)
        key = DhKey(GroupId(asked.group_id), self._entropy)
        proof = self._proof(hash_id, key, asked.value)
        response = proof.of_host(terms.secret.key_for(self.host_nqn), asked.challenge, asked.sequence)
        challenge = None
        sequence = self._numbers.take()
        if terms.controller_secret is not None:
            challenge = self._entropy.bytes(self._digest_bytes)
            controller_key = terms.controller_secret.key_for(self.subsystem_nqn)
            self._expected = proof.of_controller(controller_key, challenge, sequence)
        self._reply = Reply(self._t_id, sequence, response, challenge, key.public)
        self._move(AuthInput.CHALLENGE)

    def _check(self, success: Success1) -> None:
        if success.hash_bytes != self._digest_bytes or (success.response is not None and self._expected is None):
            text = f"a response of {success.hash_bytes} bytes to {'a' if self._expected else 'no'} challenge"
            raise AuthenticationFailed(Explanation.INCORRECT_PAYLOAD, text)
        if self._expected is None:
            self._move(AuthInput.SUCCESS1_ALONE)
            return
        if success.response is None or not hmac.compare_digest(success.response, self._expected):
            raise AuthenticationFailed(Explanation.FAILED, "the controller does not know its secret")
        self._move(AuthInput.SUCCESS1)
