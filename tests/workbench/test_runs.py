"""The run folder: whole or absent, never in the place of anything else, and loaded only if everything fits."""

import hashlib
import json
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load as load_weights
from safetensors.torch import save as save_weights

import anyrnn
from anyrnn.workbench.compare import Results, compare, fit
from anyrnn.workbench.data import Dataset, load
from anyrnn.workbench.models import NETWORKS
from anyrnn.workbench.runs import check_destination, open_run
from anyrnn.workbench.sequences import Sequences
from anyrnn.workbench.train import Settings

QUICK = Settings(hidden_size=5, epochs=1)

OWN_CELL = """
import torch
from torch import nn

class Tied(nn.Module):  # one tensor under two names, and none of it contiguous
    def __init__(self, input_size, hidden_size):
        super().__init__()
        self.hidden_size = hidden_size
        self.w = nn.Linear(input_size, {width})
        self.u = nn.Parameter(torch.randn(hidden_size, {width}).t())
        self.v = self.u

    def forward(self, x, h):
        return torch.tanh(self.w(x) + h @ self.u.t() + h @ self.v.t())
"""


@pytest.fixture(scope="module")
def few() -> Dataset:
    vowels = load("japanese-vowels", validation=0)
    return replace(vowels, train=vowels.train.subset(range(0, 270, 9)), test=vowels.test.subset(range(0, 360, 12)))


@pytest.fixture(scope="module")
def results(few: Dataset) -> Results:
    return compare(few, tuple(NETWORKS), seeds=1, settings=QUICK)


@pytest.fixture(scope="module")
def one(few: Dataset) -> Results:
    return fit(few, "lstm", settings=QUICK)


@pytest.fixture
def run(one: Results, tmp_path: Path) -> Path:
    return one.save(tmp_path / "run")


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.long
def test_a_run_folder_holds_json_safetensors_and_the_report_and_nothing_beside_it(
    results: Results, tmp_path: Path
) -> None:
    folder = results.save(tmp_path / "a" / "run")
    files = {f"models/{name}{suffix}" for name in NETWORKS for suffix in (".json", ".safetensors")}
    assert contents(folder).keys() == {"results.json", "report.html", *files}
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["run"]
    assert json.loads((folder / "results.json").read_text()) == json.loads(json.dumps(results.to_dict()))
    assert "<html" in (folder / "report.html").read_text()


def test_a_run_folder_has_the_permissions_of_any_new_folder(one: Results, tmp_path: Path) -> None:
    (tmp_path / "new").mkdir()
    assert one.save(tmp_path / "run").stat().st_mode == (tmp_path / "new").stat().st_mode


@pytest.mark.parametrize("name", NETWORKS)
def test_a_loaded_model_predicts_what_was_scored(results: Results, few: Dataset, tmp_path: Path, name: str) -> None:
    run = open_run(results.save(tmp_path / "run"))
    entry = next(entry for entry in results.entries if entry.model.network.name == name)
    predictions = run.predict(few.test.x, model=name)
    assert predictions.values == entry.runs[0].predictions
    assert torch.equal(predictions.probabilities, entry.model.predict(few.test.x).probabilities)
    assert predictions.labels == tuple(few.classes[k] for k in predictions.values)
    loaded = run.model(name)
    assert replace(loaded, module=entry.model.module, network=entry.model.network) == entry.model


def test_without_a_name_the_best_model_is_taken(results: Results, few: Dataset, tmp_path: Path) -> None:
    run = open_run(results.save(tmp_path / "run"))
    assert run.names == tuple(NETWORKS)
    assert run.model().network.name == results.best.model.network.name


def test_a_number_comes_back_in_its_own_units(tmp_path: Path) -> None:
    x = tuple(torch.full((3 + k % 3, 1), float(k)) for k in range(20))
    part = Sequences(x, torch.arange(20.0) + 500, tuple(map(str, range(20))))
    results = fit(Dataset("n", ("a",), None, "n", part, part, "made here"), "rnn", settings=QUICK)
    predictions = open_run(results.save(tmp_path / "run")).predict(x)
    assert predictions.values == results.entries[0].runs[0].predictions
    assert all(450 < value < 570 for value in predictions.values)
    assert predictions.labels is predictions.probabilities is None
    assert predictions.texts[0] == f"{predictions.values[0]:.9g}"


def test_a_cell_of_the_users_own_is_rebuilt_from_its_class(
    few: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tied_cell_of_a_user.py").write_text(OWN_CELL.format(width="hidden_size"))
    monkeypatch.chdir(tmp_path)
    results = fit(few, "tied_cell_of_a_user:Tied", settings=QUICK)
    run = open_run(results.save("run"), cells=["tied_cell_of_a_user:Tied"])
    assert run.predict(few.test.x).values == results.entries[0].runs[0].predictions


def test_a_cell_that_has_changed_since_is_refused(
    few: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, cells = tmp_path / "changing_cell_of_a_user.py", ["changing_cell_of_a_user:Tied"]
    module.write_text(OWN_CELL.format(width="hidden_size"))
    monkeypatch.chdir(tmp_path)
    fit(few, "changing_cell_of_a_user:Tied", settings=QUICK).save("run")
    cell = __import__("changing_cell_of_a_user").Tied

    def wider(self: torch.nn.Module, input_size: int, hidden_size: int) -> None:
        original(self, input_size, hidden_size)
        self.extra = torch.nn.Parameter(torch.zeros(2))

    original = cell.__init__
    monkeypatch.setattr(cell, "__init__", wider)
    message = r"of another cell than 'changing_.*extra is absent in the file, expected \(2,\) torch.float32"
    with pytest.raises(anyrnn.AnyRNNError, match=message):
        open_run("run", cells=cells).model()
    monkeypatch.setattr(cell, "__init__", original)
    open_run("run", cells=cells).model()
    monkeypatch.delattr(__import__("changing_cell_of_a_user"), "Tied")
    with pytest.raises(anyrnn.AnyRNNError, match=r"run/models/changing_.*has no class Tied"):
        open_run("run", cells=cells).model()


# What is damaged is refused


def edit(name: str, change: Callable[[dict[str, object]], object]) -> Callable[[Path], None]:
    """Rewrite a JSON file of the run folder."""

    def apply(folder: Path) -> None:
        content = json.loads((folder / name).read_text())
        change(content)
        (folder / name).write_text(json.dumps(content))

    return apply


def cut(name: str, size: int) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:size])


def remove(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def reweigh(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    """Replace the weights by others, with a checksum that fits them."""

    def apply(folder: Path) -> None:
        path = folder / "models/lstm.safetensors"
        weights = load_weights(path.read_bytes())
        change(weights)
        path.write_bytes(save_weights(weights))
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        edit("models/lstm.json", lambda content: content.update(sha256=digest))(folder)

    return apply


def no_safetensors(folder: Path) -> None:
    path = folder / "models/lstm.safetensors"
    path.write_bytes(b"these are no weights")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    edit("models/lstm.json", lambda content: content.update(sha256=digest))(folder)


RESULTS, MODEL, WEIGHTS = "results.json", "models/lstm.json", "models/lstm.safetensors"


@pytest.mark.parametrize(
    "damage, message",
    [
        (shutil.rmtree, "run: there is no such folder; expected a folder that"),
        (remove(RESULTS), "results.json: it cannot be read"),
        (cut(RESULTS, 0), "results.json: it is not JSON"),
        (cut(RESULTS, 100), "results.json: it is not JSON"),
        (lambda f: (f / RESULTS).write_text("[]"), "results.json: its format is None"),
        (
            edit(RESULTS, lambda c: c.update(format=3)),
            "results.json: its format is 3, but anyrnn .* reads formats 1 to 2",
        ),
        (edit(RESULTS, lambda c: c.pop("models")), "results.json: it does not list its models"),
        (edit(RESULTS, lambda c: c.update(best="gru")), "results.json: it does not list its models"),
        (remove(MODEL), "lstm.json: it cannot be read"),
        (cut(MODEL, 100), "lstm.json: it is not JSON"),
        (edit(MODEL, lambda c: c.update(format="1")), "lstm.json: its format is '1', but"),
        (edit(MODEL, lambda c: c.pop("scaler")), "lstm.json: it has no 'scaler'"),
        (edit(MODEL, lambda c: c.update(scaler={"mean": [1]})), "lstm.json: got scaler=.*, expected means"),
        (
            edit(MODEL, lambda c: c.update(scaler={"mean": [0], "std": [1]})),
            "lstm.json: .* the scaler has 1 features, exp.*12",
        ),
        (
            edit(MODEL, lambda c: c.update(target_scale=[0, 1])),
            "lstm.json: .* expected either classes or a target scale",
        ),
        (edit(MODEL, lambda c: c.update(classes=3)), "lstm.json: got classes=3, expected different names, or null"),
        (edit(MODEL, lambda c: c.update(network="lstm-3")), "lstm.json: got network='lstm-3', expected the name of"),
        (edit(MODEL, lambda c: c.update(network=3)), "lstm.json: got network=3, expected the name of a network"),
        (edit(MODEL, lambda c: c.update(network="os:system")), "lstm.json: this is the model 'os:system', expected 'l"),
        (edit(MODEL, lambda c: c.update(network="gru")), "lstm.json: this is the model 'gru', expected 'lstm'"),
        (edit(MODEL, lambda c: c.update(hidden_size=7)), r"layer.weight_ih_l0 is \(20, 12\) .* expected \(28, 12\)"),
        (edit(MODEL, lambda c: c.update(hidden_size=0)), "lstm.json: .*hidden_size=0"),
        (edit(MODEL, lambda c: c.update(pool="first")), "lstm.json: .*pool='first'"),
        (edit(MODEL, lambda c: c["classes"].pop()), r"linear.weight is \(9, 5\) .* expected \(8, 5\)"),
        (remove(WEIGHTS), "lstm.safetensors: the weights cannot be read"),
        (cut(WEIGHTS, 1000), "lstm.safetensors: these are not the weights that lstm.json belongs to"),
        (edit(MODEL, lambda c: c.update(sha256="0")), "lstm.safetensors: these are not the weights"),
        (no_safetensors, "lstm.safetensors: its content is damaged .SafetensorError"),
        (reweigh(lambda w: w.pop("linear.bias")), "linear.bias is absent in the file"),
        (reweigh(lambda w: w.update(extra=torch.zeros(1))), r"extra is \(1,\) torch.float32 in the file, expected abs"),
        (reweigh(lambda w: w.update({"linear.bias": torch.zeros(9).double()})), "float64 in the file, expected .*32"),
    ],
)
def test_a_damaged_run_folder_is_refused_with_the_file_that_is_wrong(
    run: Path, damage: Callable[[Path], None], message: str
) -> None:
    open_run(run).model("lstm")
    damage(run)
    with pytest.raises(anyrnn.AnyRNNError, match=message):
        open_run(run).model("lstm")


@pytest.mark.parametrize(
    "x, message",
    [
        (torch.zeros(4, 11), r"sequence 0 has shape \(4, 11\), expected \(T, 12\), .*LPC"),
        (torch.zeros(12), r"sequence 0 has shape \(12,\), expected \(T, 12\)"),
        (torch.zeros(0, 12), r"sequence 0 has shape \(0, 12\), expected \(T, 12\)"),
        (torch.full((4, 12), torch.nan), "sequence 0 holds NaN or infinity, expected finite numbers"),
    ],
)
def test_sequences_that_do_not_fit_the_model_are_refused(run: Path, x: torch.Tensor, message: str) -> None:
    with pytest.raises(anyrnn.AnyRNNError, match=f"lstm: {message}"):
        open_run(run).predict([x])


def test_a_model_that_is_not_there_is_refused(run: Path) -> None:
    with pytest.raises(anyrnn.AnyRNNError, match=r"no model 'LSTM'; the models are lstm\. Did you mean 'lstm'\?"):
        open_run(run).model("LSTM")


# Whole or absent, and never in the place of anything else


def occupied_by_a_file(folder: Path) -> None:
    folder.write_text("mine")


def occupied_by_notes(folder: Path) -> None:
    folder.mkdir()
    (folder / "notes.txt").write_text("mine")


def occupied_by_other_results(folder: Path) -> None:
    folder.mkdir()
    (folder / "results.json").write_text('{"format": 1, "accuracy": 0.9}')


def dangling_link(folder: Path) -> None:
    folder.symlink_to("nowhere")


@pytest.mark.parametrize(
    "occupy, message",
    [
        (occupied_by_a_file, "run: a file of this name is there already"),
        (occupied_by_notes, "run: this folder is there already and holds no run of anyrnn"),
        (occupied_by_other_results, "run: this folder is there already and holds no run of anyrnn"),
        (dangling_link, "run: a file of this name is there already"),
    ],
)
@pytest.mark.parametrize("overwrite", [False, True])
def test_what_is_no_run_is_never_touched(
    one: Results, tmp_path: Path, occupy: Callable[[Path], None], message: str, overwrite: bool
) -> None:
    occupy(tmp_path / "run")
    before = contents(tmp_path)
    with pytest.raises(anyrnn.AnyRNNError, match=message):
        one.save(tmp_path / "run", overwrite=overwrite)
    assert contents(tmp_path) == before


def test_a_run_is_replaced_only_when_asked(run: Path, few: Dataset) -> None:
    other, before = fit(few, "gru", settings=QUICK), contents(run)
    with pytest.raises(anyrnn.AnyRNNError, match=r"run: a run is there already; .* overwrite it"):
        other.save(run)
    assert contents(run) == before
    other.save(run, overwrite=True)
    assert open_run(run).names == ("gru",)
    assert not (run / "models" / "lstm.json").exists()
    assert [p.name for p in run.parent.iterdir()] == ["run"]


@pytest.mark.parametrize("name", ["predictions.csv", "models/mine.json", ".hidden"])
def test_a_file_that_the_user_put_into_a_run_is_not_deleted_with_it(run: Path, one: Results, name: str) -> None:
    (run / name).write_text("mine")
    before = contents(run)
    with pytest.raises(anyrnn.AnyRNNError, match=f"would delete .*{name}, which is no part of the run"):
        one.save(run, overwrite=True)
    assert contents(run) == before


def test_an_empty_folder_is_filled(one: Results, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    assert open_run(one.save(tmp_path / "run")).names == ("lstm",)


def test_a_link_to_a_run_stays_a_link(run: Path, one: Results) -> None:
    link = run.with_name("latest")
    link.symlink_to(run)
    one.save(link, overwrite=True)
    assert link.is_symlink()
    assert sorted(p.name for p in run.parent.iterdir()) == ["latest", "run"]


@pytest.mark.parametrize("there", [False, True])
@pytest.mark.parametrize("failure", [KeyboardInterrupt, OSError("disk full")])
@pytest.mark.parametrize("step", ["save_model", "rename"])
def test_a_write_that_fails_leaves_what_was_there(
    one: Results, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, there: bool, failure: BaseException, step: str
) -> None:
    if there:
        one.save(tmp_path / "run")
    before = contents(tmp_path)
    rename = Path.rename

    def fail(*_: object) -> None:
        raise failure

    def fail_at_the_last_rename(self: Path, target: Path) -> Path:
        last = self.name == "new" or (self.name, self.parent.name) == ("results.json", "new")
        return fail() if last else rename(self, target)

    if step == "rename":
        monkeypatch.setattr(Path, "rename", fail_at_the_last_rename)
    else:
        monkeypatch.setattr(sys.modules[Results.__module__], step, fail)
    expected, said = (anyrnn.AnyRNNError, "disk full") if isinstance(failure, OSError) else (KeyboardInterrupt, "^$")
    with pytest.raises(expected, match=said):
        one.save(tmp_path / "run", overwrite=True)
    assert contents(tmp_path) == before
    assert [p.name for p in tmp_path.iterdir()] == ["run"] * there


@pytest.mark.skipif(getattr(os, "geteuid", lambda: 0)() == 0, reason="root may write anywhere")
def test_a_place_that_cannot_be_written_is_found_before_the_training(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(anyrnn.AnyRNNError, match="is not a folder that can be written to"):
        check_destination(tmp_path / "runs" / "run", overwrite=False)
    tmp_path.chmod(0o700)


def test_a_place_below_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(anyrnn.AnyRNNError, match="file is not a folder that can be written to"):
        check_destination(tmp_path / "file" / "run", overwrite=False)
