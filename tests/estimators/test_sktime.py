"""sktime's own checks of our estimators. `make test-estimators` runs them, where sktime is installed."""

import pytest

checks = pytest.importorskip("sktime.utils.estimator_checks", reason="sktime is not installed: make test-estimators")

from anyrnn.sktime import RecurrentClassifier, RecurrentForecaster, RecurrentRegressor  # noqa: E402 - where sktime is


@pytest.mark.parametrize("estimator", [RecurrentClassifier, RecurrentRegressor, RecurrentForecaster])
def test_the_checks_of_sktime_hold(estimator):
    found = checks.check_estimator(estimator, verbose=0)
    assert len(found) > 50
    assert {name: result for name, result in found.items() if result != "PASSED"} == {}
