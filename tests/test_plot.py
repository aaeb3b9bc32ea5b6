"""Figures show what they are given: the numbers of their artists, their labels, ticks and units."""

import json
import math
import subprocess
import sys

import matplotlib as mpl
import numpy as np
import pytest
import torch
from matplotlib import pyplot as plt
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

import anyrnn
from anyrnn import AnyRNNError, plot
from workbench.made_results import CASES  # results without training

mpl.use("agg")


@pytest.fixture(autouse=True)
def _leaves_nothing_behind():
    """No figure is pyplot's, and the settings are as they were."""
    before = dict(mpl.rcParams)
    with anyrnn.engine("reference"):  # nothing has to be compiled
        yield
    assert not plt.get_fignums()
    assert {k: v for k, v in mpl.rcParams.items() if v != before[k]} == {}


def images(figure):
    return [axes.images[0] for axes in figure.axes if axes.images]


def titles(figure):
    return [axes.get_title("left") for axes in figure.axes if axes.images]


def texts_of(axes):
    return {text.get_text(): text for text in axes.texts}


# ---- The style


def test_the_style_is_one_that_matplotlib_takes_and_its_colours_are_seen_on_white():
    with mpl.rc_context():
        plt.style.use(plot.STYLE)
        assert mpl.rcParams["axes.prop_cycle"].by_key()["color"][:5] == list(plot.COLOURS)
        assert len(mpl.rcParams["axes.prop_cycle"]) == 15
    for colour in plot.COLOURS:
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(colour)]
        assert 1.05 / (np.dot(linear, [0.2126, 0.7152, 0.0722]) + 0.05) >= 3  # WCAG's contrast for graphics


def test_a_telephone_shows_the_text_in_ten_pixels():
    width, _ = plot.STYLE["figure.figsize"]
    smallest = min(plot.STYLE["xtick.labelsize"], plot.STYLE["font.size"])
    assert smallest / 72 * 390 / width >= 9.9


# ---- Labels on lines


def lines_of(*ys, **labels):
    axes = Figure().add_subplot()
    for k, y in enumerate(ys):
        axes.plot(y, label=f"line {k}")
    return axes


def test_a_label_is_at_the_end_of_its_line_in_its_colour():
    axes = lines_of([0, 1, 2], [3, 3, math.nan])
    plot.label_lines(axes)
    texts = texts_of(axes)
    assert texts["line 0"].xy == (2, 2)
    assert texts["line 1"].xy == (1, 3)  # its last number
    for k, line in enumerate(axes.lines):
        assert texts[f"line {k}"].get_color() == line.get_color()


def heights(axes):
    """Where the labels are on the page, in points."""
    figure = axes.figure
    return {
        name: axes.transData.transform(text.xy)[1] * 72 / figure.dpi + text.xyann[1]
        for name, text in texts_of(axes).items()
    }


def test_labels_that_would_overlap_are_moved_apart_and_keep_their_order():
    axes = lines_of([0, 1.00], [0, 1.01], [0, 1.02], [0, 0])
    size = axes.xaxis.label.get_fontsize()
    plot.label_lines(axes)
    found = heights(axes)
    low, middle, high = (found[f"line {k}"] for k in range(3))
    assert middle - low >= 1.2 * size
    assert high - middle >= 1.2 * size
    assert texts_of(axes)["line 3"].xyann == (6, 0), "what is alone is not moved"
    wanted = axes.transData.transform((1, 1.01))[1] * 72 / axes.figure.dpi
    assert abs(middle - wanted) < 1, "together they stay where they belong"


def test_a_second_call_replaces_the_labels_and_lines_without_a_label_get_none():
    axes = Figure().add_subplot()
    axes.plot([1, 2])
    axes.plot([2, 1], label="falls")
    plot.label_lines(axes)
    plot.label_lines(axes)
    assert [text.get_text() for text in axes.texts] == ["falls"]


# ---- Gates


@pytest.fixture(scope="module")
def both():
    """A stack of two layers in two directions, and a call of it."""
    torch.manual_seed(0)
    layer = anyrnn.LSTM(3, 4, num_layers=2, bidirectional=True)
    with torch.no_grad(), anyrnn.engine("reference"):
        return layer, layer(torch.randn(6, 2, 3), record=("f", "c"), lengths=[6, 4])[2]


def test_a_heat_map_holds_the_numbers_of_one_sequence_by_unit_and_step():
    record = {"f": torch.rand(7, 3, 5), "c": 3 * torch.randn(7, 3, 5)}
    figure = plot.gates(record, row=1)
    for image, name in zip(images(figure), record, strict=True):
        np.testing.assert_allclose(image.get_array(), record[name][:, 1].T.double())
    assert titles(figure) == ["f", "c"]
    assert [axes.get_xlabel() for axes in figure.axes[:2]] == ["", "step"]
    assert {axes.get_ylabel() for axes in figure.axes[:2]} == {"unit"}


def test_gates_are_drawn_from_0_to_1_and_states_about_0():
    figure = plot.gates({"f": 0.3 + 0.2 * torch.rand(7, 1, 5), "c": torch.tensor([[[-4.0, 1.0]]])})
    gate, state = images(figure)
    assert gate.get_clim() == (0, 1)
    assert state.get_clim() == (-4, 4)
    assert (gate.get_cmap().name, state.get_cmap().name) == ("Blues", "RdBu_r")
    assert [axes.get_ylabel() for axes in figure.axes[2:]] == ["gate", "value"], "of the colour bars"


def test_layers_and_directions_have_a_panel_each_on_one_scale(both):
    layer, record = both
    figure = plot.gates(record, layer=layer, row=1)
    places = ["layer 0 forward", "layer 0 backward", "layer 1 forward", "layer 1 backward"]
    assert titles(figure) == [f"{name}, {place}" for name in "fc" for place in places]
    for image, values in zip(images(figure), [*record["f"], *record["c"]], strict=True):
        np.testing.assert_allclose(image.get_array(), values[:, 1].T.double())
    assert len({image.get_clim() for image in images(figure)[4:]}) == 1
    assert len(figure.axes) == 8 + 2, "a colour bar for each name"
    assert [*titles(plot.gates(record, "f"))] == ["f, cell 0", "f, cell 1", "f, cell 2", "f, cell 3"]


def test_layers_of_other_sizes_come_as_a_tuple_with_gaps():
    layer = anyrnn.Recurrent([anyrnn.GRUCell(3, 4), anyrnn.RNNCell(4, 2)])
    record = layer(torch.randn(5, 2, 3), record=("z", "h"))[2]
    figure = plot.gates(record, layer=layer)
    assert titles(figure) == ["z", "h, layer 0", "h, layer 1"]
    assert [image.get_array().shape for image in images(figure)] == [(4, 5), (4, 5), (2, 5)]


def test_padded_steps_are_hatched():
    figure = plot.gates({"f": torch.rand(9, 2, 3)}, row=1, lengths=[9, 6])
    (patch,) = figure.axes[0].patches
    assert patch.get_hatch()
    assert (patch.get_x(), patch.get_width()) == (5.5, 3)
    assert not plot.gates({"f": torch.rand(9, 2, 3)}, row=0, lengths=[9, 6]).axes[0].patches


def test_what_padding_holds_does_not_set_the_scale():
    value = torch.zeros(4, 1, 2)
    value[0], value[3] = -2, 100
    assert images(plot.gates({"c": value}, lengths=[3]))[0].get_clim() == (-2, 2)


def test_chosen_units_keep_their_numbers():
    record = {"f": torch.rand(9, 2, 40)}
    figure = plot.gates(record, units=[0, 7, 39])
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["0", "7", "39"]
    np.testing.assert_allclose(images(figure)[0].get_array(), record["f"][:, 0, [0, 7, 39]].T.double())
    figure = plot.gates(record, units=slice(20, 40))
    figure.draw_without_rendering()
    shown = {label.get_text() for label in figure.axes[0].get_yticklabels()} - {""}
    assert shown <= {str(k) for k in range(20, 40)}
    assert len(shown) >= 2


@pytest.mark.parametrize(("T", "H"), [(1, 1), (1, 8), (30, 1), (2000, 3), (40, 512)])
def test_ticks_are_whole_numbers_whatever_the_size(T, H):
    figure = plot.gates({"f": torch.rand(T, 1, H)})
    figure.draw_without_rendering()
    axes = figure.axes[0]
    for ticks, count in ((axes.get_xticks(), T), (axes.get_yticks(), H)):
        inside = [tick for tick in ticks if 0 <= tick < count]
        assert inside
        assert all(tick == int(tick) for tick in inside)


def test_batch_first_and_wide_variables_are_read_with_the_layer():
    layer = anyrnn.GRU(3, 4, batch_first=True)
    record = layer(torch.randn(2, 7, 3), record="z")[2]
    image = images(plot.gates(record, layer=layer, row=1))[0]
    np.testing.assert_allclose(image.get_array(), record["z"][1].T.detach().double())
    wide = {"m": torch.rand(7, 2, 3, 4)}
    assert images(plot.gates(wide, layer=anyrnn.GRU(3, 4)))[0].get_array().shape == (12, 7)


def test_one_sequence_without_a_batch_and_other_types_of_numbers():
    for value in (torch.rand(5, 3), torch.rand(5, 3).bfloat16(), torch.rand(5, 3) > 0.5, torch.rand(5, 3).double()):
        image = images(plot.gates({"f": value.requires_grad_() if value.dtype == torch.float32 else value}))[0]
        np.testing.assert_allclose(image.get_array(), value.detach().double().T)


def test_what_is_no_number_is_left_out():
    value = torch.rand(4, 1, 2)
    value[1, 0, 0], value[2, 0, 1] = math.nan, math.inf
    image = images(plot.gates({"f": value}))[0]
    assert image.get_array().mask.sum() == 2
    assert image.get_clim() == (0, 1)


def test_long_names_are_broken_into_lines():
    name = "probability_that_the_unit_lets_its_old_state_through_to_the_next_step"
    title = titles(plot.gates({name: torch.rand(4, 1, 2)}))[0]
    assert title.replace("\n", "") == name
    assert max(map(len, title.split("\n"))) <= 50


WRONG = {
    "no mapping": (lambda: plot.gates(torch.rand(3, 2)), "got a Tensor, expected records by name"),
    "no records": (lambda: plot.gates({}), "got no records, expected one or more"),
    "an unknown name": (lambda: plot.gates({"f": torch.rand(3, 2)}, "c"), "got names='c', expected one of f"),
    "one dimension": (lambda: plot.gates({"f": torch.rand(3)}), r"got 'f', a tensor \(3,\), expected .* \(T, B, H\)"),
    "five dimensions": (lambda: plot.gates({"f": torch.rand(1, 2, 3, 4, 5)}), "pass layer="),
    "no steps": (lambda: plot.gates({"f": torch.rand(0, 2, 3)}), "none of them empty"),
    "no tensor": (lambda: plot.gates({"f": "f"}), "got 'f', a str"),
    "another layer": (
        lambda: plot.gates({"f": torch.rand(2, 3, 4, 5)}, layer=anyrnn.LSTM(3, 5, num_layers=3)),
        "got 'f' of 2 layers and directions, expected the layer's 3",
    ),
    "a row too many": (lambda: plot.gates({"f": torch.rand(3, 2, 4)}, row=2), "which has 2 rows, expected .* 0 to 1"),
    "a row of one": (lambda: plot.gates({"f": torch.rand(3, 2)}, row=1), "expected row=0"),
    "no units": (lambda: plot.gates({"f": torch.rand(3, 2)}, units=[]), "expected one or more from 0 to 1"),
    "a unit too many": (lambda: plot.gates({"f": torch.rand(3, 2)}, units=[2]), r"got units=\[2\] of 'f'"),
    "lengths too long": (lambda: plot.gates({"f": torch.rand(3, 1, 2)}, lengths=[4]), "expected one from 0 to 3"),
    "no flow": (lambda: plot.gradient_flow({}), "got nothing to draw"),
    "no gradients": (lambda: plot.gradient_flow(3.0), "got a float, expected what anyrnn.gradient_flow returns"),
    "three dimensions": (lambda: plot.gradient_flow(torch.rand(1, 2, 3)), r"got a tensor \(1, 2, 3\)"),
    "labels too few": (lambda: plot.gradient_flow(torch.rand(2, 9), labels=["a"]), "got 1 labels, expected 2"),
    "no results": (lambda: plot.compare({}), "got a dict, expected results of networks"),
    "no results at all": (lambda: plot.compare(3), "got a int, expected results of networks"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_cannot_be_drawn_is_said(name):
    call, message = WRONG[name]
    with pytest.raises(AnyRNNError, match=message):
        call()


# ---- Gradient flow


def test_a_line_for_each_network_variable_layer_and_direction(both):
    layer, _ = both
    x = torch.randn(6, 2, 3)
    flow = anyrnn.gradient_flow(layer, x)
    figure = plot.gradient_flow(flow, layer=layer)
    axes = figure.axes[0]
    places = ["layer 0 forward", "layer 0 backward", "layer 1 forward", "layer 1 backward"]
    assert [line.get_label() for line in axes.lines] == [f"state {k}, {place}" for k in range(2) for place in places]
    for line, values in zip(axes.lines, [*flow[0], *flow[1]], strict=True):
        there = values > 0
        np.testing.assert_allclose(line.get_ydata()[there], values.double()[there])
    assert axes.get_yscale() == "log"
    assert axes.get_xlabel() == "steps before the end"
    assert "|dL/dh|" in axes.get_ylabel()
    assert set(texts_of(axes)) == {line.get_label() for line in axes.lines}


def test_networks_are_compared_by_name_and_labels_may_be_given():
    flows = {"RNN": torch.rand(1, 9), "LSTM": (torch.rand(1, 9), torch.rand(1, 9))}
    assert [line.get_label() for line in plot.gradient_flow(flows).axes[0].lines] == [
        "RNN", "LSTM, state 0", "LSTM, state 1",
    ]  # fmt: skip
    figure = plot.gradient_flow(flows, labels=["simple", "h", "c"])
    assert [line.get_label() for line in figure.axes[0].lines] == ["simple", "h", "c"]


def test_a_gradient_of_zero_is_a_gap():
    line = plot.gradient_flow(torch.tensor([1.0, 0.5, 0.0, 0.0])).axes[0].lines[0]
    assert np.isnan(line.get_ydata()).tolist() == [False, False, True, True]


def test_it_draws_where_it_is_told():
    axes = Figure().add_subplot()
    assert plot.gradient_flow(torch.rand(9), axes=axes) is axes.figure
    assert len(axes.lines) == 1
    whole = Figure(layout="constrained")
    left, _ = whole.subfigures(1, 2)
    assert plot.gates({"f": torch.rand(4, 1, 2)}, figure=left) is whole
    assert titles(left) == ["f"]


# ---- Comparisons


def test_a_comparison_shows_every_seed_the_means_the_baselines_and_the_curves():
    results = CASES["six models"]
    figure = plot.compare(results)
    scores, curves = figure.axes
    models = sorted(results["models"], key=lambda model: -model["score_mean"])
    names = [label.get_text() for label in scores.get_yticklabels()]
    assert [name.replace("\n", " ") for name in names[: len(models)]] == [model["title"] for model in models]
    dots = [line for line in scores.lines if line.get_marker() == "o"]
    means = [line for line in scores.lines if line.get_marker() == "|"]
    for row, (model, seeds, mean) in enumerate(zip(models, dots, means, strict=True)):
        np.testing.assert_allclose(seeds.get_xdata(), [100 * run["score"] for run in model["runs"]])
        assert set(seeds.get_ydata()) == {row}
        np.testing.assert_allclose(mean.get_xdata(), [100 * model["score_mean"]])
    assert scores.get_xlabel() == curves.get_ylabel() == "test accuracy (%)"
    assert curves.get_xlabel() == "epoch"
    assert [line.get_label().replace("\n", " ") for line in curves.lines] == [model["title"] for model in models]


def test_a_baseline_far_off_is_said_and_leaves_the_networks_their_room():
    results = json.loads(json.dumps(CASES["six models"]))
    best = max(model["score_mean"] for model in results["models"])
    results["baselines"] = [{"name": "near", "score": best}, {"name": "far", "score": -50.0}]
    scores = plot.compare(results).axes[0]
    assert scores.get_xlim()[0] > -100
    assert any("-5000" in text for text in texts_of(scores))
    lines = [line for line in scores.lines if line.get_linestyle() == "--"]
    assert [line.get_xdata()[0] for line in lines] == pytest.approx([100 * best])


@pytest.mark.parametrize("name", CASES)
def test_every_kind_of_results_is_drawn(name):
    figure = plot.compare(CASES[name])
    figure.draw_without_rendering()
    label = "test accuracy (%)" if CASES[name]["metric"]["name"] == "accuracy" else "test rmse"
    assert figure.axes[0].get_xlabel() == label


# ---- Without matplotlib, and in a notebook


def test_without_matplotlib_the_cure_is_said_and_all_else_works():
    code = (
        "import sys; sys.modules['matplotlib'] = None; import anyrnn; print(anyrnn.LSTM(2, 3))\n"
        "try: anyrnn.plot\n"
        "except anyrnn.AnyRNNError as error: print(error)\n"
        "try: anyrnn.plt\n"
        "except AttributeError as error: print(error)\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout == (
        "LSTM(2, 3)\n"
        "anyrnn.plot: matplotlib is not installed, expected matplotlib: pip install 'anyrnn[plot]'\n"
        "module 'anyrnn' has no attribute 'plt'\n"
    )


def test_a_figure_is_a_picture_for_a_notebook_by_itself():
    figure = plot.gradient_flow(torch.rand(9))
    assert isinstance(figure, Figure)
    assert figure._repr_png_().startswith(b"\x89PNG")
