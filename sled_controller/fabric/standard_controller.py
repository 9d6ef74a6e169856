"""What every controller does whatever stands behind it: properties, identify, log pages, features, events, abort.

Subclasses say what they are (`identify_page`, `log_page`, `FEATURES`, `COMMANDS`) and carry out I/O (`io_path`).
Nothing here reads or changes a volume. Source: NVM Express Base 2.0, 3.1.3, 3.5, 5 and 6.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from struct import Struct
from typing import TYPE_CHECKING, Any, ClassVar, Final

from sled_controller.fabric import pdu
from sled_controller.fabric.associations import HostAssociation
from sled_controller.fabric.error_log import ErrorLog
from sled_controller.fabric.io_path import IoPath
from spdk_bindings import log_pages, nvme
from spdk_bindings.device import Buffer
from spdk_bindings.nvme import AdminOpcode, Feature, LogPage, Property, Status

if TYPE_CHECKING:
    from sled_controller.fabric.target import TargetQueue

ASYNC_EVENTS_MAX: Final = 4
LOG_BYTES_MAX: Final = 128 * 1024  # in one command; a longer page is read in parts
KEEP_ALIVE_GRACE_MS: Final = 1000
_OPENING: Final = Struct("<BBHI")
_DWORDS: Final = Struct("<6I")  # CDW10 to CDW15
SGL_OFFSET: Final = 24
_RETAIN_EVENT: Final = 1 << 15  # CDW10 of Get Log Page
_INDEX_OFFSET: Final = 1 << 23  # CDW14 of Get Log Page
SAVE: Final = 1 << 31  # CDW10 of Set Features
_SELECT_CAPABILITIES: Final = 3
_CHANGEABLE: Final = 1 << 2


@dataclass(frozen=True, slots=True)
class Command:
    """A standard command; `dwords` are CDW10 to CDW15, `length` what its SGL has room for or brings.

    `data` came in the capsule, which is where `in_capsule` says that it is, from `sgl_address` on.
    """

    opcode: int
    cid: int
    nsid: int
    sgl_address: int
    length: int
    in_capsule: bool
    dwords: tuple[int, ...]
    data: Buffer = b""

    @classmethod
    def parse(cls, sqe: bytes, data: Buffer = b"") -> "Command":
        """Read a standard SQE."""
        opcode, _, cid, nsid = _OPENING.unpack_from(sqe)
        address, length, kind = pdu.SGL.unpack_from(sqe, SGL_OFFSET)
        in_capsule = kind == pdu.SGL_IN_CAPSULE
        return cls(opcode, cid, nsid, address, length, in_capsule, _DWORDS.unpack_from(sqe, 40), data)


@dataclass(frozen=True, slots=True)
class Notice:
    """An asynchronous event that a controller may send (Base 2.0, 5.2): `config_bit` of feature 0Bh turns it on (None:
    it is always on), the host takes note of it by reading log page `page`."""

    kind: int
    info: int
    page: int
    config_bit: int | None


class Event(Enum):
    """The events known here."""

    NAMESPACE_CHANGED = Notice(2, 0x00, LogPage.CHANGED_NAMESPACES, 8)
    ANA_CHANGED = Notice(2, 0x03, LogPage.ANA, 11)
    DISCOVERY_CHANGED = Notice(2, 0xF0, LogPage.DISCOVERY, 31)
    RESERVATION = Notice(6, 0x00, LogPage.RESERVATION, None)


@dataclass(frozen=True, slots=True)
class FeatureRule:
    """A feature's value until somebody sets it, and whether anybody can."""

    default: int = 0
    changeable: bool = True


NO_CHOICE_FEATURES: Final[Mapping[int, FeatureRule]] = {
    Feature.ARBITRATION: FeatureRule(default=7, changeable=False),
    Feature.POWER_MANAGEMENT: FeatureRule(changeable=False),
    Feature.TEMPERATURE_THRESHOLD: FeatureRule(default=0xFFFF, changeable=False),
    Feature.WRITE_ATOMICITY: FeatureRule(changeable=False),
}
"""What an I/O controller has to know (Base 2.0, 3.1.2.1.3), and nothing can be chosen about here: bursts without limit,
one power state, no threshold, atomic writes as Identify says."""


@dataclass(frozen=True, slots=True)
class LogRequest:
    """Which log page, whole: `specific` is its LSI, `parameter` its LSP."""

    page: int
    nsid: int
    specific: int
    parameter: int


class StandardController:
    """One controller, made by Connect on the admin queue."""

    COMMANDS: ClassVar[Mapping[int, "Handler"]] = {}
    FEATURES: ClassVar[Mapping[int, FeatureRule]] = {}
    EVENTS: ClassVar[frozenset[Event]] = frozenset()

    def __init__(self, association: HostAssociation, kato_ms: int, *, io_queues_max: int, entries_max: int) -> None:
        self.association = association
        self.kato_ms = kato_ms
        self.io_queues_max = io_queues_max
        self.configuration = 0
        self.errors = ErrorLog()
        self._entries_max = entries_max
        self._shut_down = False
        self._values = {feature: rule.default for feature, rule in self.FEATURES.items()}
        self._queue: TargetQueue | None = None  # where events go
        self._held_events: list[int] = []
        self._due: dict[Event, None] = {}
        self._untold: set[Event] = set()  # sent, and its page not read since: not sent again

    # --- what a subclass says

    def identify_page(self, cns: int, command: Command) -> bytes | Status:
        """The 4096 bytes of Identify, or why not."""
        return Status.INVALID_FIELD

    def log_page(self, queue: "TargetQueue", request: LogRequest) -> bytes | None:
        """A log page as a whole; None when there is none of that name."""
        return None

    def admin_path(self, queue: "TargetQueue") -> IoPath | None:
        """What the commands of the admin queue go through, where some bring more data than a capsule has room for."""
        return None

    def io_path(self, queue: "TargetQueue", entries: int) -> IoPath:
        """What carries out the commands of a new I/O queue."""
        raise NotImplementedError

    # --- fabrics

    @property
    def capabilities(self) -> int:
        """CAP."""
        return nvme.capabilities(self._entries_max)

    @property
    def enabled(self) -> bool:
        """CC.EN."""
        return bool(self.configuration & nvme.CC_ENABLE)

    @property
    def expects_keep_alive(self) -> bool:
        """Whether the Keep Alive Timer runs (Base 2.0, 3.9): not once the controller is shut down. That it does not
        run before the controller is enabled either is not heeded: a host has no reason to be silent for long then."""
        return bool(self.kato_ms) and not self._shut_down

    def property_get(self, queue: "TargetQueue", sqe: bytes) -> None:
        """Property Get (Base 2.0, 6.6)."""
        _, _, cid, _, attrib, offset, _ = pdu.PROPERTY_SQE.unpack(sqe)
        asked = 8 if attrib & 7 else 4
        # What is reserved here is zero (Base 2.0, 3.1.3): `nvme show-regs` asks for all that a PCIe controller has.
        size = nvme.PROPERTY_BYTES[Property(offset)] if offset in set(Property) else asked
        if size != asked or offset > nvme.PROPERTY_OFFSET_MAX or offset % asked:
            queue.complete(cid, Status.INVALID_FIELD, dnr=True)
            return
        value = 0
        if offset == Property.CAP:
            value = self.capabilities
        elif offset == Property.VS:
            value = nvme.NVME_VERSION
        elif offset == Property.CC:
            value = self.configuration
        elif offset == Property.CSTS:
            value = (nvme.CSTS_READY if self.enabled else 0) | (nvme.CSTS_SHUTDOWN_COMPLETE if self._shut_down else 0)
        queue.complete(cid, Status.SUCCESS, value & 0xFFFFFFFF, value >> 32)

    def property_set(self, queue: "TargetQueue", sqe: bytes) -> None:
        """Property Set: only CC can be written."""
        _, _, cid, _, attrib, offset, value = pdu.PROPERTY_SQE.unpack(sqe)
        if offset != Property.CC or attrib & 7:
            queue.complete(cid, Status.INVALID_FIELD, dnr=True)
            return
        was_enabled = self.enabled
        self.configuration = value & 0xFFFFFFFF
        reset = was_enabled and not self.enabled
        if reset:
            self._reset()
        if self.configuration & nvme.CC_SHUTDOWN_MASK:
            self._shut_down = True
        queue.complete(cid, Status.SUCCESS)
        if reset:
            self.association.disabled()

    def _reset(self) -> None:
        """A Controller Level Reset (Base 2.0, 3.7.2): a shutdown is over, features are what they were at first, event
        requests are forgotten without an answer, the error log is empty."""
        self._shut_down = False
        self._values = {feature: rule.default for feature, rule in self.FEATURES.items()}
        if self._queue is not None:
            self._queue.busy.difference_update(self._held_events)
        self._held_events.clear()
        self._due.clear()
        self._untold.clear()
        self.errors.clear()

    # --- admin commands

    def command(self, queue: "TargetQueue", sqe: bytes, data: Buffer, digest_bad: bool) -> None:
        """An admin command with its in-capsule data."""
        command = Command.parse(sqe, data)
        handler = self.COMMANDS.get(command.opcode)
        if digest_bad:
            queue.complete(command.cid, Status.TRANSIENT_TRANSPORT_ERROR)
        elif handler is None:
            queue.complete(command.cid, Status.INVALID_OPCODE, dnr=True, nsid=command.nsid)
        else:
            handler(self, queue, command)

    def identify(self, queue: "TargetQueue", command: Command) -> None:
        """Identify (Base 2.0, 5.17)."""
        page = self.identify_page(command.dwords[0] & 0xFF, command)
        if isinstance(page, Status):
            queue.complete(command.cid, page, dnr=True, nsid=command.nsid)
        else:
            queue.complete(command.cid, Status.SUCCESS, data=page[: command.length])

    def get_log_page(self, queue: "TargetQueue", command: Command) -> None:
        """Get Log Page (Base 2.0, 5.16)."""
        cdw10, cdw11, low, high, cdw14, _ = command.dwords
        length = ((cdw10 >> 16 | (cdw11 & 0xFFFF) << 16) + 1) * 4
        offset = low | high << 32
        if length > LOG_BYTES_MAX or length > command.length or offset % 4 or cdw14 & _INDEX_OFFSET:
            queue.complete(command.cid, Status.INVALID_FIELD, dnr=True)
            return
        request = LogRequest(cdw10 & 0xFF, command.nsid, cdw11 >> 16, cdw10 >> 8 & 0x7F)
        page = self.log_page(queue, request)
        if page is None:
            queue.complete(command.cid, Status.INVALID_LOG_PAGE, dnr=True)
            return
        if offset > len(page):
            queue.complete(command.cid, Status.INVALID_FIELD, dnr=True)
            return
        queue.complete(command.cid, Status.SUCCESS, data=page[offset : offset + length].ljust(length, b"\0"))
        if not cdw10 & _RETAIN_EVENT:
            self.taken_note(request.page)

    def set_features(self, queue: "TargetQueue", command: Command) -> None:
        """Set Features (Base 2.0, 5.27); nothing is saved over a reset."""
        feature, value = command.dwords[0] & 0xFF, command.dwords[1]
        rule = self.FEATURES.get(feature)
        status, dw0 = Status.SUCCESS, 0
        if rule is None:
            status = Status.INVALID_FIELD
        elif command.dwords[0] & SAVE:
            status = Status.FEATURE_NOT_SAVEABLE
        elif feature == Feature.NUMBER_OF_QUEUES:
            status, dw0 = self._grant_queues(value)
        elif not rule.changeable:
            status = Status.FEATURE_NOT_CHANGEABLE
        elif feature == Feature.KEEP_ALIVE_TIMER and value > queue.port.kato_ms_max:
            status = Status.KEEP_ALIVE_INVALID
        elif feature == Feature.KEEP_ALIVE_TIMER:
            self.kato_ms = value
        else:
            self._values[feature] = value
            self._send_events()
        queue.complete(command.cid, status, dw0, dnr=status != Status.SUCCESS)

    def get_features(self, queue: "TargetQueue", command: Command) -> None:
        """Get Features (Base 2.0, 5.15): the value now, at first, or what can be done about it."""
        feature, select = command.dwords[0] & 0xFF, command.dwords[0] >> 8 & 7
        rule = self.FEATURES.get(feature)
        if rule is None or select > _SELECT_CAPABILITIES:
            queue.complete(command.cid, Status.INVALID_FIELD, dnr=True)
        elif select == _SELECT_CAPABILITIES:
            queue.complete(command.cid, Status.SUCCESS, _CHANGEABLE if rule.changeable else 0)
        elif feature == Feature.NUMBER_OF_QUEUES:
            last = max(0, self.io_queues_max - 1)
            queue.complete(command.cid, Status.SUCCESS, last | last << 16)
        elif feature == Feature.KEEP_ALIVE_TIMER:
            queue.complete(command.cid, Status.SUCCESS, self.kato_ms)
        else:
            queue.complete(command.cid, Status.SUCCESS, self._values[feature] if select == 0 else rule.default)

    def value(self, feature: Feature) -> int:
        """What a feature is set to."""
        return self._values[feature]

    def _grant_queues(self, asked: int) -> tuple[Status, int]:
        """As many I/O queues as there may be, at least one; 0's based, submission and completion alike."""
        submission, completion = asked & 0xFFFF, asked >> 16
        if 0xFFFF in (submission, completion):
            return Status.INVALID_FIELD, 0
        last = min(submission, completion, max(0, self.io_queues_max - 1))
        return Status.SUCCESS, last | last << 16

    def keep_alive(self, queue: "TargetQueue", command: Command) -> None:
        """Keep Alive; that it came is what counts."""
        queue.complete(command.cid, Status.SUCCESS)

    def abort(self, queue: "TargetQueue", command: Command) -> None:
        """Abort: a held event request ends; whatever a device or the host's own data holds up is not aborted."""
        queue_id, cid = command.dwords[0] & 0xFFFF, command.dwords[0] >> 16
        if queue_id == 0 and cid in self._held_events:
            self._held_events.remove(cid)
            queue.complete(cid, Status.ABORT_REQUESTED)
            queue.complete(command.cid, Status.SUCCESS, 0)
        else:
            queue.complete(command.cid, Status.SUCCESS, 1)

    # --- events

    def async_event(self, queue: "TargetQueue", command: Command) -> None:
        """Asynchronous Event Request: held until there is an event; it may be aborted."""
        if len(self._held_events) >= ASYNC_EVENTS_MAX:
            queue.complete(command.cid, Status.ASYNC_EVENT_LIMIT, dnr=True)
            return
        self._queue = queue
        self._held_events.append(command.cid)
        queue.busy.add(command.cid)
        self._send_events()

    def gives_up_event(self, queue: "TargetQueue", cid: int) -> bool:
        """Whether a command under `cid`, which is in use, means that the host has given up an event request: SPDK
        forgets its own before it shuts a controller down, and takes their ids again."""
        if queue.queue_id or cid not in self._held_events:
            return False
        self._held_events.remove(cid)
        queue.busy.discard(cid)
        return True

    def notify(self, event: Event) -> None:
        """Something has happened that the host asked to be told of; told once until it reads the page."""
        self._due[event] = None
        self._send_events()

    def _send_events(self) -> None:
        wanted = self._values.get(Feature.ASYNC_EVENT_CONFIGURATION, 0)
        queue = self._queue
        for event in list(self._due):
            notice: Notice = event.value
            if notice.config_bit is not None and not wanted >> notice.config_bit & 1:
                del self._due[event]
            elif queue is not None and self._held_events and event not in self._untold:
                del self._due[event]
                self._untold.add(event)
                dw0 = notice.kind | notice.info << 8 | notice.page << 16
                queue.complete(self._held_events.pop(0), Status.SUCCESS, dw0)
                queue.poke()

    def taken_note(self, page: int) -> None:
        """The host has read the page, with all that it says now."""
        for event in [event for event in self.EVENTS if event.value.page == page]:
            self._due.pop(event, None)
            self._untold.discard(event)


def events_mask(events: frozenset[Event]) -> int:
    """OAES of Identify Controller for `events`."""
    bits = [event.value.config_bit for event in events]
    return sum(1 << bit for bit in bits if bit is not None)


def supported_pages(pages: Mapping[int, Any]) -> bytes:
    """The Supported Log Pages log (00h): `pages`, and itself."""
    return log_pages.supported_log({LogPage.SUPPORTED, *pages})


Handler = Callable[[Any, "TargetQueue", Command], None]
STANDARD_COMMANDS: Final[dict[int, Handler]] = {
    AdminOpcode.IDENTIFY: StandardController.identify,
    AdminOpcode.GET_LOG_PAGE: StandardController.get_log_page,
    AdminOpcode.KEEP_ALIVE: StandardController.keep_alive,
    AdminOpcode.SET_FEATURES: StandardController.set_features,
    AdminOpcode.GET_FEATURES: StandardController.get_features,
    AdminOpcode.ASYNC_EVENT_REQUEST: StandardController.async_event,
}
