"""Prints the OpenAPI document: `python -m head_node.api.openapi > docs/openapi.json`."""

import json
import sys

from head_node.api.app import create_app


def document() -> str:
    """The OpenAPI document of the REST interface, as JSON that changes only when the interface does."""
    return json.dumps(create_app(None).openapi(), indent=2, sort_keys=True) + "\n"


if __name__ == "__main__":
    sys.stdout.write(document())
