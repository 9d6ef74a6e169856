"""Linux proves itself to a volume by DH-HMAC-CHAP, and has the volume's heads prove themselves; or is turned away."""

import asyncio
from collections.abc import Iterator
from itertools import count

import pytest
from kit.volumes import Failover, Volume
from peers.guest import GATEWAY, Guest, Result
from rackctl.rack import Rack, wait_until

from sled_controller.environment import SystemEntropy
from sled_controller.fabric.dhchap.algorithms import GroupId, HashId
from sled_controller.fabric.dhchap.secret import Secret

HOST_ID = "0d9f8a4c-5d1b-4c1e-9d0e-3f1f5a6b7c8d"
HOST_NQN = f"nqn.2014-08.org.nvmexpress:uuid:{HOST_ID}"
SEEN_SECONDS_MAX = 30.0
_numbers = count()


def fresh(transform: HashId | None = HashId.SHA256) -> str:
    return Secret.generate(SystemEntropy(), transform).text()


class Protected:
    """A volume that one host may connect to if it knows a secret, and the guest that tries."""

    def __init__(self, rack: Rack, guest: Guest, name: str) -> None:
        self.rack = rack
        self.guest = guest
        self.name = name
        self.paths = rack.paths(name)

    def protect(
        self,
        secret: str,
        controller_secret: str | None = None,
        *,
        hash_floor: str = "sha256",
        group_floor: str = "null",
    ) -> None:
        """Give the host a secret, and wait until both heads know it."""
        before = self.counted("secrets_changed_total")
        self.rack.api.set_host_secret(
            self.name, HOST_NQN, secret, controller_secret, hash_floor=hash_floor, group_floor=group_floor
        )
        after = [number + 1 for number in before]
        wait_until(lambda: self.counted("secrets_changed_total") == after, "the heads to know", SEEN_SECONDS_MAX)

    def counted(self, name: str) -> list[int]:
        """A figure of the volume at each head, as last reported."""
        volume = self.paths.nqn.rpartition(":")[2]
        reports = [head["report"] or {} for head in self.rack.api.nodes()["heads"]]
        return [report.get("nvme", {}).get("volumes", {}).get(volume, {}).get(name, 0) for report in reports]

    def wait_authenticated(self, times: int) -> None:
        """Wait until the primary has counted that often each queue that the guest has: admin and I/O, one by one."""
        queues = int(asyncio.run(self.guest.check("cat /sys/class/nvme/nvme0/queue_count")))
        assert queues >= 2
        expected = queues * times
        wait_until(lambda: max(self.counted("authenticated_total")) == expected, "all queues", SEEN_SECONDS_MAX)

    async def connect(self, *options: str, path: int = 0) -> Result:
        """Try to connect to a head, to the primary unless told otherwise."""
        port = self.paths.nvme[path][1]
        who = f"--hostnqn={HOST_NQN} --hostid={HOST_ID} --nr-io-queues=2"
        where = f"-t tcp -a {GATEWAY} -s {port} -n {self.paths.nqn}"
        return await self.guest.run(f"nvme connect {where} {who} {' '.join(options)}", timeout_s=20)

    async def refuses(self, *options: str) -> str:
        """What the kernel says of a connection that must fail; no controller is left."""
        await self.guest.check("dmesg -c >/dev/null")
        result = await self.connect(*options)
        assert result.status != 0, result.stdout
        assert await self.guest.check("ls /sys/class/nvme") == ""
        return await self.guest.check("dmesg -c")

    async def serves(self) -> None:
        """A block device is there, takes a write and gives it back."""
        await self.guest.check(
            "until [ -b /dev/nvme0n1 ]; do usleep 10000; done;"
            "dd if=/dev/urandom of=/tmp/data bs=4096 count=64 2>/dev/null;"
            "dd if=/tmp/data of=/dev/nvme0n1 bs=4096 oflag=direct 2>/dev/null &&"
            "dd if=/dev/nvme0n1 bs=4096 count=64 iflag=direct 2>/dev/null | cmp - /tmp/data"
        )


@pytest.fixture
def protected(rack: Rack, guest: Guest) -> Iterator[Protected]:
    name = f"protected-{next(_numbers)}"
    rack.create_volume(name, 64 << 20, hosts=(HOST_NQN,), policy={"nbd": "off"})
    made = Protected(rack, guest, name)
    asyncio.run(guest.check("modprobe nvme-tcp"))
    yield made
    asyncio.run(guest.run("nvme disconnect-all; rm -f /tmp/data"))
    rack.delete_volume(name)


@pytest.mark.parametrize(
    ("transform", "hash_floor", "group_floor"),
    [
        (HashId.SHA256, HashId.SHA256, GroupId.FFDHE2048),
        (None, HashId.SHA384, GroupId.NULL),
        (HashId.SHA512, HashId.SHA512, GroupId.FFDHE3072),
    ],
)
def test_linux_and_a_head_prove_themselves_to_each_other(
    protected: Protected, transform: HashId | None, hash_floor: HashId, group_floor: GroupId
) -> None:
    secret, controller_secret = fresh(transform), fresh(transform)
    protected.protect(
        secret, controller_secret, hash_floor=hash_floor.name.lower(), group_floor=group_floor.name.lower()
    )

    async def scenario() -> None:
        connected = await protected.connect(f"--dhchap-secret={secret}", f"--dhchap-ctrl-secret={controller_secret}")
        assert connected.status == 0, connected.stderr + await protected.guest.check("dmesg | tail -20")
        await protected.serves()
        said = await protected.guest.check("dmesg")
        chosen = f"authenticated with hash hmac({hash_floor.name.lower()}) dhgroup {group_floor.name.lower()}"
        assert chosen in said
        assert "controller authenticated" in said

    asyncio.run(scenario())
    protected.wait_authenticated(1)


def test_linux_proves_itself_alone_where_it_asks_for_no_proof(protected: Protected) -> None:
    secret = fresh()
    protected.protect(secret, fresh())

    async def scenario() -> None:
        connected = await protected.connect(f"--dhchap-secret={secret}")
        assert connected.status == 0, connected.stderr
        await protected.serves()

    asyncio.run(scenario())


def test_wrong_and_missing_secrets_are_refused(protected: Protected) -> None:
    secret = fresh()
    protected.protect(secret)

    async def scenario() -> None:
        await protected.refuses()
        await protected.refuses(f"--dhchap-secret={fresh()}")
        # There is no secret of the controller: it cannot prove itself, and says so.
        await protected.refuses(f"--dhchap-secret={secret}", f"--dhchap-ctrl-secret={fresh()}")

    asyncio.run(scenario())
    wait_until(lambda: max(protected.counted("authentication_failed_total")) == 2, "two failures", SEEN_SECONDS_MAX)
    assert max(protected.counted("authenticated_total")) == 0


def test_linux_leaves_a_head_that_does_not_know_its_own_secret(protected: Protected) -> None:
    secret = fresh()
    protected.protect(secret, fresh())

    async def scenario() -> None:
        said = await protected.refuses(f"--dhchap-secret={secret}", f"--dhchap-ctrl-secret={fresh()}")
        assert "controller authentication failed" in said

    asyncio.run(scenario())


def test_a_secret_is_rotated_under_a_live_connection(protected: Protected) -> None:
    first, second = fresh(), fresh()
    protected.protect(first)

    async def scenario() -> None:
        connected = await protected.connect(f"--dhchap-secret={first}")
        assert connected.status == 0, connected.stderr
        protected.rack.api.set_host_secret(
            protected.name, HOST_NQN, second, None, hash_floor="sha256", group_floor="ffdhe2048"
        )
        await protected.serves()
        await protected.guest.check(f"echo '{second}' >/sys/class/nvme/nvme0/dhchap_secret")
        await protected.serves()

    asyncio.run(scenario())
    protected.wait_authenticated(2)
    assert max(protected.counted("authentication_failed_total")) == 0


def test_linux_fails_over_and_comes_back_with_its_secrets(protected: Protected, failover: Failover) -> None:
    secret, controller_secret = fresh(), fresh()
    protected.protect(secret, controller_secret, group_floor="ffdhe2048")
    secrets = (f"--dhchap-secret={secret}", f"--dhchap-ctrl-secret={controller_secret}", "--reconnect-delay=1")
    volume = Volume(protected.rack, protected.name, 64 << 20, protected.rack.wait_members(protected.name, 2))
    guest = protected.guest

    async def scenario() -> None:
        for path in (0, 1):
            connected = await protected.connect(*secrets, path=path)
            assert connected.status == 0, connected.stderr
        await protected.serves()
        await guest.check("dd if=/dev/urandom of=/tmp/data bs=64k count=64 2>/dev/null; dmesg -c >/dev/null")
        copy = "dd if=/tmp/data of=/dev/nvme0n1 bs=4k oflag=direct 2>/dev/null"
        loading = asyncio.create_task(guest.check(f"{copy} && {copy}", timeout_s=120))
        await guest.check("until [ $(awk '{print $5}' /sys/block/nvme0n1/stat) -gt 200 ]; do usleep 10000; done")
        assert not loading.done()
        await asyncio.to_thread(failover.kill_primary, volume)
        await loading
        await guest.check("dd if=/dev/nvme0n1 bs=64k count=64 iflag=direct 2>/dev/null | cmp - /tmp/data")
        await asyncio.to_thread(failover.repair)
        await guest.check(
            "until [ $(cat /sys/class/nvme/nvme*/state | grep -c live) = 2 ]; do usleep 50000; done", timeout_s=60
        )
        assert await guest.check("dmesg | grep -iE 'I/O error|authentication failed' || true") == ""

    asyncio.run(scenario())


def test_nvme_cli_takes_our_secrets_and_we_take_those_that_it_makes(guest: Guest) -> None:
    async def scenario() -> None:
        for transform in (None, *HashId):
            said = await guest.check(f"nvme check-dhchap-key --key={fresh(transform)}")
            assert "valid" in said
            number = 0 if transform is None else int(transform)
            made = await guest.check(f"nvme gen-dhchap-key --hmac={number} --nqn={HOST_NQN}")
            secret = Secret.parse(made.strip())
            assert secret.transform is transform

    asyncio.run(scenario())
