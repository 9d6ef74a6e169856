"""A sealed backup becomes a store again with the operator's key, and with no other."""

from pathlib import Path

import pytest
from kit import host
from rackctl.cli import main
from rackctl.signers import private_pem

from head_node.store.sealed_backup import sealed
from sled_controller.environment import SystemEntropy

KEY = host.private_key(host.AUTHORITY)
STORE = b"SQLite format 3\0 and so on"


@pytest.fixture(autouse=True)
def _in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("backup.key").write_bytes(private_pem(KEY, None))
    Path("other.key").write_bytes(private_pem(host.private_key(host.ROOT), None))
    Path("sealed").write_bytes(sealed(STORE, KEY.public_key().public_bytes_raw(), SystemEntropy()))
    Path("plain").write_bytes(STORE)


@pytest.mark.parametrize("argv", [("sealed", "authority.db", "--key", "backup.key"), ("plain", "authority.db")])
def test_a_backup_becomes_a_store_that_only_its_owner_reads(argv: tuple[str, ...]) -> None:
    assert main(("backup", "open", *argv)) == 0
    assert Path("authority.db").read_bytes() == STORE
    assert Path("authority.db").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    ("argv", "why"),
    [
        (("sealed", "new"), "name the private key that opens it with --key"),
        (("sealed", "new", "--key", "other.key"), "sealed to key"),
        (("sealed", "plain", "--key", "backup.key"), "is there already"),
        (("missing", "new"), "cannot be read"),
    ],
)
def test_what_cannot_be_opened_is_said(argv: tuple[str, ...], why: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(("backup", "open", *argv)) == 2
    assert why in capsys.readouterr().err
    assert not Path("new").exists()
