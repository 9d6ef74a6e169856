"""Both roles of DH-HMAC-CHAP with fixed names, secrets and entropy."""

from dataclasses import replace

from kit import host

from sled_controller.fabric.dhchap.algorithms import GroupId, HashId
from sled_controller.fabric.dhchap.handshake import ControllerHandshake, HostHandshake, SequenceNumbers
from sled_controller.fabric.dhchap.secret import Secret
from sled_controller.fabric.dhchap.terms import Terms

HOST_NQN = f"nqn.2014-08.org.nvmexpress:uuid:{host.HEAD}"
SUBSYSTEM_NQN = f"nqn.2014-08.org.nvmexpress:uuid:{host.VOLUME}"
T_ID = 0x1234
ROOM = 4096
HOST_SECRET = Secret(bytes(range(32)), HashId.SHA256)
CONTROLLER_SECRET = Secret(bytes(range(100, 148)), HashId.SHA384)
ONE_WAY = Terms(HOST_SECRET)
BOTH_WAYS = Terms(HOST_SECRET, CONTROLLER_SECRET)


def only(terms: Terms, hash_id: HashId, group: GroupId) -> Terms:
    """`terms` with these floors."""
    return replace(terms, hash_floor=hash_id, group_floor=group)


def host_side(terms: Terms = ONE_WAY, *, host_nqn: str = HOST_NQN, subsystem_nqn: str = SUBSYSTEM_NQN) -> HostHandshake:
    """A host at the beginning."""
    entropy = host.FixedEntropy(b"host")
    return HostHandshake(host_nqn, subsystem_nqn, T_ID, terms, entropy, SequenceNumbers(entropy))


def controller_side(terms: Terms | None = ONE_WAY) -> ControllerHandshake:
    """A controller at the beginning."""
    entropy = host.FixedEntropy(b"controller")
    return ControllerHandshake(HOST_NQN, SUBSYSTEM_NQN, terms, entropy, SequenceNumbers(entropy))


def converse(host_: HostHandshake, controller: ControllerHandshake, padding: int = 0) -> list[bytes]:
    """Let both speak until the host has nothing more to say or hear; every message in order."""
    messages = []
    while not host_.over:
        if host_.speaks:
            message = host_.give()
            controller.take(message)
        else:
            given = controller.give(ROOM)
            assert given is not None
            message = given
            host_.take(message + bytes(padding))
        messages.append(message)
    return messages
