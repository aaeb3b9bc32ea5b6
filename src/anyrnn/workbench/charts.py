"""The drawings of report.html, as inline SVG: text stays text, colours are the page's CSS variables.

Only geometry lives here. The page's style sheet gives every class its light and its dark colours; a heat map,
which has too many cells to be drawn one by one, is an indexed PNG in both palettes. Coordinates are rounded when
written, so that the same numbers give the same bytes.
"""

import base64
import math
import struct
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from markupsafe import Markup
from torch import Tensor
from torch.nn import functional as F

# Low to high: nothing to much for gates; negative, zero, positive for states. Both are told apart by the
# colour-blind (one hue by lightness; blue against orange), and zero is the colour of the page.
SEQUENTIAL = {
    "light": ("#f4f7fb", "#9cc3e6", "#2f7fc1", "#083a6b"),
    "dark": ("#171c23", "#1f4e79", "#4a9ad8", "#d3ebff"),
}
DIVERGING = {
    "light": ("#08509b", "#6baed6", "#f7f6f4", "#f2a154", "#b34700"),
    "dark": ("#a9d4ff", "#2f79b9", "#1a1e24", "#b8661b", "#ffcf9a"),
}

_WIDTH = 520  # the user units of a chart: about the pixels of one of the page's two columns
_STRIP, _STRIP_HEIGHT = 300, 38  # of the drawing in a row of the table
_COLOURS = 8  # the page defines this many line colours; further lines repeat them, dashed

#: An epoch, or a number of steps; mean, lowest and highest value over the runs.
Point = tuple[int, float, float, float]


@dataclass(frozen=True)
class Line:
    """A learning curve.

    Attributes:
        title: Whose it is.
        colour: Its number.
        points: What is drawn.
        marks: Where it has a ring: epoch, value, and whose it is.
        is_cut: Whether it ends early since what it shows is no longer finite: it ends in a cross then.
        is_beside: Whether it stands beside another line of the same title: dashed, without a name and a range.
    """

    title: str
    colour: int
    points: tuple[Point, ...]
    marks: tuple[tuple[int, float, str], ...] = ()
    is_cut: bool = False
    is_beside: bool = False


@dataclass(frozen=True)
class Axis:
    """A range of values laid over a range of pixels."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False
    percent: bool = False  # only in how ticks are written

    def __call__(self, value: float) -> float:
        """Give the pixel of a value."""
        low, high, value = map(math.log, (self.low, self.high, value)) if self.log else (self.low, self.high, value)
        return self.start + (value - low) / (high - low) * (self.end - self.start)

    def ticks(self, count: int) -> list[tuple[float, str]]:
        """Give about that many round values inside the range, and how they are written."""
        if self.log:
            powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            for digits in ((1, 2, 5), (1, 3), (1,)):
                values = [v for k in powers for d in digits if self.low <= (v := d * 10.0**k) <= self.high]
                if len(values) <= count + 2:
                    break
            if len(values) >= 2:
                return [(v, f"{v:.3g}") for v in values[:: math.ceil(len(values) / (count + 2))]]
        unit = 100 if self.percent else 1
        rough = (self.high - self.low) / count * unit
        size = 10.0 ** math.floor(math.log10(rough))
        step = next(size * m for m in (1, 2, 5, 10) if size * m >= 0.7 * rough)
        first, last = math.ceil(self.low * unit / step - 1e-9), math.floor(self.high * unit / step + 1e-9)
        form = f",.{max(0, -math.floor(math.log10(step) + 1e-9))}f" if 1e-5 < step < 1e6 else ".4g"
        end = "\N{NO-BREAK SPACE}%" if self.percent else ""
        # Adding 0.0 makes -0.0 a plain 0.
        return [(k * step / unit, f"{k * step + 0.0:{form}}{end}") for k in range(first, last + 1)]


def span(values: Sequence[float], margin: float, *, percent: bool = False) -> tuple[float, float]:
    """Give a range that holds the values and some air, is never empty, and ends at 0 and 1 for shares."""
    low, high = min(values), max(values)
    air = (high - low) * margin or abs(high) * 0.05 or 1.0
    return (max(low - air, 0.0), min(high + air, 1.0)) if percent else (low - air, high + air)


def short(text: str, length: int) -> str:
    """Cut the middle out of a label that would run into the drawing: names often differ at their ends."""
    return text if len(text) <= length else f"{text[: length // 2]}…{text[-((length - 1) // 2) :]}"


def strip_axis(scores: Sequence[float], baselines: Sequence[float], *, percent: bool) -> Axis:
    """Give the axis that all strips of a table share.

    It holds the scores of the models. A baseline far from them is off the scale, since the question is which
    model, and a distant baseline would squeeze them into one spot.
    """
    held = scores or baselines or [0.0]
    low, high = span(held, 0.08)
    room = 1.5 * (high - low)
    near = [b for b in baselines if low - room <= b <= high + room]
    return Axis(*span([*held, *near], 0.08, percent=percent), 8, _STRIP - 8, percent=percent)


def strip_background(x: Axis, band: tuple[float, float], lines: Sequence[float]) -> Markup:
    """Draw what lies behind each strip: a band of scores, the grid, and a dashed line for each baseline."""
    start, end = sorted(min(max(x(score), 0), _STRIP) for score in band)
    tie = Markup('<rect class="tie" x="{:.1f}" y="0" width="{:.1f}" height="{}"/>')
    rule = Markup('<path class="{}" d="M{:.1f} 0V{}"/>')
    rules = [("gridline", tick) for tick, _ in x.ticks(4)] + [("base", v) for v in lines if x.low <= v <= x.high]
    return tie.format(start, end - start, _STRIP_HEIGHT) + Markup("").join(
        rule.format(style, x(value), _STRIP_HEIGHT) for style, value in rules
    )


def strip(
    back: Markup, x: Axis, colour: int | None, dots: Sequence[tuple[str, float]], mean: float, label: str
) -> Markup:
    """Draw the scores of one row of the table: a dot a run, a bar for their mean.

    Args:
        back: From `strip_background`.
        x: The axis.
        colour: The model's number; None for a baseline, which is one open dot.
        dots: (what the tooltip says, score), NaN where a run diverged.
        mean: Of the scores; NaN for none.
        label: What the drawing is, for those who do not see it.
    """
    middle = _STRIP_HEIGHT / 2
    parts = [back]
    style = "none" if colour is None else f"s{colour % _COLOURS}"
    if math.isfinite(mean):
        parts.append(Markup('<path class="{} mean" d="M{:.1f} {}v20"/>').format(style, x(mean), middle - 10))
    # Runs with equal scores would hide each other: a little up or down keeps them apart.
    step = min(5.0, 18 / max(len(dots), 1))
    for run, (text, score) in enumerate(dots):
        y = middle + step * (run - (len(dots) - 1) / 2)
        if not math.isfinite(score):
            mark = Markup('<text class="bad" x="{:.1f}" y="{:.1f}">✕<title>{}</title></text>')
            parts.append(mark.format(x.start + 12 * run, middle + 4, text))
        elif x.low <= score <= x.high:
            mark = Markup('<circle class="{} dot" cx="{:.1f}" cy="{:.1f}" r="4.5"><title>{}</title></circle>')
            parts.append(mark.format(style, x(score), y, text))
        else:
            arrow, at, anchor = ("◂", x.start - 6, "") if x(score) < x.start else ("▸", x.end + 6, "end")
            mark = Markup('<text class="t {}" x="{:.1f}" y="{:.1f}">{}<title>{}</title></text>')
            parts.append(mark.format(anchor, at, middle + 4, arrow, text))
    return svg(_STRIP, _STRIP_HEIGHT, label, parts)


def strip_ticks(x: Axis) -> Markup:
    """Draw the numbers under the strips."""
    text = Markup('<text class="t mid" x="{:.1f}" y="14">{}</text>')
    return svg(_STRIP, 20, "scale of the scores above", [text.format(x(tick), name) for tick, name in x.ticks(4)])


def curves(
    lines: Sequence[Line],
    label: str,
    *,
    log: bool = False,
    best: Callable[[Iterable[float]], float] | None = None,
    percent: bool = False,
    along: str = "epoch",
) -> Markup:
    """Draw learning curves: means as lines, the range over the runs as bands, names at the ends of the lines.

    Args:
        lines: One a model, and more beside them.
        label: What the drawing is, for those who do not see it.
        log: A logarithmic value axis; values that are not positive have no place on it and are left out.
        best: `min` or `max`: put a ring where the mean of each line without marks is best, and leave out the worse
            range that only the first quarter of the epochs visits, so that the ends can be told apart.
        percent: Values are shares, written in percent.
        along: What is counted from left to right.
    """
    left, right, top, bottom = 52, _WIDTH - 130, 12, 290
    kept = [(line, [p for p in line.points if p[2] > 0 or not log]) for line in lines]
    kept = [(line, points) for line, points in kept if points]
    if not kept:
        return Markup('<p class="soft">No run has a finite value.</p>')
    first, last = min(points[0][0] for _, points in kept), max(points[-1][0] for _, points in kept)
    visited = [v for _, points in kept for e, *vs in points if not best or e >= first + (last - first) / 4 for v in vs]
    rings = [
        (line, e, value, f"{line.title}, {whose}: epoch {e}") for line, _ in kept for e, value, whose in line.marks
    ]
    if best is not None:
        for line, points in kept:
            value = best(mean for _, mean, *_ in points)
            e = next(e for e, mean, *_ in points if mean == value)
            if not line.marks:
                rings.append((line, e, value, f"{line.title}: best after epoch {e}"))
            visited.append(value)
    visited += [value for _, _, value, _ in rings]  # which may lie in the first quarter: it is what one looks for
    y = Axis(*(_log_span(visited) if log else span(visited, 0.05, percent=percent)), bottom, top, log, percent)
    x = Axis(first, max(last, first + 1), left, right)
    parts = [_horizontal_axis_grid(y, left, right)]
    epoch = Markup('<text class="t mid" x="{:.1f}" y="{}">{}</text>')
    ticks = [tick for tick, _ in x.ticks(6) if tick.is_integer() and tick <= last]
    parts += [epoch.format(x(tick), bottom + 18, f"{tick:,.0f}") for tick in ticks]
    parts.append(epoch.format((left + right) / 2, bottom + 36, along))
    clip = f"clip-{along}".replace(" ", "-") + ("-log" if log else "")
    frame = Markup(
        '<clipPath id="{0}"><rect x="{1}" y="{2}" width="{3}" height="{4}"/></clipPath><g clip-path="url(#{0})">'
    )
    parts.append(frame.format(clip, left, top - 2, right - left + 4, bottom - top + 4))
    for line, points in kept:
        pixels = [(x(e), y(mean), y(low), y(high)) for e, mean, low, high in _thin(points)]
        band = _path([(e, high) for e, _, _, high in pixels] + [(e, low) for e, _, low, _ in reversed(pixels)])
        if not line.is_beside:
            parts.append(Markup('<path class="{} band" d="{}Z"/>').format(_style(line), band))
        mean = Markup('<path class="{} line{}" d="{}h0"><title>{}</title></path>')
        beside = " beside" if line.is_beside else ""
        parts.append(mean.format(_style(line), beside, _path([(e, m) for e, m, _, _ in pixels]), line.title))
    parts.append(Markup("</g>"))
    for line, e, value, text in rings:
        ring = Markup('<circle class="{} ring" cx="{:.1f}" cy="{:.1f}" r="4"><title>{}</title></circle>')
        parts.append(ring.format(_style(line), x(e), y(value), text))
    named = [(line, points) for line, points in kept if not line.is_beside]
    ends = [(min(max(y(points[-1][1]), top), bottom), x(points[-1][0]), line) for line, points in named]
    ends.sort(key=lambda end: (end[0], end[2].colour))
    for (end_y, end_x, line), label_y in zip(ends, _spread([end[0] for end in ends], 15, bottom + 4), strict=True):
        is_cut = end_x < right - 1 and line.is_cut
        if is_cut:
            parts.append(Markup('<text class="bad mid" x="{:.1f}" y="{:.1f}">✕</text>').format(end_x, end_y + 4))
        lead = Markup('<path class="{}{} lead" d="M{:.1f} {:.1f}L{} {:.1f}"/>')
        cut = " cut" if is_cut else ""
        parts.append(lead.format(_style(line), cut, end_x, end_y, right + 12, label_y))
        text = Markup('<text class="t name" x="{}" y="{:.1f}">{}<title>{}</title></text>')
        parts.append(text.format(right + 16, label_y + 4, short(line.title, 18), line.title))
    return svg(_WIDTH, bottom + 44, label, parts)


def confusion(counts: Sequence[Sequence[int]], classes: Sequence[str]) -> Markup:
    """Draw a confusion matrix: a row a true class, shaded by its share of the row, empty cells left empty."""
    K = len(classes)
    width = _WIDTH if K <= 20 else 900
    left = 24 + 6.8 * max(min(len(name), 14) for name in classes)
    cell = min((width - left - 4) / K, 60)
    turned = any(len(name) * 6.8 > cell for name in classes)
    top = left - 2 if turned else 36
    frame = Markup('<rect class="field" x="{0:.1f}" y="{1:.1f}" width="{2:.1f}" height="{2:.1f}"/>')
    heading = Markup('<text class="t{}" x="{:.1f}" y="{:.1f}">{}</text>')
    parts = [
        frame.format(left, top, cell * K),
        heading.format("", left, 12, "predicted"),
        heading.format(" end", left - 6, top - 6, "true"),
    ]
    for k in range(0, K, math.ceil(11 / cell)):  # names closer than a line of text would overlap
        middle = cell * (k + 0.5)
        parts.append(_left_label(left - 6, top + middle, classes[k], 14))
        column = Markup('<text class="t{}" transform="translate({:.1f} {:.1f}){}">{}<title>{}</title></text>')
        how, turn, right = ("", " rotate(-90)", 4) if turned else (" mid", "", 0)
        parts.append(column.format(how, left + middle + right, top - 6, turn, short(classes[k], 14), classes[k]))
    box = Markup(
        '<rect class="{}" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}" fill-opacity="{:.2f}">'
        "<title>{}</title></rect>"
    )
    number = Markup('<text class="n{}" x="{:.1f}" y="{:.1f}" style="font-size:{:.1f}px">{}</text>')
    for row, name in enumerate(classes):
        for k, count in enumerate(counts[row]):
            if count == 0:
                continue
            share = count / sum(counts[row])
            x, y = left + cell * k, top + cell * row
            what = f"true {name}, predicted {classes[k]}: {count} of {sum(counts[row])} ({100 * share:.1f} %)"
            kind = "right" if row == k else "wrong"
            # Opacity starts at 0.2: a single confusion among many has to be seen.
            parts.append(box.format(kind, x + 0.5, y + 0.5, cell - 1, cell - 1, 0.2 + 0.8 * share, what))
            if cell >= 14:
                size = min(13, 0.6 * cell, 1.4 * cell / len(str(count)))
                on = " on" if share > 0.5 else ""
                parts.append(number.format(on, x + cell / 2, y + cell / 2 + 0.36 * size, size, count))
    return svg(width, top + cell * K + 4, "Confusion matrix: rows are true classes, columns are predicted ones", parts)


def scatter(points: Sequence[tuple[str, float, float]], form: Callable[[float], str]) -> Markup:
    """Draw predicted against true values, (id, true, predicted), with the line on which they agree."""
    points = [p for p in points if math.isfinite(p[1]) and math.isfinite(p[2])]
    if not points:
        return Markup('<p class="soft">No prediction is finite.</p>')
    left, right, top, bottom = 64, _WIDTH - 16, 12, 440
    low, high = span([v for p in points for v in p[1:]], 0.04)
    x, y = Axis(low, high, left, right), Axis(low, high, bottom, top)
    parts = [_horizontal_axis_grid(y, left, right), _vertical_axis_grid(x, top, bottom)]
    parts.append(Markup('<path class="base" d="M{:.1f} {:.1f}L{:.1f} {:.1f}"/>').format(left, bottom, right, top))
    for name, true, predicted in points:
        dot = Markup('<circle class="s0 dot small" cx="{:.1f}" cy="{:.1f}" r="3.5"><title>{}</title></circle>')
        parts.append(dot.format(x(true), y(predicted), f"{name}: true {form(true)}, predicted {form(predicted)}"))
    parts.append(Markup('<text class="t mid" x="{}" y="{}">true</text>').format((left + right) / 2, bottom + 38))
    parts.append(Markup('<text class="t" x="{}" y="{}">predicted</text>').format(left + 6, top + 12))
    return svg(_WIDTH, bottom + 46, "Predicted against true value of each test sequence", parts)


def residuals(points: Sequence[tuple[str, float, float]], form: Callable[[float], str]) -> Markup:
    """Draw predicted minus true over the predicted values, (id, true, predicted), with the line of no error."""
    points = [p for p in points if math.isfinite(p[1]) and math.isfinite(p[2]) and math.isfinite(p[2] - p[1])]
    if not points:
        return Markup('<p class="soft">No prediction is finite.</p>')
    left, right, top, bottom = 64, _WIDTH - 16, 12, 440
    x = Axis(*span([predicted for *_, predicted in points], 0.04), left, right)
    y = Axis(*span([0.0, *(predicted - true for _, true, predicted in points)], 0.04), bottom, top)
    parts = [_horizontal_axis_grid(y, left, right), _vertical_axis_grid(x, top, bottom)]
    parts.append(Markup('<path class="base" d="M{} {:.1f}H{}"/>').format(left, y(0.0), right))
    for name, true, predicted in points:
        dot = Markup('<circle class="s0 dot small" cx="{:.1f}" cy="{:.1f}" r="3.5"><title>{}</title></circle>')
        text = f"{name}: true {form(true)}, predicted {form(predicted)}, error {form(predicted - true)}"
        parts.append(dot.format(x(predicted), y(predicted - true), text))
    parts.append(Markup('<text class="t mid" x="{}" y="{}">predicted</text>').format((left + right) / 2, bottom + 38))
    parts.append(Markup('<text class="t" x="{}" y="{}">predicted − true</text>').format(left + 6, top + 12))
    return svg(_WIDTH, bottom + 46, "Error of each test sequence over its prediction", parts)


def heat_map(values: Tensor, low: float, high: float, label: str, rows: Sequence[str] = ()) -> Markup:
    """Draw a matrix (T, H) over time: a column a step, a row a unit; one palette if low is 0, else two-sided.

    Args:
        values: The matrix; what is not finite stays blank. More than 400 steps or 160 units are averaged in bins.
        low: The value of the palette's first colour.
        high: That of its last.
        label: What the drawing is, for those who do not see it.
        rows: Names of the rows; without them they are numbered.
    """
    T, H = values.shape
    width, left, top, size = 340, 40 if not rows else 96, 6, 170
    right = width - 8
    binned = F.adaptive_avg_pool2d(values.T[None, None].float(), (min(H, 160), min(T, 400)))[0, 0]
    level = ((binned - low) / (high - low) * 254).round().clamp(0, 254)
    pixels = torch.where(level.isfinite(), level, 255).to(torch.uint8)
    parts = []
    for theme, stops in (SEQUENTIAL if low == 0 else DIVERGING).items():
        image = Markup('<image class="{}" x="{}" y="{}" width="{}" height="{}" preserveAspectRatio="none" href="{}"/>')
        parts.append(image.format(theme, left, top, right - left, size, _png(pixels, stops)))
    parts.append(
        Markup('<rect class="edge" x="{}" y="{}" width="{}" height="{}"/>').format(left, top, right - left, size)
    )
    step = (right - left) / T
    below = Markup('<text class="t mid" x="{:.1f}" y="{}">{}</text>')
    parts += [below.format(left + step * (t - 0.5), top + size + 15, t) for t in _numbers(T)]
    beside = [(k + 1, rows[k]) for k in range(0, H, math.ceil(H / 14))] if rows else [(k, str(k)) for k in _numbers(H)]
    parts += [_left_label(left - 5, top + size * (k - 0.5) / H, name, 13) for k, name in beside]
    if T <= 400:
        for t, column in enumerate(values):
            text = f"step {t + 1}: mean {column.mean():.2f}, from {column.min():.2f} to {column.max():.2f}"
            cover = Markup('<rect class="hover" x="{:.1f}" y="{}" width="{:.1f}" height="{}"><title>{}</title></rect>')
            parts.append(cover.format(left + step * t, top, step, size, text))
    return svg(width, top + size + 20, label, parts)


def order(matrices: Sequence[Tensor]) -> Tensor:
    """Sort units so that those that behave alike are neighbours: by the first principal component.

    Args:
        matrices: What the same H units do, each (T, H).

    Returns:
        The units (H,), the same for all matrices, so that a row is one unit everywhere.
    """
    traces = torch.cat([m.double().nan_to_num() for m in matrices]).T  # (H, sum of T)
    traces = traces - traces.mean(0)
    loadings = torch.linalg.eigh(traces @ traces.T).eigenvectors[:, -1]  # of the largest eigenvalue
    component = loadings @ traces
    # The sign of a component is arbitrary: fix it, so that the picture does not flip between machines.
    return torch.argsort(loadings * torch.sign(component[component.abs().argmax()]), stable=True)


def svg(width: float, height: float, label: str, parts: Sequence[str]) -> Markup:
    """Give a drawing of this size from its parts, with what it is for those who do not see it."""
    start = Markup('<svg viewBox="0 0 {:.0f} {:.0f}" role="img" aria-label="{}" style="--w:{:.0f}px">')
    return start.format(width, height, label, width) + Markup("\n").join(parts) + Markup("</svg>")


def _vertical_axis_grid(x: Axis, top: float, bottom: float) -> Markup:
    part = Markup(
        '<path class="gridline" d="M{0:.1f} {1:.1f}V{2:.1f}"/><text class="t mid" x="{0:.1f}" y="{3:.1f}">{4}</text>'
    )
    return Markup("").join(part.format(x(tick), top, bottom, bottom + 18, name) for tick, name in x.ticks(5))


def _horizontal_axis_grid(y: Axis, left: float, right: float) -> Markup:
    part = Markup(
        '<path class="gridline" d="M{1:.1f} {0:.1f}H{2:.1f}"/><text class="t end" x="{3:.1f}" y="{4:.1f}">{5}</text>'
    )
    return Markup("").join(part.format(y(tick), left, right, left - 7, y(tick) + 4, name) for tick, name in y.ticks(5))


def _style(line: Line) -> str:
    return f"s{line.colour % _COLOURS}{' again' if line.colour >= _COLOURS else ''}"


def _left_label(x: float, y: float, text: str, length: int) -> Markup:
    part = Markup('<text class="t end" x="{:.1f}" y="{:.1f}">{}<title>{}</title></text>')
    return part.format(x, y + 4, short(text, length), text)


def _log_span(values: Sequence[float]) -> tuple[float, float]:
    low, high = span([math.log(v) for v in values], 0.05)
    return math.exp(low), math.exp(high)


def _path(points: Sequence[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)


def _thin(points: Sequence[Point], limit: int = 300) -> Sequence[Point]:
    """Keep every k-th point and the last: more than the pixels of the drawing would only make the file large."""
    step = math.ceil(len(points) / limit)
    return points if step <= 1 else (*points[:-1:step], points[-1])


def _spread(wanted: Sequence[float], gap: float, bottom: float) -> list[float]:
    """Move sorted labels apart until none overlaps the next: down first, then up from the bottom edge."""
    placed = list(wanted)
    for above, below in pairwise(range(len(placed))):
        placed[below] = max(placed[below], placed[above] + gap)
    limit = bottom
    for k in reversed(range(len(placed))):
        placed[k] = min(placed[k], limit)
        limit = placed[k] - gap
    return placed


def _numbers(count: int) -> list[int]:
    """Give the numbers 1..count, or 1 and about five round ones where all of them have no room."""
    if count <= 12:
        return list(range(1, count + 1))
    rest = [round(tick) for tick, _ in Axis(1, count, 0, 1).ticks(5)]
    return [1, *(tick for tick in rest if tick > 1 + (rest[1] - rest[0]) / 2)]


def _png(pixels: Tensor, stops: Sequence[str]) -> str:
    """Encode (rows, columns) of palette indices 0..254, 255 being blank, as the data URI of an indexed PNG."""
    colours = torch.tensor([[int(stop[k : k + 2], 16) for k in (1, 3, 5)] for stop in stops], dtype=torch.float32)
    ramp = F.interpolate(colours.T[None], size=255, mode="linear", align_corners=True)[0].T.round().to(torch.uint8)
    rows, columns = pixels.shape
    lines = b"".join(b"\0" + bytes(row.tolist()) for row in pixels)
    chunks = (
        (b"IHDR", struct.pack(">2I5B", columns, rows, 8, 3, 0, 0, 0)),
        (b"PLTE", bytes(ramp.flatten().tolist()) + b"\0\0\0"),
        (b"tRNS", b"\xff" * 255 + b"\0"),
        (b"IDAT", zlib.compress(lines, 9)),
        (b"IEND", b""),
    )
    body = b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )
    return "data:image/png;base64," + base64.b64encode(b"\x89PNG\r\n\x1a\n" + body).decode()
