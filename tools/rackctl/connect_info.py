"""How clients reach a volume: ready lines for nvme-cli, /etc/fstab, libvirt and NBD clients.

They are pasted into shells and files, and what is in them comes from records and heads: every word is quoted.
"""

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote
from uuid import UUID
from xml.sax.saxutils import escape

from sled_board.printable import escaped

from rackctl.errors import RackError
from spdk_bindings.nvme import uuid_nqn


@dataclass(frozen=True, slots=True)
class Paths:
    """Where a volume is served: its NQN, and (host, port) of each head by protocol, the primary first.

    `hosts` may connect by NVMe/TCP; `proving` are those of them that prove themselves, and whether heads do so too.
    """

    name: str
    nqn: str
    nvme: tuple[tuple[str, int], ...]
    nbd: tuple[tuple[str, int], ...]
    nbds: tuple[tuple[str, int], ...]
    hosts: tuple[str, ...]
    proving: Mapping[str, bool]

    @property
    def device(self) -> str:
        """The link that udev makes for the namespace, whatever its number: NGUID and UUID are the volume's id."""
        return f"/dev/disk/by-id/nvme-uuid.{self.nqn.rpartition(':')[2]}"

    @property
    def nbd_uris(self) -> list[str]:
        """Each head's, the primary's first; those over TLS behind the others."""
        ways = (("nbd", self.nbd), ("nbds", self.nbds))
        name = quote(self.name, safe="")
        return [f"{scheme}://{_bracketed(host)}:{port}/{name}" for scheme, found in ways for host, port in found]

    def as_json(self) -> dict[str, Any]:
        """For programs."""
        return {
            "name": self.name,
            "nqn": self.nqn,
            "hosts": list(self.hosts),
            "proving": {host: list(_secrets(both_ways)) for host, both_ways in self.proving.items()},
            "nvme": [{"address": host, "port": port} for host, port in self.nvme],
            "nbd": self.nbd_uris,
            "device": self.device,
        }

    def as_text(self) -> str:
        """For people to copy from."""
        how = "by NVMe/TCP with multipath: connect to every head" if self.nvme else "not exported by NVMe/TCP"
        parts = [_comment(f"volume {self.name}, {how}")]
        to = [("-t", "tcp", "-a", host, "-s", str(port)) for host, port in self.nvme]
        parts += [_line("nvme", "connect", *address, "-n", self.nqn, "--disable-sqflow") for address in to]
        if to:
            parts += ["", "# or let nvme-cli find all volumes of the rack that admit this host"]
            parts += [_line("nvme", verb, *to[0]) for verb in ("discover", "connect-all")]
        if self.hosts:
            parts += ["", _comment(f"hosts that may connect: {' '.join(self.hosts)}")]
        else:
            admit = f"{_line('rackctl', 'volume', 'hosts', 'add', self.name)} $(cat /etc/nvme/hostnqn)"
            parts += ["", f"# no host may connect yet: {admit}"]
        if self.proving:
            parts += ["", "# these prove themselves: on each line they need the secrets that the volume was given"]
        for host, both_ways in self.proving.items():
            parts.append(_comment(f"{host}: {' '.join(f'{option}=DHHC-1:...' for option in _secrets(both_ways))}"))
        parts += ["", "# /etc/fstab, once there is a file system", f"{self.device} /mnt ext4 _netdev,nofail 0 2"]
        parts += ["", "# libvirt"]
        parts += ["<disk type='block' device='disk'>", "  <driver name='qemu' type='raw' cache='none' io='native'/>"]
        parts += [
            f"  <source dev='{escape(self.device, {chr(39): '&apos;'})}'/>",
            "  <target dev='vda' bus='virtio'/>",
            "</disk>",
        ]
        parts += ["", "# by NBD" if self.nbd_uris else "# not exported by NBD, or no head serves it as the volume asks"]
        parts += self.nbd_uris
        return "\n".join(parts)


def paths_of(record: dict[str, Any], heads: list[dict[str, Any]], proofs: Mapping[str, dict[str, Any]]) -> Paths:
    """From a volume's record, the rack's heads and what is asked of hosts, all as the authority shows them.

    Raises RackError.
    """
    members = [record["primary"], *record["heads"], *(member["head"] for member in record["current"])]
    known = {head["id"]: head for head in heads if not head["revoked"]}
    ordered = [known[head] for head in dict.fromkeys(members) if head in known]
    if not ordered:
        raise RackError(f"volume {record['name']}: none of its heads is known: wait until one is enrolled")
    nbd = record.get("nbd", "on")
    return Paths(
        name=record["name"],
        nqn=uuid_nqn(_volume_id(record["volume"])),
        nvme=_addresses(ordered, "nvme") if record.get("nvme", True) else (),
        nbd=_addresses(ordered, "nbd") if nbd == "on" and not proofs else (),
        nbds=_addresses(ordered, "nbds") if nbd != "off" else (),
        hosts=tuple(record["hosts"]),
        proving={host: bool(proof["both_ways"]) for host, proof in proofs.items()},
    )


def _volume_id(text: str) -> UUID:
    try:
        return UUID(text)
    except ValueError:
        raise RackError(f"the authority says that a volume has the id {text!r:.80}, which is no UUID") from None


def _line(*words: str) -> str:
    """A command that a shell reads as these words and nothing else."""
    return escaped(shlex.join(words))


def _comment(text: str) -> str:
    return f"# {escaped(text)}"


def _secrets(both_ways: bool) -> tuple[str, ...]:
    """The options of nvme-cli for them."""
    return ("--dhchap-secret", "--dhchap-ctrl-secret") if both_ways else ("--dhchap-secret",)


def _addresses(heads: list[dict[str, Any]], service: str) -> tuple[tuple[str, int], ...]:
    found = (head["addresses"].get(service) for head in heads)
    return tuple((str(address[0]), int(address[1])) for address in found if address is not None)


def _bracketed(host: str) -> str:
    return f"[{quote(host, safe=':.')}]" if ":" in host else quote(host)
