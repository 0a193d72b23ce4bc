"""An S3 server whose data directory is on tmpfs, through boto3, values pickled with protocol 5."""

from __future__ import annotations

import itertools
import os
import pickle
from typing import Any

import boto3
from botocore.config import Config


class Store:
    """A client of one bucket."""

    def __init__(self, place: dict[str, Any]) -> None:
        self.client = boto3.client(
            "s3",
            endpoint_url=place["endpoint"],
            aws_access_key_id="bench",
            aws_secret_access_key="bench",
            region_name="us-east-1",
            config=Config(s3={"addressing_style": "path"}, retries={"max_attempts": 2}),
        )
        self.numbers = itertools.count()
        self.prefix = f"{os.getpid()}-"

    def put(self, value: Any) -> str:
        key = f"{self.prefix}{next(self.numbers)}"
        self.client.put_object(Bucket="bench", Key=key, Body=pickle.dumps(value, protocol=5))
        return key

    def get(self, handle: str) -> Any:
        return pickle.loads(self.client.get_object(Bucket="bench", Key=handle)["Body"].read())

    def export(self, handles: list[str]) -> list[str]:
        return handles

    def resolve(self, tokens: list[str]) -> list[str]:
        return tokens

    def drop(self, handles: list[str]) -> None:
        for begin in range(0, len(handles), 1000):
            objects = [{"Key": key} for key in handles[begin : begin + 1000]]
            self.client.delete_objects(Bucket="bench", Delete={"Objects": objects})
