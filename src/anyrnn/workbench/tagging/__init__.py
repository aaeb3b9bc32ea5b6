"""Tagging: a class or a number at each step, by recurrent networks beside answers that look at a step or a few.

``fit(load_tagged("table.csv", id_column="river", target_column="discharge"))`` trains a tagger and scores it.
"""

from anyrnn.workbench.tagging.load import load_tagged as load_tagged
from anyrnn.workbench.tagging.predict import predict as predict
from anyrnn.workbench.tagging.results import TagResults as TagResults
from anyrnn.workbench.tagging.results import compare as compare
from anyrnn.workbench.tagging.results import fit as fit
from anyrnn.workbench.tagging.spans import spans_of as spans_of
from anyrnn.workbench.tagging.steps import Steps as Steps
from anyrnn.workbench.tagging.steps import Tagging as Tagging
from anyrnn.workbench.tagging.stored import open_tag_run as open_tag_run
from anyrnn.workbench.tagging.train import TagSettings as TagSettings
