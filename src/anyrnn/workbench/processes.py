"""One model over several processes: `torchrun --nproc-per-node 2 -m anyrnn fit ...`, or `with joined():` in Python.

Every process reads the data and holds the model. The sequences of each update are shared out so that each process has
about as many steps as the others, and PyTorch's DistributedDataParallel adds up what each one's gradient contributes.
So an update of W processes is that of one process with a batch W times as large; nothing is dropped, also where a
process has fewer sequences than the others, or none. The first process alone writes and says anything.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed, nn

from anyrnn.errors import AnyRNNError

T = TypeVar("T")

# How long one waits for the others: while the first scores baselines, say. torchrun ends them all if one of them dies.
_PATIENCE = timedelta(hours=12)


@dataclass(frozen=True)
class World:
    """The processes that train a model together.

    Attributes:
        rank: Which one this is, from 0.
        size: How many there are.
    """

    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        """Whether this is the one that writes and speaks."""
        return self.rank == 0

    def shares(self, lengths: Sequence[int]) -> list[list[int]]:
        """Share sequences out by their steps: the places of each process's, in order.

        The longest ones first, each to the process with the fewest steps so far (Graham, 1969).
        """
        shares: list[list[int]] = [[] for _ in range(self.size)]
        steps = [0] * self.size
        for place in sorted(range(len(lengths)), key=lambda k: -lengths[k]):
            least = min(range(self.size), key=lambda k: (steps[k], len(shares[k])))
            shares[least].append(place)
            steps[least] += lengths[place]
        return [sorted(share) for share in shares]

    def share(self, lengths: Sequence[int]) -> list[int]:
        """The places of this process's sequences."""
        return list(range(len(lengths))) if self.size == 1 else self.shares(lengths)[self.rank]

    def total(self, values: Tensor) -> Tensor:
        """The sum of the processes' tensors, of one shape."""
        if self.size == 1:
            return values
        total = values.clone()
        distributed.all_reduce(total)
        return total

    def each(self, value: Tensor) -> Tensor:
        """The tensors of all processes, one upon the other."""
        if self.size == 1:
            return value.unsqueeze(0)
        found = [torch.empty_like(value) for _ in range(self.size)]
        distributed.all_gather(found, value)
        return torch.stack(found)

    def of_first(self, make: Callable[[], T]) -> T:
        """What the first process makes; if that raises an `AnyRNNError`, all of them do."""
        if self.size == 1:
            return make()
        box: list[Any] = [None, None]
        if self.first:
            try:
                box[0] = make()
            except AnyRNNError as error:
                box[1] = str(error)
        distributed.broadcast_object_list(box)
        if box[1] is not None:
            raise AnyRNNError(box[1])
        made: T = box[0]
        return made

    def spread(self, module: nn.Module, used: Callable[[], Tensor]) -> nn.Module:
        """A module whose gradients are averaged over the processes.

        Args:
            module: The same in each process.
            used: Calls it, so that it is seen which parameters get a gradient.
        """
        if self.size == 1:
            return module
        used().sum().backward()
        unused = any(p.grad is None for p in module.parameters() if p.requires_grad)
        module.zero_grad()
        return nn.parallel.DistributedDataParallel(module, find_unused_parameters=unused)


_ALONE = World()
_WORLD: ContextVar[World] = ContextVar("world", default=_ALONE)


def world() -> World:
    """The processes that train together here; one, outside of `joined`."""
    return _WORLD.get()


@contextmanager
def joined() -> Iterator[World]:
    """Join the processes that torchrun has started: what is trained inside a ``with`` block, they train together.

    Without torchrun, and with one process, nothing is different.

    Raises:
        AnyRNNError: if the processes cannot find each other.
    """
    size = int(os.environ.get("WORLD_SIZE", "1")) if "TORCHELASTIC_RUN_ID" in os.environ else 1
    if size == 1:
        yield world()
        return
    try:
        distributed.init_process_group("gloo", timeout=_PATIENCE)
    except (RuntimeError, ValueError) as cause:
        raise AnyRNNError(f"the processes of torchrun cannot find each other: {cause}") from cause
    try:
        with together():
            yield world()
    finally:
        distributed.destroy_process_group()


@contextmanager
def together() -> Iterator[None]:
    """Train inside a ``with`` block in all processes of PyTorch's default group, which is there already."""
    token = _WORLD.set(World(distributed.get_rank(), distributed.get_world_size()))
    try:
        yield
    finally:
        _WORLD.reset(token)
