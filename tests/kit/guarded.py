"""A sled whose hosts have to prove themselves by DH-HMAC-CHAP, without sockets, and a host that can."""

from kit import dhchap, host
from kit.target import HOST_NQN, Answer, Rig, Wire

from sled_controller.association import Association
from sled_controller.fabric import vendor
from sled_controller.fabric.authentication import InBandAuthentication
from sled_controller.fabric.dhchap.algorithms import GroupId, HashId
from sled_controller.fabric.dhchap.handshake import HostHandshake, SequenceNumbers
from sled_controller.fabric.dhchap.terms import Terms
from sled_controller.fabric.host_authentication import authentication_receive, authentication_send
from sled_controller.fabric.port import ConnectRefused, ConnectRequest
from sled_controller.fabric.target import TargetQueue
from sled_controller.subsystem import Subsystem
from spdk_bindings.nvme import CC_ENABLE, Property

NAME = HOST_NQN.decode()
TERMS = dhchap.only(dhchap.BOTH_WAYS, HashId.SHA256, GroupId.NULL)
ROOM = 4096


class GuardedSubsystem(Subsystem):
    """Knows secrets of its hosts; `known` may change at any time."""

    known: dict[str, Terms]
    authentication: InBandAuthentication

    def terms(self, host_nqn: str) -> Terms | None:
        return self.known.get(host_nqn)

    def open(self, queue: TargetQueue, request: ConnectRequest) -> Association | ConnectRefused:
        association = super().open(queue, request)
        if isinstance(association, Association):
            association.authentication = self.authentication
        return association


class GuardedRig(Rig):
    """A sled that asks the fixed host for its secret, on `terms`."""

    def __init__(self, terms: Terms | None = TERMS) -> None:
        super().__init__()
        identity = self.subsystem.identity
        self.guarded = GuardedSubsystem(identity, self.storage, self.env, self.timers.call_later)
        self.guarded.known = {} if terms is None else {NAME: terms}
        self.guarded.authentication = InBandAuthentication(
            identity.nqn, self.guarded, self.env.entropy, SequenceNumbers(self.env.entropy), self.guarded.exchanges
        )
        self.subsystem = self.guarded

    @property
    def authentication(self) -> InBandAuthentication:
        return self.guarded.authentication

    def live(self) -> tuple[Wire, int]:
        """An authenticated admin queue of an enabled controller, and the controller's id."""
        wire = self.connection()
        controller_id = wire.connect().dw0 & 0xFFFF
        authenticate(wire)
        assert wire.ask(vendor.property_set(Property.CC, CC_ENABLE)).status == 0
        return wire, controller_id

    def io_queue(self, controller_id: int) -> Wire:
        """An I/O queue after Connect."""
        wire = self.connection()
        assert wire.connect(1, controller_id).status == 0
        return wire


def host_handshake(terms: Terms = TERMS, t_id: int = 1, *, subsystem_nqn: str = host.NQN) -> HostHandshake:
    """The fixed host's side."""
    entropy = host.FixedEntropy(b"guarded host" + bytes([t_id]))
    return HostHandshake(NAME, subsystem_nqn, t_id, terms, entropy, SequenceNumbers(entropy))


def send(wire: Wire, message: bytes) -> Answer:
    """Authentication Send of `message`."""
    return wire.ask(authentication_send(len(message)), message)


def receive(wire: Wire, room: int = ROOM) -> Answer:
    """Authentication Receive with `room`."""
    return wire.ask(authentication_receive(room), room=room)


def authenticate(wire: Wire, terms: Terms = TERMS, t_id: int = 1, *, subsystem_nqn: str = host.NQN) -> HostHandshake:
    """Authenticate the queue of `wire`; how it went is in what is returned."""
    handshake = host_handshake(terms, t_id, subsystem_nqn=subsystem_nqn)
    while not handshake.over:
        if handshake.speaks:
            answer = send(wire, handshake.give())
        else:
            answer = receive(wire)
            handshake.take(answer.data)
        assert answer.status == 0, hex(answer.status)
    return handshake
