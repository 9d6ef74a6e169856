"""Debian's own kernel booted in QEMU: a Linux host, or a Linux target, that nobody here wrote.

How to use it. In a test take the session's guest (one per test process, booted when the first test asks for it):

    def test_linux_connects(guest: Guest) -> None:
        async def scenario() -> None:
            async with running_sled() as sled:                  # serves on the loopback of this machine
                await guest.check(f"nvme connect -t tcp -a {GATEWAY} -s {sled.port} -n {NQN}")
                result = await guest.run("nvme list -o json")   # Result(status, stdout, stderr)
        asyncio.run(scenario())

or one of your own, with other arguments of the kernel (two hosts in one guest need `nvme_core.multipath=N`):

    async with Guest.booted(tmp_path, kernel_arguments=("nvme_core.multipath=N",), cpus=2) as guest:
        ...

A guest belongs to no event loop: it may be booted under one `asyncio.run` and used under others, by several tasks at
once; a command that runs does not keep the next one waiting.

- `run(script)` gives a POSIX shell script to the guest's busybox; `check` is the same and fails unless its status is 0.
  Programs there: busybox, nvme, fio, mkfs.ext4, e2fsck, mkfs.xfs, xfs_repair, blkdiscard, fstrim, nbd-client, modprobe
  (`image.PROGRAMS`). Modules: nvme-tcp, nvmet-tcp, null_blk, brd, loop, xfs, nbd and what they need (`image.MODULES`).
- `peers.guest.nvme` connects the guest to a subsystem for the length of a block, and finds its block devices;
  `peers.guest.multipath` connects it to all heads of a volume and mounts file systems there.
- `peers.guest.board` is a guest with PCIe NVMe drives behind an IOMMU, and the sled controller and SPDK inside.
- `put(path, data)` and `get(path)` move files. `tests/peers/guest/machine.py` has the rest: `forward(port)` makes a
  port of the guest reachable on our loopback, `frozen()` stops its processors.
- The guest reaches the loopback of this machine, 127.0.0.1, at `GATEWAY` (10.0.2.2). A discovery record that names
  127.0.0.1 points it at itself.
- Time limits are those of a real machine; where the processor is emulated (TCG) they are stretched.
- Test `[ -b /dev/nvme0n1 ]` before you write to it: dd and fio would make a plain file of that name.
- `guest.console` is the kernel's log; its end is shown with a test that fails.
"""

from peers.guest.machine import GATEWAY, Guest, GuestError, Result

__all__ = ["GATEWAY", "Guest", "GuestError", "Result"]
