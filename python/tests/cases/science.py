"""scipy.sparse, xarray, scikit-learn, xgboost: whatever is made of arrays."""

import pytest

from cases import CASES, cases

np = pytest.importorskip("numpy")


def _available(name):
    try:
        return __import__(name)
    except ImportError:
        return None


if _available("scipy"):
    import scipy.sparse as sp

    def _sparse(kind, form):
        def make():
            return getattr(sp, f"{form}_{kind}")(sp.random(200, 100, 0.1, random_state=0))

        return make

    cases(
        **{
            f"{form}_{kind}": _sparse(kind, form)
            for kind in ("matrix", "array")
            for form in ("csr", "csc", "coo", "bsr", "dia", "lil", "dok")
        }
    )

if _available("xarray"):
    import xarray as xr

    cases(
        data_array=lambda: xr.DataArray(np.arange(600.0).reshape(20, 30), dims=("x", "y"), attrs={"u": "m"}),
        dataset=lambda: xr.Dataset(
            {"a": ("x", np.arange(1000))}, coords={"x": np.arange(1000).astype("M8[s]").astype("M8[ns]")}
        ),
    )

if _available("sklearn"):
    from same import _COMPARERS, assert_same
    from sklearn.base import BaseEstimator
    from sklearn.datasets import load_iris
    from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestClassifier
    from sklearn.linear_model import LogisticRegression
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    X, Y = load_iris(return_X_y=True)

    def _estimator(a, b, where):
        assert_same(a.predict_proba(X), b.predict_proba(X), where)
        assert repr(a) == repr(b), where

    _COMPARERS["sklearn", "BaseEstimator"] = _estimator
    del BaseEstimator
    cases(
        forest=lambda: RandomForestClassifier(5, random_state=0).fit(X, Y),
        neighbours=lambda: KNeighborsClassifier().fit(X, Y),
        pipeline=lambda: make_pipeline(StandardScaler(), LogisticRegression()).fit(X, Y),
        boosting=lambda: HistGradientBoostingClassifier(max_iter=5, random_state=0).fit(X, Y),
        bunch=lambda: dict(load_iris()),
    )

if _available("xgboost"):
    import xgboost as xgb
    from same import _COMPARERS, assert_same
    from sklearn.datasets import load_iris as _load

    def _booster(a, b, where):
        assert a.save_raw() == b.save_raw(), where

    _COMPARERS["xgboost", "Booster"] = _booster
    _COMPARERS["xgboost", "XGBClassifier"] = lambda a, b, where: assert_same(a.get_booster(), b.get_booster(), where)
    cases(
        booster=lambda: xgb.train({"max_depth": 2}, xgb.DMatrix(*_load(return_X_y=True)), 3),
        classifier=lambda: xgb.XGBClassifier(n_estimators=3).fit(*_load(return_X_y=True)),
    )

if not any(name.startswith("science-") for name in CASES):
    pytest.skip("neither scipy nor scikit-learn is installed")
