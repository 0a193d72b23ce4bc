"""Vineyard: a volume of memory that is also a store of Python values.

>>> import vineyard
>>> vol = vineyard.open()          # a directory; or $VINEYARD_VOLUME; or this user's own in shared memory
>>> vol["features"] = df           # put
>>> df = vol["features"]           # get: no copy, writable, never changes the store
"""

from vineyard import archived
from vineyard._native import __version__
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
from vineyard.ref import Ref
from vineyard.volume import Volume, open  # noqa: A004

archived.refuse()

__all__ = [
    "ConnectionFailed",
    "DeserializationError",
    "GetTimeout",
    "InvalidName",
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
    "Volume",
    "__version__",
    "open",
]
