"""Builds images without an engine, from the stages of a Dockerfile that only copy.

    build.py DOCKERFILE --from build=target/release --prefix vineyard-csi/ --tag 0.1.0 --out .cache/images

The same files give the same digests, on every machine.
"""

import argparse
import platform
import sys
from pathlib import Path, PurePosixPath

import archive
import dockerfile
from layer import Layer, layer

ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}


def main() -> int:
    """Builds the images that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("dockerfile", type=Path)
    parser.add_argument(
        "--from", dest="sources", action="append", default=[], metavar="STAGE=FOLDER",
        help="where the files are that a stage of the Dockerfile would have made in /out",
    )  # fmt: skip
    parser.add_argument("--name", action="append", required=True, metavar="STAGE=NAME:TAG", dest="names")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    sources = {stage: Path(folder) for stage, _, folder in (each.partition("=") for each in arguments.sources)}
    stages = dockerfile.stages(arguments.dockerfile)
    arguments.out.mkdir(parents=True, exist_ok=True)
    packed: dict[dockerfile.Copy, Layer] = {}
    for stage_name, _, name in (each.partition("=") for each in arguments.names):
        stage = stages[stage_name]
        for copy in stage.copies:
            if copy not in packed:
                packed[copy] = layer(source(sources, copy), copy.target)
        path = arguments.out / f"{stage_name}.tar"
        layers = [packed[copy] for copy in stage.copies]
        digest = archive.write(path, name, stage, layers, ARCHITECTURES[platform.machine()])
        print(f"{name} {digest} {path.stat().st_size / 2**20:.1f} MiB")
    return 0


def source(sources: dict[str, Path], copy: dockerfile.Copy) -> Path:
    """Returns the file or folder of this machine that is copied."""
    below = PurePosixPath(copy.source).relative_to("/out")
    return sources[copy.stage] / below


if __name__ == "__main__":
    sys.exit(main())
