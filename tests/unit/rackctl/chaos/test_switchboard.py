"""Proxies between nodes: one way of a link can be cut, what was sent meanwhile arrives when it is mended."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator

import pytest
from rackctl.chaos.switchboard import NOBODY, Switchboard, owner
from rackctl.processes import ProcessIdentity, identify

SECONDS_MAX = 30.0
QUIET_SECONDS = 0.1
# Connects when told where to, says what it receives, sends what it is told to.
PEER = """
import socket, sys
host, port = sys.stdin.readline().split()
link = socket.create_connection((host, int(port)))
for line in sys.stdin:
    if line == "receive\\n":
        print(link.recv(99).decode(), flush=True)
    else:
        link.sendall(line.strip().encode())
"""


@pytest.fixture
def client() -> Iterator["subprocess.Popen[str]"]:
    """The process of the node `head`."""
    with subprocess.Popen(
        [sys.executable, "-c", PEER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as started:  # fmt: skip
        yield started
        started.kill()


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    """Where the node `sled` listens."""
    with socket.create_server(("127.0.0.1", 0)) as made:
        made.settimeout(SECONDS_MAX)
        yield made


@pytest.fixture
def board(client: "subprocess.Popen[str]", listener: socket.socket) -> Iterator[Switchboard]:
    """Between both of them."""
    own, other = identify(os.getpid()), identify(client.pid)
    assert own is not None
    assert other is not None
    made = Switchboard({"sled": 1, "head": 2}, lambda: {"sled": own, "head": other})
    made.listen("sled", listener.getsockname()[1])
    yield made
    made.close()


def say(client: "subprocess.Popen[str]", line: str) -> None:
    assert client.stdin is not None
    client.stdin.write(line + "\n")
    client.stdin.flush()


def heard(client: "subprocess.Popen[str]") -> str:
    assert client.stdout is not None
    say(client, "receive")
    return client.stdout.readline().strip()


def connect(board: Switchboard, client: "subprocess.Popen[str]", listener: socket.socket) -> socket.socket:
    say(client, f"{board.address('sled')} {listener.getsockname()[1]}")
    link, _ = listener.accept()
    link.settimeout(SECONDS_MAX)
    return link


def test_bytes_pass_both_ways(board: Switchboard, client: "subprocess.Popen[str]", listener: socket.socket) -> None:
    with connect(board, client, listener) as link:
        say(client, "there")
        assert link.recv(99) == b"there"
        link.sendall(b"back")
        assert heard(client) == "back"


def test_one_way_is_cut_and_what_was_sent_arrives_when_it_is_mended(
    board: Switchboard, client: "subprocess.Popen[str]", listener: socket.socket
) -> None:
    with connect(board, client, listener) as link:
        board.cut("head", "sled")
        link.sendall(b"back")
        assert heard(client) == "back", "the other way is open; and the cut was made before"
        say(client, "there")
        link.settimeout(QUIET_SECONDS)
        with pytest.raises(TimeoutError):
            link.recv(99)
        link.settimeout(SECONDS_MAX)
        board.heal("head", "sled")
        assert link.recv(99) == b"there"


def test_a_connection_waits_until_both_ways_are_open(
    board: Switchboard, client: "subprocess.Popen[str]", listener: socket.socket
) -> None:
    board.cut("sled", "head")
    say(client, f"{board.address('sled')} {listener.getsockname()[1]}")
    listener.settimeout(QUIET_SECONDS)
    with pytest.raises(TimeoutError):
        listener.accept()
    board.heal("sled", "head")
    listener.settimeout(SECONDS_MAX)
    listener.accept()[0].close()


def test_a_link_that_is_refused_ends_new_connections(
    board: Switchboard, client: "subprocess.Popen[str]", listener: socket.socket
) -> None:
    board.cut("head", "sled", silently=False)
    say(client, f"{board.address('sled')} {listener.getsockname()[1]}")
    assert client.stdout is not None
    say(client, "receive")
    assert client.stdout.readline().strip() == ""


def test_who_is_no_node_is_never_cut(
    board: Switchboard, client: "subprocess.Popen[str]", listener: socket.socket
) -> None:
    board.cut("head", "sled")
    program = "import socket,sys; socket.create_connection((sys.argv[1], int(sys.argv[2]))).sendall(b'hello')"
    argv = [sys.executable, "-c", program, board.address("sled"), str(listener.getsockname()[1])]
    subprocess.run(argv, check=True, timeout=SECONDS_MAX)
    link, _ = listener.accept()
    with link:
        link.settimeout(SECONDS_MAX)
        assert link.recv(99) == b"hello"


def test_the_kernel_tells_whose_connection_it_is() -> None:
    own = identify(os.getpid())
    assert own is not None
    with socket.create_server(("127.77.0.9", 0)) as server, socket.create_connection(server.getsockname()) as link:
        port = link.getsockname()[1]
        assert owner(port, {"other": ProcessIdentity(1 << 22, 0), "us": own}) == "us"
        assert owner(port, {}) == NOBODY
    assert owner(1, {"us": own}) == NOBODY
