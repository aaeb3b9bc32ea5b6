"""The chapters of docs/chapters hold: their code runs in order, what it asserts is so, and each has its parts.

A chapter is a MyST notebook. Its cells run here in one namespace, in an empty folder, shortened: the constants of the
cell tagged `parameters` get the values under `short:` in the chapter's first lines, and cells tagged `full` are left
out. A cell tagged `raises-exception` has to raise. `make docs` runs everything as it stands.

    ANYRNN_CHAPTERS=full pytest tests/test_chapters.py -k gates    # unshortened
    python tests/test_chapters.py gates                            # one chapter unshortened, with the time of each cell
    python tests/test_chapters.py --format                         # rewrite the code of all chapters as ruff has it
"""

import ast
import os
import re
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Collection
from contextlib import chdir
from dataclasses import dataclass, replace
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from test_docs import anchors

ROOT = Path(__file__).parents[1]
CHAPTERS = {path.stem: path for path in sorted((ROOT / "docs" / "chapters").glob("*.md"))}
FULL = os.environ.get("ANYRNN_CHAPTERS") == "full"
FRONT = re.compile(r"\A---\n(.*?)^---\n", re.MULTILINE | re.DOTALL)
CELL = re.compile(r"^```\{code-cell\} ipython3\n((?::[^\n]*\n)*)(.*?)^```$", re.MULTILINE | re.DOTALL)
FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
TAGS = re.compile(r"^:tags: \[(.*)\]$", re.MULTILINE)
KNOWN_TAGS = {"parameters", "full", "raises-exception", "hide-input", "hide-cell", "hide-output", "remove-cell"}
#: A cell is as wide as a page.
RUFF = ("--line-length", "88")
#: Rules that a text made of cells breaks by its nature: it imports where it needs to, prints, shows its last line.
UNFIT = "D,E402,B018,T20,S,PLR,INP,N801,E741,ERA"


@dataclass(frozen=True)
class Cell:
    """A code cell.

    Attributes:
        code: Its text.
        line: The number of lines in front of its first one.
        tags: What it is tagged.
    """

    code: str
    line: int
    tags: frozenset[str]


@dataclass(frozen=True)
class Chapter:
    """A chapter: its file, its text, the constants that the test shortens, its cells in order."""

    path: Path
    text: str
    short: dict[str, Any]
    cells: tuple[Cell, ...]

    def tagged(self, tag: str) -> list[Cell]:
        return [cell for cell in self.cells if tag in cell.tags]


@cache
def read(name: str) -> Chapter:
    text = CHAPTERS[name].read_text(encoding="utf-8")
    front = FRONT.match(text)
    assert front, f"{CHAPTERS[name]}:1: a chapter begins with its front matter, between two lines ---"
    short = yaml.safe_load(front[1]).get("short") or {}
    return Chapter(CHAPTERS[name], text, short, tuple(map(cell_of, CELL.finditer(text))))


def cell_of(match: re.Match[str]) -> Cell:
    tags = TAGS.search(match[1])
    names = frozenset(tag.strip() for tag in tags[1].split(",")) if tags else frozenset()
    return Cell(match[2], match.string[: match.start(2)].count("\n"), names)


def shortened(chapter: Chapter) -> Chapter:
    """Put the short values in, and leave out what only a full run can bear out."""
    cells = []
    for cell in chapter.cells:
        if "parameters" in cell.tags:
            code = cell.code
            for name, value in chapter.short.items():
                code, times = re.subn(rf"^{name} = [^#\n]*", f"{name} = {value!r}  ", code, flags=re.MULTILINE)
                assert times == 1, f"{chapter.path}:{cell.line + 1}: short: {name} stands {times} times in this cell"
            cells.append(replace(cell, code=code))
        elif "full" not in cell.tags:
            cells.append(cell)
    return replace(chapter, cells=tuple(cells))


def run(chapter: Chapter, report: Any = None) -> None:
    """Run a chapter's cells in order.

    Raises:
        AssertionError: where a cell fails, with file and line; where one that should raise does not.
    """
    import matplotlib.pyplot as plt  # noqa: PLC0415 - no need for it, where there are no chapters to run

    plt.switch_backend("agg")
    namespace: dict[str, Any] = {"__name__": "__main__"}
    for cell in chapter.cells:
        start, raised = time.perf_counter(), False
        try:
            exec(compile("\n" * cell.line + cell.code, str(chapter.path), "exec"), namespace)
        except Exception as error:
            raised = True
            if "raises-exception" not in cell.tags:
                raise AssertionError(where(chapter, error)) from error
        finally:
            plt.close("all")
        assert raised == ("raises-exception" in cell.tags), f"{chapter.path}:{cell.line + 1}: this cell does not raise"
        if report:
            report(cell, time.perf_counter() - start)


def where(chapter: Chapter, error: Exception) -> str:
    """Say where in a chapter an error came up: the innermost of its lines, and the text of the line."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(chapter.path)]
    line = lines[-1] if lines else getattr(error, "lineno", None) or 1
    text = chapter.text.splitlines()[line - 1].strip()
    return f"{chapter.path}:{line}: {text}\n{type(error).__name__}: {error}"


@pytest.mark.long
@pytest.mark.parametrize("name", CHAPTERS)
def test_the_code_of_a_chapter_runs_and_what_it_asserts_holds(name, tmp_path):
    chapter = read(name)
    with chdir(tmp_path):
        run(chapter if FULL else shortened(chapter))


def test_the_chapters_are_numbered_from_one_on():
    assert [int(name.partition("-")[0]) for name in CHAPTERS] == list(range(1, len(CHAPTERS) + 1))


def sections(chapter: Chapter) -> dict[str, str]:
    """Return the text of each section, by its heading (without numbers); what is below a deeper heading is in it."""
    text = FRONT.sub("", chapter.text)
    heading = re.compile(rf"^## ([^\n]*)$|{FENCE.pattern}", FENCE.flags)
    starts = [match for match in heading.finditer(text) if match[1]]
    ends = [match.start() for match in starts[1:]] + [len(text)]
    return {match[1].strip(): text[match.end() : end] for match, end in zip(starts, ends, strict=True)}


@pytest.mark.parametrize("name", CHAPTERS)
def test_a_chapter_begins_with_a_figure_whose_code_is_hidden(name):
    chapter = read(name)
    start = chapter.text.split("\n## ")[0]
    figures = [cell for cell in map(cell_of, CELL.finditer(start)) if "plt." in cell.code and "hide-input" in cell.tags]
    assert figures, f"{chapter.path}: a figure, tagged hide-input, stands in front of the first section"


@pytest.mark.parametrize("name", CHAPTERS)
def test_a_chapter_has_three_exercises_whose_hidden_solutions_are_tests(name):
    chapter = read(name)
    parts = sections(chapter)
    assert "Exercises" in parts, f"{chapter.path}: there is no section '## Exercises'"
    checks = checks_of(chapter)
    exercises = re.split(r"^### ", parts["Exercises"], flags=re.MULTILINE)[1:]
    assert len(exercises) == 3, f"{chapter.path}: '## Exercises' has {len(exercises)} parts '### ...', expected 3"
    for exercise in exercises:
        title = exercise.partition("\n")[0]
        solutions = [cell for cell in map(cell_of, CELL.finditer(exercise)) if "hide-cell" in cell.tags]
        assert solutions, f"{chapter.path}: exercise '{title}' has no solution tagged hide-cell"
        nodes = (node for cell in solutions for node in ast.walk(ast.parse(cell.code)))
        assert any(is_a_check(node, checks) for node in nodes), (
            f"{chapter.path}: the solution of exercise '{title}' asserts nothing"
        )


def checks_of(chapter: Chapter) -> frozenset[str]:
    """Return the names that raise where something is not so: known ones, aliases of them, functions that assert."""
    names = {"assert_close", "assert_allclose", "gradcheck"}
    for node in (node for cell in chapter.cells for node in ast.walk(ast.parse(cell.code))):
        if isinstance(node, ast.Assign) and ast.unparse(node.value).rpartition(".")[2] in names:
            names.update(map(ast.unparse, node.targets))
        elif isinstance(node, ast.FunctionDef) and any(is_a_check(each, names) for each in ast.walk(node)):
            names.add(node.name)
    return frozenset(names)


def is_a_check(node: ast.AST, names: Collection[str]) -> bool:
    """Whether a statement can fail: assert, or a call of one of the names that `checks_of` finds."""
    return isinstance(node, ast.Assert) or (
        isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] in names
    )


@pytest.mark.parametrize("name", CHAPTERS)
def test_a_chapter_has_further_reading_and_says_what_each_source_leaves_out(name):
    parts = sections(read(name))
    assert "Further reading" in parts, f"{CHAPTERS[name]}: there is no section '## Further reading'"
    assert len(re.findall(r"https://", parts["Further reading"])) >= 2


@pytest.mark.parametrize("name", CHAPTERS)
def test_a_chapter_has_one_title_short_constants_and_known_tags(name):
    chapter = read(name)
    assert len(re.findall(r"^# .*$", FENCE.sub("", chapter.text), re.MULTILINE)) == 1
    assert len(chapter.cells) == chapter.text.count("{code-cell}"), "a cell begins ```{code-cell} ipython3"
    for cell in chapter.cells:
        assert cell.tags <= KNOWN_TAGS, f"{chapter.path}:{cell.line}: {cell.tags - KNOWN_TAGS}"
    assert len(chapter.tagged("parameters")) == bool(chapter.short), "one cell is tagged parameters, if there is short:"
    shortened(chapter)


@pytest.mark.parametrize("name", CHAPTERS)
def test_a_chapters_full_values_are_other_than_the_short_ones(name):
    chapter = read(name)
    for cell in chapter.tagged("parameters"):
        values = {node.targets[0].id: ast.literal_eval(node.value) for node in ast.parse(cell.code).body}
        assert not [key for key, value in chapter.short.items() if values[key] == value]


def ruff(*arguments: str) -> str:
    """Run ruff, and return what it has to say."""
    program = Path(sys.executable).with_name("ruff")
    done = subprocess.run([program, *arguments], capture_output=True, text=True, check=False, cwd=ROOT)
    return "" if done.returncode == 0 else done.stdout + done.stderr


def formatted(chapter: Chapter) -> str:
    """Return a chapter with its code as ruff would have it."""
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / f"{number}.py" for number, _ in enumerate(chapter.cells)]
        for file, cell in zip(files, chapter.cells, strict=True):
            file.write_text(cell.code, encoding="utf-8")
        problem = ruff("format", "--quiet", *RUFF, *map(str, files))
        assert not problem, f"{chapter.path}: {problem}"
        codes = iter([file.read_text(encoding="utf-8") for file in files])
    return CELL.sub(lambda cell: f"```{{code-cell}} ipython3\n{cell[1]}{next(codes)}```", chapter.text)


@pytest.mark.parametrize("name", CHAPTERS)
def test_the_code_of_a_chapter_has_the_projects_format(name):
    assert formatted(read(name)) == read(name).text, "rewrite it: python tests/test_chapters.py --format"


@pytest.mark.parametrize("name", CHAPTERS)
def test_the_code_of_a_chapter_passes_ruff(name, tmp_path):
    # All cells in one file, at the lines that they have in the chapter.
    chapter = read(name)
    file = tmp_path / "chapter.py"
    text, line = "", 0
    for cell in chapter.cells:
        text += "\n" * (cell.line - line) + cell.code
        line = cell.line + cell.code.count("\n")
    file.write_text(text, encoding="utf-8")
    config = str(ROOT / "pyproject.toml")
    problem = ruff(
        "check", "--config", config, "--extend-ignore", UNFIT, "--output-format", "concise", *RUFF, str(file)
    )
    assert not problem, problem.replace(str(file), str(chapter.path))


def test_every_term_that_a_chapter_links_to_is_in_the_glossary():
    glossary = (ROOT / "docs" / "glossary.md").read_text(encoding="utf-8")
    terms = {line.strip().lower() for line, after in pairwise(glossary.splitlines()) if after.startswith("  ")}
    for name in CHAPTERS:
        used = re.findall(r"\{term\}`(?:[^`<]*<)?([^`>]+)>?`", read(name).text)
        assert not {term for term in used if term.strip().lower() not in terms}, name


@pytest.mark.parametrize("name", CHAPTERS)
def test_links_of_a_chapter_lead_somewhere_and_its_commands_are_there(name):
    text = FENCE.sub("", read(name).text)
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if not link.startswith("https://"):
            path, _, anchor = link.partition("#")
            target = (CHAPTERS[name].parent / path) if path else CHAPTERS[name]
            assert target.is_file(), link
            assert not anchor or anchor in anchors(target.read_text(encoding="utf-8")), link
    for program in re.findall(r"\bpython ((?:benchmarks|examples)/[\w/]+\.py)", read(name).text):
        assert (ROOT / program).is_file(), program


CODE = "```{{code-cell}} ipython3\n{}\n```\n\n"


def made_up(text: str) -> Chapter:
    return Chapter(Path("made-up.md"), text, {}, tuple(map(cell_of, CELL.finditer(text))))


def test_where_a_failure_is_said_by_file_and_line():
    chapter = made_up("# T\n\n" + CODE.format("def f():\n    assert 1 == 2, 'no'") + CODE.format("f()"))
    with pytest.raises(AssertionError, match=r"made-up\.md:5: assert 1 == 2, 'no'\nAssertionError: no"):
        run(chapter)


def test_a_cell_that_should_raise_and_does_not_is_seen():
    run(made_up(CODE.format(":tags: [raises-exception]\n1 / 0")))
    with pytest.raises(AssertionError, match=r"made-up\.md:3: this cell does not raise"):
        run(made_up(CODE.format(":tags: [raises-exception]\n1 / 1")))


@pytest.mark.parametrize(
    ("code", "checks"),
    [
        ("x = 1\nprint(x)", False),
        ("assert x", True),
        ("torch.testing.assert_close(a, b)", True),
        ("same(a, b)", True),
        ("compare(a, b)", True),
        ("show(a, b)", False),
    ],
)
def test_what_counts_as_a_test_in_a_solution(code, checks):
    names = checks_of(
        made_up(
            CODE.format("same = torch.testing.assert_close\ndef compare(a, b):\n    same(a, b)")
            + CODE.format("def show(a, b):\n    print(a, b)")
        )
    )
    assert any(is_a_check(node, names) for node in ast.walk(ast.parse(code))) == checks


def test_the_short_values_take_the_place_of_the_full_ones():
    cell = Cell("STEPS = 400  # of training\nSEEDS = (0, 1)\nOTHER = 3\n", 0, frozenset({"parameters"}))
    chapter = Chapter(Path("made-up.md"), "", {"STEPS": 10, "SEEDS": [0]}, (cell, Cell("", 0, frozenset({"full"}))))
    assert [each.code for each in shortened(chapter).cells] == ["STEPS = 10  # of training\nSEEDS = [0]  \nOTHER = 3\n"]
    with pytest.raises(AssertionError, match="short: STEP stands 0 times"):
        shortened(replace(chapter, short={"STEP": 10}))


def main(wanted: str) -> None:
    """Rewrite the code of all chapters (--format), or run one, unshortened."""
    if wanted == "--format":
        for name, path in CHAPTERS.items():
            path.write_text(formatted(read(name)), encoding="utf-8")
        return
    [name] = [name for name in CHAPTERS if wanted in name]
    torch.set_num_threads(1)
    torch.manual_seed(0)
    begin = time.perf_counter()
    with tempfile.TemporaryDirectory() as empty, chdir(empty):
        run(read(name), lambda cell, seconds: print(f"{CHAPTERS[name]}:{cell.line + 1}  {seconds:6.1f} s"))  # noqa: T201
    print(f"{time.perf_counter() - begin:6.1f} s in all")  # noqa: T201


if __name__ == "__main__":
    main(*sys.argv[1:])
