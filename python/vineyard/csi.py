"""The archived project's `csi.write(value, path)` and `csi.read(path)`: a path below the mount is a name."""

from __future__ import annotations

import os
from typing import Any

from vineyard.errors import ConnectionFailed
from vineyard.ref import Ref
from vineyard.volume import Volume, attach

__all__ = ["read", "write"]


def write(value: Any, path: str | os.PathLike[str]) -> Ref:
    """Stores `value` at a path below the directory where a volume is mounted."""
    volume, name = _split(path)
    return volume.put(value, name)


def read(path: str | os.PathLike[str], *, timeout: float | None = None) -> Any:
    """The value at a path below the directory where a volume is mounted."""
    volume, name = _split(path)
    return volume.get(name, timeout=timeout)


def _split(path: str | os.PathLike[str]) -> tuple[Volume, str]:
    whole = os.path.abspath(path)
    root = os.path.dirname(whole)
    while root != os.path.dirname(root):
        if os.path.isdir(os.path.join(root, ".vineyard")) or os.path.ismount(root):
            socket = os.environ.get("VINEYARD_SOCKET") or None
            return attach(root, socket), os.path.relpath(whole, root)
        root = os.path.dirname(root)
    raise ConnectionFailed(f"{whole} lies in no volume: is the claim mounted there? open(path) makes a local one.")
