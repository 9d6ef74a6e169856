"""The protocol's model, checked with spin: it holds, and every rule that is dropped has its counterexample."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).parent
FENCE = (
    "OLD_EPOCHS", "OLD_ATTACHES", "OTHER_HOLDER", "LOWERED", "FENCE_VOLATILE", "ONE_RECORD", "NO_DRAIN",
    "REATTACH_NO_DRAIN", "JUDGED_AT_HEADER",
)  # fmt: skip
TAKEOVER = (
    "NO_SEAL", "ASK_BEFORE_SEAL", "NO_CAS", "RESTART_WITHIN_EPOCH", "ACK_WHILE_PROMOTING", "ACK_ALONE",
    "LEASE_FROM_RECEIPT", "SEAL_UNDER_PROMISE", "SEALED_STILL_PROMISES", "REMOVE_BEFORE_PUT", "ADD_AFTER_PUT",
    "WIPED_LOG_ELIGIBLE", "SERVE_BEFORE_RECEIPTS", "KEEP_WHAT_DIVERGES",
)  # fmt: skip
PLACES = ("TRUSTED_FOR_EVER", "KEY_UNBOUND", "CONNECT_ENDS", "NUMBER_ALONE", "FENCE_LEAVES")
TIME = ("NO_BOUND", "KEPT_AT_ONCE", "NO_DOUBT", "NOT_STATED", "REPLAYED")
RULES = {"fence": FENCE, "places": PLACES, "takeover": TAKEOVER, "time": TIME}
LONGER = {"KEEP_WHAT_DIVERGES": ("EPOCHS=3", "CRASHES=0")}
"""What diverges comes back in the third epoch only."""
MUTANTS = [(model, name) for model, names in RULES.items() for name in names]

pytestmark = [
    pytest.mark.skipif(shutil.which("spin") is None, reason="spin is missing: apt install spin, or make peers"),
    pytest.mark.skipif(shutil.which("gcc") is None, reason="gcc is missing: apt install gcc, or make peers"),
]


def verify(model: str, folder: Path, *defines: str) -> str:
    """What the verifier of a model says; it stops at the first error."""
    spin = ["spin", "-a", *(f"-D{name}" for name in defines), str(HERE / f"{model}.pml")]
    subprocess.run(spin, cwd=folder, check=True, capture_output=True)
    subprocess.run(
        ["gcc", "-O2", "-w", "-DSAFETY", "-DCOLLAPSE", "-DMEMLIM=2000", "-o", "pan", "pan.c"], cwd=folder, check=True
    )
    done = subprocess.run(["./pan", "-m400000", "-n", "-E"], cwd=folder, check=False, capture_output=True, text=True)
    return done.stdout


@pytest.mark.parametrize("model", RULES)
def test_the_protocol_holds(model: str, tmp_path: Path) -> None:
    told = verify(model, tmp_path)
    assert re.search(r"errors: 0\b", told), told
    assert "too small" not in told
    assert "out of memory" not in told


@pytest.mark.parametrize(("model", "mutant"), MUTANTS, ids=lambda value: str(value))
def test_every_rule_is_needed(model: str, mutant: str, tmp_path: Path) -> None:
    told = verify(model, tmp_path, mutant, *LONGER.get(mutant, ()))
    assert "assertion violated" in told, told


@pytest.mark.parametrize("model", RULES)
def test_every_mutant_is_listed(model: str) -> None:
    text = (HERE / f"{model}.pml").read_text(encoding="ascii")
    used = set(re.findall(r"(?:#ifn?def |defined\()(\w+)", text)) - {"EPOCHS", "CUTS", "CRASHES", "CHANGES", "LAST"}
    assert used == set(RULES[model])
    head = text[: text.index("*/")]
    assert all(name in head for name in used)
