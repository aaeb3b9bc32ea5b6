"""Tables that are read in pieces give what whole ones give, in batches that miss no sequence."""

import threading
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from torch.nn.utils.rnn import pad_sequence

from anyrnn.errors import AnyRNNError
from anyrnn.workbench.large import Spooled, spool
from anyrnn.workbench.sequences import Inputs, Scaler

ROLES = {"id_column": "id", "target_column": "y"}
LENGTHS = [3, 1, 5, 2, 2, 9, 1, 4] * 5


def made(gaps: bool = False) -> tuple[pl.DataFrame, list[torch.Tensor]]:
    draw = np.random.default_rng(0)
    values = draw.normal(3.0, 2.0, size=(sum(LENGTHS), 2))
    if gaps:
        values[draw.random(values.shape) < 0.3] = np.nan
    ids = np.repeat(np.arange(len(LENGTHS)), LENGTHS)
    frame = pl.DataFrame({"id": ids, "a": values[:, 0], "b": values[:, 1], "y": ["uvw"[k % 3] for k in ids]})
    return frame, list(torch.from_numpy(values).split(LENGTHS))


@pytest.mark.parametrize("rows", [1, 4, 10, 1 << 20])
@pytest.mark.parametrize("gaps", [False, True])
def test_pieces_of_any_size_give_the_sequences_of_the_whole_table(tmp_path: Path, rows: int, gaps: bool) -> None:
    frame, x = made(gaps)
    frame.write_parquet(tmp_path / "x.parquet", row_group_size=7)
    missing = "nan" if gaps else None
    data = spool(tmp_path / "x.parquet", tmp_path, **ROLES, rows=rows, missing=missing)  # type: ignore[arg-type]
    scaler = Scaler.fit(Inputs((torch.cat(x),), None, ("",)), ("nan",) if gaps else None)
    assert data.scaler == scaler
    assert (data.classes, data.features, data.ids[:2], len(data)) == (("u", "v", "w"), ("a", "b"), ("0", "1"), 40)
    assert data.y.tolist() == [k % 3 for k in range(40)]
    assert repr(data) == "Spooled: 40 sequences of 1 to 9 steps on the disk"
    places = np.array([5, 0, 39, 6])
    got, lengths, y = data.batch(places)
    assert lengths.tolist() == [LENGTHS[k] for k in places]
    assert y.tolist() == (places % 3).tolist()
    assert torch.equal(got, pad_sequence([scaler(x[k]) for k in places]))


def spooled(folder: Path) -> Spooled:
    made()[0].write_parquet(folder / "x.parquet")
    return spool(folder / "x.parquet", folder, **ROLES)  # type: ignore[arg-type]


def test_an_epoch_has_every_sequence_once_in_batches_of_like_length(tmp_path: Path) -> None:
    data = spooled(tmp_path)
    table = {float(data.steps[end - 1, 0]): k for k, end in enumerate(data.ends)}  # a sequence by its last step

    def epoch(**options: Any) -> list[list[int]]:
        found = []
        for x, lengths, _ in data.batches(6, **options):
            found.append([table[x[t - 1, k, 0].item()] for k, t in enumerate(lengths.tolist())])
        return found

    first, same, other = epoch(seed=1), epoch(seed=1), epoch(seed=2)
    assert first == same != other
    assert sorted(chain(*first)) == list(range(40))
    assert max(len(each) for each in first) == 6
    spreads = [max(LENGTHS[k] for k in each) - min(LENGTHS[k] for k in each) for each in first]
    assert sum(spreads) <= 8  # all lengths once, from end to end
    in_order = chain(*epoch(seed=None))
    assert [LENGTHS[k] for k in in_order] == sorted(LENGTHS)
    assert sorted(chain(*epoch(places=[3, 9, 27]))) == [3, 9, 27]


def test_the_thread_ends_with_the_batches_and_tells_what_went_wrong(tmp_path: Path) -> None:
    data = spooled(tmp_path)
    before = threading.active_count()
    batches = data.batches(1)
    next(batches)
    batches.close()
    assert threading.active_count() == before
    with pytest.raises(IndexError):
        list(data.batches(2, places=[0, 99]))
    with pytest.raises(AnyRNNError, match="batches: got size=0, expected at least 1"):
        list(data.batches(0))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: f.vstack(f.head(1)), "the rows of id '0' do not stand together; sort the file by id and"),
        (
            lambda f: f.with_columns(y=pl.int_range(pl.len()).cast(pl.String)),
            "target 'y' of id 0 is missing or not the",
        ),
        (lambda f: f.with_columns(y=pl.lit(None, pl.String)), "target 'y' of id 0 is missing"),
        (lambda f: f.with_columns(a=pl.lit(float("inf"))), "feature 'a' is inf, expected a finite number"),
        (lambda f: f.with_columns(b=pl.lit(None, pl.Float64)), "feature 'b' is nan, .* or say what is missing"),
        (lambda f: f.with_columns(a=pl.lit("low")), "feature 'a' holds String, expected numbers"),
        (lambda f: f.rename({"id": "name"}), "column 'id' is not there; the columns are name, a, b, y"),
        (lambda f: f.head(0), "there is no row"),
        (lambda f: f.with_columns(id=pl.lit(None, pl.Int64)), "an id is missing"),
    ],
)
def test_a_large_table_that_will_not_do_is_named(tmp_path: Path, change: Any, message: str) -> None:
    change(made()[0]).write_parquet(tmp_path / "x.parquet")
    with pytest.raises(AnyRNNError, match=message):
        spool(tmp_path / "x.parquet", tmp_path, **ROLES, rows=16)  # type: ignore[arg-type]


def test_numbers_are_told_from_classes(tmp_path: Path) -> None:
    frame = made()[0]
    frame.with_columns(y=pl.col("id") / 8).write_parquet(tmp_path / "x.parquet")
    data = spool(tmp_path / "x.parquet", tmp_path, **ROLES)  # type: ignore[arg-type]
    assert data.classes is None
    assert data.y.tolist() == [k / 8 for k in range(40)]
    frame.with_columns(y=pl.col("id") % 11).write_parquet(tmp_path / "x.parquet")
    data = spool(tmp_path / "x.parquet", tmp_path, **ROLES)  # type: ignore[arg-type]
    assert data.classes == tuple(map(str, range(11)))
    assert data.y.tolist() == [k % 11 for k in range(40)]
    frame.write_csv(tmp_path / "x.csv")
    with pytest.raises(AnyRNNError, match="this is no Parquet file, which can be read in pieces"):
        spool(tmp_path / "x.csv", tmp_path, **ROLES)  # type: ignore[arg-type]
