"""What one connection may cost, and all of a port together, as docs/threat-model.md says."""

import re
from dataclasses import dataclass

from kit.sources import ROOT

_ROW = re.compile(r"^\| ([^|]+) \| (\d+)[^|]* \| [^|]+ \| (\d+) \| (\d+) \| [^|]+ \|$", re.MULTILINE)


@dataclass(frozen=True)
class Bound:
    """Of one port."""

    connections: int
    each_bytes: int
    common_bytes: int

    @property
    def whole_bytes(self) -> int:
        """What a process may hold for all connections of the port."""
        return self.connections * self.each_bytes + self.common_bytes


def documented() -> dict[str, Bound]:
    """The table's rows by port."""
    page = (ROOT / "docs" / "threat-model.md").read_text(encoding="utf-8")
    _, _, section = page.partition("## What one connection may cost\n")
    return {
        port: Bound(int(connections), int(each) << 10, int(common) << 20)
        for port, connections, each, common in _ROW.findall(section)
    }
