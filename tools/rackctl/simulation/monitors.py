"""Watchers of what only a simulation shows: who answers clients, fences behind the sleds' backs, places, and nonces."""

from collections import Counter, defaultdict
from uuid import UUID

from rackctl.consistency.history import Violation
from sled_controller.association import Association
from sled_controller.fabric import pdu
from sled_controller.fabric.associations import Standing
from sled_controller.fabric.target import TargetQueue
from sled_controller.places import KEY_ASSOCIATIONS_MAX
from spdk_bindings.nvme import AdminOpcode, FabricsType


class AnswerMonitor:
    """Of each volume one head at a time answers clients: once a newer epoch has, no older one does (F5, F7), and within
    an epoch it is one run of one head. Each request is answered once."""

    def __init__(self) -> None:
        self._newest: dict[UUID, tuple[int, str]] = {}
        self.answers_total = 0

    def answered(self, volume: UUID, epoch: int, process: str, before: int) -> None:
        """A client gets a successful answer from the primary of `epoch` (0: from a head that is none); the request was
        answered `before` times already. Raises Violation."""
        self.answers_total += 1
        newest, other = self._newest.setdefault(volume, (epoch, process))
        if epoch > newest:
            self._newest[volume] = (epoch, process)
        elif epoch < newest:
            raise Violation(
                f"volume {volume}: {process} answers a client in epoch {epoch}, {other} has answered in {newest} (F7)"
            )
        elif process != other:
            raise Violation(f"volume {volume}: {process} and {other} both answer clients in epoch {epoch} (F4)")
        if before:
            raise Violation(f"volume {volume}: {process} answers a request again in epoch {epoch}")


class FenceMonitor:
    """After a sled's receipt for an epoch nothing of an older one reaches its drive (F1, F3)."""

    def __init__(self) -> None:
        self._floors: dict[tuple[str, UUID], tuple[int, str]] = defaultdict(lambda: (0, "nobody"))
        self.writes_total = 0

    def receipt(self, sled: str, volume: UUID, epoch: int, to: str) -> None:
        """`to` holds a receipt of the sled for `epoch`."""
        if epoch > self._floors[sled, volume][0]:
            self._floors[sled, volume] = (epoch, to)

    def written(self, sled: str, volume: UUID, epoch: int, lba: int) -> None:
        """A block made in `epoch` is being put on the drive. Raises Violation."""
        self.writes_total += 1
        floor, holder = self._floors[sled, volume]
        if epoch < floor:
            raise Violation(
                f"{sled}: block {lba} of volume {volume} is written in epoch {epoch}, though {holder} holds a receipt "
                f"for epoch {floor} (F1, F3)"
            )


class PlaceMonitor:
    """At a sled standing is what holds now (F1), a key has few associations, and a Connect in a head's name takes
    nothing from it. Looked at with each receipt, when a stranger that knows all names tries the head's queue."""

    def __init__(self) -> None:
        self.attaches_total = 0

    def attached(self, association: Association) -> None:
        """A receipt is about to be given on this association. Raises Violation."""
        self.attaches_total += 1
        hosts = list(association.subsystem.hosts.values())
        now_ms = association.subsystem.now_ms()
        for each in hosts:
            holds = any(
                slot.state.holder is slot and slot.key_current and slot.expires_ms >= now_ms for slot in each.slots
            )
            if each.standing is Standing.TRUSTED and not holds:
                raise Violation(f"a sled trusts controller {each.controller_id}, which holds nothing now (F1)")
        count = Counter(each.holder for each in hosts if each.holder)
        if count and max(count.values()) > KEY_ASSOCIATIONS_MAX:
            raise Violation(f"a head key has {max(count.values())} associations with a sled")
        queues = dict(association.queues)
        self._connect(association)
        if association.ended or association.queues != queues:
            raise Violation(f"a Connect in its name took a queue from controller {association.controller_id}")

    def _connect(self, association: Association) -> None:
        subsystem = association.subsystem
        now_ns, peer = subsystem.env.clock.boottime_ns(), association.queues[0].peer_host
        stranger = TargetQueue(subsystem, now_ns, peer_host=peer)
        names = (association.host_id, association.controller_id, subsystem.identity.nqn.encode(), association.host_nqn)
        sqe = pdu.CONNECT_SQE.pack(
            AdminOpcode.FABRICS, pdu.PSDT_SGL, 0, FabricsType.CONNECT, 0, pdu.CONNECT_DATA_BYTES, pdu.SGL_IN_CAPSULE, 0,
            1, 127, 0, 0,
        )  # fmt: skip
        capsule = pdu.capsule_cmd(bytearray(sqe), (pdu.CONNECT_DATA.pack(*names),), 0)
        stranger.feed(b"".join((pdu.ic_req(0), *capsule)), subsystem.now_ms(), now_ns)
        stranger.lost("it has seen enough")


class NonceMonitor:
    """No GMAC key is used twice with one nonce (design: nonce reuse would leak the key)."""

    def __init__(self) -> None:
        self._last: dict[bytes, int] = {}
        self.nonces_total = 0

    def used(self, key: bytes, count: int) -> None:
        """A MAC is made. Counts only rise, so the last one is all that need be kept. Raises Violation."""
        last = self._last.get(key, -1)
        if count <= last:
            raise Violation(f"nonce {count} is used again with one key, {last} was the last")
        self._last[key] = count
        self.nonces_total += 1
