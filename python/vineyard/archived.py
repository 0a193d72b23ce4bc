"""The archived project `vineyard` installs a package of the same name; files of both in one directory do not work."""

from __future__ import annotations

from importlib import metadata


def refuse() -> None:
    """Raises ImportError when the distribution `vineyard` is installed next to this one."""
    try:
        version = metadata.version("vineyard")
    except metadata.PackageNotFoundError:
        return
    raise ImportError(
        f"the archived distribution 'vineyard' {version} is installed, and has the same import name: "
        "pip uninstall vineyard vineyard-bdist, then pip install --force-reinstall vineyard-csi."
    )
