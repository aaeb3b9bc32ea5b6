"""aeon's own checks of our estimators. `make test-estimators` runs them, where aeon is installed."""

import numpy as np
import pytest

checking = pytest.importorskip("aeon.testing.estimator_checking", reason="aeon is not installed: make test-estimators")

from anyrnn import sklearn  # noqa: E402 - as above
from anyrnn.aeon import RecurrentClassifier, RecurrentRegressor  # noqa: E402 - where aeon is


@checking.parametrize_with_checks([RecurrentClassifier, RecurrentRegressor])
def test_the_checks_of_aeon_hold(check):
    check()


def test_gaps_are_taken_where_the_estimator_is_told_of_them():
    X, y = np.random.default_rng(0).normal(size=(10, 2, 6)), np.array(["a", "b"] * 5)
    X[3, 0, 2] = np.nan
    quick = {"hidden_size": 2, "epochs": 1}
    model = RecurrentClassifier(sklearn.RecurrentClassifier("gru", missing="nan", **quick))
    assert model.fit(X, y).predict(X).shape == (10,)
    with pytest.raises(ValueError, match="missing values"):
        RecurrentClassifier(sklearn.RecurrentClassifier("gru", **quick)).fit(X, y)
