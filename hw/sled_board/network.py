"""The network of a sled, as people write it: `dhcp`, or `ADDRESS/PREFIX[,GATEWAY]`."""

import ipaddress
from dataclasses import dataclass
from typing import Final

DHCP: Final = "dhcp"
USAGE: Final = "dhcp|ADDRESS/PREFIX[,GATEWAY]"
ALL_IPV4: Final = "0.0.0.0"
ALL_IPV6: Final = "::"


@dataclass(frozen=True, slots=True)
class Network:
    """`interface` is None where the address comes by DHCP. As a text it is what `parse` takes."""

    interface: ipaddress.IPv4Interface | ipaddress.IPv6Interface | None = None
    gateway: ipaddress.IPv4Address | ipaddress.IPv6Address | None = None

    @classmethod
    def parse(cls, text: str) -> "Network":
        """Raises ValueError, which says what does not fit."""
        if text == DHCP:
            return cls()
        address, comma, router = text.partition(",")
        if "/" not in address or "%" in address:
            raise ValueError(f"{text[:64]!r} is not {USAGE}")
        interface = ipaddress.ip_interface(address)
        gateway = ipaddress.ip_address(router) if comma else None
        if gateway is not None and gateway not in interface.network:
            raise ValueError(f"the gateway {gateway} is not in {interface.network}")
        return cls(interface, gateway)

    def __str__(self) -> str:
        if self.interface is None:
            return DHCP
        address = self.interface.with_prefixlen
        return address if self.gateway is None else f"{address},{self.gateway}"

    @property
    def address(self) -> str | None:
        """The sled's own IP address; None where it gets one by DHCP."""
        return None if self.interface is None else str(self.interface.ip)

    @property
    def all_addresses(self) -> str:
        """What a server listens on to be reached at whatever address the machine has of this kind."""
        return ALL_IPV6 if self.interface is not None and self.interface.version == 6 else ALL_IPV4
