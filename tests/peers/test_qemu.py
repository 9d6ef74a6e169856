"""QEMU's block layer works on a volume, and does not notice a failover but for the wait."""

from collections.abc import Callable
from pathlib import Path

from kit.peers import QemuIo, random_file, run
from kit.volumes import Failover, Volume

MIB = 1 << 20
RECONNECT_DELAY_S = 60


def qemu_io(uri: str, *commands: str) -> str:
    arguments = [argument for command in commands for argument in ("-c", command)]
    output = run("qemu-io", "-f", "raw", *arguments, uri)
    assert "failed" not in output.lower(), output
    return output


def test_qemu_img_converts_and_compares(new_volume: Callable[[int], Volume], tmp_path: Path) -> None:
    volume = new_volume(64 * MIB)
    source = random_file(tmp_path / "in", 64 * MIB)
    run("qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", source, volume.uri)
    assert "identical" in run("qemu-img", "compare", "-f", "raw", "-F", "raw", source, volume.uri)
    run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", volume.lasting_uri, tmp_path / "out.qcow2")
    assert "identical" in run("qemu-img", "compare", "-f", "raw", "-F", "qcow2", source, tmp_path / "out.qcow2")


def test_qemu_io_reads_the_patterns_it_wrote(new_volume: Callable[[int], Volume]) -> None:
    volume = new_volume(64 * MIB)
    qemu_io(
        volume.uri,
        "write -P 0x5a 0 4M",
        "write -f -P 0xa5 1M 64k",
        "discard 2M 1M",
        "write -z 3M 512k",
        "write -z -u 3584k 512k",
        "flush",
        "read -P 0x5a 0 1M",
        "read -P 0xa5 1M 64k",
        "read -P 0x5a 1088k 960k",
        "read -P 0 2M 2M",
        "read -P 0 4M 1M",
    )


def test_qemu_io_reads_unaligned_ranges(new_volume: Callable[[int], Volume]) -> None:
    volume = new_volume(64 * MIB)
    qemu_io(
        volume.uri, "write -P 0x11 0 64k", "write -P 0x22 1000 3000", "read -P 0x22 1000 3000", "read -P 0x11 0 1000"
    )


def test_qemu_io_goes_on_after_a_failover(new_volume: Callable[[int], Volume], failover: Failover) -> None:
    volume = new_volume(64 * MIB)
    host, _, port = volume.lasting_uri.split("/")[2].partition(":")
    with QemuIo(host, int(port), volume.name, reconnect_delay_s=RECONNECT_DELAY_S) as client:
        client.command("write -P 0x31 0 8M")
        client.command("discard 2M 1M")
        failover.kill_primary(volume)
        client.command("read -P 0x31 0 2M")
        client.command("read -P 0 2M 1M")
        client.command("write -P 0x32 4M 4M")
        client.command("flush")
        client.command("read -P 0x31 3M 1M")
        client.command("read -P 0x32 4M 4M")


def test_qemu_io_finishes_a_write_that_a_failover_interrupts(
    new_volume: Callable[[int], Volume], failover: Failover
) -> None:
    volume = new_volume(128 * MIB)
    host, _, port = volume.lasting_uri.split("/")[2].partition(":")
    with QemuIo(host, int(port), volume.name, reconnect_delay_s=RECONNECT_DELAY_S) as client:
        client.start("write -P 0x41 0 96M")
        failover.kill_primary(volume)
        client.finish()
        client.command("read -P 0x41 0 96M")
