"""Figures: what the gates of a layer do over time, how far back gradients reach, how networks compare.

They lean on matplotlib, ``pip install 'anyrnn[plot]'``. Each function returns a figure that is not one of pyplot's: a
notebook shows it once, as the last expression of a cell, and a script calls its `savefig`.
"""

from anyrnn.errors import AnyRNNError as _AnyRNNError

try:
    import matplotlib as _matplotlib  # noqa: F401 - so that what is missing is said here
except ModuleNotFoundError as missing:
    message = f"anyrnn.plot: {missing.name} is not installed, expected matplotlib: pip install 'anyrnn[plot]'"
    raise _AnyRNNError(message) from missing

from anyrnn.plot.flows import gradient_flow as gradient_flow
from anyrnn.plot.heat_maps import gates as gates
from anyrnn.plot.scores import compare as compare
from anyrnn.plot.style import COLOURS as _COLOURS
from anyrnn.plot.style import STYLE as _STYLE
from anyrnn.plot.style import label_lines as label_lines

#: Five colours, told apart by the colour-blind, and each at least 3:1 against white.
COLOURS = _COLOURS

#: For `matplotlib.pyplot.style.use`: what these functions draw with. A figure is 6 inches wide, so that on a telephone,
#: 390 pixels wide, its text has 10 pixels.
STYLE = _STYLE
