"""What can go wrong. Every error is also the builtin that one expects, and its text ends with what to do next."""

from __future__ import annotations

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
    "SerializationError",
    "StoreError",
    "StoreFull",
]


class StoreError(Exception):
    """Base of every error of this package."""

    def __str__(self) -> str:
        # KeyError would show the repr of the text, OSError its errno.
        return str(self.args[0]) if self.args else type(self).__name__


class ConnectionFailed(StoreError, ConnectionError):
    """The sidecar's socket, or the volume's directory, is not there."""


class ObjectNotFound(StoreError, KeyError):
    """No object has this name."""


class ObjectExists(StoreError, FileExistsError):
    """The name is taken and `overwrite=False` was asked for."""


class StoreFull(StoreError, MemoryError):
    """The bytes did not fit. Nothing of them stays behind. Sizes are in bytes, 0 when unknown."""

    def __init__(self, message: str = "", asked: int = 0, free: int = 0, limit: int = 0) -> None:
        super().__init__(message)
        self.asked = asked
        self.free = free
        self.limit = limit

    def __reduce__(self) -> tuple[type[StoreFull], tuple[str, int, int, int]]:
        return type(self), (str(self), self.asked, self.free, self.limit)


class QuotaExceeded(StoreFull):
    """The pod's allowance or its memory limit is used up, while the volume itself has room."""


class GetTimeout(StoreError, TimeoutError):
    """The object did not appear in time."""


class ObjectLost(StoreError, LookupError):
    """The name is there, its object is not: the memory that held it is gone."""


class SerializationError(StoreError, TypeError):
    """The value cannot be stored so that exactly the same value comes back."""


class DeserializationError(StoreError, ValueError):
    """The stored bytes cannot be turned into a value here."""


class PermissionDenied(StoreError, PermissionError):
    """The volume, or this mount of it, may not be written (or read) by this user."""


class ProtocolMismatch(StoreError, RuntimeError):
    """The volume or the sidecar speaks a version that this package does not know."""


class InvalidName(StoreError, ValueError):
    """The text cannot be a name in a volume."""
