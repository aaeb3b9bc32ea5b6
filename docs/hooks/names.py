"""Names in docstrings: `Recurrent` and `torch.nn.LSTM` are links to what they name, `weight_ih_l0` is code."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from docutils import nodes

if TYPE_CHECKING:
    from sphinx.addnodes import pending_xref
    from sphinx.application import Sphinx
    from sphinx.environment import BuildEnvironment

TORCH = "https://docs.pytorch.org/docs/stable/generated/"


def resolve(app: Sphinx, env: BuildEnvironment, node: pending_xref, text: nodes.Element) -> nodes.Element | None:
    """Resolve what Sphinx found no page for, without asking the network."""
    target = node.get("reftarget", "")
    if re.fullmatch(r"torch\.nn\.[A-Z]\w+", target):
        return nodes.reference("", "", text, refuri=f"{TORCH}{target}.html", internal=False)
    if node.get("reftype") == "obj":  # single backticks: most of them are code and no name of ours
        return text
    return None


def setup(app: Sphinx) -> dict[str, bool]:
    """Connect to Sphinx."""
    app.connect("missing-reference", resolve)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
