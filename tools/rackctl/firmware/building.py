"""`rackctl firmware build`: a commit becomes an image and its bill of materials, the same bytes every time."""

import argparse
import hashlib
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from sled_board.board import board_names, load_board
from sled_board.firmware_store import MACHINES, THIS_ARCHITECTURE
from sled_board.image import Recipe, Tag, build_image, read_image
from sled_board.image.layout import APPLICATION

from rackctl.defaults import Defaults
from rackctl.errors import RackError
from rackctl.files import write_file
from rackctl.firmware.application import pack
from rackctl.firmware.description import image_facts
from rackctl.firmware.hashes import FILE as HASHES
from rackctl.firmware.hashes import as_text
from rackctl.firmware.source import Source
from rackctl.firmware.wheels import PYTHON_TAG, download, fetch
from rackctl.options import add_option, counter
from rackctl.staged_sleds import HARDWARE

ABOUT: Final = (
    "Build an image of the commit that is checked out: the sled controller with its Python dependencies for a base"
    " system with Python 3.11, and beside it a CycloneDX bill of materials. Two builds of one commit give equal bytes."
    " The image is not signed: `rackctl firmware sign` does that."
)
CHECKOUT: Final = Path(__file__).parents[3]
SBOM_SUFFIX: Final = ".cdx.json"


def add_build(parser: argparse.ArgumentParser, defaults: Defaults) -> None:
    """The options of the command."""
    parser.description = ABOUT
    parser.add_argument(
        "--hardware",
        action="append",
        required=True,
        metavar="NAME",
        help="a board that the image is for, by the name of its description; may be repeated",
    )
    parser.add_argument(
        "--architecture",
        choices=MACHINES,
        help="of these boards, as U-Boot calls it; without it what their"
        " descriptions say, this machine's for emulated sleds, arm64 for boards that are not described here",
    )
    add_option(
        parser,
        "--source",
        variable="RACKCTL_SOURCE",
        kind=Path,
        default=CHECKOUT,
        metavar="DIR",
        text="the checkout",
        defaults=defaults,
    )
    add_option(
        parser,
        "--wheels",
        variable="RACKCTL_WHEELS",
        kind=Path,
        default=None,
        metavar="DIR",
        text="take the dependencies from this folder and ask no index",
        defaults=defaults,
    )
    for flag, kind, metavar, text in (
        ("--release", str, "VERSION", "its semantic version; that of pyproject.toml without it"),
        ("--counter", counter, "N", "its rollback counter; that of pyproject.toml without it"),
        ("--bootloader-min", str, "RELEASE", "the oldest U-Boot that may start it; that of pyproject.toml without it"),
        ("--sbom", Path, "FILE", f"where the bill of materials goes; IMAGE{SBOM_SUFFIX} without it"),
    ):
        parser.add_argument(flag, type=kind, metavar=metavar, help=text)
    parser.set_defaults(command=_build)


def add_hashes(parser: argparse.ArgumentParser, defaults: Defaults) -> None:
    """The options of `rackctl firmware hashes`."""
    parser.description = (
        f"Write the hashes of all wheels that images of this checkout may be made of into {HASHES}, for each"
        " architecture, from what pip's index gives now: look at the change before you commit it."
    )
    add_option(
        parser, "--source", variable="RACKCTL_SOURCE", kind=Path, default=CHECKOUT, metavar="DIR", text="the checkout",
        defaults=defaults,
    )  # fmt: skip
    parser.set_defaults(command=_hashes)


def _hashes(arguments: argparse.Namespace) -> int:
    source = Source.open(arguments.source)
    with tempfile.TemporaryDirectory(prefix="rackctl-wheels-") as folder:
        files = []
        for architecture in MACHINES:
            into = Path(folder) / architecture
            into.mkdir()
            files += download(source.requirements, source.constraints, architecture, into, None)
        write_file(source.hashes, as_text(files).encode("ascii"))
    print(f"{source.hashes}: {len({path.name for path in files})} wheels for {' and '.join(MACHINES)}")
    return 0


def architecture_of(hardware: Sequence[str], wanted: str | None = None) -> str:
    """That of all these boards; raises RackError when they have several, another one than `wanted`, or one that nothing
    is built for."""
    found: set[str] = {load_board(name).architecture for name in hardware if name in board_names()}
    found |= {THIS_ARCHITECTURE} if HARDWARE in hardware else set()
    if len(found) > 1:
        raise RackError(
            f"these boards are of several architectures, {', '.join(sorted(found))}: build an image for each"
        )
    architecture = found.pop() if found else wanted or "arm64"
    if wanted not in (None, architecture):
        raise RackError(f"{' '.join(hardware)}: of the architecture {architecture}, not {wanted}")
    if architecture not in MACHINES:
        raise RackError(f"images are built for {' and '.join(MACHINES)}, not for {architecture}")
    return architecture


def _build(arguments: argparse.Namespace) -> int:
    try:
        from rackctl.firmware.sbom import bill
    except ImportError as error:
        raise RackError(f"{error}: building an image needs the extra `firmware` of this package") from None
    source = Source.open(arguments.source)
    architecture = architecture_of(arguments.hardware, arguments.architecture)
    version = arguments.release or source.version
    with tempfile.TemporaryDirectory(prefix="rackctl-wheels-") as folder:
        wheels = fetch(
            source.requirements, source.constraints, source.hashes, architecture, Path(folder), arguments.wheels
        )  # fmt: skip
    sbom = bill(source, version, architecture, wheels)
    parts = {"the checkout": source.files()} | {wheel.file: wheel.files for wheel in wheels}
    data = build_image(
        Recipe(
            version=version,
            counter=source.counter if arguments.counter is None else arguments.counter,
            hardware=tuple(arguments.hardware),
            architecture=architecture,
            built_s=source.built_s,
            payloads={APPLICATION: pack(parts, source.built_s)},
            tlvs={
                Tag.BUILD_ID: source.build_id.encode(),
                Tag.SBOM_SHA256: hashlib.sha256(sbom).digest(),
                Tag.BOOTLOADER_MIN: (arguments.bootloader_min or source.bootloader_min).encode(),
                Tag.PYTHON: PYTHON_TAG.encode(),
            },
        )
    )
    beside: Path = arguments.sbom or arguments.image.with_name(arguments.image.name + SBOM_SUFFIX)
    write_file(beside, sbom)
    write_file(arguments.image, data)
    image = read_image(data)
    if arguments.json:
        print(json.dumps({"image": str(arguments.image), "sbom": str(beside)} | image_facts(image), indent=1))
    else:
        print(f"{arguments.image}: {version} for {' '.join(image.hardware)}, {len(data)} bytes, not signed")
        print(f"{beside}: {len(wheels)} Python distributions and what is compiled into them")
    return 0
