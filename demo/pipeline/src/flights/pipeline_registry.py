"""The pipeline: load, clean, join, features, two models, report."""

from kedro.pipeline import Pipeline, node

from flights.nodes.clean import clean
from flights.nodes.features import features
from flights.nodes.join import join
from flights.nodes.load import load
from flights.nodes.report import report
from flights.nodes.train import train_delay, train_late


def register_pipelines() -> dict[str, Pipeline]:
    """Returns the project's only pipeline under Kedro's default name."""
    pipeline = Pipeline(
        [
            node(
                load,
                "params:scale",
                ["flights_raw", "weather_raw", "planes_raw", "airports_raw"],
                name="load",
            ),
            node(
                clean,
                ["flights_raw", "weather_raw", "planes_raw"],
                ["flights", "weather", "planes"],
                name="clean",
            ),
            node(join, ["flights", "weather", "planes", "airports_raw"], "journeys", name="join"),
            node(
                features,
                ["journeys", "params:first_test_month"],
                ["train_set", "test_set"],
                name="features",
            ),
            node(train_late, ["train_set", "params:late"], "late_model", name="train-late"),
            node(train_delay, ["train_set", "params:delay"], "delay_model", name="train-delay"),
            node(report, ["test_set", "late_model", "delay_model"], "report", name="report"),
        ]
    )
    return {"__default__": pipeline}
