"""A second opinion on reservations: the rules once more, as sentences over sets, without a thought of speed."""

# Rights by type: of the holder, of registrants that do not hold it, of everybody else ("r" read, "w" write).
RIGHTS = {
    0: ("rw", "rw", "rw"),
    1: ("rw", "r", "r"),
    2: ("rw", "", ""),
    3: ("rw", "rw", "r"),
    4: ("rw", "rw", ""),
    5: ("rw", "rw", "r"),
    6: ("rw", "rw", ""),
}
ALL_REGISTRANTS = {5, 6}
TELLS_OF_RELEASE = {3, 4, 5, 6}


class Model:
    """One namespace. Commands return (status, what was said to whom) with statuses ok, conflict, invalid."""

    def __init__(self) -> None:
        self.generation = 0
        self.type = 0
        self.keys: dict[bytes, int] = {}
        self.holders: set[bytes] = set()
        self.persist = True
        self.said: set[tuple[bytes, str]] = set()

    def rights(self, host: bytes) -> str:
        """What `host` may do: some of "rw"."""
        holder, registrant, other = RIGHTS[self.type]
        return holder if host in self.holders else registrant if host in self.keys else other

    def register(self, host: bytes, action: str, current: int, new: int, ignore: bool, persist: bool | None) -> str:
        self.said = set()
        if action == "register" and self.keys.get(host, new) != new:
            return "conflict"
        if action == "unregister" and (host not in self.keys or not (ignore or self.keys[host] == current)):
            return "conflict"
        if action == "replace" and not ignore and (host not in self.keys or self.keys[host] != current):
            return "conflict"
        if persist is not None:
            self.persist = persist
        self.generation += 1
        if action == "unregister":
            self._forget(host)
            if self.type and not self.holders:
                if self.type in TELLS_OF_RELEASE:
                    self.said |= {(other, "released") for other in self.keys}
                self.type = 0
        else:
            self.keys[host] = new
            if self.type in ALL_REGISTRANTS:
                self.holders.add(host)
        return "ok"

    def acquire(self, host: bytes, type_: int, key: int) -> str:
        self.said = set()
        if host not in self.keys or self.keys[host] != key:
            return "conflict"
        if not self.type:
            self._hold(host, type_)
        elif host not in self.holders or self.type != type_:
            return "conflict"
        return "ok"

    def preempt(self, host: bytes, type_: int, key: int, victim_key: int) -> str:
        self.said = set()
        if host not in self.keys or self.keys[host] != key:
            return "conflict"
        before = self.type
        victims = {other for other, theirs in self.keys.items() if theirs == victim_key}
        if before in ALL_REGISTRANTS and victim_key == 0:
            victims = set(self.keys) - {host}
            takes = True
        elif before in ALL_REGISTRANTS or not before:
            takes = False
        else:
            (holder,) = self.holders
            takes = holder in victims
            if takes:
                victims.discard(host)
            elif victim_key == 0:
                return "invalid"
        if not victims and not takes:
            return "conflict"
        for victim in victims:
            self._forget(victim)
            if victim != host:
                self.said.add((victim, "registration preempted"))
        if takes:
            self._hold(host, type_)
        elif not self.holders:
            self.type = 0
        if before and self.type != before:
            self.said |= {(other, "released") for other in self.keys if other != host}
        self.generation += 1
        return "ok"

    def release(self, host: bytes, type_: int, key: int) -> str:
        self.said = set()
        if host not in self.keys or self.keys[host] != key:
            return "conflict"
        if host in self.holders:
            if type_ != self.type:
                return "invalid"
            if self.type in TELLS_OF_RELEASE:
                self.said |= {(other, "released") for other in self.keys if other != host}
            self.type = 0
            self.holders.clear()
        return "ok"

    def clear(self, host: bytes, key: int) -> str:
        self.said = set()
        if host not in self.keys or self.keys[host] != key:
            return "conflict"
        self.said |= {(other, "reservation preempted") for other in self.keys if other != host}
        self.type = 0
        self.keys.clear()
        self.holders.clear()
        self.generation += 1
        return "ok"

    def _forget(self, host: bytes) -> None:
        del self.keys[host]
        self.holders.discard(host)

    def _hold(self, host: bytes, type_: int) -> None:
        self.type = type_
        self.holders = set(self.keys) if type_ in ALL_REGISTRANTS else {host}
