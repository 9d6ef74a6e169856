"""Addresses that nodes announce: an IP address or a host name, and nothing that a shell or a terminal reads otherwise.

Host names are those of RFC 1123, 2.1, and of IDNA, which are kept in their ASCII form. What getaddrinfo(3) takes for an
IPv4 address in other spellings (127.1, 0x7f000001) is neither.
"""

import ipaddress
import re
from typing import Final

HOST_CHARS_MAX: Final = 253
_LABEL: Final = re.compile(r"(?!-)[a-z0-9-]{1,63}(?<!-)", re.IGNORECASE)
_NUMBER: Final = re.compile(r"[0-9]+|0x[0-9a-f]*", re.IGNORECASE)
_ZONE: Final = re.compile(r"[a-zA-Z0-9._-]{1,32}")


class HostMalformed(ValueError):
    """Neither an IP address nor a host name: announce one that others can connect to."""


def checked_host(text: str) -> str:
    """`text` as it is kept; raises HostMalformed."""
    if len(text) > HOST_CHARS_MAX:
        raise HostMalformed(f"a host of {len(text)} characters, at most {HOST_CHARS_MAX}")
    return text if _is_address(text) else _checked_name(text)


def _is_address(text: str) -> bool:
    address, percent, zone = text.partition("%")
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return False
    return not percent or (found.version == 6 and _ZONE.fullmatch(zone) is not None)


def _checked_name(text: str) -> str:
    try:
        name = text.encode("idna").decode("ascii")
    except UnicodeError:
        name = ""
    labels = name.removesuffix(".").split(".")
    if (
        len(name) > HOST_CHARS_MAX
        or any(_LABEL.fullmatch(label) is None for label in labels)
        or _NUMBER.fullmatch(labels[-1]) is not None
    ):
        raise HostMalformed(f"{text!a:.80} is neither an IP address nor a host name (RFC 1123)")
    return name
