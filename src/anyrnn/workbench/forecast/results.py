"""Forecasters compared on the same series from the same origins, beside naive forecasts."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table

from anyrnn.errors import AnyRNNError
from anyrnn.workbench.forecast.metrics import METRICS, by_step, mase_scales, point_metrics
from anyrnn.workbench.forecast.model import TrainedForecaster
from anyrnn.workbench.forecast.naive import baselines
from anyrnn.workbench.forecast.report import Example, render
from anyrnn.workbench.forecast.series import Forecasting
from anyrnn.workbench.forecast.stored import save_model
from anyrnn.workbench.forecast.train import ForecastLesson, ForecastRun, ForecastSettings, form_of
from anyrnn.workbench.loop import Callback, seeds_up_to, train_all
from anyrnn.workbench.outcome import Entry, Outcome
from anyrnn.workbench.progress import Progress
from anyrnn.workbench.unfinished import UnfinishedRun

_SPELLED = ("mae", "rmse", "rrse", "smape")  # read letter by letter, and the first letter begins with a vowel
_UNDEFINED = {  # of each metric that may be: why it is
    "mase": "seasonal naive forecasts of what is before the test part are never wrong (season, --season)",
    "rrse": "all values of the test part are alike",
    "wape": "all values of the test part are 0",
}

#: What a forecast can be chosen by: less is better.
CHOICES = tuple(name for name in METRICS if name != "coverage")


@dataclass(frozen=True)
class NaiveForecast:
    """A baseline: its name, its scores on the test part, and its errors at each step by name."""

    name: str
    scores: dict[str, float]
    by_step: Mapping[str, tuple[float, ...]]


ForecastEntry = Entry[TrainedForecaster, ForecastRun]


@dataclass(frozen=True, repr=False)
class ForecastResults(Outcome):
    """The outcome of a comparison of forecasters: see `anyrnn.workbench.outcome.Outcome`.

    Attributes:
        metric: What the best one is chosen by.
    """

    dataset: Forecasting
    settings: ForecastSettings
    entries: tuple[ForecastEntry, ...]
    baselines: tuple[NaiveForecast, ...]
    metric: str

    columns = 140

    @property
    def input_size(self) -> int:
        """The value of a step, and covariates."""
        return form_of(self.dataset, self.settings)[0].features

    @property
    def best(self) -> ForecastEntry:
        """The network with the lowest metric; of equals, the first."""
        return min(self.entries, key=lambda entry: entry.score_mean)

    @property
    def naive(self) -> NaiveForecast | None:
        """The best baseline; None if the metric is one that they have not (of quantiles)."""
        known = [each for each in self.baselines if self.metric in each.scores]
        return min(known, key=lambda each: each.scores[self.metric], default=None)

    @property
    def verdict(self) -> str:
        """The answer in a sentence, which says first if a naive forecast is as good."""
        best, name = self.best, ("an " if self.metric in _SPELLED else "a ") + _written(self.metric)
        title, score = best.model.network.title, best.score_mean
        if math.isnan(score):
            return (
                f"No verdict: {_written(self.metric)} is not defined here, since {_UNDEFINED[self.metric]}; compare by "
                "another one (metric, --metric), such as mae."
            )
        spread = best.score_std
        says = f"{title} has {name} of {score:.4g}" + ("" if spread is None else f" ± {spread:.2g}")
        own = best.score_std or 0.0
        if self.naive is not None:
            other = self.naive.scores[self.metric]
            if other <= score:
                return f"No network: the forecast “{self.naive.name}” has {name} of {other:.4g}; {says}."
            if other - score <= 2 * own:
                return f"{says}, but that is a tie with the forecast “{self.naive.name}” ({other:.4g})."
            says += f"; the best naive forecast, “{self.naive.name}”, {other:.4g}"
        others = [entry for entry in self.entries if entry is not best]
        if others:
            second = min(others, key=lambda entry: entry.score_mean)
            named, follows = second.model.network.title, second.score_mean
            if follows - score <= 2 * max(own, second.score_std or 0.0):
                says += f"; {named} is within the spread ({follows:.4g})"
            else:
                says += f"; {named} follows with {follows:.4g}"
        return f"{says}."

    @property
    def remarks(self) -> tuple[str, ...]:
        """What else there is to say, a sentence each: which networks the seasonal naive forecast is as good as."""
        seasonal = next((each for each in self.baselines if each.name.startswith("seasonal naive")), None)
        if seasonal is None:
            return ("No season was named (season, --season), so no seasonal naive forecast stands beside.",)
        if self.metric not in seasonal.scores:
            return ()
        least = seasonal.scores[self.metric]
        behind = [(e.model.network.title, e.score_mean) for e in self.entries if e.score_mean >= least]
        if not behind:
            return ()
        named = ", ".join(f"{title} ({score:.4g})" for title, score in behind)
        return (f"Not better than the forecast “{seasonal.name}” ({_written(self.metric)} {least:.4g}): {named}.",)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """The table."""
        shown = [self.metric, *(m for m in METRICS if m != self.metric and m in self.entries[0].runs[0].scores)]
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
        table.add_column("network", overflow="fold")
        for name in (*shown, "parameters", "training"):
            table.add_column(name, justify="right", no_wrap=True)
        best = self.best
        for entry in self.entries:
            first = entry.score_std
            cells = [f"{entry.mean(name):.4g}" for name in shown]
            cells[0] += "" if first is None else f" ± {first:.2g}"
            style = "bold green" if entry is best and len(self.entries) > 1 else ""
            row = (entry.model.network.title, *cells, f"{entry.parameters:,}", f"{entry.train_seconds:.1f} s")
            table.add_row(*row, style=style)
        for each in self.baselines:
            cells = [f"{each.scores[name]:.4g}" if name in each.scores else "" for name in shown]
            table.add_row(each.name, *cells, "", "", style="dim")
        yield table

    def to_dict(self) -> dict[str, Any]:
        """The results as JSON has them."""
        data = self.dataset
        lengths = [len(series) for series in data.series]
        test = data.origins("test")
        described = {
            "name": data.name,
            "target": data.target,
            "series": len(data.series),
            "shortest": min(lengths),
            "longest": max(lengths),
            "horizon": data.horizon,
            "season": data.season,
            "test_steps": data.test_steps,
            "validation_steps": data.validation_steps,
            "windows": len(test),
            "past": list(data.past_names),
            "future": list(data.future_names),
            "static": list(data.static_names),
            "notes": list(data.notes),
        }
        return self.written("forecast", described, {"name": self.metric, "higher_is_better": False})

    def examples(self) -> list[Example]:
        """Windows of the test part to look at: that of the median error of the best network, a good and a bad one."""
        data, run, origins = self.dataset, self.best.runs[0], self.dataset.origins("test")
        scales = np.array([series.y[: data.train_end(series)].std() or 1.0 for series in data.series])
        errors = np.abs(data.truth(origins) - run.forecasts).mean(1) / scales[origins.series]
        order = errors.argsort()
        found = []
        for share, name in (
            (0.5, "as good as half of them"),
            (0.1, "among the best tenth"),
            (0.9, "among the worst tenth"),
        ):
            window = int(order[min(len(order) - 1, int(share * len(order)))])
            series, origin = data.series[origins.series[window]], int(origins.origin[window])
            first = max(0, origin - max(3 * data.horizon, 2 * data.season))
            found.append(
                Example(
                    f"Series {series.id}, from step {origin}: {name}",
                    first,
                    origin,
                    series.y[first : origin + data.horizon],
                    run.forecasts[window],
                    run.quantiles[window, :, 0],
                    run.quantiles[window, :, -1],
                )
            )
        return found

    def hardest(self) -> list[tuple[str, float, float]]:
        """Of the series with the largest mean absolute errors of the best network: id, its error, that of the mean."""
        data, origins = self.dataset, self.dataset.origins("test")
        y, said = data.truth(origins), np.mean([run.forecasts for run in self.best.runs], axis=0)
        errors = np.abs(y - said).mean(1)
        by_series = [(s.id, float(errors[origins.series == k].mean())) for k, s in enumerate(data.series)]
        naive = baselines(data.season)[self.baselines[0].name](data, origins)
        plain = np.abs(y - naive).mean(1)
        beside = [float(plain[origins.series == k].mean()) for k in range(len(data.series))]
        rows = [(name, error, other) for (name, error), other in zip(by_series, beside, strict=True)]
        return sorted(rows, key=lambda row: -row[1])[:10]

    def report(self, results: Mapping[str, Any]) -> str:
        """The report: see `Outcome.report`."""
        return render(results, self.verdict, self.examples(), self.hardest())

    def write_model(self, folder: Path, model: Any) -> None:
        """Write a model: see `Outcome.write_model`."""
        save_model(folder, model)


def compare(
    data: Forecasting,
    cells: Sequence[str] = ("lstm",),
    *,
    seeds: int = 1,
    metric: str = "mase",
    settings: ForecastSettings | None = None,
    command: str = "anyrnn.workbench.forecast.compare",
    on_epoch: Callable[[Progress], None] | None = None,
    on_network: Callable[[ForecastResults], None] | None = None,
    progress: bool | None = None,
    folder: str | Path | UnfinishedRun | None = None,
    resume: bool = False,
    overwrite: bool = False,
    callbacks: Sequence[Callback] = (),
    workers: int = 1,
    scheduler: str | None = None,
) -> ForecastResults:
    """Train each network with each seed on series, and score all of them from the same origins.

    Args:
        data: From `load_series`.
        cells: Names of networks that read in one direction, or "module:Class" for cells of one's own.
        seeds: How many training runs a network gets, with the seeds 0, 1, ...
        metric: What the best one is chosen by: see `METRICS`.
        settings: The budget; the defaults if None.
        command: What the results name as the command that made them.
        on_epoch: Called after each epoch.
        on_network: Called when a network has had all its runs, with the results so far.
        progress: This and the others are those of `anyrnn.workbench.compare`: the same words for every task.
        folder: Where the run is kept as it goes, and saved at the end; None: nowhere.
        resume: Go on with what was begun in `folder`, to the same numbers; begin it, if nothing was.
        overwrite: Replace a run in `folder`.
        callbacks: Each is called after each epoch with what a line of `metrics.jsonl` has.
        workers: How many training runs go on at once, each in a process of its own.
        scheduler: The address of a Dask scheduler, whose workers do the training runs: see `anyrnn.workbench.compare`.

    Raises:
        AnyRNNError: for an unknown or bidirectional cell, a cell given twice, no seeds, an unknown metric; and if a
            training run diverges.

    Example:
        >>> import numpy as np
        >>> from anyrnn.workbench.forecast import Forecasting, ForecastSettings, Series, fit
        >>> y = np.sin(np.arange(400) * 2 * np.pi / 12)
        >>> none = np.empty((400, 0))
        >>> waves = Forecasting("waves", "y", (Series("a", y, none, none, np.empty(0)),), 6, 12, 60, 60)
        >>> results = fit(waves, "gru", settings=ForecastSettings(hidden_size=8, epochs=2))
        >>> results.naive.name
        'seasonal naive (12)'
    """
    return _train_all(
        data,
        cells,
        seeds_up_to(seeds),
        metric,
        settings or ForecastSettings(),
        command,
        on_epoch=on_epoch,
        on_network=on_network,
        progress=progress,
        folder=folder,
        resume=resume,
        overwrite=overwrite,
        callbacks=callbacks,
        workers=workers,
        scheduler=scheduler,
    )


def fit(
    data: Forecasting,
    cell: str = "lstm",
    *,
    seed: int = 0,
    metric: str = "mase",
    settings: ForecastSettings | None = None,
    command: str = "anyrnn.workbench.forecast.fit",
    on_epoch: Callable[[Progress], None] | None = None,
    progress: bool | None = None,
    folder: str | Path | UnfinishedRun | None = None,
    resume: bool = False,
    overwrite: bool = False,
    callbacks: Sequence[Callback] = (),
    scheduler: str | None = None,
) -> ForecastResults:
    """Train one network once. The results are those of a comparison of one: see `compare` for the arguments."""
    return _train_all(
        data,
        [cell],
        (seed,),
        metric,
        settings or ForecastSettings(),
        command,
        on_epoch=on_epoch,
        progress=progress,
        folder=folder,
        resume=resume,
        overwrite=overwrite,
        callbacks=callbacks,
        scheduler=scheduler,
    )


def _train_all(
    data: Forecasting,
    cells: Sequence[str],
    seeds: tuple[int, ...],
    metric: str,
    settings: ForecastSettings,
    command: str,
    **how: Any,
) -> ForecastResults:
    if metric not in CHOICES or (metric == "pinball" and len(settings.quantiles) < 2):
        raise AnyRNNError(
            f"metric: got {metric!r}, expected one of {', '.join(CHOICES)}, and pinball with several quantiles only"
        )
    if not data.test_steps:
        raise AnyRNNError(
            f"{data.name}: got test_steps=0, expected at least horizon={data.horizon}: a comparison needs a test part"
        )
    settings = settings.resolved(data)

    def nothing() -> ForecastResults:
        return ForecastResults(data, settings, seeds, (), _baselines(data), tuple(cells), command, metric)

    results: ForecastResults = train_all(ForecastLesson(data, settings, metric), cells, seeds, nothing, **how)
    return results


def _written(metric: str) -> str:
    """A metric as sentences name it."""
    return {"smape": "sMAPE", "pinball": "pinball loss", "coverage": "coverage"}.get(metric, metric.upper())


def _baselines(data: Forecasting) -> tuple[NaiveForecast, ...]:
    test = data.origins("test")
    y, scales = data.truth(test), mase_scales(data, test)
    found = []
    for name, guess in baselines(data.season).items():
        said = guess(data, test)
        found.append(NaiveForecast(name, point_metrics(y, said, scales), by_step(y, said)))
    return tuple(found)
