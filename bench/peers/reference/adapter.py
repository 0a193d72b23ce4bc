"""The reference system: its own client against its own daemon, unnamed objects (names need its etcd mode)."""

from __future__ import annotations

from typing import Any

import numpy as np
import vineyard


class Store:
    """A client."""

    def __init__(self, place: dict[str, Any]) -> None:
        self.client = vineyard.connect(place["socket"])

    def put(self, value: Any) -> Any:
        return self.client.put(value)

    def get(self, handle: Any) -> Any:
        return self.client.get(handle)

    def create(self, size: int) -> Any:
        return self.client.create_blob(size)

    def fill(self, draft: Any, array: Any) -> None:
        np.frombuffer(memoryview(draft), dtype=np.uint8)[:] = array

    def seal(self, draft: Any) -> Any:
        return draft.seal(self.client).id

    def export(self, handles: list[Any]) -> list[str]:
        return [repr(handle) for handle in handles]

    def resolve(self, tokens: list[str]) -> list[Any]:
        return [vineyard.ObjectID(token) for token in tokens]

    def drop(self, handles: list[Any]) -> None:
        for begin in range(0, len(handles), 1000):
            self.client.delete(handles[begin : begin + 1000])
