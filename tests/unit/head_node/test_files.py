"""Log files and directories on the real file system."""

import asyncio
import errno
import os
from pathlib import Path

import pytest
from kit.volume import GEOMETRY, SMALL, VOLUME, Bench, check, fill, run

from head_node.files import HostDirectory, LogFile
from head_node.volume.engine import VolumeEngine
from head_node.volume.errors import DirectoryLocked
from sled_controller.environment import Environment


def held_files(below: Path) -> list[str]:
    """What this process has open below a directory."""
    held = []
    for name in os.listdir("/proc/self/fd"):
        path = f"/proc/self/fd/{name}"
        if os.path.islink(path) and os.readlink(path).startswith(str(below)):
            held.append(os.readlink(path))
    return held


async def commit(file: LogFile, offset: int, buffers: list[bytes]) -> OSError | None:
    done: asyncio.Future[OSError | None] = asyncio.get_running_loop().create_future()
    file.commit(offset, buffers, done.set_result)
    return await done


def test_a_commit_writes_its_buffers_one_after_the_other(tmp_path: Path) -> None:
    async def scenario() -> None:
        directory = HostDirectory(tmp_path / "log")
        file = await directory.create("segment", 1 << 20)
        assert file.size_bytes == 1 << 20
        assert (tmp_path / "log" / "segment").stat().st_blocks * 512 >= 1 << 20
        assert await commit(file, 4096, [b"a" * 100, b"b" * 50]) is None
        assert file.read(4096, 151) == b"a" * 100 + b"b" * 50 + b"\0"
        assert await commit(file, 0, []) is None
        assert await commit(file, 0, [bytes([at % 251]) for at in range(3000)]) is None
        assert file.read(0, 3000) == bytes(at % 251 for at in range(3000))
        directory.close()

    run(scenario())


def test_a_failed_commit_reports_its_error(tmp_path: Path) -> None:
    async def scenario() -> None:
        directory = HostDirectory(tmp_path / "log")
        (await directory.create("segment", 4096)).close()
        file = directory.open("segment")
        file.close()
        error = await commit(file, 0, [b"x"])
        assert error is not None
        assert error.errno == errno.EBADF
        directory.close()

    run(scenario())


def test_replace_is_whole_and_leaves_no_trace(tmp_path: Path) -> None:
    async def scenario() -> None:
        directory = HostDirectory(tmp_path / "log")
        await directory.replace("checkpoint", [b"one", b"two"])
        await directory.replace("checkpoint", [b"three"])
        assert directory.read("checkpoint") == b"three"
        assert directory.names() == ["checkpoint"]
        assert os.listdir(tmp_path / "log") == ["checkpoint"]
        await directory.remove("checkpoint")
        await directory.remove("checkpoint")
        assert directory.names() == []
        with pytest.raises(FileNotFoundError):
            directory.read("checkpoint")
        await directory.remove_all()
        assert not (tmp_path / "log").exists()

    run(scenario())


def test_a_file_that_does_not_fit_leaves_nothing_behind(tmp_path: Path) -> None:
    async def scenario() -> None:
        directory = HostDirectory(tmp_path / "log")
        with pytest.raises(OSError, match=r"(?i)file too large|no space|invalid"):
            await directory.create("segment", 1 << 62)
        assert os.listdir(tmp_path / "log") == []
        directory.close()

    run(scenario())


def test_a_directory_is_locked_until_it_is_closed(tmp_path: Path) -> None:
    one, two = HostDirectory(tmp_path / "log"), HostDirectory(tmp_path / "log")
    one.lock()
    with pytest.raises(DirectoryLocked, match="another process"):
        two.lock()
    one.close()
    two.lock()
    two.close()


def test_an_engine_lives_on_a_real_directory(tmp_path: Path) -> None:
    async def scenario() -> None:
        bench = Bench()
        arguments = {"volume": VOLUME, "env": Environment()}
        bench.engine = await VolumeEngine.create(
            HostDirectory(tmp_path / "log"), geometry=GEOMETRY, size_blocks=bench.size_blocks, **arguments
        )
        await bench.lead(1)
        content = await fill(bench, 0, 100, seed=1)
        with pytest.raises(DirectoryLocked):
            await VolumeEngine.open(HostDirectory(tmp_path / "log"), **arguments)
        await bench.engine.close(destage=True)
        bench.engine = await VolumeEngine.open(HostDirectory(tmp_path / "log"), **arguments)
        await bench.lead(2)
        await check(bench, content)
        await bench.engine.close()

    run(scenario())


def test_a_file_is_closed_once_however_often_it_is_asked(tmp_path: Path) -> None:
    async def scenario() -> None:
        directory = HostDirectory(tmp_path / "log")
        file = await directory.create("segment", 4096)
        file.close()
        other = os.open(tmp_path / "other", os.O_RDWR | os.O_CREAT)
        directory.close()
        os.fstat(other)  # it has the number that the segment had
        os.close(other)

    run(scenario())


def test_a_full_resync_gives_the_old_segments_back(tmp_path: Path) -> None:
    async def scenario() -> None:
        source = Bench()
        await source.create()
        await source.lead(1)
        await fill(source, 0, 4, 1)
        engine = await VolumeEngine.create(
            HostDirectory(tmp_path / "log"), volume=VOLUME, geometry=GEOMETRY, size_blocks=256, env=Environment(),
            limits=SMALL,
        )  # fmt: skip
        await engine.install_checkpoint(b"".join(await source.engine.export_checkpoint()))
        assert not [name for name in held_files(tmp_path) if name.endswith("(deleted)")]
        await engine.close()
        await source.engine.close()

    run(scenario())


def test_a_file_is_replaced_within_blocks_that_were_reserved(tmp_path: Path) -> None:
    async def scenario() -> None:
        directory = HostDirectory(tmp_path / "log")
        assert directory.size_of("room") == 0
        await directory.reserve("room", 1 << 20)
        await directory.reserve("room", 4096)
        assert directory.size_of("room") == 1 << 20
        assert (tmp_path / "log" / "room").stat().st_blocks * 512 >= 1 << 20
        inode = (tmp_path / "log" / "room").stat().st_ino
        await directory.replace("checkpoint", [b"one", b"two"], within="room")
        assert (tmp_path / "log" / "checkpoint").stat().st_ino == inode
        assert directory.read("checkpoint") == b"onetwo"
        assert directory.names() == ["checkpoint"]

    run(scenario())


def test_a_file_may_be_closed_while_a_piece_of_it_is_fetched(tmp_path: Path) -> None:
    """The descriptor's number may be another file's by then."""

    async def scenario() -> None:
        directory = HostDirectory(str(tmp_path))
        file = await directory.create("one", 1 << 16)
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        file.commit(0, [b"content"], lambda error: done.set_result(None))
        await done
        fetched = asyncio.get_running_loop().create_task(file.fetch(0, 7))
        await asyncio.sleep(0)
        file.close()
        (tmp_path / "other").write_bytes(b"another")
        with (tmp_path / "other").open("rb"):
            assert await fetched == b"content"
        directory.close()

    asyncio.run(scenario())
