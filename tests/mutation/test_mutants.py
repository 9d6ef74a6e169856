"""The mutants still fit the code; `make mutants` runs them."""

import sys
from pathlib import Path

import pytest
from kit.sources import ROOT

sys.path.insert(0, str(Path(__file__).parent))
from mutants import MUTANTS, Mutant


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: str(mutant.name))
def test_each_edit_still_has_its_one_place(mutant: Mutant) -> None:
    for file, text, replacement in mutant.edits:
        source = (ROOT / file).read_text(encoding="utf-8")
        assert source.count(text) == 1, f"{file}: {source.count(text)} places"
        compile(source.replace(text, replacement), file, "exec")
    assert all((ROOT / test).exists() for test in mutant.tests)
