"""Recurrent neural networks on PyTorch: any cell that computes one step, as a torch.nn-shaped layer."""

from typing import TYPE_CHECKING as _TYPE_CHECKING

from anyrnn import cells as cells
from anyrnn import init as init
from anyrnn.accelerate import accelerate as accelerate
from anyrnn.accelerate import restore as restore
from anyrnn.cells import GRUCell as GRUCell
from anyrnn.cells import IndependentRecurrence as IndependentRecurrence
from anyrnn.cells import LayerNormed as LayerNormed
from anyrnn.cells import LSTMCell as LSTMCell
from anyrnn.cells import MultiplicativeIntegration as MultiplicativeIntegration
from anyrnn.cells import PeepholeLSTMCell as PeepholeLSTMCell
from anyrnn.cells import Projected as Projected
from anyrnn.cells import Residual as Residual
from anyrnn.cells import RNNCell as RNNCell
from anyrnn.elementwise import elementwise as elementwise
from anyrnn.engines.select import engine as engine
from anyrnn.errors import AnyRNNError as AnyRNNError
from anyrnn.explain import Explanation as Explanation
from anyrnn.explain import explain as explain
from anyrnn.flow import gradient_flow as gradient_flow
from anyrnn.heads import ManyToOne as ManyToOne
from anyrnn.heads import output_at as output_at
from anyrnn.protocol import shared as shared
from anyrnn.recurrent import Recurrent as Recurrent
from anyrnn.scan import scan as scan
from anyrnn.states import detach as detach
from anyrnn.states import reset as reset
from anyrnn.states import select as select
from anyrnn.stepwise import stepwise as stepwise
from anyrnn.stream import Stream as Stream
from anyrnn.truncated import Truncated as Truncated
from anyrnn.truncated import chunks as chunks
from anyrnn.zoo import GRU as GRU
from anyrnn.zoo import LSTM as LSTM
from anyrnn.zoo import RNN as RNN
from anyrnn.zoo import PeepholeLSTM as PeepholeLSTM

__version__ = "0.1.0"

if _TYPE_CHECKING:
    from anyrnn import plot as plot
else:

    def __getattr__(name: str) -> object:
        """Load `anyrnn.plot` at its first use: the library runs without matplotlib, and loads in half the time."""
        if name != "plot":
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from importlib import import_module  # noqa: PLC0415 - only for this

        return import_module("anyrnn.plot")
