"""`rackctl firmware sign|verify|inspect|extract`: images as files; `flash` is added from its own module."""

import argparse
import hashlib
import json
from pathlib import Path
from typing import Any, Final

from sled_board.board import board_names, load_board
from sled_board.errors import BoardError, DamagedImage
from sled_board.flasher import checked_image
from sled_board.image import Image, Trust, read_image, sign_image
from sled_board.image.layout import APPLICATION

from rackctl.defaults import Defaults
from rackctl.errors import RackError, reason_of
from rackctl.files import read_file, write_file
from rackctl.firmware.building import add_build, add_hashes
from rackctl.firmware.description import image_facts, image_rows
from rackctl.firmware.flash import add_flash
from rackctl.firmware.image_files import read_image_file, read_key_set_file
from rackctl.firmware.rollout import add_rollout
from rackctl.keys import add_root
from rackctl.options import OTHER_STATUSES, add_option, add_switch, checked_by, counter, new_file
from rackctl.output import say
from rackctl.signers import read_public
from rackctl.signing_options import HOW_COMMANDS_SIGN, add_signer, signer_of
from rackctl.table import named

SBOM_BYTES_MAX: Final = 16 << 20
KEY_SET: Final = "key-set"


def add_firmware(parser: argparse.ArgumentParser, defaults: Defaults) -> None:
    """`rackctl firmware ...`."""
    actions = parser.add_subparsers(required=True, metavar="ACTION")
    add_build(actions.add_parser("build", help="build an image and its bill of materials of a commit"), defaults)
    _add_sign(actions.add_parser("sign", help="add a signature to an image, or renew its key set"), defaults)
    _add_verify(actions.add_parser("verify", help="say whether a board would take an image"), defaults)
    inspect = actions.add_parser("inspect", help="show what an image says about itself; nothing is trusted by that")
    inspect.set_defaults(command=_inspect)
    extract = actions.add_parser("extract", help="take a payload or the key set out of an image, checked for damage")
    extract.add_argument(
        "--payload", default=APPLICATION, metavar="NAME", help=f"its name, or {KEY_SET}; default {APPLICATION}"
    )
    extract.add_argument("-o", "--output", type=Path, required=True, metavar="FILE", help="where it goes")
    extract.set_defaults(command=_extract)
    add_flash(actions.add_parser("flash", help="write an image onto a board over its serial console"), defaults)
    rollout = actions.add_parser("rollout", help="update the sleds of a rack one after the other, and watch over it")
    add_rollout(rollout, defaults)
    for name, action in actions.choices.items():
        kind = checked_by(new_file) if name == "build" else Path
        action.add_argument("image", type=kind, metavar="IMAGE", help="the image, a file")
        add_switch(action, "--json", variable="RACKCTL_JSON", text="for programs", defaults=defaults)
    add_hashes(actions.add_parser("hashes", help="write the hashes of what images are made of"), defaults)


def _add_sign(parser: argparse.ArgumentParser, defaults: Defaults) -> None:
    parser.description = (
        "Sign an image with one key; do it again with others until enough of the key set have signed. "
        + HOW_COMMANDS_SIGN
    )
    add_signer(parser, defaults, "--key", "RACKCTL_KEY", "the private key")
    _add_key_set(parser, defaults, "the signed key set that the image is to carry; needed the first time")
    parser.add_argument(
        "-o", "--output", type=Path, metavar="FILE", help="where the signed image goes; IMAGE is replaced without it"
    )
    parser.set_defaults(command=_sign)


def _add_verify(parser: argparse.ArgumentParser, defaults: Defaults) -> None:
    parser.description = "Check an image as a board does that is provisioned with this root key."
    parser.epilog = f"Exit status: 0 the image is trusted; {OTHER_STATUSES}"
    add_root(parser, defaults, "the root key that the board is provisioned with")
    _add_key_set(parser, defaults, "the key set that the board keeps; the newer of it and the image's counts")
    add_option(
        parser,
        "--hardware",
        variable="RACKCTL_HARDWARE",
        kind=str,
        default=None,
        metavar="NAME",
        text="the board; any that the image is for without it",
        defaults=defaults,
    )
    add_option(
        parser,
        "--counter-min",
        variable="RACKCTL_COUNTER_MIN",
        kind=counter,
        default=0,
        metavar="N",
        text="the highest rollback counter that the board has seen",
        defaults=defaults,
    )
    add_switch(
        parser,
        "--unlocked",
        variable="RACKCTL_UNLOCKED",
        text="as a board that is not locked: development keys count",
        defaults=defaults,
    )
    parser.add_argument(
        "--sbom", type=Path, metavar="FILE", help="check too that this is the image's bill of materials"
    )
    parser.set_defaults(command=_verify)


def _add_key_set(parser: argparse.ArgumentParser, defaults: Defaults, text: str) -> None:
    add_option(
        parser,
        "--key-set",
        variable="RACKCTL_KEY_SET",
        kind=Path,
        default=None,
        metavar="FILE",
        text=text,
        defaults=defaults,
    )


def _sign(arguments: argparse.Namespace) -> int:
    image = read_image_file(arguments.image)[1]
    signer = signer_of(arguments, "--key")
    if signer is None and arguments.key_set is None:
        raise RackError("nothing to do: say which key signs (--key or --key-command), or give a new --key-set")
    signed = sign_image(image, signer, read_key_set_file(arguments.key_set))
    output: Path = arguments.output or arguments.image
    write_file(output, signed)
    now = read_image(signed)
    if arguments.json:
        print(json.dumps({"image": str(output)} | image_facts(now), indent=1))
    else:
        print(f"{output}: signed by {len(now.signatures)}: {' '.join(name.hex() for name, _ in now.signatures)}")
    return 0


def _verify(arguments: argparse.Namespace) -> int:
    facts: dict[str, Any] = {}
    try:
        if arguments.root is None:
            raise RackError("verify: say by which root key with --root: without one anybody's image would do")
        trust = Trust(read_public(arguments.root), read_key_set_file(arguments.key_set), locked=not arguments.unlocked)
        data, image = read_image_file(arguments.image)
        facts = image_facts(image)
        hardware = arguments.hardware or image.hardware[0]
        if hardware in board_names():
            checked_image(data, load_board(hardware), trust, arguments.counter_min)
        else:
            trust.check(image, hardware=hardware, counter_min=arguments.counter_min)
            image.check_startable(architecture=image.architecture)
        if arguments.sbom is not None:
            _check_sbom(image, arguments.sbom)
    except (BoardError, RackError) as error:
        if arguments.json:
            say(json.dumps({"trusted": False, "reason": reason_of(error), "why": str(error)} | facts, indent=1))
        raise
    if arguments.json:
        print(json.dumps({"trusted": True, "reason": None, "why": None} | facts, indent=1))
    else:
        print(f"{arguments.image}: {image.version} for {hardware}, counter {image.counter}: trusted")
    return 0


def _inspect(arguments: argparse.Namespace) -> int:
    image = read_image_file(arguments.image)[1]
    print(json.dumps(image_facts(image), indent=1) if arguments.json else named(image_rows(image)))
    return 0


def _extract(arguments: argparse.Namespace) -> int:
    image = read_image_file(arguments.image)[1]
    if arguments.payload == KEY_SET:
        if image.key_set is None:
            raise RackError(f"{arguments.image}: carries no key set; `rackctl firmware sign --key-set` puts one in")
        content: bytes | memoryview = image.key_set
    else:
        content = image.payload(arguments.payload)
    write_file(arguments.output, bytes(content))
    if arguments.json:
        digest = hashlib.sha256(content).hexdigest()
        print(json.dumps({"file": str(arguments.output), "size": len(content), "sha256": digest}, indent=1))
    return 0


def _check_sbom(image: Image, path: Path) -> None:
    found = hashlib.sha256(read_file(path, SBOM_BYTES_MAX)).digest()
    if found != image.sbom_sha256:
        told = "names none" if image.sbom_sha256 is None else f"names SHA-256 {image.sbom_sha256.hex()}"
        raise DamagedImage(f"{path} is not its bill of materials: SHA-256 {found.hex()}, the image {told}")
