"""Every chapter as a notebook (.ipynb) beside its page, with a link below the page's title."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nbformat
from docutils import nodes
from myst_nb.core.read import read_myst_markdown_notebook

from hooks.plain import plain_code, plain_text

if TYPE_CHECKING:
    from nbformat import NotebookNode
    from sphinx.application import Sphinx
    from sphinx.environment import BuildEnvironment

CHAPTERS = "chapters/"
NEEDS = (
    "*A chapter of the documentation of anyrnn {version}, as a notebook. "
    "It needs `pip install -e '.[workbench,plot]'` in a clone of anyrnn.*"
)
# What Jupyter hides, for the tags that hide it on the site.
HIDDEN = {
    "hide-input": {"source_hidden": True},
    "hide-output": {"outputs_hidden": True},
    "hide-cell": {"source_hidden": True, "outputs_hidden": True},
}


def notebook_of(source: str, version: str) -> NotebookNode:
    """Return a chapter's source as a notebook without outputs."""
    notebook = read_myst_markdown_notebook(source)
    notebook.cells.insert(0, nbformat.v4.new_markdown_cell(NEEDS.format(version=version)))
    for number, cell in enumerate(notebook.cells):
        cell["id"] = f"cell-{number}"
        cell.source = plain_text(cell.source) if cell.cell_type == "markdown" else plain_code(cell.source)
        for tag in HIDDEN.keys() & cell.metadata.get("tags", ()):
            cell.metadata["jupyter"] = HIDDEN[tag]
    notebook.metadata = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
    nbformat.validate(notebook)
    return notebook


def add_link(app: Sphinx, doctree: nodes.document) -> None:
    """Put the link to the notebook below a chapter's title."""
    docname = app.env.docname
    if not docname.startswith(CHAPTERS):
        return
    name = f"{Path(docname).name}.ipynb"
    title = next(doctree.findall(nodes.title))
    link = nodes.reference("", "Download this chapter as a notebook", refuri=name, internal=False)
    title.parent.insert(title.parent.index(title) + 1, nodes.paragraph("", "", link, classes=["download"]))


def load_mathjax(
    app: Sphinx, pagename: str, templatename: str, context: dict[str, Any], doctree: nodes.document
) -> None:
    """Have MathJax loaded by every chapter: what a cell shows may hold equations, of which Sphinx knows nothing."""
    if pagename.startswith(CHAPTERS):
        context["has_maths_elements"] = True


def describe(app: Sphinx, doctree: nodes.document) -> None:
    """Give each figure of a chapter a text for who cannot see it: the first sentence behind it, which is about it."""
    if not app.env.docname.startswith(CHAPTERS):
        return
    figures: list[nodes.image] = []
    for node in doctree.findall(lambda node: isinstance(node, nodes.image | nodes.paragraph)):
        if isinstance(node, nodes.image):
            figures.append(node)
        elif figures:
            sentence = re.split(r"(?<=\.)\s", node.astext())[0]
            for figure in figures:
                figure["alt"] = f"A figure. {sentence}"
            figures = []


def write_notebooks(app: Sphinx, error: Exception | None) -> None:
    """Write the notebooks beside the pages."""
    if error or app.builder.format != "html":
        return
    for docname in app.env.found_docs:
        if docname.startswith(CHAPTERS):
            source = Path(app.env.doc2path(docname)).read_text(encoding="utf-8")
            target = Path(app.outdir) / f"{docname}.ipynb"
            nbformat.write(notebook_of(source, app.config.release), target)


def share_out(app: Sphinx, env: BuildEnvironment, docnames: list[str]) -> None:
    """Order the pages so that each process of a parallel build gets its share of the chapters, which take the time.

    Sphinx hands each process some neighbouring pages, at most ten.
    """
    chapters = [name for name in docnames if name.startswith(CHAPTERS)]
    others = [name for name in docnames if not name.startswith(CHAPTERS)]
    middle = (len(others) + 1) // 2
    docnames[:] = chapters[::2] + others[:middle] + chapters[1::2] + others[middle:]


def label(app: Sphinx, doctree: nodes.document) -> None:
    """Say what a click on a hidden cell shows: a solution, or the code of a figure."""
    for cell in doctree.findall(nodes.container):
        if cell.get("hide_mode") == "all":
            cell["prompt_show"], cell["prompt_hide"] = "Show the solution", "Hide the solution"
        elif cell.get("hide_mode") == "input":
            figure = any(each.get("mime_type", "").startswith("image/") for each in cell.findall(nodes.container))
            cell["prompt_show"] = "Show the code of this figure" if figure else "Show the code"


def setup(app: Sphinx) -> dict[str, bool]:
    """Connect to Sphinx."""
    app.connect("doctree-read", add_link)
    app.connect("doctree-read", label)
    app.connect("doctree-read", describe)
    app.connect("html-page-context", load_mathjax, priority=400)  # before Sphinx decides whether to, at 500
    app.connect("build-finished", write_notebooks)
    app.connect("env-before-read-docs", share_out)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
