"""Images from the command line: signed, verified, looked into and taken apart; every failure is one line."""

import hashlib
import json
import sys
from pathlib import Path

import pytest
from kit import firmware
from rackctl.cli import main
from rackctl.signers import private_pem, public_pem
from sled_board.image import build_image, read_image, sign_image


@pytest.fixture(autouse=True)
def _files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder with keys, their set, an image that is signed and one that is not."""
    monkeypatch.chdir(tmp_path)
    for name in ("root", "first", "second", "third", "developer"):
        key = getattr(firmware, name.upper())
        Path(name).write_bytes(private_pem(key.private, None))
        Path(f"{name}.pub").write_bytes(public_pem(key.public))
    Path("set").write_bytes(firmware.key_set())
    Path("image").write_bytes(firmware.signed())
    Path("unsigned").write_bytes(build_image(firmware.recipe()))


def told(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    """What a command that succeeds prints."""
    assert main(("firmware", *argv)) == 0
    return capsys.readouterr().out


def refusal(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    """The one line that a command says that fails."""
    capsys.readouterr()
    assert main(("firmware", *argv)) == 2
    found = capsys.readouterr()
    assert found.err.count("\n") == 1
    return found.err


# --- sign -------------------------------------------------------------------------------------------------------------


def test_one_after_the_other_signs_in_place(capsys: pytest.CaptureFixture[str]) -> None:
    told(capsys, "sign", "unsigned", "--key", "first", "--key-set", "set")
    assert "signed by 2" in told(capsys, "sign", "unsigned", "--key", "second")
    assert Path("unsigned").read_bytes() == firmware.signed()


def test_the_signed_image_may_go_elsewhere(capsys: pytest.CaptureFixture[str]) -> None:
    before = Path("unsigned").read_bytes()
    made = json.loads(told(capsys, "sign", "unsigned", "--key", "first", "--key-set", "set", "-o", "out", "--json"))
    assert Path("unsigned").read_bytes() == before
    assert made["image"] == "out"
    assert len(made["signatures"]) == 1


def test_a_command_signs_what_it_reads(capsys: pytest.CaptureFixture[str]) -> None:
    Path("hsm.py").write_text(
        "import sys\n"
        "from cryptography.hazmat.primitives.serialization import load_pem_private_key\n"
        "key = load_pem_private_key(open('third', 'rb').read(), None)\n"
        "sys.stdout.buffer.write(key.sign(sys.stdin.buffer.read()))\n",
        encoding="ascii",
    )
    told(
        capsys, "sign", "image", "--key-command", f"{sys.executable} hsm.py", "--key-public", "third.pub"
    )  # fmt: skip
    expected = sign_image(read_image(firmware.signed()), firmware.THIRD)
    assert Path("image").read_bytes() == expected


def test_a_failed_signature_leaves_the_image_as_it_was(capsys: pytest.CaptureFixture[str]) -> None:
    before = Path("image").read_bytes()
    said = refusal(capsys, "sign", "image", "--key-command", "head -c 64 /dev/zero", "--key-public", "third.pub")
    assert "does not verify" in said
    assert Path("image").read_bytes() == before


@pytest.mark.parametrize(
    ("argv", "why"),
    [
        (("sign", "image"), "nothing to do"),
        (("sign", "image", "--key-command", "", "--key-public", "third.pub"), "the signing command is empty"),
        (("sign", "unsigned", "--key", "first"), "carries no key set yet"),
        (("sign", "image", "--key", "developer"), "is not in key set 1"),
        (("sign", "image", "--key", "first.pub"), "is no private key"),
        (("sign", "image", "--key-set", "first"), "first: the key set has"),
        (("sign", "nowhere", "--key", "first"), "nowhere: cannot be read: No such file"),
        (("sign", "first", "--key", "first"), "first: it begins with"),
        (("sign", "image", "--key", "first", "-o", "no/where"), "no/where: cannot be written"),
    ],
)
def test_what_cannot_be_signed_is_named(capsys: pytest.CaptureFixture[str], argv: tuple[str, ...], why: str) -> None:
    assert why in refusal(capsys, *argv)


def test_a_new_key_set_replaces_the_old_one_without_a_key(capsys: pytest.CaptureFixture[str]) -> None:
    Path("set").write_bytes(firmware.key_set(2))
    assert "signed by 2" in told(capsys, "sign", "image", "--key-set", "set")
    assert read_image(Path("image").read_bytes()).key_set == firmware.key_set(2)


# --- verify -----------------------------------------------------------------------------------------------------------


def test_a_trusted_image_is_said_to_be(capsys: pytest.CaptureFixture[str]) -> None:
    Path("sbom").write_bytes(b"{}")
    said = told(
        capsys, "verify", "image", "--root", "root.pub", "--hardware", firmware.HARDWARE, "--counter-min", "3",
        "--key-set", "set", "--sbom", "sbom",
    )  # fmt: skip
    assert "1.4.0 for qemu-virt-arm64, counter 3: trusted" in said
    assert json.loads(told(capsys, "verify", "image", "--root", "root.pub", "--json"))["trusted"] is True


@pytest.mark.parametrize(
    ("argv", "reason"),
    [
        (("unsigned", "--root", "root.pub"), "wrong-signature"),
        (("image", "--root", "first.pub"), "wrong-signature"),
        (("image", "--root", "root.pub", "--hardware", "other"), "wrong-hardware"),
        (("image", "--root", "root.pub", "--counter-min", "4"), "rolled-back"),
        (("image", "--root", "root.pub", "--sbom", "set"), "damaged-image"),
        (("root", "--root", "root.pub"), "damaged-image"),
        (("development", "--root", "root.pub"), "development-key"),
        (("x86", "--root", "root.pub", "--hardware", "qemu-virt-arm64"), "wrong-hardware"),
        (("nothing", "--root", "root.pub"), "damaged-image"),
        (("image",), "rack-error"),
        (("image", "--root", "root"), "rack-error"),
    ],
)
def test_what_a_board_would_refuse_is_refused_with_its_reason(
    capsys: pytest.CaptureFixture[str], argv: tuple[str, ...], reason: str
) -> None:
    under = firmware.key_set(1, 1, (firmware.DEVELOPER,))
    Path("development").write_bytes(firmware.signed(keys=(firmware.DEVELOPER,), under=under))
    Path("x86").write_bytes(firmware.signed(firmware.recipe(architecture="x86_64")))
    Path("nothing").write_bytes(firmware.signed(firmware.recipe(payloads={"other": b"data"})))
    said = refusal(capsys, "verify", *argv)
    assert main(("firmware", "verify", *argv, "--json")) == 2
    found = capsys.readouterr()
    told_ = json.loads(found.out)
    assert (told_["trusted"], told_["reason"]) == (False, reason)
    assert f"rackctl: {told_['why']}\n" == found.err == said


def test_a_file_that_cannot_be_read_is_an_object_for_programs_too(capsys: pytest.CaptureFixture[str]) -> None:
    for argv in (("nonesuch", "--root", "root.pub"), ("image", "--root", "nonesuch")):
        assert main(("firmware", "verify", *argv, "--json")) == 2
        told_ = json.loads(capsys.readouterr().out)
        why = "nonesuch: cannot be read: No such file or directory"
        assert told_ == {"trusted": False, "reason": "file-unreadable", "why": why}


def test_an_open_board_takes_a_development_key(capsys: pytest.CaptureFixture[str]) -> None:
    under = firmware.key_set(1, 1, (firmware.DEVELOPER,))
    Path("image").write_bytes(firmware.signed(keys=(firmware.DEVELOPER,), under=under))
    assert "trusted" in told(capsys, "verify", "image", "--root", "root.pub", "--unlocked")


def test_without_a_root_key_nothing_is_verified(capsys: pytest.CaptureFixture[str]) -> None:
    assert "say by which root key" in refusal(capsys, "verify", "image")


def test_options_come_from_the_environment_too(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RACKCTL_ROOT_PUBLIC", "root.pub")
    monkeypatch.setenv("RACKCTL_COUNTER_MIN", "4")
    assert "accepts 4 and above" in refusal(capsys, "verify", "image")
    monkeypatch.setenv("RACKCTL_COUNTER_MIN", "4294967296")
    assert "environment variable RACKCTL_COUNTER_MIN" in refusal(capsys, "verify", "image")


# --- inspect and extract ----------------------------------------------------------------------------------------------


def test_an_image_is_described(capsys: pytest.CaptureFixture[str]) -> None:
    found = json.loads(told(capsys, "inspect", "image", "--json"))
    assert (found["version"], found["counter"], found["hardware"]) == ("1.4.0", 3, [firmware.HARDWARE])
    assert found["built"] == "2023-11-14T22:13:20Z"
    assert found["payloads"] == [
        {
            "name": "application",
            "size": len(firmware.APPLICATION),
            "sha256": hashlib.sha256(firmware.APPLICATION).hexdigest(),
        }
    ]
    assert found["key_set"]["threshold"] == 2
    shown = told(capsys, "inspect", "image")
    for text in (found["id"], "1.4.0", "qemu-virt-arm64", "U-Boot 2023.01 or newer", "cp311", "2 of 3 must sign"):
        assert text in shown


def test_an_image_that_says_little_is_described_too(capsys: pytest.CaptureFixture[str]) -> None:
    made = firmware.recipe()
    bare = type(made)(made.version, 0, made.hardware, made.architecture, 0, made.payloads, {500: b"new"})
    Path("bare").write_bytes(build_image(bare))
    shown = told(capsys, "inspect", "bare")
    for text in ("signed by    nobody", "key set      none", "TLV 500      6e6577", "boot loader  any"):
        assert text in shown
    assert json.loads(told(capsys, "inspect", "bare", "--json"))["other_tlvs"] == {"500": "6e6577"}


def test_a_key_set_that_is_none_does_not_keep_an_image_from_being_described(
    capsys: pytest.CaptureFixture[str],
) -> None:
    data = bytearray(firmware.fit.unwrap(firmware.signed()))
    at = data.index(b"PLFK")
    data[at] ^= 1
    Path("image").write_bytes(b"".join(firmware.fit.wrap(bytes(data), "arm64", firmware.BUILT_S)))
    assert json.loads(told(capsys, "inspect", "image", "--json"))["key_set"] is None


def test_a_payload_and_the_key_set_can_be_taken_out(capsys: pytest.CaptureFixture[str]) -> None:
    told(capsys, "extract", "image", "-o", "application")
    assert Path("application").read_bytes() == firmware.APPLICATION
    found = json.loads(told(capsys, "extract", "image", "--payload", "key-set", "-o", "out", "--json"))
    assert Path("out").read_bytes() == firmware.key_set()
    assert found == {
        "file": "out",
        "size": len(firmware.key_set()),
        "sha256": hashlib.sha256(firmware.key_set()).hexdigest(),
    }


def test_what_is_not_in_an_image_cannot_be_taken_out(capsys: pytest.CaptureFixture[str]) -> None:
    assert "no payload kernel" in refusal(capsys, "extract", "image", "--payload", "kernel", "-o", "out")
    assert "carries no key set" in refusal(capsys, "extract", "unsigned", "--payload", "key-set", "-o", "out")
    assert not Path("out").exists()


def test_a_damaged_file_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    Path("image").write_bytes(Path("image").read_bytes()[:-1])
    for argv in (("inspect", "image"), ("extract", "image", "-o", "out"), ("verify", "image", "--root", "root.pub")):
        assert "image: " in refusal(capsys, *argv)


@pytest.mark.parametrize("action", ["sign", "verify", "inspect", "extract"])
def test_help_tells_the_exit_statuses(capsys: pytest.CaptureFixture[str], action: str) -> None:
    with pytest.raises(SystemExit):
        main(("firmware", action, "--help"))
    assert "Exit status: 0" in capsys.readouterr().out
