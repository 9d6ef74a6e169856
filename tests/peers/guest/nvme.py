"""The guest as an NVMe/TCP host: connections that a test makes and that end with it."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from peers.guest.machine import GATEWAY, Guest


@dataclass(frozen=True, slots=True)
class Connection:
    """A connected controller; `controller` is its device, /dev/nvme0 or the like."""

    guest: Guest
    controller: str
    nqn: str

    async def ask(self, command: str, options: str = "") -> Any:
        """What `nvme COMMAND` of the controller says, as JSON."""
        return json.loads(await self.guest.check(f"nvme {command} {self.controller} {options} -o json"))

    async def namespaces(self, count: int) -> dict[int, str]:
        """The block devices by namespace id, once the kernel has found `count` of them."""
        script = f"""
            until subsystem=$(dirname "$(grep -l {self.nqn} /sys/class/nvme-subsystem/*/subsysnqn)")
                  set -- "$subsystem"/nvme*n*/nsid
                  [ -e "$1" ] && [ $# = {count} ]
            do usleep 20000; done
            for nsid; do
                device=/dev/$(basename "$(dirname "$nsid")")
                until [ -b "$device" ]; do usleep 20000; done
                echo "$(cat "$nsid") $device"
            done
        """
        found = (line.split() for line in (await self.guest.check(script)).splitlines())
        return {int(nsid): device for nsid, device in found}


@asynccontextmanager
async def connected(
    guest: Guest, nqn: str, port: int, options: str = "", address: str = GATEWAY
) -> AsyncIterator[Connection]:
    """The guest connected to the subsystem `nqn` at `port` of our loopback, or of its own."""
    await guest.check("modprobe nvme-tcp")
    said = await guest.check(f"nvme connect -t tcp -a {address} -s {port} -n {nqn} {options} -o json")
    controller = json.loads(said)["device"]
    try:
        yield Connection(guest, f"/dev/{controller}", nqn)
    finally:
        await guest.check(f"nvme disconnect -d {controller}")
