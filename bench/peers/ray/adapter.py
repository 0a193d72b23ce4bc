"""Ray: `ray.put` and `ray.get` from two drivers of one cluster. References travel through an actor, untimed."""

from __future__ import annotations

import logging
import os
import uuid
from typing import Any

# The name is Ray's; it keeps the driver on 127.0.0.1, where the cluster listens.
os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"

import ray


@ray.remote(num_cpus=0)
class Box:
    """Where one driver leaves references for another."""

    def __init__(self) -> None:
        self.left: dict[str, list[Any]] = {}

    def leave(self, key: str, references: list[Any]) -> None:
        self.left[key] = references

    def take(self, key: str) -> list[Any]:
        return self.left[key]

    def clear(self) -> None:
        self.left.clear()


class Store:
    """A driver."""

    def __init__(self, place: dict[str, Any]) -> None:
        ray.init(
            address=place["address"],
            namespace="bench",
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
        options = {"name": "box", "lifetime": "detached", "get_if_exists": True}
        self.box = Box.options(**options).remote()

    def put(self, value: Any) -> Any:
        return ray.put(value)

    def get(self, handle: Any) -> Any:
        return ray.get(handle)

    def export(self, handles: list[Any]) -> list[str]:
        key = uuid.uuid4().hex
        ray.get(self.box.leave.remote(key, handles))
        return [f"{key}:{i}" for i in range(len(handles))]

    def resolve(self, tokens: list[str]) -> list[Any]:
        taken: dict[str, list[Any]] = {}
        handles = []
        for token in tokens:
            key, index = token.split(":")
            if key not in taken:
                taken[key] = ray.get(self.box.take.remote(key))
            handles.append(taken[key][int(index)])
        return handles

    def drop(self, handles: list[Any]) -> None:
        handles.clear()
        ray.get(self.box.clear.remote())
