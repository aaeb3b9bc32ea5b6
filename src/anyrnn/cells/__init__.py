"""The cells: one step of each recurrent network, one file a family, equations only."""

from anyrnn.cells.base import Cell as Cell
from anyrnn.cells.gru import GRUCell as GRUCell
from anyrnn.cells.lstm import LSTMCell as LSTMCell
from anyrnn.cells.lstm import PeepholeLSTMCell as PeepholeLSTMCell
from anyrnn.cells.rnn import RNNCell as RNNCell
from anyrnn.cells.wrappers import GateWrapper as GateWrapper
from anyrnn.cells.wrappers import IndependentRecurrence as IndependentRecurrence
from anyrnn.cells.wrappers import LayerNormed as LayerNormed
from anyrnn.cells.wrappers import MultiplicativeIntegration as MultiplicativeIntegration
from anyrnn.cells.wrappers import Projected as Projected
from anyrnn.cells.wrappers import Residual as Residual
from anyrnn.cells.wrappers import Wrapper as Wrapper
