"""Each program with a state directory that is damaged, and told to end while it waits for somebody."""

import signal
import socket
import subprocess
import sysconfig
from pathlib import Path

import pytest
from kit import real_sled

SCRIPTS = Path(sysconfig.get_path("scripts"))
TOKEN = ".".join(("pj2", "146bc01e288d9c63", "ab" * 32, "cd" * 32, "-"))


def command(program: str, state: Path, authority_port: int = 9) -> list[str]:
    if program == "sled-controller":
        return real_sled.command(state)
    if program == "rack-authority":
        return [str(SCRIPTS / program), "--state-dir", str(state)]
    url = f"http://127.0.0.1:{authority_port}"
    return [
        *(str(SCRIPTS / program), "--state-dir", str(state), "--name", "head-0"),
        *("--authority-url", url, "--join-token", TOKEN),
    ]


DAMAGED = [
    ("sled-controller", "identity.key", b"\xff\xfe"),
    ("sled-controller", "identity.key", b"{}"),
    ("rack-authority", "authority.db", b"\xee" * 8192),
    ("rack-authority", "root.key", b"nonsense"),
    ("head-node", "head.key", b"zz"),
    ("head-node", "identity.json", b"[]"),
    ("head-node", "root.pub", b"abc"),
]


@pytest.mark.parametrize(("program", "file", "content"), DAMAGED)
def test_a_damaged_file_is_named_and_left_as_it_is(program: str, file: str, content: bytes, tmp_path: Path) -> None:
    damaged = tmp_path / file
    damaged.write_bytes(content)
    damaged.chmod(0o600)
    ended = subprocess.run(command(program, tmp_path), capture_output=True, text=True, timeout=20)
    assert ended.returncode == 1
    assert str(damaged) in ended.stderr
    assert "Traceback" not in ended.stderr
    assert damaged.read_bytes() == content


def test_a_head_that_waits_for_a_silent_authority_ends_when_told(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        silent.settimeout(20)
        argv = command("head-node", tmp_path, silent.getsockname()[1])
        with subprocess.Popen(argv, stderr=subprocess.PIPE, text=True) as head:
            connection, _ = silent.accept()
            head.send_signal(signal.SIGTERM)
            _, said = head.communicate(timeout=10)
            connection.close()
    assert head.returncode == 0, said
    assert "Traceback" not in said
    assert not (tmp_path / "endpoints.json").exists()
