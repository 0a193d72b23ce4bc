"""`Volume`: a directory that is also a store of Python values."""

from __future__ import annotations

import os
import weakref
from collections.abc import Iterator
from typing import Any, Literal, TypeAlias

from vineyard import _native, codec, default
from vineyard.errors import DeserializationError, GetTimeout, ObjectNotFound
from vineyard.ref import Ref

__all__ = ["Mode", "Volume", "attach", "open"]

#: How what `get` returns may be written: privately, not at all, or in a copy that shares nothing.
Mode: TypeAlias = Literal["cow", "readonly", "copy"]

_MISSING: Any = object()
_MODES = {"cow": False, "copy": False, "readonly": True}


class Volume:
    """A volume. `vol[name] = value` puts, `vol[name]` gets; both move bytes at most once.

    Values come back as exactly the type they were put as. Arrays and tables are views of the stored bytes: they may
    be written, which copies the pages that are touched and never changes the object.
    """

    __slots__ = ("__weakref__", "_get", "_native", "_put", "_socket", "path")

    #: The directory.
    path: str

    def __init__(self, path: str | os.PathLike[str], socket: str | None = None, *, create: bool = True) -> None:
        self.path = os.path.abspath(path)
        self._socket = socket
        self._bind(_native.Volume(self.path, create, socket))
        _volumes.add(self)

    def _bind(self, native: _native.Volume) -> None:
        self._native = native
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
        try:
            readonly = _MODES[mode]
        except KeyError:
            raise ValueError(f"mode is 'cow', 'readonly' or 'copy', not {mode!r}") from None
        place = key if type(key) is str else _place(key)
        try:
            kind, memory = self._get(place, readonly)
        except ObjectNotFound:
            if timeout is None:
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

    # --- everything else -------------------------------------------------------------------------------------------

    def rm(self, key: str | Ref) -> bool:
        """Removes a name and its object. Values that were got stay valid. False when it was not there."""
        return self._native.remove(_place(key))

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
        return iter(self.names())

    def __len__(self) -> int:
        return len(self.names())

    def __reduce__(self) -> tuple[Any, ...]:
        return attach, self.address()

    def __repr__(self) -> str:
        return f"Volume({self.path!r})"


def _place(key: Any) -> Any:
    """What the native part takes as key."""
    return (key.id, key.kind) if isinstance(key, Ref) else key


_volumes: weakref.WeakSet[Volume] = weakref.WeakSet()
_attached: dict[tuple[str, str | None], Volume] = {}


def attach(path: str, socket: str | None = None) -> Volume:
    """The volume at `path`; one per process, however often it is asked for."""
    volume = _attached.get((path, socket))
    if volume is None:
        volume = _attached[path, socket] = Volume(path, socket)
    return volume


def open(path: str | os.PathLike[str] | None = None, *, create: bool = True) -> Volume:  # noqa: A001
    """The volume in a directory, normally where a claim is mounted.

    Without `path`: the directory that VINEYARD_VOLUME names, else one of this user in shared memory, for use without
    Kubernetes. VINEYARD_SOCKET names the socket of the sidecar, whose pod is then billed for what is put.
    """
    place, socket = default.place(path)
    return Volume(place, socket, create=create)


def _after_fork() -> None:
    # Connections and reserved pages belong to the parent.
    for volume in list(_volumes):
        if volume._socket is not None:
            volume._bind(_native.Volume(volume.path, False, volume._socket))


os.register_at_fork(after_in_child=_after_fork)
