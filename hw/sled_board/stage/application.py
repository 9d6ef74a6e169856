"""The application out of an image: unpacked beside the stage, and started as a child that never outlives it."""

import asyncio
import contextlib
import ctypes
import io
import logging
import lzma
import os
import shutil
import signal
import sys
import tarfile
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final, Protocol

from sled_board.durable import check_own_directory
from sled_board.errors import DamagedImage
from sled_board.image import Image
from sled_board.image.layout import APPLICATION
from sled_board.stage.notices import INTERVAL_VARIABLE, SOCKET_VARIABLE, Notice, receiving

log = logging.getLogger(__name__)

UNPACKED_BYTES_MAX: Final = 1 << 30
UNPACKED_FILES_MAX: Final = 50_000
TERMINATE_SECONDS_MAX: Final = 10.0
PREPARE_SECONDS_MAX: Final = 30.0
_PR_SET_PDEATHSIG: Final = 1
_FOLDER: Final = "application"


class Child(Protocol):
    """A started application."""

    notices: "asyncio.Queue[Notice]"

    async def wait(self) -> int:
        """Its exit status when it has ended; minus the signal's number when one ended it."""

    async def end(self, *, gently: bool) -> None:
        """Have it end, and wait until it has; `gently` gives it time to do so in good order."""


class Launcher(Protocol):
    """Starts applications, one at a time."""

    def launched(self, image: Image) -> contextlib.AbstractAsyncContextManager[Child]:
        """The application of `image`, which has ended when the block has. Raises DamagedImage, OSError."""


def unpack(archive: memoryview, folder: Path) -> None:
    """Unpack a tar archive compressed by xz into a fresh `folder`; raises DamagedImage and OSError.

    What is in it was signed; bounds, and taking nothing but plain files, keep a mistake from doing harm all the same.
    (The filters of PEP 706 came with Python 3.11.4; Debian 12 has 3.11.2.)
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    check_own_directory(folder.parent)
    size = files = 0
    try:
        with tarfile.open(fileobj=io.BytesIO(archive), mode="r:xz") as packed:
            for member in packed:
                size += member.size
                files += 1
                if size > UNPACKED_BYTES_MAX or files > UNPACKED_FILES_MAX:
                    raise DamagedImage(f"its application has more than {UNPACKED_BYTES_MAX} bytes or {files} files")
                _extract(packed, member, folder)
    except (tarfile.TarError, lzma.LZMAError, EOFError) as error:
        raise DamagedImage(f"its application cannot be unpacked: {error}") from None


def _extract(archive: tarfile.TarFile, member: tarfile.TarInfo, folder: Path) -> None:
    path = PurePosixPath(member.name)
    source = archive.extractfile(member) if member.isreg() else None
    if source is None or path.is_absolute() or ".." in path.parts:
        raise DamagedImage(f"its application has {member.name!r}, which is no plain file below its folder")
    (folder / path).parent.mkdir(parents=True, exist_ok=True)
    with source, (folder / path).open("xb") as target:
        shutil.copyfileobj(source, target)


@dataclass(frozen=True, slots=True)
class PythonLauncher:
    """Runs `python3 -I DIRECTORY ARGUMENTS` below the folder `run`, which is made anew at each start.

    The child is told by `INTERVAL_VARIABLE` how often it has to say that it is well.
    """

    run: Path
    arguments: Sequence[str]
    interval_s: float
    prepare: Path | None = None
    """Run before each start, for at most `PREPARE_SECONDS_MAX`."""

    @contextlib.asynccontextmanager
    async def launched(self, image: Image) -> AsyncIterator[Child]:
        """A `Launcher`'s."""
        folder = self.run / _FOLDER
        await asyncio.to_thread(unpack, image.payload(APPLICATION), folder)
        if self.prepare is not None:
            await _prepare(self.prepare)
        with receiving() as (address, notices):
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-I", str(folder), *self.arguments,
                env=os.environ | {
                    SOCKET_VARIABLE: address, INTERVAL_VARIABLE: str(int(self.interval_s * 1_000_000))
                },
                preexec_fn=_leash(),
            )  # fmt: skip
            child = _PythonChild(process, notices)
            try:
                yield child
            finally:
                await child.end(gently=False)


@dataclass(slots=True)
class _PythonChild:
    process: asyncio.subprocess.Process
    notices: "asyncio.Queue[Notice]"

    async def wait(self) -> int:
        return await self.process.wait()

    async def end(self, *, gently: bool) -> None:
        if self.process.returncode is None and gently:
            self.process.terminate()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(TERMINATE_SECONDS_MAX):
                    await self.process.wait()
        if self.process.returncode is None:
            self.process.kill()
            await self.process.wait()


async def _prepare(program: Path) -> None:
    """Firmware that it leaves without a network can at least be spoken to on the console."""
    try:
        process = await asyncio.create_subprocess_exec(program, preexec_fn=_leash())
    except OSError as error:
        log.error("event=not_prepared program=%s reason=%r", program, error.strerror)
        return
    try:
        async with asyncio.timeout(PREPARE_SECONDS_MAX):
            status = await process.wait()
    except TimeoutError:
        log.error("event=not_prepared program=%s reason='takes more than %g s'", program, PREPARE_SECONDS_MAX)
    else:
        if status:
            log.error("event=not_prepared program=%s reason='ended with status %d'", program, status)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


def _leash() -> Callable[[], None]:
    """What the child runs first: the kernel kills it when the stage ends, however that happens (prctl(2))."""
    prctl = ctypes.CDLL(None, use_errno=True).prctl

    def tie_to_parent() -> None:
        prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)

    return tie_to_parent
