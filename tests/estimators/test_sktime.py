"""sktime's own checks of our estimators. `make test-estimators` runs them, where sktime is installed."""

import numpy as np
import pytest

checks = pytest.importorskip("sktime.utils.estimator_checks", reason="sktime is not installed: make test-estimators")

from anyrnn import sklearn  # noqa: E402 - as above
from anyrnn.sktime import RecurrentClassifier, RecurrentForecaster, RecurrentRegressor  # noqa: E402 - where sktime is


@pytest.mark.parametrize("estimator", [RecurrentClassifier, RecurrentRegressor, RecurrentForecaster])
def test_the_checks_of_sktime_hold(estimator):
    found = checks.check_estimator(estimator, verbose=0)
    assert len(found) > 50
    assert {name: result for name, result in found.items() if result != "PASSED"} == {}


def test_gaps_are_taken_where_the_estimator_is_told_of_them():
    X, y = np.random.default_rng(0).normal(size=(10, 2, 6)), np.array(["a", "b"] * 5)
    X[3, 0, 2] = np.nan
    quick = {"hidden_size": 2, "epochs": 1}
    model = RecurrentClassifier(sklearn.RecurrentClassifier("gru", missing="nan", **quick))
    assert model.fit(X, y).predict(X).shape == (10,)
    with pytest.raises(ValueError, match="missing"):
        RecurrentClassifier(sklearn.RecurrentClassifier("gru", **quick)).fit(X, y)
