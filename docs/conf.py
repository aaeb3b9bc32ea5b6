"""The documentation site: `make docs` executes the chapters and builds build/site, which opens from disk.

What Sphinx does not do of itself is in `hooks/`: links that hold in the repository and on the site (`links.py`), names
in docstrings (`names.py`), chapters as notebooks to download (`notebooks.py`), figures as SVG (`figures.py`).
"""

import importlib.util
import os
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

import anyrnn  # noqa: E402

project = "anyrnn"
author = "the anyrnn authors"
copyright = "the anyrnn authors, Apache-2.0"  # noqa: A001
version = release = anyrnn.__version__

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "myst_nb",
    "hooks.figures",
    "hooks.links",
    "hooks.names",
    "hooks.notebooks",
]
exclude_patterns = ["hooks"]
nitpicky = True
smartquotes_action = "D"  # dashes, but no other quotes: "last" in a text is what one types

# --- Markdown
myst_enable_extensions = ["amsmath", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 4  # as GitHub makes them
myst_links_external_new_tab = False

# --- Chapters: every one is executed in each build, in an empty folder.
nb_execution_mode = "force"
nb_execution_timeout = 300  # seconds a cell: a minute is what an author aims at, on a machine that does nothing else
nb_execution_show_tb = True  # an error is a warning of the build, which fails of it after all chapters were run
nb_execution_in_temp = True
nb_merge_streams = True  # what a cell prints is one block
nb_render_error_lexer = "text"  # an error is shown by its last line, which is not code
nb_code_prompt_hide = "Hide the code"  # what it says before the click: hooks/notebooks.py

# --- API pages: from the docstrings, which describe types in words.
autodoc_typehints = "none"
autodoc_member_order = "bysource"
autodoc_class_signature = "mixed"
napoleon_use_rtype = False
napoleon_attr_annotations = False
default_role = "py:name"  # `Recurrent` in a docstring is a link, `weight_ih_l0` is code (hooks/names.py)
add_module_names = False
python_display_short_literal_types = True

# --- HTML
html_theme = "furo"
html_title = "anyrnn"
html_static_path = ["static"]
html_css_files = ["custom.css"]
html_copy_source = False
html_show_sourcelink = False
html_theme_options = {
    "light_css_variables": {"color-brand-primary": "#1b5e8c", "color-brand-content": "#1b5e8c"},
    "dark_css_variables": {"color-brand-primary": "#7fc1ee", "color-brand-content": "#7fc1ee"},
}
pygments_style = "default"
pygments_dark_style = "github-dark"

# MathJax comes with the site: one file, whose output is SVG, so that no font has to be loaded (which browsers refuse to
# pages opened from disk). The package has no name that `import` would take, and is only a folder to us.
_mathjax = Path(importlib.util.find_spec("sphinx-mathjax-offline").origin).parent / "static" / "mathjax"
html_static_path.append(str(_mathjax / "tex-svg.js"))
mathjax_path = "tex-svg.js"
mathjax3_config = {"svg": {"scale": 0.95}, "options": {"enableMenu": False}}

# One thread: the numbers of a chapter are then those of its test, and two chapters are executed at once.
os.environ["OMP_NUM_THREADS"] = "1"
