"""Tables on the terminal."""

from __future__ import annotations


def table(rows) -> None:
    """Prints rows of text under the first one as header."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    print()
    for number, row in enumerate(rows):
        first, *rest = (cell.rjust(width) for cell, width in zip(row, widths, strict=True))
        print("  ".join([first.strip().ljust(widths[0]), *rest]))
        if number == 0:
            print("  ".join("-" * width for width in widths))
