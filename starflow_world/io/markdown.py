"""Markdown that reads well on a terminal too."""

from collections.abc import Sequence


def table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A table whose columns line up."""
    sizes = [max(map(len, column)) for column in zip(head, *lines, strict=True)]
    rows = [" | ".join(cell.ljust(size) for cell, size in zip(line, sizes, strict=True)) for line in (head, *lines)]
    return "\n".join(f"| {row} |" for row in (rows[0], " | ".join("-" * size for size in sizes), *rows[1:]))
