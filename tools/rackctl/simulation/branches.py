"""Which branches of the engine a run has taken: each is a counter, and one that no run takes is a hole in the tests.

Nothing of this is in production code. The sources are compiled again with a probe in every branch (both ways of an
`if`, the body of a loop, each `except`, each function) and the functions that exist get the new code in place, so it
does not matter who imported them before. A probe sets one byte.

The idea is that of the "sometimes" assertions of FoundationDB and Antithesis.
"""

import ast
import contextlib
import functools
import importlib
import inspect
import pkgutil
from collections import Counter
from collections.abc import Iterable, Iterator
from types import CodeType, FunctionType, ModuleType
from typing import Any, Final

PROBED_PACKAGES: Final = ("head_node.volume",)
PROBED_MODULES: Final = ("head_node.log_directories", "head_node.cluster.replication", "head_node.cluster.receiver")
LEFT_OUT: Final = {
    "head_node.volume.reservations": "clients of a simulated rack reserve nothing; tests/unit and Linux do",
    "head_node.volume.records": "what it refuses comes from no simulated disk or link; tests/fuzz sends it",
}
_HITS: Final = "__branches_taken__"
_TEXT_MAX: Final = 70


class Branches:
    """All branches of the probed modules, in an order that every process shares."""

    def __init__(self) -> None:
        self.names: list[str] = []
        """`module function: branch`, each once."""
        self.taken = bytearray()
        self._codes: list[tuple[FunctionType, CodeType, CodeType]] = []
        """(function, its code as it was imported, the same with probes)"""
        for module in _modules():
            self._probe(module)

    @contextlib.contextmanager
    def counted(self) -> Iterator[None]:
        """Count while the block runs; `taken` has what was taken, from zero on."""
        self.taken[:] = bytes(len(self.taken))
        for function, _, probed in self._codes:
            function.__code__ = probed
        try:
            yield
        finally:
            for function, plain, _ in self._codes:
                function.__code__ = plain

    def _probe(self, module: ModuleType) -> None:
        tree = ast.parse(inspect.getsource(module))
        assert module.__file__ is not None
        inserter = _Inserter(module.__name__.removeprefix("head_node."), len(self.names))
        inserter.visit(tree)
        self.names += inserter.names
        self.taken.extend(bytes(len(inserter.names)))
        probed = {(code.co_qualname, code.co_firstlineno): code for code in _codes_in(tree, module.__file__)}
        module.__dict__[_HITS] = self.taken
        for function in _functions_of(module):
            plain = function.__code__
            code = probed.get((plain.co_qualname, plain.co_firstlineno))
            if code is not None:
                self._codes.append((function, plain, code))


@functools.cache
def branches() -> Branches:
    """Those of this process; made when first asked for."""
    return Branches()


def _modules() -> list[ModuleType]:
    names = list(PROBED_MODULES)
    for package in PROBED_PACKAGES:
        path = importlib.import_module(package).__path__
        names += [found.name for found in pkgutil.walk_packages(path, f"{package}.") if not found.ispkg]
    return [importlib.import_module(name) for name in sorted(names) if name not in LEFT_OUT]


def _codes_in(tree: ast.AST, path: str) -> Iterator[CodeType]:
    waiting = [compile(ast.fix_missing_locations(tree), path, "exec", dont_inherit=True)]  # type: ignore[call-overload]
    while waiting:
        code = waiting.pop()
        yield code
        waiting += [const for const in code.co_consts if isinstance(const, CodeType)]


def _functions_of(module: ModuleType) -> Iterator[FunctionType]:
    """Functions at the top of a module and in its classes; those within them come with their code."""
    waiting: list[Any] = list(vars(module).values())
    seen: set[int] = set()
    while waiting:
        found = waiting.pop()
        if id(found) in seen:
            continue
        seen.add(id(found))
        if isinstance(found, type) and found.__module__ == module.__name__:
            waiting += vars(found).values()
        elif isinstance(found, property):
            waiting += [found.fget, found.fset]
        elif isinstance(found, staticmethod | classmethod):
            waiting.append(found.__func__)
        elif isinstance(found, FunctionType):
            waiting.append(getattr(found, "__wrapped__", None))
            if found.__globals__ is vars(module):
                yield found


class _Inserter(ast.NodeTransformer):
    """Puts the probes in."""

    def __init__(self, module: str, first: int) -> None:
        self.names: list[str] = []
        self._module = module
        self._first = first
        self._where: list[str] = []
        self._seen: Counter[str] = Counter()

    def _marked(self, body: Iterable[ast.stmt], what: str, at: ast.AST) -> list[ast.stmt]:
        name = f"{self._module} {'.'.join(self._where)}: {what}"
        self._seen[name] += 1
        if self._seen[name] > 1:
            name += f" #{self._seen[name]}"
        number = self._first + len(self.names)
        self.names.append(name)
        hits, index, one = ast.Name(_HITS, ast.Load()), ast.Constant(number), ast.Constant(1)
        probe = ast.Assign([ast.Subscript(hits, index, ast.Store())], one)
        ast.copy_location(probe, at)
        ast.fix_missing_locations(probe)
        return [probe, *body]

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.AST:
        self._where.append(node.name)
        self.generic_visit(node)
        self._where.pop()
        return node

    def visit_FunctionDef(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> ast.AST:
        self._where.append(node.name)
        self.generic_visit(node)
        if not _only_says(node.body):
            node.body = self._marked(node.body, "called", node.body[0])
        self._where.pop()
        return node

    visit_AsyncFunctionDef = visit_FunctionDef

    def visit_If(self, node: ast.If) -> ast.AST:
        self.generic_visit(node)
        if self._where:
            text = _short(node.test)
            node.body = self._marked(node.body, f"if {text}", node.body[0])
            node.orelse = self._marked(node.orelse, f"not {text}", node.test)
        return node

    def visit_For(self, node: ast.For | ast.AsyncFor) -> ast.AST:
        self.generic_visit(node)
        if self._where:
            node.body = self._marked(node.body, f"for {_short(node.target)} in {_short(node.iter)}", node.body[0])
        return node

    visit_AsyncFor = visit_For

    def visit_While(self, node: ast.While) -> ast.AST:
        self.generic_visit(node)
        if self._where:
            node.body = self._marked(node.body, f"while {_short(node.test)}", node.body[0])
        return node

    def visit_ExceptHandler(self, node: ast.ExceptHandler) -> ast.AST:
        self.generic_visit(node)
        if self._where:
            caught = "anything" if node.type is None else _short(node.type)
            node.body = self._marked(node.body, f"except {caught}", node.body[0])
        return node

    def visit_match_case(self, node: ast.match_case) -> ast.AST:
        self.generic_visit(node)
        if self._where:
            node.body = self._marked(node.body, f"case {_short(node.pattern)}", node.body[0])
        return node


def _only_says(body: list[ast.stmt]) -> bool:
    """A docstring or `...` and nothing else: a method of a protocol, or an abstract one."""
    return all(isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant) for statement in body)


def _short(node: ast.AST) -> str:
    text = ast.unparse(node)
    return text if len(text) <= _TEXT_MAX else text[: _TEXT_MAX - 3] + "..."
