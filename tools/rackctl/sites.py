"""Where the process of a node runs: at which address, behind which command, with what more in its environment."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from rackctl.launch import Command
from rackctl.ports import HOST
from rackctl.state import Node


@dataclass(frozen=True, slots=True)
class Site:
    """The process listens at `host`; other nodes find it at `shown`, which is the same unless somebody is in between.

    `prefix` ends in running what follows it, as nsenter(1) does, without another process.
    """

    host: str = HOST
    shown: str = ""
    prefix: Sequence[str] = ()
    environ: Mapping[str, str] = field(default_factory=dict)

    @property
    def known_as(self) -> str:
        """Where other nodes find it."""
        return self.shown or self.host

    def place(self, command: Command) -> Command:
        """The command as it is started here."""
        return dataclasses.replace(
            command, argv=[*self.prefix, *command.argv], environ={**command.environ, **self.environ}
        )


Sites: TypeAlias = Callable[[Node], Site]


def on_loopback(node: Node) -> Site:
    """All nodes of a rack on this machine's loopback address, as everything but a chaos run has them."""
    return Site()
