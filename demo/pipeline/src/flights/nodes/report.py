"""What the models are worth on months that they have not seen."""

from typing import Any

import pandas as pd
from sklearn.metrics import average_precision_score, mean_absolute_error, roc_auc_score

from flights.nodes.features import LABELS
from flights.nodes.train import Model


def report(test_set: pd.DataFrame, late_model: Model, delay_model: Model) -> dict[str, Any]:
    """Returns the metrics of both models, and how late each carrier is, observed and predicted."""
    matrix = test_set.iloc[:, : -len(LABELS)].to_numpy()
    late = test_set["late"].to_numpy()
    delay = test_set["arr_delay"].to_numpy()
    probability = late_model.estimator.predict_proba(late_model.standard.apply(matrix))[:, 1]
    minutes = delay_model.estimator.predict(delay_model.standard.apply(matrix))
    carriers = {}
    for name in (column for column in test_set.columns if column.startswith("carrier=")):
        rows = test_set[name].to_numpy() == 1
        if rows.any():
            carriers[name.removeprefix("carrier=")] = {
                "flights": int(rows.sum()),
                "late": round(float(late[rows].mean()), 3),
                "predicted": round(float(probability[rows].mean()), 3),
            }
    return {
        "flights": len(test_set),
        "columns": matrix.shape[1],
        "late": round(float(late.mean()), 4),
        "late_auc": round(float(roc_auc_score(late, probability)), 4),
        "late_average_precision": round(float(average_precision_score(late, probability)), 4),
        "delay_mean_absolute_error_minutes": round(float(mean_absolute_error(delay, minutes)), 2),
        "carriers": carriers,
    }
