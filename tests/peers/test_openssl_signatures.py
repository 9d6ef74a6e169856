"""OpenSSL reads our keys, we read its, it verifies what we sign, and it signs images as an external command."""

import shlex
from pathlib import Path

import pytest
from kit import firmware
from kit.peers import require, run
from rackctl.cli import main
from sled_board.image import KeySet, build_image, layout, read_image


@pytest.fixture(autouse=True)
def _in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    require("openssl")
    monkeypatch.chdir(tmp_path)


def openssl_key(name: str) -> None:
    run("openssl", "genpkey", "-algorithm", "ed25519", "-out", name)
    run("openssl", "pkey", "-in", name, "-pubout", "-out", f"{name}.pub")


def signing_command(key: str) -> str:
    """OpenSSL 3.0 signs Ed25519 messages from files only, so the message is put into one."""
    script = f'openssl pkeyutl -sign -rawin -inkey {key} -in "$0.message"'
    return shlex.join(["sh", "-c", f'cat > "$0.message" && {script}', key])


def verified_by_openssl(public: str, message: bytes, signature: bytes) -> None:
    Path("message").write_bytes(message)
    Path("signature").write_bytes(signature)
    run(
        "openssl", "pkeyutl", "-verify", "-rawin", "-pubin", "-inkey", public, "-in", "message", "-sigfile", "signature"
    )


def test_openssl_verifies_key_sets_and_images_that_our_keys_signed() -> None:
    for kind, name in (("root", "root"), ("new", "first")):
        assert main(("keys", kind, name)) == 0
    sign_set = ("keys", "sign-set", "set", "--root", "root", "--version", "1", "--threshold", "1", "--key", "first.pub")
    assert main(sign_set) == 0
    Path("image").write_bytes(build_image(firmware.recipe()))
    assert main(("firmware", "sign", "image", "--key", "first", "--key-set", "set")) == 0
    signed = Path("set").read_bytes()
    body, signature = signed[: -layout.SIGNATURE_BYTES], signed[-layout.SIGNATURE_BYTES :]
    verified_by_openssl("root.pub", b"palisade firmware key set v1\0" + body, signature)
    image = read_image(Path("image").read_bytes())
    ((_, signature),) = image.signatures
    verified_by_openssl("first.pub", b"palisade firmware v1\0" + image.signed, signature)


def test_openssl_signs_images_and_key_sets_as_a_command() -> None:
    for name in ("root", "first", "second"):
        openssl_key(name)
    asked = (
        "keys",
        "sign-set",
        "set",
        "--version",
        "1",
        "--threshold",
        "2",
        "--key",
        "first.pub",
        "--key",
        "second.pub",
    )
    assert main((*asked, "--root-command", signing_command("root"), "--root-public", "root.pub")) == 0
    Path("image").write_bytes(build_image(firmware.recipe()))
    command = ("--key-command", signing_command("first"), "--key-public", "first.pub")
    assert main(("firmware", "sign", "image", *command, "--key-set", "set")) == 0
    assert main(("firmware", "sign", "image", "--key", "second")) == 0
    assert main(("firmware", "verify", "image", "--root", "root.pub")) == 0
    opened = KeySet.parse(Path("set").read_bytes())
    assert {name for name, _ in read_image(Path("image").read_bytes()).signatures} == {key.id for key in opened.keys}


def test_a_key_with_a_passphrase_is_the_same_to_openssl(capsys: pytest.CaptureFixture[str]) -> None:
    Path("phrase").write_text("open sesame\n", encoding="ascii")
    assert main(("keys", "new", "key", "--passphrase-file", "phrase")) == 0
    assert run("openssl", "pkey", "-in", "key", "-passin", "file:phrase", "-pubout") == Path("key.pub").read_text()
    run("openssl", "genpkey", "-algorithm", "ed25519", "-aes-256-cbc", "-pass", "file:phrase", "-out", "theirs")
    run("openssl", "pkey", "-in", "theirs", "-passin", "file:phrase", "-pubout", "-out", "theirs.pub")
    capsys.readouterr()
    shown = []
    for argv in (("theirs", "--passphrase-file", "phrase"), ("theirs.pub",)):
        assert main(("keys", "show", *argv)) == 0
        shown.append(capsys.readouterr().out.splitlines()[1:])
    assert shown[0] == shown[1]
