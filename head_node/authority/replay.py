"""Nonces seen lately, so that a captured request cannot be used twice; memory is bounded per key.

Together with the instance, which every run of the authority draws afresh and every signature covers, this also holds
across a restart: what an earlier run has seen names an instance that is gone.

Times are seconds of the authority's count, which no clock that is set can move back or on: nonces forgotten because of
a day that did not pass would be taken again. A head learns the count from the refusal of its first request.
"""

from collections import OrderedDict

from head_node.authority.errors import OtherTime, TooMany, Unauthorised

# How old a request may be by the authority's count, or how far ahead; twice that is how long a nonce is kept.
SKEW_MAX_S = 60
# A head sends a few requests a second; this is hundreds, for as long as nonces are kept.
NONCES_PER_KEY_MAX = 16_384


class ReplayWindow:
    """Accepts each (key, nonce) once while its creation time is close to now.

    Only verified requests of enrolled heads come here, which bounds the number of keys.
    """

    def __init__(self) -> None:
        self._seen: dict[str, OrderedDict[str, int]] = {}

    def check_time(self, created_s: int, now_s: int) -> None:
        """Raises OtherTime when the request is too old, or from the future."""
        if abs(now_s - created_s) > SKEW_MAX_S:
            raise OtherTime(
                now_s,
                f"the request was signed {now_s - created_s} s ago by this authority's count, at most {SKEW_MAX_S} s"
                " either way are accepted; set the clocks",
            )

    def admit(self, key_id: str, nonce: str, created_s: int, now_s: int) -> None:
        """Remember the nonce; raises Unauthorised when it was here before, TooMany when the memory is full."""
        self.check_time(created_s, now_s)
        seen = self._seen.setdefault(key_id, OrderedDict())
        while seen and next(iter(seen.values())) < now_s:
            seen.popitem(last=False)
        if nonce in seen:
            raise Unauthorised("this request was received before")
        if len(seen) >= NONCES_PER_KEY_MAX:
            raise TooMany(f"more than {NONCES_PER_KEY_MAX} requests in {2 * SKEW_MAX_S} s")
        # Kept until it would be refused by its age, whatever the order in which creation times arrive.
        seen[nonce] = now_s + 2 * SKEW_MAX_S

    def forget(self, key_id: str) -> None:
        """Drop the memory of a key that is not accepted any more."""
        self._seen.pop(key_id, None)
