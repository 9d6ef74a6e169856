"""One rack and one Linux guest for all real programs; each test gets a volume of its own."""

import asyncio
import contextlib
import itertools
from collections.abc import Callable, Generator, Iterator

import pytest
from kit.volumes import Failover, Volume
from peers.guest import GATEWAY, Guest, packages
from rackctl.rack import Rack

ADVERTISED = ("HEAD_NODE_NVME_ADVERTISE_HOST", GATEWAY)
"""Where the guest finds our loopback."""
_numbers = itertools.count()


@pytest.fixture(scope="session")
def rack(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[Rack]:
    """A rack of six sleds and two heads."""
    kept = request.config.option.rack_dir
    directory = kept / "peers" if kept else tmp_path_factory.mktemp("rack") / "peers"
    with contextlib.ExitStack() as stack:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv(*ADVERTISED)
            started = stack.enter_context(Rack.running(directory))
        yield started


@pytest.fixture(autouse=True)
def advertised(monkeypatch: pytest.MonkeyPatch) -> None:
    """Heads that a test here starts again say the same; other racks of this process must not."""
    monkeypatch.setenv(*ADVERTISED)


@pytest.fixture
def new_volume(rack: Rack) -> Iterator[Callable[[int], Volume]]:
    """Makes volumes that both heads hold; they are deleted after the test."""
    made: list[str] = []

    def make(size_bytes: int) -> Volume:
        name = f"volume-{next(_numbers)}"
        made.append(name)
        rack.create_volume(name, size_bytes)
        return Volume(rack, name, size_bytes, rack.wait_members(name, 2))

    yield make
    for name in made:
        rack.delete_volume(name)


@pytest.fixture
def failover(rack: Rack) -> Iterator[Failover]:
    """Kills primaries and brings them back, at the latest after the test."""
    acting = Failover(rack)
    yield acting
    acting.repair()


@pytest.fixture(scope="session")
def guest(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guest]:
    """A Linux machine that the tests of this process share: each leaves it without connections."""
    try:
        booted = asyncio.run(Guest.boot(tmp_path_factory.mktemp("guest")))
    except packages.Missing as missing:
        pytest.skip(str(missing))
    yield booted
    booted.stop()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show what the guest's kernel said beside the failure of a test that used it."""
    report = yield
    used = getattr(item, "funcargs", {}).get("guest")
    if report.failed and isinstance(used, Guest):
        report.sections.append((f"the guest's kernel ({used.console})", used.log_end()))
    return report
