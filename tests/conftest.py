"""Tests with real racks share one test process: nine programs at a time are enough for two cores."""

from pathlib import Path

import pytest

REAL = ("rack", "peers", "spdk_driver")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Group what lies in tests/rack, tests/peers and tests/spdk_driver for `--dist loadgroup`."""
    for item in items:
        if item.path.relative_to(Path(__file__).parent).parts[0] in REAL:
            item.add_marker(pytest.mark.xdist_group("rack"))
