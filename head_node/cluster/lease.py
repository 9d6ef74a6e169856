"""The lease (F7), both sides of it, as arithmetic on times handed in. Nothing here reads a clock.

All times are nanoseconds of a clock that counts suspend (CLOCK_BOOTTIME). A primary counts from the moment it *sent*
the heartbeat that a member answered; a member counts from the moment it received one. As a heartbeat is received
after it was sent, the primary's right to serve (TTL - guard) always ends before the member's promise (TTL) does.
"""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final
from uuid import UUID

from head_node.cluster.errors import SealRefused

MS: Final = 1_000_000
"""Nanoseconds in a millisecond."""

STALLED_TTLS: Final = 3

HEARTBEATS_KEPT_MAX: Final = 64
"""Unanswered heartbeats remembered per member: more than fit in any sane TTL; an answer to an older one is void."""


@dataclass(frozen=True, slots=True)
class LeaseTerms:
    """The four times of a lease, in milliseconds; every head of a rack must use the same TTL."""

    ttl_ms: int = 1000
    guard_ms: int = 100
    heartbeat_ms: int = 150
    silence_ms: int = 600

    def __post_init__(self) -> None:
        if not 0 < self.heartbeat_ms * 2 <= self.silence_ms < self.ttl_ms - self.guard_ms:
            raise ValueError(
                "lease times must satisfy 2 * heartbeat <= silence < TTL - guard, so that a live primary removes a "
                f"silent member before its own lease ends; got heartbeat {self.heartbeat_ms} ms, silence "
                f"{self.silence_ms} ms, TTL {self.ttl_ms} ms, guard {self.guard_ms} ms"
            )

    @classmethod
    def scaled(cls, ttl_ms: int) -> "LeaseTerms":
        """The default proportions at another TTL."""
        return cls(ttl_ms, ttl_ms // 10, ttl_ms * 15 // 100, ttl_ms * 6 // 10)

    @property
    def serve_ns(self) -> int:
        """How long after sending an answered heartbeat a primary may serve."""
        return (self.ttl_ms - self.guard_ms) * MS

    @property
    def ttl_ns(self) -> int:
        return self.ttl_ms * MS

    @property
    def silence_ns(self) -> int:
        return self.silence_ms * MS

    @property
    def stalled_ns(self) -> int:
        """How long a member that answers heartbeats may owe durability: well above any healthy drive's worst sync."""
        return STALLED_TTLS * self.ttl_ns


class _Member:
    __slots__ = ("answered_ns", "sent")

    def __init__(self) -> None:
        self.sent: deque[tuple[int, int]] = deque(maxlen=HEARTBEATS_KEPT_MAX)
        self.answered_ns: int | None = None


class PrimaryLease:
    """What a primary knows of its right to serve.

    `required` are the other members of `current` as the primary knows it (additions before their put, removals after
    its success). The lease is valid until the earliest of: the term of the credential, and for each required member
    the sending time of the newest answered heartbeat + TTL - guard.
    """

    def __init__(self, terms: LeaseTerms, *, now_ns: int, term_end_ns: int) -> None:
        self.terms = terms
        self._started_ns = now_ns
        self._term_end_ns = term_end_ns
        self._given_up = False
        self._required: frozenset[UUID] = frozenset()
        self._members: dict[UUID, _Member] = {}
        self._sequence = 0
        self.end_ns = term_end_ns
        """The lease is valid strictly before this time."""

    def valid(self, now_ns: int) -> bool:
        """Whether the primary may serve at `now_ns`, which must be read after the request's last byte."""
        return now_ns < self.end_ns

    def require(self, members: Iterable[UUID]) -> None:
        """From now on only these members count (F5: additions before their put, removals after its success)."""
        self._required = frozenset(members)
        for member in self._required:
            self._members.setdefault(member, _Member())
        self._recompute()

    def extend_term(self, term_end_ns: int) -> None:
        """A renewed credential: its term ends later. A shorter one changes nothing."""
        if not self._given_up:
            self._term_end_ns = max(self._term_end_ns, term_end_ns)
        self._recompute()

    def end_term(self) -> None:
        """The primary gives the lease up (hand-over, fenced off, revoked): it never becomes valid again."""
        self._given_up = True
        self._term_end_ns = 0
        self._recompute()

    def heartbeat_sent(self, member: UUID, now_ns: int) -> int:
        """Note a heartbeat about to be sent; returns its sequence number, unique for this lease."""
        self._sequence += 1
        self._members.setdefault(member, _Member()).sent.append((self._sequence, now_ns))
        return self._sequence

    def promised(self, member: UUID, sequence: int) -> bool:
        """Note a member's answer. A promise for a heartbeat that is unknown, answered or older counts for nothing."""
        known = self._members.get(member)
        if known is None:
            return False
        sent_ns = next((at for candidate, at in known.sent if candidate == sequence), None)
        if sent_ns is None:
            return False
        while known.sent and known.sent[0][0] <= sequence:
            known.sent.popleft()
        known.answered_ns = sent_ns
        self._recompute()
        return True

    def link_lost(self, member: UUID) -> None:
        """The link broke: heartbeats that were on it can no longer be answered."""
        known = self._members.get(member)
        if known is not None:
            known.sent.clear()

    def fresh(self, member: UUID, now_ns: int) -> bool:
        """Whether requiring `member` now would leave the lease valid."""
        known = self._members.get(member)
        return known is not None and known.answered_ns is not None and now_ns < known.answered_ns + self.terms.serve_ns

    def silent(self, now_ns: int) -> list[UUID]:
        """Required members that have not answered for the silence time: candidates for removal."""
        limit = now_ns - self.terms.silence_ns
        return [
            member
            for member in sorted(self._required)
            if max(self._members[member].answered_ns or 0, self._started_ns) <= limit
        ]

    def lags_ms(self, now_ns: int) -> dict[UUID, int]:
        """Milliseconds since each required member's newest answered heartbeat was sent, for status pages."""
        return {
            member: (now_ns - (self._members[member].answered_ns or self._started_ns)) // MS
            for member in self._required
        }

    def _recompute(self) -> None:
        end = self._term_end_ns
        for member in self._required:
            answered = self._members[member].answered_ns
            end = min(end, 0 if answered is None else answered + self.terms.serve_ns)
        self.end_ns = end


class MemberPromise:
    """What a member owes to a primary: not to seal its log before its newest promise has run out.

    A member that just started may have promised something before; so it also waits one TTL from its own start.
    """

    def __init__(self, terms: LeaseTerms, *, started_ns: int) -> None:
        self._terms = terms
        self._bound_until_ns = started_ns + terms.ttl_ns
        self._sealed = False

    @property
    def sealed(self) -> bool:
        return self._sealed

    @property
    def bound_until_ns(self) -> int:
        """The first moment at which sealing is allowed."""
        return self._bound_until_ns

    def promise(self, now_ns: int) -> bool:
        """Answer a heartbeat received at `now_ns`; False: sealed, so nothing may be answered."""
        if self._sealed:
            return False
        self._bound_until_ns = max(self._bound_until_ns, now_ns + self._terms.ttl_ns)
        return True

    def defer(self, until_ns: int) -> None:
        """Do not seal before `until_ns`, though nothing was promised: somebody else is to have a turn."""
        self._bound_until_ns = max(self._bound_until_ns, until_ns)

    def released(self, now_ns: int) -> None:
        """The primary of the newest epoch said that it has stopped serving for good (hand-over): nothing is owed.

        It could only become primary after every older lease had ended, so there is no other to wait for.
        """
        self._bound_until_ns = min(self._bound_until_ns, now_ns)

    def may_seal(self, now_ns: int) -> bool:
        return now_ns >= self._bound_until_ns

    def seal(self, now_ns: int) -> None:
        """Promise nothing from now on. Raises SealRefused while a promise still binds."""
        if not self.may_seal(now_ns):
            raise SealRefused(f"a promise binds this member for another {(self._bound_until_ns - now_ns) // MS} ms")
        self._sealed = True

    def unseal(self) -> None:
        """The takeover came to nothing (somebody else is primary, or nobody could be asked): promise again."""
        self._sealed = False
