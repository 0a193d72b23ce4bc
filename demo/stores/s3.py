"""A real S3 server for the comparison: SeaweedFS, on this machine, in a folder of the demo."""

import json
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Self

import s3fs
from botocore.exceptions import BotoCoreError

KEY = "demo"
SECRET = "demo-secret"
BUCKET = "demo"
START_SECONDS = 60


class S3Server:
    """Runs the server while the context is open; `endpoint` is its URL."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._ports = _free_ports(8)
        self.endpoint = f"http://127.0.0.1:{self._ports[0]}"
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self._folder.mkdir(parents=True)
        identities = self._folder / "identities.json"
        identity = {
            "name": "demo",
            "credentials": [{"accessKey": KEY, "secretKey": SECRET}],
            "actions": ["Admin"],
        }
        identities.write_text(json.dumps({"identities": [identity]}))
        log = (self._folder / "weed.log").open("wb")
        self._process = subprocess.Popen(self._command(identities), stdout=log, stderr=log, cwd=self._folder)
        log.close()
        self._make_bucket()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(20)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()

    def _command(self, identities: Path) -> list[str]:
        names = [
            "s3.port",
            "s3.port.grpc",
            "master.port",
            "master.port.grpc",
            "volume.port",
            "volume.port.grpc",
            "filer.port",
            "filer.port.grpc",
        ]
        return [
            str(Path(sys.executable).parent / "weed"),
            "-logtostderr",
            "server",
            f"-dir={self._folder}",
            "-ip=127.0.0.1",
            "-ip.bind=127.0.0.1",
            "-filer",
            "-s3",
            f"-s3.config={identities}",
            "-s3.port.iceberg=0",
            "-master.telemetry=false",
            "-volume.max=20",
            *(f"-{name}={port}" for name, port in zip(names, self._ports, strict=True)),
        ]

    def _make_bucket(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                s3fs.S3FileSystem(key=KEY, secret=SECRET, endpoint_url=self.endpoint, skip_instance_cache=True).mkdir(
                    BUCKET
                )
                return
            # Nobody listens yet: s3fs tries again for a while, then says so in the words of its library.
            except (OSError, BotoCoreError) as error:
                if self._process is None or self._process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(
                        f"the S3 server did not start: {error}; see {self._folder / 'weed.log'}"
                    ) from error
                time.sleep(0.3)


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()
