"""Secrets of hosts from the command line: made, read, given, taken away, and shown once."""

import argparse
import io
import json
from pathlib import Path
from typing import Any

import pytest
from kit import host
from kit.dhchap import CONTROLLER_SECRET, HOST_SECRET
from rackctl import host_secrets
from rackctl.api import OperatorApi
from rackctl.cli import main
from rackctl.defaults import ENVIRONMENT
from rackctl.errors import RackError

from sled_controller.fabric.dhchap.algorithms import HashId
from sled_controller.fabric.dhchap.secret import Secret

NQN = "nqn.2014-08.org.nvmexpress:uuid:1"


class RecordingApi(OperatorApi):
    """Keeps what it is asked for."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, str, Any]] = []

    def volume(self, name: str) -> dict[str, Any]:
        return {"volume": f"id-of-{name}"}

    def call(self, method: str, path: str, body: Any = None) -> Any:
        self.calls.append((method, path, body))
        return {"hosts": [], "proofs": {}}


def asked(*argv: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    host_secrets.add_secret_actions(parser.add_subparsers(), ENVIRONMENT)
    return parser.parse_args(argv)


def given(*argv: str) -> tuple[str, str, Any]:
    """The one request that a command makes."""
    api = RecordingApi()
    arguments = asked(*argv)
    arguments.act(api, arguments)
    (call,) = api.calls
    return call


def saved(path: Path, text: str) -> str:
    path.write_text(text, encoding="ascii")
    return str(path)


def test_a_fresh_secret_is_made_given_and_shown_once(capsys: pytest.CaptureFixture[str]) -> None:
    method, path, body = given("secret", "vol", NQN)
    assert (method, path) == ("PUT", f"/v1/volumes/id-of-vol/host-secrets/{NQN.replace(':', '%3A')}")
    secret = Secret.parse(body["secret"])
    assert (len(secret.key), secret.transform) == (32, HashId.SHA256)
    assert (body["controller_secret"], body["hash"], body["group"]) == (None, "sha256", "ffdhe2048")
    assert f"--dhchap-secret {body['secret']}\n" in capsys.readouterr().out
    assert given("secret", "vol", NQN)[2]["secret"] != body["secret"]


def test_both_ways_makes_two_different_ones(capsys: pytest.CaptureFixture[str]) -> None:
    _, _, body = given("secret", "vol", NQN, "--both-ways", "--hash", "sha512", "--group", "null", "--json")
    made = json.loads(capsys.readouterr().out)
    assert made == {"nqn": NQN, "secret": body["secret"], "controller_secret": body["controller_secret"]}
    assert body["secret"] != body["controller_secret"]
    assert (body["hash"], body["group"]) == ("sha512", "null")


def test_secrets_from_files_are_given_and_not_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = saved(tmp_path / "host", HOST_SECRET.text() + "\n")
    other = saved(tmp_path / "controller", f"  {CONTROLLER_SECRET.text()}\nmore\n")
    _, _, body = given("secret", "vol", NQN, "--secret-file", own, "--controller-secret-file", other)
    assert (body["secret"], body["controller_secret"]) == (HOST_SECRET.text(), CONTROLLER_SECRET.text())
    assert capsys.readouterr().out == ""


def test_a_secret_may_come_from_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that it is in no list of processes and no file."""
    monkeypatch.setattr("sys.stdin", io.StringIO(HOST_SECRET.text() + "\n"))
    assert given("secret", "vol", NQN, "--secret-file", "-")[2]["secret"] == HOST_SECRET.text()


def test_what_is_no_secret_is_told_before_anything_is_sent(tmp_path: Path) -> None:
    for text in (HOST_SECRET.text()[:-2], "password", "", "\xfc"):
        path = tmp_path / "secret"
        path.write_text(text, encoding="latin-1")
        with pytest.raises(RackError, match=str(path)) as caught:
            given("secret", "vol", NQN, "--secret-file", str(path))
        assert not text or text not in str(caught.value)
    with pytest.raises(RackError, match="No such file"):
        given("secret", "vol", NQN, "--secret-file", str(tmp_path / "none"))


def test_a_secret_is_forgotten() -> None:
    assert given("forget-secret", "vol", NQN)[0] == "DELETE"


@pytest.mark.parametrize(
    ("argv", "size", "transform"),
    [
        ((), 32, HashId.SHA256),
        (("--hash", "sha384"), 48, HashId.SHA384),
        (("--hash", "sha512"), 64, HashId.SHA512),
        (("--hash", "none"), 32, None),
        (("--hash", "none", "--bytes", "64"), 64, None),
    ],
)
def test_a_key_can_be_had_by_itself(
    capsys: pytest.CaptureFixture[str], argv: tuple[str, ...], size: int, transform: HashId | None
) -> None:
    assert main(["keys", "gen-dhchap", *argv]) == 0
    secret = Secret.parse(capsys.readouterr().out.removesuffix("\n"))
    assert (len(secret.key), secret.transform) == (size, transform)


def test_hosts_are_listed_with_how_they_prove_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    api = RecordingApi()
    proof = {"hash": "sha256", "group": "ffdhe2048", "both_ways": True}
    monkeypatch.setattr(api, "call", lambda method, path, body=None: {"hosts": [NQN, "n"], "proofs": {NQN: proof}})
    assert api.hosts("vol") == [f"{NQN}  proves itself both ways, from sha256 and ffdhe2048 up", "n"]


def test_entropy_is_what_is_passed_in() -> None:
    api = RecordingApi()
    host_secrets.give_secret(api, asked("secret", "vol", NQN), host.FixedEntropy(b"rackctl"))
    expected = Secret.generate(host.FixedEntropy(b"rackctl")).text()
    assert api.calls[0][2]["secret"] == expected
