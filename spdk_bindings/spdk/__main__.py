"""Look at a drive by SPDK, and prepare it: `python -m spdk_bindings.spdk identify|format|firmware ADDRESS`."""

import argparse
import asyncio
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from spdk_bindings.nvme import status_name
from spdk_bindings.spdk.controller import SpdkController
from spdk_bindings.spdk.environment import EnvironmentSettings, SpdkEnvironment
from spdk_bindings.spdk.errors import SpdkError


def main(argv: Sequence[str] | None = None, shim: Path | None = None) -> int:
    """0, or 2 with the reason."""
    parser = argparse.ArgumentParser(prog="python -m spdk_bindings.spdk", description=__doc__)
    parser.add_argument("--core-mask", default="0x1", help="hexadecimal; where the reactor may run (0x1)")
    parser.add_argument("--memory-mib", type=int, default=128, help="of hugepages, for SPDK (128)")
    parser.add_argument("--no-huge", action="store_true", help="without hugepages: for drives over the network only")
    commands = parser.add_subparsers(dest="command", required=True)
    for name, what in (
        ("identify", "say what the drive is, its formats and its SMART log"),
        ("format", "ERASE the namespace and give it blocks of 4096 bytes"),
        ("firmware", "download an image and commit it to a slot, active from the next reset on"),
    ):
        command = commands.add_parser(name, help=what)
        command.add_argument("address", help="0000:01:00.0, or 'trtype:TCP traddr:... trsvcid:... subnqn:...'")
        if name == "firmware":
            command.add_argument("image", type=Path)
            command.add_argument("--slot", type=int, default=1, choices=range(1, 8), help="1..7 (1)")
    arguments = parser.parse_args(argv)
    settings = EnvironmentSettings(
        arguments.core_mask, arguments.memory_mib, buffers_mib=1, no_huge=arguments.no_huge, no_pci=arguments.no_huge
    )
    try:
        return asyncio.run(_run(arguments, SpdkEnvironment.start(settings, shim)))
    except (SpdkError, OSError, ValueError) as error:
        print(f"spdk: {error}", file=sys.stderr)
        return 2


async def _run(arguments: argparse.Namespace, environment: SpdkEnvironment) -> int:
    controller = await SpdkController.open(environment, arguments.address)
    try:
        if arguments.command == "identify":
            print(f"driver: {environment.version}")
            for name, value in (asdict(controller.identity) | await controller.smart()).items():
                print(f"{name}: {value}")
            return 0
        if arguments.command == "format":
            status = await controller.format()
        else:
            status = await controller.update_firmware(arguments.image.read_bytes(), arguments.slot)
    finally:
        controller.close()
    if status:
        raise SpdkError(f"{arguments.address}: the drive refused with {status_name(status)} ({status:#x})")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
