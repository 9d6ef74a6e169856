"""docs/threat-model.md says of every port what its connections may cost, as the code has it."""

from kit.bounds import Bound, documented

from head_node.api import connections, wrapping
from head_node.cluster import connection, status_server
from head_node.export import budget, server
from head_node.export.nvme import server as nvme
from head_node.export.nvme.commands import LIMITS
from sled_controller.fabric import target_server

STRANGER_BYTES = 512 * 1024
"""At a link before its head has proved itself: two reads of the event loop at most, and the handshake."""
PARSED_FACTOR = 25
"""What the worst JSON (a list of empty maps) takes, as a multiple of its text."""


def test_every_port_is_there_with_the_bounds_of_the_code() -> None:
    assert documented() == {
        "NBD": Bound(server.CONNECTIONS_MAX, server.CONNECTION_BYTES_MAX, budget.COMMON_BYTES),
        "status pages of a head": Bound(status_server.CONNECTIONS_MAX, status_server.CONNECTION_BYTES_MAX, 0),
        "links between heads": Bound(connection.STRANGERS_MAX, STRANGER_BYTES, 0),
        "REST of the authority": Bound(
            connections.CONNECTIONS_MAX, connections.CONNECTION_BYTES_MAX, PARSED_FACTOR * wrapping.BODIES_BYTES_MAX
        ),
        "NVMe/TCP of a sled": Bound(target_server.CONNECTIONS_MAX, target_server.STRANGER_BYTES_MAX, 0),
        "NVMe/TCP of a head's volumes": Bound(nvme.CONNECTIONS_MAX, nvme.CONNECTION_BYTES_MAX, LIMITS.common_bytes),
    }
