"""Run folders that are damaged at random: they open as they are, or are refused in a line; nothing in between.

A short run is part of the tests. `python tests/workbench/test_fuzz_runs.py 3600` goes on for that many seconds, each
round with another seed, and prints what it found.
"""

import copy
import hashlib
import json
import os
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from anyrnn.errors import AnyRNNError
from anyrnn.workbench.compare import compare
from anyrnn.workbench.data import Dataset
from anyrnn.workbench.runs import check_destination, open_run
from anyrnn.workbench.sequences import Sequences
from anyrnn.workbench.train import Settings

FILES = ("results.json", "models/lstm.json", "models/lstm.safetensors", "models/bilstm.json")
HOSTILE = st.sampled_from(
    [None, True, False, 0, 1, -1, 2, 5, 10**9, 2**63, 10**400, 1e308, -0.0, 1e-320, float("nan"), float("inf"),
     "", "lstm", "gru", "../../x", "/etc/passwd", "os:system", "antigravity:Module", "a" * 5000, "\ud800", "\0", "last",
     [], {}, [[]], {"": {}}, ["lstm"], [1e308, 1e308], {"mean": [], "std": []}, {"name": "lstm"}]
)  # fmt: skip
VALUES = st.recursive(
    HOSTILE | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4),
    max_leaves=8,
)


def held(path: Path) -> bytes:
    """What a file holds; the damage before may have left a pipe there, which would never end."""
    if not path.is_file():
        raise FileNotFoundError(path)
    return path.read_bytes()


def places(content: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths to every value in a JSON document."""
    inner = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    return [path, *(place for key, value in inner for place in places(value, (*path, key)))]


def at(content: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        content = content[key]
    return content


@st.composite
def json_damage(draw: st.DrawFn) -> Callable[[Path], None]:
    """Replace, remove, double or move some values of a JSON file."""
    name = draw(st.sampled_from([file for file in FILES if file.endswith(".json")]))
    random, count = draw(st.randoms(use_true_random=False)), draw(st.integers(1, 4))
    values = [draw(VALUES) for _ in range(count)]
    acts = [draw(st.sampled_from(["replace", "remove", "double", "move"])) for _ in range(count)]

    def damage(folder: Path) -> None:
        content = json.loads(held(folder / name))
        # Of the thousands of predictions in results.json nobody reads any: most damage goes where it is read.
        for act, value in zip(acts, values, strict=True):
            path = random.choice([p for p in places(content) if p and len(p) <= random.choice((1, 2, 3, 9))] or [()])
            if not path:
                content = value
                break
            parent = at(content, path[:-1])
            if act == "remove":
                del parent[path[-1]]
            elif act == "double" and isinstance(parent, list):
                parent.append(copy.deepcopy(parent[path[-1]]))
            elif act == "move":
                parent[path[-1]] = copy.deepcopy(at(content, random.choice(places(content))))
            else:
                parent[path[-1]] = value
        text = json.dumps(content)
        (folder / name).write_bytes(text.encode("utf-8", "surrogatepass"))

    return damage


@st.composite
def byte_damage(draw: st.DrawFn) -> Callable[[Path], None]:
    """Cut, overwrite or insert bytes; half of the time the checksum of the weights is made to fit."""
    name = draw(st.sampled_from(FILES))
    share, data, act = draw(st.floats(0, 1)), draw(st.binary(max_size=40)), draw(st.sampled_from(["cut", "put", "add"]))
    mend = draw(st.booleans())

    def damage(folder: Path) -> None:
        path = folder / name
        content = held(path)
        # The header of the weights, which says where they are, is the first of the file.
        place = int(share * min(len(content), 2000))
        rest = b"" if act == "cut" else content[place + (len(data) if act == "put" else 0) :]
        path.write_bytes(content[:place] + data + rest)
        if mend:
            with_checksum(folder)

    return damage


@st.composite
def file_damage(draw: st.DrawFn) -> Callable[[Path], None]:
    """Remove a file, or put another kind of thing in its place."""
    name, kind = draw(st.sampled_from((*FILES, "models"))), draw(st.sampled_from(KINDS))

    def damage(folder: Path) -> None:
        path = folder / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        kind(path)

    return damage


def _nothing(_: Path) -> None: ...
def _folder(path: Path) -> None:
    path.mkdir()


def _loop(path: Path) -> None:
    path.symlink_to(path.name)


def _endless(path: Path) -> None:
    path.symlink_to("/dev/zero")


def _pipe(path: Path) -> None:
    os.mkfifo(path)


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(os.path.relpath(path))  # an address is at most 108 bytes


KINDS = [_nothing, _folder, _loop, _endless, *([_pipe, _socket] if hasattr(os, "mkfifo") else [])]
DAMAGE = st.lists(st.one_of(json_damage(), json_damage(), byte_damage(), file_damage()), min_size=1, max_size=2)


def with_checksum(folder: Path) -> None:
    try:
        description = json.loads(held(folder / "models/lstm.json"))
        description["sha256"] = hashlib.sha256(held(folder / "models/lstm.safetensors")).hexdigest()
        (folder / "models/lstm.json").write_text(json.dumps(description))
    except (OSError, ValueError, TypeError):
        return


X = tuple(torch.randn(3 + k % 2, 2, generator=torch.Generator().manual_seed(k)) for k in range(6))


def make(folder: Path) -> Path:
    part = Sequences(X, torch.tensor([0, 1] * 3), tuple(map(str, range(6))))
    dataset = Dataset("made", ("a", "b"), ("no", "yes"), "y", part, part, "made here")
    return compare(dataset, ["lstm", "bilstm"], seeds=1, settings=Settings(hidden_size=3, epochs=1)).save(folder)


def check(whole: Path, damages: list[Callable[[Path], None]]) -> str:
    """Damage a copy; returns "opened" or "refused", and raises what is neither."""
    before = set(sys.modules)
    with tempfile.TemporaryDirectory(dir=whole.parent) as temporary:
        folder = Path(temporary, "run")
        shutil.copytree(whole, folder)
        try:
            for damage in damages:
                damage(folder)
        except (OSError, ValueError, TypeError, KeyError):
            return "refused"  # the second damage did not find what the first one took away
        outcome = "opened"
        for name in ("lstm", "bilstm", None):
            try:
                predictions = open_run(folder).predict(X, model=name)
            except AnyRNNError:
                outcome = "refused"
            else:
                assert len(predictions.values) == len(X)
                assert all(value == value for value in predictions.values)
                assert predictions.labels is None or len(predictions.labels) == len(X)
        kept = sorted(folder.rglob("*"))
        with suppress(AnyRNNError):
            check_destination(folder, overwrite=True)
        assert sorted(folder.rglob("*")) == kept
    imported = {name.partition(".")[0] for name in set(sys.modules) - before}
    assert not imported & {"antigravity", "x"}
    return outcome


def fuzz(examples: int, first: int) -> dict[str, int]:
    """Try so many damaged folders; returns how many opened and how many were refused."""
    outcomes = {"opened": 0, "refused": 0}
    with tempfile.TemporaryDirectory() as temporary:
        whole, here = make(Path(temporary, "whole")), Path.cwd()
        os.chdir(temporary)

        @settings(
            max_examples=examples,
            deadline=None,
            database=None,
            phases=(Phase.generate, Phase.shrink),
            suppress_health_check=list(HealthCheck),
        )
        @seed(first)
        @given(DAMAGE)
        def each(damages: list[Callable[[Path], None]]) -> None:
            outcomes[check(whole, damages)] += 1

        try:
            assert check(whole, []) == "opened"
            each()
        finally:
            os.chdir(here)
    return outcomes


def test_a_damaged_run_folder_opens_or_is_refused_in_a_line() -> None:
    outcomes = fuzz(100, first=0)
    assert outcomes["refused"] > 30
    assert outcomes["opened"] > 3


if __name__ == "__main__":
    end, turn = time.monotonic() + float(sys.argv[1]), 0
    while time.monotonic() < end:
        turn += 1
        print(turn, fuzz(200, first=time.time_ns()), flush=True)  # noqa: T201
