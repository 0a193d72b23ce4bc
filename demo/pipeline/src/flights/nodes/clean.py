"""Types, missing values, and flights that never left."""

import pandas as pd


def clean(
    flights: pd.DataFrame, weather: pd.DataFrame, planes: pd.DataFrame
) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Returns flights that arrived, one weather row per place and hour, and plausible planes."""
    arrived = flights.dropna(subset=["dep_delay", "arr_delay"]).reset_index(drop=True)
    arrived = arrived.astype(
        {
            "carrier": "category",
            "origin": "category",
            "dest": "category",
            "arr_delay": "float32",
            "dep_delay": "float32",
        }
    )
    arrived["departs"] = pd.to_datetime(arrived[["year", "month", "day", "hour"]])
    arrived = arrived.drop(columns=["dep_time", "arr_time", "air_time", "time_hour", "minute", "day"])

    weather = weather.drop_duplicates(["origin", "year", "month", "day", "hour"]).copy()
    weather["departs"] = pd.to_datetime(weather[["year", "month", "day", "hour"]])
    readings = [
        "temp",
        "dewp",
        "humid",
        "wind_dir",
        "wind_speed",
        "wind_gust",
        "precip",
        "pressure",
        "visib",
    ]
    weather[readings] = weather.groupby("origin")[readings].ffill(limit=6)
    weather["wind_gust"] = weather["wind_gust"].fillna(weather["wind_speed"])
    weather = weather[["origin", "departs", *readings]].astype(dict.fromkeys(readings, "float32"))
    weather["origin"] = pd.Categorical(weather["origin"], arrived["origin"].cat.categories)

    planes = planes.rename(columns={"year": "built"})
    planes["built"] = planes["built"].where(planes["built"].between(1955, 2013))
    planes["manufacturer"] = planes["manufacturer"].replace(
        {"AIRBUS INDUSTRIE": "AIRBUS", "MCDONNELL DOUGLAS AIRCRAFT CO": "MCDONNELL DOUGLAS"}
    )
    return arrived, weather.reset_index(drop=True), planes
