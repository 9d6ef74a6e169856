"""What a sled is told once: its name, the root key that it is locked to, and its network."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from sled_board import network
from sled_board.errors import CommandNotDone
from sled_board.network import Network

USAGE: Final = f"name=N root=64HEX network={network.USAGE}"
_KEYS: Final = ("name", "root", "network")
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_KEY: Final = re.compile(r"[0-9a-fA-F]{64}")


@dataclass(frozen=True, slots=True)
class Provisioning:
    """`root_public` (32 raw bytes) signs the key sets of heads."""

    name: str
    root_public: bytes
    network: Network

    @classmethod
    def of(cls, name: str, root: str, network: str) -> "Provisioning":
        """Raises CommandNotDone, which says what does not fit."""
        if not _NAME.fullmatch(name):
            raise CommandNotDone(
                "name: is not 1 to 64 letters, digits, and after the first one dots, dashes and underscores"
            )
        if not _KEY.fullmatch(root):
            raise CommandNotDone(f"root: is not 64 hexadecimal digits, but {len(root)} characters")
        if not any(bytes.fromhex(root)):
            raise CommandNotDone("root: is no key, but zeros")
        try:
            return cls(name, bytes.fromhex(root), Network.parse(network))
        except ValueError as error:
            raise CommandNotDone(f"network: {error}") from None

    @classmethod
    def parse(cls, words: Sequence[str]) -> "Provisioning":
        """From the words of the command; raises CommandNotDone."""
        given: dict[str, str] = {}
        for word in words:
            key, equals, value = word.partition("=")
            if not equals or key not in _KEYS or key in given:
                raise CommandNotDone(f"{word[:32]!r}: provision {USAGE}")
            given[key] = value
        if len(given) < len(_KEYS):
            raise CommandNotDone(f"provision {USAGE}")
        return cls.of(**given)
