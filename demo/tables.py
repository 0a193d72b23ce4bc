"""Tables and numbers for people."""

from collections.abc import Iterable, Sequence


def table(head: Sequence[str], rows: Iterable[Sequence[str]], indent: str = "  ") -> str:
    """Aligns columns; those whose head starts with `>` to the right."""
    names = [name.removeprefix(">") for name in head]
    right = [name.startswith(">") for name in head]
    lines = [names, *(list(row) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(names))]
    lines.insert(1, ["─" * width for width in widths])

    def cells(line: Sequence[str]) -> Iterable[str]:
        for text, width, to_right in zip(line, widths, right, strict=True):
            yield text.rjust(width) if to_right else text.ljust(width)

    return "\n".join((indent + "  ".join(cells(line))).rstrip() for line in lines)


def size(count: float) -> str:
    """Bytes in a unit that fits, e.g. `216.5 MB`; powers of 1000 as disks and networks count."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.2f} GB"


def milliseconds(value: float) -> str:
    """Milliseconds with as many digits as mean something."""
    return f"{value:.2f}" if value < 10 else f"{value:.1f}" if value < 100 else f"{value:.0f}"


def title(text: str) -> str:
    """A heading."""
    return f"\n{text}\n{'═' * len(text)}"
