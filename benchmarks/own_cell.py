"""How coRNN learns the adding problem, explicit and implicit, beside an LSTM: chapter 8's functions, longer.

`python benchmarks/own_cell.py` takes the functions of docs/chapters/8-your-own-cell.md as they stand there, and writes
own_cell.json beside itself after every seed.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch

from variants import functions

HERE = Path(__file__).parent
CHAPTER = HERE.parent / "docs" / "chapters" / "8-your-own-cell.md"
SETTINGS = {"T": 100, "steps": 2000}


def main() -> None:
    """Run the seeds, and write what came out."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    torch.set_num_threads(1)
    page = functions(CHAPTER)
    results = {"settings": SETTINGS, "torch": torch.__version__, "seeds": []}
    for seed in range(parser.parse_args().seeds):
        curves = {kind: page["learn"](kind, seed=seed, **SETTINGS) for kind in page["LAYERS"]}
        results["seeds"].append({kind: [round(error, 5) for error in curve] for kind, curve in curves.items()})
        (HERE / "own_cell.json").write_text(json.dumps(results) + "\n", encoding="utf-8")
        print(seed, {kind: curve[-1] for kind, curve in curves.items()}, flush=True)


if __name__ == "__main__":
    main()
