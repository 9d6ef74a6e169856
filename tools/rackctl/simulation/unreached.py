"""What no simulated rack reaches, and why that is no hole. A name that ends with `*` stands for all that begin so."""

from typing import Final

UNREACHED: Final[dict[str, tuple[str, ...]]] = {}
"""By reason, the names."""


def reason_for(name: str) -> str | None:
    """Why `name` need not be reached, None if it must be."""
    for reason, names in UNREACHED.items():
        for known in names:
            if name == known or (known.endswith("*") and name.startswith(known[:-1])):
                return reason
    return None
