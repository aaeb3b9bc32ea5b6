"""What a notebook shows: values as HTML that is well-formed, escaped and without scripts; progress that stays small."""

import sys
from html.parser import HTMLParser
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import anyrnn
from anyrnn import markup, workbench
from anyrnn.workbench import progress as progress_module
from anyrnn.workbench.lesson import Epoch
from anyrnn.workbench.models import NETWORKS
from anyrnn.workbench.progress import Progress, notebook_display

QUICK = workbench.Settings(hidden_size=4, epochs=1)
VOID = {"br", "hr", "img", "input", "meta", "link"}


class Page(HTMLParser):
    """Reads HTML strictly: every element is closed, in order."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open, self.tags, self.words, self.opened = [], [], "", 0
        self.feed(html)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words += data

    @property
    def names(self):
        return [tag for tag, _ in self.tags]


def page_of(value) -> Page:
    html = value._repr_html_()
    page = Page(html)
    assert "script" not in page.names
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)
    assert "http" not in html, "nothing is loaded"
    for _, attributes in page.tags:
        style = attributes.get("style") or ""
        assert "#" not in style.replace("#8", ""), "colours are those of the notebook, light or dark"
    return page


@pytest.fixture
def x():
    return torch.randn(4, 2, 3)


def test_an_explanation_is_a_table_and_its_equations(x):
    with anyrnn.engine("cpu"):
        page = page_of(anyrnn.explain(anyrnn.LSTM(3, 5, bidirectional=True), x))
    assert page.names.count("table") == 1
    assert page.names.count("tr") == 1 + 2
    assert [attributes.get("scope") for tag, attributes in page.tags if tag == "th"] == ["col"] * 4 + ["row"] * 2
    assert page.words.count(r"\begin{aligned}") == 1, "equal equations stand once"
    assert "layer 0 forward, layer 0 backward: LSTMCell" in page.words
    for line in (r"c_t &= f_t \circ c_{t-1} + i_t \circ g_t", r"h_t &= o_t \circ \tanh(c_t)"):
        assert line in page.words
    assert page.words.count("$$") == 2
    assert "4 products with a matrix" in page.words
    assert "anyrnn program 1" in page.words
    opened = [attributes for tag, attributes in page.tags if tag == "details" and "open" in attributes]
    assert len(opened) == 1, "what is long is folded"
    regions = [attributes for _, attributes in page.tags if "overflow-x: auto" in (attributes.get("style") or "")]
    assert all(attributes.get("tabindex") == "0" for attributes in regions), "what scrolls can be reached by keys"


@pytest.mark.parametrize("show", ["equations", "graph", "program", "passes", "backward", "ir", "asm"])
def test_what_is_asked_for_is_shown_alone(show, x):
    with anyrnn.engine("cpu"):
        told = anyrnn.explain(anyrnn.GRU(3, 5), x, show=show)
        page = page_of(told)
    assert "table" not in page.names
    if show == "equations":
        assert r"h_t &= (1 - z_t) \circ n_t + z_t \circ h_{t-1}" in page.words
    else:
        assert str(getattr(told.parts[0].anatomy, show)) in page.words


class Recording(nn.Module):
    """Its step cannot be recorded."""

    hidden_size = 3

    def forward(self, x, h):
        return h if float(h.sum()) > 1e9 else torch.tanh(h + x)


def test_a_cell_without_equations_says_so_and_what_cannot_run_it(x):
    page = page_of(anyrnn.explain(anyrnn.Recurrent(Recording()), x))
    assert "its step cannot be recorded, so there are no equations" in page.words
    assert "engines that cannot" in page.words
    assert page.names.count("table") == 2


def test_a_stream_is_explained_too():
    page = page_of(anyrnn.explain(anyrnn.LSTM(3, 5).stream()))
    assert r"c_t &= f_t \circ c_{t-1}" in page.words


def test_everything_is_escaped():
    evil = "<b>&\"'</b>"
    blocks = (
        markup.line(evil, evil), markup.table((evil,), [(evil, evil)]), markup.folded(evil, markup.code(evil)),
        markup.display([f"a = {evil}"]), markup.meanings([(evil, evil)]),
    )  # fmt: skip
    page = Page(markup.page(*blocks))
    assert page.words.count(evil) == 2 + 3 + 2 + 1 + 2
    assert "b" not in page.names


@pytest.fixture(scope="module")
def results():
    return workbench.fit(workbench.load("japanese-vowels", validation=0), "rnn", settings=QUICK)


def test_a_comparison_is_its_answer_and_a_table(results):
    page = page_of(results)
    assert results.verdict in page.words
    assert page.names.count("tr") == 1 + 1 + len(results.baselines)
    for name in ("RNN", "majority class", "test accuracy", "µs a step"):
        assert name in page.words
    assert "270 training and 370 test sequences, 1 seed, 1 epochs, hidden size 4" in page.words


def test_what_a_cell_ends_with_does_not_print_a_dataset(results, x):
    assert repr(results) == results.table()
    assert len(repr(results.dataset)) < 200
    assert repr(results.dataset.train) == "Sequences: 270 of 7 to 26 steps, 12 features"
    told = anyrnn.explain(anyrnn.LSTM(3, 5), x)
    assert repr(told) == str(told)


# ---- Progress


class Shell(SimpleNamespace):
    """What IPython is in a notebook: a shell with a kernel, and outputs that can be updated."""


@pytest.fixture
def notebook(monkeypatch):
    """Pretends to be a notebook; gives what was displayed, and with what it was updated."""
    seen = SimpleNamespace(displayed=[], updates=[])

    def display(value, *, display_id=False):
        assert display_id
        seen.displayed.append(value)
        return SimpleNamespace(update=seen.updates.append)

    shell = Shell(kernel=object())
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell))
    monkeypatch.setitem(sys.modules, "IPython.display", SimpleNamespace(display=display))
    return seen


def test_a_notebook_is_told_from_a_terminal(monkeypatch, notebook):
    assert notebook_display() is not None
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=SimpleNamespace))
    assert notebook_display() is None, "IPython on a terminal has no kernel"
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: None))
    assert notebook_display() is None, "imported by a script"
    monkeypatch.delitem(sys.modules, "IPython")
    assert notebook_display() is None


def told(run, epoch, runs=4, epochs=1000):
    point = Epoch(epoch, 1.0, 0.5 if epoch % 10 == 0 else None)
    return Progress(NETWORKS["gru"], 0, run, runs, point, epochs, epoch == epochs, "accuracy")


def test_thousands_of_epochs_are_one_output_of_few_updates(notebook, results):
    with progress_module.shown(None) as tell:
        for run in range(1, 5):
            for epoch in range(1, 1001):
                tell(told(run, epoch))
    assert len(notebook.displayed) == 1
    assert 1 <= len(notebook.updates) < 50
    last = notebook.updates[-1]
    assert "trained 4 of 4 runs" in repr(last)
    assert all(len(page_of(each).words) < 120 for each in notebook.updates)
    bar = next(attributes for tag, attributes in page_of(last).tags if tag == "progress")
    assert (float(bar["value"]), bar["max"]) == (1.0, "1")


def test_an_update_says_what_is_trained_how_well_and_how_long_it_takes(notebook, results, monkeypatch):
    monkeypatch.setattr(progress_module, "_PAUSE", 0)
    with progress_module.shown(None) as tell:
        tell(told(2, 500))
    assert "[2/4] GRU, seed 0: accuracy 0.5, about 0 s left" in page_of(notebook.updates[0]).words
    assert notebook.updates[0].share == 0.375
    assert "stopped in 2 of 4 runs" in repr(notebook.updates[-1]), "as when the cell is interrupted"


def test_a_notebook_shows_a_bar_unless_told_not_to(notebook, results):
    heard = []
    workbench.fit(results.dataset, "rnn", settings=QUICK, on_epoch=heard.append)
    assert len(notebook.displayed) == 1
    assert len(heard) == 1
    workbench.fit(results.dataset, "rnn", settings=QUICK, progress=False)
    assert len(notebook.displayed) == 1


def test_elsewhere_it_is_a_line_for_each_run_if_asked_for(results, capsys):
    workbench.compare(results.dataset, ["rnn"], seeds=2, settings=QUICK)
    assert capsys.readouterr().out == ""
    workbench.compare(results.dataset, ["rnn"], seeds=2, settings=QUICK, progress=True)
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("[1/2] RNN, seed 0: accuracy 0.")
    assert second.startswith("[2/2] RNN, seed 1: accuracy 0.")


# ---- In Jupyter's own kernel

CELLS = (
    "import torch, anyrnn\nfrom anyrnn import plot\nplot.gates({'f': torch.rand(9, 2, 4)})",
    "import matplotlib.pyplot as plt\nplot.gradient_flow(torch.rand(9))",
    "anyrnn.explain(anyrnn.GRU(3, 4), torch.randn(5, 2, 3), show='equations')",
)


@pytest.mark.long
def test_a_kernel_shows_each_value_once():
    nbformat = pytest.importorskip("nbformat", reason="the extra docs has Jupyter's kernel")
    client = pytest.importorskip("nbclient", reason="the extra docs has Jupyter's kernel")
    pytest.importorskip("ipykernel", reason="the extra docs has Jupyter's kernel")
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in CELLS])
    client.NotebookClient(notebook, timeout=200, kernel_name="python3").execute()
    gates, flow, equations = (cell.outputs for cell in notebook.cells)
    for outputs, kind in ((gates, "image/png"), (flow, "image/png"), (equations, "text/html")):
        assert len(outputs) == 1, outputs
        assert kind in outputs[0].data
    assert r"n_t &amp;= \tanh" in equations[0].data["text/html"]
