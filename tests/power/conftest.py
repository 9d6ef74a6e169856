"""The shelf of disks whose power can be cut, one for each module of tests."""

from collections.abc import Iterator

import pytest
from kit.power_fuse import Shelf, shelf


@pytest.fixture(scope="module")
def power(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shelf]:
    with shelf(tmp_path_factory.mktemp("power")) as mounted:
        yield mounted
