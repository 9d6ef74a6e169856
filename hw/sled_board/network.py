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
        if "/" not in address or "%" in text:
            raise ValueError(f"{text[:64]!r} is not {USAGE}")
        interface = ipaddress.ip_interface(address)
        if not _is_host(interface):
            raise ValueError(f"{interface} is no address of a host")
        if not comma:
            return cls(interface)
        gateway = ipaddress.ip_address(router)
        if gateway not in interface.network and not (gateway.version == interface.version and gateway.is_link_local):
            raise ValueError(f"the gateway {gateway} is not in {interface.network}")
        if gateway == interface.ip:
            raise ValueError(f"the gateway {gateway} is the address itself")
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


def _is_host(interface: ipaddress.IPv4Interface | ipaddress.IPv6Interface) -> bool:
    address, network = interface.ip, interface.network
    if address.is_multicast or address.is_unspecified or address == ipaddress.IPv4Address("255.255.255.255"):
        return False
    # All zeros and, of IPv4, all ones mean the network (RFC 1122, 3.2.1.3; RFC 4291, 2.6.1), but for two hosts or one.
    if network.num_addresses <= 2:
        return True
    return address != network.network_address and (network.version == 6 or address != network.broadcast_address)
