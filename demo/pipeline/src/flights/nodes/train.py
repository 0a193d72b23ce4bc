"""Two models on the same training set: will it be late, and by how many minutes."""

from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import pandas as pd
from sklearn.linear_model import LogisticRegression, Ridge

from flights.nodes.features import LABELS


@dataclass
class Standard:
    """Mean and spread of every column; a value that is missing counts as the mean."""

    mean: np.ndarray
    spread: np.ndarray

    @classmethod
    def of(cls, matrix: np.ndarray) -> Self:
        """Measures the columns of `matrix`."""
        mean = np.nanmean(matrix, axis=0)
        return cls(mean, np.maximum(np.nanstd(matrix, axis=0), np.float32(1e-3)))

    def apply(self, matrix: np.ndarray) -> np.ndarray:
        """Returns the columns with mean 0 and spread 1."""
        return np.nan_to_num((matrix - self.mean) / self.spread, copy=False)


@dataclass
class Model:
    """An estimator and the scale of its input."""

    estimator: LogisticRegression | Ridge
    standard: Standard


def train_late(train_set: pd.DataFrame, settings: dict[str, Any]) -> Model:
    """Fits how probable a delay of more than 15 minutes is."""
    return _fit(LogisticRegression(solver="newton-cholesky", **settings), train_set, "late")


def train_delay(train_set: pd.DataFrame, settings: dict[str, Any]) -> Model:
    """Fits the delay in minutes."""
    return _fit(Ridge(copy_X=False, **settings), train_set, "arr_delay")


def _fit(estimator: LogisticRegression | Ridge, train_set: pd.DataFrame, label: str) -> Model:
    matrix = train_set.iloc[:, : -len(LABELS)].to_numpy()
    standard = Standard.of(matrix)
    estimator.fit(standard.apply(matrix), train_set[label].to_numpy())
    return Model(estimator, standard)
