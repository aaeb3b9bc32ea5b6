"""`anyrnn bench`: every contender computes the same, is timed in turns, and shown; what is not there is named."""

import importlib
import importlib.util
import json
import os
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from typer.testing import CliRunner, Result

import anyrnn
from anyrnn.errors import AnyRNNError
from anyrnn.workbench import bench, peers
from anyrnn.workbench.bench import Setting, Timing
from anyrnn.workbench.cli import app
from anyrnn.workbench.models import COMPARED, NETWORKS
from anyrnn.workbench.peers import Contender, Problem

SMALL = {"hidden_size": 5, "input_size": 3, "batch_size": 4, "steps": 6, "threads": 1, "seconds": 0.001}
TINY = ("--hidden", "5", "--input", "3", "--batch", "4", "--steps", "6", "--threads", "1", "--seconds", "0.001")


@pytest.fixture(autouse=True)
def _plainly(plainly: None) -> None:
    """On the reference engine: what is compiled is tested elsewhere."""


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["bench", *arguments])


def installed(*packages: str) -> pytest.MarkDecorator:
    absent = [package for package in packages if importlib.util.find_spec(package) is None]
    return pytest.mark.skipif(bool(absent), reason=f"needs {', '.join(absent)}")


# The peers


@pytest.mark.parametrize("ragged", [False, True], ids=["full", "ragged"])
@pytest.mark.parametrize("name", COMPARED)
def test_torch_nn_and_the_loop_compute_what_our_layer_does(name: str, ragged: bool) -> None:
    layer = NETWORKS[name].layer(3, 5)
    problem = Problem.draw(6, 4, 3, layer.output_size, ragged=ragged)
    assert (problem.lengths is not None) is ragged
    ours = peers.ours(layer, problem)
    peers.check(ours, peers.python_loop(layer, problem))
    if name in peers.TORCH_LAYERS:
        peers.check(ours, peers.torch_layer(peers.TORCH_LAYERS[name](3, 5), layer, problem, "torch.nn"))
    for kind, count in {"forward": 1, "training": 2 + len(list(layer.parameters()))}.items():
        assert len(ours.tensors(kind, ours.calls[kind]())) >= count


@pytest.mark.parametrize("kind", ["rnn", "lstm", "gru"])
@pytest.mark.parametrize(
    "make",
    [
        pytest.param(peers.xla_scan, marks=installed("jax")),
        pytest.param(peers.onnx_runtime, marks=installed("onnx", "onnxruntime")),
    ],
)
def test_other_packages_compute_what_our_layer_does(make, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for key, value in {"NPROC": "1", "JAX_PLATFORMS": "cpu"}.items():
        monkeypatch.setenv(key, value)
    layer = NETWORKS[kind].layer(3, 5)
    problem = Problem.draw(6, 4, 3, 5)
    peers.check(peers.ours(layer, problem), make(kind, layer, problem, 1))


def test_a_loop_takes_a_cell_of_torch_where_there_is_one_and_only_the_equations_elsewhere() -> None:
    lstm, peephole = anyrnn.LSTM(3, 5), anyrnn.PeepholeLSTM(3, 5)
    twin = peers._plain_cell(lstm.cell())
    assert isinstance(twin, nn.LSTMCell)
    assert twin.weight_ih is lstm.weight_ih_l0
    assert peers._plain_cell(peephole.cell()).__func__ is anyrnn.PeepholeLSTMCell.step
    own = nn.GRUCell(3, 5)
    assert peers._plain_cell(own) is own


@pytest.mark.parametrize("key", ["weight_hh_l0", "bias_ih_l0"])
def test_a_contender_with_other_weights_is_found_out(key: str) -> None:
    layer, problem = anyrnn.GRU(3, 5), Problem.draw(6, 4, 3, 5)
    other = anyrnn.GRU(3, 5)
    other.load_state_dict(layer.state_dict())
    peers.check(peers.ours(layer, problem), peers.ours(other, problem, "other"))
    with torch.no_grad():
        getattr(other, key)[7] += 0.01
    with pytest.raises(AnyRNNError, match="other and anyrnn: result 0 of a forward call differs by 0"):
        peers.check(peers.ours(layer, problem), peers.ours(other, problem, "other"))


def test_a_wrong_gradient_is_found_out() -> None:
    layer, problem = anyrnn.RNN(3, 5), Problem.draw(6, 4, 3, 5)
    ours = peers.ours(layer, problem)
    wrong = peers.contender(
        "wrong", layer, problem, lambda module: module, lambda grads: [*grads[:-1], grads[-1] + 0.1]
    )
    with pytest.raises(AnyRNNError, match="wrong and anyrnn: result 5 of a training call differs by 0"):
        peers.check(ours, wrong)


def test_a_nan_on_one_side_is_a_difference() -> None:
    problem = Problem.draw(6, 4, 3, 5)
    fine = Contender("fine", {"forward": lambda: torch.zeros(2)}, lambda _, result: [result])
    broken = Contender("broken", {"forward": lambda: problem}, lambda *_: [torch.tensor([0.0, torch.nan])])
    with pytest.raises(AnyRNNError, match="differs by nan"):
        peers.check(fine, broken)


def test_a_problem_is_always_the_same_and_no_gradient_comes_from_padding() -> None:
    one, two = (Problem.draw(9, 50, 3, 5, ragged=True) for _ in range(2))
    assert torch.equal(one.x, two.x)
    assert torch.equal(one.upstream, two.upstream)
    assert one.lengths.tolist() == two.lengths.tolist()
    assert set(one.lengths.tolist()) == set(range(1, 10))
    for row, n in enumerate(one.lengths):
        assert (one.upstream[n:, row] == 0).all()
        assert (one.upstream[:n, row] != 0).all()


# The clock


def test_contenders_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    now, order = 0.0, []

    def call(name: str, seconds: float):
        def run() -> None:
            nonlocal now
            order.append(name)
            now += seconds

        return run

    monkeypatch.setattr(bench.time, "perf_counter", lambda: now)
    monkeypatch.setattr(bench.time, "sleep", lambda _: None)
    timing = bench.alternate({"a": call("a", 0.004), "b": call("b", 0.5)}, seconds=0.06, threads=1, rounds=3)
    # 20 ms a turn: of a, one call does not count and four do; a call of b alone fills it.
    assert order == ["a"] * 5 + ["b"] + ["a"] * 5 + ["b"] + ["a"] * 5 + ["b"]
    assert timing["a"] == Timing(pytest.approx(0.004), pytest.approx(0.004), pytest.approx(0.004), 12)
    assert timing["b"] == Timing(0.5, 0.5, 0.5, 3)


def test_the_number_of_threads_is_put_back() -> None:
    with bench.using(2):
        assert torch.get_num_threads() == 2
    assert torch.get_num_threads() == 1


# The repository's benchmarks


@pytest.fixture
def benchmarks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "benchmarks")
    layers, report, record = map(importlib.import_module, ("layers", "layers_report", "record"))
    monkeypatch.setattr(record, "HERE", tmp_path)
    return SimpleNamespace(layers=layers, report=report, record=record)


@pytest.mark.long
def test_the_layers_benchmark_runs_checks_and_writes_its_tables(benchmarks, monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(benchmarks.layers, "find_spec", lambda _: None)  # JAX starts slowly, and has a test of its own
    for name, shapes in {"SHAPES": ((1, 3, 4, 5), (2, 3, 4, 5)), "SHORT": ((1, 2, 3, 4),)}.items():
        monkeypatch.setattr(benchmarks.layers, name, shapes)
    rows = benchmarks.layers.measure("all", 1, 0.001, 2, compile_loops=False)
    assert {(r["case"], r["kind"]) for r in rows} == {
        (case, kind) for case in ("full", "ragged", "short") for kind in ("forward", "training")
    }
    benchmarks.record.write("layers", {"seconds": 0.001, "rounds": 2, "took": 1, "rows": rows})
    text = (tmp_path / "results.md").read_text()
    for cell in ("RNN / torch.nn", "GRU / torch.nn, packed", "LayerNorm LSTM / Python loop, B=1"):
        assert re.search(rf"^\| {cell} \| 1 \| [\d.]+x", text, re.MULTILINE), cell
    assert json.loads((tmp_path / "results.json").read_text())["layers"]["rows"] == rows


def test_a_claim_is_the_geometric_mean_and_the_worst_and_says_whether_it_is_met(benchmarks) -> None:
    def row(by: str, B: int, median: float) -> dict:
        shape = {"case": "full", "B": B, "T": 100, "I": 2, "H": 3, "threads": 2, "kind": "training"}
        return {**shape, "cell": "GRU", "by": by, "median": median}

    rows = [row("anyrnn", 1, 1.0), row("torch.nn", 1, 32.0), row("anyrnn", 8, 2.0), row("torch.nn", 8, 1.0)]
    mean, worst = benchmarks.report.speed_claims(rows)
    assert (mean.value, mean.met, worst.value, worst.met) == (pytest.approx(4.0), True, 0.5, False)
    assert str(worst) == "0.5x at 8,100,2,3 (≥ 1.8x: **not met**)"
    assert benchmarks.record.verdict([mean, worst]) == "1 of 2 targets met."
    cost = benchmarks.record.Claim("", "", "", 1.2, 1.15, at_most=True)
    assert (cost.met, str(cost)) == (False, "1.2 (≤ 1.15: **not met**)")


def test_the_rate_of_training_counts_every_product_once(benchmarks) -> None:
    row = {"cell": "LSTM", "kind": "training", "steps": 2 * 3, "I": 4, "H": 5}
    cell, x = nn.LSTMCell(4, 5), torch.randn(2, 3, 4, requires_grad=True)
    state = (torch.randn(3, 5, requires_grad=True), torch.randn(3, 5))
    with FlopCounterMode(display=False) as counter:
        outputs = []
        for x_t in x:
            state = cell(x_t, state)
            outputs.append(state[0])
        torch.stack(outputs).sum().backward()
    assert benchmarks.report.operations(row) == counter.get_total_flops()
    assert benchmarks.report.operations(row | {"kind": "forward"}) == counter.get_total_flops() / 3
    assert benchmarks.report.operations({"cell": "product 2x3x4"}) == 48


# What is shown


@pytest.mark.long
def test_a_bench_shows_the_machine_the_engine_every_time_and_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench.importlib.util, "find_spec", lambda _: None)
    result = invoke("--cell", "gru", *TINY)
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[0] == "GRU: input 3, hidden 5, batch 4, 6 steps, float32"
    assert re.search(r"cores, .*; 1 thread$", lines[1])
    assert lines[3] == "engine 'reference': asked for by name"
    number = r"[\d.]+ ms \([\d.e+]+x\)"
    for name in ("anyrnn", "torch.nn.GRU", "Python loop"):
        assert re.search(rf"^{name} +{number} +{number} +\d+\.\d\d s$", result.stdout, re.MULTILINE), name
    assert "(1x)" in result.stdout
    for name in ("onnxruntime: onnxruntime and onnx", "jax: jax"):
        assert f"Not measured: {name} not installed: pip install 'anyrnn[bench]'" in lines


@pytest.mark.long
def test_a_cell_of_ones_own_is_measured_beside_its_loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("bench_cells.py").write_text("import torch\n\nclass Mine(torch.nn.GRUCell):\n    pass\n")
    found = bench.bench(Setting("bench_cells:Mine", **SMALL, ragged=True))
    assert (found.title, [m.name for m in found.measured]) == ("Mine", ["anyrnn", "Python loop"])
    assert set(found.missing) == {"torch.nn", "onnxruntime", "jax"}
    for measured in found.measured:
        assert set(measured.timing) == {"forward", "training"}
        assert all(t.low <= t.median <= t.high for t in measured.timing.values())
        assert all(t.low > 0 and t.calls >= 7 for t in measured.timing.values())
        assert all(seconds > 0 for seconds in measured.first.values())
    assert "lengths from 1 to 6" in str(found)


def test_a_cell_that_draws_random_numbers_cannot_be_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("noisy_cells.py").write_text(
        "import torch\n\nclass Noisy(torch.nn.GRUCell):\n    def forward(self, x, h):\n"
        "        return super().forward(x, h) + torch.randn_like(h)\n"
    )
    result = invoke("--cell", "noisy_cells:Noisy", *TINY)
    assert result.exit_code == 2
    assert re.fullmatch(r"anyrnn: Python loop and anyrnn: .* a cell that draws random numbers.*\n", result.stderr)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--cell", "lstn"], "cell 'lstn' is not known.*Did you mean 'lstm'?"),
        (["--hidden", "0"], "bench: got hidden=0, expected at least 1"),
        (["--threads", "0"], "bench: got threads=0, expected at least 1"),
        (["--seconds", "-1"], "bench: got seconds=-1.0, expected more than 0"),
        (["--peers", "lop"], "peer 'lop' is not known.*Did you mean 'loop'?"),
        (["--peers", "torch.nn", "--cell", "peephole-lstm"], "peer 'torch.nn': PyTorch has no layer for peephole LSTM"),
        (["--peers", "jax", "--ragged"], "peer 'jax': .*without padding"),
        (["--peers", "onnxruntime", "--cell", "bilstm"], "peer 'onnxruntime': .* rnn, lstm and gru"),
    ],
)
def test_bad_input_gives_one_line(arguments: list[str], message: str) -> None:
    result = invoke(*TINY, *arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert re.search(f"^anyrnn: .*{message}", result.stderr), result.stderr
    assert result.stderr.count("\n") == 1


def test_the_help_text_has_examples_that_parse() -> None:
    examples = re.findall(r"^    anyrnn bench (.*)$", invoke("--help").stdout, re.MULTILINE)
    assert len(examples) == 3
    for example in examples:
        assert invoke(*example.split(), "--help").exit_code == 0
        assert invoke(*example.split(), "--no-such-option", "--help").exit_code == 2


def test_jax_that_was_imported_with_other_threads_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(bench.peers.sys.modules, "jax", object())
    monkeypatch.setenv("NPROC", "3")
    with pytest.raises(AnyRNNError, match="start a new process, or set NPROC=1"):
        peers._jax(1)
    assert os.environ["NPROC"] == "3"
