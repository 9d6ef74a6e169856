"""Why a head node cannot start, each with what the operator can do about it."""


class HeadError(Exception):
    """The root of these errors; the program prints the text and ends with status 1."""


class StateDirectoryUnusable(HeadError):
    """The state directory is held by another process, or what is in it is not a head's: name another one."""


class CannotListen(HeadError):
    """An address or port of the settings cannot be had: it is no address of this machine, or another program has it."""


class TlsKeysUnusable(HeadError):
    """A certificate, key, CA or file of pre-shared keys cannot be used: the text names the file and what is wrong."""


class NotEnrolled(HeadError):
    """The authority does not know this head: give it a fresh join token."""
