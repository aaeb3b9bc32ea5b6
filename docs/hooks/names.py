"""Names in docstrings: `Recurrent` and `torch.nn.LSTM` are links to what they name, `weight_ih_l0` is code."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from docutils import nodes
from sphinx.domains.python import PyXRefRole

if TYPE_CHECKING:
    from sphinx.addnodes import pending_xref
    from sphinx.application import Sphinx
    from sphinx.environment import BuildEnvironment

TORCH = "https://docs.pytorch.org/docs/stable/generated/"


class Name(PyXRefRole):
    """What single backticks are in a docstring: a name of the package, if there is one."""

    def process_link(
        self, env: BuildEnvironment, refnode: nodes.Element, has_explicit_title: bool, title: str, target: str
    ) -> tuple[str, str]:
        """Look for the name as one of the module, not of the class, whose arguments often are named as its methods."""
        title, target = super().process_link(env, refnode, has_explicit_title, title, target)
        refnode["reftype"], refnode["py:class"] = "obj", None
        return title, target


def resolve(app: Sphinx, env: BuildEnvironment, node: pending_xref, text: nodes.Element) -> nodes.Element | None:
    """Resolve what Sphinx found no page for, without asking the network."""
    target = node.get("reftarget", "")
    if re.fullmatch(r"torch\.nn\.[A-Z]\w+", target):
        return nodes.reference("", "", text, refuri=f"{TORCH}{target}.html", internal=False)
    if node.get("reftype") == "obj":  # single backticks: most of them are code and no name of ours
        return text
    return None


def keep_colon(app: Sphinx, what: str, name: str, value: object, options: object, lines: list[str]) -> None:
    """Keep napoleon from reading "The state" in "The state: a copy" as the type of an attribute.

    It looks for a colon in the first line only, so that line gets the first word for itself.
    """
    if what in ("attribute", "property", "data") and " " in lines[0]:
        lines[:1] = lines[0].split(" ", 1)


def setup(app: Sphinx) -> dict[str, bool]:
    """Connect to Sphinx."""
    app.add_role_to_domain("py", "name", Name())
    app.connect("missing-reference", resolve)
    app.connect("autodoc-process-docstring", keep_colon, priority=400)  # before napoleon, which is at 500
    return {"parallel_read_safe": True, "parallel_write_safe": True}
