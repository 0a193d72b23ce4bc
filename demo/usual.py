"""The ways in which pipelines hand data over without Vineyard, and our own parallel runner."""

from collections.abc import Iterator

from machine import Machine
from stores.s3 import BUCKET, S3Server
from variants import (
    Result,
    Variant,
    run_one_pod,
    run_pod_per_task,
    shared_folder,
    volume_runner,
)

_IN_MEMORY = Variant("memory", "Kedro in memory, one pod")
_PARALLEL = Variant("parallel", "Kedro ParallelRunner, one pod", arguments=("--runner", "ParallelRunner"))
_OUR_PARALLEL = Variant(
    "runner-parallel",
    "Vineyard ParallelRunner, one pod",
    vineyard=True,
    arguments=volume_runner("ParallelRunner"),
)


def run_all(here: Machine, scale: int) -> Iterator[Result]:
    """Runs them one after the other."""
    for variant in (_IN_MEMORY, _PARALLEL, _OUR_PARALLEL):
        yield run_one_pod(here, variant, scale)
    files = Variant(
        "files",
        "Parquet files, a pod per task",
        per_task=True,
        arguments=("--env", "parquet"),
        parameters={"store": str(shared_folder(here, "parquet"))},
    )
    yield run_pod_per_task(here, files, scale)
    with S3Server(here.work / "s3") as server:
        objects = Variant(
            "s3",
            "Parquet in S3, a pod per task",
            per_task=True,
            arguments=("--env", "s3"),
            parameters={"endpoint": server.endpoint, "bucket": BUCKET},
        )
        yield run_pod_per_task(here, objects, scale)
