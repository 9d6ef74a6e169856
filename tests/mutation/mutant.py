"""What a mutant is, and the files and tests that many of them name."""

from dataclasses import dataclass

VOLUME = "tests/unit/head_node/volume"
CLUSTER = "tests/unit/head_node/cluster"
AUTHORITY = "tests/unit/head_node/authority"
EXPORT = "tests/unit/head_node/export"
SLED = "tests/unit/sled_controller"
STORE = "tests/unit/head_node/store"

TRANSITIONS = "head_node/authority/transitions.py"
CONTROLLER = "head_node/cluster/volume_controller.py"
TAKEOVER = "head_node/cluster/takeover.py"
TAILS = "head_node/cluster/tails.py"
PACE = "head_node/cluster/pace.py"
ISSUE_TIME = "head_node/authority/issue_time.py"
CLEANUPS = "head_node/authority/cleanups.py"
LEASE = "head_node/cluster/lease.py"
MEMBERSHIP = "head_node/cluster/membership.py"
RECEIVER = "head_node/cluster/receiver.py"
ENGINE = "head_node/volume/engine.py"
REPLICA = "head_node/volume/replica.py"
CHECKPOINTING = "head_node/volume/checkpointing.py"
LOG = "head_node/volume/log.py"
SERVICE = "head_node/volume/service.py"
STRIPES = "head_node/volume/stripes.py"
DESTAGE = "head_node/volume/destage.py"
READER = "head_node/volume/reader.py"
BLOCKMAP = "head_node/volume/blockmap.py"
PRIMARY = "head_node/cluster/primary.py"
ENDS = tuple(f"{CLUSTER}/test_{name}.py" for name in ("tails", "divergence", "follower"))
COMMIT_POINT = f"{VOLUME}/test_commit_point.py"
FENCING = "sled_controller/fencing.py"
ATTACH = "sled_controller/attach.py"
STORAGE = "sled_controller/storage/sled_storage.py"
SESSION = "sled_controller/session.py"
SUBSYSTEM = "sled_controller/subsystem.py"
SLED_TIME = "sled_controller/sled_time.py"
SLED_STARTS = "head_node/authority/sled_starts.py"
RETIREMENT = "head_node/authority/retirement.py"
VENDOR_IO = "sled_controller/fabric/vendor_io.py"
NBD_SERVER = "head_node/export/nbd_server.py"
RELAYED = "head_node/export/relayed.py"


@dataclass(frozen=True, slots=True)
class Mutant:
    """A rule that is broken."""

    name: str
    rule: str
    edits: tuple[tuple[str, str, str], ...]
    tests: tuple[str, ...]
    simulated: bool = True
    """Whether the simulator may see it."""


def one(name: str, rule: str, file: str, text: str, replacement: str, *tests: str) -> Mutant:
    return Mutant(name, rule, ((file, text, replacement),), tests)
