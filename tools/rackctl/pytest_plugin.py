"""The `rack` fixture: a running emulated rack for a test, one per test module, torn down behind it.

`pytest --rack-sleds 6 --rack-heads 2 --rack-dir DIR` (or `RACKCTL_SLEDS`, `RACKCTL_HEADS`) set its size and where its
state and logs are kept. A module that needs another size marks itself: `pytestmark = pytest.mark.rack(sleds=7)`.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from rackctl.rack import Rack


def pytest_addoption(parser: pytest.Parser) -> None:
    """Options for the size of the rack."""
    group = parser.getgroup("palisade", "emulated rack")
    group.addoption("--rack-sleds", type=int, default=int(os.environ.get("RACKCTL_SLEDS", "6")), help="sleds per rack")
    group.addoption("--rack-heads", type=int, default=int(os.environ.get("RACKCTL_HEADS", "2")), help="heads per rack")
    group.addoption("--rack-dir", type=Path, default=None, help="keep each rack's state and logs below this directory")


def pytest_configure(config: pytest.Config) -> None:
    """Declare the marker."""
    config.addinivalue_line("markers", "rack(sleds, heads): the size of this module's emulated rack")


@pytest.fixture(scope="module")
def rack(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> "Iterator[Rack]":
    """A running rack (`rackctl.rack.Rack`), shared by the tests of a module."""
    from rackctl.rack import Rack, RackSize

    marker = request.node.get_closest_marker("rack")
    wanted = dict(marker.kwargs) if marker else {}
    options = request.config.option
    size = RackSize(
        sleds=wanted.get("sleds", options.rack_sleds),
        heads=wanted.get("heads", options.rack_heads),
    )
    name = request.node.name.rpartition("/")[2].removesuffix(".py")
    directory = options.rack_dir / name if options.rack_dir else tmp_path_factory.mktemp("rack") / name
    with Rack.running(directory, size) as started:
        yield started
