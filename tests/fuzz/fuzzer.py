"""A small coverage-guided fuzzer: inputs that reach new lines are kept and changed further.

Structure-blind changes rarely pass a checksum, so a target may `reseal` an input (recompute its CRC or signature): half
of all executions do, and so reach what lies behind it.
"""

import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from types import FrameType
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = tuple(
    str(ROOT / name)
    for name in (
        "sled_controller", "head_node", "spdk_bindings", "hw/sled_board", "tools/rackctl/state.py",
        "tools/rackctl/defaults.py",
    )
)  # fmt: skip
INPUT_BYTES_MAX = 64 * 1024
INTERESTING = (0, 1, 2, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 2**63, 2**64 - 1)


@dataclass(frozen=True)
class Target:
    """Something that takes bytes from outside. Anything that `run` raises but `errors` is a bug."""

    name: str
    run: Callable[[bytes], object]
    errors: tuple[type[Exception], ...]
    seeds: Callable[[], Iterable[bytes]]
    reseal: Callable[[bytes], bytes] | None = None
    executions: int = 4000
    """In a short campaign."""


class Crash(Exception):
    """An input that a target could not take."""

    def __init__(self, target: Target, data: bytes, cause: BaseException) -> None:
        super().__init__(f"{target.name}: {cause!r} for {len(data)} bytes {data[:80].hex()}")
        self.data = data


@dataclass
class Fuzzer:
    """One target's campaign."""

    target: Target
    random: Random
    corpus: list[bytes] = field(default_factory=list)
    lines: set[tuple[str, int]] = field(default_factory=set)
    executions: int = 0
    found: list[bytes] = field(default_factory=list)
    """Inputs that reached something new."""

    def start(self, corpus: Iterable[bytes]) -> None:
        """Execute what is known. Raises Crash."""
        for data in corpus:
            self.execute(data)
            self.corpus.append(data)

    def step(self) -> None:
        """Change a known input and execute it. Raises Crash."""
        data = self.changed(self.random.choice(self.corpus))
        if self.target.reseal is not None and self.random.random() < 0.5:
            data = self.target.reseal(data)
        if self.execute(data):
            self.corpus.append(data)
            self.found.append(data)

    def execute(self, data: bytes) -> bool:
        """Whether `data` reached a line for the first time. Raises Crash."""
        self.executions += 1
        before = len(self.lines)
        tracing = sys.gettrace()
        sys.settrace(self._trace)
        try:
            self.target.run(data)
        except self.target.errors:
            pass
        except Exception as error:
            raise Crash(self.target, data, error) from error
        finally:
            sys.settrace(tracing)
        return len(self.lines) > before

    def _trace(self, frame: FrameType, event: str, argument: Any) -> Any:
        if not frame.f_code.co_filename.startswith(PACKAGES):
            return None
        self.lines.add((frame.f_code.co_filename, frame.f_lineno))
        return self._trace

    def changed(self, data: bytes) -> bytes:
        """`data` with a few things wrong."""
        random = self.random
        out = bytearray(data)
        for _ in range(random.choice((1, 1, 2, 4, 8))):
            kind = random.randrange(7)
            at = random.randrange(len(out) + 1)
            if kind == 0 and out:
                out[at % len(out)] ^= 1 << random.randrange(8)
            elif kind == 1:
                size = random.choice((1, 2, 4, 8))
                number = random.choice(INTERESTING) % (1 << 8 * size)
                out[at : at + size] = number.to_bytes(size, random.choice(("little", "big")))
            elif kind == 2:
                del out[at : at + random.choice((1, 4, 16, 4096))]
            elif kind == 3:
                out[at:at] = random.randbytes(random.choice((1, 4, 16, 64)))
            elif kind == 4:
                other = random.choice(self.corpus)
                begin = random.randrange(len(other) + 1)
                out[at:] = other[begin:]
            elif kind == 5:
                out[at:at] = out[at : at + random.choice((4, 16, 64))]
            else:
                out = out[:at]
        return bytes(out[:INPUT_BYTES_MAX])
