"""Linux and nvme-cli against a sled: all that they ask is answered, and nothing of a volume is read or written."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

import pytest
from kit import host
from kit.sled import Sled, running_sled
from peers.guest import GATEWAY, Guest
from peers.guest.nvme import Connection, connected

from sled_controller.credential import holder_of
from sled_controller.fabric.attachment import Attachment
from spdk_bindings.emulator import MemoryDevice
from spdk_bindings.nvme import DNR, LogPage, Status

SCENARIO_SECONDS_MAX = 300
COLUMNS = 3
BLOCKS = 1024
CONTENT = bytes(range(256)) * 16
DENIED = Status.ACCESS_DENIED | DNR


@dataclass
class Bench:
    """A sled with the namespaces of a live volume, the head that owns it, and the guest connected as a stranger."""

    sled: Sled
    volume: Attachment
    nsids: list[int]
    guest: Guest
    linux: Connection
    devices: dict[int, str]

    @property
    def device(self) -> str:
        return self.devices[self.nsids[0]]


@asynccontextmanager
async def bench(guest: Guest) -> AsyncIterator[Bench]:
    await guest.check("dmesg -c >/dev/null")
    async with running_sled(MemoryDevice(16384, "A"), MemoryDevice(16384, "B")) as sled:
        head = sled.client()
        await head.open()
        volume = await head.attach(host.signed(epoch=5), 1)
        nsids = [await volume.create_namespace(column, BLOCKS) for column in range(COLUMNS)]
        await volume.write(nsids[0], 0, [CONTENT])
        async with connected(guest, host.NQN, sled.port) as linux:
            yield Bench(sled, volume, nsids, guest, linux, await linux.namespaces(COLUMNS))
        await head.close()


def play(guest: Guest, scenario: Callable[[Bench], Awaitable[None]]) -> None:
    async def whole() -> None:
        async with asyncio.timeout(SCENARIO_SECONDS_MAX), bench(guest) as it:
            await scenario(it)

    asyncio.run(whole())


def test_discovery_names_the_sled_and_connect_all_follows_it(guest: Guest) -> None:
    async def scenario() -> None:
        async with running_sled(advertised_host=GATEWAY) as sled:
            await guest.check("modprobe nvme-tcp")
            where = f"-t tcp -a {GATEWAY} -s {sled.port}"
            (record,) = json.loads(await guest.check(f"nvme discover {where} -o json"))["records"]
            assert (record["subnqn"], record["traddr"], record["trsvcid"]) == (host.NQN, GATEWAY, str(sled.port))
            await guest.check(f"nvme connect-all {where}")
            (listed,) = json.loads(await guest.check("nvme list-subsys -o json"))
            (subsystem,) = listed["Subsystems"]
            assert subsystem["NQN"] == host.NQN
            assert [path["State"] for path in subsystem["Paths"]] == ["live"]
            await guest.check(f"nvme disconnect -n {host.NQN}")
            await sled.has_hosts(0)

    asyncio.run(scenario())


def test_the_controller_says_what_it_is(guest: Guest) -> None:
    async def scenario(it: Bench) -> None:
        controller = await it.linux.ask("id-ctrl")
        assert controller["subnqn"] == host.NQN
        assert (controller["mn"].strip(), controller["cntrltype"], controller["mdts"]) == ("Palisade sled", 1, 8)
        assert controller["oncs"] == 1 << 5  # of the standard's I/O commands only reservations
        registers = await guest.check(f"nvme show-regs {it.linux.controller}")
        assert "version : 20000" in registers
        assert "csts    : 1" in registers
        firmware = await it.linux.ask("fw-log")
        assert "0.1" in str(firmware)
        pages = await guest.check(f"nvme supported-log-pages {it.linux.controller}")
        for name in ("Error Information", "SMART", "Firmware Slot", "Commands Supported and Effects", "LID 0xc2"):
            assert name in pages
        effects = await guest.check(f"nvme effects-log {it.linux.controller} -c 0")
        assert "ACS6     [Identify                        ] 00000001" in effects
        assert "IOCS14   [Reservation Report              ] 00000001" in effects
        assert "IOCS129  [Unknown                         ] 00000003" in effects  # our WRITE changes content
        status = await guest.run(f"nvme get-log {it.linux.controller} -i {LogPage.SLED_STATUS} -l 64 -b")
        assert status.output[:8] == (1).to_bytes(8, "little")  # the first boot

    play(guest, scenario)


def test_the_namespaces_of_a_live_volume_are_listed_and_named(guest: Guest) -> None:
    async def scenario(it: Bench) -> None:
        listed = (await it.linux.ask("list-ns"))["nsid_list"]
        assert [entry["nsid"] for entry in listed] == sorted(it.nsids)
        namespace = await it.linux.ask("id-ns", f"-n {it.nsids[0]}")
        assert (namespace["nsze"], namespace["lbafs"][0]["ds"]) == (BLOCKS, 12)
        uuid = it.sled.subsystem.storage.namespaces[it.nsids[0]].uuid
        described = (await it.linux.ask("ns-descs", f"-n {it.nsids[0]}"))["ns-descs"]
        assert [entry.get("uuid") for entry in described if entry["type"] == "uuid"] == [str(uuid)]
        assert await guest.check(f"blockdev --getsize64 {it.device}") == f"{BLOCKS * 4096}\n"

    play(guest, scenario)


def test_the_reservation_report_shows_epoch_and_holder_and_follows_a_takeover(guest: Guest) -> None:
    async def scenario(it: Bench) -> None:
        async def report() -> tuple[int, str]:
            shown = json.loads(await guest.check(f"nvme resv-report {it.device} -e -o json"))
            (registrant,) = shown["regctlext"]
            assert (shown["rtype"], registrant["rcsts"]) == (2, 1)  # Exclusive Access, and it holds it
            return shown["gen"], registrant["hostid"]

        assert await report() == (5, holder_of(host.public_key(host.HEAD_KEY))[:16].hex())
        other = it.sled.client(head=host.OTHER_HEAD_KEY)
        await other.open()
        await other.attach(host.signed(epoch=6, head=host.OTHER_HEAD_KEY), 1)
        assert await report() == (6, holder_of(host.public_key(host.OTHER_HEAD_KEY))[:16].hex())
        await other.close()

    play(guest, scenario)


def test_every_read_and_write_of_a_stranger_is_denied_counted_and_in_the_error_log(
    guest: Guest, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario(it: Bench) -> None:
        counters = it.sled.subsystem.counters
        for command in (
            "read {} -s 1 -c 0 -z 4096",
            "write {} -s 1 -c 0 -z 4096 -d /init",
            "write-zeroes {} -s 1 -c 0",
            "dsm {} -d -s 1 -b 1",
            "flush {}",
            "resv-acquire {} -c 1 -t 1 -a 0",
        ):
            before = counters.denied
            result = await guest.run("nvme " + command.format(it.device))
            assert "Access Denied" in result.stderr, (command, result)
            assert counters.denied == before + 1
            (entry,) = (await it.linux.ask("error-log", "-e 1"))["errors"]
            assert (entry["sqid"], entry["nsid"], entry["status_field"]) == (1, it.nsids[0], DENIED)
        for command in (
            "dd if={} of=/dev/null bs=4k count=1",
            "dd if=/dev/zero of={} bs=4k count=1 oflag=direct",
            "dd if=/dev/zero of={} bs=1M count=1 oflag=direct",  # more than a capsule holds
            "mkfs.ext4 -q {}",
        ):
            before = counters.denied
            assert (await guest.run(command.format(it.device))).status != 0, command
            assert counters.denied > before
        assert bytes(await it.volume.read(it.nsids[0], 0, 2)) == CONTENT + bytes(4096)
        smart = await it.linux.ask("smart-log")
        assert (
            int(smart["num_err_log_entries"]) == (await it.linux.ask("error-log", "-e 1"))["errors"][0]["error_count"]
        )
        denials = [r.getMessage() for r in caplog.records if "event=standard_io_denied" in r.getMessage()]
        assert len(denials) == len({line.partition("opcode=")[2][:4] for line in denials}), "one line per opcode"

    play(guest, scenario)


def test_a_lost_drive_shows_in_smart_and_the_rest_goes_on_answering(guest: Guest) -> None:
    async def scenario(it: Bench) -> None:
        smart = await it.linux.ask("smart-log")
        assert (smart["critical_warning"], smart["temperature"]) == (0, 300)
        assert int(smart["host_write_commands"]) > 0
        it.sled.subsystem.take_offline(0, "pulled out by a test")
        assert (await it.linux.ask("smart-log"))["critical_warning"] == 0x04
        assert len((await it.linux.ask("list-ns"))["nsid_list"]) == COLUMNS
        for device in it.devices.values():
            await guest.check(f"nvme resv-report {device} -e")

    play(guest, scenario)


def test_the_kernel_connects_resets_and_leaves_without_a_wait_or_a_flood_of_errors(guest: Guest) -> None:
    async def scenario(it: Bench) -> None:
        assert (
            await guest.check(f"cat /sys/class/nvme/{it.linux.controller.removeprefix('/dev/')}/queue_count") == "2\n"
        )
        # The page cache reads the first block ahead, then once more by itself; no retry of what has DNR.
        # It may say so less often: the kernel bounds how much it says of errors.
        refused = (await guest.check("dmesg")).count("I/O Cmd")
        assert refused <= 2 * COLUMNS
        await guest.check(f"nvme reset {it.linux.controller}")
        assert (await it.linux.ask("id-ctrl"))["subnqn"] == host.NQN
        await it.sled.has_hosts(2)
        await guest.check(f"nvme disconnect -n {host.NQN}")
        await it.sled.has_hosts(1)
        log = await guest.check("dmesg")
        assert "timeout" not in log
        assert log.count("I/O Cmd") == refused

    play(guest, scenario)
