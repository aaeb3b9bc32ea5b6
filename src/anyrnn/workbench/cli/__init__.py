"""The command line. An option is declared once, in `options.py`; `commands.py` says which command takes it."""

from anyrnn.workbench.cli.commands import app as app
