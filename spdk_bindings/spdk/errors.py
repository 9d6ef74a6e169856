"""What goes wrong with SPDK before there is a drive; a drive's own errors are NVMe statuses."""


class SpdkError(Exception):
    """Something about SPDK or a drive that keeps it from being used; the text says what to do."""


class BuildError(SpdkError):
    """The shim cannot be built: SPDK, a compiler or cffi is missing, or the compiler refused."""


class NotBuiltError(SpdkError):
    """The shim is not there: `python -m spdk_bindings.spdk.build` makes it where SPDK is installed."""


class EnvironmentStartError(SpdkError):
    """SPDK does not start: hugepages, permissions or settings."""


class AttachError(SpdkError):
    """No drive that can be used is at that address."""


class PoolExhausted(SpdkError, MemoryError):
    """The memory for DMA has no room for this allocation; give the environment more."""
