"""Vineyard: a volume of memory that is also a store of Python values.

>>> import vineyard
>>> vol = vineyard.open()          # a directory; or $VINEYARD_VOLUME; or this user's own in shared memory
>>> vol["features"] = df           # put
>>> df = vol["features"]           # get: no copy, writable, never changes the store
"""

from typing import Any

from vineyard import archived, csi
from vineyard._native import __version__
from vineyard.client import Client, connect
from vineyard.draft import Draft
from vineyard.errors import (
    ConnectionFailed,
    DeserializationError,
    GetTimeout,
    InvalidName,
    ObjectExists,
    ObjectLost,
    ObjectNotFound,
    PermissionDenied,
    ProtocolMismatch,
    QuotaExceeded,
    SerializationError,
    StoreError,
    StoreFull,
)
from vineyard.listing import Entry, Listing
from vineyard.ref import Ref
from vineyard.register import register, unregister
from vineyard.stream import Stream
from vineyard.volume import Usage, Volume, attach
from vineyard.volume import open as open  # noqa: A004

archived.refuse()


def put(value: Any, name: str | None = None, **options: Any) -> Ref:
    """`open().put(...)`: stores a value in the default volume."""
    return _default().put(value, name, **options)


def get(key: str | Ref, **options: Any) -> Any:
    """`open().get(...)`: a value of the default volume, or of any Ref."""
    return key.get(**options) if isinstance(key, Ref) else _default().get(key, **options)


def _default() -> Volume:
    from vineyard import default

    return attach(*default.place(None))


__all__ = [
    "Client",
    "ConnectionFailed",
    "DeserializationError",
    "Draft",
    "Entry",
    "GetTimeout",
    "InvalidName",
    "Listing",
    "ObjectExists",
    "ObjectLost",
    "ObjectNotFound",
    "PermissionDenied",
    "ProtocolMismatch",
    "QuotaExceeded",
    "Ref",
    "SerializationError",
    "StoreError",
    "StoreFull",
    "Stream",
    "Usage",
    "Volume",
    "__version__",
    "connect",
    "csi",
    "get",
    "open",
    "put",
    "register",
    "unregister",
]
