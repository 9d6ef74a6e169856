"""A long campaign: `make fuzz MINUTES=10`. What reaches something new goes to the corpus, what crashes a target too."""

import argparse
import hashlib
import logging
import secrets
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from random import Random

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from fuzz.fuzzer import Crash, Fuzzer, Target
from fuzz.rest import stories
from fuzz.test_fuzz import CORPUS, TARGETS, corpus_of
from fuzz.test_rest import STORIES

REST = "rest"

KEPT_BYTES_MAX = 8192
"""Larger inputs are not worth their place in the repository."""


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status 1 when something crashed."""
    parser = argparse.ArgumentParser(prog="make fuzz", description=__doc__)
    parser.add_argument("--minutes", type=float, default=5.0, help="for all targets together (default 5)")
    parser.add_argument("--seed", default=secrets.token_hex(4), help="of the changes (default: another each time)")
    parser.add_argument("names", nargs="*", help=f"targets, or {REST!r}; all without any")
    arguments = parser.parse_args(argv)
    chosen = [target for target in TARGETS if not arguments.names or target.name in arguments.names]
    print(f"seed {arguments.seed}", flush=True)
    logging.disable()
    with_rest = not arguments.names or REST in arguments.names
    seconds = arguments.minutes * 60 / (len(chosen) + with_rest)
    crashed = 0
    for target in chosen:
        crashed += campaign(target, seconds, arguments.seed)
    if with_rest:
        crashed += rest_campaign(seconds, arguments.seed)
    return 1 if crashed else 0


def rest_campaign(seconds: float, seed: str) -> int:
    """Tell stories to the REST interface; 1 when one found something, with what shows it again."""
    random, told = Random(f"{seed}/{REST}"), 0
    end_s = time.monotonic() + seconds
    while time.monotonic() < end_s:
        number = random.getrandbits(63)
        try:
            stories(number, STORIES)
        except Exception:
            traceback.print_exc()
            print(f"CRASH {REST}: stories({number}, {STORIES})", flush=True)
            return 1
        told += STORIES
    print(f"{REST:<18} {told:>8} stories", flush=True)
    return 0


def campaign(target: Target, seconds: float, seed: str) -> int:
    """Fuzz one target; how often it crashed."""
    fuzzer = Fuzzer(target, Random(f"{seed}/{target.name}"))
    fuzzer.start(corpus_of(target))
    known, crashes = len(fuzzer.lines), 0
    end_s = time.monotonic() + seconds
    while time.monotonic() < end_s and not crashes:
        try:
            fuzzer.step()
        except Crash as crash:
            crashes += 1
            print(f"CRASH {crash}; kept as {keep(target, 'crash', crash.data)}", flush=True)
    for data in fuzzer.found:
        if len(data) <= KEPT_BYTES_MAX:
            keep(target, "new", data)
    new = len(fuzzer.lines) - known
    print(
        f"{target.name:<18} {fuzzer.executions:>8} executions, {len(fuzzer.lines)} lines reached, {new} new", flush=True
    )
    return crashes


def keep(target: Target, kind: str, data: bytes) -> Path:
    path = CORPUS / target.name / f"{kind}-{hashlib.sha256(data).hexdigest()[:12]}.bin"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


if __name__ == "__main__":
    sys.exit(main())
