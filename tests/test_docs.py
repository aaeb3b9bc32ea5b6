"""The README and the pages of docs/ can't rot: their code is run, what it prints stands in them, links lead somewhere.

The ``python`` blocks of a page run in order, in one namespace and an empty folder. What a block prints stands in the
``text``, ``llvm`` or ``asm`` block right after it; a block that begins with ``# name.py`` is written to that file too.

``python tests/test_docs.py`` puts what the blocks print now into the pages, and the table of what a cell may do
(`cpu/test_what_a_cell_may_do.py`).
"""

import importlib.util
import inspect
import io
import os
import platform
import re
import sys
import tempfile
from contextlib import chdir, redirect_stdout
from pathlib import Path
from unittest import mock

import pytest
import torch
import typer

import anyrnn
from anyrnn.arguments import LayerOptions
from anyrnn.engines.cpu.machine import Machine
from anyrnn.workbench.cli import app

ROOT = Path(__file__).parents[1]
PAGES = {
    str(path.relative_to(ROOT)): path
    for path in (
        ROOT / "README.md",
        ROOT / "CONTRIBUTING.md",
        ROOT / "CHANGELOG.md",
        ROOT / "examples" / "README.md",
        *sorted((ROOT / "docs").glob("*.md")),
    )
}
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
OUTPUT = ("text", "llvm", "asm")
#: Pages whose code takes seconds.
LONG = ("docs/workbench.md", "docs/estimators.md", "docs/sequences.md")
#: The compiler numbers values, registers and labels anew with every change; the instructions are what a page shows.
NUMBERED = {"llvm": re.compile(r'%"[^"]*"'), "asm": re.compile(r"%[a-z]+[0-9]*|\.L\w+")}


def page_of(name: str) -> str:
    return PAGES[name].read_text(encoding="utf-8")


def refreshed(name: str) -> str:
    """Run a page's code, and return the page with what it prints."""
    page, namespace = page_of(name), {"__name__": "page"}
    parts: list[str] = []
    printed, runs, end = "", False, 0
    for block in BLOCK.finditer(page):
        between, language, content = page[end : block.start()], block[1], block[2]
        shows, runs = runs and language in OUTPUT and not between.strip(), language == "python"
        if shows:
            content, printed = printed, ""
        line = page[: block.start(2)].count("\n")
        assert not printed, f"{name}:{line}: what the code above prints is not shown below it: {printed}"
        if runs:
            printed = run(content, str(PAGES[name]), line, namespace)
        parts += [between, f"```{language}\n", content, "```"]
        end = block.end()
    assert not printed, f"{name}: what the last block prints is not shown below it: {printed}"
    return "".join([*parts, page[end:]])


def run(code: str, path: str, line: int, namespace: dict[str, object]) -> str:
    """Run a block, and return what it prints."""
    if own := re.match(r"# (\w+\.py)\n", code):
        Path(own[1]).write_text(code, encoding="utf-8")
    with redirect_stdout(io.StringIO()) as out:
        exec(compile("\n" * line + code, path, "exec"), namespace)
    return out.getvalue()


def comparable(page: str) -> str:
    def blank(block: re.Match[str]) -> str:
        return NUMBERED[block[1]].sub("%", block[0]) if block[1] in NUMBERED else block[0]

    return BLOCK.sub(blank, page)


#: Pages about libraries that have an environment of their own: `make test-estimators` runs these.
ELSEWHERE = {"docs/aeon.md": ("aeon", "sktime"), "docs/skorch.md": ("skorch",), "docs/lightning.md": ("lightning",)}


def lacking(name: str) -> list[str]:
    """The libraries that a page needs and that are not installed here."""
    return [each for each in ELSEWHERE.get(name, ()) if importlib.util.find_spec(each) is None]


def code_for_another_processor(name: str) -> bool:
    """Whether a page shows code for a processor (ANYRNN_CPU) that this one is not."""
    wanted = re.search(r'"ANYRNN_CPU"\] = "([\w-]+)"', page_of(name))
    return bool(wanted) and (platform.machine() not in ("x86_64", "AMD64") or bool(Machine.named(wanted[1]).missing()))


# torch.export warns of itself.
@pytest.mark.filterwarnings(r"ignore:`isinstance\(treespec, LeafSpec\)` is deprecated:FutureWarning")
@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.long] * (n in LONG)) for n in PAGES if "```python" in page_of(n)]
)
def test_the_code_of_a_page_runs_and_prints_what_the_page_says(name, tmp_path):
    if lacking(name):
        pytest.skip(f"{', '.join(lacking(name))}: not installed here: make test-estimators")
    if code_for_another_processor(name):
        pytest.skip("this processor cannot run the code that the page shows")
    with chdir(tmp_path), mock.patch.dict(os.environ):
        assert comparable(refreshed(name)) == comparable(page_of(name)), "refresh it: python tests/test_docs.py"


def anchors(page: str) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", BLOCK.sub("", page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("name", PAGES)
def test_links_and_images_of_a_page_are_there(name):
    page = BLOCK.sub("", page_of(name))
    for link in re.findall(r"\]\(([^)\s]+)\)", page) + re.findall(r'(?:src|href)="([^"]+)"', page):
        if not link.startswith("https://"):
            path, _, anchor = link.partition("#")
            target = PAGES[name].parent / path if path else PAGES[name]
            assert target.exists(), link
            assert not anchor or anchor in anchors(target.read_text(encoding="utf-8")), link


def test_every_page_is_linked_from_the_readme():
    assert not [name for name in PAGES if name != "README.md" and f"]({name})" not in page_of("README.md")]


@pytest.mark.parametrize("name", PAGES)
def test_commands_of_a_page_exist_with_their_options(name):
    commands = typer.main.get_command(app).commands
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    for block in BLOCK.finditer(page_of(name)):
        for line in block[2].replace("\\\n", " ").splitlines() if block[1] == "sh" else ():
            program, *words = line.partition("#")[0].split() or [""]
            if program == "make":
                assert {word for word in words if "=" not in word} <= targets, line
            elif program == "anyrnn" and words[0] != "--help":
                options = {option for parameter in commands[words[0]].params for option in parameter.opts}
                assert {word for word in words if word.startswith("--")} <= options, line


@pytest.mark.parametrize("name", PAGES)
def test_environment_variables_of_a_page_are_read_somewhere(name):
    source = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "src").rglob("*.py"))
    for variable in set(re.findall(r"ANYRNN_\w+", page_of(name))):
        assert variable in source, variable


PUBLIC = {k: v for k, v in vars(anyrnn).items() if not k.startswith("_") and not inspect.ismodule(v)}
# What has no section of the three, and why.
WITHOUT = {
    "AnyRNNError": ("Args", "Raises", "Example"),  # not called by users
    "Explanation": ("Args", "Raises", "Example"),  # made by `explain`
    "Stream": ("Args", "Raises", "Example"),  # made by `layer.stream`
    "restore": ("Example",),  # `accelerate` has both
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLIC)
def test_a_public_name_has_a_docstring_with_its_arguments_errors_and_an_example(name):
    text = f"{inspect.getdoc(PUBLIC[name])}\n"
    sections = dict(re.findall(r"^(\w+):\n((?: .*\n|\n)*)", text, re.MULTILINE))
    expected = {"Args", "Raises", "Example"} - set(WITHOUT.get(name, ()))
    assert expected <= set(sections)
    if "Args" in expected:
        described = re.findall(r"^    (\*{0,2}\w+):", sections["Args"], re.MULTILINE)
        parameters = [
            str(p).partition(":")[0].partition("=")[0] for p in inspect.signature(PUBLIC[name]).parameters.values()
        ]
        if name == "Recurrent":  # whose options are described one by one: those of every layer
            assert parameters.pop() == "**options"
            described, options = described[: len(parameters)], described[len(parameters) :]
            assert sorted(options) == sorted(LayerOptions.__annotations__)
        assert described == parameters
    assert "Example" not in expected or ">>> " in sections["Example"]


if __name__ == "__main__":
    torch.set_num_threads(1)
    for each, path in PAGES.items():
        if lacking(each):
            continue
        with tempfile.TemporaryDirectory() as folder, chdir(folder), mock.patch.dict(os.environ):
            torch.manual_seed(0)
            path.write_text(refreshed(each), encoding="utf-8")
    sys.path.append(str(ROOT / "tests" / "cpu"))
    from test_what_a_cell_may_do import PAGE
    from test_what_a_cell_may_do import refreshed as with_its_table

    PAGE.write_text(with_its_table(), encoding="utf-8")
