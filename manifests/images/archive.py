"""An image as a file: an OCI layout, which `docker load` understands too."""

import io
import json
import tarfile
from pathlib import Path
from typing import Any

from dockerfile import Stage
from layer import Layer, digest

# The same for every machine that builds it; seconds since 1970.
EPOCH = "1970-01-01T00:00:00Z"
OCI = "application/vnd.oci.image"


def write(path: Path, name: str, stage: Stage, layers: list[Layer], architecture: str) -> str:
    """Writes the image and returns the digest of its manifest."""
    config = _json(_config(stage, layers, architecture))
    blobs = {digest(config): config} | {layer.digest: layer.blob for layer in layers}
    manifest = _json(
        {
            "schemaVersion": 2,
            "mediaType": f"{OCI}.manifest.v1+json",
            "config": _descriptor(f"{OCI}.config.v1+json", config),
            "layers": [_descriptor(f"{OCI}.layer.v1.tar+gzip", layer.blob) for layer in layers],
        }
    )
    blobs[digest(manifest)] = manifest
    tag = name.rpartition(":")[2]
    annotations = {"io.containerd.image.name": name, "org.opencontainers.image.ref.name": tag}
    entry = _descriptor(f"{OCI}.manifest.v1+json", manifest) | {"annotations": annotations}
    index = {"schemaVersion": 2, "mediaType": f"{OCI}.index.v1+json", "manifests": [entry]}
    docker = [{"Config": _blob(digest(config)), "RepoTags": [name], "Layers": [_blob(each.digest) for each in layers]}]
    files = {_blob(key): blob for key, blob in blobs.items()}
    files |= {"index.json": _json(index), "manifest.json": _json(docker)}
    files["oci-layout"] = _json({"imageLayoutVersion": "1.0.0"})
    partial = path.with_suffix(".partial")
    with tarfile.open(partial, "w", format=tarfile.GNU_FORMAT) as tar:
        for file in sorted(files):
            entry_of_file = tarfile.TarInfo(file)
            entry_of_file.size = len(files[file])
            tar.addfile(entry_of_file, io.BytesIO(files[file]))
    partial.rename(path)
    return digest(manifest)


def _config(stage: Stage, layers: list[Layer], architecture: str) -> dict[str, Any]:
    execution = {
        "User": stage.user,
        "WorkingDir": stage.workdir,
        "Env": stage.environment,
        "Entrypoint": stage.entrypoint,
        "Cmd": stage.command,
        "Labels": stage.labels,
    }
    return {
        "architecture": architecture,
        "os": "linux",
        "created": EPOCH,
        "config": {key: value for key, value in execution.items() if value},
        "rootfs": {"type": "layers", "diff_ids": [layer.diff_id for layer in layers]},
        "history": [{"created": EPOCH, "created_by": f"COPY {copy.source} {copy.target}"} for copy in stage.copies],
    }


def _descriptor(kind: str, blob: bytes) -> dict[str, Any]:
    return {"mediaType": kind, "digest": digest(blob), "size": len(blob)}


def _blob(key: str) -> str:
    return "blobs/" + key.replace(":", "/")


def _json(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":"), sort_keys=True).encode()
