"""Kedro hooks that write down what every hand-over and every node took."""

import json
import os
import socket
import threading
import time
from pathlib import Path
from typing import Any

from kedro.framework.hooks import hook_impl
from kedro.pipeline.node import Node

from flights.buffers import Buffers


class Recorder:
    """Appends one JSON line per event to the file `DEMO_RECORD`; without it, does nothing.

    Events: `put` and `get` (milliseconds, bytes, of those in mappings of the volume `DEMO_VOLUME`),
    `node` (milliseconds of computing). When a node is done and its inputs are released, says so to
    the socket `DEMO_STEPS` and waits for the answer.
    """

    def __init__(self) -> None:
        self._record = os.environ.get("DEMO_RECORD")
        self._volume = Path(os.environ.get("DEMO_VOLUME", "/nonexistent"))
        self._steps = os.environ.get("DEMO_STEPS")
        self._started: dict[tuple[int, str], float] = {}
        self._last_node: str | None = None

    @hook_impl
    def before_dataset_loaded(self, dataset_name: str, node: Node) -> None:
        self._step(node.name)
        self._start(dataset_name)

    @hook_impl
    def after_dataset_loaded(self, dataset_name: str, data: Any, node: Node) -> None:
        self._handover("get", dataset_name, data, node)

    @hook_impl
    def before_dataset_saved(self, dataset_name: str) -> None:
        self._start(dataset_name)

    @hook_impl
    def after_dataset_saved(self, dataset_name: str, data: Any, node: Node) -> None:
        self._handover("put", dataset_name, data, node)

    @hook_impl
    def before_node_run(self, node: Node) -> None:
        self._start(node.name)

    @hook_impl
    def after_node_run(self, node: Node) -> None:
        self._write({"event": "node", "node": node.name, "ms": self._elapsed(node.name)})

    @hook_impl
    def after_pipeline_run(self) -> None:
        self._step(None)

    def _handover(self, event: str, dataset: str, data: Any, node: Node) -> None:
        ms = self._elapsed(dataset)
        if self._record is None or dataset.startswith("params:"):
            return
        buffers = Buffers(data)
        line = {
            "event": event,
            "dataset": dataset,
            "node": node.name,
            "ms": ms,
            "bytes": buffers.nbytes,
        }
        if event == "get":
            line["shared"] = buffers.within(self._volume)
            line["inline"] = buffers.inline
            started = time.perf_counter()
            buffers.read()
            line["read_ms"] = (time.perf_counter() - started) * 1e3
        self._write(line)

    def _start(self, what: str) -> None:
        self._started[threading.get_ident(), what] = time.perf_counter()

    def _elapsed(self, what: str) -> float:
        return (time.perf_counter() - self._started.pop((threading.get_ident(), what))) * 1e3

    def _write(self, line: dict[str, Any]) -> None:
        if self._record is not None:
            with Path(self._record).open("a") as record:
                record.write(json.dumps(line) + "\n")

    def _step(self, node: str | None) -> None:
        done, self._last_node = self._last_node, node
        if self._steps is None or done is None or done == node:
            return
        with socket.socket(socket.AF_UNIX) as steps:
            steps.connect(self._steps)
            steps.sendall(done.encode())
            steps.shutdown(socket.SHUT_WR)
            steps.recv(1)
