"""Everything that this package raises, each with what the caller can do about it."""


class BoardError(Exception):
    """Base of all errors of this package."""


class ImageError(BoardError):
    """The firmware image is not to be used; what runs now stays what it is."""


class DamagedImage(ImageError):
    """These bytes are no whole firmware image: truncated, changed, or of a format not known here. Copy it again."""


class WrongSignature(ImageError):
    """Too few keys that this board trusts have signed the image: have it signed with keys of the current key set."""


class DevelopmentKey(WrongSignature):
    """Only development keys make up the number of signatures, and the board is locked: use a release image."""


class WrongHardware(ImageError):
    """The image is for other boards; take the one built for this one."""


class RolledBack(ImageError):
    """The image's rollback counter is below what the board has seen; take a newer image."""


class ImageFieldRefused(ImageError):
    """A field does not fit into the image, the key set or the signature that is to be made; `reason` says which."""


class SigningFailed(ImageError):
    """A key or an external signer gave no signature that verifies; nothing was changed."""


class SlotRefused(BoardError):
    """This cannot happen to a slot in its state; nothing was changed. The text says which slot and why."""


class SlotStateLost(BoardError):
    """Neither copy of the slot state can be trusted: look at the images in the slots, then set the state anew."""


class FirmwareStoreUnusable(BoardError):
    """The file that describes a board's firmware store cannot be used; the text names the key and what would fit."""
