"""What the documentation site adds to Sphinx: links, notebooks, the check of what was built. `make docs` builds it."""

from pathlib import Path

import check_links
import pytest
from hooks.links import DOCS, ROOT, pages_of_files, rewritten
from hooks.plain import plain_code, plain_text

README = ROOT / "README.md"
WRAPPER = DOCS / "project" / "readme.md"
DATA = "src/anyrnn/workbench/datasets"
CHAPTER = DOCS / "chapters" / "1-a-chapter.md"


@pytest.mark.parametrize(
    ("link", "source", "page", "expected"),
    [
        # From the README, which is a page by way of another: to a page, to a place in it, to another included file.
        ("docs/meaning.md", README, WRAPPER, "../meaning.md"),
        ("docs/own-cells.md#checkpoints", README, WRAPPER, "../own-cells.md#checkpoints"),
        ("benchmarks/README.md#a", README, WRAPPER, "benchmarks.md#a"),
        # To a file without a page: to the file, which is then copied.
        ("docs/images/report.png", README, WRAPPER, "../images/report.png"),
        ("examples/lem.py", README, WRAPPER, "../../examples/lem.py"),
        (f"{DATA}/README.md", README, WRAPPER, f"path:../../{DATA}/README.md"),
        # From a page of docs/ to the README's page.
        ("../README.md#install", DOCS / "index.md", DOCS / "index.md", "project/readme.md#install"),
        ("../../README.md", CHAPTER, CHAPTER, "../project/readme.md"),
        ("../own-cells.md", CHAPTER, CHAPTER, "../own-cells.md"),
        # What is not a path stays, and so does what is not there: Sphinx will say so.
        ("nowhere.md", README, WRAPPER, "nowhere.md"),
        ("#a-heading", README, WRAPPER, "#a-heading"),
        ("https://arxiv.org/abs/1", README, WRAPPER, "https://arxiv.org/abs/1"),
    ],
)  # fmt: skip
def test_a_link_of_the_repository_leads_to_the_same_on_the_site(link, source, page, expected):
    assert rewritten(f"see [it]({link}).", source, page, pages_of_files()) == f"see [it]({expected})."


def test_links_in_code_stay():
    text = "`[a](README.md)`\n\n```text\n[a](README.md)\n```\n\n````text\n```\n[a](README.md)\n````\n"
    assert rewritten(text, README, WRAPPER, pages_of_files()) == text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("the {term}`hidden state` h", "the hidden state h"),
        ("two {term}`gates <gate>`", "two gates"),
        ("`h[0](x)` and ``{term}`x` ``", "`h[0](x)` and ``{term}`x` ``"),
        ("```{math}\n:label: a\nx = 1\n```", "$$\nx = 1\n$$"),
        (
            "see [own cells](../own-cells.md#a) and [a paper](https://x.org)",
            "see own cells and [a paper](https://x.org)",
        ),
        ("```{note}\nTake care.\n\nMuch.\n```\n\nOn.", "> Take care.\n>\n> Much.\n\nOn."),
        (":::{admonition} The trap\n:class: warning\nTake care.\n:::", "> **The trap**\n>\n> Take care."),
    ],
)
def test_a_notebook_has_no_markup_that_only_the_site_understands(text, expected):
    assert plain_text(text) == expected


def test_a_notebook_shows_a_figure_once():
    assert plain_code("fig, ax = plt.subplots()\nax.plot(x)\nfig") == "fig, ax = plt.subplots()\nax.plot(x)\nplt.show()"
    assert plain_code("fig = plot.gates(record)\nfig") == "fig = plot.gates(record)\nfig"  # no figure of pyplot


def test_a_broken_link_of_the_built_site_is_found(tmp_path, capsys):
    (tmp_path / "sub").mkdir()
    page, other = tmp_path / "index.html", tmp_path / "sub" / "other.html"
    other.write_text('<p id="here">x</p><a href="../index.html">back</a>')
    good = (
        '<a href="sub/other.html#here">a</a><a href="https://arxiv.org/abs/1">b</a><img src="data:x"><a href="#">c</a>'
    )
    page.write_text(good)
    assert check_links.main(tmp_path) == 0
    assert "2 pages, 5 links, 0 of them wrong" in capsys.readouterr().out
    for bad, said in (
        ("sub/missing.html", "no such file"),
        ("sub/other.html#there", "no such place in the page"),
        ("#there", "no such place in the page"),
        ("http://arxiv.org", "is https"),
        ("https://nowhere", "is https"),
    ):
        page.write_text(f'{good}<a href="{bad}">d</a>')
        check_links.read.cache_clear()
        assert check_links.main(tmp_path) == 1, bad
        assert f"index.html: {bad}: " in (out := capsys.readouterr().out)
        assert said in out


def test_no_page_is_no_site(tmp_path: Path):
    assert check_links.main(tmp_path) == 1
