"""`rackctl chaos` on real processes: it ends with a verdict, replays its plan, and leaves nothing behind."""

import json
import os
import signal
import subprocess
import sys
import sysconfig
from pathlib import Path
from xml.etree import ElementTree

import pytest
from rackctl.chaos.findings import Promise
from rackctl.chaos.log_evidence import read_logs

RACKCTL = str(Path(sysconfig.get_path("scripts")) / "rackctl")
RUN_SECONDS_MAX = 240
# Links and disks where the machine permits namespaces, both of them.
SECLUDED = """
import json, socket, subprocess, sys
from pathlib import Path
from rackctl.chaos.seclusion import Network, SmallDisk, seclude

denied = seclude([__file__, *sys.argv[1:]])
if denied is not None:
    sys.exit(denied)
network = Network(["a", "b"])
LISTEN = "import socket,sys; s=socket.socket(type=2); s.bind((sys.argv[1],7)); print(1,flush=True)\\n" \\
    "while True: print(s.recv(99).decode(),flush=True)"
SEND = "import socket,sys; socket.socket(type=2).sendto(sys.argv[2].encode(),(sys.argv[1],7))"
listeners = {}
for name in "ab":
    argv = [*network.prefix(name), sys.executable, "-c", LISTEN, network.address(name)]
    listeners[name] = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)
    listeners[name].stdout.readline()

def send(source, target, text):
    argv = [*network.prefix(source), sys.executable, "-c", SEND, network.address(target), text]
    subprocess.run(argv, check=False, stderr=subprocess.DEVNULL)

network.cut("a", "b")
send("a", "b", "lost")
send("b", "a", "one way")
network.heal("a", "b")
network.cut("b", "a", silently=False)
send("b", "a", "refused")
network.heal("b", "a")
network.slow("b", 1_000_000)
send("a", "b", "slowly")
network.quicken("b")
send("b", "a", "healed")
heard = {"b": [listeners["b"].stdout.readline().strip()]}
heard["a"] = [listeners["a"].stdout.readline().strip() for _ in range(2)]
for listener in listeners.values():
    listener.kill()
    listener.wait()

place = Path(sys.argv[1]) / "disk"
disk = SmallDisk(place, 1 << 20)
(place / "before").write_text("before")
disk.fill()
try:
    (place / "full").write_bytes(bytes(8192))
    room = "room"
except OSError as error:
    room = error.strerror
disk.clear()
(place / "after").write_text("after")
disk.close(keep=sys.argv[2] == "keep")
print(json.dumps({"heard": heard, "room": room, "interfaces": [name for _, name in socket.if_nameindex()]}))
"""


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    """An environment whose temporary folder is the test's."""
    folder = tmp_path / "tmp"
    folder.mkdir()
    clean = {name: value for name, value in os.environ.items() if not name.startswith("RACK")}
    return {**clean, "TMPDIR": str(folder)}


def left_running(folder: Path) -> list[str]:
    """The command lines of living processes that name the folder."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal() and int(entry.name) != os.getpid():
            try:
                line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:
                continue
            if str(folder) in line:
                found.append(line)
    return found


@pytest.mark.parametrize("options", [("--namespaces",), ("--no-namespaces", "--no-fio")])
def test_a_short_run_keeps_every_promise_and_leaves_nothing(
    environ: dict[str, str], tmp_path: Path, options: tuple[str, ...]
) -> None:
    text, junit = tmp_path / "report.txt", tmp_path / "report.xml"
    argv = [
        RACKCTL,
        "chaos",
        "--minutes",
        "0.25",
        "--seed",
        "15",
        "--report",
        str(text),
        "--junit",
        str(junit),
        *options,
    ]
    ended = subprocess.run(argv, env=environ, capture_output=True, text=True, timeout=RUN_SECONDS_MAX)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "every promise was kept" in text.read_text(encoding="utf-8")
    (suite,) = ElementTree.fromstring(junit.read_text(encoding="utf-8"))
    names = {case.get("name") for case in suite.findall("testcase")}
    assert names == {promise.value for promise in Promise}
    assert suite.get("failures") == "0"
    assert left_running(Path(environ["TMPDIR"])) == []
    assert list(Path(environ["TMPDIR"]).iterdir()) == []


def test_an_interrupted_run_takes_its_rack_down_and_keeps_what_it_was_told_to(
    environ: dict[str, str], tmp_path: Path
) -> None:
    kept = tmp_path / "kept"
    argv = [RACKCTL, "chaos", "--minutes", "9", "--seed", "1", "--keep", str(kept)]
    with subprocess.Popen(argv, env=environ, stdout=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None
        while "begins" not in (line := running.stdout.readline()):
            assert line or running.poll() is None
        running.send_signal(signal.SIGINT)
        running.communicate(timeout=RUN_SECONDS_MAX)
    assert running.returncode == 128 + signal.SIGINT
    assert left_running(kept) == []
    logs = {path.stem: path for path in (kept / "rack" / "logs").iterdir()}
    assert len(logs) == 9
    assert read_logs(logs).leaders != {}


def test_links_are_cut_one_way_and_disks_filled_in_namespaces_of_our_own(tmp_path: Path) -> None:
    program = tmp_path / "secluded.py"
    program.write_text(SECLUDED, encoding="utf-8")
    ended = subprocess.run(
        [sys.executable, str(program), str(tmp_path), "keep"], capture_output=True, text=True, timeout=60
    )
    if ended.returncode and "namespaces" in ended.stderr:
        pytest.skip(ended.stderr.strip())
    assert ended.returncode == 0, ended.stderr
    found = json.loads(ended.stdout)
    assert found["heard"] == {"a": ["one way", "healed"], "b": ["slowly"]}
    assert found["room"] == "No space left on device"
    assert (tmp_path / "disk" / "before").read_text() == "before"
    assert (tmp_path / "disk" / "after").read_text() == "after"
    assert not (tmp_path / "disk" / "filler").exists()
    assert "node1" in found["interfaces"]
    assert "node1" not in os.listdir("/sys/class/net"), "what was made there is not here"
