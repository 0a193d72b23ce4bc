"""`Volume`: a directory that is also a store of Python values."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, BinaryIO, Literal, NamedTuple, TypeAlias

from vineyard import _native, codec, default, describe
from vineyard.draft import Draft
from vineyard.errors import DeserializationError, GetTimeout, ObjectNotFound
from vineyard.files import Reader, Writer
from vineyard.listing import Entry, Listing, human_bytes
from vineyard.ref import Ref
from vineyard.stream import Stream

__all__ = ["Mode", "Volume", "attach", "open"]

#: How what `get` returns may be written: privately, not at all, or in a copy that shares nothing.
Mode: TypeAlias = Literal["cow", "readonly", "copy"]

_MISSING: Any = object()
_GONE: Any = object()
_MODES = {"cow": False, "copy": False, "readonly": True}
#: Most rows that a notebook shows of a volume.
_SHOWN = 200


class Usage(NamedTuple):
    """Bytes of a volume; capacity is 0 when it has no limit of its own."""

    capacity: int
    used: int
    free: int
    #: Removed objects that somebody still maps.
    trash: int


class Volume:
    """A volume. `vol[name] = value` puts, `vol[name]` gets; both move bytes at most once.

    Values come back as exactly the type they were put as. Arrays and tables are views of the stored bytes: they may
    be written, which copies the pages that are touched and never changes the object.
    """

    __slots__ = ("__weakref__", "_get", "_native", "_put", "_socket", "path")

    #: The directory.
    path: str

    def __init__(self, path: str | os.PathLike[str], socket: str | None = None, *, create: bool = True) -> None:
        self.path = default.named(path)
        self._socket = socket
        self._native = native = _native.Volume(self.path, create, socket)
        self._put = native.put
        self._get = native.get

    # --- put -----------------------------------------------------------------------------------------------------

    def put(
        self,
        value: Any,
        name: str | None = None,
        *,
        ttl: float | None = None,
        overwrite: bool = True,
        allow_pickle: bool = True,
    ) -> Ref:
        """Stores `value`, under `name` if one is given, for `ttl` seconds if given.

        Raises StoreFull (also a MemoryError), ObjectExists when the name is taken and not to be overwritten,
        SerializationError (also a TypeError) for values that cannot be stored, such as open files.
        """
        kind, content = codec.encode(value, allow_pickle)
        object_id, nbytes = self._put(kind, content, name, ttl, overwrite)
        return Ref(self, object_id, kind, nbytes, name, type(value), getattr(value, "shape", None))

    def put_many(
        self,
        values: Mapping[str, Any] | Iterable[Any],
        name: str | None = None,
        *,
        ttl: float | None = None,
        overwrite: bool = True,
        allow_pickle: bool = True,
    ) -> Ref:
        """Stores many small values as one object, which costs less than one object each.

        A value of a mapping is got as `name/key`, of a sequence as `name/00000000` and so on; `name` gives a dict of
        all, sorted by key.
        """
        keyed: Iterable[tuple[str | None, Any]]
        if isinstance(values, Mapping):
            for key in values:
                if not isinstance(key, str):
                    raise TypeError(f"a key is a str, not {type(key).__name__}: {key!r}. Pass {{str(key): value, …}}.")
            keyed = values.items()
        else:
            keyed = ((None, value) for value in values)
        members = [(key, *codec.encode(value, allow_pickle, True)) for key, value in keyed]
        object_id, nbytes = self._native.put_many(members, name, ttl, overwrite)
        return Ref(self, object_id, "pack", nbytes, name, type(values), (len(members),))

    def create(
        self,
        name: str | None,
        shape: int | Sequence[int],
        dtype: Any = None,
        *,
        ttl: float | None = None,
        overwrite: bool = True,
    ) -> Draft:
        """An array (or, without `dtype`, `shape` bytes) to be filled in place: no copy is made at all.

        As with `numpy.empty`, what it contains before it is filled is not specified.

        >>> with vol.create("x", (10**9,), "f4") as a:
        ...     a[:] = 1
        """
        return Draft(self, name, shape, dtype, ttl, overwrite)

    def open(
        self,
        name: str | Ref | None,
        mode: str = "rb",
        *,
        kind: str | None = None,
        ttl: float | None = None,
        overwrite: bool = True,
    ) -> BinaryIO:
        """An object as binary file. `wb` makes a new one, visible when it is closed; `rb` reads any.

        `kind`: how `get` shall decode what is written; raw bytes if not given.
        """
        if mode == "wb":
            if isinstance(name, Ref):
                raise TypeError("an object never changes: open a name to write a new one.")
            return Writer(self, name, kind or "raw", ttl, overwrite)  # type: ignore[return-value]
        if mode != "rb":
            raise ValueError(f"mode is 'rb' or 'wb', not {mode!r}: objects are bytes, and never change.")
        return Reader(self._native.memory(_place(name), False)[1])  # type: ignore[return-value]

    def stream(
        self,
        name: str,
        *,
        timeout: float | None = None,
        start: int = 0,
        consume: bool = False,
        mode: Mode = "cow",
        allow_pickle: bool = True,
    ) -> Stream:
        """A sequence of values under one name: iterate to read while it grows, `append` to write.

        `timeout`: seconds to wait for each part. `start`: first part to read. `consume`: remove parts as they are read.
        """
        return Stream(self, name, timeout, start, consume, _readonly(mode), mode == "copy", allow_pickle)

    # --- get -----------------------------------------------------------------------------------------------------

    def get(
        self,
        key: str | Ref,
        *,
        timeout: float | None = None,
        mode: Mode = "cow",
        allow_pickle: bool = True,
        default: Any = _MISSING,
    ) -> Any:
        """The value under a name, or of a `Ref`.

        `timeout`: seconds to wait for the name; GetTimeout (also a TimeoutError) after that. `default`: what to return
        when it is not there, instead of raising ObjectNotFound (also a KeyError).
        """
        readonly = _readonly(mode)
        place = key if type(key) is str else _place(key)
        try:
            kind, memory = self._get(place, readonly)
        except ObjectNotFound:
            # An object that is gone never comes back: only a name is worth waiting for.
            if timeout is None or isinstance(key, Ref):
                if default is _MISSING:
                    raise
                return default
            try:
                self.wait(place, timeout=timeout)
            except GetTimeout:
                if default is _MISSING:
                    raise
                return default
            kind, memory = self._get(place, readonly)
        if kind == "raw":
            return memory
        return codec.decode(kind, bytearray(memory) if mode == "copy" else memory, allow_pickle)

    def arrow(self, key: str | Ref) -> Any:
        """A stored table as `pyarrow.Table`, without a copy. Needs pyarrow."""
        kind, memory = self._native.memory(_place(key), False)
        if kind != "arrow":
            value = codec.decode(kind, memory)
            if hasattr(value, "__arrow_c_stream__"):
                return value
            raise DeserializationError(f"an object of kind {kind} is no table: get() it.")
        from vineyard.types import arrow

        return arrow.table(memory)

    def wait(self, *names: str, timeout: float | None = None) -> None:
        """Waits until all names can be got. Raises GetTimeout (also a TimeoutError) after `timeout` seconds."""
        self._native.wait(list(names), timeout)

    # --- everything else -------------------------------------------------------------------------------------------

    def ls(self, prefix: str | None = None, *, glob: str | None = None) -> Listing:
        """Names, plain files and streams of the volume: all, or those that start with `prefix` or match `glob`."""
        rows = (row for batch in self._native.list(prefix, glob, True) for row in batch)
        return Listing(sorted((Entry.of(row) for row in rows), key=lambda entry: entry.name or ""))

    def names(self, prefix: str | None = None, *, glob: str | None = None) -> list[str]:
        """The names alone, sorted; cheaper than `ls`."""
        return sorted(row.name for batch in self._native.list(prefix, glob, False) for row in batch if row.name)

    def stat(self, key: str | Ref) -> Entry:
        """Kind, size, age, type and shape of an object, without reading its values."""
        row = self._native.stat(_place(key))
        kind, shape = describe.describe(row.kind, self._native.memory(_place(key), True)[1])
        return Entry.of(row, key if isinstance(key, str) else key.name, kind, shape)

    def usage(self) -> Usage:
        """Capacity, used and free bytes."""
        return Usage(*self._native.usage())

    def rm(self, key: str | Ref | None = None, *, prefix: str | None = None) -> bool:
        """Removes a name and its object, or all names that start with `prefix`. False when nothing was there.

        Values that were got stay valid.
        """
        if (key is None) == (prefix is None):
            raise TypeError("rm() takes either a name (or Ref), or prefix=")
        if prefix is not None:
            return self._native.remove_prefix(prefix) > 0
        return self._native.remove(_place(key), key.name if isinstance(key, Ref) else None)

    def link(self, key: str | Ref, name: str, *, overwrite: bool = True) -> None:
        """Gives an object another name. It lives until the last of its names is removed."""
        self._native.link(_place(key), name, overwrite, key.name if isinstance(key, Ref) else None)

    def exists(self, key: str | Ref) -> bool:
        """Whether the name or object is there."""
        if isinstance(key, str):
            return self._native.exists(key)
        try:
            self._native.stat(_place(key))
        except ObjectNotFound:
            return False
        return True

    def address(self) -> tuple[str, str | None]:
        """Directory and socket: what another process on this node needs to attach the same volume."""
        return self.path, self._socket

    # --- a dict of names -------------------------------------------------------------------------------------------

    def __getitem__(self, name: str) -> Any:
        return self.get(name)

    def __setitem__(self, name: str, value: Any) -> None:
        if not isinstance(name, str):
            raise TypeError(f"a name is a str, not {type(name).__name__}")
        self.put(value, name)

    def __delitem__(self, name: str) -> None:
        if not self.rm(name):
            raise ObjectNotFound(f"{name}: no such object. ls() shows the names.")

    def __contains__(self, name: object) -> bool:
        return isinstance(name, (str, Ref)) and self.exists(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self.keys())

    def __len__(self) -> int:
        return len(self.keys())

    def __reduce__(self) -> tuple[Any, ...]:
        return attach, self.address()

    def keys(self) -> list[str]:
        """The names of values, sorted: without streams, whose parts have names of their own."""
        rows = (row for batch in self._native.list(None, None, False) for row in batch)
        return sorted(row.name for row in rows if row.name and row.kind != "stream")

    def items(self) -> Iterator[tuple[str, Any]]:
        """Names and values. Each value is got when its turn comes; what is removed until then is left out."""
        for name in self.keys():
            value = self.get(name, default=_GONE)
            if value is not _GONE:
                yield name, value

    def values(self) -> Iterator[Any]:
        """The values, as of `items`."""
        return (value for _, value in self.items())

    def _ipython_key_completions_(self) -> list[str]:
        return self.names()

    def __repr__(self) -> str:
        return f"Volume({self.path!r})"

    def _repr_html_(self) -> str:
        import html

        usage = self.usage()
        listing = self.ls()
        more = f"<p>… {len(listing) - _SHOWN} more</p>" if len(listing) > _SHOWN else ""
        caption = f"{html.escape(self.path)}: {human_bytes(usage.used)} used, {human_bytes(usage.free)} free"
        return f"<p>{caption}</p>{Listing(listing[:_SHOWN])._repr_html_()}{more}"


def _readonly(mode: str) -> bool:
    try:
        return _MODES[mode]
    except KeyError:
        raise ValueError(f"mode is 'cow', 'readonly' or 'copy', not {mode!r}") from None


def _place(key: Any) -> Any:
    """What the native part takes as key."""
    return (key.id, key.kind) if isinstance(key, Ref) else key


_attached: dict[tuple[str, str | None], tuple[Volume, tuple[int, int]]] = {}


def attach(path: str, socket: str | None = None) -> Volume:
    """The volume at `path`; one per process, however often it is asked for, until another one is mounted there."""
    known = _attached.get((path, socket))
    if known is not None and known[1] == _identity(path):
        return known[0]
    volume = Volume(path, socket)
    _attached[path, socket] = volume, _identity(path)
    return volume


def _identity(path: str) -> tuple[int, int]:
    try:
        found = os.stat(path)
    except OSError:
        return 0, 0
    return found.st_dev, found.st_ino


def open(path: str | os.PathLike[str] | None = None, *, create: bool = True) -> Volume:  # noqa: A001
    """The volume in a directory, normally where a claim is mounted.

    Without `path`: the directory that VINEYARD_VOLUME names, else one of this user in shared memory, for use without
    Kubernetes. VINEYARD_SOCKET names the socket of the sidecar, whose pod is then billed for what is put.
    """
    place, socket = default.place(path)
    return Volume(place, socket, create=create)
