"""A request for the root key goes to where that is and comes back; the root key signs only what it is for."""

import json
from pathlib import Path
from typing import Any

import pytest
from kit import firmware, host
from rackctl.cli import main
from rackctl.rack import Rack
from rackctl.signers import private_pem, public_pem
from sled_board.image.layout import KEY_SET_DOMAIN

from head_node.authority import reply_certificate
from head_node.authority.reply_certificate import ReplyCertificate
from sled_controller import keyset
from sled_controller.keyset import KeySet

ROOT = host.private_key(host.ROOT)
ROOT_PUBLIC = ROOT.public_key().public_bytes_raw()
KEY_SET = KeySet(7, {3: bytes(32)}, 1_700_000_000_000)
CERTIFICATE = ReplyCertificate(2, bytes(range(32)), 1_700_000_000_000, 1_707_776_000_000)


class Authority:
    """What the verbs ask of it."""

    def __init__(self) -> None:
        self.installed: list[tuple[str, str, str]] = []
        self.requests = [
            {"kind": "key-set", "domain": keyset.SIGNING_DOMAIN.hex(), "body": KEY_SET.body().hex()},
            {
                "kind": "reply-key",
                "domain": reply_certificate.SIGNING_DOMAIN.hex(),
                "body": CERTIFICATE.body().hex(),
            },
        ]

    @property
    def api(self) -> "Authority":
        return self

    def root_requests(self) -> dict[str, Any]:
        return {"root_public_key": ROOT_PUBLIC.hex(), "requests": self.requests}

    def install_root_signature(self, kind: str, body: str, signature: str) -> None:
        self.installed.append((kind, body, signature))


@pytest.fixture
def authority(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Authority:
    monkeypatch.chdir(tmp_path)
    made = Authority()
    monkeypatch.setattr(Rack, "find", classmethod(lambda cls, directory: made))
    Path("root").write_bytes(private_pem(ROOT, None))
    Path("root.pub").write_bytes(public_pem(ROOT_PUBLIC))
    return made


def refusal(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    assert main(argv) == 2
    return capsys.readouterr().err


def test_a_request_is_made_signed_and_installed(authority: Authority, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(("keys", "request", "asked")) == 0
    assert "version 7" in capsys.readouterr().out
    assert "no signatures yet" in refusal(capsys, "keys", "install", "asked")
    assert main(("keys", "sign-request", "asked", "--root", "root")) == 0
    out = capsys.readouterr().out
    assert "version 7" in out
    assert "2023-11-14T22:13:20+00:00" in out
    assert "number 2" in out
    assert main(("keys", "install", "asked")) == 0
    by_kind = {kind: bytes.fromhex(body + signature) for kind, body, signature in authority.installed}
    assert KeySet.open(by_kind["key-set"], ROOT_PUBLIC) == KEY_SET
    assert ReplyCertificate.open(by_kind["reply-key"], ROOT_PUBLIC) == CERTIFICATE


def test_a_command_signs_too(authority: Authority, capsys: pytest.CaptureFixture[str]) -> None:
    authority.requests = authority.requests[:1]
    main(("keys", "request", "asked"))
    Path("signature").write_bytes(ROOT.sign(KEY_SET.message()))
    signed = ("keys", "sign-request", "asked", "--root-command", "cat signature", "--root-public", "root.pub")
    assert main(signed) == 0
    Path("signature").write_bytes(bytes(64))
    assert "does not verify" in refusal(capsys, *signed)


def test_nothing_waits(authority: Authority, capsys: pytest.CaptureFixture[str]) -> None:
    authority.requests = []
    assert "nothing waits" in refusal(capsys, "keys", "request", "asked")


FIRMWARE_SET = firmware.key_set(1, 1, (firmware.FIRST,))[:-64]


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"kind": "firmware"}, "nothing that a root key signs"),
        ({"domain": "00"}, "nothing that a root key signs"),
        (
            {"domain": KEY_SET_DOMAIN.hex(), "body": FIRMWARE_SET.hex()},
            "nothing that a root key signs",
        ),
        ({"kind": "reply-key"}, "nothing that a root key signs"),
        ({"body": FIRMWARE_SET.hex()}, "its content is none"),
        ({"body": KEY_SET.body().hex() + "00"}, "its content is none"),
        ({"body": "zz"}, "damaged"),
    ],
)
def test_the_root_key_signs_nothing_but_what_it_is_for(
    authority: Authority, capsys: pytest.CaptureFixture[str], change: dict[str, str], why: str
) -> None:
    main(("keys", "request", "asked"))
    data = json.loads(Path("asked").read_text())
    data["requests"][0] |= change
    Path("asked").write_text(json.dumps(data))
    assert why in refusal(capsys, "keys", "sign-request", "asked", "--root", "root")
    assert "signature" not in Path("asked").read_text()


def test_a_request_of_another_rack_is_refused(authority: Authority, capsys: pytest.CaptureFixture[str]) -> None:
    main(("keys", "request", "asked"))
    Path("other").write_bytes(private_pem(host.private_key(host.AUTHORITY), None))
    assert "not for this one" in refusal(capsys, "keys", "sign-request", "asked", "--root", "other")
    Path("asked").write_text("{}")
    assert "no request for a root key" in refusal(capsys, "keys", "sign-request", "asked", "--root", "root")
