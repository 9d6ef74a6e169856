"""Whom a board believes: enough keys of the newest key set that its root key signed, for this hardware, not older."""

from dataclasses import dataclass

from sled_board.errors import DevelopmentKey, RolledBack, WrongHardware, WrongSignature
from sled_board.image.key_set import KeySet, verifies
from sled_board.image.reader import Image


@dataclass(frozen=True, slots=True)
class Trust:
    """`root_public` (32 raw bytes) is what the board is provisioned with, `key_set` the newest signed set that it kept.

    Without one, the set that an image carries decides. `locked`: development keys do not count.
    """

    root_public: bytes
    key_set: bytes | None = None
    locked: bool = True

    def check(self, image: Image, *, hardware: str, counter_min: int = 0) -> None:
        """Return when `image` may run on `hardware` whose counters have reached `counter_min`.

        An equal counter is allowed: images of one generation replace each other both ways. Raises WrongSignature,
        DevelopmentKey, WrongHardware or RolledBack.
        """
        self._check_signatures(image)
        if hardware not in image.hardware:
            raise WrongHardware(f"it is for {', '.join(image.hardware)}; this board is {hardware}")
        if image.counter < counter_min:
            raise RolledBack(f"its rollback counter is {image.counter}, this board accepts {counter_min} and above")

    def newest_key_set(self, image: Image) -> bytes | None:
        """The newer of the board's set and the image's, signed: what the board keeps once it has confirmed the image.

        Raises WrongSignature when either is not the root key's.
        """
        sets = [data for data in (self.key_set, image.key_set) if data is not None]
        return max(sets, key=lambda data: KeySet.open(data, self.root_public).version, default=None)

    def _check_signatures(self, image: Image) -> None:
        raw = self.newest_key_set(image)
        if raw is None:
            raise WrongSignature("the image carries no key set and the board has none")
        key_set = KeySet.open(raw, self.root_public)
        signers = []
        for key_id, signature in image.signatures:
            key = key_set.key(key_id)
            if key is None:
                continue  # signed by a key that has been rotated out, or is not there yet
            if not verifies(key.public, signature, image.message):
                raise WrongSignature(f"the signature of key {key_id.hex()} is not one of this image")
            signers.append(key)
        needed, of = key_set.threshold, f"{len(key_set.keys)} keys of key set {key_set.version}"
        if len(signers) < needed:
            raise WrongSignature(f"signed by {len(signers)} of the {of}, {needed} must sign")
        released = sum(not key.development for key in signers)
        if self.locked and released < needed:
            raise DevelopmentKey(
                f"signed by {released} of the {of} besides development keys, which do not count on a locked board;"
                f" {needed} must sign"
            )
