"""The report page: what it says follows from results.json, whatever is in there."""

import base64
import copy
import csv
import json
import math
import re
import statistics
import struct
import zlib
from collections import Counter
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch
from made_results import CASES, NAN, comparison, gates

from anyrnn.workbench import Settings, compare, load
from anyrnn.workbench.cli.options import COMPARE, PREDICT
from anyrnn.workbench.next_steps import changed as command_with
from anyrnn.workbench.report import Gates, render


class Page(HTMLParser):
    """What the tests ask of the page: its elements, its texts, and the table without the drawings in it."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, list[str]] = {}  # by element
        self.rows: list[list[str]] = []  # of the table of scores
        self._open: list[str] = []
        self._inside = False
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._inside = self._inside or (tag == "section" and dict(attrs).get("id") == "table")
        if tag not in ("meta", "img", "br"):
            self._open.append(tag)
            self.texts.setdefault(tag, []).append("")
        if self._inside and "tbody" in self._open:
            if tag == "tr":
                self.rows.append([])
            if tag == "td":
                self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag, f"</{tag}> closes something else"
        self._inside = self._inside and tag != "section"

    def handle_data(self, data: str) -> None:
        for tag in set(self._open):
            self.texts[tag][-1] += data if tag in ("h1", "title", "pre") else f"{data} "
        if self._inside and "td" in self._open and "tbody" in self._open and "svg" not in self._open:
            self.rows[-1][-1] += data

    @property
    def answer(self) -> str:
        return self.texts["h1"][0].strip().replace("\N{NO-BREAK SPACE}", " ")

    @property
    def text(self) -> str:
        return " ".join(self.texts["body"][0].replace("\N{NO-BREAK SPACE}", " ").split())

    @property
    def table(self) -> dict[str, list[str]]:
        """The cells of each row, by the first word or words of the row without the pills."""
        clean = [[" ".join(cell.replace("\N{NO-BREAK SPACE}", " ").split()) for cell in row] for row in self.rows]
        return {row[0]: row[1:] for row in clean}


def percent(value: float) -> str:
    return f"{100 * value:.1f} %"


@pytest.mark.parametrize("case", CASES)
def test_every_case_makes_one_well_formed_small_page_that_loads_nothing(case: str) -> None:
    html = render(CASES[case], gates())
    page = Page(html)  # asserts that every element is closed
    tags = {tag for tag, _ in page.tags}
    assert not tags & {"script", "link", "iframe", "object", "embed", "base", "form"}
    for tag, attributes in page.tags:
        for name in ("src", "srcset", "href", "xlink:href", "data", "action", "poster"):
            assert (attributes.get(name) or "data:").startswith("data:"), (tag, attributes)
    assert not re.search(r"@import|url\((?!#)|javascript:", html)
    assert "default-src 'none'" in html
    assert len(html.encode()) < 1_000_000
    assert not re.search(r"\bnan\b|\binf\b|undefined", html, re.IGNORECASE)


@pytest.mark.parametrize("case", CASES)
def test_same_results_give_the_same_bytes_also_after_json(case: str) -> None:
    page = render(CASES[case], gates())
    assert render(copy.deepcopy(CASES[case]), gates()) == page
    assert render(json.loads(json.dumps(CASES[case])), gates()) == page


@pytest.mark.parametrize("case", ["six models", "one model, one seed", "fifty classes"])
def test_table_holds_the_numbers_of_the_results_best_first(case: str) -> None:
    results = CASES[case]
    expected = []
    for m in results["models"]:
        spread = "" if m["score_std"] is None else f" ± {100 * m['score_std']:.1f}"
        costs = [f"{m['parameters']:,}", f"{m['train_seconds']:.1f}", f"{m['step_microseconds']:.1f}"]
        expected.append((m["score_mean"], m["title"], [percent(m["score_mean"]) + spread, "", *costs]))
    expected += [(b["score"], b["name"], [percent(b["score"]), "", "", "", ""]) for b in results["baselines"]]
    expected.sort(key=lambda row: -row[0])
    rows = list(Page(render(results, None)).table.items())
    assert [re.sub(r" (best|tie|baseline)$", "", name) for name, _ in rows] == [name for _, name, _ in expected]
    assert [cells for _, cells in rows] == [cells for *_, cells in expected]


def test_table_of_numbers_is_sorted_by_the_lowest_error() -> None:
    results = CASES["numbers"]
    rnn, lstm = results["models"]
    table = Page(render(results, None)).table
    assert list(table) == ["LSTM best", "RNN", "mean baseline"]
    assert table["LSTM best"][0] == f"{lstm['score_mean']:.3f} ± {lstm['score_std']:.3f}"
    assert table["RNN"][0] == f"{rnn['score_mean']:.3f} ± {rnn['score_std']:.3f}"


ANSWERS = {
    "clear winner": (
        comparison({"lstm": [0.9, 0.91], "gru": [0.7, 0.71]}, N=1000),
        "LSTM gets 90.5 % ± 0.7 of 1,000 test sequences right; GRU follows 20.0 points behind, more than the spread.",
        ["LSTM best", "GRU"],
    ),
    "tie by the seeds": (
        comparison({"lstm": [0.85, 0.75], "gru": [0.75, 0.82]}, N=100_000),
        "LSTM gets 80.00 % ± 7.07 of 100,000 test sequences right, but GRU is within the spread, and it is 2.0× "
        "faster at batch 1.",
        ["LSTM best", "GRU tie"],
    ),
    "tie by the test part": (
        comparison({"lstm": [0.92], "gru": [0.9]}, N=50),
        "LSTM gets 92.0 % of 50 test sequences right, but GRU is within the spread, and it is 2.0× faster at batch 1.",
        ["LSTM best", "GRU tie"],
    ),
    "the same gap on a large test part": (
        comparison({"lstm": [0.92], "gru": [0.9]}, N=50_000),
        "LSTM gets 92.00 % of 50,000 test sequences right; GRU follows 2.00 points behind, more than the spread.",
        ["LSTM best", "GRU"],
    ),
    "tie of all": (
        comparison({"rnn": [0.9], "lstm": [0.91], "gru": [0.92], "bilstm": [0.93]}, N=100),
        "Bidirectional LSTM gets 93.0 % of 100 test sequences right, but all 4 networks are within the spread, and "
        "RNN is 4.0× faster to train.",
        ["Bidirectional LSTM best", "GRU tie", "LSTM tie", "RNN tie"],
    ),
    "baseline wins": (
        comparison({"lstm": [0.7], "gru": [0.6]}, baselines={"neighbour": 0.9}),
        "No network: the baseline “neighbour” wins with 90.0 %; the best network, LSTM, gets 70.0 % of 200 test "
        "sequences right.",
        ["neighbour baseline", "LSTM best", "GRU"],
    ),
    "tie with a baseline": (
        comparison({"lstm": [0.7]}, baselines={"neighbour": 0.69}),
        "LSTM gets 70.0 % of 200 test sequences right, but that is a tie with the baseline “neighbour” (69.0 %).",
        ["LSTM", "neighbour baseline"],
    ),
    "one model": (
        comparison({"lstm": [0.7]}, baselines={"neighbour": 0.4}),
        "LSTM gets 70.0 % of 200 test sequences right.",
        ["LSTM", "neighbour baseline"],
    ),
    "all diverged": (
        CASES["all diverged"],
        "No network can be recommended: every one of them diverged.",
        ["mean baseline", "RNN 1 of 1 diverged", "LSTM 1 of 1 diverged"],
    ),
    "the others diverged": (
        comparison({"lstm": [NAN, 0.1], "gru": [NAN, NAN], "rnn": [1.0, 1.0]}, number=True, baselines={"mean": 3.0}),
        "RNN predicts 200 test sequences with an rmse of 1.01 ± 0.05; every other network had a run that diverged.",
        ["RNN best", "mean baseline", "LSTM 1 of 2 diverged", "GRU 2 of 2 diverged"],
    ),
}


@pytest.mark.parametrize("case", ANSWERS)
def test_the_answer_says_what_the_numbers_bear(case: str) -> None:
    results, answer, rows = ANSWERS[case]
    page = Page(render(results, None))
    assert page.answer == answer
    assert list(page.table) == rows


@pytest.mark.parametrize("case", CASES)
def test_no_network_is_tied_while_a_better_one_is_not(case: str) -> None:
    names = [name for name in Page(render(CASES[case], None)).table if not name.endswith(("baseline", "diverged"))]
    tied = [name.endswith(("best", "tie")) for name in names]
    assert tied == sorted(tied, reverse=True)


def test_the_width_of_a_tie_is_stated() -> None:
    text = Page(render(comparison({"lstm": [0.92], "gru": [0.9]}, N=50), None)).text
    share = (0.92 * 50 + 2) / (50 + 4)
    gap = 200 * math.sqrt(share * (1 - share) / 54)
    assert f"a gap of up to {gap:.1f} points may be luck (twice the standard error of the best score over 50" in text
    results = comparison({"rnn": [0.6, 0.61], "lstm": [0.85, 0.75], "gru": [0.75, 0.81]}, N=100_000)
    gap = 200 * sorted(m["score_std"] for m in results["models"])[1]
    assert (
        f"up to {gap:.2f} points may be luck (twice the standard deviation over the seeds"
        in Page(render(results, None)).text
    )


def test_the_width_of_a_tie_of_numbers_is_the_standard_error_of_the_rmse() -> None:
    results = comparison({"lstm": [0.25], "gru": [0.4]}, number=True, N=100)
    predictions = results["models"][0]["runs"][0]["predictions"]
    errors = [(p - t) ** 2 for p, t in zip(predictions, results["test_targets"], strict=True)]
    # The root's slope: d sqrt(x) = dx / (2 sqrt(x)).
    gap = 2 * statistics.stdev(errors) / math.sqrt(100) / (2 * math.sqrt(statistics.fmean(errors)))
    assert f"a gap of up to {gap:.3f} may be luck (twice the standard error" in Page(render(results, None)).text


def test_all_of_few_sequences_right_is_no_proof() -> None:
    assert "GRU tie" in Page(render(comparison({"lstm": [1.0], "gru": [0.95]}, N=20), None)).table


def test_one_test_sequence_gives_a_page_and_ties() -> None:
    page = Page(render(comparison({"lstm": [1.0], "gru": [0.0]}, N=1), None))
    assert list(page.table) == ["LSTM best", "GRU tie"]
    assert "Shaded" not in page.text


def test_a_diverged_run_is_named_and_its_curve_ends_in_a_cross() -> None:
    page = Page(render(CASES["some diverged"], None))
    assert "RNN diverged in 1 of 2 runs (seed 1 in epoch 16)" in page.text
    assert "GRU diverged in 2 of 2 runs (seed 0 in epoch 16, seed 1 in epoch 16)" in page.text
    assert page.table["GRU 2 of 2 diverged"][0] == "–"
    curve = next(text for text in page.texts["figure"] if "Training loss" in text)
    assert curve.split("scale.")[1].count("✕") == 2  # in the sentence that explains it, and at the end of GRU's
    assert "✕" not in Page(render(CASES["numbers"], None)).text
    # Classes are predicted by diverged weights too: the score is finite, the loss tells.
    assert "LSTM diverged in 1 of 2 runs (seed 0 in epoch 16)" in Page(render(CASES["diverged class"], None)).text


def test_a_diverged_run_may_be_null_or_nan() -> None:
    results = CASES["some diverged"]
    nan, null = copy.deepcopy(results), copy.deepcopy(results)
    for changed, unknown in ((nan, NAN), (null, None)):
        for model in changed["models"]:
            for entry in (model, *model["runs"], *(p for run in model["runs"] for p in run["history"])):
                for key in ("score_mean", "score_std", "score", "train_loss", "test_score"):
                    if key in entry and not math.isfinite(entry[key] or NAN):
                        entry[key] = unknown
            for run in model["runs"]:
                run["predictions"] = [unknown if p is None else p for p in run["predictions"]]
    assert json.dumps(nan).count("NaN") > 100
    assert "NaN" not in json.dumps(null)
    assert render(nan, None) == render(null, None)


def test_an_interrupted_comparison_says_what_is_missing() -> None:
    page = Page(render({**CASES["numbers"], "unfinished": ["gru", "bilstm"]}, None))
    assert "interrupted before gru, bilstm had all runs" in page.text


HARM = ["<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "' onload='alert(1)", "</svg></title><b>&amp;"]


@pytest.mark.parametrize("harm", HARM)
def test_names_from_the_data_are_only_text(harm: str) -> None:
    results = comparison({"lstm": [0.9, 0.8], "gru": [0.8, 0.8]}, classes=[harm, "b"], baselines={harm: 0.5})
    dataset = results["dataset"]
    dataset.update(name=harm, target=harm, features=[harm, harm, harm], split=harm, attribution=harm)
    results["models"][0].update(title=harm, layer=harm)
    results.update(command=harm, machine=harm)
    results["settings"][harm] = [harm]
    inside = Gates(harm, harm, harm, harm, {harm: torch.rand(4, 2)}, {}, torch.rand(4, 3))
    page = Page(render(results, inside))
    harmless = Page(render(CASES["six models"], gates()))
    assert {tag for tag, _ in page.tags} <= {tag for tag, _ in harmless.tags}
    names = {name for _, attributes in page.tags for name in attributes}
    assert names <= {name for _, attributes in harmless.tags for name in attributes}
    assert page.texts["title"][0] == f"{harm}: which recurrent network?"
    assert page.texts["pre"] == [harm]
    assert harm in page.answer
    numbers = {**comparison({"lstm": [0.9]}, number=True, N=5), "test_ids": [harm] * 5}
    assert {tag for tag, _ in Page(render(numbers, None)).tags} <= {tag for tag, _ in harmless.tags}


def test_confusion_matrix_counts_every_prediction_of_every_seed_of_the_best_model() -> None:
    results = CASES["fifty classes"]
    names = results["dataset"]["classes"]
    best = next(m for m in results["models"] if m["name"] == results["best"])
    expected = Counter(
        (names[t], names[p])
        for run in best["runs"]
        for t, p in zip(results["test_targets"], run["predictions"], strict=True)
    )
    html = render(results, None)
    cells = re.findall(r"<title>true (.+?), predicted (.+?): (\d+) of", html)
    assert {(t, p): int(n) for t, p, n in cells} == expected
    wrong = sum(n for (t, p), n in expected.items() if t != p)
    page = Page(html)
    assert f"{wrong} of 4,500 predictions are wrong, over all 3 seeds" in page.text
    (t, p), n = max(((pair, n) for pair, n in expected.items() if pair[0] != pair[1]), key=lambda item: item[1])
    assert f"{t} {p} {n} " in page.text


@pytest.mark.parametrize("N, dots", [(200, 200), (4000, 1334)])
def test_scatter_and_errors_show_the_test_sequences_of_one_seed(N: int, dots: int) -> None:
    results = comparison({"lstm": [NAN, 0.1], "gru": [0.1, 0.2]}, number=True, N=N)
    html = render(results, None)
    for name in ("mistakes", "residuals"):
        figure = re.search(rf'<figure class="card" id="{name}">.*?</figure>', html, re.S)[0]
        assert figure.count('class="s0 dot small"') == dots
    assert (f"{dots:,} of {N:,} shown" in Page(html).text) == (dots < N)


def test_errors_of_numbers_are_drawn_over_the_predictions_around_the_line_of_none() -> None:
    results = comparison({"lstm": [0.1]}, number=True, N=3)
    results["models"][0]["score_mean"] = 0.5  # written with three decimals
    results["test_targets"] = [1.0, 2.0, 3.0]
    results["models"][0]["runs"][0]["predictions"] = [1.5, 2.0, 2.0]
    figure = re.search(r'<figure class="card" id="residuals">.*?</figure>', render(results, None), re.S)[0]
    zero = float(re.search(r'class="base" d="M64 (\S+)H', figure)[1])
    dots = re.findall(r'cx="(\S+)" cy="(\S+)" r="3.5"><title>(\S+): .*?, error (\S+)</title>', figure)
    assert [(name, error) for *_, name, error in dots] == [("s0", "0.500"), ("s1", "0.000"), ("s2", "-1.000")]
    assert [round((zero - float(y)) / (zero - float(dots[0][1])), 2) for _, y, *_ in dots] == [1, 0, -2]
    assert float(dots[0][0]) < float(dots[1][0]) == float(dots[2][0])


def test_the_scores_and_largest_errors_of_numbers_are_those_of_all_seeds() -> None:
    results = comparison({"lstm": [0.1, 0.1]}, number=True, N=4)
    results["models"][0]["score_mean"] = 0.5  # written with three decimals
    results["test_targets"] = [1.0, 2.0, 3.0, 4.0]
    first, second = results["models"][0]["runs"]
    first["predictions"], second["predictions"] = [1.0, 2.0, 3.0, 7.0], [3.0, 2.0, 0.0, 5.0]
    page = Page(render(results, None))
    # Absolute errors 0 0 0 3 and 2 0 3 1; squared 9 and 14 of a total of 5; errors +3 and 2 - 3 + 1 = 0.
    assert "mean absolute error (mae) 1.125, mean error +0.375, R² -1.300" in page.text
    errors = next(text for text in page.texts["section"] if "Largest errors" in text)
    rows = " ".join(errors.split()).split("absolute error ")[1]
    assert rows.startswith("s3 4.000 6.000 5.000 to 7.000 2.000 s2 3.000 1.500 0.000 to 3.000 1.500 s0 1.000 2.000 ")


def _images(html: str) -> list[list[list[int]]]:
    """Decode the PNGs of the light theme into rows of palette indices."""
    images = []
    for text in re.findall(r'class="light"[^>]*base64,([^"]+)"', html):
        data = base64.b64decode(text)
        columns, rows = struct.unpack(">2I", data[16:24])
        start = data.index(b"IDAT")
        pixels = zlib.decompress(data[start + 4 : start + 4 + struct.unpack(">I", data[start - 4 : start])[0]])
        lines = [list(pixels[k * (columns + 1) + 1 : (k + 1) * (columns + 1)]) for k in range(rows)]
        images.append(lines)
    return images


def test_the_reach_of_gradients_is_drawn_and_said() -> None:
    results = CASES["six models"]
    names = [m["name"] for m in results["models"]]
    flows = {name: [(lag, *(0.6 ** (k * lag),) * 3) for lag in range(12)] for k, name in enumerate(names, 1)}
    html = render(results, gates(), flows)
    assert 'id="flow"' in html
    assert "steps before the last" in html
    assert "not within these steps" in html  # 0.6 ** 11 is more than a thousandth
    assert any(f": {steps}" in html for steps in (7, 5, 4))
    assert 'id="flow"' not in render(results, gates())


def test_heat_maps_show_the_gates_with_the_same_unit_in_the_same_row() -> None:
    level = torch.tensor([0.6, 0.0, 1.0, 0.2])  # of each unit, at all 5 steps
    inside = Gates(
        "GRU", "s7", "ba", "da", {"z": level.repeat(5, 1), "n": -level.repeat(5, 1)}, {"z": (0, 1), "n": (-1, 1)}
    )
    update, candidate = _images(render(CASES["six models"], inside))
    assert [len(update), len(update[0])] == [4, 5]
    heights = [row[0] for row in update]
    assert sorted(heights) == [0, 51, 152, 254]
    assert heights in ([0, 51, 152, 254], [254, 152, 51, 0]), "units are not sorted"
    assert [row[0] for row in candidate] == [round(127 - h / 2) for h in heights]
    page = Page(render(CASES["six models"], inside))
    assert "Test sequence s7 of 5 steps; true: ba, predicted: da" in page.text
    assert "update gate z 0 1" in page.text
    assert "candidate n -1 1" in page.text


def test_heat_map_without_a_range_is_symmetric_and_leaves_nan_blank() -> None:
    values = torch.tensor([[-2.0, 4.0, NAN], [0.0, 4.0, 1.0]])
    image = _images(render(CASES["six models"], Gates("GRU", "s", "a", "b", {"mine": values})))[0]
    assert sorted(map(tuple, image)) == [(64, 127), (254, 254), (255, 159)]
    constant = _images(render(CASES["six models"], Gates("GRU", "s", "a", "b", {"mine": torch.zeros(2, 3)})))[0]
    assert constant == [[127, 127]] * 3


def test_long_sequences_and_wide_layers_are_averaged_not_drawn_cell_by_cell() -> None:
    html = render(CASES["six models"], gates(T=5000, H=600))
    assert {(len(image), len(image[0])) for image in _images(html)} == {(160, 400), (3, 400)}
    assert len(html.encode()) < 1_500_000


def test_names_at_the_ends_of_curves_do_not_overlap() -> None:
    for figure in re.findall(
        r'<figure class="card" id="(?:loss|progress)">.*?</figure>', render(CASES["twelve models"], None), re.S
    ):
        heights = [float(y) for y in re.findall(r'<text class="t name" x="\S+" y="(\S+)"', figure)]
        assert len(heights) == 12
        assert all(b - a >= 14.9 for a, b in pairwise(heights))
        assert 0 < heights[0] < heights[-1] < 300


def with_curve(results: dict[str, Any], scores: list[float | None]) -> dict[str, Any]:
    """The same results, where the best network had these test scores on its way."""
    changed = copy.deepcopy(results)
    for run in next(m for m in changed["models"] if m["name"] == changed["best"])["runs"]:
        for point, score in zip(run["history"], scores, strict=True):
            point["test_score"] = score if point["epoch"] < len(scores) else run["score"]
    return changed


@pytest.mark.parametrize("number", [False, True])
@pytest.mark.parametrize("peak", [1, 2, 6, 30])
def test_the_curve_of_the_test_part_is_not_cut_where_it_is_best(number: bool, peak: int) -> None:
    results = comparison({"lstm": [0.3 if number else 0.7]}, number=number)
    best, worst = (0.05, 9.0) if number else (0.9, 0.1)
    last = results["models"][0]["score_mean"]
    scores = [best if e == peak else worst if e == peak - 1 else last for e in range(1, 31)]
    html = render(with_curve(results, scores), None)
    figure = next(f for f in re.findall(r'<figure class="card" id="progress">.*?</figure>', html, re.S))
    ((x, y, said),) = re.findall(r'<circle class="s0 ring" cx="(\S+)" cy="(\S+)" r="4"><title>(.*?)</title>', figure)
    frame = re.search(r'<rect x="(\d+)" y="(\d+)" width="(\d+)" height="(\d+)"/></clipPath>', figure)
    left, top, width, height = map(int, frame.groups())
    assert left <= float(x) <= left + width
    assert top <= float(y) <= top + height
    if peak < 30:
        assert said == f"LSTM: best after epoch {peak}"
        assert re.search(
            rf"LSTM was \S+( points)? better after epoch {peak} than at the end, which points to overf", html
        )
    else:
        assert "overfitting" not in html


def test_epochs_that_were_not_scored_leave_the_curve_whole() -> None:
    scores = [0.5 + e / 100 if e in (1, 11, 21, 30) else None for e in range(1, 31)]
    html = render(with_curve(comparison({"lstm": [0.8, 0.81]}), scores), None)
    assert "Scored after 4 of the 30 epochs" in html
    assert "✕" not in html
    assert "Scored after" not in render(CASES["six models"], None)


@pytest.mark.parametrize(
    ("shortest", "longest", "text"),
    [(7, 29, "of 7 to 29 steps."), (100, 100, "of 100 steps."), (1, 1, "of 1 step.")],
)
def test_lengths_that_are_all_the_same_are_said_once(shortest: int, longest: int, text: str) -> None:
    results = copy.deepcopy(CASES["six models"])
    results["dataset"].update(shortest=shortest, longest=longest)
    assert f"to test on, {text}" in Page(render(results, None)).text


def test_classes_that_are_never_recognised_come_first_and_are_named() -> None:
    results = comparison({"lstm": [0.9, 0.92]}, classes=["common", "rare", "rarer", "absent"], N=60)
    targets = [0] * 40 + [1] * 12 + [2] * 8
    for run in results["models"][0]["runs"]:
        run["predictions"] = [0] * 45 + [1] * 7 + [0] * 8
    results["test_targets"] = targets
    html = render(results, None)
    page = Page(html)
    assert "Never recognised in any of the 2 runs: rarer (1 of 3 classes)." in page.text
    assert "Not in the test part, so nothing is known of how it does on: absent." in page.text
    section = next(text for text in page.texts["section"] if "Which classes LSTM" in text)
    rows = section.replace("\N{NO-BREAK SPACE}", " ").split("recall \n")[1].split()
    assert " ".join(rows) == "rarer never recognised 8 0.0 % rare 12 58.3 % common 40 100.0 %"
    assert "ever recognised" not in render(comparison({"lstm": [0.9]}, N=60), None)


def test_more_than_fifty_classes_have_the_worst_confusions_in_place_of_a_matrix() -> None:
    names = [f"word {k}" for k in range(60)]
    results = comparison({"lstm": [0.5]}, classes=names, N=600)
    pairs = zip(results["test_targets"], results["models"][0]["runs"][0]["predictions"], strict=True)
    wrong = Counter(f"{names[t]} {names[p]}" for t, p in pairs if t != p)
    html = render(results, None)
    page = Page(html)
    assert 'id="mistakes"' not in html
    assert "Confusion matrix" not in html
    assert f"here are the 50 most frequent of {len(wrong)} pairs of classes that are confused." in page.text
    section = next(text for text in page.texts["section"] if "Most frequent mistakes" in text)
    listed = re.findall(r"(word \d+ +word \d+) +(\d+)", " ".join(section.split()))
    assert [n for _, n in wrong.most_common(50)] == [int(n) for _, n in listed]
    assert all(wrong[pair] == int(n) for pair, n in listed)


def learned(tmp_path: Path, rows: str, **columns: Any) -> dict[str, Any]:
    """What is kept of a tiny comparison on a table, whose data the report describes."""
    (tmp_path / "steps.csv").write_text(rows)
    data = load(str(tmp_path / "steps.csv"), **columns)
    return compare(data, ["rnn"], seeds=1, settings=Settings(hidden_size=2, epochs=1)).to_dict()


def test_the_data_are_described_by_part_class_length_and_what_is_missing(tmp_path: Path) -> None:
    lines = [
        f"s{k},{'rare' if k % 10 == 0 else 'usual'},{'' if k == 3 and t else k % 7 + t},{k}"
        for k in range(40)
        for t in range(2 + k % 4)
    ]
    rows = "\n".join(["name,kind,a,b", *lines])
    results = learned(tmp_path, rows, id_column="name", target_column="kind", missing=("NA",))
    found = results["dataset"]["overview"]
    assert [sum(counts) for counts in found["classes"]] == [4, 36]
    assert [sum(counts) for counts in zip(*found["classes"], strict=True)] == found["sequences"]
    assert sum(found["steps"]) == len(lines)
    assert found["missing"] == [4, 0]
    text = Page(render(json.loads(json.dumps(results)), None)).text
    usual, rare = (found["classes"][results["dataset"]["classes"].index(name)] for name in ("usual", "rare"))
    share = 100 * usual[0] / (usual[0] + rare[0])
    said = (" ".join(map(str, counts)) for counts in (usual, rare))
    assert f"usual {next(said)} {share:.1f} % rare {next(said)} " in text
    assert f"training {results['dataset']['train']} 2 " in text
    assert f"a 4 {400 / len(lines):.1f} %" in text
    assert "4 of 280 cells are missing ('a' 4)" in text


def test_an_older_run_has_no_description_of_its_data_and_many_classes_are_folded() -> None:
    results = copy.deepcopy(CASES["fifty classes"])
    assert 'id="data"' not in render(results, None)
    harm = "<script>alert(1)</script>"
    results["dataset"]["notes"] = [harm]
    counts = [[k, 2] for k in range(50)]
    results["dataset"]["overview"] = {
        "parts": ["training", "test"],
        "sequences": [1225, 100],
        "steps": [1225, 100],
        "lengths": [[1.0, 1.0, 1.0, 1.0, 1.0], [1.0, 1.0, 1.5, 2.0, 12345.0]],
        "classes": counts,
        "targets": None,
        "missing": None,
    }
    page = Page(render(results, None))
    assert "script" not in {tag for tag, _ in page.tags}
    assert any(text.strip() == harm for text in page.texts["li"])
    assert "All 50 classes" in page.text
    assert "test 100 1 1 1.5 2 12,345" in page.text
    assert "Not in the training part, so no network can know it: word 0." in page.text
    assert page.text.index("word 49 49 2 4.0 %") < page.text.index("word 48 48 2 3.9 %")


def steps(results: dict[str, Any], **changes: Any) -> list[tuple[str, str]]:
    """What next, as the page has it: sentences and commands."""
    page = Page(render({**results, **changes}, None))
    section = next((text for text in page.texts["section"] if "What next" in text), "")
    items = [" ".join(text.split()) for text in page.texts.get("li", []) if text in section]
    codes = [code.strip() for code in page.texts.get("code", [])]
    own = [next((code for code in codes if item.endswith(code)), "") for item in items]
    return [(item.removesuffix(code), code) for item, code in zip(items, own, strict=True)]


def overfitted(results: dict[str, Any]) -> dict[str, Any]:
    """The same results, with a validation part whose score fell after epoch 5."""
    fallen = copy.deepcopy(results)
    fallen["dataset"]["validation"] = 50
    fallen["settings"].update(dropout=0.0, patience=None, pool="last")
    for model in fallen["models"]:
        for run in model["runs"]:
            run.update(epoch=5, decline=0.2, decline_luck=0.05)
            for point in run["history"]:
                point.update(validation_loss=1.0, validation_score=0.5)
    return fallen


PREDICT_IT = ("To use LSTM on new data; RUN is the folder of this report: ", "anyrnn predict RUN NEW_DATA")
WINNER = comparison({"lstm": [0.9, 0.91], "gru": [0.7, 0.71]}, N=1000)
NEXT = {
    "clear winner": (
        WINNER,
        [("the one to go on with: another size", "anyrnn compare data.csv --seeds 3 --cells lstm --hidden 200")],
    ),
    "tie": (
        comparison({"lstm": [0.9, 0.92], "gru": [0.9, 0.91], "rnn": [0.2, 0.2]}, N=1000),
        [
            (
                "LSTM and GRU are tied: more seeds show how much of that is luck of the weights.",
                "anyrnn compare data.csv --cells lstm,gru --seeds 5",
            )
        ],
    ),
    "tie after enough seeds": (
        comparison({"lstm": [0.9, 0.92, 0.92, 0.91, 0.9], "gru": [0.9] * 5}, N=1000),
        [("LSTM and GRU are tied after 5 seeds: take the one that costs least.", "")],
    ),
    "tie with a baseline": (
        comparison({"lstm": [0.9]}, baselines={"neighbour": 0.9}),
        [("LSTM is tied with “neighbour”: more seeds", "anyrnn compare data.csv --cells lstm --seeds 5")],
    ),
    "once each": (
        comparison({"lstm": [0.9], "gru": [0.3]}),
        [("trained once: more seeds show how far to trust a score.", "anyrnn compare data.csv --seeds 5")],
    ),
    "overfitting": (
        overfitted(WINNER),
        [("LSTM and GRU overfit: dropout is", "anyrnn compare data.csv --seeds 3 --dropout 0.3 --patience 10")],
    ),
    "baseline": (
        overfitted(comparison({"lstm": [0.5, 0.51]}, N=1000, baselines={"neighbour": 0.9})),
        [
            ("The baseline “neighbour” beats every network: use it,", "anyrnn compare data.csv --seeds 3 --pool mean"),
            ("LSTM overfits: dropout is", "anyrnn compare data.csv --seeds 3 --dropout 0.3 --patience 10"),
        ],
    ),
    "some diverged": (
        comparison({"lstm": [0.1, 0.1], "gru": [NAN, 0.1]}, number=True),
        [
            (
                "GRU diverged: smaller steps, a fifth of these,",
                "anyrnn compare data.csv --seeds 3 --learning-rate 0.0002",
            )
        ],
    ),
    "interrupted": (
        {**WINNER, "unfinished": ["rnn"]},
        [("rnn had not all runs when the comparison was", "anyrnn compare data.csv --seeds 3 --resume")],
    ),
}


@pytest.mark.parametrize("case", NEXT)
def test_what_next_follows_from_what_happened(case: str) -> None:
    results, expected = NEXT[case]
    found = steps(results)
    assert [command for _, command in found] == [*(command for _, command in expected), PREDICT_IT[1]]
    assert all(start in text for (start, _), (text, _) in zip(expected, found, strict=False))
    assert found[-1] == PREDICT_IT
    known = {option.flag for option in (*COMPARE, *PREDICT)}
    assert {word for _, command in found for word in command.split() if word.startswith("--")} <= known


def test_networks_that_all_diverged_are_not_to_be_used() -> None:
    results = {**CASES["all diverged"], "settings": {"learning_rate": 0.005, "clip_gradient": None}}
    assert [command for _, command in steps(results)] == [
        "anyrnn compare data.csv --seeds 3 --learning-rate 0.001",
        "anyrnn compare data.csv --seeds 3 --clip-gradient 1.0",
    ]


def test_a_network_that_was_still_learning_gets_more_epochs_and_dropout_has_an_end() -> None:
    results = overfitted(comparison({"lstm": [0.5, 0.51]}, N=1000, baselines={"neighbour": 0.9}))
    for run in results["models"][0]["runs"]:
        run.update(epoch=29, decline=0.0)
    assert steps(results)[0][1] == "anyrnn compare data.csv --seeds 3 --epochs 60"
    results = overfitted(WINNER)
    results["settings"].update(dropout=0.5)
    assert "--hidden 50" in steps(results)[0][1]
    results["settings"].update(dropout=0.3, patience=7)
    assert steps(results)[0][1] == "anyrnn compare data.csv --seeds 3 --dropout 0.5"


@pytest.mark.parametrize(
    ("command", "changes", "expected"),
    [
        ("anyrnn compare 'my data.csv' --seeds=3", {"seeds": 5}, "anyrnn compare 'my data.csv' --seeds 5"),
        ("anyrnn compare a --out runs/a/ --overwrite", {"epochs": 9}, "anyrnn compare a --out runs/a-next --epochs 9"),
        ("anyrnn compare a --resume", {"hidden_size": 9}, "anyrnn compare a --hidden 9"),
        ("anyrnn fit a --cell gru --seed 3", {"dropout": 0.3}, "anyrnn fit a --cell gru --seed 3 --dropout 0.3"),
        ("anyrnn fit a --cell gru --seed 3", {"seeds": 5}, "anyrnn compare a --cells gru --seeds 5"),
        ("anyrnn fit a", {"cells": "lstm", "seeds": 5}, "anyrnn compare a --cells lstm --seeds 5"),
        ("my own script", {"seeds": 5}, ""),
        ("anyrnn compare 'half a quote", {"seeds": 5}, ""),
    ],
)
def test_the_next_command_is_the_last_one_with_other_options(
    command: str, changes: dict[str, Any], expected: str
) -> None:
    assert command_with(command, **changes) == expected


def test_what_next_of_a_comparison_in_python_is_a_call() -> None:
    results = {**comparison({"lstm": [0.9], "gru": [0.3]}), "command": "anyrnn.workbench.compare"}
    assert steps(results)[0][1] == "anyrnn.workbench.compare(data, ['lstm', 'gru'], seeds=5)"
    alone = {**comparison({"lstm": [0.9]}), "command": "anyrnn.workbench.fit"}
    assert steps(alone)[0][1] == "anyrnn.workbench.compare(data, ['lstm'], seeds=5)"
    results = {**overfitted(WINNER), "command": "anyrnn.workbench.compare"}
    assert steps(results)[0][1] == (
        "anyrnn.workbench.compare(data, ['lstm', 'gru'], seeds=2, "
        "settings=dataclasses.replace(settings, dropout=0.3, patience=10))"
    )


def test_numbers_scored_in_percent_are_still_written_as_numbers() -> None:
    results = comparison({"lstm": [0.1]}, number=True, N=5)
    results["metric"] = {"name": "mape", "higher_is_better": False, "percent": True}
    section = next(text for text in Page(render(results, None)).texts["section"] if "Largest errors" in text)
    assert "%" not in section


def files(html: str) -> dict[str, str]:
    """What the links of the page save, by the name of the file."""
    found = re.findall(r'<a download="([^"]+)" href="data:([\w/+;=-]+?);base64,([^"]+)">(SVG|CSV)</a>', html)
    assert all(kind.startswith("image/svg+xml" if end == "SVG" else "text/csv") for _, kind, _, end in found)
    return {name: base64.b64decode(text).decode() for name, _, text, _ in found}


@pytest.mark.parametrize("case", ["six models", "numbers", "long names", "twelve models"])
def test_every_figure_can_be_saved_as_a_picture_that_stands_alone(case: str) -> None:
    saved = files(render(CASES[case], gates()))
    pictures = {name: text for name, text in saved.items() if name.endswith(".svg")}
    about = {"predicted.svg", "errors.svg"} if case == "numbers" else {"confusion.svg"}
    assert set(pictures) >= {"train-loss.svg", "test-score.svg", "input-gate-i.svg", "the-sequence.svg"} | about
    for text in pictures.values():
        root = ElementTree.fromstring(text)  # well-formed
        assert root.tag == "{http://www.w3.org/2000/svg}svg"
        assert float(root.get("width", "0")) > 100
        assert "var(" not in text  # not every program that draws knows them
        assert "url(http" not in text
        used = {name for element in root.iter() for name in element.get("class", "").split()}
        style = text.split("</style>")[0]
        plain = {"light", "right", "wrong"} & used | {name for name in used if re.fullmatch(r"s\d|again", name)}
        assert all(f".{name} " in style for name in used - plain)
        assert all(f".{name}." in style for name in used if re.fullmatch(r"s\d", name))


def test_the_numbers_of_figures_are_saved_as_they_are() -> None:
    results = comparison({"lstm": [0.9, 0.8], "gru": [0.8, 0.8]}, classes=["a, b", '"c"'], N=50)
    saved = files(render(results, None))
    rows = list(csv.reader(saved["train-loss.csv"].splitlines()))
    assert rows[0] == ["network", "part", "epoch", "mean", "lowest", "highest"]
    assert len(rows) == 1 + 2 * 30
    first = [run["history"][0]["train_loss"] for run in results["models"][0]["runs"]]
    own = next(row for row in rows if row[:3] == ["LSTM", "training", "1"])
    assert [float(v) for v in own[3:]] == [statistics.fmean(first), min(first), max(first)]
    matrix = list(csv.reader(saved["confusion.csv"].splitlines()))
    assert matrix[0][1:] == ["a, b", '"c"'] == [row[0] for row in matrix[1:]]
    assert sum(int(n) for row in matrix[1:] for n in row[1:]) == 2 * 50
    numbers = comparison({"lstm": [0.1]}, number=True, N=5)
    rows = list(csv.reader(files(render(numbers, None))["errors.csv"].splitlines()))[1:]
    predictions = numbers["models"][0]["runs"][0]["predictions"]
    wanted = [(p, p - t) for p, t in zip(predictions, numbers["test_targets"], strict=True)]
    assert [(float(p), float(e)) for _, p, e in rows] == wanted


def test_a_name_that_xml_does_not_take_still_gives_a_picture() -> None:
    results = comparison({"lstm": [0.9]}, classes=["a\x00b\ud800", "</svg><script>"], N=20)
    ElementTree.fromstring(files(render(results, None))["confusion.svg"])
