"""Text that others wrote, fit for a log, an event or a terminal."""

from typing import Final

TEXT_CHARS_MAX: Final = 512
REPLACEMENT: Final = "\N{REPLACEMENT CHARACTER}"


def plain(text: str, chars_max: int = TEXT_CHARS_MAX) -> str:
    """The text without control characters (escape sequences, line ends, marks that turn the direction of writing), and
    not longer than `chars_max`."""
    shown = "".join(char if char.isprintable() else REPLACEMENT for char in text[:chars_max])
    return shown if len(text) <= chars_max else shown[:-1] + "…"
