"""Every file that a program of ours makes is opened by `sled_board.durable`, or such that no link is followed.

And every line of a log is made by `sled_board.printable`.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
from kit.sources import Source, package_sources

WRITERS = ("write_text", "write_bytes", "touch")
IN_OWN_SCRATCH = {
    "rackctl.board.base": "a folder that it has just made, for what packages hold",
    "rackctl.board.kernel": "the same folder",
    "rackctl.board.partitions": "a TemporaryDirectory, and an image that the caller has made",
    "rackctl.demo": "a TemporaryDirectory",
    "rackctl.chaos.machine": "changes a file that it has made",
}


def opened_carelessly(source: Source) -> Iterator[str]:
    """Calls that may make or change a file which another user has prepared, as `file:line: name`."""
    for node in ast.walk(source.tree):
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func).rpartition(".")[2]
        text = ast.unparse(node)
        careless = name in WRITERS
        if name == "open" and "os.O_" in text:
            careless = "os.O_CREAT" in text and not ("os.O_NOFOLLOW" in text and "os.O_CLOEXEC" in text)
        elif name == "open" and not any(kw.arg == "fileobj" for kw in node.keywords):
            modes = [arg.value for arg in node.args if isinstance(arg, ast.Constant) and isinstance(arg.value, str)]
            modes += [str(ast.literal_eval(kw.value)) for kw in node.keywords if kw.arg == "mode"]
            careless = any(set(mode) & set("wa+") and set(mode) <= set("rwabtx+") for mode in modes)
        if careless:
            yield f"{source.path.name}:{node.lineno}: {text[:60]}"


def unescaped_logs(source: Source) -> Iterator[str]:
    """Formatters of logs that are not the one that keeps a record on a line."""
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            formats = name.endswith("basicConfig") and any(kw.arg in ("format", "stream") for kw in node.keywords)
            if formats or name == "logging.Formatter":
                yield f"{source.path.name}:{node.lineno}: {ast.unparse(node)[:60]}"


def checked() -> list[Source]:
    return [source for source in package_sources() if not source.name.startswith("rackctl.simulation")]


def test_no_file_is_made_through_what_another_user_put_there() -> None:
    sources = [source for source in checked() if source.name not in IN_OWN_SCRATCH]
    assert [wrong for source in sources for wrong in opened_carelessly(source)] == []


def test_no_exception_is_stale() -> None:
    careless = {source.name for source in checked() if any(opened_carelessly(source))}
    assert careless == set(IN_OWN_SCRATCH)


def test_every_log_keeps_a_record_on_a_line() -> None:
    assert [wrong for source in checked() for wrong in unescaped_logs(source)] == []


@pytest.mark.parametrize(
    ("statement", "wrong"),
    [
        ("path.write_text('x')", True),
        ("path.touch(0o600)", True),
        ("open(path, 'w')", True),
        ("path.open('ab')", True),
        ("path.open(mode='r+b')", True),
        ("path.open('xb')", False),
        ("path.open('rb')", False),
        ("os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)", True),
        ("os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)", False),
        ("os.open(path, os.O_RDONLY)", False),
        ("VolumeEngine.open(directory, 'log')", False),
    ],
)
def test_the_check_itself_sees_what_is_careless(statement: str, wrong: bool) -> None:
    source = Source("rackctl.example", Path("example.py"), ast.parse(statement))
    assert bool(list(opened_carelessly(source))) is wrong
