"""Runs on the board, with a PCIe address: resets a drive again and again with writes under way, and reads them back.

Prints as JSON how often each status came, how many resets the driver counted, and the blocks that are not as written.
"""

import asyncio
import json
import sys
from collections import Counter
from collections.abc import Callable
from typing import Final

from spdk_bindings.device import BLOCK_BYTES, PENDING
from spdk_bindings.spdk.device import SpdkDevice
from spdk_bindings.spdk.environment import EnvironmentSettings, SpdkEnvironment

WRITES: Final = 600
RESETS: Final = 5
SETTINGS: Final = EnvironmentSettings(memory_mib=160, buffers_mib=8)


async def status_of(start: Callable[[Callable[[int], None]], int]) -> int:
    """Of a command that ends later."""
    ended: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    assert start(ended.set_result) == PENDING
    return await ended


async def main(address: str) -> None:
    """Do it."""
    device = await SpdkDevice.open(SpdkEnvironment.start(SETTINGS), address)
    statuses: Counter[int] = Counter()
    wrong: list[int] = []
    into = device.allocate(BLOCK_BYTES)
    for turn in range(1, RESETS + 1):
        data = bytes([turn]) * BLOCK_BYTES
        writes = [
            asyncio.create_task(status_of(lambda done, lba=lba, data=data: device.write(lba, data, False, done)))
            for lba in range(WRITES)
        ]
        await asyncio.wait(writes, return_when=asyncio.FIRST_COMPLETED)  # the drive has them
        statuses[await status_of(device.reset)] += 1
        for lba, status in enumerate(await asyncio.gather(*writes)):
            statuses[status] += 1
            assert await status_of(lambda done, lba=lba: device.read(lba, into, done)) == 0
            if status == 0 and into != data:
                wrong.append(lba)
    print(json.dumps({"statuses": statuses, "resets": device.counters.resets, "wrong": wrong}))
    device.close()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
