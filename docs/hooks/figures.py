"""Figures of the chapters are SVG: sharp on every screen, and each is shown once.

A chapter's kernel starts with a profile of its own (IPYTHONDIR), so that nobody's settings reach the site.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sphinx.application import Sphinx

# Runs in the kernel before the first cell. Jupyter's own backend shows a figure twice where a cell ends with its name.
STARTUP = '''\
"""Show each open figure at the end of its cell, as SVG, unless the cell has shown it; of an error, its last line."""
import os

os.environ["MPLBACKEND"] = "agg"

import matplotlib
import matplotlib.pyplot as plt
from IPython import get_ipython
from IPython.core.pylabtools import select_figure_formats
from IPython.display import display

matplotlib.use("agg")
matplotlib.rcParams["svg.hashsalt"] = "anyrnn"  # the same figure is the same file
select_figure_formats(get_ipython(), {"svg"})


def show(result):
    for number in plt.get_fignums():
        figure = plt.figure(number)
        if figure is not result.result:
            display(figure)
    plt.close("all")


get_ipython().events.register("post_run_cell", show)
get_ipython().run_line_magic("xmode", "Minimal")
'''


def write_profile(app: Sphinx) -> None:
    """Make the profile with which the kernels of this build start."""
    app.kernel_profile = tempfile.TemporaryDirectory(prefix="anyrnn-docs-")
    startup = Path(app.kernel_profile.name) / "profile_default" / "startup"
    startup.mkdir(parents=True)
    (startup / "figures.py").write_text(STARTUP, encoding="utf-8")
    # A kernel warns that what it says to this build is not encrypted. It does not leave the machine.
    (startup.parent / "ipython_kernel_config.py").write_text("get_config().IPKernelApp.log_level = 40\n")
    os.environ["IPYTHONDIR"] = app.kernel_profile.name


def remove_profile(app: Sphinx, error: Exception | None) -> None:
    """Leave nothing behind."""
    app.kernel_profile.cleanup()


def setup(app: Sphinx) -> dict[str, bool]:
    """Connect to Sphinx."""
    app.connect("builder-inited", write_profile)
    app.connect("build-finished", remove_profile)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
