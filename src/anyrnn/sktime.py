"""`anyrnn.sklearn`'s estimators as sktime's: panels of pandas frames, nested frames, or arrays (n, C, T).

It needs sktime, and is loaded by ``import anyrnn.sktime`` only.
"""

from collections.abc import Iterable
from typing import Any, Self

import pandas as pd
from numpy.typing import NDArray
from sklearn.base import clone
from sktime.classification.base import BaseClassifier
from sktime.forecasting.base import BaseForecaster
from sktime.regression.base import BaseRegressor

from anyrnn import sklearn

_TAGS = {
    "X_inner_mtype": "df-list",
    "capability:multivariate": True,
    "capability:unequal_length": True,
    "authors": "anyrnn",
    "maintainers": "anyrnn",
}
_FORECASTER_TAGS = {
    "y_inner_mtype": "pd.Series",
    "capability:exogenous": False,
    "capability:insample": False,
    "requires-fh-in-fit": True,
    "authors": "anyrnn",
    "maintainers": "anyrnn",
}
_CLASSIFIER_TAGS = {**_TAGS, "capability:predict_proba": True, "capability:class_weight": True}


def _gaps_of(estimator: Any) -> dict[str, bool]:
    """The tag that says whether values may be missing, by what an estimator is told of them."""
    return {"capability:missing_values": estimator is not None and estimator.__sklearn_tags__().input_tags.allow_nan}


class RecurrentClassifier(BaseClassifier):
    """A recurrent network that tells the class of a series, for sktime's tools.

    Args:
        estimator: An `anyrnn.sklearn.RecurrentClassifier`, which says the cell and all else; None: its defaults.

    Example:
        >>> import numpy as np
        >>> from anyrnn import sklearn, sktime
        >>> X = np.random.default_rng(0).normal(size=(10, 2, 6))  # 10 series of 2 channels and 6 steps
        >>> model = sktime.RecurrentClassifier(sklearn.RecurrentClassifier("gru", hidden_size=4, epochs=2))
        >>> model.fit(X, np.array(["a", "b"] * 5)).predict(X).shape
        (10,)
    """

    _tags = _CLASSIFIER_TAGS

    def __init__(self, estimator: sklearn.RecurrentClassifier | None = None) -> None:
        self.estimator = estimator
        super().__init__()
        self.set_tags(**_gaps_of(estimator))

    def _fit(self, X: Any, y: Any) -> Self:
        made = sklearn.RecurrentClassifier() if self.estimator is None else clone(self.estimator)
        self.estimator_ = made.fit(_arrays(X), y)
        return self

    def _predict(self, X: Any) -> NDArray[Any]:
        return self.estimator_.predict(_arrays(X))

    def _predict_proba(self, X: Any) -> NDArray[Any]:
        return self.estimator_.predict_proba(_arrays(X))

    @classmethod
    def get_test_params(cls, parameter_set: str = "default") -> list[dict[str, Any]]:
        """What sktime's checks make instances of."""
        quick = sklearn.RecurrentClassifier(hidden_size=4, epochs=2)
        return [{"estimator": quick}, {"estimator": sklearn.RecurrentClassifier("gru", hidden_size=3, epochs=1)}]


class RecurrentRegressor(BaseRegressor):
    """A recurrent network that says a number for a series, for sktime's tools.

    Args:
        estimator: An `anyrnn.sklearn.RecurrentRegressor`, which says the cell and all else; None: its defaults.

    Example:
        >>> import numpy as np
        >>> from anyrnn import sklearn, sktime
        >>> X = np.random.default_rng(0).normal(size=(10, 2, 6))  # 10 series of 2 channels and 6 steps
        >>> model = sktime.RecurrentRegressor(sklearn.RecurrentRegressor("gru", hidden_size=4, epochs=2))
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
        self.estimator_ = made.fit(_arrays(X), y)
        return self

    def _predict(self, X: Any) -> NDArray[Any]:
        return self.estimator_.predict(_arrays(X))

    @classmethod
    def get_test_params(cls, parameter_set: str = "default") -> list[dict[str, Any]]:
        """What sktime's checks make instances of."""
        quick = sklearn.RecurrentRegressor(hidden_size=4, epochs=2)
        return [{"estimator": quick}, {"estimator": sklearn.RecurrentRegressor("gru", hidden_size=3, epochs=1)}]


class RecurrentForecaster(BaseForecaster):
    """A recurrent network that says how a series goes on, for sktime's tools; one series, without covariates.

    Args:
        estimator: An `anyrnn.sklearn.RecurrentForecaster`, which says the cell and all else but the horizon: that is
            the farthest step of `fh`. None: its defaults.

    Example:
        >>> import numpy as np
        >>> import pandas as pd
        >>> from anyrnn import sklearn, sktime
        >>> y = pd.Series(np.sin(np.arange(60.0)))
        >>> model = sktime.RecurrentForecaster(sklearn.RecurrentForecaster("gru", hidden_size=4, epochs=1))
        >>> model.fit(y, fh=[1, 3]).predict().index.tolist()
        [60, 62]
    """

    _tags = _FORECASTER_TAGS

    def __init__(self, estimator: sklearn.RecurrentForecaster | None = None) -> None:
        self.estimator = estimator
        super().__init__()

    def _fit(self, y: Any, X: None, fh: Any) -> Self:
        made = sklearn.RecurrentForecaster() if self.estimator is None else clone(self.estimator)
        farthest = int(fh.to_relative(self.cutoff).to_numpy().max())
        self.estimator_ = made.set_params(horizon=farthest).fit(y.to_numpy())
        return self

    def _predict(self, fh: Any, X: None) -> Any:
        steps = fh.to_relative(self.cutoff).to_numpy().astype(int)
        values = self.estimator_.predict()[steps - 1]
        return pd.Series(values, index=fh.to_absolute_index(self.cutoff), name=self._y.name)

    @classmethod
    def get_test_params(cls, parameter_set: str = "default") -> list[dict[str, Any]]:
        """What sktime's checks make instances of."""
        quick = sklearn.RecurrentForecaster(hidden_size=4, epochs=1)
        return [{"estimator": quick}, {"estimator": sklearn.RecurrentForecaster("gru", hidden_size=3, epochs=1)}]


def _arrays(X: Iterable[Any]) -> list[NDArray[Any]]:
    """Each frame, a row for each step, as an array (T, C)."""
    return [frame.to_numpy() for frame in X]
