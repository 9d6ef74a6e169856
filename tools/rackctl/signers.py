"""Ed25519 keys in files, in the formats of OpenSSL (RFC 8410), and keys that only a command can use, as of an HSM."""

from pathlib import Path
from typing import Final

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from sled_board.image.layout import PUBLIC_BYTES
from sled_board.signers import CommandSigner as CommandSigner
from sled_board.signers import FileSigner as FileSigner

from rackctl.errors import RackError
from rackctl.files import read_file

KEY_FILE_BYTES_MAX: Final = 16384


def private_pem(private: Ed25519PrivateKey, passphrase: bytes | None) -> bytes:
    """PKCS #8 in PEM, encrypted when there is a passphrase."""
    encryption = (
        serialization.BestAvailableEncryption(passphrase) if passphrase else serialization.NoEncryption()
    )  # fmt: skip
    return private.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption)


def public_pem(public: bytes) -> bytes:
    """SubjectPublicKeyInfo in PEM."""
    key = Ed25519PublicKey.from_public_bytes(public)
    return key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


def read_private(path: Path, passphrase: bytes | None = None) -> FileSigner:
    """The signer of a private key file; raises RackError."""
    try:
        key = serialization.load_pem_private_key(read_file(path, KEY_FILE_BYTES_MAX), passphrase)
    except TypeError:
        how = "is not encrypted: leave --passphrase-file out" if passphrase else "needs its --passphrase-file"
        raise RackError(f"{path}: {how}") from None
    except (ValueError, UnsupportedAlgorithm):
        hint = ", or the passphrase is another one" if passphrase else ""
        raise RackError(f"{path}: is no private key in PEM{hint}; `rackctl keys new` makes one") from None
    if not isinstance(key, Ed25519PrivateKey):
        raise RackError(f"{path}: is a private key of another kind than Ed25519")
    return FileSigner(key)


def read_public(path: Path) -> bytes:
    """The 32 raw bytes of a public key in a file, PEM or 64 hex digits; raises RackError."""
    data = read_file(path, KEY_FILE_BYTES_MAX)
    if b"-----BEGIN" not in data:
        try:
            raw = bytes.fromhex(data.decode("ascii").strip())
        except ValueError:
            raw = b""
        if len(raw) != PUBLIC_BYTES:
            raise RackError(f"{path}: is no public key: PEM or {2 * PUBLIC_BYTES} hex digits are")
        return raw
    try:
        key = serialization.load_pem_public_key(data)
    except (ValueError, UnsupportedAlgorithm):
        raise RackError(f"{path}: is no public key in PEM; a private key's is in the .pub file beside it") from None
    if not isinstance(key, Ed25519PublicKey):
        raise RackError(f"{path}: is a public key of another kind than Ed25519")
    return key.public_bytes_raw()


def read_passphrase(path: Path | None) -> bytes | None:
    """The first line of the file, None without one; raises RackError."""
    if path is None:
        return None
    found = read_file(path, KEY_FILE_BYTES_MAX).split(b"\n")[0].rstrip(b"\r")
    if not found:
        raise RackError(f"{path}: its first line is the passphrase, and it is empty")
    return found
