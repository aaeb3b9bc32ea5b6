"""Tables that are read in pieces give what whole ones give, in batches that miss no sequence."""

import os
import pickle
import threading
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from typer.testing import CliRunner

from anyrnn.errors import AnyRNNError
from anyrnn.workbench import Dataset, Settings, compare, load, load_for_prediction, ondisk, sequences, streamed
from anyrnn.workbench.baselines import baselines
from anyrnn.workbench.cli.commands import app
from anyrnn.workbench.fingerprint import identity
from anyrnn.workbench.large import ahead, batches
from anyrnn.workbench.models import network
from anyrnn.workbench.ondisk import OnDisk
from anyrnn.workbench.overview import described
from anyrnn.workbench.sequences import Scaler
from anyrnn.workbench.train import train

ROLES: dict[str, Any] = {"id_column": "id", "time_column": "t", "target_column": "y"}
OPTIONS: dict[str, Any] = {**ROLES, "missing": "nan", "gaps": "since", "group_column": "g", "delta_time": True}
SEQUENCES = 160


def made() -> pl.DataFrame:
    """A table with all that can be read: gaps, words, a wild cell, steps out of order."""
    draw = np.random.default_rng(0)
    lengths = draw.integers(1, 9, SEQUENCES)
    ids = np.repeat(np.arange(SEQUENCES), lengths)
    a = draw.normal(3.0, 2.0, len(ids))
    a[a > 6], a[17] = np.nan, 1e6
    return pl.DataFrame(
        {
            "id": ids,
            "t": np.concatenate([draw.permutation(int(n)) for n in lengths]),
            "a": a,
            "b": draw.normal(size=len(ids)).astype(np.float32),
            "w": draw.choice(["x", "y", None], len(ids)),
            "g": ids // 2,
            "y": ["uvw"[k % 3] for k in ids],
        }
    )


@pytest.fixture(autouse=True)
def small_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tmp").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.setattr(streamed, "ROWS", 100)
    monkeypatch.setattr(ondisk, "_PIECE", 37)


def both(path: Path, frame: pl.DataFrame, **options: Any) -> tuple[Dataset, Dataset]:
    """A table read whole, and in pieces."""
    frame.write_parquet(path, row_group_size=50)
    whole, pieces = (load(path, stream=stream, **options) for stream in ("never", "always"))
    assert all(isinstance(part.x, OnDisk) for part in pieces.parts)
    return whole, pieces


def same_sequences(whole: Dataset, pieces: Dataset) -> None:
    for one, other in zip(whole.parts, pieces.parts, strict=True):
        assert (one.ids, one.groups, one.y.tolist()) == (other.ids, other.groups, other.y.tolist())
        for x, z in zip(one.x, other.x, strict=True):
            assert torch.equal(x.nan_to_num(-7), z.nan_to_num(-7))


@pytest.mark.parametrize("order", ["together", "scattered"])
def test_a_table_in_pieces_gives_what_the_whole_one_gives(tmp_path: Path, order: str) -> None:
    frame = made() if order == "together" else made().sample(fraction=1, shuffle=True, seed=1)
    whole, pieces = both(tmp_path / "x.parquet", frame, **OPTIONS)
    same_sequences(whole, pieces)
    assert pieces.scaler == whole.scaler
    assert repr(pieces) == repr(whole)
    assert pieces.reading == whole.reading
    settings = Settings(hidden_size=4, epochs=2)
    assert identity(pieces, settings, "", ())["data"] == identity(whole, settings, "", ())["data"]
    own = [note for note in pieces.notes if note not in whole.notes]
    assert "the table is read in pieces (stream, --stream), with the same results: its steps are in" in own[0]
    assert len(own) == (3 if order == "scattered" else 2)
    assert "brought together on disk" in own[1] or order == "together"
    assert "x.parquet: id '2', step " in own[-1]  # where the wild cell is; of the whole table that is a row
    assert len(whole.notes) == 3


def test_networks_and_baselines_reach_the_same_scores(tmp_path: Path) -> None:
    results = []
    for data in both(tmp_path / "x.parquet", made(), **OPTIONS):
        model, run = train(network("rnn"), data, Settings(hidden_size=4, epochs=2), 0)
        assert 0 < run.loading < run.seconds
        unseen = load_for_prediction(
            tmp_path / "x.parquet",
            features=model.features,
            classes=model.classes,
            missing=("nan",),
            trained_reading=model.reading,
            stream="always" if isinstance(data.train.x, OnDisk) else "never",
            **ROLES,
        )
        answers = model.predict(unseen.x).values, unseen.truth, unseen.ids
        results.append((replace(run, seconds=0.0), described(data), baselines(data), *answers))
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other


def test_what_is_on_the_disk_goes_to_other_processes_and_then_away(tmp_path: Path) -> None:
    _, pieces = both(tmp_path / "x.parquet", made(), **OPTIONS)
    folder = tmp_path / "tmp"
    assert len(list(folder.iterdir())) == 1
    with pytest.raises(AnyRNNError, match="are read in pieces, from the disk of this machine; expected data in memory"):
        compare(pieces, ["rnn"], scheduler="tcp://there:1")
    copy = pickle.loads(pickle.dumps(pieces.train.x))
    assert torch.equal(copy[3].nan_to_num(-7), pieces.train.x[3].nan_to_num(-7))
    with pytest.raises(IndexError):
        copy[len(copy)]
    path = copy.file.path
    path.write_bytes(path.read_bytes()[:80])
    with pytest.raises(AnyRNNError, match="was cut off or removed; start again"):
        list(copy)
    del copy, pieces
    assert not list(folder.iterdir())
    with pytest.raises(AnyRNNError, match="on another machine needs the data in memory"):
        ondisk.FlatFile(path, np.float32, 2)


def test_files_of_killed_processes_go_and_those_in_use_stay(tmp_path: Path) -> None:
    left = tmp_path / "tmp" / "anyrnn-steps-left.bin"
    left.write_bytes(b"")
    os.utime(left, (0, 0))
    one = ondisk.FlatFileWriter(np.float32, 1)
    os.utime(one.path, (0, 0))
    other = ondisk.FlatFileWriter(np.float32, 1)
    assert set(left.parent.iterdir()) == {one.path, other.path}
    one.discard()
    other.discard()


def test_what_it_takes_decides_and_text_is_told_how_to_become_parquet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    frame = made().select("id", "t", "b", "y")
    frame.write_parquet(tmp_path / "x.parquet")
    frame.write_csv(tmp_path / "x.csv", separator=";")
    needed = len(frame) * 4 * 40
    for memory, expected in ((2 * needed + 1, tuple), (2 * needed - 1, OnDisk)):
        monkeypatch.setattr(streamed, "memory", lambda memory=memory: memory)
        assert isinstance(load(tmp_path / "x.parquet", **ROLES).train.x, expected)
    monkeypatch.setattr(streamed, "memory", lambda: 100)
    with pytest.raises(AnyRNNError, match=r"would not fit into the memory of .* make Parquet of it") as caught:
        load(tmp_path / "x.csv", **ROLES)
    command = str(caught.value).split('python -c "')[1].split('"')[0]
    exec(command)
    text = load(tmp_path / "x.csv", stream="never", **ROLES)
    assert isinstance(text.train.x, tuple)
    assert load(tmp_path / "x.parquet", **ROLES).train.ids == text.train.ids
    for source in (tmp_path / "x.csv", "japanese-vowels", frame):
        roles = {} if isinstance(source, str) else ROLES
        with pytest.raises(AnyRNNError, match="only Parquet can be read in pieces"):
            load(source, stream="always", **roles)
    with pytest.raises(AnyRNNError, match=r"got stream='alway', expected one of auto, always, never. Did you mean"):
        load(tmp_path / "x.parquet", stream="alway", **ROLES)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: f.with_columns(y=pl.int_range(pl.len()).cast(pl.String)), "target 'y' is '1', but '0' in the first"),
        (lambda f: f.with_columns(y=pl.lit(None, pl.String)), "id '0': target 'y' is missing here"),
        (lambda f: f.with_columns(b=pl.lit(float("inf"))), "data row 1 .*: feature 'b' is inf, expected a finite"),
        (lambda f: f.with_columns(b=pl.when(pl.int_range(pl.len()) != 150).then("b")), "data row 151 .*'b' is missing"),
        (lambda f: f.rename({"id": "name"}), "column 'id' is not there; the columns are name, t, b, y"),
        (lambda f: f.head(0), "there is no row"),
        (lambda f: f.with_columns(id=pl.lit(None, pl.Int64)), "data row 1: the id 'id' is missing"),
        (lambda f: f.vstack(f.head(1)), "this id has the same time in data row 1; keep one row"),
    ],
)
def test_a_large_table_that_will_not_do_is_named(tmp_path: Path, change: Any, message: str) -> None:
    change(made().select("id", "t", "b", "y")).write_parquet(tmp_path / "x.parquet")
    with pytest.raises(AnyRNNError, match=message):
        load(tmp_path / "x.parquet", stream="always", **ROLES)
    assert not list((tmp_path / "tmp").iterdir())


def test_a_damaged_file_is_said(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    made().select("id", "t", "b", "y").write_parquet(path, compression="uncompressed", statistics=False)
    data = bytearray(path.read_bytes())
    data[4:40] = b"\xff" * 36  # the header of the first page
    path.write_bytes(data)
    with pytest.raises(AnyRNNError, match="this cannot be read as Parquet"):
        load(path, stream="always", **ROLES)
    assert not list((tmp_path / "tmp").iterdir())


def test_a_full_disk_is_said(tmp_path: Path) -> None:
    writer = ondisk.FlatFileWriter(np.float32, 1)
    writer._file.close()
    writer._file = open("/dev/full", "wb", buffering=0)  # noqa: SIM115, PTH123
    with pytest.raises(AnyRNNError, match="No space left on device; make room, or name a folder on another disk: TMPD"):
        writer.write(np.zeros((4, 1)))
    assert not writer.path.exists()


def test_of_very_many_steps_a_part_tells_the_scale(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sequences, "_MOST_MEASURED", 100)
    whole, pieces = both(tmp_path / "x.parquet", made().select("id", "t", "b", "y"), **ROLES)
    assert whole.scaler == pieces.scaler == Scaler.fit(whole.train)
    assert sum(map(len, sequences.sample(whole.train.x))) < 150
    assert pieces.scaler.mean[0] == pytest.approx(np.concatenate(list(whole.train.x)).mean(), abs=0.3)


def test_baselines_that_would_take_too_long_are_left_out_and_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("anyrnn.workbench.baselines._FAR_TOO_MANY", 1.0)
    monkeypatch.setattr("anyrnn.workbench.baselines._MOST_DISTANCES", 1.0)
    found = {each.name: each.score for each in baselines(load("japanese-vowels"))}
    out = [name for name, score in found.items() if not np.isfinite(score)]
    assert [name.partition(":")[0] for name in out] == [
        "1-nearest neighbour on summary statistics",
        "1-nearest neighbour on the steps",
        "ridge on random convolutions",
    ]
    assert out[0].endswith("summary statistics: left out, too slow")
    assert found["ridge on the flattened steps"] > 0.9


def test_an_epoch_has_every_sequence_once_in_batches_of_like_length(tmp_path: Path) -> None:
    whole, pieces = both(tmp_path / "x.parquet", made().select("id", "t", "b", "y"), **ROLES)
    for data in (whole, pieces):
        part, table = data.train, {float(x[-1, 0]): k for k, x in enumerate(data.train.x)}

        def epoch(part: Any = part, data: Any = data, table: Any = table, **options: Any) -> list[list[int]]:
            found = []
            for x, lengths, y in batches(part, Scaler((0.0,), (1.0,), 1e9), 6, **options):
                found.append([table[x[t - 1, k, 0].item()] for k, t in enumerate(lengths.tolist())])
                assert y.tolist() == part.y[found[-1]].tolist()
            return found

        first, same, other = epoch(seed=1), epoch(seed=1), epoch(seed=2)
        assert first == same != other
        assert sorted(chain(*first)) == list(range(len(part)))
        spreads = [len({len(part.x[k]) for k in each}) - 1 for each in first]
        assert sum(spreads) <= 8  # all lengths once, from end to end
        in_order = [len(part.x[k]) for k in chain(*epoch(seed=None))]
        assert in_order == sorted(in_order)
    with pytest.raises(AnyRNNError, match="batches: got size=0, expected at least 1"):
        next(batches(part, data.scaler, 0))


def test_the_thread_ends_with_the_items_and_tells_what_went_wrong() -> None:
    before = threading.active_count()
    items = ahead(iter(range(100)))
    assert next(items) == 0
    items.close()  # type: ignore[attr-defined]
    assert threading.active_count() == before
    assert list(ahead(iter([1, 2]))) == [1, 2]
    with pytest.raises(ZeroDivisionError):
        list(ahead(1 // k for k in (1, 0)))


def test_the_commands_stream_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    made().select("id", "t", "b", "y").write_parquet("x.parquet")
    words = "--id id --time t --target y --cell rnn --hidden 4 --epochs 1 --stream always --out run"
    result = CliRunner().invoke(app, ["fit", "x.parquet", *words.split()])
    assert result.exit_code == 0, result.output
    assert "the table is read in pieces" in " ".join(result.output.split())
    predicted = [
        CliRunner().invoke(app, ["predict", "run", "x.parquet", "--stream", how]).stdout for how in ("always", "never")
    ]
    assert predicted[0] == predicted[1]
    assert predicted[0].count("\n") == SEQUENCES + 1


def test_predict_of_another_kind_of_run_has_nothing_to_stream(tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text('{"format": 2, "kind": "tagging"}')
    result = CliRunner().invoke(app, ["predict", str(tmp_path), "x.parquet", "--stream", "never"])
    assert result.exit_code == 2
    assert "--stream is for runs of sequences" in " ".join(result.output.split())
