"""Kedro settings of the project."""

from flights.recorder import Recorder

HOOKS = (Recorder(),)
CONFIG_LOADER_ARGS = {"base_env": "base", "default_run_env": "base"}
