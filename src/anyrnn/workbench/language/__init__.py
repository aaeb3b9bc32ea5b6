"""Text as a sequence: character and word models, trained, compared, and asked to write.

``fit(load_text("book.txt"))`` trains a model; ``generate`` has it write.
"""

from anyrnn.workbench.language.generate import generate as generate
from anyrnn.workbench.language.results import TextResults as TextResults
from anyrnn.workbench.language.results import compare as compare
from anyrnn.workbench.language.results import fit as fit
from anyrnn.workbench.language.stored import open_text_run as open_text_run
from anyrnn.workbench.language.text import Text as Text
from anyrnn.workbench.language.text import load_text as load_text
from anyrnn.workbench.language.train import TextSettings as TextSettings
