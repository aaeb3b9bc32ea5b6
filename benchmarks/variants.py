"""What separates peephole LSTM, GRU and bidirectional LSTM: the three tasks of chapter 3, with more seeds and training.

`python benchmarks/variants.py` takes the functions of docs/chapters/3-variants.md as they stand there, trains
each network on each task, and writes variants.json beside itself after every seed.
"""

from __future__ import annotations

import argparse
import ast
import json
import re
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import binary_cross_entropy

HERE = Path(__file__).parent
CHAPTER = HERE.parent / "docs" / "chapters" / "3-variants.md"
CELL = re.compile(r"^```\{code-cell\} ipython3\n(?::[^\n]*\n)*(.*?)^```$", re.MULTILINE | re.DOTALL)

WANTED = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef)
RATES = (0.005, 0.02)
TIMING, FUTURE, COUNTING = {"steps": 3000}, {"steps": 400}, {"steps": 2000, "longest": 10, "asked": 200}


def functions(chapter: Path) -> dict[str, Any]:
    """Return what a chapter imports and defines: functions, and constants in capitals; nothing else of it is run."""
    space: dict[str, Any] = {}
    for cell in CELL.findall(chapter.read_text(encoding="utf-8")):
        for node in ast.parse(cell).body:
            is_constant = isinstance(node, ast.Assign) and ast.unparse(node.targets[0]).isupper()
            if is_constant or isinstance(node, WANTED):
                exec(ast.unparse(node), space)
    return space


def run(seed: int, page: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Train every network on every task that can tell something about it, from one seed."""
    causal = ("LSTM", "peephole", "GRU")
    return {
        "timing": {
            kind: [page["timing"](kind, seed, rate=rate, **TIMING) for rate in RATES]
            for kind in (*causal, "peephole, old c")
        },
        "future": {kind: page["future"](kind, seed, **FUTURE) for kind in (*causal, "biLSTM")},
        "counting": {kind: page["counting"](kind, seed, **COUNTING)[0] for kind in causal},
    }


def main() -> None:
    """Run the seeds, and write what came out."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    torch.set_num_threads(1)
    page = functions(CHAPTER)
    torch.manual_seed(10_000)
    page["x_test"], page["y_test"] = page["hidden_level"](40, 2000)
    answers = page["best_answers"](page["x_test"])
    causal, both = (binary_cross_entropy(answer, page["y_test"]).item() for answer in answers)
    settings = {"timing": {"rates": RATES, **TIMING}, "future": FUTURE, "counting": COUNTING}
    results = {"settings": settings, "best": {"causal": causal, "all": both}, "torch": torch.__version__, "seeds": []}
    for seed in range(parser.parse_args().seeds):
        results["seeds"].append(run(seed, page))
        (HERE / "variants.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
        print(seed, json.dumps(results["seeds"][-1]), flush=True)


if __name__ == "__main__":
    main()
