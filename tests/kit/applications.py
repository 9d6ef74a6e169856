"""Applications as an image carries them: tar archives compressed by xz, of a script or two."""

import io
import tarfile
from collections.abc import Mapping

WELL = """
import os, signal, socket, sys, threading

def say(text):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        sender.sendto(text.encode(), os.environ["NOTIFY_SOCKET"].replace("@", "\\0", 1))

asked = threading.Event()
signal.signal(signal.SIGTERM, lambda number, frame: asked.set())
print("application", os.getpid(), *sys.argv[1:], flush=True)
say("READY=1")
while not asked.wait(int(os.environ["WATCHDOG_USEC"]) / 3_000_000):
    say("WATCHDOG=1\\nSTATUS=healthy")
print("application ends in good order", flush=True)
"""
"""Is ready at once and well until it is terminated."""

SLED = "from sled_controller.server import main\n\nmain()\n"
"""The sled controller that is installed here."""


def packed(main: str, others: Mapping[str, bytes] | None = None) -> bytes:
    """The archive of an application that starts with the script `main`."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:xz") as archive:
        for name, data in {"__main__.py": main.encode(), **(others or {})}.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return buffer.getvalue()
