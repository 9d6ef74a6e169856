"""libnbd's own programs see the volume as it is, and copy it in and out unharmed."""

import filecmp
import json
from collections.abc import Callable
from pathlib import Path

from kit.peers import random_file, run
from kit.volumes import Failover, Volume

MIB = 1 << 20


def test_nbdinfo_sees_size_and_abilities(new_volume: Callable[[int], Volume]) -> None:
    volume = new_volume(64 * MIB)
    (export,) = json.loads(run("nbdinfo", "--json", volume.uri))["exports"]
    assert export["export-size"] == 64 * MIB
    assert export["is_read_only"] is False
    for ability in ("can_flush", "can_fua", "can_trim", "can_zero"):
        assert export[ability] is True, ability
    assert export["block_size_minimum"] == 4096


def test_nbdinfo_lists_the_volumes_of_every_head(new_volume: Callable[[int], Volume]) -> None:
    volume = new_volume(64 * MIB)
    for uri in (volume.uri, volume.lasting_uri):
        listed = json.loads(run("nbdinfo", "--list", "--json", uri.rpartition("/")[0]))["exports"]
        assert volume.name in [export["export-name"] for export in listed]


def test_nbdinfo_maps_what_was_written(new_volume: Callable[[int], Volume], tmp_path: Path) -> None:
    volume = new_volume(64 * MIB)
    empty = json.loads(run("nbdinfo", "--map", "--json", volume.uri))
    assert [(extent["offset"], extent["length"], extent["type"]) for extent in empty] == [(0, 64 * MIB, 3)]
    run("nbdcopy", random_file(tmp_path / "in", 8 * MIB), volume.uri)
    written = json.loads(run("nbdinfo", "--map", "--json", volume.uri))
    assert sum(extent["length"] for extent in written) == 64 * MIB
    assert written[0]["type"] == 0
    assert written[-1]["type"] == 3


def test_nbdcopy_brings_back_what_it_took_in(new_volume: Callable[[int], Volume], tmp_path: Path) -> None:
    volume = new_volume(64 * MIB)
    source = random_file(tmp_path / "in", 64 * MIB)
    run("nbdcopy", "--flush", source, volume.uri)
    run("nbdcopy", volume.lasting_uri, tmp_path / "out")
    assert filecmp.cmp(source, tmp_path / "out", shallow=False)


def test_nbdcopy_brings_it_back_from_the_next_primary_too(
    new_volume: Callable[[int], Volume], failover: Failover, tmp_path: Path
) -> None:
    volume = new_volume(64 * MIB)
    source = random_file(tmp_path / "in", 64 * MIB)
    run("nbdcopy", source, volume.uri)
    failover.kill_primary(volume)
    run("nbdcopy", volume.uri, tmp_path / "out")
    assert filecmp.cmp(source, tmp_path / "out", shallow=False)
