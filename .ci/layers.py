"""Imports go down only: compares every crate's dependencies with the layers of ARCHITECTURE.md."""

import json
import subprocess
import sys

# Which crates of ours a crate may name. A crate that is not listed has no place in the house yet.
MAY_IMPORT: dict[str, set[str]] = {
    "vineyard-proto": set(),
    "vineyard-charge": {"vineyard-proto"},
    "vineyard-store": {"vineyard-charge", "vineyard-proto"},
    "vineyard-sidecar": {"vineyard-charge", "vineyard-proto"},
    "vineyard-csi": {"vineyard-store", "vineyard-charge", "vineyard-proto"},
    "vineyard": {"vineyard-store", "vineyard-charge", "vineyard-proto"},
    "vineyard-python": {"vineyard-store", "vineyard-charge"},
}
# Test crates sit above everything.
TESTS = {"vineyard-tests"}

# What must not be linked into a crate, however deep. cgroups-rs comes with the feature `control`.
RUNTIMES = {"tokio", "tonic", "tonic-prost", "kube", "hyper", "async-std", "cgroups-rs", "zbus"}
NEVER_LINKED: dict[str, set[str]] = {
    "vineyard-proto": RUNTIMES,
    "vineyard-charge": RUNTIMES,
    "vineyard-store": RUNTIMES,
    "vineyard-python": RUNTIMES,
    "vineyard": {"tonic", "kube"},
    "vineyard-sidecar": {"tonic", "kube", "cgroups-rs"},
}


def cargo(*arguments: str) -> str:
    """Runs cargo and returns what it printed."""
    return subprocess.run(["cargo", *arguments], check=True, capture_output=True, text=True).stdout


def linked(crate: str) -> set[str]:
    """Returns the names of everything that `crate` links with its default features."""
    tree = cargo("tree", "--locked", "-p", crate, "-e", "normal", "--prefix", "none")
    return {line.split()[0] for line in tree.splitlines() if line.strip()}


def violations() -> list[str]:
    """Returns one sentence for every dependency that points the wrong way."""
    metadata = json.loads(cargo("metadata", "--locked", "--no-deps", "--format-version", "1"))
    ours = {package["name"] for package in metadata["packages"]}
    found = [f"{name} is in .ci/layers.py but not a crate" for name in set(MAY_IMPORT) - ours]
    for package in metadata["packages"]:
        name = package["name"]
        if name in TESTS:
            continue
        if name not in MAY_IMPORT:
            found.append(f"{name} has no layer: name it in .ci/layers.py and ARCHITECTURE.md")
            continue
        for dependency in package["dependencies"]:
            target = dependency["name"]
            if target in ours - MAY_IMPORT[name] - {name}:
                found.append(f"{name} must not depend on {target} ({dependency['kind'] or 'normal'})")
        found += [f"{name} must not link {crate}" for crate in sorted(linked(name) & NEVER_LINKED.get(name, set()))]
    return found


if __name__ == "__main__":
    problems = violations()
    print("\n".join(problems) or "layers: every dependency points down")
    sys.exit(bool(problems))
