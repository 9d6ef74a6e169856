"""What a machine permits, and where it puts nodes."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from rackctl.chaos.machine import RATE_PPM_MAX, Machine
from rackctl.chaos.plan import Fault, Kind, Nodes
from rackctl.chaos.seclusion import seclude
from rackctl.state import Node, NodeKind

from sled_controller.environment import CLOCK_FAULTS

NODES = Nodes(("head-0", "head-1", "head-2"), tuple(f"sled-{number}" for number in range(6)))
HEAD = Node("head-0", NodeKind.HEAD)


@pytest.fixture
def one(tmp_path: Path) -> Iterator[Machine]:
    """A machine without namespaces."""
    made = machine(tmp_path)
    yield made
    made.close(keep=False)


def machine(directory: Path, seed: int = 1) -> Machine:
    return Machine(directory, directory / "rack", NODES, seed, "no unshare", filled={"head-0"})


def clock_of(site_environ: object) -> tuple[int, int]:
    assert isinstance(site_environ, dict)
    ahead_ms, rate_ppm = CLOCK_FAULTS.unpack(Path(site_environ["HEAD_NODE_CLOCK_FAULTS"]).read_bytes())
    return ahead_ms, rate_ppm


def test_without_namespaces_links_have_one_speed_and_disks_are_large(one: Machine) -> None:
    impossible = {kind for kind in Kind if one.impossible(Fault(0, 1.0, 1.0, kind, ("head-0",))) is not None}
    assert impossible == {Kind.SLOW_LINK, Kind.DISK_FULL}


def test_without_namespaces_others_find_a_node_at_a_proxy(one: Machine) -> None:
    site = one.site(HEAD)
    assert (site.host, site.prefix) == ("127.0.0.1", ())
    assert site.known_as.startswith("127.77.0.")
    assert site.environ["HEAD_NODE_ADVERTISE_HOST"] == site.known_as


def test_a_wall_clock_jumps_and_comes_back_and_the_rate_stays(one: Machine) -> None:
    jump = Fault(0, 1.0, 1.0, Kind.WALL_JUMP, ("head-0",), -120_000)
    _, rate_ppm = clock_of(one.site(HEAD).environ)
    one.begin(jump)
    assert clock_of(one.site(HEAD).environ) == (-120_000, rate_ppm)
    one.end(jump)
    assert clock_of(one.site(HEAD).environ) == (0, rate_ppm)


def test_boot_clocks_run_at_rates_that_the_seed_draws(tmp_path: Path) -> None:
    rates = []
    for seed in (1, 1, 2):
        made = machine(tmp_path / str(seed), seed)
        rates.append(clock_of(made.site(HEAD).environ)[1])
        made.close(keep=False)
    assert rates[0] == rates[1] != rates[2]
    assert all(abs(rate) <= RATE_PPM_MAX for rate in rates)


def test_every_head_gets_every_volume(one: Machine) -> None:
    environ = one.site(Node("authority", NodeKind.AUTHORITY)).environ
    assert environ["RACK_AUTHORITY_HEADS_PER_VOLUME"] == "3"


def test_a_machine_without_the_programs_says_which_are_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert seclude([]) == "no unshare and no nsenter and no ip and no tc (Debian: util-linux, iproute2)"
