"""The memory that the NBD clients of a head share: a share of its own for each, the rest lent in the order of asking.

An account is charged for the payload of a write until the volume is done with it, and for what a read asked for until
the reply has left the process. A client that stays within its own share waits for nobody. Who needs more borrows from
the common part, which holds one request of the maximum payload at least, and gives back what it does not need at each
completion; no account borrows while it holds what only its own parsing could set free, so whoever is first gets its
turn. A client that keeps others waiting, because it does not send the payload that it announced or does not read the
replies that it asked for, has to go. Pure: the owner calls `look` now and then while somebody waits.
"""

from collections import deque
from collections.abc import Callable
from typing import Final, Protocol

OWN_BYTES: Final = 512 * 1024
"""The share of each connection: 128 requests of 4 KiB, as many as may be in flight, never wait for other clients."""

COMMON_BYTES: Final = 64 * 1024 * 1024
"""What all connections of a head borrow from: two requests of the maximum payload, or depth 32 of 1 MiB twice."""

PACE_SECONDS: Final = 5.0
PACE_BYTES_MIN: Final = 1024 * 1024
"""A client that keeps others waiting has to move this much in that time; a link of 2 Mbit/s does."""


class Client(Protocol):
    """The connection behind an account."""

    def owes_payload(self) -> bool:
        """Whether memory waits for the rest of a large payload."""

    def received_bytes(self) -> int:
        """Large payloads received so far; it never falls."""

    def granted(self) -> None:
        """What `borrow` could not give is there now."""

    def evict(self) -> None:
        """End the connection: others wait for what it keeps."""


class Account:
    """What one connection holds. The parse loop adds to `held` itself, up to `limit`, and clears `reserved` then."""

    __slots__ = (
        "_budget", "_leaving", "_pace", "_sent_bytes", "_unsent", "_written_bytes",
        "busy", "client", "held", "limit", "reserved", "wanted",
    )  # fmt: skip

    def __init__(self, budget: "MemoryBudget", client: Client, unsent: Callable[[], int]) -> None:
        self.client = client
        self.held = 0
        self.limit = budget.own_bytes
        self.reserved = 0
        """Bytes of a request that `limit` was raised for and that is not charged yet."""
        self.wanted = 0
        self.busy = False
        """Something is borrowed, or waited for."""
        self._budget = budget
        self._pace: tuple[float, int] | None = None
        self._unsent = unsent
        self._written_bytes = 0
        self._sent_bytes = 0
        self._leaving: deque[tuple[int, int]] = deque()
        """Output that may not have left yet: where in all output it ends, and what it holds."""

    def borrow(self, length: int) -> bool:
        """Raise `limit` so that `length` more may be held. False: `client.granted` will say when to ask again."""
        budget = self._budget
        self.busy = True
        self.wanted = length
        if next(iter(budget.waiting), self) is self and self._shortage() <= budget.free_bytes:
            self._take()
            return True
        budget.waiting[self] = None  # whoever asks again keeps its place
        budget.begin_waiting()
        return False

    def release(self, length: int) -> None:
        """`length` bytes are not held any more."""
        self.held -= length
        if self.busy:
            self._tidy()

    def output(self, size: int, charge: int) -> None:
        """`size` bytes of replies were passed on to the client's transport, which free `charge` when they have left."""
        if charge or self._leaving:
            self._written_bytes += size
            self._leaving.append((self._written_bytes, charge))
            self.settle()

    def settle(self) -> None:
        """Release what was sent. A turn's output counts until its last byte left: a transport may keep it whole."""
        sent = self._written_bytes - self._unsent()
        leaving = self._leaving
        while leaving and leaving[0][0] <= sent:
            _, charge = leaving.popleft()
            self._sent_bytes += charge
            self.release(charge)

    def close(self) -> None:
        """The connection is gone; what is released afterwards counts no more."""
        self._budget.free_bytes += self.limit - self._budget.own_bytes
        self._budget.waiting.pop(self, None)
        self._budget.accounts.pop(self, None)
        self._leaving.clear()
        self.busy = False
        self.limit = self._budget.own_bytes
        self._budget.serve()

    def _shortage(self) -> int:
        return self.held + self.wanted - self.limit

    def _take(self) -> None:
        """Borrow what is wanted; there is enough."""
        shortage = max(0, self._shortage())
        self._budget.free_bytes -= shortage
        self.limit += shortage
        self.reserved, self.wanted = self.wanted, 0
        self._budget.waiting.pop(self, None)

    def serve(self) -> bool:
        """Let a waiting account have its way if it can."""
        if self._shortage() > self._budget.free_bytes:
            return False
        self._take()
        self.client.granted()
        return True

    def _tidy(self) -> None:
        budget = self._budget
        spare = self.limit - max(budget.own_bytes, self.held + self.reserved)
        if spare > 0:
            self.limit -= spare
            budget.free_bytes += spare
        if self.wanted and self._shortage() <= 0:
            self.serve()
        self.busy = self.limit > budget.own_bytes or self.wanted > 0 or self.reserved > 0
        if spare > 0:
            budget.serve()

    def falls_behind(self, now_s: float) -> bool:
        """Whether the client was too slow in the last PACE_SECONDS; to be asked while somebody waits."""
        if self.limit == self._budget.own_bytes or not (self._leaving or self.client.owes_payload()):
            self._pace = None
            return False
        moved = self._sent_bytes + self.client.received_bytes()
        if self._pace is None:
            self._pace = (now_s, moved)
        since_s, before = self._pace
        if now_s - since_s < PACE_SECONDS:
            return False
        self._pace = (now_s, moved)
        return moved - before < PACE_BYTES_MIN

    def rest(self) -> None:
        """Nobody waits: pace is measured anew when somebody does."""
        self._pace = None


class MemoryBudget:
    """All accounts of a server. `begin_waiting` is called when one cannot have its way at once. Both parts together
    have to hold the largest request that is ever asked for."""

    def __init__(self, own_bytes: int = OWN_BYTES, common_bytes: int = COMMON_BYTES) -> None:
        self.own_bytes = own_bytes
        self.common_bytes = common_bytes
        self.free_bytes = common_bytes
        self.accounts: dict[Account, None] = {}
        self.waiting: dict[Account, None] = {}
        """In the order of asking; a dict keeps an order."""
        self.begin_waiting: Callable[[], None] = lambda: None

    def open(self, client: Client, unsent: Callable[[], int]) -> Account:
        """An account for a connection, until its `close`. `unsent`: bytes that its transport has not sent yet."""
        account = Account(self, client, unsent)
        self.accounts[account] = None
        return account

    @property
    def held_bytes(self) -> int:
        """What all connections hold together."""
        return sum(account.held for account in self.accounts)

    def serve(self) -> None:
        """Lend in the order of asking; nobody overtakes a large request."""
        while self.waiting and next(iter(self.waiting)).serve():
            pass

    def look(self, now_s: float) -> None:
        """Call every few milliseconds while somebody waits, and once afterwards."""
        for account in list(self.accounts):
            if account.busy:
                account.settle()
        self.serve()
        for account in list(self.accounts):
            if not self.waiting:
                account.rest()
            elif account.falls_behind(now_s):
                account.client.evict()
