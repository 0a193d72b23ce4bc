"""Which volume is meant when none is named."""

from __future__ import annotations

import os
import stat
import tempfile
import warnings

from vineyard.errors import ConnectionFailed

__all__ = ["SOCKET", "VOLUME", "named", "place"]

#: Environment: the volume's directory.
VOLUME = "VINEYARD_VOLUME"
#: Environment: the socket of the pod's sidecar.
SOCKET = "VINEYARD_SOCKET"
_SHARED_MEMORY = "/dev/shm"  # noqa: S108


def place(path: str | os.PathLike[str] | None) -> tuple[str, str | None]:
    """Directory and socket. An argument wins over the environment, and that over the embedded default."""
    directory = path if path is not None else os.environ.get(VOLUME) or None
    if directory is not None:
        return named(directory), os.environ.get(SOCKET) or None
    return embedded(), None


def named(path: str | os.PathLike[str]) -> str:
    """The absolute path of a directory that was named. Raises ValueError for an empty path, which names none."""
    if not os.fspath(path):
        raise ValueError(
            f"the path of the volume is empty: pass its directory, or nothing for the one in {VOLUME} or the default."
        )
    return os.path.abspath(path)


def embedded() -> str:
    """This user's own directory in shared memory, else below the temporary directory."""
    uid = os.getuid()
    for parent in (_SHARED_MEMORY, tempfile.gettempdir()):
        if not os.access(parent, os.W_OK | os.X_OK):
            continue
        path = os.path.join(parent, f"vineyard-{uid}")
        try:
            os.mkdir(path, 0o700)
        except FileExistsError:
            found = os.lstat(path)
            if not stat.S_ISDIR(found.st_mode) or found.st_uid != uid:
                raise ConnectionFailed(
                    f"{path} is not this user's directory: remove it, or name a volume in {VOLUME}."
                ) from None
        if parent != _SHARED_MEMORY:
            warnings.warn(
                f"{_SHARED_MEMORY} cannot be used, so the volume is {path}, perhaps on a disk: slow, but it works. "
                f"Name a directory on a tmpfs in {VOLUME}.",
                RuntimeWarning,
                stacklevel=4,
            )
        return path
    raise ConnectionFailed(f"no directory for a volume: name one in {VOLUME}, or pass it to open().")
