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


class WrongPython(ImageError):
    """The image is for another Python than the base system has: provision a newer base system, or build it for this."""


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


class BoardUnknown(BoardError):
    """There is no description of that name; the text lists those that there are."""


class BoardInvalid(BoardError):
    """A board description does not hold together; the text names the file, the key and what is wrong with it."""


class ConsoleError(BoardError):
    """The board's console did not do what was expected; the text shows what was seen on it and what to try."""


class PortUnavailable(BoardError):
    """The serial port cannot be had: none there, several, not permitted, or in use; the text says which."""


class PortLost(ConsoleError):
    """The serial port went away: the cable, the converter or the server at its other end. Flash again to go on."""


class BoardSilent(ConsoleError):
    """The board said nothing, or nothing that is known, within the time; the text shows what came."""


class BoardReset(ConsoleError):
    """The board started anew in the middle of it: power or a watchdog. Flash again to go on."""


class CommandRefused(ConsoleError):
    """U-Boot's command ended with a status other than 0; the text is what it said."""


class TransferFailed(ConsoleError):
    """A file did not get across by YMODEM; the text says why. Flash again to go on, at a lower rate if that helps."""


class FlashRefused(BoardError):
    """The image or the board's state forbids it; nothing was changed. The text says what would help."""


class ContentDiffers(BoardError):
    """The board's storage does not give back what was written to it; what was confirmed is untouched."""


class FirmwareUnhealthy(BoardError):
    """The board did not find the new firmware healthy and goes back, or will, to what it ran before."""


class CommandNotDone(BoardError):
    """A command of the sled's console that it does not carry out; nothing was changed. The text says why."""
