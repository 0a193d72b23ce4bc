"""A worker process of a peer, as the driver sees it."""

from __future__ import annotations

import json
import subprocess
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from typing import Self

WORKER = Path(__file__).with_name("worker.py")


class PeerError(Exception):
    """The peer failed, and says how."""


class UnsupportedError(Exception):
    """The peer has no such operation."""


class Worker:
    """One interpreter of a peer that answers one request at a time."""

    def __init__(
        self,
        python: Path,
        peer: str,
        place: dict[str, Any],
        environment: dict[str, str],
        log: Path,
    ) -> None:
        self.name = peer
        self.log = log.open("ab")
        self.process = subprocess.Popen(
            [str(python), "-E", "-s", "-X", "utf8", str(WORKER), peer, json.dumps(place)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            env=environment,
        )

    def __enter__(self) -> Self:
        self.receive(120)
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def send(self, call: str, **args: Any) -> None:
        """Sends a request; `receive` waits for its answer."""
        stdin = self.process.stdin
        if stdin is None:
            raise PeerError("closed")
        try:
            stdin.write(json.dumps({"call": call, "args": args}).encode() + b"\n")
            stdin.flush()
        except BrokenPipeError:
            raise PeerError(f"{self.name}: worker is gone") from None

    def receive(self, timeout: float) -> Any:
        """The result of the oldest request that has none yet; a worker that takes longer is ended."""
        stdout = self.process.stdout
        if stdout is None:
            raise PeerError("closed")
        watchdog = threading.Timer(timeout, self.process.kill)
        watchdog.start()
        try:
            line = stdout.readline()
        finally:
            watchdog.cancel()
        if not line:
            raise PeerError(f"{self.name}: worker ended, or took more than {timeout:.0f} s")
        reply = json.loads(line)
        if "unsupported" in reply:
            raise UnsupportedError(reply["unsupported"])
        if "error" in reply:
            raise PeerError(reply["error"])
        return reply["result"]

    def call(self, name: str, /, timeout: float = 180, **args: Any) -> Any:
        """Sends a request and waits for its result."""
        self.send(name, **args)
        return self.receive(timeout)

    def close(self) -> None:
        """Ends the worker: its input ends, then it has ten seconds."""
        if self.process.stdin:
            self.process.stdin.close()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.log.close()
