"""Keys and key sets from the command line: made once, readable by their owner, in the formats of OpenSSL."""

import json
import stat
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from kit import firmware
from rackctl.cli import main
from rackctl.errors import RackError
from rackctl.signers import CommandSigner, private_pem, public_pem, read_private, read_public
from sled_board.errors import SigningFailed
from sled_board.image import KeySet


@pytest.fixture(autouse=True)
def _in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def told(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    """What a command that succeeds prints."""
    assert main(argv) == 0
    return capsys.readouterr().out


def refusal(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    """The one line that a command says that fails."""
    capsys.readouterr()
    assert main(argv) == 2
    found = capsys.readouterr()
    assert found.err.count("\n") == 1
    return found.err


def save_keys() -> None:
    """The keys of the kit as files: root, first, second, third, developer."""
    for name in ("root", "first", "second", "third", "developer"):
        key = getattr(firmware, name.upper())
        Path(name).write_bytes(private_pem(key.private, None))
        Path(f"{name}.pub").write_bytes(public_pem(key.public))


@pytest.mark.parametrize("kind", ["new", "root"])
def test_a_fresh_key_is_its_owners_alone_and_shown_without_its_secret(
    capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    said = told(capsys, "keys", kind, "k")
    assert stat.S_IMODE(Path("k").stat().st_mode) == 0o600
    signer = read_private(Path("k"))
    assert read_public(Path("k.pub")) == signer.public
    assert signer.public.hex() in said
    assert signer.private.private_bytes_raw().hex() not in said


def test_a_key_that_is_there_is_not_overwritten(capsys: pytest.CaptureFixture[str]) -> None:
    told(capsys, "keys", "new", "k")
    before = Path("k").read_bytes()
    assert "is there already, and is not overwritten" in refusal(capsys, "keys", "new", "k")
    Path("k").rename("other")
    assert "k.pub: is there already" in refusal(capsys, "keys", "new", "k")
    assert Path("other").read_bytes() == before
    assert not Path("k").exists()


def test_a_key_may_have_a_passphrase(capsys: pytest.CaptureFixture[str]) -> None:
    Path("phrase").write_text("open sesame\n", encoding="ascii")
    Path("wrong").write_text("open barley\n", encoding="ascii")
    Path("empty").write_text("\n", encoding="ascii")
    made = json.loads(told(capsys, "keys", "new", "k", "--passphrase-file", "phrase", "--json"))
    assert json.loads(told(capsys, "keys", "show", "k", "--passphrase-file", "phrase", "--json"))["id"] == made["id"]
    assert "needs its --passphrase-file" in refusal(capsys, "keys", "show", "k")
    assert "the passphrase is another one" in refusal(capsys, "keys", "show", "k", "--passphrase-file", "wrong")
    assert "it is empty" in refusal(capsys, "keys", "show", "k", "--passphrase-file", "empty")
    told(capsys, "keys", "new", "plain")
    assert "is not encrypted" in refusal(capsys, "keys", "show", "plain", "--passphrase-file", "phrase")


def test_a_key_set_is_signed_and_shown(capsys: pytest.CaptureFixture[str]) -> None:
    save_keys()
    told(
        capsys, "keys", "sign-set", "set", "--root", "root", "--version", "4", "--threshold", "2",
        "--key", "first.pub", "--key", "second.pub", "--development-key", "developer.pub",
    )  # fmt: skip
    opened = KeySet.open(Path("set").read_bytes(), firmware.ROOT.public)
    assert (opened.version, opened.threshold) == (4, 2)
    assert {key.public for key in opened.keys if key.development} == {firmware.DEVELOPER.public}
    shown = told(capsys, "keys", "show", "set", "--root", "root.pub")
    assert "version 4, 2 of 3 must sign" in shown
    assert "(development)" in shown
    assert "signed by    root key" in shown
    assert "not checked" in told(capsys, "keys", "show", "set")
    assert json.loads(told(capsys, "keys", "show", "set", "--json"))["root"] is None


@pytest.mark.parametrize("name", ["", ".", "/"])
def test_a_key_needs_a_file(capsys: pytest.CaptureFixture[str], name: str) -> None:
    with pytest.raises(SystemExit):
        main(("keys", "new", name))
    assert f"argument FILE: {name!r} names no file" in capsys.readouterr().err


def test_half_a_pair_of_keys_is_not_left_in_the_way(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, data: bytes) -> None:
        raise RackError(f"{path}: cannot be written: No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("rackctl.keys.write_file", full)
        assert "No space left" in refusal(capsys, "keys", "new", "key")
    assert not Path("key").exists()
    told(capsys, "keys", "new", "key")


def test_the_version_of_a_key_set_has_64_bits(capsys: pytest.CaptureFixture[str]) -> None:
    save_keys()
    asked = ("keys", "sign-set", "set", "--root", "root", "--threshold", "1", "--key", "first.pub", "--version")
    told(capsys, *asked, str((1 << 64) - 1))
    assert KeySet.parse(Path("set").read_bytes()).version == (1 << 64) - 1
    for version in ("0", str(1 << 64), "-1", "1e3"):
        with pytest.raises(SystemExit):
            main((*asked, version))
        assert f"argument --version: '{version}' is not a whole number, 1 to 2^64 - 1" in capsys.readouterr().err


def test_a_key_set_of_another_root_or_a_damaged_one_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    save_keys()
    Path("set").write_bytes(firmware.key_set())
    assert "set: key set 1 is not signed by root key" in refusal(capsys, "keys", "show", "set", "--root", "first.pub")
    Path("set").write_bytes(firmware.key_set()[:-1])
    assert "set: the key set has" in refusal(capsys, "keys", "show", "set")


def test_a_key_set_that_nobody_signs_or_that_can_never_be_met_is_not_written(
    capsys: pytest.CaptureFixture[str],
) -> None:
    save_keys()
    asked = ("keys", "sign-set", "set", "--version", "1", "--threshold", "2", "--key", "first.pub")
    assert "say which root key signs" in refusal(capsys, *asked)
    assert "2 of 1 keys can never sign" in refusal(capsys, *asked, "--root", "root")
    assert "a key is in it twice" in refusal(capsys, *asked, "--root", "root", "--development-key", "first.pub")
    assert not Path("set").exists()


def test_what_is_no_ed25519_key_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    other = generate_private_key(SECP256R1())
    Path("ec").write_bytes(
        other.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    Path("ec.pub").write_bytes(
        other.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    )
    Path("text").write_text("hello", encoding="ascii")
    Path("cut").write_text("-----BEGIN PRIVATE KEY-----\nMC4CAQ\n", encoding="ascii")
    Path("cut.pub").write_text("-----BEGIN PUBLIC KEY-----\nMC4CAQ\n", encoding="ascii")
    Path("long").write_bytes(bytes(20000))
    for name, why in (
        ("ec", "of another kind than Ed25519"), ("ec.pub", "of another kind than Ed25519"),
        ("text", "64 hex digits"), ("cut", "no private key in PEM"), ("cut.pub", "no public key in PEM"),
        ("long", "has more than"), ("nowhere", "No such file"),
    ):  # fmt: skip
        said = refusal(capsys, "keys", "show", name)
        assert f"{name}: " in said
        assert why in said


def test_a_public_key_may_be_hex(capsys: pytest.CaptureFixture[str]) -> None:
    Path("hex").write_text(firmware.FIRST.public.hex() + "\n", encoding="ascii")
    assert json.loads(told(capsys, "keys", "show", "hex", "--json"))["kind"] == "public"
    assert read_public(Path("hex")) == firmware.FIRST.public


# --- signing by a command ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "why"),
    [
        ("'", "cannot be split"),
        ("", "is empty"),
        ("./nowhere", "cannot be run: ./nowhere: No such file"),
        ("false", "ended with status 1: false"),
        ("true", "wrote 0 bytes, a signature has 64"),
        ("head -c 65 /dev/zero", "wrote 65 bytes"),
        ("head -c 64 /dev/zero", None),
    ],
)
def test_a_command_that_gives_no_signature_is_named(command: str, why: str | None) -> None:
    signer = CommandSigner(command, firmware.FIRST.public)
    if why is None:
        assert signer.sign(b"message") == bytes(64)
    else:
        with pytest.raises(SigningFailed, match=why):
            signer.sign(b"message")


def test_a_command_signs_a_key_set_like_a_file(capsys: pytest.CaptureFixture[str]) -> None:
    save_keys()
    Path("signature").write_bytes(firmware.key_set(1, 1, (firmware.FIRST,))[-64:])
    asked = ("keys", "sign-set", "set", "--version", "1", "--threshold", "1", "--root-command", "cat signature")
    assert "needs --root-public" in refusal(capsys, *asked, "--key", "first.pub")
    told(capsys, *asked, "--root-public", "root.pub", "--key", "first.pub")
    assert Path("set").read_bytes() == firmware.key_set(1, 1, (firmware.FIRST,))
    said = refusal(capsys, *asked, "--root-public", "root.pub", "--key", "second.pub")
    assert "does not verify" in said
    assert Path("set").read_bytes() == firmware.key_set(1, 1, (firmware.FIRST,))
    with pytest.raises(SystemExit):
        main((*asked, "--root-public", "root.pub", "--root", "root", "--key", "second.pub"))
    assert "argument --root: not allowed with argument --root-command" in capsys.readouterr().err


def test_a_flag_is_stronger_than_a_variable_of_the_other_way_to_sign(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    save_keys()
    Path("signature").write_bytes(firmware.key_set(1, 1, (firmware.FIRST,))[-64:])
    asked = ("keys", "sign-set", "set", "--version", "1", "--threshold", "1", "--key", "first.pub")
    monkeypatch.setenv("RACKCTL_ROOT", "nonesuch")
    told(capsys, *asked, "--root-command", "cat signature", "--root-public", "root.pub")
    monkeypatch.setenv("RACKCTL_ROOT_COMMAND", "cat signature")
    assert "exclude each other" in refusal(capsys, *asked)
    told(capsys, *asked, "--root", "root")
