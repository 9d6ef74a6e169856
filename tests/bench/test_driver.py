"""The driver can be measured; how fast it is is not asked here."""

import asyncio

import pytest
from bench import driver
from kit import spdk_drive

from spdk_bindings.spdk.device import SpdkDevice


@pytest.mark.parametrize("pattern", ["randread", "randwrite"])
@pytest.mark.parametrize("buffers", [driver.OWN, driver.COPIED])
def test_a_load_keeps_its_depth_and_ends(pattern: str, buffers: str) -> None:
    async def scenario() -> None:
        environment, fake = spdk_drive.fake()
        device = await SpdkDevice.open(environment, spdk_drive.FAKE_ADDRESS)
        assert await driver.Load(device, pattern, 8, buffers).run(0.05) > 0
        counters = device.counters
        assert (counters.reads, counters.writes)[pattern == "randwrite"] == fake.performed >= 8
        assert bool(counters.bounced) is (buffers == driver.COPIED)
        device.close()

    asyncio.run(scenario())
