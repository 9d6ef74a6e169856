"""What a sled is told once: its name, the root key that it is locked to, and its network."""

import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from sled_board.errors import CommandNotDone

USAGE: Final = "name=N root=64HEX network=dhcp|ADDRESS/PREFIX[,GATEWAY]"
DHCP: Final = "dhcp"
_KEYS: Final = ("name", "root", "network")
_NAME: Final = re.compile(r"[A-Za-z0-9._-]{1,64}")
_KEY: Final = re.compile(r"[0-9a-fA-F]{64}")


@dataclass(frozen=True, slots=True)
class Provisioning:
    """`root_public` (32 raw bytes) signs the key sets of heads. `network` is `dhcp` or ADDRESS/PREFIX[,GATEWAY]."""

    name: str
    root_public: bytes
    network: str

    @classmethod
    def of(cls, name: str, root: str, network: str) -> "Provisioning":
        """Raises CommandNotDone, which says what does not fit."""
        if not _NAME.fullmatch(name):
            raise CommandNotDone("name: is not 1 to 64 letters, digits, dots, dashes and underscores")
        if not _KEY.fullmatch(root):
            raise CommandNotDone(f"root: is not 64 hexadecimal digits, but {len(root)} characters")
        return cls(name, bytes.fromhex(root), _network(network))

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

    @property
    def address(self) -> str | None:
        """The sled's own IP address; None where it gets one by DHCP."""
        return None if self.network == DHCP else self.network.partition("/")[0]


def _network(text: str) -> str:
    if text == DHCP:
        return DHCP
    address, comma, gateway = text.partition(",")
    try:
        interface = ipaddress.ip_interface(address)
        router = ipaddress.ip_address(gateway) if comma else None
    except ValueError as error:
        raise CommandNotDone(f"network: {error}") from None
    if "/" not in address or "%" in address:
        raise CommandNotDone("network: write dhcp, or ADDRESS/PREFIX and perhaps ,GATEWAY")
    if router is not None and router not in interface.network:
        raise CommandNotDone(f"network: the gateway {router} is not in {interface.network}")
    return f"{interface.with_prefixlen},{router}" if router is not None else interface.with_prefixlen
