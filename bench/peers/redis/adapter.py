"""Redis over its Unix socket, values pickled with protocol 5 as its users do."""

from __future__ import annotations

import itertools
import os
import pickle
from typing import Any

import redis


class Store:
    """A connection."""

    def __init__(self, place: dict[str, Any]) -> None:
        self.server = redis.Redis(unix_socket_path=place["socket"], socket_timeout=120)
        self.server.ping()
        self.numbers = itertools.count()
        self.prefix = f"{os.getpid()}-"

    def put(self, value: Any) -> str:
        key = f"{self.prefix}{next(self.numbers)}"
        self.server.set(key, pickle.dumps(value, protocol=5))
        return key

    def put_many(self, values: list[Any]) -> list[str]:
        keys = [f"{self.prefix}{next(self.numbers)}" for _ in values]
        self.server.mset({k: pickle.dumps(v, protocol=5) for k, v in zip(keys, values, strict=True)})
        return keys

    def get(self, handle: str) -> Any:
        return pickle.loads(self.server.get(handle))

    def export(self, handles: list[str]) -> list[str]:
        return handles

    def resolve(self, tokens: list[str]) -> list[str]:
        return tokens

    def drop(self, handles: list[str]) -> None:
        for begin in range(0, len(handles), 10_000):
            self.server.delete(*handles[begin : begin + 10_000])
