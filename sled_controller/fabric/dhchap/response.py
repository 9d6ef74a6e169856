"""What proves that a secret is known: the response to a challenge, in either direction.

NVM Express Base 2.0, 8.13.5: HMAC(K, Ca || S || T_ID || SC_C || role || NQN of the prover || 00h || NQN of the other).
Ca is the challenge C itself without a Diffie-Hellman exchange, and HMAC(H(shared secret), C) with one.
"""

import hashlib
import hmac
from dataclasses import dataclass

from sled_controller.fabric.dhchap.algorithms import HashId
from sled_controller.fabric.dhchap.messages import NO_SECURE_CHANNEL


@dataclass(frozen=True, slots=True)
class Proof:
    """All that both responses of one authentication have in common; `shared` is empty in the NULL group."""

    host_nqn: str
    subsystem_nqn: str
    hash_id: HashId
    t_id: int
    shared: bytes

    def of_host(self, key: bytes, challenge: bytes, sequence: int) -> bytes:
        """R1, by the host's key."""
        return self._response(key, challenge, sequence, b"HostHost", self.host_nqn, self.subsystem_nqn)

    def of_controller(self, key: bytes, challenge: bytes, sequence: int) -> bytes:
        """R2, by the controller's key."""
        return self._response(key, challenge, sequence, b"Controller", self.subsystem_nqn, self.host_nqn)

    def _response(self, key: bytes, challenge: bytes, sequence: int, role: bytes, own: str, other: str) -> bytes:
        algorithm = self.hash_id.algorithm
        if self.shared:
            session_key = hashlib.new(algorithm, self.shared).digest()
            challenge = hmac.digest(session_key, challenge, algorithm)
        numbers = sequence.to_bytes(4, "little") + self.t_id.to_bytes(2, "little") + bytes([NO_SECURE_CHANNEL])
        return hmac.digest(key, challenge + numbers + role + own.encode() + b"\0" + other.encode(), algorithm)
