"""Recurrent networks as scikit-learn's estimators: `fit`, `predict`, `score`, in pipelines, grids and cross-validation.

``RecurrentClassifier("gru").fit(X, y)`` trains as ``anyrnn fit`` does, by the same code. It needs the extra
``anyrnn[workbench]``, and is loaded by ``import anyrnn.sklearn`` only.
"""

from anyrnn.sklearn.estimators import RecurrentClassifier as RecurrentClassifier
from anyrnn.sklearn.estimators import RecurrentRegressor as RecurrentRegressor
from anyrnn.sklearn.forecaster import RecurrentForecaster as RecurrentForecaster
