"""What was trained outlives what comes after: full disks, signals, closed and narrow terminals, other alphabets."""

import csv
import errno
import importlib
import io
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from typer.testing import CliRunner, Result

import anyrnn
from anyrnn.workbench.cli import app
from anyrnn.workbench.compare import Results, compare, fit
from anyrnn.workbench.data import Dataset, load
from anyrnn.workbench.keeping import keep
from anyrnn.workbench.runs import open_run
from anyrnn.workbench.sequences import Sequences
from anyrnn.workbench.train import Settings, scored_epochs, train

#: The module that saves a run; in the package, its function of the same name hides it.
SAVING = importlib.import_module("anyrnn.workbench.compare")

SCRIPT = Path(sys.executable).parent / "anyrnn"
QUICK = Settings(hidden_size=4, epochs=1)
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "80"}
FIT = ("fit", "d.csv", "--id", "id", "--time", "t", "--target", "y", "--hidden", "4", "--epochs", "1")


def invoke(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, list(map(str, arguments)))


def table(path: Path, first: int = 0, count: int = 24, name: str = "s{}", times: Callable[[int], int] = int) -> Path:
    """Sequences of 3 to 6 steps: is the sum of `a` positive."""
    rows = []
    for k in range(first, first + count):
        values = [((7 * k + 3 * t) % 11 - 5) / 5 for t in range(3 + k % 4)]
        lines = [f"{name.format(k)},{t},{a},{'up' if sum(values) > 0 else 'down'}" for t, a in enumerate(values)]
        rows += sorted(lines, key=lambda line: times(int(line.split(",")[1])))
    path.write_text("\n".join(["id,t,a,y", *rows, ""]), encoding="utf-8")
    return path


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    data = table(tmp_path_factory.mktemp("data") / "d.csv")
    loaded = load(data, id_column="id", time_column="t", target_column="y")
    return compare(loaded, ["rnn", "bilstm", "peephole-lstm"], seeds=2, settings=QUICK)


@pytest.fixture(scope="module")
def run(results: Results, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return results.save(tmp_path_factory.mktemp("run") / "run")


# Columns are those of the training


def test_predict_sorts_as_training_did_without_being_told(here: Path, run: Path) -> None:
    table(here / "in order.csv", 100)
    table(here / "backwards.csv", 100, times=lambda t: -t)
    sorted_, backwards = (invoke("predict", run, f"{name}.csv") for name in ("in order", "backwards"))
    assert sorted_.exit_code == 0, sorted_.output
    assert (sorted_.stdout, sorted_.stderr) == (backwards.stdout, backwards.stderr)
    unsorted = invoke("predict", run, "backwards.csv", "--time", "a")  # what is said counts
    assert unsorted.exit_code != 0 or unsorted.stdout != sorted_.stdout


def test_a_column_of_the_training_that_is_not_there_is_noted_or_refused(here: Path, run: Path) -> None:
    lines = table(here / "new.csv", 100).read_text().splitlines()
    for name, column in (("no id", 0), ("no time", 1)):
        rows = [",".join(v for k, v in enumerate(line.split(",")) if k != column) for line in lines]
        (here / f"{name}.csv").write_text("\n".join([*rows, ""]))
    assert "column 'id', the id (id_column, --id), is not there" in invoke("predict", run, "no id.csv").stderr
    noted = invoke("predict", run, "no time.csv")
    assert "column 't', by which the steps were sorted in training, is not there" in noted.stderr
    assert noted.stdout == invoke("predict", run, "new.csv").stdout
    renamed = (here / "new.csv").read_text().replace("id,t,a,y", "who,when,a,truth")
    (here / "renamed.csv").write_text(renamed)
    told = invoke("predict", run, "renamed.csv", "--id", "who", "--time", "when", "--target", "truth")
    assert (told.stdout, told.stderr) == (noted.stdout, invoke("predict", run, "new.csv").stderr)


# A truth that is missing or unknown


def without_truth(predictions: str) -> list[tuple[str, ...]]:
    return [tuple(v for k, v in row.items() if k != "truth") for row in csv.DictReader(io.StringIO(predictions))]


@pytest.mark.parametrize(
    ("changed", "scored", "note"),
    [
        ({"s101": ""}, 23, "d.csv: id 's101': this sequence has no target 'y': predicted, but not scored"),
        ({"s101": "icu"}, 23, "'s101'.* a target 'y' that the model cannot predict: 'icu', expected one of down, up"),
        ({"s101": "", "s103": "icu", "s105": "er"}, 21, "2 of 24 .* the first at d.csv: id 's103', .*: 'icu', 'er', "),
        ({"s101": "up/down"}, 23, "id 's101', t 1.: target 'y' is 'down', but 'up' in the first .* counts as missing"),
        ({f"s{k}": "" for k in range(100, 124)}, 0, None),
        ({f"s{k}": "icu" for k in range(100, 124)}, 0, "24 of 24 sequences, .*: 'icu', expected one of down, up"),
    ],
    ids=["missing", "unknown", "several", "varies", "all missing", "all unknown"],
)
def test_all_is_predicted_and_what_has_a_truth_is_scored(
    here: Path, run: Path, changed: dict[str, str], scored: int, note: str | None
) -> None:
    header, *lines = table(here / "d.csv", 100).read_text().splitlines()
    whole = invoke("predict", run, "d.csv")
    seen: dict[str, int] = {}
    rows = []
    for line in lines:
        name, rest = line.split(",", 1)
        if name in changed:
            choices = changed[name].split("/")
            rest = f"{rest.rpartition(',')[0]},{choices[seen.get(name, 0) % len(choices)]}"
            seen[name] = seen.get(name, 0) + 1
        rows.append(f"{name},{rest}")
    (here / "d.csv").write_text("\n".join([header, *rows, ""]))
    result = invoke("predict", run, "d.csv")
    assert (result.exit_code, without_truth(result.stdout)) == (0, without_truth(whole.stdout))
    assert (note is None) or re.search(note, result.stderr), result.stderr
    count = f"on {scored} of 24 sequences\n"
    assert (count in result.stderr) is bool(scored)
    if scored:
        truth = {line.split(",")[0]: line.rpartition(",")[2] for line in lines}
        right = [truth[row.split(",")[0]] == row.split(",")[1] for row in result.stdout.splitlines()[1:]
                 if row.split(",")[0] not in changed]  # fmt: skip
        assert f"accuracy {sum(right) / scored:.4g} {count}" in result.stderr


def test_the_advice_of_predict_names_no_option_that_it_lacks(here: Path, run: Path) -> None:
    table(here / "d.csv")
    lines = (here / "d.csv").read_text().splitlines()
    options = invoke("predict", "--help").stdout
    for value in ("", "low", "1e400"):
        (here / "bad.csv").write_text("\n".join([*lines, f"z,0,{value},up", ""]))
        result = invoke("predict", run, "bad.csv")
        assert (result.exit_code, result.stdout) == (2, "")
        assert all(option in options for option in re.findall(r"--[a-z-]+", result.stderr)), result.stderr


# Where it cannot be saved


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EROFS, errno.EIO, errno.EDQUOT])
def test_a_disk_that_fails_at_the_end_costs_neither_table_nor_run(
    here: Path, monkeypatch: pytest.MonkeyPatch, error: int
) -> None:
    table(here / "d.csv")
    (here / "elsewhere").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(here / "elsewhere"))
    save_model = SAVING.save_model

    def failing(folder: Path, model: Any) -> None:
        if "elsewhere" not in str(folder):
            raise OSError(error, os.strerror(error))
        save_model(folder, model)

    monkeypatch.setattr(SAVING, "save_model", failing)
    result = invoke(*FIT, "--out", "a/b/run")
    assert result.exit_code == 1
    assert "test accuracy" in result.stdout
    assert "majority class" in result.stdout
    assert re.search(rf"anyrnn: a/b/run: .*{os.strerror(error)}.* The run is in \S+ instead\n", result.stderr)
    assert sorted(p.name for p in here.iterdir()) == ["d.csv", "elsewhere"]
    (saved,) = (here / "elsewhere").glob("anyrnn-*/run")
    assert str(saved) in result.stderr
    assert open_run(saved).model().network.name == "lstm"


def test_if_it_cannot_be_kept_anywhere_it_is_shown(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    table(here / "d.csv")
    monkeypatch.setattr(SAVING, "save_model", failing)
    result = invoke(*FIT)
    assert result.exit_code == 1
    assert "majority class" in result.stdout
    assert "Report:" not in result.stdout
    assert "Nor could the run be kept anywhere else, but the same command with --resume goes on" in result.stderr
    monkeypatch.undo()
    monkeypatch.chdir(here)
    resumed = invoke(*FIT, "--resume")
    assert resumed.exit_code == 0, resumed.output
    assert "[1/1]" not in resumed.stdout, "nothing is trained again"
    assert open_run(here / "runs/d").model()


def test_whoever_saves_second_takes_the_next_number(results: Results, here: Path) -> None:
    folders = [results.save("run", numbered=True) for _ in range(3)]
    assert folders == [Path("run"), Path("run-2"), Path("run-3")]
    assert keep(results, Path("run")).folder == here / "run-2-2"


def test_two_that_save_at_once_get_two_folders(results: Results, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other one is always faster by a moment: it takes the name between the look and the rename."""
    rename, taken = Path.rename, []

    def slow(self: Path, target: Path) -> Path:
        if self.name == "new" and len(taken) < 2:
            taken.append(Path(target))
            taken[-1].mkdir()
            (taken[-1] / "results.json").write_text("theirs")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", slow)
    assert results.save("run", numbered=True) == Path("run-3")
    assert [(path / "results.json").read_text() for path in taken] == ["theirs", "theirs"]
    taken.clear()
    with pytest.raises(anyrnn.AnyRNNError, match="other: this has appeared in the meantime"):
        results.save("other")
    assert (here / "other" / "results.json").read_text() == "theirs"


def test_a_folder_that_is_there_is_filled_and_not_replaced(results: Results, here: Path) -> None:
    (here / "mounted").mkdir()
    number = (here / "mounted").stat().st_ino
    for overwrite in (False, True):
        results.save("mounted", overwrite=overwrite)
        assert (here / "mounted").stat().st_ino == number  # a mounted disk, or where somebody's shell stands
        assert sorted(p.name for p in (here / "mounted").iterdir()) == ["models", "report.html", "results.json"]
        assert open_run("mounted").model("bilstm")


def test_names_that_are_no_unicode_can_be_saved(results: Results, here: Path) -> None:
    odd = replace(results, dataset=replace(results.dataset, name="caf\udce9", target="\ud800"), command="anyrnn \udcff")
    run = open_run(odd.save("run"))
    assert (run.results["dataset"]["name"], run.results["dataset"]["target"]) == ("caf\udce9", "\ud800")


@pytest.mark.parametrize("scale", [1e-30, 1e-10, 1.0, 1e18, 1e30, 1e37])
def test_numbers_of_any_size_are_trained_saved_and_shown(here: Path, scale: float) -> None:
    x = tuple(torch.full((3 + k % 3, 1), float(k)) for k in range(20))
    part = Sequences(x, torch.arange(1.0, 21.0) * scale, tuple(map(str, range(20))))
    results = fit(Dataset("n", ("a",), None, "n", part, part, "made here"), "rnn", settings=QUICK)
    saved = open_run(results.save("run")).results
    (run,) = saved["models"][0]["runs"]
    spread = torch.arange(1.0, 21.0).double().std(correction=0).item() * scale
    assert 0.1 * spread < run["score"] < 10 * spread
    page = (here / "run/report.html").read_text()
    assert not re.search(r"\bnan\b|\binf\b", page, re.IGNORECASE)
    assert re.search(r"[1-9]", results.verdict.replace("20 test", ""))


# Signals


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="there are none on Windows")
@pytest.mark.long
@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_a_signal_to_end_keeps_what_was_finished_as_an_interrupt_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    arguments = ("compare", "japanese-vowels", "--hidden", "6", "--seeds", "1", "--out", "run", "--epochs", "15")
    before = signal.signal(getattr(signal, name), signal.SIG_DFL)  # it is inherited, and nohup has SIGHUP ignored
    process = subprocess.Popen(
        [SCRIPT, *arguments, "--cells", "rnn,lstm,peephole-lstm"],
        cwd=tmp_path, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    signal.signal(getattr(signal, name), before)
    try:
        while not process.stdout.readline().startswith("[2/3] LSTM"):
            assert process.poll() is None, process.stderr.read()
        for _ in range(2):  # whoever sends one often sends two
            process.send_signal(getattr(signal, name))
        _, stderr = process.communicate(timeout=200)
    finally:
        process.kill()
    assert process.returncode == 128 + getattr(signal, name)
    kept = (
        r"The networks that had all their runs \((RNN|RNN, LSTM)\) are saved in run\. What was trained is kept: "
        r"the same command with --resume goes on in run\."
    )
    assert re.fullmatch(rf"Ended by {name}\. {kept}\n", stderr), stderr
    assert open_run(tmp_path / "run").model("rnn")
    if name == "SIGTERM":
        monkeypatch.chdir(tmp_path)
        again = invoke(*arguments, "--cells", "rnn,lstm,peephole-lstm", "--resume")
        assert (again.exit_code, "RNN, seed" in again.stdout) == (0, False), again.output
        assert open_run(tmp_path / "run").names == ("rnn", "lstm", "peephole-lstm")


def test_the_handlers_of_others_are_left_alone(here: Path) -> None:
    before = signal.getsignal(signal.SIGTERM)
    assert invoke("doctor").exit_code == 0
    assert signal.getsignal(signal.SIGTERM) is before


# Output that cannot be written


def process(shell: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        ["/bin/sh", "-c", f'A="{SCRIPT}"; {shell}'],
        cwd=cwd, env={**ENVIRONMENT, **environment}, capture_output=True, timeout=200, check=False,
    )  # fmt: skip


@pytest.mark.grid(2)
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no such device")
@pytest.mark.parametrize(
    ("shell", "status", "said"),
    [
        ('"$A" predict RUN d.csv > /dev/full', 2, rb"anyrnn: stdout: this cannot be written: No space left .*--out.\n"),
        ('"$A" predict RUN d.csv >&-', 2, rb"anyrnn: stdout: this cannot be written: it is closed.*--out.\n"),
        ('"$A" predict RUN d.csv 2>&-', 0, rb""),
        ('"$A" predict RUN d.csv --out /proc/p.csv', 2, rb"anyrnn: /proc/p.csv: this cannot be written: .*\n"),
        ('"$A" predict RUN d.csv | true', 0, rb".*"),
        ('"$A" --help > /dev/full', 1, rb"anyrnn: stdout: not all could be written: No space left on device\n"),
        *(
            pytest.param(*case, marks=pytest.mark.long)
            for case in (
                ('"$A" FIT --out run > /dev/full', 1, rb"anyrnn: stdout: not all could be written: No space left .*\n"),
                ('"$A" FIT --out run >&- 2>&-', 1, rb""),
                ('"$A" FIT --out run | head -c 1 > /dev/null', 0, rb""),
            )
        ),
    ],
    ids=lambda value: value.replace('"$A" ', "")[:40] if isinstance(value, str) else "",
)
def test_what_cannot_be_written_is_said_in_a_line_and_nothing_is_lost(
    tmp_path: Path, run: Path, shell: str, status: int, said: bytes
) -> None:
    table(tmp_path / "d.csv")
    result = process(shell.replace("RUN", str(run)).replace("FIT", " ".join(FIT)), tmp_path)
    assert b"Traceback" not in result.stderr
    assert b"Exception ignored" not in result.stderr
    assert result.returncode == status, result.stderr
    errors = re.sub(rb"accuracy \S+ on 24 sequences\n", b"", result.stderr)
    assert re.fullmatch(said, errors), errors
    if "FIT" in shell:
        assert open_run(tmp_path / "run").model()


@pytest.mark.long
def test_predictions_are_utf_8_whatever_the_terminal_writes(tmp_path: Path, run: Path) -> None:
    table(tmp_path / "d.csv", name="患者 {}")
    utf8 = invoke("predict", run, tmp_path / "d.csv")
    assert "患者 3," in utf8.stdout
    for encoding in ("cp1252", "ascii"):
        other = process(f'"$A" predict {run} d.csv', tmp_path, PYTHONIOENCODING=encoding)
        assert (other.returncode, other.stdout, other.stderr) == (0, utf8.stdout.encode(), utf8.stderr.encode())


@pytest.mark.long
def test_an_alphabet_without_our_signs_gets_others(tmp_path: Path) -> None:
    table(tmp_path / "患者.csv")
    command = " ".join(FIT).replace("d.csv", "患者.csv")
    result = process(f'"$A" {command} --out run', tmp_path, PYTHONIOENCODING="ascii")
    assert (result.returncode, result.stderr) == (0, b"")
    assert b"us a step" in result.stdout
    assert rb"\u60a3\u8005: 17 training" in result.stdout
    assert open_run(tmp_path / "run").results["dataset"]["name"] == "患者"


# Narrow terminals


@pytest.mark.parametrize("width", [1, 10, 20, 30, 40, 50, 60, 80, 120])
def test_a_narrow_terminal_never_loses_the_names_or_the_scores(results: Results, width: int) -> None:
    console = Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None)
    console.print(results)
    text = console.file.getvalue()
    assert max(map(len, text.splitlines())) <= width
    letters = re.sub(r"\s", "", text)
    rows = [*(entry.model.network.title for entry in results.entries), *(b.name for b in results.baselines)]
    if width >= 20:
        for entry in results.entries:
            assert f"{entry.score_mean:.3f} ± {entry.score_std:.3f}".replace(" ", "") in letters
    if width in (10, 20, 120):  # where no column stands between the lines of a name
        assert all(name.replace(" ", "") in letters for name in rows)
    else:
        for name in rows:
            assert all(letter in letters for letter in name.split()[0][: min(width // 4, 5)]), name


@pytest.mark.parametrize("width", [40, 50, 60])
def test_each_row_of_a_narrow_table_begins_with_its_name(results: Results, width: int) -> None:
    console = Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None)
    console.print(results)
    lines = console.file.getvalue().splitlines()
    scores = [line for line in lines if re.search(r"\d\.\d{3}", line)]
    names = ["RNN", "bidirect", "peephole", "majority", "1-neares", "1-neares", "ridge", "ridge"]
    assert [name for name, line in zip(names, scores, strict=True) if line.startswith(name)] == names


# The curve of the test part


@pytest.mark.parametrize(
    ("epochs", "trained", "tested", "scored"),
    [
        (20, 100, 30, set(range(1, 21))),
        (20, 100, 100, set(range(1, 21))),
        (100, 36, 360, {1, 12, 23, 34, 45, 56, 67, 78, 89, 100}),
        (200, 1, 1000, {1, 101, 200}),
        (2, 1, 1000, {1, 2}),
        (1, 1, 1000, {1}),
    ],
)
def test_the_test_part_is_scored_at_the_ends_and_as_often_as_is_cheap(
    epochs: int, trained: int, tested: int, scored: set[int]
) -> None:
    assert scored_epochs(epochs, trained, tested) == scored


def test_a_large_test_part_is_scored_seldom_and_the_same(results: Results, here: Path) -> None:
    data = results.dataset
    large = replace(data, train=data.train.subset(range(4)), test=data.train)
    settings = Settings(hidden_size=4, epochs=12)
    (entry,) = compare(large, ["rnn"], seeds=1, settings=settings).entries
    history = entry.runs[0].history
    assert [point.epoch for point in history] == list(range(1, 13))
    scored = {point.epoch: point.test_score for point in history if point.test_score is not None}
    assert 3 <= len(scored) < 12
    assert {1, 12} <= scored.keys()
    assert scored[12] == entry.runs[0].score
    small = replace(large, test=data.train.subset(range(4)))
    _, run = train(entry.model.network, small, replace(settings, threads=1), 0)
    assert [p.train_loss for p in run.history] == [p.train_loss for p in history]
    page = (fit(large, "rnn", settings=settings).save("run") / "report.html").read_text()
    assert f"Scored after {len(scored)} of the 12 epochs" in page
    assert (
        json.loads((here / "run/results.json").read_text())["models"][0]["runs"][0]["history"][1]["test_score"] is None
    )
