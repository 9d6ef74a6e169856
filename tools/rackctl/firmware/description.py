"""What an image says about itself, for people and for programs."""

from datetime import UTC, datetime
from typing import Any

from sled_board.errors import WrongSignature
from sled_board.image import Image, KeySet, Tag
from sled_board.image.layout import FORMAT

from rackctl.keys import set_facts, set_rows
from rackctl.sizes import show_size


def image_facts(image: Image) -> dict[str, Any]:
    """The whole description as JSON has it; texts that are not there are null."""
    key_set = carried(image)
    return {
        "format": FORMAT,
        "id": image.id,
        "version": image.version,
        "counter": image.counter,
        "hardware": list(image.hardware),
        "architecture": image.architecture,
        "built": _built(image),
        "build_id": image.build_id,
        "sbom_sha256": None if image.sbom_sha256 is None else image.sbom_sha256.hex(),
        "bootloader_min": image.bootloader_min,
        "python": image.python,
        "other_tlvs": {str(tag): value.hex() for tag, value in _others(image)},
        "payloads": [{"name": it.name, "size": it.size, "sha256": it.sha256.hex()} for it in image.payloads],
        "signatures": [name.hex() for name, _ in image.signatures],
        "key_set": None if key_set is None else set_facts(key_set),
    }


def image_rows(image: Image) -> list[tuple[str, str]]:
    """The same in pairs of a name and a text."""
    rows = [
        ("id", image.id),
        ("version", image.version),
        ("counter", f"{image.counter} (boards that have seen a higher one refuse the image)"),
        ("hardware", " ".join(image.hardware)),
        ("architecture", image.architecture),
        ("built", _built(image)),
        ("build id", image.build_id or "-"),
        ("SBOM", "-" if image.sbom_sha256 is None else f"SHA-256 {image.sbom_sha256.hex()}"),
        ("boot loader", "any" if image.bootloader_min is None else f"U-Boot {image.bootloader_min} or newer"),
        ("Python", image.python or "-"),
    ]
    rows += [(f"TLV {tag}", value.hex()) for tag, value in _others(image)]
    for payload in image.payloads:
        rows.append(("payload", f"{payload.name}, {show_size(payload.size)}, SHA-256 {payload.sha256.hex()}"))
    rows += [("signed by", f"key {name.hex()}") for name, _ in image.signatures] or [("signed by", "nobody")]
    key_set = carried(image)
    return rows + ([("key set", "none")] if key_set is None else set_rows(key_set, "not checked here"))


def carried(image: Image) -> KeySet | None:
    """The key set that the image carries, as it is written, None also when it is none."""
    try:
        return None if image.key_set is None else KeySet.parse(image.key_set)
    except WrongSignature:
        return None


def _built(image: Image) -> str:
    return datetime.fromtimestamp(image.built_s, UTC).isoformat().replace("+00:00", "Z")


def _others(image: Image) -> list[tuple[int, bytes]]:
    return [(tag, value) for tag, value in image.tlvs.items() if tag not in tuple(Tag)]
