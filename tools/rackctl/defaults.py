"""What an option is when no flag says otherwise: an environment variable, else the file of `rackctl --config`."""

import os
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NamedTuple

from rackctl.errors import RackError

CONFIG_VARIABLE: Final = "RACKCTL_CONFIG"
KEYS: Final[Mapping[str, str]] = {
    "dir": "RACK_DIR",
    "sleds": "RACKCTL_SLEDS",
    "heads": "RACKCTL_HEADS",
    "device_size": "RACKCTL_DEVICE_SIZE",
    "detach": "RACKCTL_DETACH",
    "json": "RACKCTL_JSON",
    "min_members": "RACKCTL_MIN_MEMBERS",
    "volume": "RACKCTL_VOLUME",
    "timeout": "RACKCTL_TIMEOUT",
    "firmware": "RACKCTL_FIRMWARE",
    "firmware_root": "RACKCTL_FIRMWARE_ROOT",
    "managers": "RACKCTL_MANAGERS",
    "settle": "RACKCTL_SETTLE",
    "gate_timeout": "RACKCTL_GATE_TIMEOUT",
    "sled_timeout": "RACKCTL_SLED_TIMEOUT",
}
"""Keys of the file, and the variables that are stronger."""


class Given(NamedTuple):
    """A value as text, and where it came from, for messages."""

    text: str
    source: str


@dataclass(frozen=True, slots=True)
class Defaults:
    """The environment over a file's values; both are looked up by the variable's name."""

    environ: Mapping[str, str] = field(default_factory=lambda: os.environ)
    file: Mapping[str, Given] = field(default_factory=dict)

    def given(self, variable: str) -> Given | None:
        """The value, None if neither says anything."""
        if variable in self.environ:
            return Given(self.environ[variable], f"environment variable {variable}")
        return self.file.get(variable)


ENVIRONMENT: Final = Defaults()


def read_defaults(argv: Sequence[str], environ: Mapping[str, str] = os.environ) -> Defaults:
    """The defaults of a command line whose first option may be `--config FILE`. Raises RackError."""
    path = environ.get(CONFIG_VARIABLE)
    if argv and argv[0].startswith("--config="):
        path = argv[0].partition("=")[2]
    elif len(argv) > 1 and argv[0] == "--config":
        path = argv[1]
    return Defaults(environ, _read(Path(path)) if path else {})


def _read(path: Path) -> dict[str, Given]:
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RackError(f"{path}: cannot be read: {error.strerror}; name a readable file with --config") from None
    except (ValueError, RecursionError) as error:
        raise RackError(f"{path}: is not TOML: {error}; correct that line") from None
    found = {}
    for key, value in values.items():
        if key not in KEYS:
            raise RackError(f"{path}: {key}: is no setting; remove it, or use one of: {', '.join(sorted(KEYS))}")
        if key == "volume" and isinstance(value, list):
            value = ",".join(map(str, value))
        if not isinstance(value, str | int | float):
            raise RackError(f"{path}: {key}: must be a text, a number, true or false")
        text = str(value).lower() if isinstance(value, bool) else str(value)
        found[KEYS[key]] = Given(text, f"{path}: {key}")
    return found


def checked(kind: Callable[[str], Any], given: Given) -> Any:
    """The value that `given` stands for; raises RackError with its source."""
    try:
        return kind(given.text)
    except (RackError, ValueError) as error:
        raise RackError(f"{given.source}: {error}") from None


def seconds(text: str) -> float:
    """A positive number of seconds."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1e6:
        raise RackError(f"{text!r} is not a positive number of seconds")
    return value
