"""A run folder from anyone: opening it runs nothing, reads nothing outside, takes no memory that it does not fill."""

import hashlib
import json
import resource
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import anyrnn
from anyrnn.workbench.compare import Results, fit
from anyrnn.workbench.data import Dataset
from anyrnn.workbench.models import network
from anyrnn.workbench.runs import open_run
from anyrnn.workbench.sequences import Sequences
from anyrnn.workbench.train import Settings

CELL = """
import torch
{first}

class Own(torch.nn.Module):
    def __init__(self, input_size, hidden_size):
        super().__init__()
        self.hidden_size = hidden_size
        self.new = torch.nn.Linear(input_size + hidden_size, hidden_size)

    def forward(self, x, h):
        return torch.tanh(self.new(torch.cat((x, h), dim=1)))
"""
MARK = "open({path!r}, 'w').close()"  # leaves a file where it was run
X = tuple(torch.randn(3, 2, generator=torch.Generator().manual_seed(k)) for k in range(8))


def trained(cell: str) -> Results:
    part = Sequences(X, torch.tensor([0, 1] * 4), tuple(map(str, range(8))))
    dataset = Dataset("made", ("a", "b"), ("no", "yes"), "y", part, part, "made here")
    return fit(dataset, cell, settings=Settings(hidden_size=4, epochs=1))


@pytest.fixture
def named(tmp_path: Path) -> Callable[[str], str]:
    """Name a module that no other test has imported."""
    return lambda stem: f"{stem}_of_{tmp_path.name}"


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, named: Callable[[str], str]) -> tuple[Path, str, Path]:
    """A run with a cell of someone's own: its folder, the cell's name, and the file that importing it leaves."""
    mark, module = tmp_path / "code was run", named("cell")
    source = tmp_path / "source"
    source.mkdir()
    (source / f"{module}.py").write_text(CELL.format(first=MARK.format(path=str(mark))))
    monkeypatch.chdir(source)
    run = trained(f"{module}:Own").save(tmp_path / "run")
    mark.unlink()
    del sys.modules[module]
    return run, f"{module}:Own", mark


def test_a_cell_that_nobody_named_is_not_imported(own: tuple[Path, str, Path]) -> None:
    run, name, mark = own
    for others in ([], ["lstm"], ["another:Own"], [name.replace("Own", "Other")]):
        with pytest.raises(anyrnn.AnyRNNError, match=f"Python code, '{name}', .* --cells {name}, or open_run"):
            open_run(run, cells=others).predict(X)
    assert not mark.exists()


def test_a_cell_that_was_named_is_imported_from_where_the_user_stands(own: tuple[Path, str, Path]) -> None:
    run, name, mark = own
    assert len(open_run(run, cells=[name]).predict(X).values) == len(X)
    assert mark.exists()
    assert len(open_run(run, cells=name).predict(X).values) == len(X)


@pytest.mark.parametrize("how", ["stands in it", "on the path", "as a link", "package", "namespace"])
def test_nothing_is_imported_from_the_run_folder_though_it_was_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, named: Callable[[str], str], how: str
) -> None:
    mark, module = tmp_path / "code was run", named("planted")
    (tmp_path / f"{module}.py").write_text(CELL.format(first=""))
    monkeypatch.chdir(tmp_path)
    run = trained(f"{module}:Own").save("run").resolve()
    del sys.modules[module]
    (tmp_path / f"{module}.py").unlink()
    code, name = CELL.format(first=MARK.format(path=str(mark))), module
    (run / f"{module}.py").write_text(code)
    if how == "stands in it":
        monkeypatch.chdir(run)
    if how == "on the path":
        monkeypatch.syspath_prepend(str(run))
    if how == "as a link":
        (tmp_path / f"{module}.py").symlink_to(run / f"{module}.py")
    if how in ("package", "namespace"):  # runs/evil.py by way of the current folder
        name = f"run.{module}"
        if how == "package":
            (run / "__init__.py").write_text(MARK.format(path=str(mark)))
        rename(run, module, name)
    with pytest.raises(anyrnn.AnyRNNError, match=r"importing .* failed|in the folder of the run, and nothing is"):
        open_run(run, cells=[f"{name}:Own"]).predict(X)
    assert not mark.exists()


def rename(run: Path, old: str, new: str) -> None:
    """Let the run name its model otherwise, throughout."""
    for path in [run / "results.json", run / f"models/{old}.Own.json"]:
        path.write_text(path.read_text().replace(f"{old}:Own", f"{new}:Own"))
    for suffix in ("json", "safetensors"):
        (run / f"models/{old}.Own.{suffix}").rename(run / f"models/{new}.Own.{suffix}")


def test_a_helper_of_a_named_cell_is_not_taken_from_the_run_folder_either(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, named: Callable[[str], str]
) -> None:
    module, helper, mark = named("cell"), named("helper"), tmp_path / "code was run"
    site = tmp_path / "site"
    site.mkdir()
    (site / f"{module}.py").write_text(CELL.format(first=f"import {helper}"))
    (site / f"{helper}.py").write_text("")
    monkeypatch.syspath_prepend(str(site))
    run = trained(f"{module}:Own").save(tmp_path / "run")
    for each in (module, helper):
        del sys.modules[each]
    (run / f"{helper}.py").write_text(MARK.format(path=str(mark)))
    monkeypatch.chdir(run)
    before = list(sys.path)
    assert open_run(run, cells=[f"{module}:Own"]).predict(X)
    assert not mark.exists()
    assert sys.path == before


def test_what_a_module_adds_to_the_path_of_the_interpreter_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, named: Callable[[str], str]
) -> None:
    module = named("extends")
    (tmp_path / f"{module}.py").write_text(CELL.format(first="import sys; sys.path.append('/added')"))
    monkeypatch.chdir(tmp_path)
    before = list(sys.path)
    network(f"{module}:Own")
    assert sys.path == [*before, "/added"]
    sys.path[:] = before


# What results.json and a model's description may say


@pytest.fixture(scope="module")
def lstm() -> Results:
    return trained("lstm")


@pytest.fixture
def run(lstm: Results, tmp_path: Path) -> Path:
    return lstm.save(tmp_path / "ours")


def edited(run: Path, name: str, **changes: Any) -> None:
    content = json.loads((run / name).read_text())
    (run / name).write_text(json.dumps({**content, **changes}))


@pytest.mark.parametrize(
    "name",
    ["../../x", "/etc/passwd", "..", "", ".", "a/b", "a\\b", "x:y:z", "C:x/y", "lstm\0", 5, None, True, 1.5, [], {},
     ["lstm"], "lstm/../lstm", "LSTM", "a:b/../../c", "lstm ", "a" * 300],
    ids=lambda v: repr(v)[:20],
)  # fmt: skip
def test_a_name_that_is_none_is_refused_before_it_is_joined_to_a_path(run: Path, name: object) -> None:
    for suffix in ("json", "safetensors"):
        shutil.copy(run / f"models/lstm.{suffix}", run.parent / f"x.{suffix}")
    edited(run, "results.json", models=[{"name": name}], best=name)
    with pytest.raises(anyrnn.AnyRNNError, match="it does not list its models"):
        open_run(run)


@pytest.mark.parametrize(
    "models", [5, None, [], {}, "lstm", [5], [None], [{}], [{"name": "lstm"}, {"name": "lstm"}], [["name"]]], ids=repr
)
def test_models_that_are_none_are_refused(run: Path, models: object) -> None:
    edited(run, "results.json", models=models)
    with pytest.raises(anyrnn.AnyRNNError, match="it does not list its models"):
        open_run(run)


@pytest.mark.grid(2)
@pytest.mark.parametrize(
    "size", [10**9, 10**5, 2**63, 2**64, -1, 0, 4.0, "4", True, None, [4]], ids=lambda v: repr(v)[:20]
)
@pytest.mark.parametrize("own_cell", [False, True], ids=["ours", "own"])
def test_a_size_that_the_weights_do_not_fill_takes_no_memory(
    run: Path, own: tuple[Path, str, Path], size: object, own_cell: bool
) -> None:
    folder, name = (own[0], own[1]) if own_cell else (run, "lstm")
    edited(folder, f"models/{name.replace(':', '.')}.json", hidden_size=size)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(anyrnn.AnyRNNError, match="hidden_size"):
        open_run(folder, cells=[name]).model()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1 << 16  # KiB


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scaler": {"mean": [0.0, 0.0], "std": [10**400, 1.0]}}, "scaler: "),
        ({"scaler": {"mean": [0.0, "1"], "std": [1.0, 1.0]}}, "got scaler="),
        ({"scaler": {"mean": [0.0, 0.0], "std": [1.0, 0.0]}}, "positive"),
        ({"classes": ["no", "no"]}, "got classes=.*expected different names"),
        ({"classes": ["no", 5]}, "got classes="),
        ({"features": "ab"}, "got features='ab'"),
        ({"target": 5}, "got target=5"),
        ({"target_scale": [0, 10**400], "classes": None}, "got target_scale="),
        ({"pool": ["last"]}, "got pool="),
        ({"seed": "0"}, "got seed='0'"),
        ({"id_column": 5}, "got id_column=5"),
        ({"time_column": ["t"]}, "got time_column="),
        ({"format": True}, "its format is True"),
        ({"format": [1]}, "its format is"),
    ],
    ids=lambda v: str(v)[:40],
)
def test_a_description_of_other_types_is_refused(run: Path, changes: dict[str, Any], message: str) -> None:
    edited(run, "models/lstm.json", **changes)
    with pytest.raises(anyrnn.AnyRNNError, match=f"lstm.json: .*{message}"):
        open_run(run).model()


def test_nested_and_endless_files_are_refused(run: Path) -> None:
    (run / "results.json").write_text("[" * 100_000)
    with pytest.raises(anyrnn.AnyRNNError, match=r"results.json: it is not JSON"):
        open_run(run)
    (run / "results.json").unlink()
    (run / "results.json").symlink_to("/dev/zero")
    with pytest.raises(anyrnn.AnyRNNError, match=r"results.json: it cannot be read .it is not a file"):
        open_run(run)


def test_weights_that_are_not_finite_are_refused(run: Path) -> None:
    from safetensors.torch import load, save  # noqa: PLC0415

    weights = load((run / "models/lstm.safetensors").read_bytes())
    weights["linear.bias"][0] = torch.nan
    data = save(weights)
    (run / "models/lstm.safetensors").write_bytes(data)
    edited(run, "models/lstm.json", sha256=hashlib.sha256(data).hexdigest())
    with pytest.raises(anyrnn.AnyRNNError, match=r"linear.bias holds NaN or infinity"):
        open_run(run).model()


def test_opening_a_run_leaves_the_random_state_alone(run: Path) -> None:
    before = torch.get_rng_state()
    open_run(run).model()
    assert torch.equal(torch.get_rng_state(), before)


def test_a_run_of_an_earlier_version_which_noted_no_columns_opens(run: Path) -> None:
    content = json.loads((run / "models/lstm.json").read_text())
    del content["id_column"], content["time_column"]
    (run / "models/lstm.json").write_text(json.dumps(content))
    model = open_run(run).model()
    assert (model.id_column, model.time_column) == (None, None)


@pytest.mark.parametrize("given", [[[1.0, 2.0]], "x", None, [[object()]]], ids=["a list", "text", "None", "objects"])
def test_what_is_no_sequence_is_refused_or_read(run: Path, given: object) -> None:
    model = open_run(run).model()
    if isinstance(given, list) and isinstance(given[0][0], float):
        assert model.predict([given]).values == model.predict([torch.tensor(given)]).values
        assert model.predict([torch.tensor(given).numpy()]).values == model.predict([torch.tensor(given)]).values
        return
    with pytest.raises(anyrnn.AnyRNNError, match=r"lstm: sequence 0 is a .*, expected a tensor or an array"):
        model.predict([given])
