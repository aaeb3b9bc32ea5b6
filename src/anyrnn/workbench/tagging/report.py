"""report.html of taggers: that of whole sequences, and beside it tags, spans, and sequences step by step."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from anyrnn.workbench import charts
from anyrnn.workbench.metrics import NUMBER_METRICS
from anyrnn.workbench.report import context, page
from anyrnn.workbench.tagging.scores import Scorer, f1_precision_recall
from anyrnn.workbench.tagging.spans import OUTSIDE
from anyrnn.workbench.tagging.verdict import TagComparison

_NBSP = "\N{NO-BREAK SPACE}"
_LISTED = 10
_WIDTH = 1080
_MOST_WORDS = 120  # of a sentence that is shown


@dataclass(frozen=True)
class Shown:
    """A sequence of the test part.

    Attributes:
        id: Its name.
        words: Its words; None if its steps are numbers.
        y: The target of each step, -1 or NaN where there is none (T,).
        said: What was said of the steps that have one, one after the other.
    """

    id: str
    words: tuple[str, ...] | None
    y: NDArray[Any]
    said: NDArray[Any]

    @property
    def known(self) -> NDArray[np.bool_]:
        """Which steps have a target."""
        known: NDArray[np.bool_] = ~np.isnan(self.y) if self.y.dtype.kind == "f" else self.y >= 0
        return known


def typical(scorer: Scorer, said: NDArray[Any]) -> list[tuple[str, int]]:
    """Sequences worth a look, and why: one that is as well answered as half of them are, and one of the worst.

    Of classes, sequences in which all steps are of one class tell little, and are taken only if there are no others.
    """
    count, lengths = len(scorer.lengths), scorer.lengths
    if scorer.classes is None:
        wrong = np.bincount(scorer.sequence, (said - scorer.y) ** 2, minlength=count)
    else:
        wrong = np.bincount(scorer.sequence, said != scorer.y, minlength=count)
    share = wrong / np.maximum(lengths, 1)
    ends = np.cumsum(lengths)
    kinds = np.array([len(np.unique(scorer.y[end - n : end])) for end, n in zip(ends, lengths, strict=True)])
    places = np.flatnonzero((lengths > 1) & (kinds > 1))
    if not len(places):
        places = np.flatnonzero(lengths > 0)
    order = places[np.lexsort((-lengths[places], share[places]))]
    middle, worst = int(order[len(order) // 2]), int(order[int(0.95 * (len(order) - 1))])
    found = [("as well answered as half of them are", middle)]
    return found if worst == middle else [*found, ("among the worst twentieth", worst)]


def render(results: Mapping[str, Any], shown: Sequence[tuple[str, Shown]]) -> str:
    """Write the report as one self-contained HTML page.

    Args:
        results: The dictionary of results.json.
        shown: Sequences of the test part, with why they are shown, as the first run of the best network answers them.
    """
    comparison = TagComparison(results)
    scorer, runs = comparison.scorer, [np.array(run["predictions"]) for run in comparison.best.runs]
    return page("tagging_report.html.j2").render(
        **context(results, comparison),
        data_notes=results["dataset"]["notes"],
        causal=[m.title for m in comparison.models if m.name in results["causal"]],
        spans=_spans(scorer, runs),
        tags=_tags(scorer, runs),
        sequences=_sequences(comparison, runs[0]) if scorer.classes is None else (),
        examples=[_example(why, each, scorer) for why, each in shown],
        recalls=(),
        gates=None,
        flow=None,
        panels=(),
    )


def _percent(value: float) -> str:
    return f"{100 * value:.1f}{_NBSP}%" if math.isfinite(value) else "–"


def _spans(scorer: Scorer, runs: Sequence[NDArray[Any]]) -> list[tuple[Any, ...]]:
    """Of each type of spans: name, how many there are, were found, are right; precision, recall, F1. Worst first."""
    if scorer.scheme is None:
        return []
    counted = np.sum([scorer.span_counts(run) for run in runs], axis=0)  # (types, 3)
    rows = []
    for name, (there, found, right) in zip(scorer.scheme.types, counted.tolist(), strict=True):
        f1, precision, recall = f1_precision_recall(there, found, right)
        rows.append((f1, (name, there, found, right, _percent(precision), _percent(recall), _percent(f1))))
    return [row for _, row in sorted(rows, key=lambda row: row[0])]


def _tags(scorer: Scorer, runs: Sequence[NDArray[Any]]) -> list[tuple[Any, ...]]:
    """Of each class: name, how many steps are of it, were said to be; precision, recall, F1. The worst recall first."""
    if scorer.classes is None:
        return []
    counts = np.sum([scorer.confusion(run) for run in runs], axis=0)
    rows = []
    for k, name in enumerate(scorer.classes):
        there, found, right = int(counts[k].sum()), int(counts[:, k].sum()), int(counts[k, k])
        f1, precision, recall = f1_precision_recall(there, found, right)
        if there or found:
            scores = (_percent(precision) if found else "–", _percent(recall) if there else "–", _percent(f1))
            rows.append(((recall, -there), (name, there, found, *scores)))
    return [row for _, row in sorted(rows, key=lambda row: row[0])]


def _sequences(c: TagComparison, said: NDArray[Any]) -> list[tuple[str, int, str, str]]:
    """Of the sequences with the largest errors: name, steps, error, efficiency."""
    scorer, rows = c.scorer, []
    ends = np.cumsum(scorer.lengths)
    for name, end, length in zip(c.sequence_ids, ends, scorer.lengths, strict=True):
        if length:
            y, got = scorer.y[end - length : end], said[end - length : end]
            nse = NUMBER_METRICS["nse"].compute(y, got, None)
            rows.append((NUMBER_METRICS["rmse"].compute(y, got, None), name, int(length), nse))
    worst = sorted(rows, key=lambda row: -row[0])[:_LISTED]
    return [(name, n, f"{error:.4g}", f"{nse:.3f}" if math.isfinite(nse) else "–") for error, name, n, nse in worst]


@dataclass(frozen=True)
class Example:
    """A sequence as the page shows it: as words, or as a chart."""

    title: str
    caption: str
    words: Sequence[tuple[str, str, str]] = ()
    chart: str = ""
    legend: Sequence[tuple[int, str]] = ()

    @property
    def wide(self) -> bool:
        """Whether it takes the whole width."""
        return not self.words


def _example(why: str, shown: Shown, scorer: Scorer) -> Example:
    title = f"Sequence {shown.id}: {why}"
    if scorer.classes is None:
        caption = "Grey: what came, where it is known. Orange: what was said of these steps, by the first seed."
        return Example(title, caption, chart=_lines(title, shown))
    if shown.words is not None:
        words = _words(shown, scorer.classes)
        cut = "" if len(words) == len(shown.words) else f" The first {len(words)} of {len(shown.words)} words."
        caption = (
            "By the first seed. Underlined once: a tag that is right; twice: one that is wrong, as true tag → what was "
            f"said. All other words are {OUTSIDE}, and said to be." + cut
        )
        return Example(title, caption, words)
    caption = (
        "By the first seed: the true class of each step above, what was said below, and a stroke between them where "
        "they differ. Empty: no target is known."
    )
    colours = sorted({*shown.y[shown.known].tolist(), *shown.said.tolist()})
    return Example(title, caption, chart=_strips(title, shown), legend=[(k, scorer.classes[k]) for k in colours])


def _words(shown: Shown, classes: Sequence[str]) -> list[tuple[str, str, str]]:
    """Of each word what stands below it, and whether it is right, wrong, or nothing to speak of."""
    found, said = [], iter(shown.said.tolist())
    for word, y, known in zip(shown.words or (), shown.y.tolist(), shown.known.tolist(), strict=True):
        if not known:
            found.append((word, "?", ""))
            continue
        got = next(said)
        if y != got:
            found.append((word, f"{classes[y]} → {classes[got]}", "miss"))
        elif classes[y] == OUTSIDE:
            found.append((word, "", ""))
        else:
            found.append((word, classes[y], "hit"))
    return found[:_MOST_WORDS]


def _strips(title: str, shown: Shown) -> Markup:
    """Draw the true classes of the steps above those that were said, runs of one class as one box."""
    left, right, height = 60, _WIDTH - 8, 26
    said = np.full(len(shown.y), -1)
    said[shown.known] = shown.said
    T = len(said)
    x = charts.Axis(0, T, left, right)
    parts = []
    for row, (name, values) in enumerate((("true", shown.y), ("said", said))):
        top = 4 + row * 44
        parts.append(Markup('<text class="t end" x="{}" y="{}">{}</text>').format(left - 8, top + 17, name))
        for first, last, k in _runs(values):
            if k >= 0:
                box = Markup('<rect class="cell s{}" x="{:.1f}" y="{}" width="{:.1f}" height="{}"/>')
                parts.append(box.format(k % 8, x(first), top, x(last) - x(first), height))
    for first, last, wrong in _runs((said != shown.y).astype(np.int64)):
        if wrong:
            stroke = Markup('<path class="cross" d="M{:.1f} 39H{:.1f}"/>')
            parts.append(stroke.format(x(first), max(x(last), x(first) + 1.5)))
    below = Markup('<text class="t mid" x="{:.1f}" y="{}">{}</text>')
    parts += [below.format(x(v + 0.5), 92, f"{v + 1:,.0f}") for v, _ in x.ticks(8) if v < T]
    return charts.svg(_WIDTH, 98, f"{title}: true classes and what was said, step by step", parts)


def _runs(values: NDArray[Any]) -> list[tuple[int, int, int]]:
    """Runs of one value: the first step, the step behind the last one, the value."""
    edges = [0, *(np.flatnonzero(np.diff(values)) + 1).tolist(), len(values)]
    return [(a, b, int(values[a])) for a, b in pairwise(edges)]


def _lines(title: str, shown: Shown) -> Markup:
    """Draw true and predicted numbers over the steps; a line is broken where no target is known."""
    left, right, top, bottom = 64, _WIDTH - 8, 10, 220
    said = np.full(len(shown.y), math.nan)
    said[shown.known] = shown.said
    values = [v for v in (*shown.y.tolist(), *said.tolist()) if math.isfinite(v)]
    y = charts.Axis(*charts.span(values, 0.06), bottom, top)
    x = charts.Axis(1, max(len(said), 2), left, right)
    tick = Markup('<path class="gridline" d="M{} {:.1f}H{}"/><text class="t end" x="{}" y="{:.1f}">{}</text>')
    parts = [tick.format(left, y(value), right, left - 6, y(value) + 4, name) for value, name in y.ticks(4)]
    below = Markup('<text class="t mid" x="{:.1f}" y="{}">{}</text>')
    parts += [below.format(x(v), bottom + 18, f"{v:,.0f}") for v, _ in x.ticks(8) if float(v).is_integer()]
    parts.append(below.format((left + right) / 2, bottom + 36, "step"))
    for style, series in (("s5", shown.y), ("s1", said)):
        path, drawing = "", False
        for t, value in enumerate(series.tolist()):
            if math.isfinite(value):
                path += f"{'L' if drawing else 'M'}{x(t + 1):.1f} {y(value):.1f}"
            drawing = math.isfinite(value)
        parts.append(Markup('<path class="{} line" d="{}h0"/>').format(style, path))
    return charts.svg(_WIDTH, bottom + 44, f"{title}: what came, and what was said", parts)
