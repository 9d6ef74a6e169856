"""Where a head keeps its logs: what becomes of a directory in which no log could be made."""

import errno
from pathlib import Path
from uuid import UUID

import pytest
from kit.cluster import VOLUME, record_of
from kit.volume import run

from head_node.files import HostDirectory, HostRoot
from head_node.log_directories import SET_ASIDE_MAX, LogDirectories
from sled_controller.environment import Environment

HEAD = UUID(int=1)


def test_a_full_disk_uses_up_no_names_for_logs_set_aside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    create = HostDirectory._create

    def full(directory: HostDirectory, name: str, size_bytes: int) -> int:
        if name.startswith("segment"):
            raise OSError(errno.ENOSPC, "no space left on device")
        return create(directory, name, size_bytes)

    async def scenario() -> None:
        logs = LogDirectories(HostRoot(tmp_path), HEAD, Environment())
        record = record_of([HEAD], [])
        monkeypatch.setattr(HostDirectory, "_create", full)
        for _ in range(SET_ASIDE_MAX + 2):
            with pytest.raises(OSError, match="no space"):
                await logs.open(record)
        monkeypatch.setattr(HostDirectory, "_create", create)
        engine = await logs.open(record)
        assert logs.orphans({VOLUME}) == []
        await engine.close()

    run(scenario())


def test_a_log_that_is_set_aside_is_kept_and_another_one_begins(tmp_path: Path) -> None:
    async def scenario() -> None:
        logs, record = LogDirectories(HostRoot(tmp_path), HEAD, Environment()), record_of([HEAD], [])
        former = await logs.open(record)
        await former.close()
        await logs.set_aside(VOLUME)
        engine = await logs.open(record)
        assert engine.log_id != former.log_id
        assert logs.orphans({VOLUME}) == [f"{VOLUME}.aside-0"]
        await engine.close()

    run(scenario())
