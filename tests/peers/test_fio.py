"""fio's verification finds every block as it wrote it: before, after and across a failover."""

import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from kit.peers import require, run
from kit.volumes import Failover, Volume

MIB = 1 << 20


def job(uri: str, tmp_path: Path, *options: str, size: str = "64M") -> list[str]:
    """4 KiB to 1 MiB at random places, depth 32, each block with a CRC32C."""
    return [
        *("--name=verify", "--ioengine=nbd", f"--uri={uri}", f"--size={size}", "--rw=randwrite"),
        *("--bsrange=4k-1m", "--blockalign=4k", "--iodepth=32", "--verify=crc32c", "--verify_fatal=1"),
        *("--verify_state_save=0", "--randrepeat=1", f"--aux-path={tmp_path}", *options),
    ]


@contextmanager
def patient(volume: Volume, tmp_path: Path) -> Iterator[str]:
    """nbdkit between fio and the volume: it connects again where fio would give up. Yields its address."""
    host, _, port = volume.lasting_uri.split("/")[2].partition(":")
    socket, pid = tmp_path / "nbd.sock", tmp_path / "nbdkit.pid"
    # Without --foreground it returns when it listens.
    run(
        *("nbdkit", f"--unix={socket}", f"--pidfile={pid}", "--filter=retry", "nbd"),
        *(f"hostname={host}", f"port={port}", f"export={volume.name}", "retry=30"),
        *("retries=60", "retry-delay=1", "retry-exponential=no"),
    )
    try:
        yield f"nbd+unix:///?socket={socket}"
    finally:
        os.kill(int(pid.read_text()), signal.SIGTERM)


def test_fio_verifies_what_it_wrote(new_volume: Callable[[int], Volume], tmp_path: Path) -> None:
    volume = new_volume(64 * MIB)
    run("fio", *job(volume.uri, tmp_path, "--do_verify=1"))


def test_fio_verifies_through_the_other_head(new_volume: Callable[[int], Volume], tmp_path: Path) -> None:
    volume = new_volume(64 * MIB)
    run("fio", *job(volume.lasting_uri, tmp_path, "--do_verify=1", size="32M"))


def test_fio_verifies_after_a_failover_what_it_wrote_before(
    new_volume: Callable[[int], Volume], failover: Failover, tmp_path: Path
) -> None:
    volume = new_volume(64 * MIB)
    run("fio", *job(volume.uri, tmp_path, "--do_verify=0"))
    failover.kill_primary(volume)
    run("fio", *job(volume.uri, tmp_path, "--verify_only=1"))


def test_fio_does_not_notice_a_failover_behind_a_patient_client(
    new_volume: Callable[[int], Volume], failover: Failover, tmp_path: Path
) -> None:
    volume = new_volume(256 * MIB)
    fio = require("fio")
    with patient(volume, tmp_path) as uri:
        argv = [fio, *job(uri, tmp_path, "--do_verify=1", size="256M")]
        with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as running:
            failover.kill_primary(volume)
            output, _ = running.communicate(timeout=120)
        assert running.returncode == 0, output
