# ruff: noqa: E501 (the edits quote lines of the sources)
"""Rules of the exports, dropped."""

from mutant import EXPORT, NBD_SERVER, RELAYED, one

EXPORTS = (
    one(
        "gone-clients-served", "relay: unadmitted requests of a peer that is gone are dropped",
        "head_node/export/peer.py",
        "    return _state(transport) != _TCP_ESTABLISHED\n", "    return False\n", EXPORT,
    ),
    one(
        "ended-clients-served", "relay: what waits in the volume is not begun for a client that closed its side",
        NBD_SERVER,
        "        if self.phase is Phase.ENDED or (self.phase is Phase.ACTIVE and self._peer_gone()):\n",
        "        if self.phase is Phase.ACTIVE and self._peer_gone():\n", EXPORT,
    ),
    one(
        "limits-forgotten-at-the-end", "relay: what a bound keeps back is not begun for a client that closed its side",
        RELAYED, "        if core.abandoned or (self._client_closed and core.limited):\n", "        if core.abandoned:\n",
        EXPORT,
    ),
    one(
        "half-close-ends-at-once", "NBD: a client that closes its side gets the answers to what was begun", NBD_SERVER,
        "        if self.phase is Phase.ACTIVE and not self.limited and self._volume.ready():\n", "        if False:\n",
        EXPORT,
    ),
    one(
        "relay-drops-at-end-of-file", "relay: a client's end reaches the primary behind what it sent", RELAYED,
        "        self._input_over = True\n        self._note_closed()\n        self._link.end()\n",
        "        self._link.lose(\"the client is gone\")\n", EXPORT,
    ),
    one(
        "turns-share-is-a-bound", "NBD: a turn's share keeps nothing back for good", "head_node/export/server.py",
        " and (core.limited or not peer_has_closed(self._transport)):\n", ":\n", EXPORT,
    ),
    one(
        "hints-round-outward", "NBD: a trim forgets whole blocks only", "head_node/export/requests.py",
        "    start, end = (offset + _BLOCK_MASK) & ~_BLOCK_MASK, (offset + length) & ~_BLOCK_MASK\n",
        "    start, end = offset & ~_BLOCK_MASK, (offset + length + _BLOCK_MASK) & ~_BLOCK_MASK\n", EXPORT,
    ),
    one(
        "hints-need-alignment", "NBD: a hint of any alignment succeeds", "head_node/export/requests.py",
        " & _BLOCK_MASK and command not in _HINTS:\n", " & _BLOCK_MASK:\n", EXPORT,
    ),
    one(
        "vanished-clients-stay", "NBD: a place comes free when the client's machine has vanished",
        "head_node/export/server.py", "        if has_vanished(self._transport, silence_s):\n", "        if False:\n", EXPORT,
    ),
    one(
        "closed-clients-stay", "NBD: a client that closed its side keeps its place for a stated time only",
        "head_node/export/server.py", "            and min(still_s, now_s - self._closed_s) > CLOSED_SECONDS_MAX\n", "            and False\n", EXPORT,
    ),
    one(
        "goodbye-unread-for-ever", "relay: a client that disconnected and reads nothing gives its place back", RELAYED,
        "        if finished and still_s > self._peer_silence_s:\n",
        "        if False:\n", EXPORT,
    ),
    one(
        "slow-readers-cut", "NBD: a client that is alive may read as slowly as it likes", "head_node/export/server.py",
        ", unread_too=False)\n", ")\n", EXPORT,
    ),
    one(
        "relay-closes-softly", "relay: ended by reset, so that nothing unsent arrives later", "head_node/export/peer.py",
        "            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_RESET)\n", "            pass\n", EXPORT,
    ),
    one(
        "relay-takes-late-frames", "relay: what comes after too long a silence is not looked at", "head_node/export/relay.py",
        "        if self.closed or self._silent():\n            return\n        self._heard_ns", "        if self.closed:\n"
        "            return\n        self._heard_ns", EXPORT,
    ),
)  # fmt: skip
