"""The words of the options, and that none is taken and then ignored."""

import inspect
import re
from dataclasses import fields
from pathlib import Path

import pytest
from test_cli import invoke, table
from test_cli_tasks import SOLD, book, names, sold

from anyrnn.workbench.bench import Setting
from anyrnn.workbench.cli.options import CONFIGURED, joined, listed, usual_word
from anyrnn.workbench.cli.tasks import KINDS


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("verb", ["fit", "compare"])
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_every_word_of_the_python_api_is_an_option(kind, verb: str) -> None:
    names = {option.name for option in CONFIGURED[verb]}
    # What the command line does itself, and the seed of the split, since --seed is that of the training.
    own = {"settings", "command", "on_epoch", "on_network", "progress", "dataset", "text", "data"}
    own |= {"folder", "callbacks"}
    for function in (kind.load, kind.settings, kind.trains(verb)):
        assert set(inspect.signature(function).parameters) - own - (names | {"seed"}) == set(), function


def test_flags_are_the_words_of_python() -> None:
    odd = {"batch_size": "batch-size", "feature_columns": "features"}
    for options in CONFIGURED.values():
        for option in options:
            if option.flag:
                plain = re.sub("_(size|columns?)$", "", option.name).replace("_", "-")
                assert option.word == odd.get(option.name, plain)
                assert usual_word(option.name) == option.word
    assert {field.name for field in fields(Setting)} == {option.name for option in CONFIGURED["bench"]}


def test_the_word_of_python_is_understood_on_the_command_line(here: Path) -> None:
    arguments = ["fit", "japanese-vowels", "--hidden-size", "0"]
    assert "hidden_size=0" in invoke(*arguments).stderr
    assert "batch=0" in invoke("bench", "--batch", "0").stderr


@pytest.mark.parametrize("names", [["a", "b"], ["flow, m3/s", "x"], ['say "no"', "b"], [""]])
def test_names_between_commas_are_read_as_they_are_written(names: list[str]) -> None:
    assert listed(joined(names)) == names


# Options that would do nothing

STEPS = ("fit", "steps.csv", "--id", "id", "--time", "t", "--target", "y")
RIVERS = (*STEPS, "--task", "tagging")
IDLE = [
    ((*STEPS, "--test", "steps.csv", "--test-fraction", 0.2), "--test-fraction", "--test names the test part"),
    (("fit", "japanese-vowels", "--test-fraction", 0.2), "--test-fraction", "has a test part of its own"),
    (("compare", "X_TRAIN.ts", "--test-fraction", 0.2), "--test-fraction", "X_TEST.ts, which lies beside X_TRAIN.ts"),
    (("tune", "X_TRAIN.ts", "--test-fraction", 0.2), "--test-fraction", "X_TEST.ts, which lies beside X_TRAIN.ts"),
    ((*STEPS, "--cell", "lstm-2", "--layers", 3), "--layers", "lstm-2 has two layers"),
    ((*RIVERS, "--test", "steps.csv", "--test-fraction", 0.2), "--test-fraction", "--test names the test part"),
    ((*RIVERS, "--embedding", 8), "--embedding", "a step of a table is numbers"),
    ((*RIVERS, "--word-dropout", 0.5), "--word-dropout", "a step of a table is numbers"),
    (
        ("fit", "names.conll", "--validation-file", "names.conll", "--validation", 0.3), "--validation",
        "--validation-file names the validation part",
    ),
    (("fit", "book.txt", "--test", "book.txt", "--test-fraction", 0.2), "--test-fraction", "--test names"),
    (("fit", "book.txt", "--least", 3), "--least", "no word is a token unless --level word"),
    (("predict", "run", "X_TEST.ts", "--id", "id"), "--id", "X_TEST.ts has no columns to name"),
    (("predict", "run", "steps.csv", "--overwrite"), "--overwrite", "there is no --out to replace"),
]  # fmt: skip


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    table(folder / "steps.csv"), sold(folder / "sold.csv"), book(folder / "book.txt"), names(folder / "names.conll")
    for part in ("TRAIN", "TEST"):
        (folder / f"X_{part}.ts").write_text("@classLabel true a b\n@data\n1,2,3:a\n3,2,1:b\n1,2,2:a\n3,1,1:b\n")
    return folder


@pytest.mark.parametrize("arguments, flag, why", IDLE, ids=[f"{line[0][0]} {line[1]}" for line in IDLE])
def test_an_option_that_would_do_nothing_is_refused(
    files: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], flag: str, why: str
) -> None:
    monkeypatch.chdir(files)
    result = invoke(*arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert re.fullmatch(f"anyrnn: {flag} would do nothing here: .*{why}.*; leave it out\n", result.stderr), (
        result.stderr
    )


@pytest.mark.parametrize(
    "arguments, says",
    [
        ((*RIVERS, "--pool", "last"), "--pool is for sequences, and the task here is tagging"),
        (("fit", "sold.csv", *SOLD, "--context", 500), "got context=500, expected at most"),
        (("fit", "sold.csv", *SOLD, "--encoding", "latin-0"), "encoding: got 'latin-0', which is not known"),
        ((*STEPS[:4], "--target", "y", "--delta-time"), "which takes the column that orders the rows"),
        (("fit", "X_TRAIN.ts", "--delta-time"), "delta_time"),
        ((*STEPS, "--patience", 3), "patience needs a validation part"),
    ],
)
def test_an_option_that_needs_another_is_refused_without_it(
    files: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], says: str
) -> None:
    monkeypatch.chdir(files)
    result = invoke(*arguments)
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
    assert says in result.stderr


def test_the_help_of_tune_is_of_its_own_tasks_alone() -> None:
    words = " ".join(invoke("tune", "--help").stdout.split())
    assert "[default: 20, more if the sequences are few] " in words
    assert not re.search("tagging|forecast|texts?:|series,|spans|TEXT", words)
