"""The hosts that may update a sled's firmware: a list of NQNs with a DH-HMAC-CHAP secret each (docs/authentication.md).

Whoever may activate firmware may restart a sled, so a name alone counts for nothing: a host on the list has to prove
itself on each queue, and only then its admin queue takes the commands. Other hosts are asked for nothing, and get
nothing.
"""

import stat
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from sled_controller.errors import ManagementHostsUnusable, SecretMalformed
from sled_controller.fabric.dhchap.secret import Secret
from sled_controller.fabric.dhchap.terms import Terms

NQN_CHARS_MAX: Final = 223
HOSTS_MAX: Final = 64
_OTHERS: Final = stat.S_IRWXG | stat.S_IRWXO


class _Host(BaseModel):
    model_config = ConfigDict(extra="forbid")

    nqn: str = Field(pattern=r"^nqn\.", max_length=NQN_CHARS_MAX)
    secret: str
    controller_secret: str | None = None

    def terms(self) -> Terms:
        """Raises SecretMalformed and ValueError."""
        proof = None if self.controller_secret is None else Secret.parse(self.controller_secret)
        return Terms(Secret.parse(self.secret), proof)


class _Hosts(BaseModel):
    model_config = ConfigDict(extra="forbid")

    host: list[_Host] = Field(min_length=1, max_length=HOSTS_MAX)


class ManagementHosts:
    """An `Authenticator`."""

    def __init__(self, known: Mapping[str, Terms]) -> None:
        self._known = known

    @classmethod
    def read(cls, path: Path) -> "ManagementHosts":
        """From a TOML file with a `[[host]]` each, which nobody else may read; raises ManagementHostsUnusable."""
        try:
            if path.stat().st_mode & _OTHERS:
                raise ManagementHostsUnusable(f"{path}: others may read its secrets; chmod 600 it")
            return cls.parse(path.read_bytes(), str(path))
        except OSError as error:
            raise ManagementHostsUnusable(f"{path}: cannot be read: {error.strerror}") from None

    @classmethod
    def parse(cls, data: bytes, source: str) -> "ManagementHosts":
        """From that TOML itself; raises ManagementHostsUnusable, which names `source`."""
        try:
            hosts = _Hosts.model_validate(tomllib.loads(data.decode("utf-8"))).host
        except ValidationError as error:
            where = ".".join(map(str, error.errors()[0]["loc"]))
            raise ManagementHostsUnusable(f"{source}: {where}: {error.errors()[0]['msg']}") from None
        except (ValueError, RecursionError) as error:
            raise ManagementHostsUnusable(f"{source}: is not TOML: {error}") from None
        known: dict[str, Terms] = {}
        for host in hosts:
            try:
                known[host.nqn] = host.terms()
            except (SecretMalformed, ValueError) as error:
                raise ManagementHostsUnusable(f"{source}: {host.nqn}: {error}") from None
        return cls(known)

    @property
    def nqns(self) -> list[str]:
        """Who is on the list, in its order."""
        return list(self._known)

    def terms(self, host_nqn: str) -> Terms | None:
        """On which terms this host is let in; None if it is none of them."""
        return self._known.get(host_nqn)
