"""A training run done elsewhere: in another process, or on another machine. Whoever carries the messages is not here.

There `done` is called with a `Work`, the same for all training runs of a comparison, and an `Order`, one for each; both
can be pickled, by `pickled` in the fewest bytes. What it returns goes back, where `outcome` makes a model of it.
"""

import io
import pickle
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from anyrnn.engines.select import engine, wanted_name
from anyrnn.errors import AnyRNNError
from anyrnn.workbench.checkpoint import Checkpoints
from anyrnn.workbench.lesson import AnyLesson, Tell
from anyrnn.workbench.models import Network, network


@dataclass(frozen=True)
class Job:
    """One training run.

    Attributes:
        network: What is trained.
        seed: Of this run.
        run: Which of all runs it is, from 1.
        checkpoints: Where its state is kept; None: nowhere.
    """

    network: Network
    seed: int
    run: int
    checkpoints: Checkpoints | None

    def __str__(self) -> str:
        return f"{self.network.name}, seed {self.seed}"


#: The model of a training run, and what came of it.
Outcome = tuple[Any, Any]


@dataclass(frozen=True)
class Work:
    """What all training runs have in common: the lesson, and what surrounds it in this process, such as the engine."""

    lesson: AnyLesson
    engine: str
    dtype: torch.dtype

    @classmethod
    def of(cls, lesson: AnyLesson) -> "Work":
        """A lesson as it would be learned here."""
        return cls(lesson, wanted_name(), torch.get_default_dtype())


@dataclass(frozen=True)
class Order:
    """A job, on its way: its network goes by name, its checkpoints without what they are told to."""

    network: str
    seed: int
    folder: Path | None
    identity: Mapping[str, Any]

    @classmethod
    def of(cls, job: Job) -> "Order":
        """What is to be sent of a job."""
        kept = job.checkpoints
        folder, identity = (None, {}) if kept is None else (kept.folder, kept.identity)
        return cls(job.network.name, job.seed, folder, identity)

    def checkpoints(self, say: Callable[[str], None]) -> Checkpoints | None:
        """Those of the job, in a process that has its folder."""
        return None if self.folder is None else Checkpoints(self.folder, self.identity, say)


@dataclass(frozen=True)
class Done:
    """What came of a job: the weights of its module, and the rest."""

    weights: Mapping[str, Tensor]
    run: Any


@dataclass(frozen=True)
class Failed:
    """Why there is nothing: a refusal in words for the user, or a traceback."""

    text: str
    refused: bool


def done(work: Work, order: Order, tell: Tell, checkpoints: Checkpoints | None) -> Done | Failed:
    """Do a job.

    Args:
        work: What all jobs have in common.
        order: The job.
        tell: Called after each epoch. It returns when that was told to the user, or written down: a line of
            `metrics.jsonl` comes before the checkpoint of its epoch.
        checkpoints: Where the state of the job is kept as it goes.
    """
    try:
        with engine(work.engine), _default_dtype(work.dtype):
            model, run = work.lesson.train(network(order.network), order.seed, tell, checkpoints)
    except AnyRNNError as error:
        return Failed(str(error), refused=True)
    except Exception:  # noqa: BLE001 - a cell of the user's own may raise anything
        return Failed(traceback.format_exc(), refused=False)
    return Done(model.module.state_dict(), run)


def outcome(lesson: AnyLesson, job: Job, answer: Done | Failed) -> Outcome:
    """What `done` has returned for a job, as if the job had been done here.

    Raises:
        AnyRNNError: what the training has raised; any other error of it is a RuntimeError with its traceback.
    """
    if isinstance(answer, Done):
        return lesson.rebuilt(job.network, job.seed, answer.weights), answer.run
    if answer.refused:
        raise AnyRNNError(answer.text)
    raise RuntimeError(f"{job}: a worker process failed:\n{answer.text}")


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


class _Pickler(pickle.Pickler):
    """Copies of tensors by themselves: PyTorch's own way copies, for a row of a large tensor, all of it."""

    def reducer_override(self, value: Any) -> Any:
        if type(value) is Tensor and value.dtype != torch.bfloat16:  # NumPy has none
            return torch.tensor, (value.detach().cpu().contiguous().numpy(),)
        return NotImplemented


def pickled(value: Any) -> bytes:
    """A value as bytes for another process: `pickle.loads` reads them."""
    file = io.BytesIO()
    _Pickler(file, pickle.HIGHEST_PROTOCOL).dump(value)
    return file.getvalue()
