"""A flood as a program of its own: `python -m rackctl.chaos.flood` reads as JSON what to send where, and goes on.

Each connection says its hello, then its commands again and again, as fast as they are taken; answers are thrown away. A
connection that is dropped is opened again.
"""

import json
import selectors
import socket
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

READ_BYTES: Final = 1 << 20
WAIT_SECONDS: Final = 10.0


@dataclass(frozen=True, slots=True)
class Target:
    """A port, and what is cheap to send there: once, then again and again."""

    host: str
    port: int
    hello: bytes
    commands: bytes


class Flood:
    """So many connections to each target, from now until `stop`."""

    def __init__(self, targets: Iterable[Target], connections: int) -> None:
        one = [(target.host, target.port, target.hello.hex(), target.commands.hex()) for target in targets]
        argv = [sys.executable, "-m", "rackctl.chaos.flood"]
        self._process = subprocess.Popen(argv, stdin=subprocess.PIPE, text=True, start_new_session=True)
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(one * connections))
        self._process.stdin.close()

    @property
    def goes_on(self) -> bool:
        """Whether it has not ended by itself."""
        return self._process.poll() is None

    def stop(self) -> None:
        """End it; returns when its connections are gone."""
        self._process.kill()
        self._process.wait(WAIT_SECONDS)


class _Connection:
    def __init__(self, host: str, port: int, hello: bytes, commands: bytes) -> None:
        self._address = host, port
        self._said = hello
        self._commands = commands
        self.socket = self._open()

    def _open(self) -> socket.socket:
        self._left = memoryview(self._said)
        made = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        made.setblocking(False)
        made.connect_ex(self._address)
        return made

    def turn(self, events: int) -> bool:
        """Send and receive what goes; False: it was dropped, and another one is in its place."""
        try:
            if events & selectors.EVENT_READ and not self.socket.recv(READ_BYTES):
                raise ConnectionError
            if events & selectors.EVENT_WRITE:
                self._left = self._left[self.socket.send(self._left) :] or memoryview(self._commands)
        except BlockingIOError:
            pass
        except OSError:
            self.socket.close()
            self.socket = self._open()
            return False
        return True


def main() -> None:
    """Flood until killed."""
    selector = selectors.DefaultSelector()
    events = selectors.EVENT_READ | selectors.EVENT_WRITE
    for host, port, hello, commands in json.load(sys.stdin):
        connection = _Connection(host, port, bytes.fromhex(hello), bytes.fromhex(commands))
        selector.register(connection.socket, events, connection)
    while True:
        for key, ready in selector.select():
            former = key.fileobj
            if not key.data.turn(ready):
                selector.unregister(former)
                selector.register(key.data.socket, events, key.data)


if __name__ == "__main__":
    main()
