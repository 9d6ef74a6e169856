"""The secrets of a volume's hosts, as the store keeps them and as heads get them sealed.

Apart from the volume record, which people and other heads read.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self
from uuid import UUID

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from head_node.sealing import SealBroken, seal, unseal
from head_node.store.errors import RecordMalformed
from sled_controller.environment import Entropy
from sled_controller.errors import SecretMalformed
from sled_controller.fabric.dhchap.algorithms import GroupId, HashId
from sled_controller.fabric.dhchap.secret import Secret
from sled_controller.fabric.dhchap.terms import Terms


@dataclass(frozen=True, slots=True)
class HostSecrets:
    """By host NQN, on which terms it may connect; hosts that need not prove themselves are not in it."""

    volume: UUID
    terms: Mapping[str, Terms] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """With the secrets in their written form."""
        return {
            "volume": str(self.volume),
            "hosts": {
                nqn: {
                    "secret": terms.secret.text(),
                    "controller_secret": None if terms.controller_secret is None else terms.controller_secret.text(),
                    "hash": terms.hash_floor.name.lower(),
                    "group": terms.group_floor.name.lower(),
                }
                for nqn, terms in self.terms.items()
            },
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Raises RecordMalformed, which repeats no secret."""
        try:
            return cls(UUID(data["volume"]), {str(nqn): _terms(entry) for nqn, entry in data["hosts"].items()})
        except (KeyError, TypeError, ValueError, AttributeError, SecretMalformed) as error:
            raise RecordMalformed("secrets of hosts", type(error).__name__) from None


def sealed_for(public: bytes, secrets: HostSecrets, entropy: Entropy) -> bytes:
    """For the view of the head with that Ed25519 key."""
    return seal(public, _purpose(secrets.volume), json.dumps(secrets.to_json()).encode(), entropy)


def unsealed(key: Ed25519PrivateKey, volume: UUID, sealed: bytes) -> HostSecrets:
    """What the view of the head with that key holds for `volume`; raises RecordMalformed."""
    try:
        return HostSecrets.from_json(json.loads(unseal(key, _purpose(volume), sealed)))
    except (SealBroken, ValueError) as error:
        raise RecordMalformed("sealed secrets of hosts", type(error).__name__) from None


def _purpose(volume: UUID) -> bytes:
    return b"secrets of hosts of volume " + volume.bytes


def _terms(entry: Mapping[str, Any]) -> Terms:
    controller_secret = entry["controller_secret"]
    return Terms(
        Secret.parse(entry["secret"]),
        None if controller_secret is None else Secret.parse(controller_secret),
        HashId[str(entry["hash"]).upper()],
        GroupId[str(entry["group"]).upper()],
    )
