"""`anyrnn.sklearn`'s estimators as sktime's: panels of pandas frames, nested frames, or arrays (n, C, T).

It needs sktime, and is loaded by ``import anyrnn.sktime`` only.
"""

from collections.abc import Iterable
from typing import Any, Self

from numpy.typing import NDArray
from sklearn.base import clone
from sktime.classification.base import BaseClassifier
from sktime.regression.base import BaseRegressor

from anyrnn import sklearn

_TAGS = {
    "X_inner_mtype": "df-list",
    "capability:multivariate": True,
    "capability:unequal_length": True,
    "authors": "anyrnn",
    "maintainers": "anyrnn",
}


class RecurrentClassifier(BaseClassifier):
    """A recurrent network that tells the class of a series, for sktime's tools.

    Args:
        estimator: An `anyrnn.sklearn.RecurrentClassifier`, which says the cell and all else; None: its defaults.
    """

    _tags = {**_TAGS, "capability:predict_proba": True, "capability:class_weight": True}

    def __init__(self, estimator: sklearn.RecurrentClassifier | None = None) -> None:
        self.estimator = estimator
        super().__init__()

    def _fit(self, X: Any, y: Any) -> Self:
        made = sklearn.RecurrentClassifier() if self.estimator is None else clone(self.estimator)
        self.estimator_ = made.fit(_arrays(X), y)
        return self

    def _predict(self, X: Any) -> NDArray[Any]:
        return self.estimator_.predict(_arrays(X))

    def _predict_proba(self, X: Any) -> NDArray[Any]:
        return self.estimator_.predict_proba(_arrays(X))

    @classmethod
    def get_test_params(cls, parameter_set: str = "default") -> dict[str, Any]:
        """What sktime's checks make an instance of."""
        return {"estimator": sklearn.RecurrentClassifier(hidden_size=4, epochs=2)}


class RecurrentRegressor(BaseRegressor):
    """A recurrent network that says a number for a series, for sktime's tools.

    Args:
        estimator: An `anyrnn.sklearn.RecurrentRegressor`, which says the cell and all else; None: its defaults.
    """

    _tags = _TAGS

    def __init__(self, estimator: sklearn.RecurrentRegressor | None = None) -> None:
        self.estimator = estimator
        super().__init__()

    def _fit(self, X: Any, y: Any) -> Self:
        made = sklearn.RecurrentRegressor() if self.estimator is None else clone(self.estimator)
        self.estimator_ = made.fit(_arrays(X), y)
        return self

    def _predict(self, X: Any) -> NDArray[Any]:
        return self.estimator_.predict(_arrays(X))

    @classmethod
    def get_test_params(cls, parameter_set: str = "default") -> dict[str, Any]:
        """What sktime's checks make an instance of."""
        return {"estimator": sklearn.RecurrentRegressor(hidden_size=4, epochs=2)}


def _arrays(X: Iterable[Any]) -> list[NDArray[Any]]:
    """Each frame, a row for each step, as an array (T, C)."""
    return [frame.to_numpy() for frame in X]
