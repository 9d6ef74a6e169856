"""Images and key sets in files; what is wrong with one is said with the file's name."""

from pathlib import Path

from sled_board.errors import DamagedImage, WrongSignature
from sled_board.image import IMAGE_BYTES_MAX, Image, KeySet, read_image
from sled_board.image.layout import KEY_SET_BYTES

from rackctl.files import read_file


def read_image_file(path: Path) -> tuple[bytes, Image]:
    """An image as bytes and as what they say, not yet trusted; raises FileUnreadable and DamagedImage."""
    data = read_file(path, IMAGE_BYTES_MAX)
    try:
        return data, read_image(data)
    except DamagedImage as error:
        raise DamagedImage(f"{path}: {error}") from None


def read_key_set_file(path: Path | None) -> bytes | None:
    """A key set, still signed, None without a file; raises FileUnreadable and WrongSignature."""
    if path is None:
        return None
    data = read_file(path, KEY_SET_BYTES)
    try:
        KeySet.parse(data)
    except WrongSignature as error:
        raise WrongSignature(f"{path}: {error}") from None
    return data
