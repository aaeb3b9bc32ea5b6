"""Forecasters compared on the same series from the same origins, beside naive forecasts."""

import platform
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table

import anyrnn
from anyrnn.errors import AnyRNNError
from anyrnn.explain import explain
from anyrnn.workbench.doctor import machine
from anyrnn.workbench.forecast.metrics import METRICS, by_step, mase_scales, point_metrics
from anyrnn.workbench.forecast.model import TrainedForecaster, build
from anyrnn.workbench.forecast.naive import baselines
from anyrnn.workbench.forecast.report import Example, render
from anyrnn.workbench.forecast.series import Forecasting
from anyrnn.workbench.forecast.stored import save_model
from anyrnn.workbench.forecast.train import ForecastEpoch, ForecastRun, ForecastSettings, form_of, train
from anyrnn.workbench.models import Network, network
from anyrnn.workbench.progress import Told
from anyrnn.workbench.runs import save_run
from anyrnn.workbench.stored import FORMAT
from anyrnn.workbench.train import using_threads

_SPELLED = ("mae", "rmse", "rrse", "smape")  # read letter by letter, and the first letter begins with a vowel

#: What a forecast can be chosen by: less is better.
CHOICES = tuple(name for name in METRICS if name != "coverage")


@dataclass(frozen=True)
class NaiveForecast:
    """A baseline: its name, its metrics on the test part, and its errors at each step by name."""

    name: str
    metrics: dict[str, float]
    by_step: Mapping[str, tuple[float, ...]]


@dataclass(frozen=True)
class ForecastEntry:
    """One network, over all seeds; the model is that of the first one."""

    model: TrainedForecaster
    parameters: int
    engines: tuple[str, ...]
    runs: tuple[ForecastRun, ...]

    def mean(self, metric: str) -> float:
        """The mean of a metric over the seeds."""
        return statistics.fmean(run.metrics[metric] for run in self.runs)

    def std(self, metric: str) -> float | None:
        """The sample standard deviation over the seeds; None with one seed."""
        return statistics.stdev(run.metrics[metric] for run in self.runs) if len(self.runs) > 1 else None


@dataclass(frozen=True)
class ForecastProgress(Told):
    """How far a comparison is, told after each epoch."""

    network: Network
    seed: int
    run: int
    runs: int
    epoch: ForecastEpoch
    epochs: int
    ended: bool


@dataclass(frozen=True)
class ForecastResults:
    """The outcome: `print` shows the table, `save` writes the run folder.

    Attributes:
        data: What was forecast.
        settings: With which budget; nothing in it is None.
        metric: What the best one is chosen by.
        seeds: The seeds of the runs.
        entries: One for each network, in the order asked for.
        baselines: What to beat.
        command: What was run.
        unfinished: The names of the networks that were asked for and are not there: () unless interrupted.
    """

    data: Forecasting
    settings: ForecastSettings
    metric: str
    seeds: tuple[int, ...]
    entries: tuple[ForecastEntry, ...]
    baselines: tuple[NaiveForecast, ...]
    command: str
    unfinished: tuple[str, ...] = ()

    @property
    def best(self) -> ForecastEntry:
        """The network with the lowest metric; of equals, the first."""
        return min(self.entries, key=lambda entry: entry.mean(self.metric))

    @property
    def naive(self) -> NaiveForecast | None:
        """The best baseline; None if the metric is one that they have not (of quantiles)."""
        known = [each for each in self.baselines if self.metric in each.metrics]
        return min(known, key=lambda each: each.metrics[self.metric], default=None)

    @property
    def verdict(self) -> str:
        """The answer in a sentence, which says first if a naive forecast is as good."""
        best, name = self.best, ("an " if self.metric in _SPELLED else "a ") + _written(self.metric)
        title, score = best.model.network.title, best.mean(self.metric)
        spread = best.std(self.metric)
        says = f"{title} has {name} of {score:.4g}" + ("" if spread is None else f" ± {spread:.2g}")
        own = best.std(self.metric) or 0.0
        if self.naive is not None:
            other = self.naive.metrics[self.metric]
            if other <= score:
                return f"No network: the forecast “{self.naive.name}” has {name} of {other:.4g}; {says}."
            if other - score <= 2 * own:
                return f"{says}, but that is a tie with the forecast “{self.naive.name}” ({other:.4g})."
            says += f"; the best naive forecast, “{self.naive.name}”, {other:.4g}"
        others = [entry for entry in self.entries if entry is not best]
        if others:
            second = min(others, key=lambda entry: entry.mean(self.metric))
            named, follows = second.model.network.title, second.mean(self.metric)
            if follows - score <= 2 * max(own, second.std(self.metric) or 0.0):
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
        if self.metric not in seasonal.metrics:
            return ()
        least = seasonal.metrics[self.metric]
        behind = [(e.model.network.title, e.mean(self.metric)) for e in self.entries if e.mean(self.metric) >= least]
        if not behind:
            return ()
        named = ", ".join(f"{title} ({score:.4g})" for title, score in behind)
        return (f"Not better than the forecast “{seasonal.name}” ({_written(self.metric)} {least:.4g}): {named}.",)

    def table(self) -> str:
        """The table of the results as text."""
        console = Console(file=StringIO(), width=140)
        with console.capture() as capture:
            console.print(self)
        return "\n".join(line.rstrip() for line in capture.get().splitlines())

    def __str__(self) -> str:
        return self.table()

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """The table."""
        shown = [self.metric, *(m for m in METRICS if m != self.metric and m in self.entries[0].runs[0].metrics)]
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
        table.add_column("network", overflow="fold")
        for name in (*shown, "parameters", "training"):
            table.add_column(name, justify="right", no_wrap=True)
        best = self.best
        for entry in self.entries:
            first = entry.std(self.metric)
            cells = [f"{entry.mean(name):.4g}" for name in shown]
            cells[0] += "" if first is None else f" ± {first:.2g}"
            seconds = statistics.fmean(run.seconds for run in entry.runs)
            style = "bold green" if entry is best and len(self.entries) > 1 else ""
            row = (entry.model.network.title, *cells, f"{entry.parameters:,}", f"{seconds:.1f} s")
            table.add_row(*row, style=style)
        for each in self.baselines:
            cells = [f"{each.metrics[name]:.4g}" if name in each.metrics else "" for name in shown]
            table.add_row(each.name, *cells, "", "", style="dim")
        yield table

    def to_dict(self) -> dict[str, Any]:
        """The results as JSON has them."""
        data = self.data
        lengths = [len(series) for series in data.series]
        test = data.origins("test")
        return {
            "format": FORMAT,
            "kind": "forecast",
            "anyrnn": anyrnn.__version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
            "threads": self.settings.threads,
            "machine": machine(),
            "command": self.command,
            "dataset": {
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
            },
            "settings": {**asdict(self.settings), "quantiles": list(self.settings.quantiles)},
            "metric": {"name": self.metric, "higher_is_better": False},
            "seeds": list(self.seeds),
            "models": [_entry_dict(entry, self.metric) for entry in self.entries],
            "baselines": [asdict(each) for each in self.baselines],
            "best": self.best.model.network.name,
            "unfinished": list(self.unfinished),
        }

    def examples(self) -> list[Example]:
        """Windows of the test part to look at: that of the median error of the best network, a good and a bad one."""
        data, run, origins = self.data, self.best.runs[0], self.data.origins("test")
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
        data, origins = self.data, self.data.origins("test")
        y, said = data.truth(origins), np.mean([run.forecasts for run in self.best.runs], axis=0)
        errors = np.abs(y - said).mean(1)
        by_series = [(s.id, float(errors[origins.series == k].mean())) for k, s in enumerate(data.series)]
        naive = baselines(data.season)[self.baselines[0].name](data, origins)
        plain = np.abs(y - naive).mean(1)
        beside = [float(plain[origins.series == k].mean()) for k in range(len(data.series))]
        rows = [(name, error, other) for (name, error), other in zip(by_series, beside, strict=True)]
        return sorted(rows, key=lambda row: -row[1])[:10]

    def save(self, folder: str | Path, *, overwrite: bool = False, numbered: bool = False) -> Path:
        """Write the run folder: results.json, the models, report.html.

        Args:
            folder: Where; made if it is not there.
            overwrite: Replace the folder if it holds a run, and nothing else.
            numbered: Write to the first of FOLDER, FOLDER-2, FOLDER-3, ... that is free.

        Raises:
            AnyRNNError: if something else is there already, or the disk is full or fails.
        """
        results = self.to_dict()
        report = render(results, self.verdict, self.examples(), self.hardest())
        models = [entry.model for entry in self.entries]
        return save_run(Path(folder), results, models, report, save_model, overwrite=overwrite, numbered=numbered)


def compare(
    data: Forecasting,
    cells: Sequence[str] = ("lstm",),
    *,
    seeds: int = 1,
    metric: str = "mase",
    settings: ForecastSettings | None = None,
    command: str = "anyrnn.workbench.forecast.compare",
    on_epoch: Callable[[ForecastProgress], None] | None = None,
    on_network: Callable[[ForecastResults], None] | None = None,
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
    if not isinstance(seeds, int) or seeds < 1:
        raise AnyRNNError(f"seeds: got {seeds!r}, expected how many runs each network gets, at least 1")
    return _compare(
        data, cells, tuple(range(seeds)), metric, settings or ForecastSettings(), command, on_epoch, on_network
    )


def fit(
    data: Forecasting,
    cell: str = "lstm",
    *,
    seed: int = 0,
    metric: str = "mase",
    settings: ForecastSettings | None = None,
    command: str = "anyrnn.workbench.forecast.fit",
    on_epoch: Callable[[ForecastProgress], None] | None = None,
) -> ForecastResults:
    """Train one network once. The results are those of a comparison of one: see `compare` for the arguments."""
    return _compare(data, [cell], (seed,), metric, settings or ForecastSettings(), command, on_epoch)


def _compare(
    data: Forecasting,
    cells: Sequence[str],
    seeds: tuple[int, ...],
    metric: str,
    settings: ForecastSettings,
    command: str,
    on_epoch: Callable[[ForecastProgress], None] | None,
    on_network: Callable[[ForecastResults], None] | None = None,
) -> ForecastResults:
    if not cells or len(set(cells)) < len(cells):
        raise AnyRNNError(f"cells: got {', '.join(cells) or 'none'}, expected one or more names, each once")
    if metric not in CHOICES or (metric == "pinball" and len(settings.quantiles) < 2):
        raise AnyRNNError(
            f"metric: got {metric!r}, expected one of {', '.join(CHOICES)}, and pinball with several quantiles only"
        )
    if not data.test_steps:
        raise AnyRNNError(
            f"{data.name}: got test_steps=0, expected at least horizon={data.horizon}: a comparison needs a test part"
        )
    networks = [network(name) for name in cells]
    form, _ = form_of(data, settings)
    with torch.random.fork_rng(devices=[]):  # a cell that cannot be built is found now, not after the others
        for each in networks:
            build(each, form, settings.hidden_size, layers=settings.layers)
    settings = replace(settings, context=settings.context_for(data), threads=settings.threads or 1)
    entries: list[ForecastEntry] = []
    beside = _baselines(data)
    for k, each in enumerate(networks):
        trained: list[tuple[TrainedForecaster, ForecastRun]] = []
        for seed in seeds:
            number = k * len(seeds) + len(trained) + 1

            def tell(
                epoch: ForecastEpoch, ended: bool, *, each: Network = each, seed: int = seed, number: int = number
            ) -> None:
                if on_epoch is not None:
                    runs = len(networks) * len(seeds)
                    on_epoch(ForecastProgress(each, seed, number, runs, epoch, settings.epochs, ended))

            trained.append(train(each, data, settings, seed, tell))
        with using_threads(settings.threads or 1):
            entries.append(_entry(trained))
        missing = tuple(other.name for other in networks[k + 1 :])
        results = ForecastResults(data, settings, metric, seeds, tuple(entries), beside, command, missing)
        if on_network is not None:
            on_network(results)
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


def _entry(trained: Sequence[tuple[TrainedForecaster, ForecastRun]]) -> ForecastEntry:
    model = trained[0][0]
    explained = explain(model.module.layer, torch.zeros(2, 2, model.module.form.features))
    return ForecastEntry(
        model=model,
        parameters=sum(p.numel() for p in model.module.parameters() if p.requires_grad),
        engines=tuple(dict.fromkeys(part.engine for part in explained.parts)),
        runs=tuple(run for _, run in trained),
    )


def _entry_dict(entry: ForecastEntry, metric: str) -> dict[str, Any]:
    runs = [
        {
            "seed": run.seed,
            "epoch": run.epoch,
            "base": run.base,
            "metrics": run.metrics,
            "by_step": run.by_step,
            "seconds": run.seconds,
            "history": [asdict(epoch) for epoch in run.history],
        }
        for run in entry.runs
    ]
    return {
        "name": entry.model.network.name,
        "title": entry.model.network.title,
        "layer": repr(entry.model.module.layer),
        "parameters": entry.parameters,
        "engines": list(entry.engines),
        "score_mean": entry.mean(metric),
        "score_std": entry.std(metric),
        "runs": runs,
    }
