"""The cells: one step of each recurrent network, one file a family, equations only."""

from anyrnn.cells.base import Cell as Cell
from anyrnn.cells.gru import GRUCell as GRUCell
from anyrnn.cells.lstm import LSTMCell as LSTMCell
from anyrnn.cells.lstm import PeepholeLSTMCell as PeepholeLSTMCell
from anyrnn.cells.rnn import RNNCell as RNNCell
