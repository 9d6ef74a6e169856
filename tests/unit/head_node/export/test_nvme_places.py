"""Who has a place at a head's NVMe/TCP port: shares for each volume, and hosts that have proved themselves first."""

from uuid import UUID

import pytest
from kit import host
from kit.dhchap import BOTH_WAYS, only
from kit.export import VOLUME_ID
from kit.guarded import authenticate
from kit.nvme_export import ADDRESSES, BLOCK, Port, sqe
from kit.target import HOST_NQN, Wire

from head_node.export.nvme.guard import Guard
from head_node.export.nvme.server import NvmeServer, Offer
from head_node.export.nvme.subsystem import HOSTS_MAX, Access, Exported, VolumeSubsystem
from sled_controller.environment import Environment
from sled_controller.fabric import vendor
from sled_controller.fabric.dhchap.algorithms import GroupId, HashId
from sled_controller.fabric.port import KATO_SECONDS_MAX
from sled_controller.fabric.target import QueueState
from spdk_bindings.nvme import CC_ENABLE, DISCOVERY_NQN, AdminOpcode, Feature, Property, Status, uuid_nqn

OTHER_ID = UUID(int=77)
TERMS = only(BOTH_WAYS, HashId.SHA256, GroupId.NULL)
GUARDED = HOST_NQN.decode()
QUEUES_MAX = 64


class Shared(Port):
    """A port of few connections with two volumes; the other one is for a host that has a secret, if it is guarded."""

    def __init__(self, guarded: bool = True) -> None:
        super().__init__()
        self.server = NvmeServer(
            Environment(self.clock, host.FixedEntropy(b"port")), serial="HEAD", connections_max=QUEUES_MAX
        )
        offers = [
            Offer(Exported(volume, str(volume), 1024 * BLOCK, frozenset(hosts)), ADDRESSES)
            for volume, hosts in ((VOLUME_ID, ("*",)), (OTHER_ID, (GUARDED,) if guarded else ("*",)))
        ]
        self.server.update(offers, 2, {OTHER_ID: Guard({GUARDED: TERMS})} if guarded else {})
        self.server.set_access(VOLUME_ID, Access.OPTIMIZED, self.volume)

    def of(self, volume: UUID) -> VolumeSubsystem:
        return self.server.subsystems[volume]


def nqn(number: int) -> bytes:
    return b"nqn.2014-08.org.nvmexpress:uuid:%d" % number


class Queues:
    """A host's admin queue and as many I/O queues as it gets."""

    def __init__(
        self, port: Port, host_nqn: bytes, volume: UUID = VOLUME_ID, queues: int = 0, host_id: bytes = bytes(16),
        kato_ms: int = 5000,
    ) -> None:  # fmt: skip
        self.port, self.host_nqn, self.host_id, self.nqn = port, host_nqn, host_id, uuid_nqn(volume)
        self.admin = port.connection()
        answer = self.admin.connect(nqn=self.nqn, host_nqn=host_nqn, host_id=host_id, kato_ms=kato_ms)
        self.status, self.controller_id = answer.status, answer.dw0 & 0xFFFF
        self.io: list[Wire] = []
        if not self.status and queues:
            assert self.admin.ask(vendor.property_set(Property.CC, CC_ENABLE)).status == 0
            for _ in range(queues):
                self.add()

    def add(self) -> int:
        wire = self.port.connection()
        answer = wire.connect(
            len(self.io) + 1, self.controller_id, nqn=self.nqn, host_nqn=self.host_nqn, host_id=self.host_id
        )
        if not answer.status:
            self.io.append(wire)
        return answer.status

    @property
    def alive(self) -> bool:
        return self.admin.queue.state is QueueState.LIVE


def proven(port: Port, volume: UUID = OTHER_ID) -> Queues:
    found = Queues(port, HOST_NQN, volume)
    assert found.status == 0, hex(found.status)
    authenticate(found.admin, TERMS, subsystem_nqn=uuid_nqn(volume))
    return found


# --- the connections of the port


def test_a_stranger_on_an_open_volume_leaves_connections_to_hosts_that_prove_themselves() -> None:
    port = Shared()
    strangers = [Queues(port, nqn(1), queues=3, host_id=bytes([n]) * 16) for n in range(QUEUES_MAX)]
    held = sum(len(each.io) + 1 for each in strangers if not each.status)
    assert held <= QUEUES_MAX * 3 // 4
    assert any(each.status == Status.CONNECT_CONTROLLER_BUSY for each in strangers)
    hosts = [proven(port) for _ in range(QUEUES_MAX * 7 // 8)]
    assert all(each.alive for each in hosts)
    assert not any(each.alive for each in strangers), "hosts that are believed by their names have given way"


def test_a_volume_without_secrets_has_its_share_of_the_connections() -> None:
    port = Shared(guarded=False)
    strangers = [Queues(port, nqn(1), queues=3, host_id=bytes([n]) * 16) for n in range(QUEUES_MAX)]
    late = Queues(port, nqn(2), OTHER_ID, queues=4)
    assert late.status == 0
    assert len(late.io) == 4
    assert sum(each.alive for each in strangers) >= 9, "no more was taken than was needed"
    greedy = Queues(port, nqn(3), OTHER_ID)
    while greedy.status == 0:
        greedy = Queues(port, nqn(3), OTHER_ID)
    assert port.of(OTHER_ID).occupied <= QUEUES_MAX * 3 // 8 + 1


def test_a_host_without_a_secret_is_granted_fewer_queues_where_connections_are_short() -> None:
    port = Shared()
    first = Queues(port, nqn(1), queues=1)
    assert granted(first) == 16
    for number in range(2, 40):
        Queues(port, nqn(number), queues=1)
    assert granted(first) < 16


def granted(queues: Queues) -> int:
    answer = queues.admin.ask(sqe(AdminOpcode.SET_FEATURES, 0, cdw10=Feature.NUMBER_OF_QUEUES, cdw11=15 | 15 << 16))
    assert answer.status == 0
    return (answer.dw0 & 0xFFFF) + 1


def test_places_are_given_back_however_a_queue_goes() -> None:
    port = Shared()
    for leave in ("lost", "disabled", "admin lost"):
        found = Queues(port, nqn(1), queues=3)
        assert port.of(VOLUME_ID).occupied == 4
        if leave == "lost":
            found.io[0].queue.lost("gone")
            assert port.of(VOLUME_ID).occupied == 3
        elif leave == "disabled":
            assert found.admin.ask(vendor.property_set(Property.CC, 0)).status == 0
            assert port.of(VOLUME_ID).occupied == 1
        found.admin.queue.lost("gone")
        assert (port.of(VOLUME_ID).occupied, port.of(VOLUME_ID).named) == (0, 0)


# --- the hosts of a volume


def test_a_host_that_takes_all_places_of_an_open_volume_leaves_one_to_another_host() -> None:
    port = Port()
    greedy = [Queues(port, nqn(1), host_id=bytes([n]) * 16) for n in range(HOSTS_MAX + 1)]
    assert [each.status for each in greedy] == [0] * HOSTS_MAX + [Status.CONNECT_CONTROLLER_BUSY]
    late = Queues(port, nqn(2))
    assert late.status == 0
    assert [each.alive for each in greedy[:HOSTS_MAX]] == [False] + [True] * (HOSTS_MAX - 1)


def test_hosts_that_stand_stay_where_all_have_as_many() -> None:
    port = Port()
    hosts = [Queues(port, nqn(n)) for n in range(HOSTS_MAX)]
    assert Queues(port, nqn(HOSTS_MAX)).status == Status.CONNECT_CONTROLLER_BUSY
    assert all(each.alive for each in hosts)


def test_a_host_whose_former_association_hangs_gets_its_place_and_no_other_one_does() -> None:
    port = Port()
    hosts = [Queues(port, nqn(n), host_id=bytes([n]) * 16) for n in range(HOSTS_MAX)]
    assert Queues(port, nqn(5), host_id=bytes([5]) * 16).status == Status.CONNECT_CONTROLLER_BUSY, "it speaks"
    port.clock.boot_ns += 4_000_000_000
    for each in hosts[6:]:
        assert each.admin.ask(vendor.keep_alive()).status == 0
    back = Queues(port, nqn(5), host_id=bytes([5]) * 16)
    assert back.status == 0
    assert not hosts[5].alive
    assert all(each.alive for each in (*hosts[:5], *hosts[6:]))
    assert Queues(port, nqn(99)).status == Status.CONNECT_CONTROLLER_BUSY


def test_a_host_that_proves_itself_gets_a_place_before_hosts_that_need_not() -> None:
    port = Port()
    port.protect(Guard({GUARDED: TERMS}))
    port.admit(GUARDED, *(nqn(n).decode() for n in range(HOSTS_MAX)))
    named = [Queues(port, nqn(n)) for n in range(HOSTS_MAX)]
    found = [proven(port, VOLUME_ID) for _ in range(HOSTS_MAX)]
    assert all(each.alive for each in found)
    assert not any(each.alive for each in named)
    once_more = proven(port, VOLUME_ID)
    assert [each.alive for each in (once_more, *found)] == [True, False] + [True] * (HOSTS_MAX - 1), "its own gives way"


def test_claims_of_a_name_that_has_to_be_proved_put_no_host_out() -> None:
    port = Port()
    port.protect(Guard({GUARDED: TERMS}))
    port.admit(GUARDED, *(nqn(n).decode() for n in range(HOSTS_MAX)))
    named = [Queues(port, nqn(n)) for n in range(HOSTS_MAX)]
    claims = [Queues(port, HOST_NQN) for _ in range(2 * HOSTS_MAX)]
    assert all(each.alive for each in named)
    assert claims[-1].alive


# --- keep-alive


@pytest.mark.parametrize("volume", [uuid_nqn(VOLUME_ID), DISCOVERY_NQN], ids=["volume", "discovery"])
def test_a_keep_alive_timer_has_an_upper_bound(volume: str) -> None:
    port = Port()
    longest = KATO_SECONDS_MAX * 1000
    assert port.connection().connect(nqn=volume, kato_ms=longest + 1).status == Status.KEEP_ALIVE_INVALID
    wire = port.connection()
    assert wire.connect(nqn=volume, kato_ms=longest).status == 0
    for value, status in ((longest + 1, Status.KEEP_ALIVE_INVALID), (0xFFFF_FFF0, Status.KEEP_ALIVE_INVALID), (1, 0)):
        answer = wire.ask(sqe(AdminOpcode.SET_FEATURES, 0, cdw10=Feature.KEEP_ALIVE_TIMER, cdw11=value))
        assert answer.status == status


def test_a_host_without_a_keep_alive_timer_is_given_up_after_the_longest_one() -> None:
    port = Port()
    found = Queues(port, nqn(1), kato_ms=0)
    limit_ns = KATO_SECONDS_MAX * 1_000_000_000
    assert found.admin.queue.overdue(port.clock.boot_ns + limit_ns) is None
    assert found.admin.queue.overdue(port.clock.boot_ns + limit_ns + 1) == "keep-alive timer expired"
