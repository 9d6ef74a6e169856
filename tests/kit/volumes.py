"""Volumes of a real rack as tests see them, and what can happen to their primaries."""

from dataclasses import dataclass, field

from rackctl.processes import ProcessState
from rackctl.rack import Rack, Roles
from rackctl.state import NodeKind


@dataclass
class Volume:
    """A volume that both heads hold. `roles` are those it was made with."""

    rack: Rack
    name: str
    size_bytes: int
    roles: Roles

    @property
    def primary(self) -> str:
        """The head that serves it now."""
        primary = self.rack.roles(self.name).primary
        assert primary is not None
        return primary

    @property
    def secondary(self) -> str:
        """The head that would serve it next."""
        (secondary,) = self.rack.roles(self.name).secondaries
        return secondary

    @property
    def uri(self) -> str:
        """Its address at its primary."""
        return self.rack.nbd_uri(self.name, self.primary)

    @property
    def lasting_uri(self) -> str:
        """Its address at its secondary: relayed now, served there after a failover."""
        return self.rack.nbd_uri(self.name, self.secondary)


@dataclass
class Failover:
    """Takes primaries away."""

    rack: Rack
    _volumes: list[str] = field(default_factory=list)

    def kill_primary(self, volume: Volume) -> Roles:
        """Kill the primary and wait until another serves the volume."""
        roles = self.rack.roles(volume.name)
        assert roles.primary is not None
        self._volumes.append(volume.name)
        self.rack.kill(roles.primary)
        self.rack.wait_epoch_above(volume.name, roles.epoch)
        return self.rack.wait_served(volume.name)

    def repair(self) -> None:
        """Start what was killed and wait until every volume has two members again."""
        for node in self.rack.state.nodes:
            if node.state is ProcessState.GONE:
                self.rack.restart(node.name)
        for name in self._volumes:
            self.rack.wait_members(name, len(self.rack.state.of_kind(NodeKind.HEAD)))
        self._volumes.clear()
