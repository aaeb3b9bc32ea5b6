"""The command line as its users meet it: real processes where it matters, typer's runner for the rest."""

import csv
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

import anyrnn
from anyrnn.workbench.cli import app
from anyrnn.workbench.models import COMPARED
from anyrnn.workbench.runs import open_run

SCRIPT = Path(sys.executable).parent / "anyrnn"
QUICK = ("--hidden", "6", "--epochs", "1")
COLUMNS = ("--id", "id", "--time", "t")
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "80"}

OWN_CELL = """
import torch

class Mine(torch.nn.Module):
    def __init__(self, input_size, hidden_size):
        super().__init__()
        self.hidden_size = hidden_size
        self.new = torch.nn.Linear(input_size + hidden_size, hidden_size)

    def forward(self, x, h):
        return torch.tanh(self.new(torch.cat((x, h), dim=1)))
"""


def anyrnn_process(*arguments: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [str(SCRIPT), *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, env=ENVIRONMENT, capture_output=True, text=True, timeout=200, check=False)


def invoke(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, list(map(str, arguments)))


def table(path: Path, numbers: bool = False, first: int = 0) -> Path:
    """Twenty-four sequences of 3 to 6 steps: is the sum of `a` positive; or, as numbers, the sum itself."""
    rows = []
    for k in range(first, first + 24):
        values = [((7 * k + 3 * t) % 11 - 5) / 5 for t in range(3 + k % 4)]
        target = f"{sum(values):.3f}" if numbers else ("up" if sum(values) > 0 else "down")
        rows += [f"s{k},{t},{a},{t % 2},{target}" for t, a in enumerate(values)]
    path.write_text("\n".join(["id,t,a,b,y", *rows, ""]))
    return path


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def vowels_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "vowels"
    result = invoke("compare", "japanese-vowels", *QUICK, "--cells", "lstm,gru", "--seeds", 1, "--out", folder)
    assert result.exit_code == 0, result.output
    return folder


# What a whole run shows and leaves


@pytest.mark.smoke
@pytest.mark.parametrize("start", [[SCRIPT], [sys.executable, "-m", "anyrnn"]], ids=["script", "module"])
def test_both_ways_to_start_it_work(start: list[str], tmp_path: Path) -> None:
    result = subprocess.run(
        [*start, "--version"], cwd=tmp_path, capture_output=True, text=True, check=True, timeout=200
    )
    assert result.stdout == f"anyrnn {anyrnn.__version__}\n"


@pytest.mark.smoke
def test_compare_shows_progress_a_table_and_where_the_report_lies(tmp_path: Path) -> None:
    (tmp_path / "my_cells.py").write_text(OWN_CELL)
    result = anyrnn_process(
        "compare", "japanese-vowels", *QUICK, "--cells", "gru,my_cells:Mine", "--seeds", 2, cwd=tmp_path
    )
    assert (result.returncode, result.stderr) == (0, "")
    out = result.stdout
    sizes = "216 training, 54 validation and 370 test sequences of 7 to 29 steps, 12 features, target 'speaker'"
    assert f"{sizes} (9 classes)" in out
    assert re.findall(
        r"^\[(\d)/4\] (\w+), seed (\d): validation accuracy 0\.\d+, [\d,]+ sequences/s, about \d+ s left$",
        out,
        re.MULTILINE,
    ) == [
        ("1", "GRU", "0"),
        ("2", "GRU", "1"),
        ("3", "Mine", "0"),
        ("4", "Mine", "1"),
    ]
    rows = r"^(GRU|Mine) +0\.\d{3} ± 0\.\d{3} +1(?:, 1)? +[\d,]+ +\d+\.\d s +\d+\.\d(?:  best|  tie)?$"
    assert re.findall(rows, out, re.MULTILINE) == ["GRU", "Mine"]
    assert re.findall(r"^(majority class|1-nearest .*?)  +0\.\d{3} +baseline$", out, re.MULTILINE)
    assert out.count("  best\n") == 1
    assert "Report: runs/japanese-vowels/report.html\n" in out
    assert "\x1b" not in out
    results = json.loads((tmp_path / "runs/japanese-vowels/results.json").read_text())
    assert (
        results["command"] == "anyrnn compare japanese-vowels --hidden 6 --epochs 1 --cells gru,my_cells:Mine --seeds 2"
    )
    assert [model["name"] for model in results["models"]] == ["gru", "my_cells:Mine"]
    predicted = anyrnn_process(
        "predict", "runs/japanese-vowels", "japanese-vowels", "--model", "my_cells:Mine", cwd=tmp_path
    )
    assert predicted.stdout.count("\n") == 371
    score = results["models"][1]["runs"][0]["score"]
    assert predicted.stderr == f"accuracy {score:.4g} on 370 sequences\n"


@pytest.mark.long
def test_every_network_is_compared_unless_told_otherwise(here: Path) -> None:
    result = invoke("compare", table(here / "d.csv"), *COLUMNS, "--target", "y", *QUICK, "--seeds", 1, "--out", "run")
    assert result.exit_code == 0, result.output
    assert open_run("run").names == COMPARED


@pytest.mark.long
def test_two_runs_show_the_same_scores(here: Path) -> None:
    arguments = ("compare", "japanese-vowels", *QUICK, "--cells", "lstm,bilstm", "--seeds", 2)
    assert invoke(*arguments, "--out", "one").exit_code == invoke(*arguments, "--out", "two").exit_code == 0
    one, two = (open_run(name).results["models"] for name in ("one", "two"))
    for a, b in zip(one, two, strict=True):
        assert (a["score_mean"], a["score_std"]) == (b["score_mean"], b["score_std"])
        assert [r["predictions"] for r in a["runs"]] == [r["predictions"] for r in b["runs"]]
        assert [r["history"] for r in a["runs"]] == [r["history"] for r in b["runs"]]


def test_without_a_place_runs_are_numbered(here: Path) -> None:
    for _ in range(2):
        result = invoke("fit", table(here / "d.csv"), *COLUMNS, "--target", "y", *QUICK)
        assert result.exit_code == 0, result.output
    assert sorted(p.name for p in (here / "runs").iterdir()) == ["d", "d-2"]
    assert "Report: runs/d-2/report.html" in result.stdout


def test_every_option_reaches_the_training(here: Path) -> None:
    result = invoke(
        "fit", table(here / "train.csv"), "--test", table(here / "test.csv", first=24), *COLUMNS, "--target", "y",
        "--features", "b, a", "--task", "classification", "--cell", "peephole-lstm", "--seed", 7, "--hidden", 5,
        "--epochs", 2, "--batch-size", 4, "--learning-rate", "0.01", "--pool", "max", "--threads", 2,
        "--schedule", "cosine", "--balanced", "--layers", 2, "--bidirectional", "--dropout", 0.2,
        "--recurrent-dropout", 0.1, "--weight-decay", 0.01, "--clip-norm", 2, "--clip-gradient", 0.5, "--out", "run",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    results = open_run("run").results
    assert results["settings"] == {
        "hidden_size": 5, "epochs": 2, "batch_size": 4, "learning_rate": 0.01, "clip_norm": 2.0, "pool": "max",
        "threads": 2, "schedule": "cosine", "patience": None, "metric": "accuracy", "balanced": True,
        "layers": 2, "bidirectional": True, "dropout": 0.2, "recurrent_dropout": 0.1, "weight_decay": 0.01,
        "clip_gradient": 0.5,
    }  # fmt: skip
    assert (results["dataset"]["train"], results["dataset"]["test"]) == (24, 24)
    assert results["dataset"]["features"] == ["b", "a"]
    assert (results["seeds"], results["best"]) == ([7], "peephole-lstm")


def test_groups_validation_and_patience_are_options(here: Path) -> None:
    rows = [f"{k},0,{k % 7},{k // 10},{'uv'[k % 2]}" for k in range(200)]
    (here / "d.csv").write_text("\n".join(["id,t,a,site,y", *rows, ""]))
    options = ("--group", "site", "--validation", "0.5", "--patience", 1, "--schedule", "constant", "--hidden", 3)
    result = invoke("compare", "d.csv", *COLUMNS, "--target", "y", *options, "--cells", "rnn", "--seeds", 1)
    assert result.exit_code == 0, result.output
    assert "70 training, 70 validation and 60 test sequences of 1 steps, 1 feature, target" in result.stdout
    results = open_run("runs/d").results
    assert (results["settings"]["patience"], results["dataset"]["group_column"]) == (1, "site")
    (run,) = results["models"][0]["runs"]
    assert len(run["history"]) == run["epoch"] + 1


# predict


def test_predict_writes_csv_and_scores_where_it_can(vowels_run: Path, tmp_path: Path) -> None:
    run = open_run(vowels_run)
    best = next(model for model in run.results["models"] if model["name"] == run.results["best"])
    result = invoke("predict", vowels_run, "japanese-vowels")
    rows = list(csv.reader(io.StringIO(result.stdout)))
    classes = run.results["dataset"]["classes"]
    assert rows[0] == ["id", "prediction", "probability", "truth", *(f"p({name})" for name in classes)]
    assert [row[3] for row in rows[1:]] == [classes[k] for k in run.results["test_targets"]]
    for _, prediction, probability, _, *shares in rows[1:]:
        assert probability == shares[classes.index(prediction)] == max(shares, key=float)
        assert abs(sum(map(float, shares)) - 1) < 0.001
    assert [row[:2] for row in rows[1:]] == [
        [id_, classes[k]] for id_, k in zip(run.results["test_ids"], best["runs"][0]["predictions"], strict=True)
    ]
    assert all(1 / 9 <= float(row[2]) <= 1 for row in rows[1:])
    assert result.stderr == f"accuracy {best['score_mean']:.4g} on 370 sequences\n"
    again = invoke("predict", vowels_run, "japanese-vowels", "--out", tmp_path / "p.csv")
    assert (again.stdout, (tmp_path / "p.csv").read_text()) == ("", result.stdout)


def test_predict_of_a_number_needs_no_target(here: Path) -> None:
    data = table(here / "d.csv", numbers=True)
    assert invoke("fit", data, *COLUMNS, "--target", "y", *QUICK, "--out", "run").exit_code == 0
    with_target = invoke("predict", "run", data, *COLUMNS)
    without = here / "new.csv"
    without.write_text("\n".join(line.rpartition(",")[0] for line in data.read_text().splitlines()))
    result = invoke("predict", "run", without, *COLUMNS)
    assert result.exit_code == 0, result.output
    named = [row.rpartition(",") for row in with_target.stdout.splitlines()]
    assert result.stdout.splitlines() == [prediction for prediction, _, _ in named]
    assert float(named[1][2]) == float(data.read_text().splitlines()[1].rpartition(",")[2])
    assert result.stdout.splitlines()[0] == "id,prediction"
    assert len(result.stdout.splitlines()) == 25
    assert result.stderr == ""
    assert re.fullmatch(r"rmse \S+ on 24 sequences\n", with_target.stderr)


def test_predict_replaces_a_file_only_when_asked(vowels_run: Path, here: Path) -> None:
    (here / "p.csv").write_text("mine")
    arguments = ("predict", vowels_run, "japanese-vowels", "--out", "p.csv")
    refused = invoke(*arguments)
    assert (refused.exit_code, (here / "p.csv").read_text()) == (2, "mine")
    assert "p.csv: this is there already" in refused.stderr
    assert invoke(*arguments, "--overwrite").exit_code == 0
    assert (here / "p.csv").read_text().startswith("id,prediction,probability,")
    assert [p.name for p in here.iterdir()] == ["p.csv"]


# What the user can put right: one line, status 2, nothing written


def cut_run(here: Path, vowels_run: Path) -> str:
    (here / "run").mkdir()
    (here / "run/results.json").write_bytes((vowels_run / "results.json").read_bytes()[:50])
    return "run"


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["compare", "nowhere.csv"], "nowhere.csv: there is no such file"),
        (["compare", "empty.csv", *COLUMNS, "--target", "y"], "empty.csv"),
        (["compare", "notes.txt"], "notes.txt"),
        (["compare", "d.csv", *COLUMNS, "--target", "z"], "d.csv: .*'z'.*the columns are id, t, a, b, y"),
        (["compare", "japanese-vowels", "--cells", "lstm,lstn"], "cell 'lstn' is not known.*Did you mean 'lstm'?"),
        (["compare", "japanese-vowels", "--cells", "rnn,rnn"], "each once"),
        (["compare", "japanese-vowels", "--cells", ""], "cell '' is not known"),
        (["compare", "japanese-vowels", "--seeds", "0"], "seeds: got 0"),
        (["compare", "japanese-vowels", "--hidden", "0"], "hidden_size=0"),
        (["compare", "japanese-vowels", "--learning-rate", "nan"], "learning_rate=nan"),
        (["compare", "japanese-vowels", "--out", "notes.txt"], "notes.txt: a file of this name is there already"),
        (["compare", "japanese-vowels", "--out", "notes", "--overwrite"], "notes: .* holds no run of anyrnn"),
        (["fit", "japanese-vowels", "--cell", "none:Such"], "importing none failed"),
        (["fit", "japanese-vowels", "--seed", str(2**64)], "seed: got 18446744073709551616, expected"),
        (["fit", "japanese-vowels", "--id", "id"], "japanese-vowels"),
        (["predict", "nowhere", "japanese-vowels"], "nowhere: there is no such folder"),
        (["predict", "notes", "japanese-vowels"], "results.json: it cannot be read"),
        (["predict", "VOWELS", "d.csv", *COLUMNS], "d.csv: .*LPC"),
        (["predict", "VOWELS", "few.ts"], "few.ts.* 2 .*expected 12"),
        (["predict", "VOWELS", "japanese-vowels", "--model", "rnn"], "no model 'rnn'; the models are lstm, gru"),
        (["predict", "VOWELS", "japanese-vowels", "--out", "no/p.csv"], "there is no folder no"),
    ],
)
def test_bad_input_gives_one_line_and_leaves_nothing(
    here: Path, vowels_run: Path, arguments: list[str], message: str
) -> None:
    table(here / "d.csv")
    (here / "empty.csv").write_text("")
    (here / "notes.txt").write_text("mine")
    (here / "notes").mkdir()
    (here / "notes/mine.txt").write_text("mine")
    (here / "few.ts").write_text(
        "@problemName few\n@univariate false\n@classLabel true 1 2\n@data\n1,2:3,4:1\n1,2:3,4:2\n"
    )
    before = sorted(here.rglob("*"))
    result = invoke(*(str(vowels_run) if argument == "VOWELS" else argument for argument in arguments))
    assert result.exit_code == 2
    assert re.search(f"^anyrnn: .*{message}", result.stderr), result.stderr
    assert result.stderr.count("\n") == 1
    assert sorted(here.rglob("*")) == before


def test_a_process_with_bad_input_ends_with_status_2_and_no_traceback(tmp_path: Path) -> None:
    result = anyrnn_process("compare", "nowhere.csv", cwd=tmp_path)
    assert (result.returncode, result.stdout) == (2, "")
    assert re.fullmatch(r"anyrnn: nowhere.csv: there is no such file.*\n", result.stderr)


def test_a_diverging_cell_ends_the_comparison_but_not_what_was_finished(here: Path) -> None:
    (here / "wild_cells.py").write_text(OWN_CELL.replace("torch.tanh(", "1e30 * ("))
    arguments = ("compare", "japanese-vowels", *QUICK, "--cells", "rnn,wild_cells:Mine", "--seeds", 1, "--out", "run")
    result = invoke(*arguments)
    assert result.exit_code == 2
    assert "wild_cells:Mine, seed 0: training diverged in epoch 1" in result.stderr
    assert "(RNN) are saved in run." in result.stderr
    assert open_run("run").results["unfinished"] == ["wild_cells:Mine"]


# Ctrl-C


def interrupted(cwd: Path, when: Callable[[str], bool], *arguments: str) -> tuple[int, str]:
    """Start it, send SIGINT after the first line of output for which `when` holds; status and stderr."""
    process = subprocess.Popen(
        [SCRIPT, *arguments], cwd=cwd, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        while not when(process.stdout.readline()):
            assert process.poll() is None, process.stderr.read()
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=200)
    finally:
        process.kill()
    return process.returncode, stderr


LONG = ("compare", "japanese-vowels", "--hidden", "6", "--seeds", "1", "--out", "run")


@pytest.mark.long
def test_an_interrupt_keeps_the_networks_that_were_finished_and_says_so(tmp_path: Path) -> None:
    arguments = (*LONG, "--cells", "rnn,lstm,peephole-lstm", "--epochs", "15")
    status, stderr = interrupted(tmp_path, lambda line: line.startswith("[2/3] LSTM"), *arguments)
    assert status == 130
    # The LSTM's run has ended; whether its step was timed before the interrupt came is open.
    found = re.fullmatch(
        r"Interrupted\. The networks that had all their runs \((RNN|RNN, LSTM)\) are saved in run\. "
        r"What was trained is kept: the same command with --resume goes on in run\.\n",
        stderr,
    )
    assert found, stderr
    assert [p.name for p in tmp_path.iterdir()] == ["run"]
    run, kept = open_run(tmp_path / "run"), found[1].lower().split(", ")
    assert [*run.names, *run.results["unfinished"]] == ["rnn", "lstm", "peephole-lstm"]
    assert list(run.names) == kept
    assert run.model("rnn").network.name == "rnn"
    assert (tmp_path / "run/report.html").exists()


@pytest.mark.long
@pytest.mark.parametrize(
    ("arguments", "seconds"),
    [(LONG, 1), (("fit", "japanese-vowels", "--out", "run"), 0)],
    ids=["a comparison, in its first training", "just before the training"],
)
def test_an_interrupt_before_anything_was_finished_leaves_nothing_but_a_checkpoint(
    tmp_path: Path, arguments: tuple[str, ...], seconds: int
) -> None:
    def when(line: str) -> bool:
        time.sleep(seconds)
        return line.startswith("Split")

    status, stderr = interrupted(tmp_path, when, *arguments, "--epochs", "5000")
    left = [path.name for path in tmp_path.iterdir()]
    kept = "Interrupted. What was trained is kept: the same command with --resume goes on in run.\n"
    assert status == 130
    assert (stderr, left) in ([("Interrupted. Nothing was written.\n", [])] + [(kept, ["run"])] * seconds)


# Around it


def test_doctor_names_versions_threads_engines_and_reasons() -> None:
    out = invoke("doctor").stdout
    for line in (
        rf"^  anyrnn +{re.escape(anyrnn.__version__)}$",
        r"^  torch +\d+\.\d+\S*, needed: torch\S*>=",
        r"^  threads +\d+ for wide layers",
        r"^  peephole-lstm +engine '\w+': ",
        r"^  reference +available$",
        r"^  triton +not available: ",
        r"^  runs +.*runs",
    ):
        assert re.search(line, out, re.MULTILINE), line


def test_without_its_packages_the_command_line_says_how_to_get_them(tmp_path: Path) -> None:
    code = "import sys; sys.modules['polars'] = None; from anyrnn.__main__ import main; main()"
    result = subprocess.run(
        [sys.executable, "-c", code, "--version"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
    )
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == "anyrnn: the command line needs polars: pip install 'anyrnn[workbench]'\n"


def test_the_library_does_not_import_the_workbench_or_its_packages(tmp_path: Path) -> None:
    extra = ("anyrnn.workbench", "typer", "rich", "polars", "sklearn", "jinja2", "safetensors")
    code = f"import sys, anyrnn; sys.exit(','.join(sorted(set({extra!r}) & set(sys.modules))) or None)"
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, timeout=200)
