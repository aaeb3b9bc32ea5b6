"""What to do after a comparison, as sentences with commands: it follows from what happened, and is said in the report.

A command is the one that was run, with other options. In Python it is the call, with other arguments.
"""

import math
import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from anyrnn.workbench.verdict import Comparison, Standing, number

_MOST = 4
_SEEDS = 5  # from which a standard deviation says something
_FLAGS = {"hidden_size": "--hidden"}  # of other names it is the name itself
_OF_LOADING = {"validation"}  # arguments of `load`, not of `compare`
_BARE = ("--resume", "--overwrite")  # options without a value: a new run is neither


@dataclass(frozen=True)
class Step:
    """One thing to do, and the command for it; "" where there is none to give."""

    text: str
    command: str = ""


def next_steps(results: Mapping[str, Any], c: Comparison) -> list[Step]:
    """Give two to four steps, the most urgent first; the last one uses the best network, if any can be used."""
    found = [*_to_finish(results["command"], c), *_against_divergence(results, c)]
    if not math.isfinite(c.best.mean):  # no network has a score
        return found
    found += [
        *_against_a_baseline(results, c),
        *_against_overfitting(results, c),
        *_against_chance(results, c),
    ]
    if not found:
        found = [_another_size(results, c)]
    return [*found[: _MOST - 1], _to_predict(c)]


def changed(command: str, **changes: object) -> str:
    """The command line that was run with other options, for a run of its own; "" if it is none of ours.

    >>> changed("anyrnn compare a.csv --seeds 3 --out runs/a", seeds=5, hidden_size=64)
    'anyrnn compare a.csv --out runs/a-next --seeds 5 --hidden 64'
    >>> changed("anyrnn fit a.csv --cell gru --seed 1", cells="gru", seeds=5)
    'anyrnn compare a.csv --cells gru --seeds 5'
    """
    words = _words(command)
    if not words:
        return ""
    if words[1] == "fit" and ("seeds" in changes or "cells" in changes):
        words = _without(["anyrnn", "compare", *("--cells" if w == "--cell" else w for w in words[2:])], "--seed")
    if "--out" in words[:-1]:
        at = words.index("--out") + 1
        words[at] = words[at].rstrip("/") + "-next"
    for name, value in changes.items():
        flag = _FLAGS.get(name, f"--{name.replace('_', '-')}")
        words = [*_without(words, flag), flag, f"{value}"]
    return shlex.join(words)


def _again(results: Mapping[str, Any], c: Comparison, **changes: object) -> str:
    """The comparison once more with other options: as a command line, or as the call in Python."""
    command: str = results["command"]
    if not re.fullmatch(r"anyrnn\.[\w.]+", command):
        return changed(command, **changes)
    if _OF_LOADING & set(changes):
        return ""
    names, seeds = changes.pop("cells", ",".join(m.name for m in c.models)), changes.pop("seeds", len(c.seeds))
    function = re.sub(r"\.fit$", ".compare", command)
    settings = ", ".join(f"{name}={value!r}" for name, value in changes.items())
    last = f", settings=dataclasses.replace(settings, {settings})" if settings else ""
    return f"{function}(data, {str(names).split(',')!r}, seeds={seeds}{last})"


def _split(command: str) -> list[str]:
    """The words of a command line that compares or fits; [] of anything else."""
    try:
        words = shlex.split(command)
    except ValueError:  # a quote that is not closed
        return []
    return words if words[:1] == ["anyrnn"] and words[1:2] in (["compare"], ["fit"]) else []


def _words(command: str) -> list[str]:
    """Those words with each value apart from its option, without what is about the folder of the run."""
    apart: list[str] = []
    for word in _split(command):
        apart += word.split("=", 1) if word.startswith("--") else [word]
    return [word for word in apart if word not in _BARE]


def _without(words: list[str], flag: str) -> list[str]:
    """The words without an option and its value."""
    if flag not in words:
        return words
    at = words.index(flag)
    return _without([*words[:at], *words[at + 2 :]], flag)


def _to_finish(command: str, c: Comparison) -> Iterator[Step]:
    if not c.unfinished:
        return
    text = f"{_named(c.unfinished)} had not all runs when the comparison was interrupted: finish it first."
    words = [word for word in _split(command) if word not in _BARE]
    yield Step(text, shlex.join([*words, "--resume"]) if words and c.is_kept else "")


def _against_divergence(results: Mapping[str, Any], c: Comparison) -> Iterator[Step]:
    diverged, settings = [model for model in c.models if model.diverged], results["settings"]
    rate = number(settings.get("learning_rate"))
    if diverged and rate > 0:
        text = f"{_titles(diverged)} diverged: smaller steps, a fifth of these, are the first thing to try."
        yield Step(text, _again(results, c, learning_rate=float(f"{rate / 5:.3g}")))
    if len(diverged) == len(c.models) and settings.get("clip_gradient", 0) is None:
        text = "If that is not enough, limit the gradient between two steps, which grows along a sequence."
        yield Step(text, _again(results, c, clip_gradient=1.0))


def _against_a_baseline(results: Mapping[str, Any], c: Comparison) -> Iterator[Step]:
    if not c.baselines or not c.lead(c.best.mean, c.baselines[0][1]) < -c.luck:
        return
    name, settings = c.baselines[0][0], results["settings"]
    text = f"The baseline “{name}” beats every network: use it, unless a change to the networks makes up for it."
    if _was_learning(c, c.best):
        more = 2 * c.epochs
        text += f" {c.best.title} was still getting better when its epochs ended: give it twice as many."
        yield Step(text, _again(results, c, epochs=more))
    elif settings.get("pool") == "last":
        text += " Reading the mean of all steps in place of the last one often helps where what matters comes early."
        yield Step(text, _again(results, c, pool="mean"))
    else:
        yield Step(f"{text} More training sequences are the surest one.")


def _was_learning(c: Comparison, model: Standing) -> bool:
    """Whether the validation part chose an epoch of the last tenth in each run."""
    return c.validated and all(run["epoch"] > 0.9 * len(run["history"]) for run in model.runs)


def _against_overfitting(results: Mapping[str, Any], c: Comparison) -> Iterator[Step]:
    settings = results["settings"]
    fell = [model for model in c.models if (decline := c.decline(model))[0] > decline[1]]  # false for NaN
    if fell:
        dropout = number(settings.get("dropout") or 0.0)
        changes: dict[str, object] = {"dropout": 0.3 if dropout < 0.3 else 0.5}
        remedy = "dropout" if not dropout else "more dropout"
        if dropout >= 0.5:
            half = int(settings["hidden_size"]) // 2
            changes, remedy = {"hidden_size": max(half, 1)}, "a smaller network"
        if settings.get("patience") is None:
            changes["patience"] = 10
        text = f"{_titles(fell)} {'overfits' if len(fell) == 1 else 'overfit'}: {remedy} is what to try first"
        text += ", and patience saves the epochs that make it worse." if "patience" in changes else "."
        yield Step(text, _again(results, c, **changes))
    elif not c.validated:
        late = [model for model in c.models if c.peak(model)[1] > c.luck]
        if late:
            text = f"{_titles(late)} did better before the last epoch: have a validation part choose the epoch."
            yield Step(text, _again(results, c, validation=0.2))


def _against_chance(results: Mapping[str, Any], c: Comparison) -> Iterator[Step]:
    """More seeds where a tie, or a network that was trained once, leaves the choice open."""
    tied = [c.best, *c.ties]
    seeds, names = len(c.seeds), ",".join(model.name for model in tied)
    if seeds >= _SEEDS:
        if c.ties:
            yield Step(f"{_titles(tied)} are tied after {seeds} seeds: take the one that costs least.")
        return
    if c.ties or _is_tied_with_a_baseline(c):
        rival = f"{_titles(tied)} are tied" if c.ties else f"{c.best.title} is tied with “{c.baselines[0][0]}”"
        text = f"{rival}: more seeds show how much of that is luck of the weights."
        if c.luck_test > c.luck_seeds and seeds > 1:
            text += f" What they cannot tell, with {len(c.targets):,} {c.unit}, a larger test part can."
        yield Step(text, _again(results, c, cells=names, seeds=_SEEDS))
    elif seeds == 1:
        names = ",".join(model.name for model in c.models)
        alone: dict[str, object] = {"cells": names} if len(c.models) == 1 else {}
        text = "Each network was trained once: more seeds show how far to trust a score."
        yield Step(text, _again(results, c, **alone, seeds=_SEEDS))


def _is_tied_with_a_baseline(c: Comparison) -> bool:
    return bool(c.baselines) and abs(c.lead(c.best.mean, c.baselines[0][1])) <= c.luck


def _another_size(results: Mapping[str, Any], c: Comparison) -> Step:
    size = results["settings"].get("hidden_size")
    text = f"{c.best.title} is the one to go on with: another size may do better still."
    return Step(text, _again(results, c, cells=c.best.name, hidden_size=2 * size) if size else "")


def _to_predict(c: Comparison) -> Step:
    own = f" --cells {shlex.quote(c.best.name)}" if ":" in c.best.name else ""
    text = f"To use {c.best.title} on new data; RUN is the folder of this report:"
    return Step(text, f"anyrnn predict RUN NEW_DATA{own}")


def _titles(models: list[Standing]) -> str:
    return _named([model.title for model in models])


def _named(names: list[str]) -> str:
    return f"{', '.join(names[:-1])} and {names[-1]}" if len(names) > 1 else names[0]
