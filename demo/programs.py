"""The repository, and the programs that `make build` makes."""

import os
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent


def binary(name: str, *profiles: str) -> Path:
    """Where `make` puts a program, by default an optimised one; those that are static are built for a named target."""
    target = Path(os.environ.get("CARGO_TARGET_DIR", REPOSITORY / "target")).resolve()
    places = [f"{each}/{name}" for each in profiles or ("release",)]
    built = [path for place in places for path in (*target.glob(f"*/{place}"), target / place) if path.exists()]
    if not built:
        raise FileNotFoundError(f"{name} is not built: run `make demo`, or `make build` once")
    return max(built, key=lambda path: path.stat().st_mtime)
