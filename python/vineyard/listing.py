"""`ls`: what a volume holds, as a list that notebooks show as a table."""

from __future__ import annotations

import html
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vineyard._native import Row

__all__ = ["Entry", "Listing", "human_age", "human_bytes"]


@dataclass(frozen=True, slots=True)
class Entry:
    """One name of a volume."""

    name: str | None
    #: Identity of the object; None for plain files and streams.
    id: str | None
    #: raw, text, npy, arrow, safetensors, pickle, pack, or stream.
    kind: str | None
    #: Length in bytes; None for streams and lost objects.
    nbytes: int | None
    #: Bytes of memory that it takes.
    allocated: int | None
    #: When it was written, in seconds since 1970.
    modified: float | None
    #: The user that made it.
    uid: int | None
    #: The value's type, where the object says so: only from `stat`.
    type: str | None = None
    #: The value's shape, where the object says so: only from `stat`.
    shape: tuple[int, ...] | None = None

    @classmethod
    def of(cls, row: Row, name: str | None = None, type: str | None = None, shape: Any = None) -> Entry:  # noqa: A002
        """The entry of a native row."""
        return cls(
            row.name if name is None else name,
            row.id,
            row.kind,
            row.nbytes,
            row.allocated,
            row.modified,
            row.uid,
            type,
            shape,
        )

    def cells(self) -> tuple[str, ...]:
        """Name, kind, size and age as text."""
        size = "" if self.nbytes is None else human_bytes(self.nbytes)
        age = "" if self.modified is None else human_age(time.time() - self.modified)
        return self.name or self.id or "", self.kind or "", size, age


_HEAD = ("name", "kind", "size", "age")


class Listing(list[Entry]):
    """Entries. Shown as a table."""

    def __repr__(self) -> str:
        rows = [_HEAD, *(entry.cells() for entry in self)]
        widths = [max(len(row[i]) for row in rows) for i in range(len(_HEAD))]
        return "\n".join(
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
        )

    def _repr_html_(self) -> str:
        head = "".join(f"<th>{cell}</th>" for cell in _HEAD)
        body = "".join(
            "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in entry.cells()) + "</tr>" for entry in self
        )
        return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def human_bytes(n: int) -> str:
    """1536 -> 1.5 KiB."""
    value, unit = float(n), "B"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if value < 1024:
            break
        value, unit = value / 1024, larger
    return f"{n} B" if unit == "B" else f"{value:.1f} {unit}"


def human_age(seconds: float) -> str:
    """90 -> 1 min."""
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{int(seconds // size)} {unit}"
    return f"{max(int(seconds), 0)} s"
