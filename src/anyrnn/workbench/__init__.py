"""Which recurrent network suits your sequences: data in, a fair comparison, a report and saved models out.

What the command line does, from Python: ``compare(load("japanese-vowels"))``. It needs the extra ``anyrnn[workbench]``.
"""

from anyrnn.workbench.arrays import from_arrays as from_arrays
from anyrnn.workbench.compare import Results as Results
from anyrnn.workbench.compare import compare as compare
from anyrnn.workbench.compare import fit as fit
from anyrnn.workbench.data import Dataset as Dataset
from anyrnn.workbench.data import load as load
from anyrnn.workbench.data import load_for_prediction as load_for_prediction
from anyrnn.workbench.runs import open_run as open_run
from anyrnn.workbench.sequences import Sequences as Sequences
from anyrnn.workbench.train import Settings as Settings
from anyrnn.workbench.tune import tune as tune
