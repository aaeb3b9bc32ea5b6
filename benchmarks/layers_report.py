"""What the numbers of `layers.py` say: ratios against the targets, and tables."""

import math
from collections.abc import Collection, Iterator
from typing import Any

from anyrnn.workbench.bench import milliseconds
from record import Claim, claims_table, table, verdict

Row = dict[str, Any]
Target = tuple[float | None, float | None]  # the mean over the shapes, and the worst of them

CALLS = {"training": "forward + backward", "forward": "forward"}
LOOPS = ("peephole LSTM", "LayerNorm LSTM", "reset-before GRU", "notebook LSTM", "concat LSTM", "concat LSTM, 2 layers")
GATES = {"RNN": 1, "LSTM": 4, "GRU": 3}
PRODUCT = {"case": "full", "B": 32, "T": 100, "I": 256, "H": 256}

#: Ours, against what, on which rows: at least so many times as fast with and without backward.
TARGETS: tuple[tuple[str, str, str, Target, Target], ...] = (
    ("GRU", "torch.nn", "full", (4, 1.8), (3, 1.5)),
    ("RNN", "torch.nn", "full", (3, 1.5), (2, 1.2)),
    ("LSTM", "torch.nn", "full", (1.2, 0.9), (1.2, 0.9)),
    ("LSTM", "torch.nn, packed", "ragged", (5, 2.5), (3, 1.8)),
    ("GRU", "torch.nn, packed", "ragged", (5, 2.5), (3, 1.8)),
    ("LSTM", "torch.nn, padded", "ragged", (None, None), (None, None)),
    ("GRU", "torch.nn, padded", "ragged", (None, None), (None, None)),
    ("LSTM", "XLA scan", "full", (1.5, 1.0), (1.3, 1.0)),
    ("GRU", "XLA scan", "full", (1.5, 1.0), (1.3, 1.0)),
    ("LSTM", "ONNX Runtime", "full", (None, None), (1.0, 0.8)),
    ("GRU", "ONNX Runtime", "full", (None, None), (1.0, 0.8)),
    *((cell, "Python loop", "B=1", (15, None), (15, None)) for cell in LOOPS),
    *((cell, "Python loop", "B=32", (3, None), (3, None)) for cell in LOOPS),
    *((cell, "torch.nn", "short", (None, None), (None, None)) for cell in ("RNN", "LSTM", "GRU")),
)

#: A cell costs at most so many of our LSTMs.
COSTS = {"peephole LSTM": 1.15, "LayerNorm LSTM": 1.6}


def speed_claims(rows: list[Row]) -> Iterator[Claim]:
    """Compare with the peers: geometric mean over the shapes, and the worst of them."""
    for cell, by, where, training, forward in TARGETS:
        for threads in thread_counts(rows):
            for kind, (mean, worst) in {"training": training, "forward": forward}.items():
                found = ratios(select(rows, where, kind, threads), (cell, by), (cell, "anyrnn"))
                if found:
                    what = f"{cell} / {by}" + ("" if where in ("full", "ragged") else f", {where}")
                    yield from _mean_and_worst(what, threads, kind, found, mean, worst, at_most=False)


def cost_claims(rows: list[Row]) -> Iterator[Claim]:
    """Compare our cells with our LSTM."""
    for cell, limit in COSTS.items():
        for threads in thread_counts(rows):
            for kind in CALLS:
                found = ratios(select(rows, "full", kind, threads), (cell, "anyrnn"), ("LSTM", "anyrnn"))
                yield from _mean_and_worst(cell, threads, kind, found, limit, limit, at_most=True)


def _mean_and_worst(
    what: str, threads: int, kind: str, found: dict[str, float], mean: float | None, worst: float | None, at_most: bool
) -> Iterator[Claim]:
    yield Claim(what, str(threads), f"{CALLS[kind]}: mean", geometric_mean(found.values()), mean, at_most, "x")
    shape = (max if at_most else min)(found, key=found.__getitem__)
    yield Claim(what, str(threads), f"{CALLS[kind]}: worst", found[shape], worst, at_most, "x", shape)


def rate_claims(rows: list[Row]) -> Iterator[Claim]:
    """Compare the operations a second of a training step with those of oneDNN's matrix product, at its fastest."""
    for threads in thread_counts(rows):
        here = [r for r in rows if r["threads"] == threads and r["kind"] == "training"]
        here = [r for r in here if {key: r[key] for key in PRODUCT} == PRODUCT]
        rates = {
            by: max((operations(r) / r["median"] for r in here if r["by"].startswith(by)), default=0.0)
            for by in ("oneDNN", "torch.addmm")
        }
        if not rates["oneDNN"]:
            continue
        ours = next(operations(r) / r["median"] for r in here if (r["cell"], r["by"]) == ("LSTM", "anyrnn"))
        theirs = next(operations(r) / r["median"] for r in here if (r["cell"], r["by"]) == ("LSTM", "torch.nn"))
        what, where = "LSTM, B, T, I, H = 32, 100, 256, 256", str(threads)
        for column, rate in {"ours": ours, "torch.nn": theirs, **rates}.items():
            yield Claim(what, where, f"{column}, Gflop/s", rate / 1e9, None)
        yield Claim(what, where, "ours / oneDNN", ours / rates["oneDNN"], 0.7)


def operations(row: Row) -> float:
    """Count the floating-point operations of the matrix products in a call of a layer, or of a product by its name."""
    kind, _, sizes = row["cell"].partition(" ")
    if kind == "product":
        return 2.0 * math.prod(map(int, sizes.split("x")))
    passes = 3 if row["kind"] == "training" else 1  # forward, to the gradients of x and h, to those of the weights
    return float(passes * 2 * row["steps"] * GATES[row["cell"]] * row["H"] * (row["I"] + row["H"]))


def bounds(rows: list[Row], case: str, by: str) -> str:
    """Show how much of the rate of oneDNN's product our layers reach, and what all of it would make of the ratio."""
    shapes = list(dict.fromkeys(shape_of(r) for r in rows if r["case"] == case))
    lines = []
    for threads in thread_counts(rows):
        products = [r for r in rows if r["threads"] == threads and r["by"].startswith("oneDNN")]
        rate = max(operations(r) / r["median"] for r in products)
        for cell in GATES:
            for kind, call in CALLS.items():
                here = [r for r in select(rows, case, kind, threads) if r["cell"] == cell]
                found = {(r["by"], shape_of(r)): (r["median"], operations(r) / rate) for r in here}
                if not found:
                    continue
                texts = []
                for shape in shapes:
                    (ours, least), (theirs, _) = found["anyrnn", shape], found[by, shape]
                    texts.append(f"{least / ours:.0%}, {theirs / least:.3g}x")
                lines.append((cell, str(threads), call, *texts))
    return table(("", "threads", "", *shapes), lines)


def select(rows: list[Row], where: str, kind: str, threads: int) -> list[Row]:
    """Choose rows by their case, or those of full batches of a size, "B=32"."""
    case, B = ("full", int(where[2:])) if where.startswith("B=") else (where, None)
    return [
        r for r in rows
        if (r["case"], r["kind"], r["threads"]) == (case, kind, threads) and B in (None, r["B"])
    ]  # fmt: skip


def ratios(rows: list[Row], one: tuple[str, str], other: tuple[str, str]) -> dict[str, float]:
    """Return how many times as long one (cell, by) took as another, for each shape."""
    base = {shape_of(r): r["median"] for r in rows if (r["cell"], r["by"]) == other}
    return {shape_of(r): r["median"] / base[shape_of(r)] for r in rows if (r["cell"], r["by"]) == one}


def shape_of(row: Row) -> str:
    return ",".join(str(row[letter]) for letter in "BTIH")


def geometric_mean(values: Collection[float]) -> float:
    return math.exp(math.fsum(map(math.log, values)) / len(values))


def thread_counts(rows: list[Row]) -> list[int]:
    return sorted({r["threads"] for r in rows})


def times(rows: list[Row]) -> str:
    """Show milliseconds, contenders by shapes; in brackets how many times as long as anyrnn's layer."""
    shapes = list(dict.fromkeys(map(shape_of, rows)))
    cells = {(r["cell"], r["by"], shape_of(r)): r["median"] for r in rows}

    def text(cell: str, by: str, shape: str) -> str:
        time, base = cells.get((cell, by, shape)), cells.get((cell, "anyrnn", shape))
        if time is None:
            return "-"
        return milliseconds(time) + ("" if by == "anyrnn" or base is None else f" ({time / base:.3g}x)")

    names = dict.fromkeys((r["cell"], r["by"]) for r in rows if not r["cell"].startswith("product"))
    return table(("", "by", *shapes), [(cell, by, *(text(cell, by, s) for s in shapes)) for cell, by in names])


def text(data: dict[str, Any]) -> Iterator[str]:
    """Make the section of results.md."""
    levels: dict[str, list[Row]] = {}
    for row in data["rows"]:
        levels.setdefault(row.get("level", "all"), []).append(row)
    found: dict[str, list[Claim]] = {}
    for level, rows in levels.items():
        behind = "" if level == "all" else f", both limited to {level}"
        found[f"### Times as long as anyrnn's layer{behind}"] = list(speed_claims(rows))
        found[f"### Times as long as anyrnn's LSTM{behind}"] = list(cost_claims(rows))
        found[f"### Rate of training{behind}"] = list(rate_claims(rows))
    rows = levels.get("all", [])  # of which the details are shown
    yield "## Layers"
    yield (
        f"`python benchmarks/layers.py --seconds {data['seconds']} --rounds {data['rounds']}` took {data['took']} s. "
        + verdict(c for claims in found.values() for c in claims)
    )
    for title, claims in found.items():
        if claims:
            yield title
            yield claims_table(claims, ("", "threads"))
    if any(r["by"].startswith("oneDNN") for r in rows):
        for case, by in (("full", "torch.nn"), ("ragged", "torch.nn, packed")):
            yield f"### Bounds beside {by}"
            yield (
                "How much of the rate of oneDNN's matrix product our layer reaches, counting only the operations of "
                "its own matrix products; and the ratio that all of that rate would give. Columns: B,T,I,H."
            )
            yield bounds(rows, case, by)
    for case, title in {
        "full": "all rows as long as T",
        "ragged": "lengths uniform in 1..T",
        "short": "few steps",
    }.items():
        for threads in thread_counts(rows):
            for kind, call in CALLS.items():
                chosen = select(rows, case, kind, threads)
                if chosen:
                    yield f"### Milliseconds, {call}, {title}, {threads} {'thread' if threads == 1 else 'threads'}"
                    yield "Columns: B,T,I,H."
                    yield times(chosen)
