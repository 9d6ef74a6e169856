"""Text that others wrote, for the programs that are not a board's own: see `sled_board.printable`."""

from sled_board.printable import LineFormatter, complain, escaped, line_handler

__all__ = ["LineFormatter", "complain", "escaped", "line_handler"]
