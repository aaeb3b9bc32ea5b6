"""Where the benchmarks write: one section each of results.json, from which all of results.md is made.

`python benchmarks/record.py` makes results.md once more.
"""

import importlib.metadata
import importlib.util
import json
import platform
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from anyrnn.workbench.doctor import machine

HERE = Path(__file__).parent

#: A section of results.json, and the module that makes text of it.
SECTIONS = {"layers": "layers_report", "short": "short", "start": "start", "memory": "memory", "streaming": "streaming"}

#: Sets of vector instructions, by what limits both sides to them: oneDNN's variable and ours.
LEVELS: dict[str, dict[str, str]] = {
    "all": {},
    "AVX2": {"ONEDNN_MAX_CPU_ISA": "AVX2", "ANYRNN_CPU": "x86-64-v3"},
}


@dataclass(frozen=True)
class Claim:
    """A number that has a target.

    Attributes:
        what: What it is a number of: with `where`, a row of a table.
        where: For instance the number of threads.
        column: The column.
        value: The number.
        limit: The target; None where there is none.
        at_most: Smaller is better.
        unit: Written behind both numbers.
        at: Where it was found, for a worst case.
    """

    what: str
    where: str
    column: str
    value: float
    limit: float | None
    at_most: bool = False
    unit: str = ""
    at: str = ""

    @property
    def met(self) -> bool | None:
        """Whether the target is reached; None where there is none."""
        if self.limit is None:
            return None
        return self.value <= self.limit if self.at_most else self.value >= self.limit

    def __str__(self) -> str:
        text = f"{self.value:.3g}{self.unit}" + (f" at {self.at}" if self.at else "")
        if self.limit is None:
            return text
        sign = "≤" if self.at_most else "≥"
        return f"{text} ({sign} {self.limit:g}{self.unit}: {'met' if self.met else '**not met**'})"


def claims_table(claims: Iterable[Claim], heads: tuple[str, str]) -> str:
    """Lay claims out in a table; claims of equal `what` and `where` share a row."""
    claims = list(claims)
    columns = list(dict.fromkeys(c.column for c in claims))
    rows = dict.fromkeys((c.what, c.where) for c in claims)
    cells = {(c.what, c.where, c.column): str(c) for c in claims}
    return table((*heads, *columns), [(*row, *(cells.get((*row, c), "-") for c in columns)) for row in rows])


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Write a Markdown table."""
    head = list(head)
    lines = [head, ["---"] * len(head), *map(list, rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def verdict(claims: Iterable[Claim]) -> str:
    """Count the targets that are met."""
    judged = [c.met for c in claims if c.met is not None]
    return f"{sum(judged)} of {len(judged)} targets met."


def write(section: str, data: dict[str, Any]) -> None:
    """Replace a section of results.json, and make results.md."""
    path = HERE / "results.json"
    whole = json.loads(path.read_text()) if path.exists() else {}
    packages = ("anyrnn", "torch", "llvmlite", "numpy", "jax", "jaxlib", "onnxruntime")
    found = {p: importlib.metadata.version(p) for p in packages if importlib.util.find_spec(p)}
    now = datetime.now(UTC).isoformat(timespec="minutes")
    whole[section] = {
        "machine": machine(), "date": now, "versions": {"python": platform.python_version(), **found}, **data
    }  # fmt: skip
    path.write_text(json.dumps({key: whole[key] for key in SECTIONS if key in whole}, indent=1) + "\n")
    render()


def render() -> None:
    """Make results.md from results.json."""
    whole = json.loads((HERE / "results.json").read_text())
    texts = ["# Measured", "Made by `make bench`; how, and what the words mean, is in [README.md](README.md)."]
    for section, data in whole.items():
        texts += importlib.import_module(SECTIONS[section]).text(data)
        versions = ", ".join(f"{name} {version}" for name, version in data["versions"].items())
        texts.append(f"*{data['machine']}; {versions}; {data['date']}*")
    (HERE / "results.md").write_text("\n\n".join(texts) + "\n")


if __name__ == "__main__":
    render()
