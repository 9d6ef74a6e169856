"""What another user of the machine has put there, whoever runs the tests."""

import os
from pathlib import Path
from typing import Final

import pytest

NOBODY: Final = 65534


def give_to_another(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have `path`, itself if it is a link, belong to another user than this program's."""
    if os.geteuid() == 0:
        os.chown(path, NOBODY, NOBODY, follow_symlinks=False)
    else:
        mine = os.geteuid()
        monkeypatch.setattr(os, "geteuid", lambda: mine + 1)
