"""The floor below a volume's single writes can be measured; how fast it is is not asked here."""

from pathlib import Path

import pytest
from bench import floor


@pytest.mark.parametrize("threaded", [True, False])
def test_both_processes_sync_before_a_write_is_answered_and_leave_nothing(tmp_path: Path, threaded: bool) -> None:
    assert floor.measure(tmp_path, threaded, writes=20) > 0
    assert list(tmp_path.iterdir()) == []
