"""`anyrnn.sklearn`'s estimators as aeon's, whose collections have the channels first: (n, C, T), or lists of (C, T_i).

It needs aeon, and is loaded by ``import anyrnn.aeon`` only.
"""

from collections.abc import Iterable
from typing import Any, Self

from aeon.classification import BaseClassifier
from aeon.regression import BaseRegressor
from numpy.typing import NDArray
from sklearn.base import clone

from anyrnn import sklearn

_TAGS = {
    "X_inner_type": ["np-list", "numpy3D"],
    "capability:multivariate": True,
    "capability:unequal_length": True,
    "algorithm_type": "deeplearning",
}


def _gaps_of(estimator: Any) -> dict[str, bool]:
    """The tag that says whether values may be missing, by what an estimator is told of them."""
    return {"capability:missing_values": estimator is not None and estimator.__sklearn_tags__().input_tags.allow_nan}


class RecurrentClassifier(BaseClassifier):
    """A recurrent network that tells the class of a series, for aeon's tools.

    Args:
        estimator: An `anyrnn.sklearn.RecurrentClassifier`, which says the cell and all else; None: its defaults.

    Example:
        >>> import numpy as np
        >>> from anyrnn import aeon, sklearn
        >>> X = np.random.default_rng(0).normal(size=(10, 2, 6))  # 10 series of 2 channels and 6 steps
        >>> model = aeon.RecurrentClassifier(sklearn.RecurrentClassifier("gru", hidden_size=4, epochs=2))
        >>> model.fit(X, np.array(["a", "b"] * 5)).predict(X).shape
        (10,)
    """

    _tags = _TAGS

    def __init__(self, estimator: sklearn.RecurrentClassifier | None = None) -> None:
        self.estimator = estimator
        super().__init__()
        self.set_tags(**_gaps_of(estimator))

    def _fit(self, X: Any, y: Any) -> Self:
        made = sklearn.RecurrentClassifier() if self.estimator is None else clone(self.estimator)
        self.estimator_ = made.fit(_time_first(X), y)
        return self

    def _predict(self, X: Any) -> NDArray[Any]:
        return self.estimator_.predict(_time_first(X))

    def _predict_proba(self, X: Any) -> NDArray[Any]:
        return self.estimator_.predict_proba(_time_first(X))

    @classmethod
    def _get_test_params(cls, parameter_set: str = "default") -> dict[str, Any]:
        return {"estimator": sklearn.RecurrentClassifier(hidden_size=4, epochs=2)}


class RecurrentRegressor(BaseRegressor):
    """A recurrent network that says a number for a series, for aeon's tools.

    Args:
        estimator: An `anyrnn.sklearn.RecurrentRegressor`, which says the cell and all else; None: its defaults.

    Example:
        >>> import numpy as np
        >>> from anyrnn import aeon, sklearn
        >>> X = np.random.default_rng(0).normal(size=(10, 2, 6))  # 10 series of 2 channels and 6 steps
        >>> model = aeon.RecurrentRegressor(sklearn.RecurrentRegressor("gru", hidden_size=4, epochs=2))
        >>> model.fit(X, np.arange(10.0)).predict(X).shape
        (10,)
    """

    _tags = _TAGS

    def __init__(self, estimator: sklearn.RecurrentRegressor | None = None) -> None:
        self.estimator = estimator
        super().__init__()
        self.set_tags(**_gaps_of(estimator))

    def _fit(self, X: Any, y: Any) -> Self:
        made = sklearn.RecurrentRegressor() if self.estimator is None else clone(self.estimator)
        self.estimator_ = made.fit(_time_first(X), y)
        return self

    def _predict(self, X: Any) -> NDArray[Any]:
        return self.estimator_.predict(_time_first(X))

    @classmethod
    def _get_test_params(cls, parameter_set: str = "default") -> dict[str, Any]:
        return {"estimator": sklearn.RecurrentRegressor(hidden_size=4, epochs=2)}


def _time_first(X: Iterable[NDArray[Any]]) -> list[NDArray[Any]]:
    """Each series (C, T) as (T, C)."""
    return [x.T for x in X]
