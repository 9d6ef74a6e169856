"""Imports point downward only: tools -> head_node -> sled_controller -> spdk_bindings; sled_board stands alone."""

import ast
from pathlib import Path

import pytest
from kit.sources import PACKAGES, Source, package_sources

MAY_IMPORT = {
    "spdk_bindings": set[str](),
    "sled_board": set[str](),
    "sled_controller": {"spdk_bindings", "sled_board"},
    "head_node": {"sled_controller", "spdk_bindings"},
    "rackctl": {"head_node", "sled_controller", "spdk_bindings", "sled_board"},
}

# A head node knows NVMe's numbers and structures and the shape of a buffer, never a drive.
HEAD_MAY_IMPORT_OF_BINDINGS = tuple(f"spdk_bindings.{name}" for name in ("nvme", "identify", "log_pages", "device"))


def violations(source: Source) -> list[str]:
    """The imports of `source` that point the wrong way, as `file:line: imports name`."""
    own = source.name.split(".")[0]
    found = []
    for line, name in source.imports():
        package = name.split(".")[0]
        upward = package in PACKAGES and package != own and package not in MAY_IMPORT[own]
        too_deep = (
            own == "head_node"
            and package == "spdk_bindings"
            and not any(name == allowed or name.startswith(allowed + ".") for allowed in HEAD_MAY_IMPORT_OF_BINDINGS)
        )
        if upward or too_deep:
            found.append(f"{source.path.name}:{line}: imports {name}")
    return found


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_imports_only_what_lies_below_it(package: str) -> None:
    sources = [source for source in package_sources() if source.name.split(".")[0] == package]
    assert sources
    assert [wrong for source in sources for wrong in violations(source)] == []


@pytest.mark.parametrize(
    ("module", "statement", "wrong"),
    [
        ("spdk_bindings.nvme", "import sled_controller.server", True),
        ("sled_controller.server", "from head_node import errors", True),
        ("sled_controller.server", "from spdk_bindings import emulator", False),
        ("head_node.main", "from spdk_bindings import emulator", True),
        ("head_node.main", "from spdk_bindings.nvme import Opcode", False),
        ("head_node.main", "import rackctl.rack", True),
        ("head_node.volume.engine", "from ..export import nbd", False),
        ("rackctl.rack", "import head_node.export.nbd_client", False),
    ],
)
def test_the_check_itself_tells_up_from_down(module: str, statement: str, wrong: bool) -> None:
    source = Source(module, Path(module.rpartition(".")[2] + ".py"), ast.parse(statement))
    assert bool(violations(source)) is wrong
