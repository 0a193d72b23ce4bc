"""The repository, and the programs that `make build` makes."""

import os
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent


def binary(name: str) -> Path:
    """Where `make build` puts a program; the sidecar is static, and so built for a named target."""
    target = Path(os.environ.get("CARGO_TARGET_DIR", REPOSITORY / "target")).resolve()
    built = [path for path in (*target.glob(f"*/release/{name}"), target / "release" / name) if path.exists()]
    if not built:
        raise FileNotFoundError(f"{name} is not built: run `make demo`, or `make build` once")
    return max(built, key=lambda path: path.stat().st_mtime)
