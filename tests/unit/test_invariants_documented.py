"""docs/invariants.md names tests and files that exist, and leaves out no test that is named after a rule."""

import ast
import re

from kit.sources import ROOT

PAGE = (ROOT / "docs" / "invariants.md").read_text(encoding="utf-8")
NAMED_TESTS = set(re.findall(r"`(test_\w+)`", PAGE))
NAMED_FILES = set(re.findall(r"`([\w./]+\.py)`", PAGE))
AFTER_A_RULE = re.compile(r"test_(f[1-7]|d[1-3])_")

# The interleavings that had names before there was code.
CASES = {
    "test_f2_equal_epoch_other_holder", "test_f2_fence_record_rotten", "test_f3_r2t_data_after_fence",
    "test_f3_reattach_drains", "test_f5_seal_before_ask", "test_f5_wiped_log_not_eligible",
    "test_f5_record_race_primary_secondary", "test_d1_flush_after_power_cycle", "test_d1_trim_waits_for_commit",
    "test_d2_same_epoch_old_sequence", "test_d2_copier_keeps_crc", "test_slot_reuse_waits_for_epoch_record",
    "test_move_loses_to_newer_write", "test_trim_not_resurrected", "test_no_dirty_read_across_takeover",
    "test_restart_takes_new_epoch", "test_relay_never_replays", "test_gmac_nonce_never_repeats",
}  # fmt: skip


def all_tests() -> set[str]:
    """Names of all test functions."""
    return {
        node.name
        for path in (ROOT / "tests").rglob("test_*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    }


def test_every_test_that_the_page_names_exists() -> None:
    assert not NAMED_TESTS - all_tests()
    assert len(NAMED_TESTS) > 100


def test_every_file_that_the_page_names_exists() -> None:
    assert not {name for name in NAMED_FILES if not (ROOT / name).is_file()}


def test_every_test_that_is_named_after_a_rule_is_on_the_page() -> None:
    assert not {name for name in all_tests() if AFTER_A_RULE.match(name)} - NAMED_TESTS


def test_every_case_that_had_its_name_before_the_code_is_on_the_page() -> None:
    assert not CASES - NAMED_TESTS
