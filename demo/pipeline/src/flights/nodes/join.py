"""Flights with the weather at departure, the plane, and the airport of arrival."""

import pandas as pd


def join(flights: pd.DataFrame, weather: pd.DataFrame, planes: pd.DataFrame, airports: pd.DataFrame) -> pd.DataFrame:
    """Returns one row per flight, sorted by departure, with what was known before it left."""
    destinations = airports.rename(columns={"faa": "dest"})[["dest", "lat", "lon", "alt"]]
    aircraft = planes[["tailnum", "built", "manufacturer", "engines", "seats", "engine"]]
    journeys = (
        flights.merge(weather, on=["origin", "departs"], how="left")
        .merge(aircraft, on="tailnum", how="left")
        .merge(destinations, on="dest", how="left")
        .sort_values("departs", kind="stable", ignore_index=True)
    )
    journeys["dest"] = journeys["dest"].astype("category")

    hours = journeys.groupby(["origin", "departs"], observed=True)["dep_delay"].agg(["size", "mean"]).reset_index()
    hours = hours.rename(columns={"size": "departures", "mean": "queue"})
    # A passenger knows how late the airport ran two hours before, not how late it will run.
    earlier = hours[["origin", "departs", "queue"]].assign(departs=hours["departs"] + pd.Timedelta(hours=2))
    return (
        journeys.drop(columns=["dep_delay"])
        .merge(hours[["origin", "departs", "departures"]], on=["origin", "departs"], how="left")
        .merge(earlier, on=["origin", "departs"], how="left")
    )
