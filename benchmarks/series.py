"""Public sets of series, from the files in which they are published to tables that `anyrnn compare --horizon` reads.

    python benchmarks/series.py m4 Hourly-train.csv Hourly-test.csv m4-hourly.parquet
    python benchmarks/series.py exchange exchange_rate.txt.gz exchange.csv
    python benchmarks/series.py ett ETTh1.csv etth1.csv

* **M4** (https://github.com/Mcompetitions/M4-methods, Makridakis and others 2020, who name no
  licence): a row for each series becomes a row for each step. The last 48 steps of each are its test part.
* **Exchange rates** of eight countries by day (https://github.com/laiguokun/multivariate-time-series-data, Lai and
  others 2018, who name no licence): its columns get names. Their test part is the last fifth.
* **ETT** (https://github.com/zhouhaoyi/ETDataset, Zhou and others 2021; CC BY-ND 4.0: what is written here is for your
  own use): the 20 months that are published results are of, of which 12 are to train on, 4 choose, 4 test; each column
  is brought to mean 0 and deviation 1 over the first 12 months, since published errors are of such numbers.
"""

import argparse
from pathlib import Path

import polars as pl

COUNTRIES = ("australia", "britain", "canada", "switzerland", "china", "japan", "new_zealand", "singapore")
MONTH = 30 * 24  # as the published split counts it


def m4(train: Path, test: Path) -> pl.DataFrame:
    """Series, hour, y: training steps, and the test's behind them."""
    wide = [pl.read_csv(path, infer_schema_length=0) for path in (train, test)]
    long = []
    for first, table in zip((0, 10_000), wide, strict=True):
        steps = table.columns[1:]
        renamed = table.rename({table.columns[0]: "series", **{name: f"{first + k}" for k, name in enumerate(steps)}})
        long.append(renamed.unpivot(index="series", variable_name="step", value_name="y").drop_nulls("y"))
    rows = pl.concat(long).with_columns(pl.col("step").cast(pl.Int64), pl.col("y").cast(pl.Float64))
    rows = rows.sort("series", "step")
    return rows.select("series", (pl.int_range(pl.len()).over("series")).alias("hour"), "y")


def exchange(path: Path) -> pl.DataFrame:
    """A column for each country."""
    table = pl.read_csv(path, has_header=False, new_columns=list(COUNTRIES))
    return table.with_row_index("day")


def ett(path: Path) -> pl.DataFrame:
    """The published part, scaled."""
    table = pl.read_csv(path).head(20 * MONTH)
    numbers = pl.all().exclude("date")
    known = table.head(12 * MONTH)
    means, deviations = known.select(numbers.mean()).row(0), known.select(numbers.std(ddof=0)).row(0)
    names = table.columns[1:]
    scaled = zip(names, means, deviations, strict=True)
    return table.with_columns((pl.col(name) - mean) / deviation for name, mean, deviation in scaled)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=("m4", "exchange", "ett"))
    parser.add_argument("files", type=Path, nargs="+", help="those of the set, then the table to write")
    given = parser.parse_args()
    *files, out = given.files
    table = {"m4": m4, "exchange": exchange, "ett": ett}[given.name](*files)
    if out.suffix == ".parquet":
        table.write_parquet(out)
    else:
        table.write_csv(out)
    print(f"{out}: {table.height:,} rows of {', '.join(table.columns)}")


if __name__ == "__main__":
    main()
