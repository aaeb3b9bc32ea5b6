"""Results as `anyrnn compare` makes them, without any training: for the tests of the report."""

import math
import random
import statistics
from typing import Any

import torch

from anyrnn.workbench.report import Gates

TITLES = {"rnn": "RNN", "lstm": "LSTM", "gru": "GRU", "peephole": "Peephole LSTM", "bilstm": "Bidirectional LSTM"}


def comparison(
    right: dict[str, list[float]],
    *,
    classes: list[str] | None = None,
    number: bool = False,
    N: int = 200,
    epochs: int = 30,
    baselines: dict[str, float] | None = None,
) -> dict[str, Any]:
    """Make results as `anyrnn compare` does: for each model, the share of right answers (or the rmse) of each seed.

    Predictions, scores and curves belong together: a score is counted from the predictions.
    """
    draw = random.Random(0)
    classes = None if number else classes or ["ba", "da", "ga"]
    targets = [draw.gauss(0, 1) if number else draw.randrange(len(classes)) for _ in range(N)]
    models = []
    for k, (name, shares) in enumerate(right.items()):
        runs = [_run(seed, share, targets, classes, epochs, draw) for seed, share in enumerate(shares)]
        scores = [run["score"] for run in runs]
        known = all(score is not None for score in scores)
        models.append(
            {
                "name": name,
                "title": TITLES.get(name, name),
                "layer": f"{name}(12, 100)",
                "parameters": 12_345 * (k + 1),
                "engines": ["cpu"],
                "score_mean": statistics.fmean(scores) if known else None,
                "score_std": statistics.stdev(scores) if known and len(scores) > 1 else None,
                "train_seconds": 3.25 * (k + 1),
                "step_microseconds": 40.5 / (k + 1),
                "runs": runs,
            }
        )
    sign = -1 if number else 1
    best = max(models, key=lambda m: -math.inf if m["score_mean"] is None else sign * m["score_mean"])
    return {
        "format": 1,
        "anyrnn": "0.1.0",
        "torch": "2.13.0",
        "threads": 2,
        "machine": "AMD EPYC, Linux",
        "command": "anyrnn compare data.csv --seeds 3",
        "dataset": {
            "name": "syllables",
            "task": "regression" if number else "classification",
            "target": "pitch" if number else "syllable",
            "features": ["a", "b", "c"],
            "classes": classes,
            "train": 500,
            "test": N,
            "shortest": 7,
            "longest": 29,
            "split": "30 % of the sequences, drawn with seed 0",
            "attribution": None,
        },
        "settings": {"hidden_size": 100, "epochs": epochs, "learning_rate": 0.001, "clip": None, "cells": list(right)},
        "metric": {"name": "rmse" if number else "accuracy", "higher_is_better": not number},
        "seeds": list(range(len(next(iter(right.values()))))),
        "models": models,
        "baselines": [{"name": n, "score": s} for n, s in (baselines or {}).items()],
        "test_ids": [f"s{k}" for k in range(N)],
        "test_targets": targets,
        "best": best["name"],
    }


def _run(
    seed: int, share: float, targets: list[float], classes: list[str] | None, epochs: int, draw: random.Random
) -> dict[str, Any]:
    diverged = math.isnan(share)
    predictions: list[float | None]
    if classes is None:
        predictions = [None if diverged else t + draw.gauss(0, share) for t in targets]
        score = (
            None
            if diverged
            else math.sqrt(statistics.fmean((p - t) ** 2 for p, t in zip(predictions, targets, strict=True)))
        )
    else:
        wrong = set(draw.sample(range(len(targets)), len(targets) if diverged else round((1 - share) * len(targets))))
        predictions = [(t + 1) % len(classes) if k in wrong else t for k, t in enumerate(targets)]
        score = 1 - len(wrong) / len(targets)
    history = []
    for epoch in range(1, epochs + 1):
        loss = math.nan if diverged and epoch > epochs // 2 else 2 * math.exp(-epoch / 8) * draw.uniform(0.8, 1.2)
        last = 0.0 if score is None else score
        test = last + (1 if classes is None else -last) * math.exp(-epoch / 4) * draw.uniform(0.9, 1.1)
        history.append({"epoch": epoch, "train_loss": loss, "test_score": None if score is None else test})
    return {"seed": seed, "score": score, "seconds": 3.0, "history": history, "predictions": predictions}


SIX = {
    "rnn": [0.93, 0.935, 0.94],
    "lstm": [0.97, 0.965, 0.96],
    "gru": [0.968, 0.97, 0.972],
    "peephole": [0.96, 0.955, 0.97],
    "bilstm": [0.985, 0.975, 0.98],
    "two-layer": [0.95, 0.97, 0.94],
}
NAN = math.nan
SIMPLE = {"majority class": 0.3, "1-nearest neighbour on summary statistics": 0.8}
CASES = {
    "six models": comparison(SIX, N=370, baselines=SIMPLE),
    "one model, one seed": comparison({"gru": [0.9]}, baselines=SIMPLE),
    "no baselines": comparison({"gru": [0.9], "lstm": [0.8]}),
    "fifty classes": comparison(SIX, classes=[f"word {k}" for k in range(50)], N=1500, baselines=SIMPLE),
    "twelve models": comparison({f"my cell {k}": [0.9 - k / 100] for k in range(12)}, epochs=1),
    "numbers": comparison({"rnn": [0.31, 0.33], "lstm": [0.25, 0.26]}, number=True, baselines={"mean": 1.0}),
    "some diverged": comparison({"rnn": [0.3, NAN], "lstm": [0.2, 0.21], "gru": [NAN, NAN]}, number=True),
    "diverged class": comparison({"rnn": [0.9, 0.91], "lstm": [NAN, 0.92]}, baselines=SIMPLE),
    "all diverged": comparison({"rnn": [NAN], "lstm": [NAN]}, number=True, baselines={"mean": 1.0}),
    "long names": comparison({"my.very.long.module:" + "Cell" * 20: [0.9]}, classes=["no", "yes " * 20]),
}


def gates(T: int = 9, H: int = 16) -> Gates:
    torch.manual_seed(0)
    matrices = {
        "i": torch.rand(T, H),
        "g": torch.rand(T, H) * 2 - 1,
        "my own": tuple(map(tuple, torch.randn(T, H).tolist())),
    }
    return Gates("GRU", "s7", "ba", "da", matrices, {"i": (0, 1), "g": (-1, 1)}, torch.randn(T, 3))
