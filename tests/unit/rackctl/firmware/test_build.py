"""Building: one commit gives one sequence of bytes, all that it takes is in it and in its bill of materials."""

import ctypes
import hashlib
import importlib.metadata
import io
import json
import os
import re
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
from importlib import resources
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest
from kit import firmware
from kit.checkout import COMMITTED_S, git, make_checkout, make_wheel, make_wheels, pin_wheels
from kit.sources import ROOT, package_sources
from rackctl.cli import main
from rackctl.errors import RackError
from rackctl.firmware import application, elf, wheels
from rackctl.firmware.building import architecture_of
from rackctl.firmware.hashes import read_hashes
from rackctl.firmware.source import PACKAGES
from rackctl.staged_sleds import SledFirmware
from sled_board.firmware_store import THIS_ARCHITECTURE
from sled_board.image import Image, read_image
from sled_board.stage.application import unpack


@pytest.fixture(autouse=True)
def _in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SOURCE_DATE_EPOCH", raising=False)
    make_wheels(tmp_path / "wheels")
    pin_wheels(make_checkout(tmp_path / "checkout"), tmp_path / "wheels")


def build(*argv: str, output: str = "image", source: str = "checkout") -> int:
    return main(
        ("firmware", "build", output, "--hardware", "one", "--source", source, "--wheels", "wheels", *argv)
    )  # fmt: skip


def refusal(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    """The one line that a build says that fails."""
    capsys.readouterr()
    assert build(*argv) == 2
    assert not Path("image").exists()
    found = capsys.readouterr().err
    assert found.count("\n") == 1
    return found


def built(*argv: str) -> Image:
    assert build(*argv) == 0
    return read_image(Path("image").read_bytes())


def archive_of(image: Image) -> tarfile.TarFile:
    return tarfile.open(fileobj=io.BytesIO(image.payload("application")), mode="r:xz")


def bill() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(Path("image.cdx.json").read_bytes())
    return found


# --- the same bytes ---------------------------------------------------------------------------------------------------


def test_two_builds_of_one_commit_give_equal_bytes(tmp_path: Path) -> None:
    assert build() == 0
    other = make_checkout(tmp_path / "elsewhere")
    pin_wheels(other, tmp_path / "wheels")
    for path in other.rglob("*.py"):
        os.utime(path, (1, 1))
        path.chmod(0o600)
    again = (
        "firmware", "build", "second", "--hardware", "one", "--source", "elsewhere", "--wheels", "wheels"
    )  # fmt: skip
    subprocess.run(
        [sys.executable, "-m", "rackctl.cli", *again],
        check=True,
        umask=0o077,
        env=os.environ | {"PYTHONHASHSEED": "7", "TZ": "Asia/Kathmandu"},
    )
    assert Path("image").read_bytes() == Path("second").read_bytes()
    assert Path("image.cdx.json").read_bytes() == Path("second.cdx.json").read_bytes()


def test_nothing_in_the_archive_depends_on_who_made_it_or_when() -> None:
    with archive_of(built()) as archive:
        items = archive.getmembers()
    assert [item.name for item in items] == sorted(item.name for item in items)
    assert {(item.mtime, item.uid, item.gid, item.uname, item.gname, item.mode) for item in items} == {
        (COMMITTED_S, 0, 0, "", "", 0o644)
    }


def test_the_image_is_named_after_its_commit_and_dated_by_it(monkeypatch: pytest.MonkeyPatch) -> None:
    commit = subprocess.run(
        ["git", "-C", "checkout", "rev-parse", "HEAD"], capture_output=True, text=True, check=True
    ).stdout.strip()
    image = built()
    assert (image.build_id, image.built_s) == (commit, COMMITTED_S)
    assert (image.version, image.counter, image.hardware, image.architecture) == ("0.3.0", 7, ("one",), "arm64")
    assert (image.bootloader_min, image.python) == ("2023.01", "cp311")
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "5")
    assert built().built_s == 5


def test_what_differs_from_the_commit_is_marked() -> None:
    Path("checkout/sled_controller/new.py").write_text("", encoding="ascii")  # git does not know it: not in the image
    assert "-dirty" not in str(built().build_id)
    Path("checkout/sled_controller/server.py").write_text("def main(): ...\n", encoding="ascii")
    assert str(built().build_id).endswith("-dirty")


def test_options_are_stronger_than_the_checkout() -> None:
    image = built("--release", "1.0.0-rc.1", "--counter", "0", "--bootloader-min", "2025.10", "--hardware", "two")
    assert (image.version, image.counter, image.bootloader_min) == ("1.0.0-rc.1", 0, "2025.10")
    assert image.hardware == ("one", "two")


# --- what is in it ----------------------------------------------------------------------------------------------------


def test_the_application_starts_wherever_it_is_unpacked(tmp_path: Path) -> None:
    unpack(built().payload("application"), tmp_path / "anywhere")
    told = subprocess.run(
        [sys.executable, "-I", "-S", str(tmp_path / "anywhere")], capture_output=True, text=True, check=True
    )
    assert told.stdout == "started with 42\n"


def test_the_application_holds_packages_and_wheels_and_nothing_for_compilers() -> None:
    with archive_of(built()) as archive:
        names = archive.getnames()
    assert names == [
        "__main__.py",
        "extra.py",
        "needed-2.0.dist-info/METADATA",
        "needed-2.0.dist-info/WHEEL",
        "needed.py",
        "sled_board/__init__.py",
        "sled_board/boards/one.toml",
        "sled_controller/__init__.py",
        "sled_controller/server.py",
        "spdk_bindings/__init__.py",
        "tiny.py",
        "tiny_lib-1.5.dist-info/METADATA",
        "tiny_lib-1.5.dist-info/WHEEL",
        "tiny_lib.libs/libz.so.1",
    ]


def test_two_parts_do_not_overwrite_each_other() -> None:
    with pytest.raises(RackError, match=r"two and one both bring a\.py"):
        application.pack({"one": {"a.py": b"1"}, "two": {"a.py": b"2"}}, 0)
    assert application.pack({"one": {"a.py": b"1"}, "two": {"a.py": b"1"}}, 0)


# --- the bill of materials --------------------------------------------------------------------------------------------


def test_the_image_names_its_bill_of_materials(capsys: pytest.CaptureFixture[str]) -> None:
    image = built("--sbom", "elsewhere.json")
    assert image.sbom_sha256 == hashlib.sha256(Path("elsewhere.json").read_bytes()).digest()


def test_the_bill_lists_wheels_and_what_is_compiled_into_them() -> None:
    image = built()
    found = bill()
    assert found["metadata"]["component"]["version"] == image.version
    assert found["metadata"]["timestamp"] == "2023-11-14T22:13:20+00:00"
    tiny, needed = sorted(found["components"], key=lambda component: component["name"], reverse=True)
    assert (tiny["name"], tiny["version"], tiny["licenses"]) == ("tiny-lib", "1.5", [{"license": {"id": "MIT"}}])
    wheel = next(Path("wheels").glob("tiny*")).read_bytes()
    assert tiny["hashes"] == [{"alg": "SHA-256", "content": hashlib.sha256(wheel).hexdigest()}]
    assert {inside["name"] for inside in tiny["components"]} == {"openssl", "libz.so.1"}
    assert needed["licenses"] == [{"license": {"name": "BSD"}}]
    depends = {item["ref"]: item.get("dependsOn", []) for item in found["dependencies"]}
    assert depends["palisade-sled-controller@0.3.0"] == [tiny["bom-ref"]]
    assert depends[tiny["bom-ref"]] == [needed["bom-ref"]]


def test_the_bill_is_valid_cyclonedx() -> None:
    built()
    folder = resources.files("cyclonedx.schema") / "_res"

    def schema(uri: str) -> Any:
        return json.loads((folder / uri.rpartition("/")[2]).read_text(encoding="utf-8"))

    validator = jsonschema_rs.Draft7Validator(schema("bom-1.6.SNAPSHOT.schema.json"), retriever=schema)
    assert [error.message for error in validator.iter_errors(bill())] == []
    assert not validator.is_valid(bill() | {"bomFormat": "other"})


def test_a_wheel_whose_own_bill_is_none_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    make_wheel(Path("wheels"), "needed", "2.0", {"needed.py": b""}, boms={"bad.json": b"{"})
    pin_wheels(Path("checkout"), Path("wheels"))
    assert "needed-2.0-py3-none-any.whl: its own bill of materials" in refusal(capsys)


# --- what does not work -----------------------------------------------------------------------------------------------


def test_a_dependency_that_is_not_pinned_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    Path("checkout/constraints.txt").write_text("tiny_LIB==1.5\n", encoding="ascii")
    said = refusal(capsys)
    assert "does not pin needed 2.0" in said


def test_a_wheel_with_another_hash_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    make_wheel(Path("wheels"), "needed", "2.0", {"needed.py": b"VALUE = 42  # and something else\n"})
    said = refusal(capsys)
    assert "needed-2.0-py3-none-any.whl: has SHA-256" in said
    assert "is not the wheel that was reviewed" in said


def test_one_digit_of_a_hash_decides(capsys: pytest.CaptureFixture[str]) -> None:
    path = Path("checkout/firmware-hashes.txt")
    text = path.read_text(encoding="ascii").rstrip("\n")
    path.write_text(text[:-1] + ("0" if text[-1] != "0" else "1") + "\n", encoding="ascii")
    assert "has SHA-256" in refusal(capsys)


def test_a_wheel_without_a_hash_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    path = Path("checkout/firmware-hashes.txt")
    kept = [line for line in path.read_text(encoding="ascii").splitlines() if not line.startswith("needed")]
    path.write_text("\n".join(kept) + "\n", encoding="ascii")
    assert "has no hash of needed 2.0" in refusal(capsys)


def test_the_hash_of_another_version_is_none(capsys: pytest.CaptureFixture[str]) -> None:
    path = Path("checkout/firmware-hashes.txt")
    path.write_text(path.read_text(encoding="ascii").replace("needed==2.0", "needed==2.0.1"), encoding="ascii")
    assert "has no hash of needed 2.0" in refusal(capsys)


@pytest.mark.parametrize(
    "line", ["needed==2.0", "needed --hash=sha256:" + "0" * 64, "needed==2.0 --hash=md5:00", "--pre"]
)
def test_a_line_that_pins_no_hash_is_an_error(capsys: pytest.CaptureFixture[str], line: str) -> None:
    path = Path("checkout/firmware-hashes.txt")
    path.write_text(path.read_text(encoding="ascii") + line + "\n", encoding="ascii")
    assert "is not NAME==VERSION --hash=sha256:HEX" in refusal(capsys)


def test_without_hashes_nothing_is_built(capsys: pytest.CaptureFixture[str]) -> None:
    Path("checkout/firmware-hashes.txt").unlink()
    assert "wheels whose hashes are known only" in refusal(capsys)


def test_hashes_that_differ_from_the_commit_mark_the_image() -> None:
    path = Path("checkout/firmware-hashes.txt")
    path.write_text(path.read_text(encoding="ascii") + "# more\n", encoding="ascii")
    assert str(built().build_id).endswith("-dirty")


def test_every_wheel_that_this_checkout_pins_for_images_has_hashes() -> None:
    pins = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text(encoding="ascii").split())
    known = read_hashes(ROOT / "firmware-hashes.txt")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = [re.split(r"[<>=~! ;\[]", text)[0] for text in project["optional-dependencies"]["sled"]]
    needed = set()
    while wanted:
        name = wheels.normalized(wanted.pop())
        if name not in needed:
            needed.add(name)
            requires = importlib.metadata.requires(name) or []
            wanted += [re.split(r"[<>=~! ;\[(]", text)[0] for text in requires if "extra ==" not in text]
    versions = {wheels.normalized(name): version for name, version in pins.items()}
    expected = {(name, versions[name]) for name in needed if name in versions}
    assert expected <= set(known)
    assert {(name, versions.get(name)) for name, _ in known} == set(known)
    compiled = [key for key in known if key[0] in ("cryptography", "crc32c", "uvloop", "gmpy2", "pydantic-core")]
    assert len(compiled) == 5
    assert all(len(known[key]) >= 2 for key in compiled)  # arm64 and x86_64


def test_a_dependency_that_is_not_there_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    next(Path("wheels").glob("needed*")).unlink()
    said = refusal(capsys)
    assert "pip cannot fetch the dependencies for arm64" in said
    assert "eeded" in said


def test_a_folder_of_wheels_that_is_none_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert "elsewhere: is no folder of wheels" in refusal(capsys, "--wheels", "elsewhere")


def test_a_wheel_for_another_machine_is_not_taken(capsys: pytest.CaptureFixture[str]) -> None:
    assert "tiny" in refusal(capsys, "--architecture", "x86_64")


def test_a_wheel_that_is_none_is_named(tmp_path: Path) -> None:
    path = tmp_path / "broken-1.0-py3-none-any.whl"
    path.write_bytes(b"PK")
    with pytest.raises(RackError, match=r"broken-1\.0-py3-none-any\.whl: is no wheel"):
        wheels.read_wheel(path)


@pytest.mark.parametrize("name", ["../evil.py", "/evil.py", "a/../../evil.py"])
def test_a_wheel_does_not_reach_out_of_the_application(name: str, tmp_path: Path) -> None:
    with pytest.raises(RackError, match=r"evil\.py"):
        wheels.read_wheel(make_wheel(tmp_path / "evil", "evil", "1.0", {name: b""}))


def test_another_python_than_the_base_systems_does_not_build(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wheels, "PYTHON", (3, 10))
    assert "the base system has Python 3.10: build with that" in refusal(capsys)


def test_what_is_no_checkout_is_named(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert build(source="nowhere") == 2
    assert "nowhere/pyproject.toml: cannot be read" in capsys.readouterr().err
    (tmp_path / "plain").mkdir()
    for text, why in (("[", "plain: "), ("[project]\n", "has no 'tool'")):
        (tmp_path / "plain/pyproject.toml").write_text(text, encoding="ascii")
        assert build(source="plain") == 2
        assert why in capsys.readouterr().err
    (tmp_path / "plain/pyproject.toml").write_bytes((tmp_path / "checkout/pyproject.toml").read_bytes())
    assert build(source="plain") == 2
    assert "is no checkout" in capsys.readouterr().err


def test_an_image_that_cannot_be_made_leaves_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert "semantic version" in refusal(capsys, "--release", "one")
    assert not Path("image.cdx.json").exists()
    git(Path("checkout"), "rm", "-q", "--cached", "sled_controller/server.py")
    assert "no release of U-Boot" in refusal(capsys, "--bootloader-min", "new")


# --- shared objects ---------------------------------------------------------------------------------------------------


def test_a_shared_object_without_symbols_still_loads(tmp_path: Path) -> None:
    folder = Path(sysconfig.get_paths()["platlib"])
    whole = next(iter(sorted(folder.glob("crc32c/*.so"))))
    small = tmp_path / whole.name
    small.write_bytes(elf.loadable(whole.read_bytes()))
    assert small.stat().st_size < whole.stat().st_size
    assert ctypes.PyDLL(str(small)).PyInit__crc32c
    assert elf.loadable(small.read_bytes()) == small.read_bytes()


def test_what_no_segment_covers_becomes_zero() -> None:
    header = {
        "rest": bytes(10), "kind": 3, "machine": 183, "version": 1, "entry": 0, "segments_offset": 64,
        "sections_offset": 500, "flags": 0, "header_bytes": 64, "segment_bytes": 56, "segments": 2,
        "section_bytes": 64, "sections": 3, "names_section": 1,
    }  # fmt: skip
    places = [(200, 10), (300, 10)]
    table = b"".join(elf.SEGMENT.build({"kind": 1, "flags": 4, "offset": at, "size": size}) for at, size in places)
    data = (elf.HEADER.build(header) + table).ljust(200, b"s") + b"d" * 400
    kept = elf.loadable(data)
    assert len(kept) == 310
    assert kept[64:176] == table
    assert (kept[176:200], kept[200:210], kept[210:300], kept[300:]) == (bytes(24), b"d" * 10, bytes(90), b"d" * 10)
    assert elf.HEADER.parse(kept).sections == 0


@pytest.mark.parametrize("data", [b"", b"text", b"\x7fELF", b"\x7fELF\1\1" + bytes(99), b"\x7fELF\2\1" + bytes(58)])
def test_anything_else_is_left_alone(data: bytes) -> None:
    assert elf.loadable(data) == data


# --- what a sled needs ------------------------------------------------------------------------------------------------


def test_the_extra_of_sleds_is_what_their_packages_import() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    listed = project["optional-dependencies"]["sled"]
    assert set(listed) <= set(project["dependencies"])
    imported = {
        name.partition(".")[0]
        for source in package_sources()
        if source.name.partition(".")[0] in PACKAGES
        for _, name in source.imports()
    }
    outside = imported - sys.stdlib_module_names - set(PACKAGES) - {"spdk_bindings"} - NOT_IN_FIRMWARE
    assert {re.split(r"[^a-z0-9_]", name)[0] for name in listed} == outside


NOT_IN_FIRMWARE = {"cffi", "setuptools", "serial"}
"""For building the driver over SPDK and loading it (`cryptography` brings cffi), and for flashing other boards."""


@pytest.mark.parametrize(
    ("hardware", "architecture"),
    [
        (("qemu-virt-arm64", "macchiatobin"), "arm64"),
        (("emulated-sled",), THIS_ARCHITECTURE),
        (("unknown",), "arm64"),
    ],
)
def test_an_image_is_of_the_architecture_of_its_boards(hardware: tuple[str, ...], architecture: str) -> None:
    assert architecture_of(hardware) == architecture


def test_boards_of_several_architectures_have_no_image_in_common(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rackctl.firmware.building.THIS_ARCHITECTURE", "x86_64")
    with pytest.raises(RackError, match="several architectures, arm64, x86_64: build an image for each"):
        architecture_of(("qemu-virt-arm64", "emulated-sled"))
    monkeypatch.setattr("rackctl.firmware.building.THIS_ARCHITECTURE", "s390x")
    with pytest.raises(RackError, match="not for s390x"):
        architecture_of(("emulated-sled",))


def test_emulated_sleds_take_no_image_of_another_architecture() -> None:
    other = "arm64" if THIS_ARCHITECTURE == "x86_64" else "x86_64"
    data = firmware.signed(firmware.recipe(hardware=("emulated-sled",), architecture=other))
    with pytest.raises(RackError, match=f"is for {other}: build it for {THIS_ARCHITECTURE}"):
        SledFirmware(data, firmware.ROOT.public).check()


def test_emulated_sleds_take_no_image_that_is_not_signed_for_them_or_has_nothing_to_start() -> None:
    data = firmware.signed(firmware.recipe(hardware=("emulated-sled",), architecture=THIS_ARCHITECTURE))
    SledFirmware(data, firmware.ROOT.public).check()
    with pytest.raises(RackError, match="is not signed by root key"):
        SledFirmware(data, firmware.FIRST.public).check()
    recipe = firmware.recipe(hardware=("emulated-sled",), architecture=THIS_ARCHITECTURE, payloads={"other": b"data"})
    with pytest.raises(RackError, match="no payload application, only other"):
        SledFirmware(firmware.signed(recipe), firmware.ROOT.public).check()


def test_an_architecture_that_the_board_has_not_is_refused() -> None:
    assert architecture_of(("qemu-virt-arm64",), "arm64") == "arm64"
    assert architecture_of(("unknown",), "x86_64") == "x86_64"
    with pytest.raises(RackError, match="qemu-virt-arm64: of the architecture arm64, not x86_64"):
        architecture_of(("qemu-virt-arm64",), "x86_64")


@pytest.mark.parametrize("date", ["99999999999999999", "4294967296", "-1", "now", "\u0661"])
def test_a_date_that_no_image_can_have_is_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], date: str
) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", date)
    assert "SOURCE_DATE_EPOCH: " in refusal(capsys)
