"""The matrix that the models read: numbers as they are, categories one-hot."""

import numpy as np
import pandas as pd

NUMBERS = [
    "distance", "temp", "dewp", "humid", "wind_dir", "wind_speed", "wind_gust", "precip",
    "pressure", "visib", "engines", "seats", "lat", "lon", "alt", "departures", "queue",
]  # fmt: skip
LABELS = ["late", "arr_delay"]
LATE_MINUTES = 15


def features(journeys: pd.DataFrame, first_test_month: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Returns training and test set (from `first_test_month` on), the labels last."""
    columns = _columns(journeys)
    names = list(columns)
    test = (journeys["month"] >= first_test_month).to_numpy()
    return _matrix(columns, names, ~test), _matrix(columns, names, test)


def _columns(journeys: pd.DataFrame) -> dict[str, pd.Series]:
    departs = journeys["departs"].dt
    columns = {name: journeys[name] for name in NUMBERS}
    columns["age"] = departs.year - journeys["built"]
    columns["minutes"] = journeys["sched_dep_time"] // 100 * 60 + journeys["sched_dep_time"] % 100
    manufacturer = journeys["manufacturer"]
    common = manufacturer.value_counts().index[:8]
    categories = {
        "carrier": journeys["carrier"],
        "origin": journeys["origin"],
        "dest": journeys["dest"],
        "hour": journeys["hour"],
        "month": journeys["month"],
        "weekday": departs.dayofweek,
        "maker": manufacturer.where(manufacturer.isin(common), "other"),
        "engine": journeys["engine"].fillna("unknown"),
    }
    for name, series in categories.items():
        for value in sorted(series.unique()):
            columns[f"{name}={value}"] = series == value
    columns["late"] = journeys["arr_delay"] > LATE_MINUTES
    columns["arr_delay"] = journeys["arr_delay"]
    return columns


def _matrix(columns: dict[str, pd.Series], names: list[str], rows: np.ndarray) -> pd.DataFrame:
    # One block, column after column: filled once, never consolidated or copied by pandas.
    block = np.empty((len(names), int(rows.sum())), dtype=np.float32)
    for line, name in zip(block, names, strict=True):
        line[:] = columns[name].to_numpy()[rows]
    return pd.DataFrame(block.T, columns=names, copy=False)
