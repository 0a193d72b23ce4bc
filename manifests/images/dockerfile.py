"""Reads the stages of a Dockerfile that start from nothing: they only copy files and say how to run them."""

import json
import re
from dataclasses import dataclass, field
from pathlib import Path


class DockerfileError(Exception):
    """A line that needs an engine to be carried out."""


@dataclass(frozen=True)
class Copy:
    """Files of another stage, and where they go."""

    stage: str
    source: str
    target: str


@dataclass
class Stage:
    """One image: its layers, one a copy, and its configuration."""

    name: str
    copies: list[Copy] = field(default_factory=list)
    user: str = ""
    workdir: str = "/"
    entrypoint: list[str] = field(default_factory=list)
    command: list[str] = field(default_factory=list)
    environment: list[str] = field(default_factory=list)
    labels: dict[str, str] = field(default_factory=dict)


FROM = re.compile(r"FROM\s+(\S+)\s+AS\s+(\S+)", re.IGNORECASE)
COPY = re.compile(r"--from=(\S+)\s+(\S+)\s+(\S+)")


def stages(path: Path) -> dict[str, Stage]:
    """Returns the stages `FROM scratch` by name.

    Raises:
        DockerfileError: when one of them has an instruction that is more than copying and configuring.
    """
    found: dict[str, Stage] = {}
    stage: Stage | None = None
    text = re.sub(r"\\\n", " ", path.read_text(encoding="utf-8"))
    for line in text.splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        instruction, _, rest = line.strip().partition(" ")
        rest = rest.strip()
        if start := FROM.fullmatch(line.strip()):
            stage = Stage(start[2]) if start[1] == "scratch" else None
            if stage:
                found[stage.name] = stage
        elif stage:
            _apply(stage, instruction.upper(), rest)
    return found


def _apply(stage: Stage, instruction: str, rest: str) -> None:
    match instruction:
        case "COPY" if copy := COPY.fullmatch(rest):
            stage.copies.append(Copy(*copy.groups()))
        case "USER":
            stage.user = rest
        case "WORKDIR":
            stage.workdir = rest
        case "ENTRYPOINT":
            stage.entrypoint = json.loads(rest)
        case "CMD":
            stage.command = json.loads(rest)
        case "ENV":
            stage.environment.append(rest)
        case "LABEL":
            key, _, value = rest.partition("=")
            stage.labels[key] = json.loads(value)
        case _:
            raise DockerfileError(f"stage {stage.name}: {instruction} {rest}: not without an engine")
