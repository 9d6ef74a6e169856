"""The REST interface answers every request, valid or not, as its document says; and the attack notices if not."""

import hashlib
import logging
from collections.abc import Iterator

import pytest
from fuzz.rest import stories
from fuzz.test_fuzz import seed_of_commit
from schemathesis.core.failures import FailureGroup

from head_node.api import operators, problems
from head_node.authority.nodes import Nodes

STORIES = 25
"""In a short campaign, which differs from commit to commit."""


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """Thousands of refusals need not be told; whoever comes next in this process hears again."""
    logger = logging.getLogger("head_node")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    yield
    logger.setLevel(level)


def number_of_commit() -> int:
    return int.from_bytes(hashlib.sha256(seed_of_commit().encode()).digest()[:8])


def test_every_answer_is_documented() -> None:
    stories(number_of_commit(), STORIES)


def test_an_exception_behind_a_valid_request_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: object) -> object:
        raise KeyError("broken")

    monkeypatch.setattr(operators.overview, "sleds", broken)
    with pytest.raises(KeyError, match="broken"):
        stories(1, 200, shrink=False)


def test_an_exception_behind_a_signature_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    async def broken(*arguments: object) -> object:
        raise KeyError("broken")

    monkeypatch.setattr(Nodes, "announce", broken)
    with pytest.raises(KeyError, match="broken"):
        stories(1, 200, shrink=False)


def test_a_refusal_of_another_kind_than_documented_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(problems, "MEDIA_TYPE", "application/json")
    with pytest.raises(FailureGroup):
        stories(1, 200, shrink=False)
