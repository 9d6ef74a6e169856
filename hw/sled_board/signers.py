"""Keys that sign: read from a file, or out of reach in hardware behind a command, as of an HSM."""

import shlex
import subprocess
from dataclasses import dataclass
from typing import Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from sled_board.errors import SigningFailed
from sled_board.image.layout import SIGNATURE_BYTES

COMMAND_TIMEOUT_S: Final = 300.0  # a person may have to touch a token or type a PIN


@dataclass(frozen=True, slots=True)
class FileSigner:
    """A private key that has been read from a file."""

    private: Ed25519PrivateKey

    @property
    def public(self) -> bytes:
        """The public key, 32 raw bytes."""
        return self.private.public_key().public_bytes_raw()

    def sign(self, message: bytes) -> bytes:
        """The signature, 64 bytes."""
        return self.private.sign(message)


@dataclass(frozen=True, slots=True)
class CommandSigner:
    """A command that reads the message from its standard input and writes the 64 bytes of the signature.

    `public` is the key that it is expected to sign with.
    """

    command: str
    public: bytes

    def sign(self, message: bytes) -> bytes:
        """The signature, 64 bytes; raises SigningFailed."""
        try:
            argv = shlex.split(self.command)
            if not argv:
                raise SigningFailed("the signing command is empty")
            done = subprocess.run(argv, input=message, stdout=subprocess.PIPE, timeout=COMMAND_TIMEOUT_S, check=False)
        except ValueError as error:
            raise SigningFailed(f"the signing command {self.command!r} cannot be split into words: {error}") from None
        except OSError as error:
            raise SigningFailed(f"the signing command cannot be run: {argv[0]}: {error.strerror}") from None
        except subprocess.TimeoutExpired:
            raise SigningFailed(f"the signing command has not ended within {COMMAND_TIMEOUT_S:g} s") from None
        if done.returncode != 0:
            raise SigningFailed(f"the signing command ended with status {done.returncode}: {self.command}")
        if len(done.stdout) != SIGNATURE_BYTES:
            raise SigningFailed(
                f"the signing command wrote {len(done.stdout)} bytes, a signature has {SIGNATURE_BYTES} raw bytes"
            )
        return done.stdout
