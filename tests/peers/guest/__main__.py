"""Fetches the guest's kernel and builds its image ahead of the tests: part of `make peers`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from peers.guest import image, packages


def main() -> int:
    """Exit status 1 when something is missing; the tests are skipped then, and say the same."""
    try:
        built = image.image()
    except packages.Missing as error:
        print(f"no guest: {error}", file=sys.stderr)
        return 1
    print(f"the guest boots {built.kernel}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
