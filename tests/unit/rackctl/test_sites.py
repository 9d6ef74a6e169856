"""Where a node runs is decided outside its command."""

from pathlib import Path

from rackctl.launch import Command
from rackctl.sites import Site, on_loopback
from rackctl.state import Node, NodeKind


def test_a_command_runs_behind_its_sites_prefix_and_in_its_environment() -> None:
    command = Command("head-0", ["head-node", "--name", "head-0"], {"A": "1", "B": "2"}, Path("state"), Path("log"))
    placed = Site("10.0.0.2", prefix=("nsenter", "--net=there"), environ={"B": "3"}).place(command)
    assert placed.argv == ["nsenter", "--net=there", "head-node", "--name", "head-0"]
    assert placed.environ == {"A": "1", "B": "3"}
    assert (placed.name, placed.state_dir, placed.log) == ("head-0", Path("state"), Path("log"))


def test_a_rack_is_on_loopback_unless_it_is_placed_elsewhere() -> None:
    assert on_loopback(Node("head-0", NodeKind.HEAD)) == Site("127.0.0.1", prefix=(), environ={})


def test_others_find_a_node_where_it_listens_unless_somebody_is_in_between() -> None:
    assert Site("10.0.0.2").known_as == "10.0.0.2"
    assert Site("127.0.0.1", shown="127.77.0.3").known_as == "127.77.0.3"
