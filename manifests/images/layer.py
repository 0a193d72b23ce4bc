"""A layer: a tar archive that depends on names, modes and bytes of its files, and on nothing else."""

import gzip
import hashlib
import io
import stat
import tarfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath


@dataclass(frozen=True)
class Layer:
    """A layer, compressed, with its digests."""

    blob: bytes
    digest: str
    diff_id: str


def digest(blob: bytes) -> str:
    """Returns the digest of a blob as image manifests name it."""
    return f"sha256:{hashlib.sha256(blob).hexdigest()}"


def layer(source: Path, target: str) -> Layer:
    """Packs a file, or what is below a directory, for the path `target` of an image.

    Owner is root, times are 0, entries are sorted; anybody may read, and execute what somebody may.
    """
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", format=tarfile.GNU_FORMAT) as tar:
        place = PurePosixPath(target).relative_to("/")
        for parent in reversed(place.parents[:-1]):
            tar.addfile(_entry(str(parent), 0o755, tarfile.DIRTYPE))
        if source.is_dir():
            if place.parts:
                tar.addfile(_entry(str(place), 0o755, tarfile.DIRTYPE))
            for path in sorted(source.rglob("*"), key=lambda path: path.relative_to(source).parts):
                _add(tar, path, str(place / path.relative_to(source)))
        else:
            _add(tar, source, str(place))
    archive = packed.getvalue()
    # Level 1: the archive goes from one folder of a machine to another.
    blob = gzip.compress(archive, compresslevel=1, mtime=0)
    return Layer(blob, digest(blob), digest(archive))


def _add(tar: tarfile.TarFile, path: Path, name: str) -> None:
    status = path.lstat()
    if stat.S_ISLNK(status.st_mode):
        entry = _entry(name, 0o777, tarfile.SYMTYPE)
        entry.linkname = str(path.readlink())
        tar.addfile(entry)
    elif stat.S_ISDIR(status.st_mode):
        # World-writable directories of Debian's packages are so on purpose.
        mode = 0o1777 if status.st_mode & stat.S_IWOTH else 0o755
        tar.addfile(_entry(name, mode, tarfile.DIRTYPE))
    elif stat.S_ISREG(status.st_mode):
        entry = _entry(name, 0o755 if status.st_mode & stat.S_IXUSR else 0o644, tarfile.REGTYPE)
        entry.size = status.st_size
        with path.open("rb") as file:
            tar.addfile(entry, file)


def _entry(name: str, mode: int, kind: bytes) -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name)
    entry.mode, entry.type, entry.mtime = mode, kind, 0
    entry.uid = entry.gid = 0
    entry.uname = entry.gname = ""
    return entry
