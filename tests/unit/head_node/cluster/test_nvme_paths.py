"""What a head's NVMe/TCP path to a volume is worth follows what the head is to the volume."""

from dataclasses import replace

from kit.cluster import VOLUME, KitHead, Rack, until, with_rack

from head_node.cluster.states import VolumeState
from head_node.export.nvme.subsystem import Access
from head_node.store.records import VolumeState as RecordState


def access(head: KitHead) -> Access | None:
    subsystem = head.head.nvme.subsystems.get(VOLUME)
    return None if subsystem is None else subsystem.access


def watched(head: KitHead) -> list[Access]:
    """Every access that the head's path has from now on."""
    seen: list[Access] = []
    server = head.head.nvme
    set_access = server.set_access

    def note(volume: object, wanted: Access, served: object) -> None:
        seen.append(wanted)
        set_access(volume, wanted, served)  # type: ignore[arg-type]

    server.set_access = note  # type: ignore[method-assign,assignment]
    return seen


def test_the_primarys_path_is_optimized_and_the_others_are_inaccessible() -> None:
    async def scenario(rack: Rack) -> None:
        first, second = await rack.start_serving()
        await until(lambda: access(first) is Access.OPTIMIZED)
        await until(lambda: access(second) is Access.INACCESSIBLE)
        subsystem = first.head.nvme.subsystems[VOLUME]
        assert subsystem.volume is first.engine.served
        assert second.head.nvme.subsystems[VOLUME].volume is None

    with_rack(scenario)


def test_a_takeover_passes_through_change() -> None:
    async def scenario(rack: Rack) -> None:
        first, second = await rack.start_serving()
        await until(lambda: access(second) is Access.INACCESSIBLE)
        seen = watched(second)
        await first.crash()
        await until(lambda: access(second) is Access.OPTIMIZED)
        passed = seen[seen.index(Access.CHANGE) : seen.index(Access.OPTIMIZED)]
        assert set(passed) == {Access.CHANGE}

    with_rack(scenario)


def test_f6_a_head_that_stops_serving_gives_its_path_up_before_another_has_it() -> None:
    async def scenario(rack: Rack) -> None:
        first, second = await rack.start_serving()
        await until(lambda: access(first) is Access.OPTIMIZED and access(second) is Access.INACCESSIBLE)
        second_seen = watched(second)
        given_up = []
        step_down = first.head.nvme.drop_clients
        first.head.nvme.drop_clients = lambda volume: (given_up.append(list(second_seen)), step_down(volume))[1]  # type: ignore[method-assign,func-returns-value]
        await first.stop()
        await until(lambda: access(second) is Access.OPTIMIZED)
        assert given_up
        assert Access.OPTIMIZED not in given_up[0]

    with_rack(scenario)


def test_every_head_of_a_volume_is_offered_and_a_volume_on_its_way_out_is_not() -> None:
    async def scenario(rack: Rack) -> None:
        first, second = await rack.start_serving()
        await until(lambda: access(second) is not None)
        (offer,) = first.head.nvme._offers
        assert offer.addresses == (("127.0.0.1", 4420), ("127.0.0.1", 4421))
        assert not offer.exported.admits("nqn.2014-08.org.nvmexpress:uuid:host")

        rack.authority.put(replace(rack.record, hosts=("*",), version=rack.record.version + 1))
        await until(lambda: all(head.head.nvme._offers[0].exported.admits("anybody") for head in rack.heads))
        assert first.state is VolumeState.SERVING

        rack.authority.put(replace(rack.record, state=RecordState.DELETING, version=rack.record.version + 1))
        await until(lambda: access(first) is None and access(second) is None)

    with_rack(scenario)
