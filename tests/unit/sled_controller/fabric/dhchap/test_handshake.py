"""Authentication: both roles against each other, each algorithm, each way to fail."""

import hashlib
from dataclasses import replace
from itertools import pairwise, product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kit import host
from kit.dhchap import (
    BOTH_WAYS,
    CONTROLLER_SECRET,
    HOST_NQN,
    HOST_SECRET,
    ONE_WAY,
    ROOM,
    SUBSYSTEM_NQN,
    T_ID,
    controller_side,
    converse,
    host_side,
    only,
)

from sled_controller.errors import AuthenticationFailed
from sled_controller.fabric.dhchap.algorithms import GroupId, HashId
from sled_controller.fabric.dhchap.handshake import (
    HOST_SPEAKS,
    OVER,
    SEQUENCE_NUMBERS,
    TRANSITIONS,
    AuthInput,
    AuthState,
    ControllerHandshake,
    HostHandshake,
    SequenceNumbers,
)
from sled_controller.fabric.dhchap.messages import (
    Challenge,
    Explanation,
    Failure,
    MessageKind,
    Negotiate,
    Reply,
    Success1,
    Success2,
    kind_of,
)
from sled_controller.fabric.dhchap.secret import Secret
from sled_controller.fabric.dhchap.terms import Terms

CHEAP = only(ONE_WAY, HashId.SHA256, GroupId.NULL)
CHEAP_BOTH = only(BOTH_WAYS, HashId.SHA256, GroupId.NULL)


def kinds(spoken: list[bytes]) -> list[MessageKind]:
    return [kind_of(message)[0] for message in spoken]


def given_by(controller: ControllerHandshake) -> bytes:
    message = controller.give(ROOM)
    assert message is not None
    return message


def at(state: AuthState, terms: Terms = CHEAP_BOTH) -> tuple[HostHandshake, ControllerHandshake]:
    """Both sides when the message of `state` comes next."""
    host_, controller = host_side(terms), controller_side(terms)
    while controller.state is not state:
        if host_.speaks:
            controller.take(host_.give())
        else:
            host_.take(given_by(controller))
    return host_, controller


def explanation(side: ControllerHandshake | HostHandshake) -> int:
    assert side.failure is not None
    return side.failure.explanation


def refused(controller: ControllerHandshake) -> int:
    """The explanation that the controller gives in its failure message, its last word."""
    assert controller.state is AuthState.FAILURE1
    message = given_by(controller)
    assert kind_of(message)[0] is MessageKind.FAILURE1
    assert message[6] == 1
    assert controller.state is AuthState.FAILED
    assert explanation(controller) == message[7]
    return message[7]


# --- success


@pytest.mark.parametrize(("hash_id", "group"), [*product(HashId, GroupId)], ids=lambda each: each.name)
def test_every_hash_and_group_authenticates_both_ways(hash_id: HashId, group: GroupId) -> None:
    terms = only(BOTH_WAYS, hash_id, group)
    host_, controller = host_side(terms), controller_side(terms)
    spoken = converse(host_, controller)
    assert kinds(spoken) == [
        MessageKind.NEGOTIATE, MessageKind.CHALLENGE, MessageKind.REPLY, MessageKind.SUCCESS1, MessageKind.SUCCESS2,
    ]  # fmt: skip
    challenge = Challenge.decode(spoken[1])
    assert (challenge.hash_id, challenge.group_id) == (hash_id, group)
    assert host_.state is controller.state is AuthState.DONE
    assert host_.failure is controller.failure is None


@pytest.mark.parametrize("transform", [None, *HashId])
@pytest.mark.parametrize("key_bytes", [32, 48, 64])
def test_a_secret_of_any_length_goes_with_any_hash(transform: HashId | None, key_bytes: int) -> None:
    for hash_id in HashId:
        terms = Terms(Secret(b"k" * key_bytes, transform), None, hash_id, GroupId.NULL)
        host_, controller = host_side(terms), controller_side(terms)
        converse(host_, controller)
        assert host_.state is controller.state is AuthState.DONE


def test_without_a_secret_of_the_controller_the_host_alone_proves_itself() -> None:
    host_, controller = host_side(), controller_side(BOTH_WAYS)
    spoken = converse(host_, controller)
    assert kinds(spoken)[-1] is MessageKind.SUCCESS1
    assert Reply.decode(spoken[2]).challenge is None
    assert Success1.decode(spoken[3]) == Success1(T_ID, 32, None)
    assert host_.state is controller.state is AuthState.DONE


def test_the_weakest_that_reaches_the_floor_is_chosen() -> None:
    """So the floor is what the operator gets, and what a handshake costs."""
    controller = controller_side(only(ONE_WAY, HashId.SHA384, GroupId.FFDHE3072))
    controller.take(Negotiate(T_ID, 0, (3, 1, 2, 77), (5, 4, 0, 1, 2, 99)).encode())
    challenge = Challenge.decode(given_by(controller))
    assert (challenge.hash_id, challenge.group_id) == (HashId.SHA384, GroupId.FFDHE3072)


def test_a_stronger_algorithm_serves_where_the_floor_itself_is_not_offered() -> None:
    controller = controller_side(only(ONE_WAY, HashId.SHA256, GroupId.NULL))
    controller.take(Negotiate(T_ID, 0, (3,), (1,)).encode())
    challenge = Challenge.decode(given_by(controller))
    assert (challenge.hash_id, challenge.group_id) == (HashId.SHA512, GroupId.FFDHE2048)


def test_a_buffer_that_the_controller_fills_is_read_as_far_as_it_says() -> None:
    host_, controller = host_side(BOTH_WAYS), controller_side(BOTH_WAYS)
    converse(host_, controller, padding=500)
    assert host_.state is AuthState.DONE


def test_a_message_waits_for_room() -> None:
    host_, controller = at(AuthState.CHALLENGE, ONE_WAY)
    assert controller.give(16 + 32 + 255) is None
    assert controller.state is AuthState.CHALLENGE
    message = controller.give(16 + 32 + 256)
    assert message is not None
    host_.take(message)
    controller.take(host_.give())
    assert controller.state is AuthState.SUCCESS1


# --- an independent computation


def hmac_of(name: str, block: int, key: bytes, data: bytes) -> bytes:
    """RFC 2104, written out."""
    key = (hashlib.new(name, key).digest() if len(key) > block else key).ljust(block, b"\0")
    inner = hashlib.new(name, bytes(byte ^ 0x36 for byte in key) + data).digest()
    return hashlib.new(name, bytes(byte ^ 0x5C for byte in key) + inner).digest()


@pytest.mark.parametrize("group", [GroupId.NULL, GroupId.FFDHE2048], ids=lambda each: each.name)
@pytest.mark.parametrize(("hash_id", "block"), [(HashId.SHA256, 64), (HashId.SHA384, 128), (HashId.SHA512, 128)])
def test_responses_are_what_the_formula_of_the_standard_says(hash_id: HashId, block: int, group: GroupId) -> None:
    """From the bytes on the wire, the drawn exponent and the secrets alone."""
    from sled_controller.fabric.dhchap.algorithms import prime_of

    name = hash_id.name.lower()
    terms = only(BOTH_WAYS, hash_id, group)
    _, challenge_data, reply_data, success_data, _ = converse(host_side(terms), controller_side(terms))
    size = hash_id.digest_bytes
    c1, dhv = challenge_data[16 : 16 + size], challenge_data[16 + size :]
    r1, c2 = reply_data[16 : 16 + size], reply_data[16 + size : 16 + 2 * size]
    r2 = success_data[16:]
    s1, s2 = challenge_data[12:16], reply_data[12:16]

    def augmented(challenge: bytes) -> bytes:
        if group is GroupId.NULL:
            return challenge
        entropy = host.FixedEntropy(b"host")
        entropy.bytes(4)  # the first sequence number
        exponent = int.from_bytes(entropy.bytes(29), "big") >> 7 | 1 << 224
        shared = pow(int.from_bytes(dhv, "big"), exponent, prime_of(group)).to_bytes(256, "big")
        return hmac_of(name, block, hashlib.new(name, shared).digest(), challenge)

    t_id = bytes([0x34, 0x12])
    host_name, subsystem_name = HOST_NQN.encode(), SUBSYSTEM_NQN.encode()
    host_key = hmac_of("sha256", 64, HOST_SECRET.key, host_name + b"NVMe-over-Fabrics")
    controller_key = hmac_of("sha384", 128, CONTROLLER_SECRET.key, subsystem_name + b"NVMe-over-Fabrics")
    said_by_host = augmented(c1) + s1 + t_id + b"\0" + b"HostHost" + host_name + b"\0" + subsystem_name
    said_by_controller = augmented(c2) + s2 + t_id + b"\0" + b"Controller" + subsystem_name + b"\0" + host_name
    assert r1 == hmac_of(name, block, host_key, said_by_host)
    assert r2 == hmac_of(name, block, controller_key, said_by_controller)


# --- sequence numbers


def test_a_sequence_number_is_never_0_and_never_comes_twice() -> None:
    numbers = SequenceNumbers(host.FixedEntropy(b"numbers"))
    taken = [numbers.take() for _ in range(1000)]
    assert all(one % SEQUENCE_NUMBERS + 1 == other for one, other in pairwise(taken))


def test_the_sequence_passes_over_0_and_ends_before_it_repeats() -> None:
    class Ends(host.FixedEntropy):
        def bytes(self, count: int) -> bytes:
            return (SEQUENCE_NUMBERS - 2).to_bytes(count, "little")

    numbers = SequenceNumbers(Ends())
    assert [numbers.take() for _ in range(3)] == [SEQUENCE_NUMBERS - 1, SEQUENCE_NUMBERS, 1]
    numbers._left = 1
    numbers.take()
    with pytest.raises(AuthenticationFailed, match="spent"):
        numbers.take()


def test_each_authentication_has_a_challenge_number_and_key_of_its_own() -> None:
    entropy = host.FixedEntropy(b"shared")
    numbers = SequenceNumbers(entropy)
    seen = []
    for _ in range(5):
        controller = ControllerHandshake(HOST_NQN, SUBSYSTEM_NQN, ONE_WAY, entropy, numbers)
        controller.take(host_side().give())
        challenge = Challenge.decode(given_by(controller))
        seen += [challenge.sequence, challenge.challenge, challenge.value]
    assert len(set(seen)) == 15


# --- the controller objects


def test_a_host_that_does_not_know_its_secret_is_refused() -> None:
    wrong = replace(ONE_WAY, secret=Secret(bytes(32), HashId.SHA256))
    host_, controller = host_side(wrong), controller_side()
    spoken = converse(host_, controller)
    assert kinds(spoken)[-1] is MessageKind.FAILURE1
    assert host_.state is controller.state is AuthState.FAILED
    assert explanation(host_) == explanation(controller) == Explanation.FAILED


@pytest.mark.parametrize("names", [{"host_nqn": HOST_NQN + "x"}, {"subsystem_nqn": SUBSYSTEM_NQN + "x"}])
def test_a_response_is_for_these_two_names_only(names: dict[str, str]) -> None:
    """Also where the secret is used as it is."""
    terms = replace(ONE_WAY, secret=Secret(HOST_SECRET.key, None))
    host_, controller = host_side(terms, **names), controller_side(terms)
    converse(host_, controller)
    assert explanation(host_) == explanation(controller) == Explanation.FAILED


def test_a_host_that_wants_a_proof_where_there_is_no_secret_for_it_is_refused() -> None:
    host_, controller = host_side(BOTH_WAYS), controller_side()
    converse(host_, controller)
    assert explanation(host_) == explanation(controller) == Explanation.FAILED


def test_a_host_without_terms_can_use_no_protocol() -> None:
    host_, controller = host_side(), controller_side(None)
    converse(host_, controller)
    assert explanation(host_) == explanation(controller) == Explanation.PROTOCOL_NOT_USABLE


@pytest.mark.parametrize(
    ("offer", "expected"),
    [
        (Negotiate(T_ID, 1, (1,), (1,)), Explanation.SECURE_CHANNEL_MISMATCH),
        (Negotiate(T_ID, 3, (1,), (1,)), Explanation.SECURE_CHANNEL_MISMATCH),
        (Negotiate(T_ID, 0, (), (1,)), Explanation.HASH_NOT_USABLE),
        (Negotiate(T_ID, 0, (0, 4, 255), (1,)), Explanation.HASH_NOT_USABLE),
        (Negotiate(T_ID, 0, (1,), ()), Explanation.GROUP_NOT_USABLE),
        (Negotiate(T_ID, 0, (1,), (0, 6, 255)), Explanation.GROUP_NOT_USABLE),
    ],
)
def test_an_offer_below_the_floor_is_refused(offer: Negotiate, expected: Explanation) -> None:
    controller = controller_side()
    controller.take(offer.encode())
    assert refused(controller) == expected


def test_hosts_below_a_raised_floor_are_refused() -> None:
    for terms, expected in (
        (only(ONE_WAY, HashId.SHA512, GroupId.FFDHE2048), Explanation.HASH_NOT_USABLE),
        (only(ONE_WAY, HashId.SHA256, GroupId.FFDHE8192), Explanation.GROUP_NOT_USABLE),
    ):
        controller = controller_side(terms)
        controller.take(Negotiate(T_ID, 0, (1, 2), (0, 1, 2, 3, 4)).encode())
        assert refused(controller) == expected


def altered_reply(**changes: object) -> ControllerHandshake:
    host_, controller = at(AuthState.REPLY, BOTH_WAYS)
    controller.take(replace(Reply.decode(host_.give()), **changes).encode())  # type: ignore[arg-type]
    return controller


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"t_id": T_ID + 1}, Explanation.INCORRECT_PAYLOAD),
        ({"response": b"r" * 32}, Explanation.FAILED),
        ({"response": b"r" * 48, "challenge": b"c" * 48}, Explanation.INCORRECT_PAYLOAD),
        ({"response": b"", "challenge": b""}, Explanation.INCORRECT_PAYLOAD),
        ({"value": b""}, Explanation.INCORRECT_PAYLOAD),
        ({"value": bytes(256)}, Explanation.INCORRECT_PAYLOAD),
        ({"value": (1).to_bytes(256, "big")}, Explanation.INCORRECT_PAYLOAD),
        ({"value": b"\2" * 384}, Explanation.INCORRECT_PAYLOAD),
        ({"value": (2).to_bytes(256, "big")}, Explanation.FAILED),
    ],
)
def test_an_altered_reply_is_refused(changes: dict[str, object], expected: Explanation) -> None:
    assert refused(altered_reply(**changes)) == expected


def test_a_value_in_the_null_group_is_refused() -> None:
    host_, controller = at(AuthState.REPLY)
    controller.take(replace(Reply.decode(host_.give()), value=b"\2").encode())
    assert refused(controller) == Explanation.INCORRECT_PAYLOAD


@given(position=st.integers(0, 16 + 64 - 1), bit=st.integers(0, 7))
def test_a_reply_with_any_bit_flipped_is_refused_or_means_the_same(position: int, bit: int) -> None:
    """Without the reserved bytes; of a challenge that the host did not make its number says nothing."""
    host_, controller = at(AuthState.REPLY, CHEAP)
    data = bytearray(host_.give())
    data[position] ^= 1 << bit
    controller.take(bytes(data))
    means_nothing = position in (2, 3, 7, 9) or 12 <= position < 16 or position >= 16 + 32
    assert controller.state is (AuthState.SUCCESS1 if means_nothing else AuthState.FAILURE1)


def test_messages_out_of_turn_are_refused() -> None:
    host_, _ = at(AuthState.REPLY)
    reply = host_.give()
    words = {
        MessageKind.NEGOTIATE: host_side().give(),
        MessageKind.REPLY: reply,
        MessageKind.SUCCESS2: Success2(T_ID).encode(),
        MessageKind.CHALLENGE: Challenge(T_ID, 1, 0, 1, bytes(32), b"").encode(),
        MessageKind.SUCCESS1: Success1(T_ID, 32, None).encode(),
        MessageKind.FAILURE1: Failure(MessageKind.FAILURE1, T_ID, 1).encode(),
    }
    for state in set(AuthState) - {AuthState.FAILURE1, AuthState.FAILURE2, AuthState.FAILED}:
        for kind, data in words.items():
            if state in HOST_SPEAKS and kind.name == state.name:
                continue
            _, controller = at(state)
            controller.take(data)
            assert refused(controller) == Explanation.INCORRECT_MESSAGE, (state, kind)


@pytest.mark.parametrize("state", [AuthState.NEGOTIATE, AuthState.REPLY, AuthState.SUCCESS2, AuthState.DONE])
def test_a_message_that_is_asked_for_out_of_turn_is_a_failure(state: AuthState) -> None:
    _, controller = at(state)
    message = given_by(controller)
    assert Failure.decode(message).explanation == Explanation.INCORRECT_MESSAGE
    assert controller.state is AuthState.FAILED


def test_a_failure_is_final_and_told_again() -> None:
    controller = altered_reply(response=b"r" * 32)
    controller.take(host_side().give())
    assert controller.state is AuthState.FAILURE1
    first = given_by(controller)
    controller.take(host_side().give())
    assert controller.state is AuthState.FAILED
    assert given_by(controller) == first


@pytest.mark.parametrize("state", [AuthState.REPLY, AuthState.SUCCESS2, AuthState.DONE])
def test_the_host_may_object(state: AuthState) -> None:
    _, controller = at(state)
    controller.take(Failure(MessageKind.FAILURE2, T_ID, Explanation.HASH_NOT_USABLE).encode())
    assert controller.state is AuthState.FAILED
    assert explanation(controller) == Explanation.HASH_NOT_USABLE


def test_a_host_that_objects_to_nothing_is_refused() -> None:
    for state in (AuthState.NEGOTIATE, AuthState.CHALLENGE, AuthState.SUCCESS1):
        _, controller = at(state)
        controller.take(Failure(MessageKind.FAILURE2, T_ID, Explanation.FAILED).encode())
        assert refused(controller) == Explanation.INCORRECT_MESSAGE


@settings(max_examples=200)
@given(st.lists(st.binary(max_size=200) | st.none(), max_size=6))
def test_garbage_never_authenticates_and_raises_nothing(words: list[bytes | None]) -> None:
    controller = controller_side(CHEAP)
    for word in words:
        if word is None:
            controller.give(ROOM)
        else:
            controller.take(word)
    assert controller.state is not AuthState.DONE


# --- the host objects


def test_a_controller_that_does_not_know_its_secret_is_refused() -> None:
    wrong = replace(BOTH_WAYS, controller_secret=Secret(bytes(48), HashId.SHA384))
    host_, controller = host_side(BOTH_WAYS), controller_side(wrong)
    spoken = converse(host_, controller)
    assert kinds(spoken)[-1] is MessageKind.FAILURE2
    assert host_.state is controller.state is AuthState.FAILED
    assert explanation(host_) == explanation(controller) == Explanation.FAILED


def test_a_controller_that_proves_nothing_is_refused() -> None:
    host_, _ = at(AuthState.SUCCESS1)
    host_.take(Success1(T_ID, 32, None).encode())
    assert host_.state is AuthState.FAILURE2
    assert explanation(host_) == Explanation.FAILED


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"t_id": T_ID + 1}, Explanation.INCORRECT_PAYLOAD),
        ({"hash_id": 4}, Explanation.HASH_NOT_USABLE),
        ({"hash_id": 0}, Explanation.HASH_NOT_USABLE),
        ({"group_id": 6}, Explanation.GROUP_NOT_USABLE),
        ({"group_id": 0, "value": b""}, Explanation.GROUP_NOT_USABLE),
        ({"hash_id": 2}, Explanation.INCORRECT_PAYLOAD),
        ({"sequence": 0}, Explanation.INCORRECT_PAYLOAD),
        ({"challenge": b""}, Explanation.INCORRECT_PAYLOAD),
        ({"value": b""}, Explanation.INCORRECT_PAYLOAD),
        ({"value": bytes(256)}, Explanation.INCORRECT_PAYLOAD),
    ],
)
def test_an_altered_challenge_is_refused(changes: dict[str, object], expected: Explanation) -> None:
    """Among them a downgrade to what was not offered."""
    host_, controller = at(AuthState.CHALLENGE, ONE_WAY)
    host_.take(replace(Challenge.decode(given_by(controller)), **changes).encode())  # type: ignore[arg-type]
    assert host_.state is AuthState.FAILURE2
    assert explanation(host_) == expected
    controller.take(host_.give())
    assert controller.state is AuthState.FAILED
    assert explanation(controller) == expected or changes.get("t_id")


@pytest.mark.parametrize(
    "message",
    [
        Success1(T_ID, 48, b"r" * 48).encode(),
        Success1(T_ID + 1, 32, b"r" * 32).encode(),
        Success2(T_ID).encode(),
        Challenge(T_ID, 1, 0, 1, bytes(32), b"").encode(),
        b"",
        b"\1\3",
        b"\7\7\0\0\0\0",
    ],
)
def test_anything_but_the_awaited_answer_is_refused(message: bytes) -> None:
    host_, _ = at(AuthState.SUCCESS1)
    host_.take(message)
    assert host_.state is AuthState.FAILURE2
    assert explanation(host_) in (Explanation.INCORRECT_PAYLOAD, Explanation.INCORRECT_MESSAGE)


def test_a_proof_that_nobody_asked_for_is_refused() -> None:
    host_, _ = at(AuthState.SUCCESS1, CHEAP)
    host_.take(Success1(T_ID, 32, bytes(32)).encode())
    assert explanation(host_) == Explanation.INCORRECT_PAYLOAD


def test_what_the_controller_proved_does_not_serve_a_host() -> None:
    """A reflected challenge: the roles in the two formulas differ even if names and keys do not."""
    spoken = converse(host_side(CHEAP_BOTH), controller_side(CHEAP_BOTH))
    reply, success = Reply.decode(spoken[2]), Success1.decode(spoken[3])
    assert reply.response != success.response
    _, victim = at(AuthState.REPLY)
    assert success.response is not None
    victim.take(replace(reply, response=success.response).encode())
    assert refused(victim) == Explanation.FAILED


# --- terms


def test_equal_secrets_are_no_two_secrets() -> None:
    with pytest.raises(ValueError, match="differ"):
        Terms(HOST_SECRET, Secret(HOST_SECRET.key, HashId.SHA512))


# --- the table


def test_every_state_but_the_last_goes_on_and_every_input_is_used() -> None:
    assert {state for state, _ in TRANSITIONS} == set(AuthState)
    assert {what for _, what in TRANSITIONS} == set(AuthInput)
    assert set(TRANSITIONS.values()) == set(AuthState) - {AuthState.NEGOTIATE}
    assert all(TRANSITIONS[state, what] is AuthState.FAILED for state, what in TRANSITIONS if state is AuthState.FAILED)
    assert OVER.isdisjoint(HOST_SPEAKS)
