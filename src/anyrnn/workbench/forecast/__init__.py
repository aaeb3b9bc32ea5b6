"""Forecasts: how series go on, by recurrent networks beside naive forecasts, from one origin after the other.

``fit(load_series("table.csv", horizon=24, target_column="y"))`` trains a forecaster and scores it.
"""

from anyrnn.workbench.forecast.predict import predict as predict
from anyrnn.workbench.forecast.results import ForecastResults as ForecastResults
from anyrnn.workbench.forecast.results import compare as compare
from anyrnn.workbench.forecast.results import fit as fit
from anyrnn.workbench.forecast.series import Forecasting as Forecasting
from anyrnn.workbench.forecast.series import Series as Series
from anyrnn.workbench.forecast.series import load_series as load_series
from anyrnn.workbench.forecast.stored import open_forecast_run as open_forecast_run
from anyrnn.workbench.forecast.train import ForecastSettings as ForecastSettings
