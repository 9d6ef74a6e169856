"""The sled's state directory: who it is (made at first start) and where it listens (rewritten at each start)."""

import json
import os
from pathlib import Path
from typing import Any, Final
from uuid import UUID

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from sled_board.console.provisioning import Provisioning
from sled_board.errors import CommandNotDone

from sled_controller.durable import make_directory, replace_file
from sled_controller.environment import Environment
from sled_controller.errors import SledError
from sled_controller.subsystem import Identity

KEY_FILE: Final = "identity.key"  # secret: {id, private_key}
IDENTITY_FILE: Final = "identity.json"  # for enrolment: {id, name, public_key, nqn}
ENDPOINTS_FILE: Final = "endpoints.json"  # {pid, nvme_tcp: [host, port]}; whoever waits for a start may remove it
PROVISIONED_FILE: Final = "provisioned.json"  # {name, root_public_key, network}, once the console has been given them
CONSOLE_LINK: Final = "console"  # leads to the pseudo terminal of an emulated sled, while it runs
JOURNAL_FILE: Final = "journal"  # fences and what else is sled-wide, beside the devices (docs/on-disk-sled.md)
SERVED_FILE: Final = "served.json"  # there once the sled has served: its devices are never taken for new ones again


class StateDirectoryUnusable(SledError):
    """The state directory cannot be used; the text names the file, the cause and the remedy."""


class StateDirectory:
    """Files below one directory, each replaced atomically."""

    def __init__(self, path: Path) -> None:
        try:
            make_directory(path)
        except OSError as error:
            raise StateDirectoryUnusable(f"{path}: cannot be made: {error.strerror}; use another one") from None
        self.path = path

    @property
    def has_served(self) -> bool:
        """Whether a start with this directory ever succeeded."""
        return (self.path / SERVED_FILE).exists()

    def identity(self, name: str, root_public: bytes, env: Environment) -> Identity:
        """The identity kept here, made when there is none; `identity.json` too. Raises StateDirectoryUnusable."""
        path = self.path / KEY_FILE
        try:
            if path.exists():
                kept = json.loads(path.read_text(encoding="utf-8"))
                sled_id, private = UUID(kept["id"]), bytes.fromhex(kept["private_key"])
            else:
                sled_id, private = env.new_uuid(), env.entropy.bytes(32)
                self.replace(KEY_FILE, {"id": str(sled_id), "private_key": private.hex()}, secret=True)
            key = Ed25519PrivateKey.from_private_bytes(private)
            identity = Identity(sled_id, key, root_public, name)
            public = key.public_key().public_bytes_raw().hex()
            told = {"id": str(sled_id), "name": name, "public_key": public, "nqn": identity.nqn}
            if self._read(IDENTITY_FILE) != told:
                self.replace(IDENTITY_FILE, told)
        except OSError as error:
            raise StateDirectoryUnusable(f"{path}: {error.strerror}; give the program access to it") from None
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise StateDirectoryUnusable(
                f"{path}: is damaged; restore it from a backup, or remove it and enrol the sled as a new one"
            ) from None
        return identity

    @property
    def provisioning(self) -> Provisioning | None:
        """What the console was given, None before that; raises StateDirectoryUnusable."""
        path = self.path / PROVISIONED_FILE
        try:
            kept = json.loads(path.read_text(encoding="utf-8"))
            return Provisioning.of(str(kept["name"]), str(kept["root_public_key"]), str(kept["network"]))
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StateDirectoryUnusable(f"{path}: {error.strerror}; give the program access to it") from None
        except (CommandNotDone, ValueError, KeyError, TypeError, RecursionError):
            raise StateDirectoryUnusable(
                f"{path}: is damaged; restore it from a backup: the root key that the sled is locked to is in it"
            ) from None

    def provision(self, given: Provisioning) -> None:
        """Keep what the console was given, for good; raises OSError."""
        self.replace(
            PROVISIONED_FILE,
            {"name": given.name, "root_public_key": given.root_public.hex(), "network": str(given.network)},
        )

    def endpoints(self, host: str, port: int) -> None:
        """Say that the sled serves now, and where."""
        if not self.has_served:
            self.replace(SERVED_FILE, {})
        self.replace(ENDPOINTS_FILE, {"pid": os.getpid(), "nvme_tcp": [host, port]})

    def replace(self, name: str, value: dict[str, Any], secret: bool = False) -> None:
        """Write a JSON file durably and atomically; raises OSError."""
        text = json.dumps(value, indent=2) + "\n"
        replace_file(self.path / name, text, 0o600 if secret else 0o644)

    def _read(self, name: str) -> Any:
        """What a JSON file has; None where there is none, or no JSON."""
        try:
            return json.loads((self.path / name).read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            return None
