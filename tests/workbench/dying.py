"""A cell that kills its process, in the middle of an epoch, once; the processes of a cluster import it from here."""

import os
import signal
from pathlib import Path

import torch
from torch import Tensor, nn

#: The variable that names a file: while it is not there, the step that makes it is the last one of its process.
MARK = "ANYRNN_TEST_MARK"
_STEP = 100  # of the process: in the third epoch of its first training run


class Dying(nn.Module):
    """An Elman cell."""

    steps = 0

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__()
        self.input, self.state = nn.Linear(input_size, hidden_size), nn.Linear(hidden_size, hidden_size)
        self.hidden_size = hidden_size

    def forward(self, x: Tensor, state: Tensor) -> Tensor:
        Dying.steps += 1
        mark = os.environ.get(MARK)
        if Dying.steps == _STEP and mark and not Path(mark).exists():
            Path(mark).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return torch.tanh(self.input(x) + self.state(state))
