"""Kedro's runners, with the datasets that the catalog does not name handed over through a Vineyard volume.

kedro run --runner vineyard.contrib.kedro.runner.ParallelRunner --runner-params max_workers=4
"""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING, Any

from kedro import runner as kedro_runner
from kedro.io.core import generate_timestamp, is_parameter
from kedro.runner import AbstractRunner
from vineyard.contrib.kedro.dataset import VineyardDataset

if TYPE_CHECKING:
    from pluggy import PluginManager

    from kedro.io import CatalogProtocol, SharedMemoryCatalogProtocol
    from kedro.pipeline import Pipeline

_TRANSCODING = "@"


class _ThroughVolume(AbstractRunner):
    """Mixin: names every dataset of the pipeline that nobody else named, then runs as Kedro does.

    Args:
        run: Directory in the volume for the objects of this run. Default: `VINEYARD_RUN`, else the id of Kedro's
            session. Processes that run parts of one pipeline must agree on it.
        volume: Directory of the volume. Default: `VINEYARD_VOLUME`, else the embedded volume.
        keep: Keep objects that the run has consumed; with `run` this allows `--only-missing-outputs` later.
        ttl: Seconds after which objects may be removed.
        wait: Seconds to wait for an input that another process has not produced yet.
    """

    def __init__(
        self,
        *args: Any,
        run: str | None = None,
        volume: str | None = None,
        keep: bool = False,
        ttl: float | None = None,
        wait: float | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self._run_name = run or os.environ.get("VINEYARD_RUN") or None
        self._volume = volume
        self._keep = keep
        self._ttl = ttl
        self._wait = wait
        self._placed: dict[str, VineyardDataset] = {}

    @property
    def _logger(self) -> logging.Logger:
        # Kedro configures only its own loggers, and names a runner's after the module.
        return logging.getLogger("kedro.runner")

    def run(
        self,
        pipeline: Pipeline,
        catalog: CatalogProtocol | SharedMemoryCatalogProtocol,
        hook_manager: PluginManager | None = None,
        run_id: str | None = None,
        only_missing_outputs: bool = False,
    ) -> dict[str, Any]:
        """Runs the pipeline; arguments, result and errors are those of Kedro's runner."""
        scope = self._run_name or run_id or generate_timestamp()
        placed = self._place(pipeline, catalog, scope)
        if not only_missing_outputs:
            self._require_inputs(pipeline, placed)
        try:
            result = super().run(pipeline, catalog, hook_manager, run_id, only_missing_outputs)
        except BaseException:
            # Nobody can resume a run whose name is a time stamp; a named one keeps what is done.
            if self._run_name is None:
                self._drop(placed, set())
            raise
        outputs = pipeline.outputs() & placed.keys()
        self._drop({name: dataset for name, dataset in placed.items() if _TRANSCODING in name}, outputs)
        if outputs:
            names = ", ".join(sorted(placed[name].name for name in outputs))
            self._logger.info("Left in the volume, to be read or removed by you: %s", names)
        return result

    def _place(
        self, pipeline: Pipeline, catalog: CatalogProtocol | SharedMemoryCatalogProtocol, scope: str
    ) -> dict[str, VineyardDataset]:
        placed: dict[str, VineyardDataset] = {}
        inputs = pipeline.inputs()
        for name in sorted(pipeline.datasets()):
            ours = name in self._placed and catalog.get(name) is self._placed[name]
            if is_parameter(name) or (name in catalog and not ours):
                continue
            # `table@pandas` and `table@spark` are one object, which Kedro would release after its first use.
            shared = _TRANSCODING in name
            placed[name] = catalog[name] = VineyardDataset(
                name.partition(_TRANSCODING)[0],
                run=scope,
                volume=self._volume,
                keep=self._keep or shared,
                ttl=self._ttl,
                wait=self._wait if name in inputs else None,
            )
        self._placed = placed
        return placed

    def _require_inputs(self, pipeline: Pipeline, placed: dict[str, VineyardDataset]) -> None:
        """Kedro refuses inputs that nobody can supply before it runs anything; so do we, unless told to wait."""
        if self._wait is not None:
            return
        absent = [placed[name] for name in sorted(pipeline.inputs() & placed.keys()) if not placed[name].exists()]
        if absent:
            names = ", ".join(dataset.name for dataset in absent)
            raise ValueError(
                f"Pipeline input(s) neither in the catalog nor in the volume: {names}. Run the nodes that produce them "
                "first, with the same VINEYARD_RUN and the same volume, or let this run wait for them: "
                "--runner-params wait=60."
            )

    def _drop(self, placed: dict[str, VineyardDataset], except_for: set[str]) -> None:
        if not self._keep:
            for name, dataset in placed.items():
                if name not in except_for:
                    dataset.remove()


class SequentialRunner(_ThroughVolume, kedro_runner.SequentialRunner):
    """Kedro's `SequentialRunner` on a volume."""


class ThreadRunner(_ThroughVolume, kedro_runner.ThreadRunner):
    """Kedro's `ThreadRunner` on a volume."""


class ParallelRunner(_ThroughVolume, kedro_runner.ParallelRunner):
    """Kedro's `ParallelRunner` on a volume: datasets are shared by the workers, not pickled through a manager."""
