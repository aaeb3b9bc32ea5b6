"""Do the tests notice a wrong compiler? Small mistakes put into a copy of the sources, and the tests of the area run.

`python tests/mutants.py --sample 60 --seed 0 [--only src/anyrnn/rules.py] [--lines 100 140]`. A mutant is one
change: an arithmetic sign, a comparison, a boolean, a number by one, a `not` more or less, `and` for `or`. Nothing is
changed in the tree itself: the copy lies in a temporary folder, first on the path. Docstrings, messages, annotations,
asserts and `zip(..., strict=True)`, which only watch over the rest, are no targets. A test that fails on the unchanged
copy as well kills nothing.

A survivor is a test that is missing, or a change that changes no result: an optimization, a bound of a cache. What ran
out of time is undecided: run it again with a longer `--timeout`.
"""

from __future__ import annotations

import argparse
import ast
import copy
import itertools
import multiprocessing
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch  # noqa: F401 - for the processes to come

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[1]

#: The tests of each area, the quick ones and those likeliest to notice first.
_TRACE = "test_split.py test_protocol.py cpu/test_trust.py cpu/test_any_cell.py"
_LOWER = "test_lower.py test_split.py cpu/test_products.py cpu/test_any_cell.py cpu/test_types.py"
_DERIVE = "test_split.py cpu/test_none.py cpu/test_streams.py cpu/test_once.py cpu/test_any_cell.py test_lower.py"
_SELECT = "test_engines.py test_short.py test_dropin.py test_transforms.py"
_EMIT = (
    "cpu/test_engine.py::test_every_operation_of_a_program_is_emitted cpu/test_outer.py "
    "cpu/test_engine.py cpu/test_streams.py cpu/test_any_cell.py"
)
_TYPES = "cpu/test_types.py::test_a_type_that_makes_a_difference_is_refused cpu/test_types.py test_lower.py"
_HOST = "cpu/test_machine.py cpu/test_threads.py cpu/test_memory.py cpu/test_jit.py"
_READ = "workbench/test_bad_data.py workbench/test_data.py"
AREAS = {
    **dict.fromkeys(("trace", "reach", "twin", "witness"), _TRACE),
    **dict.fromkeys(("lower", "rules", "ops", "node", "passes", "contraction"), _LOWER),
    "program": "test_program.py test_split.py test_lower.py",
    "dtypes": _TYPES,
    "autograd": "cpu/test_trust.py::test_what_hooks_on_saved_tensors_hand_back_is_checked cpu/test_within_pytorch.py",
    "gradients": f"cpu/test_none.py {_EMIT} test_transforms.py",
    "records": "test_record.py",
    "checks": "test_messages.py test_meaning.py",
    **dict.fromkeys(("derive", "split", "gradient_paths", "opaque_function"), _DERIVE),
    **dict.fromkeys(("operators", "graph_text", "traced"), "test_graph_text.py test_compile.py test_export.py"),
    **dict.fromkeys(("attempt", "call", "reference", "select", "vendor", "short"), _SELECT),
    **dict.fromkeys(("anatomy", "emit", "emit_outer", "engine", "layout", "loop"), _EMIT),
    **dict.fromkeys(("backend", "kernel", "parts", "lock"), _EMIT),
    **dict.fromkeys(("outer", "plans", "products", "schedule", "slots", "tile", "writer"), _EMIT),
    **dict.fromkeys(("math", "vectors"), "cpu/test_math.py cpu/test_extremes.py test_lower.py"),
    **dict.fromkeys(("machine", "memory", "threads", "jit"), _HOST),
    **dict.fromkeys(("ts", "table", "data", "sequences"), _READ),
    "runs": "workbench/test_runs.py",
    "metrics": "workbench/test_metrics.py",
    "schedules": "workbench/test_validation.py",
    "convolutions": "workbench/test_baselines.py",
}
_PACKAGES = "", "/compiler", "/runtime", "/engines", "/engines/cpu", "/workbench"
FOLDERS = tuple(f"src/anyrnn{package}" for package in _PACKAGES)

_OTHER = {
    **{ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Add, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult},
    **{ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq},
    **{ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In, ast.And: ast.Or, ast.Or: ast.And},
}


@dataclass(frozen=True)
class Mutant:
    """`source` of `file` with the bytes from `start` to `stop` replaced by `text`."""

    file: str
    line: int
    start: int
    stop: int
    text: str
    source: bytes

    @property
    def mutated(self) -> bytes:
        return self.source[: self.start] + self.text.encode() + self.source[self.stop :]

    def __str__(self) -> str:
        first = self.source.rfind(b"\n", 0, self.start) + 1
        last = self.source.find(b"\n", self.stop)
        before = self.source[first:last].decode()
        after = (self.source[first : self.start] + self.text.encode() + self.source[self.stop : last]).decode()
        return "\n".join(f"    {sign} {' '.join(line.split())}" for sign, line in (("-", before), ("+", after)))


def variants(node: ast.AST) -> Iterator[tuple[ast.expr, ast.expr]]:
    """(what to replace, by what): the small mistakes that can be made at this node, not below it."""
    if isinstance(node, (ast.BinOp, ast.BoolOp)) and type(node.op) in _OTHER:
        texts = isinstance(node, ast.BinOp) and any(map(_is_text, (node.left, node.right)))
        if not texts:
            other = copy.copy(node)
            other.op = _OTHER[type(node.op)]()
            yield node, other
    elif isinstance(node, ast.Compare):
        for i, op in enumerate(node.ops):
            other = copy.copy(node)
            other.ops = [*node.ops[:i], _OTHER[type(op)](), *node.ops[i + 1 :]]
            yield node, other
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.USub, ast.Not)):
        yield node, node.operand
    elif isinstance(node, ast.Constant) and isinstance(node.value, bool):
        yield node, ast.Constant(not node.value)
    elif isinstance(node, ast.Constant) and isinstance(node.value, int):
        yield node, ast.Constant(node.value + 1)
    tests = [node.test] if isinstance(node, (ast.If, ast.While, ast.IfExp)) else getattr(node, "ifs", [])
    for test in tests:  # of a comparison, `not` is its opposite, which comes anyway
        if isinstance(test, (ast.Name, ast.Attribute, ast.Call)):
            yield test, ast.UnaryOp(ast.Not(), test)


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Constant) and isinstance(node.value, str))


def targets(node: ast.AST) -> Iterator[ast.AST]:
    """The nodes that may be changed."""
    if isinstance(node, (ast.Raise, ast.Assert, ast.JoinedStr)):
        return
    if isinstance(node, ast.keyword) and node.arg in {"strict", "frozen"}:
        return
    if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
        return
    yield node
    for name, field in ast.iter_fields(node):
        if name in {"annotation", "returns"}:
            continue
        for child in field if isinstance(field, list) else [field]:
            if isinstance(child, ast.AST):
                yield from targets(child)


def mutants_of(file: str) -> list[Mutant]:
    source = (ROOT / file).read_bytes()
    lines = [0]
    for line in source.splitlines(keepends=True):
        lines.append(lines[-1] + len(line))
    found = []
    for node in targets(ast.parse(source)):
        for old, new in variants(node):
            start, stop = lines[old.lineno - 1] + old.col_offset, lines[old.end_lineno - 1] + old.end_col_offset
            text = ast.unparse(new)
            simple = isinstance(new, (ast.Constant, ast.Name, ast.Attribute, ast.Call, ast.Subscript))
            found.append(Mutant(file, old.lineno, start, stop, text if simple else f"({text})", source))
    return found


def sample(mutants: list[Mutant], size: int, seed: int) -> list[Mutant]:
    """One of each `size`-th part of the list, which is in the order of files and lines: spread over them by their size.

    In an order by chance, so that a run broken off is a sample too.
    """
    draw = random.Random(seed)
    edges = [round(i * len(mutants) / size) for i in range(size + 1)]
    chosen = [draw.choice(mutants[a:b]) for a, b in itertools.pairwise(edges) if a < b]
    draw.shuffle(chosen)
    return chosen


def tests_of(file: str) -> list[str]:
    tests = [f"tests/{name}" for name in AREAS[Path(file).stem].split()]
    for test in tests:  # what pytest does not find would look like a kill
        path, _, function = test.partition("::")
        if f"def {function}" not in (ROOT / path).read_text():
            sys.exit(f"no such test: {test}")
    return tests


class Copy:
    """A copy of the sources and tests, in which mutants are tried."""

    def __init__(self, folder: Path, seconds: float) -> None:
        self.folder, self.seconds = folder, seconds
        self.sound: set[str] = set()  # tests seen to pass on the unchanged sources
        self.broken: list[str] = []  # tests that fail on them too, and so say nothing
        for part in ("src", "tests"):
            shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "pyproject.toml", folder)

    def outcome(self, mutant: Mutant) -> tuple[str, str]:
        """("killed", "survived" or "timed out", the test that killed it)."""
        target = self.folder / mutant.file
        while True:
            target.write_bytes(mutant.mutated)
            outcome, failed = self._run(tests_of(mutant.file))
            target.write_bytes(mutant.source)
            if not failed or failed in self.sound:
                return outcome, failed
            if self._run([failed])[0] == "survived":
                self.sound.add(failed)
            else:
                self.broken.append(failed)

    def _run(self, tests: list[str]) -> tuple[str, str]:
        skipped = [f"--deselect={test}" for test in self.broken]
        arguments = ["-x", "-q", "-p", "no:xdist", "--tb=no", *skipped, *tests]
        process = multiprocessing.get_context("fork").Process(target=_pytest, args=(self.folder, arguments))
        process.start()
        process.join(self.seconds)
        if process.exitcode is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.join()
            return "timed out", ""
        said = (self.folder / "said").read_text(errors="replace")
        failed = re.search(r"^FAILED (.+?)( - |$)", said, re.MULTILINE)
        return "killed" if process.exitcode else "survived", failed[1] if failed else ""


def _pytest(folder: Path, arguments: list[str]) -> None:
    """In a process of its own, which has imported torch already: that takes longer than many a test."""
    os.setsid()  # a group of its own: tests start processes
    with (folder / "said").open("w") as said:
        os.dup2(said.fileno(), 1)
        os.dup2(said.fileno(), 2)
    os.chdir(folder)
    os.environ["PYTHONPATH"] = str(folder / "src")
    sys.path[:0] = [str(folder / "src")]
    sys.argv[0] = "pytest"
    sys.exit(pytest.main(arguments))


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--sample", type=int, default=60)
    arguments.add_argument("--seed", type=int, default=0)
    arguments.add_argument("--only", action="append", help="a file, as src/anyrnn/rules.py")
    arguments.add_argument("--lines", type=int, nargs=2, default=(0, sys.maxsize), help="first and last")
    arguments.add_argument("--timeout", type=float, default=120, help="seconds for a mutant")
    given = arguments.parse_args()
    every = [str(p.relative_to(ROOT)) for folder in FOLDERS for p in sorted((ROOT / folder).glob("*.py"))]
    files = given.only or [file for file in every if Path(file).stem in AREAS]
    of_all = [m for file in files for m in mutants_of(file) if given.lines[0] <= m.line <= given.lines[1]]
    chosen = sample(of_all, given.sample, given.seed)
    print(f"{len(chosen)} of {len(of_all)} mutants of {len(files)} files", flush=True)
    totals: Counter[str] = Counter()
    with tempfile.TemporaryDirectory(prefix="anyrnn-mutants-") as folder:
        tried = Copy(Path(folder), given.timeout)
        for i, mutant in enumerate(chosen, 1):
            start = time.monotonic()
            outcome, failed = tried.outcome(mutant)
            totals[outcome] += 1
            print(f"{i:3} {outcome:9} {time.monotonic() - start:4.0f} s  {mutant.file}:{mutant.line}  {failed}")
            print(mutant, flush=True)
    print(", ".join(f"{outcome} {count}" for outcome, count in sorted(totals.items())))
    for test in tried.broken:
        print(f"left out, fails on the unchanged sources: {test}")


if __name__ == "__main__":
    main()
