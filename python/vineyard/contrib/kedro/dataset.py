"""A Kedro dataset that is an object of a Vineyard volume."""

from __future__ import annotations

import contextlib
import functools
import os
from typing import Any, Literal

import vineyard
from kedro.io import AbstractDataset, DatasetError


class VineyardDataset(AbstractDataset[Any, Any]):
    """Any Python value under a name in a volume.

    In a catalog::

        features:
          type: vineyard.contrib.kedro.VineyardDataset
          name: features

    A process opens the volume when it first needs it, so the dataset can be pickled, and forked.
    """

    def __init__(
        self,
        name: str,
        *,
        run: str | None = None,
        volume: str | None = None,
        keep: bool = True,
        mode: Literal["cow", "readonly", "copy"] = "cow",
        ttl: float | None = None,
        wait: float | None = None,
        metadata: dict[str, Any] | None = None,
    ) -> None:
        """Names an object; nothing is opened yet.

        Args:
            name: Name of the object in the volume.
            run: Puts the name below a directory of this name, so that runs do not see each other's objects.
            volume: Directory of the volume. Default: the environment (`VINEYARD_VOLUME`), else the embedded volume.
            keep: Whether the object stays when Kedro has no more use for it in this run.
            mode: How `load` maps the bytes: writable copy-on-write, read-only, or as a private copy.
            ttl: Seconds after which a saved object may be removed.
            wait: Seconds that `load` waits for the object to appear.
            metadata: Ignored, for plugins.
        """
        self._name = f"{run}/{name}" if run else name
        self._run = run
        self._volume = volume
        self._keep = keep
        self._mode = mode
        self._ttl = ttl
        self._wait = wait
        self.metadata = metadata
        # Kedro asks this when it resumes: an object that is released when consumed is no reason to skip its node.
        self._EPHEMERAL = not keep

    @property
    def name(self) -> str:
        """The full name of the object in the volume."""
        return self._name

    def load(self) -> Any:
        """Returns the value; large buffers are views of the volume's memory."""
        volume = _open(self._volume, os.getpid())
        try:
            return volume.get(self._name, mode=self._mode, timeout=self._wait)
        except vineyard.ObjectNotFound as absent:
            raise DatasetError(f"{absent}\n{self._advice()}") from absent

    def save(self, data: Any) -> None:
        """Puts the value; a reader sees the old one or the new one, never a half."""
        _open(self._volume, os.getpid()).put(data, self._name, ttl=self._ttl)

    def _exists(self) -> bool:
        return bool(_open(self._volume, os.getpid()).exists(self._name))

    def _release(self) -> None:
        if not self._keep:
            self.remove()

    def remove(self) -> None:
        """Removes the object, if it is there. Views of it stay valid."""
        with contextlib.suppress(vineyard.ObjectNotFound):
            _open(self._volume, os.getpid()).rm(self._name)

    def _describe(self) -> dict[str, Any]:
        return {"name": self._name, "volume": self._volume, "keep": self._keep}

    def _advice(self) -> str:
        if self._run is None:
            return (
                "Run the node that saves it first, or check the name in the catalog: `vineyard ls` shows what is there."
            )
        return (
            f"Nothing in run '{self._run}' has saved it, or it was released after its last consumer. When every node "
            "is a process of its own, give all of them the same run (VINEYARD_RUN=<id of the workflow>) and the same "
            "volume; to keep objects for a later run, use --runner-params keep=true. `vineyard ls` shows what is there."
        )


@functools.lru_cache(maxsize=16)
def _open(volume: str | None, pid: int) -> vineyard.Volume:  # noqa: ARG001
    # Once per process: `pid` makes a forked worker open its own.
    return vineyard.open() if volume is None else vineyard.open(volume)
