"""docs/openapi.json is the interface as it is."""

import json
from pathlib import Path

from head_node.api.openapi import document

DOCUMENT = Path(__file__).parents[4] / "docs" / "openapi.json"


def test_the_openapi_document_is_current() -> None:
    assert DOCUMENT.read_text(encoding="utf-8") == document(), (
        "run: python -m head_node.api.openapi > docs/openapi.json"
    )


def test_every_operation_has_a_name_and_a_summary() -> None:
    operations = [entry for path in json.loads(document())["paths"].values() for entry in path.values()]
    assert len({operation["operationId"] for operation in operations}) == len(operations)
    assert all(operation["description"] for operation in operations)
