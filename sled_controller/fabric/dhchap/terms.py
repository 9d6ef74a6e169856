"""On which terms a host is let in, and who says so."""

from dataclasses import dataclass
from typing import Final, Protocol

from sled_controller.fabric.dhchap.algorithms import GroupId, HashId
from sled_controller.fabric.dhchap.secret import Secret

GROUP_CEILING: Final = GroupId.FFDHE4096
"""Each one above costs twice as much as the one before (docs/authentication.md)."""


@dataclass(frozen=True, slots=True)
class Terms:
    """The host's secret, the controller's if the host may ask for its proof, and the weakest algorithms that count.

    Of what a host offers the weakest that reaches the floor is taken, and a group above the ceiling only if it is the
    floor: what a handshake costs is said by the terms, not by the host.
    Two equal secrets are no two secrets: a host could answer with what the controller proved. Raises ValueError.
    """

    secret: Secret
    controller_secret: Secret | None = None
    hash_floor: HashId = HashId.SHA256
    group_floor: GroupId = GroupId.FFDHE2048

    def __post_init__(self) -> None:
        if self.controller_secret is not None and self.controller_secret.key == self.secret.key:
            raise ValueError("the secrets of the host and of the controller have to differ")

    @property
    def hashes(self) -> tuple[HashId, ...]:
        """The hashes that count, weakest first."""
        return tuple(each for each in HashId if each >= self.hash_floor)

    @property
    def groups(self) -> tuple[GroupId, ...]:
        """The groups that count, weakest first: what a host offers."""
        return tuple(each for each in GroupId if each >= self.group_floor)

    @property
    def groups_taken(self) -> tuple[GroupId, ...]:
        """Those of them that a controller takes from a host's offer."""
        return tuple(each for each in self.groups if each <= max(self.group_floor, GROUP_CEILING))


class Authenticator(Protocol):
    """A subsystem's word on its hosts."""

    def terms(self, host_nqn: str) -> Terms | None:
        """The terms for `host_nqn`, None if it need not (and cannot) authenticate; asked at each handshake."""
