"""The rack's root key: it signs key sets, certificates of reply keys and statements of time, and is read when it does.

It may be a file beside the store, a key that only a command reaches, or away: then what it is to sign waits for it
(`key_requests.py`). Everything that needs it asks `RootKey.sign`.
"""

import asyncio
from pathlib import Path
from typing import ClassVar, Final, Protocol

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from head_node.authority.errors import AuthorityError, Conflict
from sled_controller.durable import replace_file
from sled_controller.environment import Environment
from sled_controller.signers import CommandSigner, SigningFailed, checked_signature

PUBLIC_BYTES: Final = 32
HOW_TO_SIGN: Final = (
    "`rackctl keys request FILE`, then `rackctl keys sign-request FILE` where the root key is, then"
    " `rackctl keys install FILE`"
)


class RootKeyUnusable(AuthorityError):
    """The root key file cannot be read, or is not the rack's: put back the right one."""

    slug = "root-key-unusable"


class RootKeyNeeded(Conflict):
    """Only the root key can go on here, and it is away: what it has to sign waits for it."""

    slug, title = "root-key-needed", "The root key is needed"


class RootKey(Protocol):
    """What signs with the root key."""

    kind: ClassVar[str]

    public: bytes
    """32 raw bytes: what sleds and heads are given."""

    async def sign(self, message: bytes) -> bytes:
        """The signature, 64 bytes. Raises RootKeyNeeded when the key is away, RootKeyUnusable."""


class MemoryRoot:
    """A key in memory: of tests and simulations."""

    kind: ClassVar[str] = "memory"

    def __init__(self, private: Ed25519PrivateKey) -> None:
        self._private = private
        self.public = private.public_key().public_bytes_raw()

    async def sign(self, message: bytes) -> bytes:
        return self._private.sign(message)


class FileRoot:
    """A key in a file, read each time; it may be taken away in between."""

    kind: ClassVar[str] = "file"

    def __init__(self, path: Path, env: Environment, *, may_create: bool) -> None:
        """Raises RootKeyUnusable."""
        self._path = path
        self._env = env
        self.public = load_root_key(path, env, may_create=may_create).public_key().public_bytes_raw()

    async def sign(self, message: bytes) -> bytes:
        if not self._path.exists():
            raise RootKeyNeeded(f"{self._path} is not there: put it back and ask again, or {HOW_TO_SIGN}")
        key = load_root_key(self._path, self._env, may_create=False)
        if key.public_key().public_bytes_raw() != self.public:
            raise RootKeyUnusable(f"{self._path}: is another root key than this rack's; put back the right one")
        return key.sign(message)


class CommandRoot:
    """A key that only a command reaches, as of an HSM; the command may wait for a person."""

    kind: ClassVar[str] = "command"

    def __init__(self, command: str, public: bytes) -> None:
        self._signer = CommandSigner(command, public)
        self.public = public

    async def sign(self, message: bytes) -> bytes:
        try:
            return await asyncio.to_thread(checked_signature, self._signer, message)
        except SigningFailed as error:
            raise RootKeyNeeded(f"{error}; ask again when the command works, or {HOW_TO_SIGN}") from error


class AwayRoot:
    """A key that is nowhere near: only its public half is known."""

    kind: ClassVar[str] = "away"

    def __init__(self, public: bytes) -> None:
        self.public = public

    async def sign(self, message: bytes) -> bytes:
        raise RootKeyNeeded(f"the root key is away: {HOW_TO_SIGN}")


def load_root_key(path: Path, env: Environment, *, may_create: bool) -> Ed25519PrivateKey:
    """Read the root key (PKCS #8, PEM), or make it with mode 0600 at the first start. Raises RootKeyUnusable."""
    try:
        if may_create and not path.exists():
            _write_private(path, Ed25519PrivateKey.from_private_bytes(env.entropy.bytes(32)))
        mode = path.stat().st_mode & 0o077
        if mode:
            raise RootKeyUnusable(f"{path}: others than its owner may use it (mode {mode:03o}); chmod 600 it")
        key = serialization.load_pem_private_key(path.read_bytes(), password=None)
    except OSError as error:
        raise RootKeyUnusable(
            f"{path}: {error.strerror}; put the rack's root key there, or say that it is away (root_key_away)"
        ) from error
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise RootKeyUnusable(f"{path}: is not an unencrypted PEM private key: {error}") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise RootKeyUnusable(f"{path}: is not an Ed25519 key")
    return key


def load_public_key(path: Path) -> bytes:
    """The 32 raw bytes of a public key, PEM or hex. Raises RootKeyUnusable."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise RootKeyUnusable(f"{path}: {error.strerror}; put the public key there, PEM or hex") from None
    try:
        if b"-----BEGIN" in data:
            key = serialization.load_pem_public_key(data)
            raw = key.public_bytes_raw() if isinstance(key, Ed25519PublicKey) else b""
        else:
            raw = bytes.fromhex(data.decode("ascii").strip())
    except (ValueError, UnsupportedAlgorithm):
        raw = b""
    if len(raw) != PUBLIC_BYTES:
        raise RootKeyUnusable(f"{path}: is not an Ed25519 public key, PEM or {2 * PUBLIC_BYTES} hex digits")
    return raw


def _write_private(path: Path, key: Ed25519PrivateKey) -> None:
    text = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    replace_file(path, text.decode(), 0o600)
