"""`make demo`: a rack is started, its primary killed and later frozen in mid-write, and nothing acknowledged is lost.

Ends with status 0 only if every claim of the summary table held.
"""

import argparse
import asyncio
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from head_node.export.errors import ExportError
from rackctl import peer_programs
from rackctl.account import Account
from rackctl.errors import RackError
from rackctl.evidence import engine_of_primary, wait_destaged, wait_fenced_off
from rackctl.interrupts import SIGNAL_EXIT, Interrupted, signals_raise
from rackctl.options import add_option
from rackctl.output import output_escaped
from rackctl.ports import HOST
from rackctl.rack import Rack, Roles, wait_until
from rackctl.state import NodeKind
from rackctl.verified_writer import VerifiedWriter

VOLUME: Final = "data"
VOLUME_BYTES: Final = 1 << 30
# The real client's part of the volume, and behind it the part of our own writer.
PEER_BYTES: Final = 64 << 20
WRITER_FIRST_BLOCK: Final = PEER_BYTES // 4096
WRITER_BLOCKS: Final = 16_384
WRITES_BEFORE: Final = 2_000
WRITES_AFTER: Final = 2_000
STALL_S_MAX: Final = 5.0


def main(argv: Sequence[str] | None = None) -> int:
    """Tell the story; 0 when everything held, 1 when something did not, 2 when it could not be told."""
    parser = argparse.ArgumentParser(prog="python -m rackctl.demo", description=__doc__)
    add_option(
        parser,
        "--dir",
        variable="RACKCTL_DEMO_DIR",
        kind=Path,
        default=None,
        metavar="DIR",
        text="keep the rack's state and logs there",
    )
    directory: Path | None = parser.parse_args(argv).dir
    with output_escaped():
        return _tell(directory)


def _tell(directory: Path | None) -> int:
    account = Account(sys.stdout)
    try:
        with signals_raise(), tempfile.TemporaryDirectory(prefix="palisade-demo-") as scratch:
            tell(account, directory, Path(scratch))
    except (RackError, ExportError) as error:
        print(f"demo: {error}", file=sys.stderr)
        return 2
    except Interrupted as interrupted:
        return SIGNAL_EXIT + interrupted.number
    print(f"\n{account.summary()}\n\n{account.elapsed_s:.1f} s in all", flush=True)
    return 0 if account.all_held else 1


def tell(account: Account, directory: Path | None, scratch: Path) -> None:
    """All chapters on one rack."""
    account.say("starting an authority, 6 sleds and 2 heads")
    with Rack.running(directory) as rack:
        account.say(f"rack up in {rack.directory}")
        rack.create_volume(VOLUME, VOLUME_BYTES)
        account.say(f"volume {VOLUME!r} of 1 GiB is served")
        roles = rack.wait_members(VOLUME, 2)
        account.say(f"epoch {roles.epoch}: primary {roles.primary}, secondary {roles.secondaries[0]}")
        with account.chapter("Verified writes from a client that nobody here wrote"):
            real_client(account, rack, roles, scratch)
        with account.chapter("kill -9 of the primary in mid-write"):
            asyncio.run(kill_primary(account, rack))
        with account.chapter(
            "The primary freezes in mid-write (SIGSTOP) and wakes up as if nothing had happened (SIGCONT)"
        ):
            asyncio.run(freeze_primary(account, rack))
        with account.chapter("A sled dies"):
            asyncio.run(lose_sled(account, rack))
    account.say("everything is stopped and removed")


def real_client(account: Account, rack: Rack, roles: Roles, scratch: Path) -> None:
    """fio with verification, or nbdcopy in and out, or a note that neither is installed."""
    uri = rack.nbd_uri(VOLUME, roles.primary or "")
    fio, nbdcopy = peer_programs.find("fio"), peer_programs.find("nbdcopy")
    if fio:
        argv = [fio, "--name=demo", "--ioengine=nbd", f"--uri={uri}", f"--size={PEER_BYTES}", "--rw=randwrite"]
        argv += ["--bsrange=4k-1m", "--blockalign=4k", "--iodepth=32", "--verify=crc32c", "--do_verify=1"]
        argv += ["--verify_fatal=1", "--verify_state_save=0", f"--aux-path={scratch}"]
        done = subprocess.run(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=60)
        shown = "64 MiB in blocks of 4 KiB to 1 MiB, depth 32" if not done.returncode else done.stdout.strip()[-300:]
        account.verdict("fio reads back what it wrote (crc32c)", done.returncode == 0, shown)
    elif nbdcopy:
        source, back = scratch / "in", scratch / "out"
        source.write_bytes(bytes(range(256)) * (PEER_BYTES // 256))
        subprocess.run([nbdcopy, source, uri], check=True, timeout=60)
        subprocess.run([nbdcopy, uri, back], check=True, timeout=60)
        with source.open("rb") as wrote, back.open("rb") as read:
            same = all(wrote.read(1 << 20) == read.read(1 << 20) for _ in range(PEER_BYTES >> 20))
        account.verdict("nbdcopy brings back what it took in", same, "64 MiB")
    else:
        account.say("neither fio nor nbdcopy is installed (make peers): our own client does all the writing")


async def kill_primary(account: Account, rack: Rack) -> None:
    """Power is cut while writes are under way; the other head takes over; the old one comes back and follows."""
    before = rack.roles(VOLUME)
    writer = await start_writer(account, rack, seed=1)
    try:
        await asyncio.to_thread(rack.kill, str(before.primary))
        account.say(f"kill -9 {before.primary}")
        after = await takeover(account, rack, before, writer)
        await asyncio.to_thread(rack.restart, str(before.primary))
        account.say(f"{before.primary} is started again")
        await rejoin(account, rack, after, str(before.primary))
        await read_back(account, writer, "kill -9")
    finally:
        await writer.close()


async def freeze_primary(account: Account, rack: Rack) -> None:
    """The primary stops for longer than its lease and goes on; the sleds refuse its stale epoch."""
    before = rack.roles(VOLUME)
    writer = await start_writer(account, rack, seed=2)
    try:
        await asyncio.to_thread(rack.pause, str(before.primary))
        account.say(f"SIGSTOP {before.primary}, which holds epoch {before.epoch}")
        after = await takeover(account, rack, before, writer)
        rack.resume(str(before.primary))
        account.say(f"SIGCONT {before.primary}: it still believes in epoch {before.epoch}")
        refused = await asyncio.to_thread(wait_fenced_off, rack, str(before.primary), before.epoch)
        by = ", ".join(sorted({event.sled for event in refused}))
        account.verdict(
            "the sleds refuse the awakened old primary",
            bool(refused) and all(event.current_epoch == after.epoch for event in refused),
            f"stale epoch {before.epoch}, current epoch {after.epoch}; fenced off by {by or 'nobody'}",
        )
        await rejoin(account, rack, after, str(before.primary))
        await read_back(account, writer, "SIGSTOP")
    finally:
        await writer.close()


async def lose_sled(account: Account, rack: Rack) -> None:
    """What has been written lies in stripes; a sled is killed; its shards are computed from the others."""
    writer = await start_writer(account, rack, seed=3)
    try:
        await writer.stop()
        engine = await asyncio.to_thread(wait_destaged, rack, VOLUME)
        account.say(f"written out in {engine['stripes_written']} stripes of 4 + 2 shards")
        sled = rack.state.of_kind(NodeKind.SLED)[0].name
        await asyncio.to_thread(rack.kill, sled)
        account.say(f"kill -9 {sled}")
        findings = await writer.verify()
        account.verdict(
            f"all data is there without {sled}",
            not findings.wrong and findings.read > 0,
            f"{findings.read} blocks read, {len(findings.wrong)} wrong",
        )
        count = await asyncio.to_thread(wait_reconstructed, rack)
        account.verdict(f"what {sled} held is computed from the others", count > 0, f"{count} blocks reconstructed")
    finally:
        await writer.close()


def wait_reconstructed(rack: Rack) -> int:
    """How many blocks the primary has reconstructed; its reports come every second."""
    try:
        return wait_until(
            lambda: int(engine_of_primary(rack, VOLUME).get("blocks_reconstructed", 0)), "a report of reads", 5.0
        )
    except RackError:
        return 0


async def start_writer(account: Account, rack: Rack, seed: int) -> VerifiedWriter:
    """Our own client at both heads, with writes acknowledged already."""
    addresses = [(HOST, head.ports["nbd"]) for head in rack.state.of_kind(NodeKind.HEAD)]
    writer = VerifiedWriter(addresses, VOLUME, WRITER_BLOCKS, first_block=WRITER_FIRST_BLOCK, seed=seed)
    await writer.start()
    await writer.wait_acknowledged(WRITES_BEFORE)
    account.say(f"{writer.acknowledged} writes acknowledged, 32 more under way")
    return writer


async def takeover(account: Account, rack: Rack, before: Roles, writer: VerifiedWriter) -> Roles:
    """See the other head take over and the client go on."""
    writer.forget_stalls()
    after = await asyncio.to_thread(rack.wait_epoch_above, VOLUME, before.epoch)
    account.say(f"{after.primary} takes over: epoch {before.epoch} -> {after.epoch}")
    await writer.wait_acknowledged(WRITES_AFTER)
    stall_s = writer.longest_stall_s
    account.verdict(
        f"the client goes on at {after.primary}",
        after.primary != before.primary and stall_s <= STALL_S_MAX,
        f"it waited {stall_s:.2f} s",
    )
    return after


async def rejoin(account: Account, rack: Rack, after: Roles, name: str) -> None:
    """See the former primary become a secondary that holds everything."""
    roles = await asyncio.to_thread(rack.wait_members, VOLUME, 2)
    account.verdict(
        f"{name} comes back as secondary",
        roles.primary == after.primary and name in roles.secondaries,
        f"epoch {roles.epoch}, primary {roles.primary}, secondary {' '.join(roles.secondaries)}",
    )


async def read_back(account: Account, writer: VerifiedWriter, what: str) -> None:
    """Compare every block with its last acknowledged write."""
    await writer.stop()
    findings = await writer.verify()
    for line in findings.wrong[:10]:
        account.say(line)
    account.verdict(
        f"every acknowledged write survives {what}",
        not findings.wrong and findings.read > 0,
        f"{writer.acknowledged} writes, {findings.read} blocks read back, {len(findings.wrong)} wrong",
    )


if __name__ == "__main__":
    raise SystemExit(main())
