"""The calls of the archived project's client, so that programs written for it run after a change of the import.

Object ids are `Ref`s here. What needed a daemon (metadata trees, migration, sessions) has no counterpart: a volume
is a directory, and moving it is the driver's work.
"""

from __future__ import annotations

import os
import warnings
from typing import Any, Self

from vineyard import default
from vineyard.errors import ObjectNotFound
from vineyard.ref import Ref
from vineyard.volume import Mode, Volume

__all__ = ["Client", "connect"]

_MISSING: Any = object()


class Client(Volume):
    """A volume with the reference client's calls on top of its own."""

    __slots__ = ()

    def put(
        self,
        value: Any,
        name: str | None = None,
        *,
        builder: Any = None,
        persist: bool = False,
        ttl: float | None = None,
        overwrite: bool = True,
        allow_pickle: bool = True,
    ) -> Ref:
        """As `Volume.put`. `persist` changes nothing: every object is visible to all who mount the volume."""
        del persist
        if builder is not None:
            raise TypeError("builders are not taken: vineyard.register(type, encode, decode) instead.")
        return super().put(value, name, ttl=ttl, overwrite=overwrite, allow_pickle=allow_pickle)

    def get(
        self,
        object_id: str | Ref | None = None,
        name: str | None = None,
        *,
        resolver: Any = None,
        fetch: bool = False,
        timeout: float | None = None,
        mode: Mode = "cow",
        allow_pickle: bool = True,
        default: Any = _MISSING,
    ) -> Any:
        """As `Volume.get`. `fetch` changes nothing: the driver brings objects here by itself."""
        del fetch
        if resolver is not None:
            raise TypeError("resolvers are not taken: vineyard.register(type, encode, decode) instead.")
        key = name if object_id is None else object_id
        if key is None:
            raise TypeError("get() takes a name or an object id")
        options: dict[str, Any] = {} if default is _MISSING else {"default": default}
        return super().get(key, timeout=timeout, mode=mode, allow_pickle=allow_pickle, **options)

    def put_name(self, object_id: Ref, name: str) -> None:
        """Gives an object a (further) name."""
        self.link(object_id, name)

    def get_name(self, name: str, wait: bool = False, timeout: float | None = None) -> Ref:
        """The object that a name points to; `wait` for it, up to `timeout` seconds."""
        if wait:
            self.wait(name, timeout=timeout)
        row = self._native.stat(name)
        if row.id is None or row.kind is None or row.nbytes is None:
            raise ObjectNotFound(f"{name} is a plain file, not an object: open() it.")
        return Ref(self, row.id, row.kind, row.nbytes, name)

    def list_names(self, pattern: str = "**", regex: bool = False, limit: int = 5) -> dict[str, Ref]:
        """Names that match a glob (or a regular expression), and their objects."""
        names = self.names(glob=None if regex or pattern in ("*", "**") else pattern)
        if regex:
            import re

            expression = re.compile(pattern)
            names = [name for name in names if expression.search(name)]
        found: dict[str, Ref] = {}
        for name in names:
            if len(found) >= limit:
                break
            try:
                found[name] = self.get_name(name)
            except ObjectNotFound:
                continue
        return found

    def drop_name(self, name: str) -> None:
        """Removes a name. An object without any other name goes with it."""
        self.rm(name)

    def delete(
        self,
        object: Ref | str | list[Ref | str],  # noqa: A002
        force: bool = False,
        deep: bool = True,
        memory_trim: bool = False,
    ) -> None:
        """Removes objects. The flags change nothing: nothing is shared between objects, and memory is freed at once."""
        del force, deep, memory_trim
        for one in object if isinstance(object, list) else [object]:
            self.rm(one)

    def persist(self, object: Ref | str) -> None:  # noqa: A002
        """Checks that the object is there; it always outlives this process."""
        self.stat(object)

    def create_blob(self, size: int) -> Any:
        """A draft of `size` raw bytes: fill `.array`, then `.seal()`."""
        return super().create(None, size)

    def get_blob(self, object_id: Ref | str, unsafe: bool = False) -> memoryview:
        """The bytes of an object, without a copy."""
        del unsafe
        return memoryview(
            self._native.memory((object_id.id, object_id.kind) if isinstance(object_id, Ref) else object_id, False)[1]
        )

    def clear(self) -> None:
        """Removes everything that has a name."""
        self.rm(prefix="")

    def close(self) -> None:
        """Nothing to close: what was got stays valid, and files are closed when the volume goes."""

    @property
    def status(self) -> dict[str, int]:
        """Memory, as the reference client shows it."""
        usage = self.usage()
        return {"memory_usage": usage.used, "memory_limit": usage.capacity}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def connect(endpoint: str | os.PathLike[str] | None = None, **ignored: Any) -> Client:
    """The volume at a directory, or the default one, with the reference client's calls.

    Sockets, ports, sessions and configuration files of the reference client are ignored with a warning.
    """
    names = sorted(name for name, value in ignored.items() if value is not None)
    if names:
        warnings.warn(
            f"connect() needs no {', '.join(names)}: pass the volume's directory, or set {default.VOLUME}.",
            stacklevel=2,
        )
    path, socket = default.place(endpoint)
    return Client(path, socket)
