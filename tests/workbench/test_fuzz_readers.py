"""Whatever is in a .ts, CSV or Parquet file: a data set that holds together, or one AnyRNNError. Nothing between.

A few hundred files in the tests. For longer: ``python tests/workbench/test_fuzz_readers.py --minutes 60``; it prints
the number of files, and stops at the first one that breaks the promise.
"""

import argparse
import math
import tempfile
import time
import warnings
from collections import Counter
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from anyrnn.errors import AnyRNNError
from anyrnn.workbench.data import Dataset, load, load_for_prediction
from anyrnn.workbench.split import spelling

NUMBERS = ["0", "1", "2", "-1", "0.5", "1e3", "-9999", "1767225600", "1e30", "1e-30", "1e308", "-1e308", "5e-324"]
ODD = [
    "",
    " ",
    "nan",
    "NaN",
    "NA",
    "None",
    "null",
    "?",
    "inf",
    "-inf",
    "1e400",
    "1_000",
    "0,5",
    "1,234",
    "0x1",
    "١",
    "１",
]
ODD += ["true", "9007199254740993", "99999999999999999999", "1" * 45, "2026-01-31", "2026-01-31 10:00", "10:00", "007"]
ODD += [
    "a",
    "A",
    "a ",
    "\xa0a",
    "é",
    "e\u0301",
    "\u200b",
    '"',
    '""',
    'x"y',
    "#",
    "%",
    "@data",
    "=1+1",
    "患者",
    "\x1b[1m",
]
CELLS = st.one_of(st.sampled_from(NUMBERS), st.sampled_from(NUMBERS), st.sampled_from(ODD), st.text(max_size=3))
NAMES = ["id", "t", "a", "b", "y", "", "flow, m3/s", "#id", "a_duplicated_0", "\0row", " y", "0", "sep=", "target"]
OPTIONS = st.one_of(
    st.just({"time_column": "t"}),
    st.just({}),
    st.fixed_dictionaries(
        {},
        optional={
            "time_column": st.sampled_from(["t", "a"]),
            "feature_columns": st.sampled_from([["a"], ["a", "b"], ["b", "a"]]),
            "task": st.sampled_from(["classification", "regression"]),
            "missing": st.sampled_from([-9999, "nan", [], ["-9999", "None"], [0, "a"], math.nan, [1e30, 1e300]]),
            "test_fraction": st.sampled_from([0.01, 0.3, 0.9]),
            "gaps": st.sampled_from(["fill", "mask", "since"]),
            "delta_time": st.sampled_from([False] * 5 + [True]),
            "encoding": st.sampled_from([None] * 7 + ["latin-1", "utf-16"]),
        },
    ),
)


IDS = [["s0", "s1", "s2", "s3", "s4", "s5"], ["1", "01", "2", "3.0", "3", "4"], ["p", "P", "p ", "q", "Q", "\xe9"]]
TARGETS = [["u", "v"], ["U", "u", "u "], ["0", "1"], ["0.0", "1.0"], ["0,5", "1,25", "2"], ["1.5", "2.5", "1e30"]]
TARGETS += [["None", "v", "w"], ["1767225600", "1767225601", "1767225602"], ["1e-30", "2e-30", "-9999"]]
VALUES = [
    ["0", "1"],
    ["1767225600", "1767225601"],
    ["0.5", "-2.5", "1e3"],
    ["1e308", "-1e308", "0"],
    ["-9999", "1", "2"],
]


@st.composite
def tables(draw: st.DrawFn) -> tuple[list[str], list[list[str]]]:
    """Names and rows of a sound table, but for an odd cell here and there, or an odd header."""
    ids, targets = draw(st.sampled_from(IDS)), draw(st.sampled_from(TARGETS))
    pools = [draw(st.sampled_from(VALUES)) for _ in range(2)]
    rows = []
    for id_ in ids[: draw(st.integers(2, 6))]:
        target = draw(st.sampled_from(targets))
        steps = range(draw(st.integers(1, 3)))
        rows += [[id_, str(step), *(draw(st.sampled_from(pool)) for pool in pools), target] for step in steps]
    for _ in range(draw(st.sampled_from([0, 0, 1, 1, 2, 9]))):
        rows[draw(st.integers(0, len(rows) - 1))][draw(st.integers(0, 4))] = draw(CELLS)
    names = ["id", "t", "a", "b", "y"]
    if not draw(st.integers(0, 7)):
        names = draw(st.lists(st.sampled_from([*NAMES, *names]), max_size=6))
    return names, draw(st.permutations(rows))


@st.composite
def csv_files(draw: st.DrawFn) -> bytes:
    """A table as text, now and then with a byte that does not belong."""
    names, rows = draw(tables())
    quoted = draw(st.booleans())
    separator = draw(st.sampled_from([*[","] * 9, ", ", ";"]))
    ends = draw(st.sampled_from([*["\n"] * 5, "\r\n", "\r"]))
    text = ends.join(
        separator.join('"' + cell.replace('"', '""') + '"' if quoted or "," in cell else cell for cell in row)
        for row in (names, *rows)
    )
    return draw(damaged(text.encode("utf-8", "surrogatepass")))


@st.composite
def ts_files(draw: st.DrawFn) -> bytes:
    """A header that fits or not, and lines of one or two channels."""
    classes = draw(st.sampled_from(["true a b", "true A b", "true 0 1", "true a,b,0,1", "true", "true a b 0 1 u", ""]))
    odd = ["@timeStamps no", "@targetlabel false", "@univariate true", "@dimensions 2", "@equalLength true", "%x", "@"]
    odd += ["@seriesLength 0", "@seriesLength 2", "@problemName é", "@dimension ２", "# c", "@classLabel true A B"]
    lines = [f"@classLabel {classes}" if classes else "@targetlabel true"]
    lines += draw(st.one_of(st.just([]), st.lists(st.sampled_from(odd), max_size=2))) + ["@data"] * draw(
        st.sampled_from([*[1] * 15, 0])
    )
    width, steps = draw(st.integers(1, 2)), draw(st.integers(1, 3))
    pool = draw(st.sampled_from(VALUES))
    labels = draw(
        st.sampled_from([["a", "b"], ["a", "b"], ["A", "b"], ["0", "1.0", "1"], ["u", "?", "a"], ["0.5", "1e30"]])
    )
    for _ in range(draw(st.integers(2, 6))):
        channels = [[draw(st.sampled_from(pool)) for _ in range(steps)] for _ in range(width)]
        if not draw(st.integers(0, 9)):
            channels[0][0] = draw(CELLS)
        label = draw(st.sampled_from(labels)) if draw(st.integers(0, 9)) else draw(CELLS)
        lines.append(":".join([*map(",".join, channels), label]))
    encoding = draw(st.sampled_from(["utf-8", "utf-8", "latin-1"]))
    return draw(damaged("\n".join(lines).encode(encoding, "ignore")))


@st.composite
def damaged(draw: st.DrawFn, content: bytes) -> bytes:
    """The content, as it is or with a few bytes put in, taken out or cut off."""
    for _ in range(draw(st.sampled_from([0, 0, 0, 0, 0, 0, 1, 2, 5]))):
        at = draw(st.integers(0, len(content)))
        kind = draw(st.sampled_from(["insert", "delete", "cut"]))
        if kind == "insert":
            content = content[:at] + draw(st.binary(min_size=1, max_size=3)) + content[at:]
        else:
            content = content[:at] + (content[at + draw(st.integers(1, 9)) :] if kind == "delete" else b"")
    return content


COLUMNS: dict[str, tuple[st.SearchStrategy[Any], pl.DataType | type[pl.DataType]]] = {
    "float": (st.floats(), pl.Float64()),
    "float32": (st.floats(width=32), pl.Float32()),
    "int": (st.integers(-(2**63), 2**63 - 1), pl.Int64()),
    "small": (st.integers(0, 3), pl.UInt8()),
    "unsigned": (st.integers(0, 2**64 - 1), pl.UInt64()),
    "text": (CELLS, pl.String()),
    "few": (st.sampled_from(["a", "A", "b", "b "]), pl.Categorical()),
    "bool": (st.booleans(), pl.Boolean()),
    "date": (st.dates(date(1990, 1, 1)), pl.Date()),
    "moment": (st.integers(0, 2**40).map(lambda s: datetime.fromtimestamp(s % 2**31, UTC)), pl.Datetime("ns", "UTC")),
    "duration": (st.integers(0, 2**31).map(lambda s: timedelta(microseconds=s)), pl.Duration("us")),
    "list": (st.lists(st.integers(0, 3), max_size=2), pl.List(pl.Int64())),
    "bytes": (st.binary(max_size=3), pl.Binary()),
    "decimal": (st.integers(-999, 999), pl.Decimal(10, 2)),
    "null": (st.none(), pl.Null()),
}


@st.composite
def parquet_files(draw: st.DrawFn) -> bytes:
    """A sound table whose columns have become numbers where they can; some of any type, nulls among them."""
    names, rows = draw(tables())
    frame: dict[str, pl.Series] = {}
    for k, name in enumerate(dict.fromkeys(names)):
        column = pl.Series([row[k % 5] for row in rows], dtype=pl.String)
        as_number = column.cast(draw(st.sampled_from([pl.Float64, pl.Float32, pl.Int64])), strict=False)
        frame[name] = column if as_number.null_count() or not draw(st.integers(0, 4)) else as_number
        if not draw(st.integers(0, 9)):
            values, dtype = COLUMNS[draw(st.sampled_from(list(COLUMNS)))]
            cells = [draw(st.one_of(values, values, values, st.none())) for _ in rows]
            frame[name] = pl.Series(cells, dtype=dtype, strict=False)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "x.parquet")
        pl.DataFrame(frame).write_parquet(path)
        content = path.read_bytes()
    # Cut off at either end, but not changed inside: there polars ends the whole process, for want of exabytes.
    start, end = (draw(st.sampled_from([0] * 12 + [1, 9, 400])) for _ in range(2))
    return content[start : len(content) - end]


FILES = {".csv": csv_files(), ".ts": ts_files(), ".parquet": parquet_files()}


def check(suffix: str, content: bytes, options: dict[str, Any]) -> str:
    """Read it, and hold the outcome against what `load` promises; which outcome it was."""
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("error")
        path = Path(folder, f"x{suffix}")
        path.write_bytes(content)
        if suffix == ".ts":
            options = {key: value for key, value in options.items() if not key.endswith("_column") and key != "columns"}
            options.pop("feature_columns", None)
        else:
            options = {"id_column": "id", "target_column": "y", **options}
        try:
            data = load(path, **options)
        except AnyRNNError as error:
            if str(error).startswith((f"{path}:", "x: ", "load: ")):
                return "refused"
            raise
        check_whole(data)
        kept = {"id_column", "time_column", "encoding"}
        names = {key: value for key, value in options.items() if key in kept}
        names |= {"missing": data.missing, "trained_reading": data.reading}
        again = load_for_prediction(path, features=data.features, classes=data.classes, **names)
        known = dict(zip((*data.train.ids, *data.test.ids), (*data.train.x, *data.test.x), strict=True))
        assert set(again.ids) == set(known)
        assert all(x.equal(known[id_]) or x.isnan().any() for id_, x in zip(again.ids, again.x, strict=True))
    return "read"


def check_whole(data: Dataset) -> None:
    """What every data set has to be."""
    assert len(data.train)
    assert len(data.test)
    groups = [{spelling(id_) for id_ in part.ids} for part in (data.train, data.test)]
    assert not groups[0] & groups[1]
    for part in (data.train, data.test):
        assert all(x.dtype == torch.float64 and not x.isinf().any() for x in part.x)
        assert data.missing is not None or not any(x.isnan().any() for x in part.x)
        scaled = [data.scaler(x) for x in part.x]
        assert all(z.dtype == torch.float32 and z.isfinite().all() and z.abs().max() < 1000 for z in scaled)
    if data.classes is None:
        assert torch.cat((data.train.y, data.test.y)).isfinite().all()
    else:
        assert set(data.train.y.tolist()) >= set(data.test.y.tolist())
        assert int(data.train.y.max()) < len(data.classes)
        assert np.isin(data.test.y.numpy(), np.arange(len(data.classes))).all()
    assert all("\n" not in note for note in data.notes), data.notes


anything = settings(deadline=None, database=None, suppress_health_check=list(HealthCheck), print_blob=False)


def read_many(suffix: str, count: int, first: int) -> Counter[str]:
    """So many files of a format; how often each outcome was."""
    outcomes: Counter[str] = Counter()

    @seed(first)
    @settings(anything, max_examples=count)
    @given(content=FILES[suffix], options=OPTIONS)
    def read(content: bytes, options: dict[str, Any]) -> None:
        outcomes[f"{suffix} {check(suffix, content, options)}"] += 1

    read()
    return outcomes


@pytest.mark.parametrize("suffix", FILES)
def test_any_file_is_read_whole_or_refused(suffix: str) -> None:
    outcomes = read_many(suffix, 100, 1)
    assert set(outcomes) == {f"{suffix} read", f"{suffix} refused"}


def run(minutes: float, first: int) -> None:
    """Read files of ever new seeds until the time is over."""
    end, found, number = time.monotonic() + 60 * minutes, Counter[str](), first
    while time.monotonic() < end:
        number += 1
        for suffix in FILES:
            found += read_many(suffix, 300, number)
        print(f"seed {number}:", sum(found.values()), dict(found), flush=True)  # noqa: T201


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--minutes", type=float, default=1.0)
    arguments.add_argument("--seed", type=int, default=0, help="Of the first file; the next ones count on.")
    chosen = arguments.parse_args()
    run(chosen.minutes, chosen.seed)
