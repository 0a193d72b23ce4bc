"""`Ref`: what `put` returns. Small, hashable, picklable: send it to another process on the node and `get()` there."""

from __future__ import annotations

import html
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vineyard.volume import Mode, Volume

__all__ = ["Ref", "type_name"]


def type_name(kind: type) -> str:
    """`pandas.DataFrame` rather than `pandas.core.frame.DataFrame`."""
    if kind.__module__ == "builtins":
        return kind.__qualname__
    return f"{kind.__module__.partition('.')[0]}.{kind.__qualname__}"


class Ref:
    """An object of a volume. Its bytes never change; it lives until `rm`, its ttl, or the end of the volume."""

    __slots__ = ("_shape", "_type", "_volume", "id", "kind", "name", "nbytes")

    #: Identity, 26 characters.
    id: str
    #: How the bytes are decoded: raw, text, npy, arrow, safetensors, pickle.
    kind: str
    #: Length in bytes.
    nbytes: int
    #: The name that it was put under.
    name: str | None

    def __init__(
        self,
        volume: Volume,
        id: str,  # noqa: A002
        kind: str,
        nbytes: int,
        name: str | None,
        type: type | str | None = None,  # noqa: A002
        shape: tuple[int, ...] | None = None,
    ) -> None:
        self._volume = volume
        self.id = id
        self.kind = kind
        self.nbytes = nbytes
        self.name = name
        self._type = type
        self._shape = shape

    @property
    def type(self) -> str | None:
        """The value's type, e.g. `pandas.DataFrame`."""
        kind = self._type
        return kind if kind is None or isinstance(kind, str) else type_name(kind)

    @property
    def shape(self) -> tuple[int, ...] | None:
        """The value's shape, where it has one."""
        return self._shape

    def get(self, *, mode: Mode = "cow", allow_pickle: bool = True) -> Any:
        """The value; arrays and tables are views of the stored bytes."""
        return self._volume.get(self, mode=mode, allow_pickle=allow_pickle)

    def rm(self) -> bool:
        """Removes the object and its name. Values that were got stay valid. False when it was gone already."""
        return self._volume.rm(self)

    def __arrow_c_stream__(self, requested_schema: object = None) -> object:
        """The Arrow C stream of a table, so that pyarrow, polars, DuckDB and pandas read a Ref as it is."""
        return self._volume.arrow(self).__arrow_c_stream__(requested_schema)

    def __reduce__(self) -> tuple[Any, ...]:
        place = self._volume.address()
        return _attach, (place, self.id, self.kind, self.nbytes, self.name, self.type, self._shape)

    def __eq__(self, other: object) -> bool:
        return self.id == other.id if isinstance(other, Ref) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.id)

    def _fields(self) -> list[tuple[str, str]]:
        fields = [] if self.name is None else [("name", repr(self.name))]
        if self.type is not None:
            fields.append(("type", self.type))
        if self._shape is not None:
            fields.append(("shape", str(self._shape)))
        return [*fields, ("nbytes", str(self.nbytes)), ("kind", self.kind), ("id", self.id)]

    def __repr__(self) -> str:
        return f"Ref({', '.join(f'{key}={value}' for key, value in self._fields())})"

    def _repr_html_(self) -> str:
        rows = "".join(f"<tr><th>{key}</th><td>{html.escape(value)}</td></tr>" for key, value in self._fields())
        return f"<table><caption>vineyard.Ref</caption>{rows}</table>"


def _attach(place: tuple[str, str | None], *fields: Any) -> Ref:
    from vineyard.volume import attach

    return Ref(attach(*place), *fields)
