"""A flood as a program of its own: `python -m kit.flooder` reads ports and what to send there as JSON, and goes on.

Each connection says its hello, then its commands again and again, as fast as they are taken; answers are thrown away. A
connection that is dropped is opened again.
"""

import json
import selectors
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

READ_BYTES = 1 << 20


class _Connection:
    def __init__(self, port: int, hello: bytes, commands: bytes) -> None:
        self._said = hello
        self._commands = commands
        self._port = port
        self.socket = self._open()

    def _open(self) -> socket.socket:
        self._left = memoryview(self._said)
        made = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        made.setblocking(False)
        made.connect_ex(("127.0.0.1", self._port))
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
    selector = selectors.DefaultSelector()
    events = selectors.EVENT_READ | selectors.EVENT_WRITE
    for port, hello, commands in json.load(sys.stdin):
        connection = _Connection(port, bytes.fromhex(hello), bytes.fromhex(commands))
        selector.register(connection.socket, events, connection)
    while True:
        for key, ready in selector.select():
            former = key.fileobj
            if not key.data.turn(ready):
                selector.unregister(former)
                selector.register(key.data.socket, events, key.data)


@contextmanager
def flooding(*targets: tuple[int, bytes, bytes], connections: int) -> Iterator[None]:
    """So many connections to each port, as long as the block lasts."""
    wanted = [(port, hello.hex(), said.hex()) for port, hello, said in targets for _ in range(connections)]
    folder = Path(__file__).parent.parent
    with subprocess.Popen([sys.executable, "-m", "kit.flooder"], cwd=folder, stdin=subprocess.PIPE, text=True) as flood:
        try:
            assert flood.stdin is not None
            flood.stdin.write(json.dumps(wanted))
            flood.stdin.close()
            yield
            assert flood.poll() is None, "it went on to the end"
        finally:
            flood.kill()


if __name__ == "__main__":
    main()
