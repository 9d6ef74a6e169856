"""Plain text tables with aligned columns, and the same as Markdown. A cell is one line, whatever is in it."""

from collections.abc import Iterable, Sequence

from sled_board.printable import escaped


def aligned(header: Sequence[str], rows: Sequence[Sequence[object]], indent: str = "") -> str:
    """Columns as wide as their widest cell; numbers to the right."""
    cells = [[escaped(str(cell)) for cell in row] for row in rows]
    widths = [max(len(line[column]) for line in [list(header), *cells]) for column in range(len(header))]
    right = [bool(rows) and all(isinstance(row[column], int | float) for row in rows) for column in range(len(header))]

    def line(texts: Sequence[str]) -> str:
        parts = [
            text.rjust(width) if to_right else text.ljust(width)
            for text, width, to_right in zip(texts, widths, right, strict=True)
        ]
        return indent + "  ".join(parts).rstrip()

    return "\n".join(line(texts) for texts in [list(header), *cells])


def named(rows: Iterable[tuple[str, object]], width: int = 12) -> str:
    """One value a line, behind its name."""
    return "\n".join(f"{name:{width}} {escaped(str(value))}" for name, value in rows)


def markdown(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table."""
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    lines += ["| " + " | ".join(escaped(str(cell)) for cell in row) + " |" for row in rows]
    return "\n".join(lines)
