"""What separates peephole LSTM, GRU and bidirectional LSTM: the three tasks of chapter 3, with more seeds and training.

`python benchmarks/variants.py --seeds 10` takes the functions of docs/chapters/3-variants.md as they stand there, trains
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

HERE = Path(__file__).parent
CHAPTER = HERE.parent / "docs" / "chapters" / "3-variants.md"
CELL = re.compile(r"^```\{code-cell\} ipython3\n(?::[^\n]*\n)*(.*?)^```$", re.MULTILINE | re.DOTALL)

TIMING, FUTURE, COUNTING = {"steps": 3000}, {"steps": 400}, {"steps": 2000, "longest": 10, "asked": 200}


def functions(chapter: Path) -> dict[str, Any]:
    """Return what a chapter imports and defines: functions, and constants in capitals; nothing else of it is run."""
    space: dict[str, Any] = {}
    for cell in CELL.findall(chapter.read_text(encoding="utf-8")):
        for node in ast.parse(cell).body:
            is_constant = isinstance(node, ast.Assign) and ast.unparse(node.targets[0]).isupper()
            if is_constant or isinstance(node, ast.Import | ast.ImportFrom | ast.FunctionDef):
                exec(ast.unparse(node), space)
    return space


def run(seed: int, page: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Train every network on every task that can tell something about it, from one seed."""
    causal = ("LSTM", "peephole", "GRU")
    return {
        "timing": {kind: page["timing"](kind, seed, **TIMING) for kind in (*causal, "peephole, old c")},
        "future": {kind: page["future"](kind, seed, **FUTURE) for kind in (*causal, "biLSTM")},
        "counting": {kind: page["counting"](kind, seed, **COUNTING)[0] for kind in causal},
    }


def main() -> None:
    """Run the seeds, and write what came out."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=10)
    torch.set_num_threads(1)
    page = functions(CHAPTER)
    torch.manual_seed(10_000)
    page["x_test"], page["y_test"] = page["hidden_level"](40, 2000)
    best = [torch.nn.functional.binary_cross_entropy(p, page["y_test"]).item() for p in page["best_answers"](page["x_test"])]
    settings = {"timing": TIMING, "future": FUTURE, "counting": COUNTING, "torch": torch.__version__}
    results = {"settings": settings, "best": {"causal": best[0], "all": best[1]}, "seeds": []}
    for seed in range(parser.parse_args().seeds):
        results["seeds"].append(run(seed, page))
        (HERE / "variants.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
        print(seed, json.dumps(results["seeds"][-1]), flush=True)


if __name__ == "__main__":
    main()
