"""Both sans-I/O cores of the wire, a head's and a sled's, in conversation, with every byte written down."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from kit import host
from kit.target import Rig

from sled_controller.environment import Environment
from sled_controller.fabric import vendor
from sled_controller.fabric.command import Command, Completed, Connected, Event
from sled_controller.fabric.host import ADMIN_IN_CAPSULE_BYTES, HostQueue
from sled_controller.fabric.pdu import PduType
from sled_controller.fabric.target import TargetQueue
from sled_controller.session import HELLO_BYTES, HeadHandshake, SessionKeys
from spdk_bindings.nvme import CC_ENABLE, CONTROLLER_ID_DYNAMIC, AdminOpcode, Property

FILE: Final = host.GOLDEN / "association.txt"
NAMES: Final = ("admin", "io")
LINE_BYTES: Final = 16
IO_DEPTH: Final = 7
IN_CAPSULE_BYTES: Final = 4096
"""Less than a sled allows, so that two blocks go by R2T and the file stays short."""
HEAD_ENTROPY: Final = b"golden head"


@dataclass
class Transcript:
    """What was said, as the text of the golden file: PDUs in hexadecimal, `>` from the head, `<` from the sled."""

    lines: list[str] = field(default_factory=list)

    def title(self, text: str) -> None:
        """What comes next."""
        self.lines += ["", f"# {text}"]

    def note(self, queue_id: int, mark: str, stream: bytes) -> None:
        """PDUs of one direction."""
        for each in pdus(stream):
            self.lines.append(f"{mark} {NAMES[queue_id]} {PduType(each[0]).name}")
            self.lines += dump(each)

    @property
    def text(self) -> str:
        """The whole file."""
        return "\n".join(self.lines).lstrip("\n") + "\n"


def pdus(stream: bytes) -> Iterator[bytes]:
    """Cut a stream."""
    while stream:
        size = int.from_bytes(stream[4:8], "little")
        assert len(stream) >= size
        yield stream[:size]
        stream = stream[size:]


def dump(data: bytes) -> Iterator[str]:
    """Sixteen bytes a line with their offset; `*` stands for lines equal to the one before, as hexdump does it."""
    former, repeating = b"", False
    for at in range(0, len(data), LINE_BYTES):
        line = data[at : at + LINE_BYTES]
        last = at + LINE_BYTES >= len(data)
        if line == former and not last:
            if not repeating:
                yield "*"
            repeating = True
            continue
        former, repeating = line, False
        yield f"{at:04x}: {line.hex(' ')}"


@dataclass
class Queue:
    """One queue of the association, both ends of it."""

    transcript: Transcript
    rig: Rig
    core: HostQueue
    target: TargetQueue

    def open(self) -> int:
        """ICReq to Connect; the controller id."""
        self.core.start()
        (connected,) = self._exchange()
        assert isinstance(connected, Connected)
        return connected.controller_id

    def ask(self, command: Command) -> Completed:
        """Send a command and take its completion."""
        self.core.submit(command)
        (completed,) = self._exchange()
        assert isinstance(completed, Completed)
        return completed

    def _exchange(self) -> list[Event]:
        events: list[Event] = []
        while sent := b"".join(self.core.data_to_send()):
            self.transcript.note(self.core.queue_id, ">", sent)
            self.target.feed(sent, self.rig.subsystem.time.now_ms(), self.rig.clock.boottime_ns())
            answered = b"".join(self.target.take_output())
            self.transcript.note(self.core.queue_id, "<", answered)
            events += self.core.receive(answered)
        return events


class GoldenHead:
    """A head, from ICReq on; each step is written down under its title."""

    def __init__(self, rig: Rig) -> None:
        self.rig = rig
        self.transcript = Transcript()
        self.keys: SessionKeys | None = None
        self.transcript.title("The admin queue: ICReq, then Connect")
        self.admin = self._queue(0, CONTROLLER_ID_DYNAMIC)
        self.controller_id = self.admin.open()
        self.tell("Property Set: CC.EN", vendor.property_set(Property.CC, CC_ENABLE | 6 << 16 | 4 << 20), signed=False)
        self.transcript.title("The I/O queue, of the controller that was named")
        self.io = self._queue(1, self.controller_id)
        self.io.open()

    def _queue(self, queue_id: int, controller_id: int) -> Queue:
        core = HostQueue(
            queue_id=queue_id, depth=IO_DEPTH if queue_id else 31, subsystem_nqn=host.NQN, host_id=host.HEAD,
            host_nqn=f"nqn.2014-08.org.nvmexpress:uuid:{host.HEAD}", controller_id=controller_id,
            in_capsule_bytes=IN_CAPSULE_BYTES if queue_id else ADMIN_IN_CAPSULE_BYTES, kato_ms=0 if queue_id else 15000,
        )  # fmt: skip
        return Queue(self.transcript, self.rig, core, TargetQueue(self.rig.subsystem, self.rig.clock.boottime_ns()))

    def tell(
        self, title: str, sqe: bytearray, data: bytes = b"", into_bytes: int = 0, *, signed: bool = True,
        io: bool = False, status: int = 0,
    ) -> Completed:  # fmt: skip
        """Send a command, which has to end with `status`."""
        self.transcript.title(title)
        into = memoryview(bytearray(into_bytes)) if into_bytes else None
        parts = (memoryview(data),) if data else ()
        completed = (self.io if io else self.admin).ask(Command(sqe, parts, into, authenticated=signed))
        assert completed.status == status, (title, hex(completed.status))
        return completed

    def open_session(self) -> None:
        """SESSION RECEIVE and SEND."""
        hello = self.tell(
            "SESSION RECEIVE: the sled's hello", vendor.vendor_sqe(AdminOpcode.SESSION_RECEIVE),
            into_bytes=HELLO_BYTES, signed=False,
        ).command.into  # fmt: skip
        assert hello is not None
        env = Environment(self.rig.clock, host.FixedEntropy(HEAD_ENTROPY))
        handshake = HeadHandshake(
            host.private_key(host.HEAD_KEY), host.SLED, host.public_key(host.SLED_KEY), host.NQN, self.controller_id,
            env,
        )  # fmt: skip
        reply = handshake.reply(hello)
        self.tell("SESSION SEND: the head's reply", vendor.vendor_sqe(AdminOpcode.SESSION_SEND), reply, signed=False)
        self.keys = handshake.keys
        self.admin.core.mac, self.io.core.mac = self.keys.queue_mac(0), self.keys.queue_mac(1)
