"""aeon's own checks of our estimators. `make test-estimators` runs them, where aeon is installed."""

import pytest

checking = pytest.importorskip("aeon.testing.estimator_checking", reason="aeon is not installed: make test-estimators")

from anyrnn.aeon import RecurrentClassifier, RecurrentRegressor  # noqa: E402 - where aeon is


@checking.parametrize_with_checks([RecurrentClassifier, RecurrentRegressor])
def test_the_checks_of_aeon_hold(check):
    check()
