"""The project's own Python sources as tests of the house rules see them."""

import ast
import functools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[2]

# Import name of each package and the folder that holds it; packaging strips hw/ and tools/.
PACKAGES: Final = {
    "spdk_bindings": ROOT / "spdk_bindings",
    "sled_controller": ROOT / "sled_controller",
    "head_node": ROOT / "head_node",
    "sled_board": ROOT / "hw" / "sled_board",
    "rackctl": ROOT / "tools" / "rackctl",
}


@dataclass(frozen=True)
class Source:
    """One Python file: its import name, its path and its syntax tree."""

    name: str
    path: Path
    tree: ast.Module

    @property
    def shown(self) -> str:
        """The path as people know it."""
        return str(self.path.relative_to(ROOT))

    def imports(self) -> Iterator[tuple[int, str]]:
        """Line and full dotted name of everything imported; `from a import b` gives `a.b`."""
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    yield node.lineno, alias.name
            elif isinstance(node, ast.ImportFrom):
                base = self._absolute(node)
                for alias in node.names:
                    yield node.lineno, f"{base}.{alias.name}"

    def _absolute(self, node: ast.ImportFrom) -> str:
        if not node.level:
            return node.module or ""
        package = self.name if self.path.name == "__init__.py" else self.name.rpartition(".")[0]
        parts = package.split(".")
        base = ".".join(parts[: len(parts) - node.level + 1])
        return f"{base}.{node.module}" if node.module else base


@functools.cache
def package_sources() -> tuple[Source, ...]:
    """Every module of every package."""
    return tuple(
        _parse(".".join((package, *path.relative_to(folder).with_suffix("").parts)).removesuffix(".__init__"), path)
        for package, folder in PACKAGES.items()
        for path in sorted(folder.rglob("*.py"))
    )


@functools.cache
def sources_of_tests() -> tuple[Source, ...]:
    """Every module below tests/."""
    folder = ROOT / "tests"
    return tuple(
        _parse(".".join(path.relative_to(folder).with_suffix("").parts), path) for path in sorted(folder.rglob("*.py"))
    )


def _parse(name: str, path: Path) -> Source:
    return Source(name, path, ast.parse(path.read_text(encoding="utf-8"), str(path)))
