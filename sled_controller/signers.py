"""Keys that sign, for the programs that are not a board's own: see `sled_board.signers`."""

from sled_board.errors import SigningFailed
from sled_board.image.signing import Signer, checked_signature
from sled_board.signers import CommandSigner, FileSigner

__all__ = ["CommandSigner", "FileSigner", "Signer", "SigningFailed", "checked_signature"]
