"""The application image: the sled controller and all that it needs of Python packages, in one archive.

A tar archive compressed by xz. Unpacked anywhere, `python3 -I DIRECTORY` starts the sled controller in a base system
with the same Python. The same files give the same bytes: order, dates, owners and modes are fixed.
"""

import io
import lzma
import tarfile
from collections.abc import Mapping
from typing import Final

from rackctl.errors import RackError
from rackctl.firmware.elf import loadable

START: Final = '''"""Starts the sled controller of this application image: python3 -I DIRECTORY [OPTION ...]."""

from sled_controller.server import main

main()
'''
FOR_COMPILERS_AND_PEOPLE: Final = (".c", ".h", ".pyi", ".pyx", ".pxd", "/py.typed")
XZ_PRESET: Final = 6  # 9 MiB to unpack; the largest preset saves half a percent and needs 65


def pack(parts: Mapping[str, Mapping[str, bytes]], built_s: int) -> bytes:
    """The archive of several sets of files, each named for messages; raises RackError when two bring the same file."""
    files: dict[str, bytes] = {"__main__.py": START.encode()}
    owner = {"__main__.py": "the application"}
    for part, contents in parts.items():
        for name, data in contents.items():
            if name.endswith(FOR_COMPILERS_AND_PEOPLE):
                continue
            if name in files and files[name] != data:
                raise RackError(f"{part} and {owner[name]} both bring {name}")
            files[name], owner[name] = data, part
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name in sorted(files):
            item, data = tarfile.TarInfo(name), loadable(files[name])
            item.size, item.mtime, item.mode = len(data), built_s, 0o644
            archive.addfile(item, io.BytesIO(data))
    return lzma.compress(packed.getvalue(), preset=XZ_PRESET)
