"""What can go wrong in the metadata store, and what the caller can do about it."""


class StoreError(Exception):
    """Base of the store's errors."""


class RecordMalformed(StoreError):
    """A stored or received record does not have its form: the store is damaged or of another version."""

    def __init__(self, what: str, cause: object) -> None:
        super().__init__(f"{what} is malformed: {cause!r}; restore the store from a backup or match the versions")


class CompareFailed(StoreError):
    """Another transaction changed a compared key first, and nothing was put: read again and decide anew."""

    def __init__(self, key: str, expected: int, found: int) -> None:
        super().__init__(f"key {key} is at revision {found}, not {expected}")
        self.key = key
        self.expected = expected
        self.found = found


class OutcomeUnknown(StoreError):
    """The transaction may or may not be durable: read the keys again before anything depends on them (F4)."""


class StoreFailed(StoreError):
    """The store cannot be used until the cause (a full or failing disk) is gone; it tries again on each call."""


class StoreLocked(StoreError):
    """Another process has this store open: stop that one first."""


class StoreUnsafe(StoreError):
    """The database does not confirm the durability that was asked for, so it is not used."""
