"""What a sled's word about an epoch is worth to the authority: only what a credential proves is kept.

A sled that lies, or one that a forged credential reached, would otherwise move a record's epoch to where none follows.
"""

from uuid import UUID

from sled_controller.credential import parse_credential, verify
from sled_controller.errors import CredentialMalformed, CredentialRefused, FencedOff
from sled_controller.keyset import KeySet


def proven_epoch(refusal: FencedOff, volume: UUID, key_set: KeySet) -> int:
    """The epoch of `volume` that the sled's refusal proves; 0 where it proves none.

    A credential whose key is known is verified. One of an older key, which has left the set, cannot be; its key id
    bounds its epoch below those of the newest key, so that believing it costs nothing.
    """
    if refusal.credential is None:
        return 0
    try:
        signed = parse_credential(refusal.credential)
        if signed.credential.key_id in key_set.keys or signed.credential.key_id > max(key_set.keys, default=0):
            verify(signed, key_set)
    except (CredentialMalformed, CredentialRefused):
        return 0
    shown = signed.credential
    return shown.epoch if (shown.volume, shown.epoch) == (volume, refusal.epoch) else 0
