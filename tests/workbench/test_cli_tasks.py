"""Texts, forecasts and configuration files on the command line, and the words that it shares with Python."""

import csv
import dataclasses
import io
import json
import math
import random
import re
import shlex
import subprocess
import sys
import tomllib
from dataclasses import fields
from pathlib import Path

import pytest
import typer
from test_cli import OWN_CELL, invoke, table

from anyrnn.workbench import forecast, language
from anyrnn.workbench.cli import app, output
from anyrnn.workbench.cli.config import read_config
from anyrnn.workbench.cli.options import CONFIGURED, listed, usual_word
from anyrnn.workbench.cli.starting import text_for
from anyrnn.workbench.cli.tasks import KINDS
from anyrnn.workbench.keeping import Ended
from anyrnn.workbench.lesson import Lesson
from anyrnn.workbench.metrics_log import MetricsLog
from anyrnn.workbench.runs import open_run

SOLD = ("--horizon", 3, "--id", "shop", "--time", "day", "--target", "sold")
QUICK = ("--hidden", 4, "--epochs", 1)
COMMANDS = ("compare", "fit", "tune", "predict", "generate", "init", "bench", "doctor")


def sold(path: Path) -> Path:
    """Two series of 60 days, with a price, a holiday and a size."""
    draws, rows = random.Random(0), []
    for shop, size in (("north", 10), ("south", 40)):
        for day in range(60):
            value = size * (2 + math.sin(day / 2.3)) + draws.gauss(0, 0.5)
            rows.append((shop, day, f"{value:.3f}", f"{draws.random():.2f}", int(day % 7 == 0), size))
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([("shop", "day", "sold", "price", "holiday", "size"), *rows])
    return path


def book(path: Path) -> Path:
    path.write_text("The cat sat on the mat, and the rat ran at the cat. " * 40)
    return path


def names(path: Path) -> Path:
    path.write_text("Ann\tB-PER\nsat\tO\n\n" * 12)
    return path


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run of each kind: sequences, tags, series, text; and what of their settings was read."""
    place = tmp_path_factory.mktemp("runs")
    for kind, arguments in zip(
        KINDS,
        (
            (table(place / "steps.csv"), "--id", "id", "--time", "t", "--target", "y"),
            (names(place / "names.conll"), "--cell", "gru"),
            (sold(place / "sold.csv"), *SOLD, "--context", 6, "--season", 4),
            (book(place / "book.txt"), "--steps", 8),
        ),
        strict=True,
    ):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(kind.settings, "__getattribute__", noted(READ.setdefault(kind.name, set())))
            result = invoke("fit", *arguments, *QUICK, "--out", place / Path(arguments[0]).stem)
        assert result.exit_code == 0, result.output
    return place


READ: dict[str, set[str]] = {}  # by the kind of task, what its training has read of its settings


def noted(read: set[str]):
    """How to get an attribute that notes the names, but for those that the class checks, and that are copied."""

    def get(settings: object, name: str) -> object:
        code = sys._getframe(1).f_code
        if code.co_name != "__post_init__" and code.co_filename != dataclasses.__file__:
            read.add(name)
        return object.__getattribute__(settings, name)

    return get


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_every_option_of_training_is_read(runs: Path, kind) -> None:
    """An option that nothing reads does nothing, and has to be named as such (`Kind.unread`), to be refused."""
    assert {field.name for field in fields(kind.settings)} - READ[kind.name] <= kind.unread


def at(place: Path, arguments: list[str]) -> list[str]:
    """Arguments in which RUNS is a folder."""
    return [argument.replace("RUNS", str(place)) for argument in arguments]


# Texts


def test_a_text_is_fitted_with_nats_and_bits_beside_counts(here: Path) -> None:
    result = invoke("fit", book(here / "book.txt"), "--steps", 8, *QUICK, "--threads", 1)
    assert (result.exit_code, result.stderr) == (0, "")
    assert "book: 1,872 training, 104 validation and 104 test characters, 15 different ones\n" in result.stdout
    assert re.search(
        r"^\[1/1\] LSTM, seed 0: validation loss \d\.\d+, [\d,]+ tokens/s, about 0 s left$", result.stdout, re.M
    )
    assert re.search(r"^network +bits a character +nats +parameters", result.stdout, re.MULTILINE)
    rows = re.findall(
        r"^(LSTM|counts of .*?|frequencies .*?)  +(\d\.\d{3}) +(\d\.\d{3})\b", result.stdout, re.MULTILINE
    )
    assert [name for name, _, _ in rows] == ["LSTM", "frequencies of characters", "counts of up to 5 characters"]
    assert all(float(nats) == pytest.approx(float(bits) * math.log(2), abs=1e-3) for _, bits, nats in rows)
    assert "No network: the baseline “counts of up to 5 characters”" in result.stdout
    assert "Let the best one write: anyrnn generate runs/book --prompt TEXT\n" in result.stdout
    assert language.open_text_run("runs/book").model().vocabulary.level == "character"
    assert (here / "runs/book/report.html").exists()


def test_every_option_of_a_text_reaches_the_training(here: Path) -> None:
    (here / "own_cell_of_a_text.py").write_text(OWN_CELL)
    book(here / "odd.log"), book(here / "test.txt")
    result = invoke(
        "compare", "odd.log", "--task", "text", "--cells", "own_cell_of_a_text:Mine", "--seeds", 1, "--level", "word",
        "--least", 3, "--encoding", "latin-1", "--test", "test.txt", "--validation", 0.1, "--hidden", 5, "--layers", 2,
        "--embedding", 3, "--steps", 6, "--batch-size", 7, "--epochs", 1, "--patience", 2, "--learning-rate", 0.01,
        "--clip-norm", 2, "--dropout", 0.1, "--threads", 1, "--out", "run",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    run = language.open_text_run("run", cells=["own_cell_of_a_text:Mine"])
    assert run.results["settings"] == {
        "hidden_size": 5, "embedding_size": 3, "steps": 6, "batch_size": 7, "epochs": 1, "patience": 2,
        "learning_rate": 0.01, "clip_norm": 2.0, "dropout": 0.1, "threads": 1, "layers": 2,
    }  # fmt: skip
    assert (run.results["dataset"]["level"], run.results["dataset"]["validation"]) == ("word", 208)
    assert run.model().module.layer.num_layers == 2
    assert "--cells own_cell_of_a_text:Mine\n" in result.stdout


@pytest.mark.long
def test_generate_writes_the_text_and_nothing_else(runs: Path) -> None:
    result = invoke("generate", runs / "book", "--prompt", "the ", "--temperature", 0.5, "--length", 40, "--seed", 3)
    model = language.open_text_run(runs / "book").model()
    expected = "".join(language.generate(model, 40, prompt="the ", temperature=0.5, seed=3))
    assert (result.exit_code, result.stdout, result.stderr) == (0, expected, "")
    assert len(expected) == 40
    full = f"{sys.executable} -m anyrnn generate {runs / 'book'} > /dev/full"
    ended = subprocess.run(full, shell=True, capture_output=True, text=True, check=False, timeout=200)
    assert ended.returncode == 1
    assert ended.stderr == "anyrnn: stdout: not all could be written: No space left on device\n"
    assert invoke("generate", runs / "book", "--length", 30).stdout != invoke("generate", runs / "book").stdout[:30]


# Forecasts


def test_a_forecast_is_fitted_beside_naive_and_seasonal_naive(here: Path) -> None:
    options = (*SOLD, "--season", 4, "--context", 6, *QUICK)
    result = invoke("compare", sold(here / "sold.csv"), *options, "--cells", "rnn,gru", "--seeds", 1)
    assert (result.exit_code, result.stderr) == (0, "")
    out = result.stdout
    assert "sold: 2 series of 60 steps, target 'sold', 3 steps ahead, season 4\n" in out
    assert "Split: in time: of each series the last 12 steps are the test part, the 12 before them choose" in out
    assert re.search(r"^network +mase +mae +rmse +smape +wape +rrse +pinball +coverage", out, re.MULTILINE)
    rows = re.findall(r"^(RNN|GRU|seasonal naive \(4\)|naive) +\d", out, re.MULTILINE)
    assert rows == ["RNN", "GRU", "seasonal naive (4)", "naive"]
    assert "Forecast with the best one: anyrnn predict runs/sold DATA\n" in out
    assert forecast.open_forecast_run("runs/sold").names == ("rnn", "gru")


def test_every_option_of_a_forecast_reaches_the_training(here: Path) -> None:
    result = invoke(
        "fit", sold(here / "sold.csv"), *SOLD, "--season", 4, "--past", "price", "--future", "holiday", "--static",
        "size", "--test-steps", 7, "--validation-steps", 6, "--context", 5, "--head", "recursive", "--quantiles",
        "0.2,0.5,0.7", "--hidden", 3, "--layers", 2, "--epochs", 1, "--patience", 2, "--batch-size", 4,
        "--learning-rate", 0.01, "--clip-norm", 2, "--dropout", 0.1, "--threads", 1, "--metric", "rmse",
        "--cell", "gru", "--seed", 5, "--out", "run",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    run = forecast.open_forecast_run("run")
    assert run.results["settings"] == {
        "hidden_size": 3, "context": 5, "head": "recursive", "quantiles": [0.2, 0.5, 0.7], "epochs": 1, "patience": 2,
        "batch_size": 4, "learning_rate": 0.01, "clip_norm": 2.0, "dropout": 0.1, "threads": 1, "layers": 2,
    }  # fmt: skip
    data = run.results["dataset"]
    assert (data["horizon"], data["season"], data["test_steps"], data["validation_steps"]) == (3, 4, 7, 6)
    assert (data["past"], data["future"], data["static"]) == (["price"], ["holiday"], ["size"])
    assert (run.results["seeds"], run.results["metric"]["name"], run.names) == ([5], "rmse", ("gru",))
    assert run.model().module.layer.num_layers == 2


def test_predict_forecasts_from_the_end_of_each_series_by_the_columns_of_the_training(runs: Path) -> None:
    result = invoke("predict", runs / "sold", runs / "sold.csv")
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout == forecast.predict(forecast.open_forecast_run(runs / "sold").model(), runs / "sold.csv").csv()
    rows = list(csv.DictReader(io.StringIO(result.stdout)))
    assert [(row["id"], row["step"], row["time"]) for row in rows[::5]] == [("north", "1", "60"), ("south", "3", "62")]
    assert all(float(row["q0.1"]) <= float(row["forecast"]) == float(row["q0.5"]) <= float(row["q0.9"]) for row in rows)


def test_other_columns_can_be_named_and_the_mean_has_no_quantiles(here: Path) -> None:
    data = sold(here / "sold.csv")
    assert invoke("fit", data, *SOLD, "--context", 6, "--quantiles", "", *QUICK, "--out", "run").exit_code == 0
    (here / "new.csv").write_text(data.read_text().replace("shop,day,sold", "place,date,amount"))
    named = ("--id", "place", "--time", "date", "--target", "amount")
    result = invoke("predict", "run", "new.csv", *named, "--out", "p.csv")
    assert (result.exit_code, result.stdout) == (0, "")
    assert (here / "p.csv").read_text() == invoke("predict", "run", data).stdout
    assert (here / "p.csv").read_text().startswith("id,step,time,forecast\nnorth,1,60,")


def test_a_wide_table_is_forecast_as_the_long_one_of_the_same_series(here: Path) -> None:
    rows = list(csv.DictReader(io.StringIO(sold(here / "long.csv").read_text())))
    by_shop = {shop: [row["sold"] for row in rows if row["shop"] == shop] for shop in ("north", "south")}
    lines = [f"{day},{a},{b}" for day, (a, b) in enumerate(zip(*by_shop.values(), strict=True))]
    (here / "wide.csv").write_text("\n".join(["day,north,south", *lines]))
    options = ("--horizon", 3, "--time", "day", "--context", 6, *QUICK)
    wide = invoke("fit", "wide.csv", *options, "--target", "north,south")
    assert wide.exit_code == 0, wide.output
    assert invoke("fit", "long.csv", *options, "--target", "sold", "--id", "shop").exit_code == 0
    assert invoke("predict", "runs/wide", "wide.csv").stdout == invoke("predict", "runs/long", "long.csv").stdout
    (here / "run.toml").write_text('target = ["north", "south"]\nid = "day"\n')
    refused = invoke("fit", "wide.csv", "--config", "run.toml", "--horizon", 3)
    assert "got several targets, north, south, and the id column 'day'; expected one target" in refused.stderr


# What the user can put right


@pytest.mark.parametrize(
    "arguments, message",
    [
        (
            ["fit", "book.txt", "--horizon", "3"],
            r"--horizon is for forecasts, and the task here is texts \(book.txt\); leave",
        ),
        (
            ["fit", "book.txt", "--target", "y"],
            r"--target is for sequences, tagging or forecasts, and the task here is texts",
        ),
        (
            ["fit", "book.txt", "--cell", "rnn", "--schedule", "cosine"],
            "--schedule is for sequences or tagging, and the task here is te",
        ),
        (
            ["fit", "sold.csv", "--season", "7"],
            r"--season is for forecasts, and the task here is sequences \(sold.csv\).*--task f",
        ),
        (
            ["fit", "sold.csv", *map(str, SOLD), "--group", "shop"],
            r"--group is for sequences or tagging, and the task here is forecasts \(--horizon\); leave it out",
        ),
        (["fit", "sold.csv", *map(str, SOLD), "--level", "word"], r"--level is for texts.*\(--task text\)"),
        (
            ["compare", "sold.csv", "--task", "text", "--id", "shop"],
            r"--id is for .* the task here is texts \(--task text\)",
        ),
        (["fit", "sold.csv", "--horizon", "3"], "forecasts need --target: the column to predict$"),
        (["fit", "sold.csv", "--task", "forecast", "--target", "sold"], "forecasts need --horizon: how many steps"),
        (["fit", "sold.csv", *map(str, SOLD), "--quantiles", "0.5,x"], "--quantiles: got '0.5,x', expected numbers"),
        (["fit", "sold.csv", *map(str, SOLD), "--quantiles", "0.1,0.9"], "quantiles: got .*0.5 among them"),
        (["fit", "sold.csv", *map(str, SOLD), "--cell", "bilstm"], "one direction"),
        (["fit", "book.txt", "--cell", "bilstm"], "one direction"),
        (["generate", "RUNS/book", "--temperature", "-1"], "temperature=-1.0, expected a number of at least 0"),
        (["generate", "RUNS/book", "--prompt", "Ω"], "the prompt has 'Ω'"),
        (["generate", "RUNS/sold"], "a run of forecasts, which `anyrnn predict .*/sold DATA` uses"),
        (["generate", "RUNS/steps"], "a run of sequences, which `anyrnn predict .*/steps DATA` uses"),
        (["predict", "RUNS/book", "book.txt"], "a run of a text, which goes on with `anyrnn generate .*/book`"),
        (["predict", "RUNS/sold", "sold.csv", "--id", "shap"], "column 'shap' is not there.*Did you mean 'shop'?"),
        (["predict", "RUNS/sold", "nowhere.csv"], "nowhere.csv"),
        (
            ["predict", "RUNS/steps", "RUNS/steps.csv", "--target", "z"],
            r"column 'z', the truth \(--target\), is not there",
        ),
        (["predict", "RUNS/steps", "RUNS/steps.csv", "--out", "RUNS", "--overwrite"], "this is no file, but a folder"),
        (["generate", "nowhere"], "nowhere: there is no such folder"),
        (["init", "--out", "book.txt"], "book.txt: this is there already"),
    ],
)
def test_what_is_not_for_the_task_is_refused_in_one_line(
    here: Path, runs: Path, arguments: list[str], message: str
) -> None:
    sold(here / "sold.csv"), book(here / "book.txt")
    before = sorted(here.rglob("*"))
    result = invoke(*at(runs, arguments))
    assert (result.exit_code, result.stdout.count("Report")) == (2, 0)
    assert re.search(f"^anyrnn: .*{message}", result.stderr), result.stderr
    assert result.stderr.count("\n") == 1
    assert sorted(here.rglob("*")) == before


@pytest.mark.parametrize(
    "command, option, others",
    [
        ("fit", "--temperature", "anyrnn generate"),
        ("generate", "--horizon", "anyrnn compare and anyrnn fit"),
        ("predict", "--hidden_size", "anyrnn compare and anyrnn fit and anyrnn bench"),
    ],
)
def test_an_option_of_another_command_is_refused(command: str, option: str, others: str) -> None:
    result = invoke(command, "x", option, "1")
    word = "--hidden" if option == "--hidden_size" else option
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == f"anyrnn: {word} is an option of {others}, not of anyrnn {command}\n"
    assert "No such option: --nowhere" in invoke(command, "x", "--nowhere", "1").stderr


def test_a_run_of_series_and_one_of_a_text_are_known_by_the_python_functions_too(runs: Path) -> None:
    assert open_run(runs / "steps").names == ("lstm",)
    assert forecast.open_forecast_run(runs / "sold").model().time_column == "day"
    assert language.open_text_run(runs / "book").names == ("lstm",)


# Options in a file


def test_a_file_says_what_the_command_line_says(here: Path, runs: Path) -> None:
    sold(here / "sold.csv")
    (here / "run.toml").write_text(
        'data = "sold.csv"\nhorizon = 3\nid_column = "shop"\ntime = "day"\ntarget = "sold"\ncontext = 6\nseason = 4\n'
        'hidden_size = 9\nepochs = 1\nquantiles = [0.1, 0.5, 0.9]\noverwrite = true\nout = "run"\n'
    )
    for _ in range(2):  # the second one overwrites
        result = invoke("fit", "--config", "run.toml", "--hidden", 4)
        assert result.exit_code == 0, result.output
    ours, theirs = (json.loads((folder / "results.json").read_text()) for folder in (Path("run"), runs / "sold"))
    assert ours["models"][0]["runs"][0]["scores"] == theirs["models"][0]["runs"][0]["scores"]
    assert ours["command"] == (
        "anyrnn fit sold.csv --id shop --time day --target sold --horizon 3 --season 4 --context 6 --quantiles "
        "0.1,0.5,0.9 --hidden 4 --epochs 1 --out run --overwrite"
    )
    (here / "predict.toml").write_text('run = "run"\ndata = "sold.csv"\n')
    assert invoke("predict", "--config", "predict.toml").stdout == invoke("predict", "run", "sold.csv").stdout


@pytest.mark.parametrize(
    "content, message",
    [
        ("hiden = 4", "'hiden' is no option of anyrnn fit. Did you mean 'hidden'?"),
        ("hidden = 4\nhidden_size = 4", "'hidden' is there twice"),
        (
            "cells = ['lstm']",
            "'cells' is an option of anyrnn compare and anyrnn tune and anyrnn predict and anyrnn generate, not of",
        ),
        ("[training]\nhidden = 4", r"got the section \[training\], expected options without sections"),
        ("hidden = 4.5", "hidden = 4.5, expected a whole number"),
        ("hidden = true", "hidden = true, expected a whole number"),
        ("dropout = 'much'", 'dropout = "much", expected a number'),
        ("balanced = 1", "balanced = 1, expected true or false"),
        ("target = 5", "target = 5, expected a text in quotes"),
        ("pool = 'first'", 'pool = "first", expected one of "last", "mean", "max"'),
        ("features = [true]", r"features = \[true\], expected a list"),
        ("hidden 4", "this is not TOML: .*line 1"),
    ],
)
def test_a_file_with_a_mistake_is_refused(here: Path, content: str, message: str) -> None:
    (here / "run.toml").write_text(content)
    result = invoke("fit", "japanese-vowels", "--config", "run.toml")
    assert (result.exit_code, result.stdout) == (2, "")
    assert re.fullmatch(f"anyrnn: run.toml: .*{message}.*\n", result.stderr), result.stderr


def test_a_file_that_is_not_there_is_named(here: Path) -> None:
    assert invoke("bench", "--config", "no.toml").stderr.startswith(
        "anyrnn: no.toml: this cannot be read: No such file"
    )


@pytest.mark.parametrize("verb", ["fit", "compare"])
@pytest.mark.parametrize("task", [None, "classification", "tagging", "forecast", "text"])
def test_a_file_that_init_writes_has_every_option_and_its_default(here: Path, task: str | None, verb: str) -> None:
    arguments = ["init", "--command", verb, *([] if task is None else ["--task", task])]
    assert invoke(*arguments).stdout.startswith("run.toml is written.")
    text = Path("run.toml").read_text()
    assert text == text_for(task, verb)
    kind = next((kind for kind in KINDS if kind.name == task), KINDS[0])
    options = {option.name: option for option in CONFIGURED[verb]}
    whole = re.sub(r"^#(?=[a-z])", "", text, flags=re.MULTILINE)
    assert {usual_word(word) for word in tomllib.loads(whole)} == {
        option.word for name, option in options.items() if name in kind.words(verb)
    }
    Path("run.toml").write_text(whole)
    found = read_config(Path("run.toml"), verb)  # every value is of the right type
    for field in fields(kind.settings):
        if field.default is not None and field.name not in kind.unread:
            value = found[field.name]
            value = tuple(map(float, listed(value))) if field.name == "quantiles" else value
            assert value == field.default, field.name


def test_what_init_writes_runs(here: Path) -> None:
    sold(here / "sold.csv")
    assert invoke("init", "--task", "forecast").exit_code == 0
    result = invoke("fit", "--config", "run.toml", "--horizon", 3, "--context", 6, *QUICK)
    assert result.exit_code == 0, result.output
    assert "2 series of 60 steps, target 'sold', 3 steps ahead, season 7" in result.stdout


# Words, help, completion, exit statuses


def examples(command: str) -> list[str]:
    out = invoke(command, "--help").stdout
    return re.findall(rf"^    anyrnn ({command}\b.*?)(?: >.*)?$", out.partition("Examples:")[2], re.MULTILINE)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_help_has_examples_that_parse(here: Path, command: str) -> None:
    (here / "run.toml").write_text("")
    assert len(examples(command)) >= 2
    for example in examples(command):
        assert invoke(*example.split(), "--help").exit_code == 0
        assert invoke(*example.split(), "--no-such-option", "--help").exit_code == 2


def test_the_commands_of_the_whole_help_are_there() -> None:
    out = invoke("--help").stdout
    assert set(typer.main.get_command(app).commands) == set(COMMANDS)
    assert re.findall(r"^    anyrnn (\w+)", out, re.MULTILINE) == ["compare", "fit", "fit", "compare"]


@pytest.mark.long
def test_the_examples_run(here: Path, runs: Path) -> None:
    """All but those that name what the reader has to have: a file of the UCR archive, and cells of one's own."""
    sold_rows = sold(here / "sold.csv").read_text().splitlines()
    (here / "sold.csv").write_text("\n".join(sold_rows[:61]))  # one series, as the examples have it
    steps = table(here / "steps.csv").read_text()
    (here / "steps.csv").write_text(steps.replace("id,t,a,b,y", "patient,hour,a,b,outcome"))
    (here / "tomorrow.csv").write_text(steps)
    book(here / "book.txt")
    rows = [row.rpartition(",")[0] for row in steps.splitlines()[1:]]
    (here / "rivers.csv").write_text("\n".join(["river,day,rain,discharge", *rows, ""]))
    (here / "run.toml").write_text('data = "steps.csv"\nid = "patient"\ntime = "hour"\ntarget = "outcome"\n')
    (here / "runs").symlink_to(runs)
    quick = {"fit": [*QUICK, "--steps", 8], "compare": [*QUICK, "--seeds", 1, "--cells", "rnn,gru"]}
    ran = []
    for command in COMMANDS:
        for example in examples(command):
            if command in {"bench", "doctor", "tune"} or re.search("japanese-vowels|my_cells|vowels", example):
                continue  # which other tests run
            words = shlex.split(example)
            if words == ["init"]:
                Path("run.toml").unlink()
            more = list(map(str, quick.get(command, [])))
            if "book.txt" not in words and "--steps" in more:
                del more[more.index("--steps") :]
            if command in quick:
                more += ["--out", f"out-{len(ran)}"]
            if "gru" in words and command == "predict":
                words[words.index("gru")] = "lstm"
            if "--prompt" in words:
                words[words.index("--prompt") + 1] = "the cat"  # Once is not in the text
            result = invoke(*words, *more)
            assert result.exit_code == 0, (words, more, result.output)
            ran.append(example)
    assert len(ran) >= 14


def test_the_shell_completes_commands_options_and_cells() -> None:
    def completed(line: str) -> list[str]:
        environment = {"_ANYRNN_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": str(line.count(" "))}
        result = typer.testing.CliRunner().invoke(app, [], env=environment, prog_name="anyrnn")
        assert result.exit_code == 0, result.output
        return result.stdout.split()

    assert completed("anyrnn gen") == ["generate"]
    assert completed("anyrnn fit --hori") == ["--horizon"]
    assert completed("anyrnn fit --cell layernorm-") == ["layernorm-lstm", "layernorm-gru"]
    assert completed("anyrnn compare --cells gru,ind") == ["gru,indrnn"]
    assert completed("anyrnn fit --head re") == ["recursive"]
    assert "--install-completion" in invoke("--help").stdout


@pytest.mark.parametrize("signal, status", [(None, 130), ("SIGTERM", 143), ("SIGHUP", 129)])
def test_the_training_of_a_text_ends_with_the_status_of_the_signal(
    here: Path, monkeypatch: pytest.MonkeyPatch, signal: str | None, status: int
) -> None:
    def ended(*_: object) -> None:
        raise KeyboardInterrupt if signal is None else Ended(status - 128)

    monkeypatch.setattr(Lesson, "train", ended)
    result = invoke("fit", book(here / "book.txt"))
    assert (result.exit_code, result.stderr.partition(".")[2]) == (status, " Nothing was written.\n")
    assert not (here / "runs").exists()


@pytest.mark.parametrize("options", [["book.txt"], ["sold.csv", *SOLD, "--context", 6]], ids=["text", "forecast"])
def test_an_interrupt_keeps_the_networks_of_any_task_that_were_finished_and_resume_trains_the_others(
    here: Path, monkeypatch: pytest.MonkeyPatch, options: list[object]
) -> None:
    sold(here / "sold.csv"), book(here / "book.txt")
    train, trained = Lesson.train, []

    def twice(self, network, *others):
        if network.name == "gru" and "gru" not in trained:
            trained.append("gru")
            raise KeyboardInterrupt
        trained.append(network.name)
        return train(self, network, *others)

    monkeypatch.setattr(Lesson, "train", twice)
    command = ("compare", *options, *QUICK, "--cells", "rnn,gru", "--seeds", 1, "--out", "run")
    result = invoke(*command)
    kept = (
        "The networks that had all their runs (RNN) are saved in run. What was trained is kept: the same command with "
        "--resume goes on in run."
    )
    assert (result.exit_code, result.stderr) == (130, f"Interrupted. {kept}\n")
    results = json.loads((here / "run/results.json").read_text())
    assert ([model["name"] for model in results["models"]], results["unfinished"]) == (["rnn"], ["gru"])
    epochs = []
    monkeypatch.setattr(MetricsLog, "__call__", lambda self, record: epochs.append(record["model"]))
    assert invoke(*command, "--resume").exit_code == 0
    results = json.loads((here / "run/results.json").read_text())
    assert ([model["name"] for model in results["models"]], results["unfinished"]) == (["rnn", "gru"], [])
    assert epochs == ["gru"]  # the RNN is not trained again


def test_the_help_and_the_page_name_every_exit_status() -> None:
    said = re.findall(r"^    (\d+) ", invoke("--help").stdout, re.MULTILINE)
    assert said == ["0", "1", "2", "130"] == ["0", *map(str, (output.UNWRITTEN, output.REFUSED, output.INTERRUPTED))]
    page = (Path(__file__).parents[2] / "docs" / "workbench.md").read_text(encoding="utf-8")
    assert re.findall(r"^\| (\d+) \|", page, re.MULTILINE) == ["0", "1", "2", "129", "130", "143"]
