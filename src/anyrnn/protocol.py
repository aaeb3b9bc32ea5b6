"""The cell protocol: how one step is called, how its result is read, and what shape its state has.

A cell is an ``nn.Module`` with ``forward(x, state, *extras)``: ``x (B, ...)``, ``state`` one tensor ``(B, ...)`` or a
tuple of them, and further arguments. ``forward(x, *state, *extras)`` is called so, too. It returns the new state in the
same structure, or ``(output, new_state)``, where the output may be several tensors, in a tuple or dict. Inside anyrnn
states and outputs are always tuples of tensors; this file is the only place that knows the outer forms.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from itertools import chain
from operator import itemgetter
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter
from torch.nn.utils import parametrize

from anyrnn.errors import AnyRNNError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

State: TypeAlias = Tensor | tuple[Tensor, ...]


#: The size of x or of a state variable: a number of features, or a shape without the batch.
Size: TypeAlias = int | tuple[int, ...]


#: The sizes of a state: a `Size` for one tensor (a shape as `torch.Size`), or a tuple of them.
Sizes: TypeAlias = "int | torch.Size | tuple[Size, ...]"


#: The structure of outputs: None for one tensor, the number of tensors in a tuple, or the keys of a dict.
Names: TypeAlias = "int | tuple[str, ...] | None"


# A batch size that no tuple of states has as its length, so that `h, c = state` on a bare tensor fails.
PROBE_ROWS = 7


def shape_of(size: Size) -> tuple[int, ...]:
    """A size as a shape."""
    return (size,) if isinstance(size, int) else tuple(size)


def size_of(shape: Sequence[int]) -> Size:
    """A shape as a size."""
    return shape[0] if len(shape) == 1 else tuple(shape)


class ExtraForm(NamedTuple):
    """What is known of a further argument of a step before a call.

    Attributes:
        key: Its position behind x and the state, or its keyword.
        kind: "input": one for each row and step, (T, B, ...); "context": one for each row, (B, ...); "shared": one.
        shape: Its shape, without T and B.
        dtype: Its type.
    """

    key: int | str
    kind: str
    shape: tuple[int, ...]
    dtype: torch.dtype

    def lead(self, *sizes: int) -> tuple[int, ...]:
        """The shape of what one step gets of it, for a batch of a size."""
        return self.shape if self.kind == "shared" else (*sizes, *self.shape)


#: How many dimensions a further argument of a kind has in front of what a step gets: T and B, B, or none.
LEADING: Mapping[str, int] = {"input": 2, "context": 1, "shared": 0}


class Extra(NamedTuple):
    """An argument of a cell's step beside x and the state: see `ExtraForm`."""

    key: int | str
    kind: str
    tensor: Tensor

    @property
    def form(self) -> ExtraForm:
        """What is known of it before a call."""
        return ExtraForm(self.key, self.kind, tuple(self.tensor.shape[LEADING[self.kind] :]), self.tensor.dtype)

    def alike(self, tensor: Tensor) -> Extra:
        """Another tensor in its place."""
        return Extra(self.key, self.kind, tensor)


class Shared(NamedTuple):
    """A context that is one for all rows: see `shared`."""

    tensor: Tensor


def shared(tensor: Tensor) -> Shared:
    """Mark a context that is one for all rows of the batch, such as the matrix of a graph.

    Args:
        tensor: A tensor of any shape, without a batch. Gradients pass through it.

    Raises:
        AnyRNNError: if it is no tensor.

    Example:
        >>> import torch, anyrnn
        >>> class Mixing(torch.nn.Module):
        ...     hidden_size = 4
        ...     def forward(self, x, h, A):
        ...         return torch.tanh(x + h @ A)
        >>> layer = anyrnn.Recurrent(Mixing())
        >>> output, state = layer(torch.randn(10, 3, 4), context=anyrnn.shared(torch.eye(4)))
        >>> output.shape
        torch.Size([10, 3, 4])
    """
    if not isinstance(tensor, Tensor):
        msg = f"shared: got a {type(tensor).__name__}, expected a tensor"
        raise AnyRNNError(msg)
    return Shared(tensor)


@dataclass(frozen=True)
class Signature:
    """The signature of a cell's step: the sizes and the structure of its state and output. See `describe`.

    Attributes:
        state_sizes: The size of each state variable.
        bare: The state is one tensor, not a tuple.
        output_sizes: The size of each output of a step.
        has_output: A step returns ``(output, new_state)``; otherwise its output is the first state variable.
        names: The structure of the output.
        spread: The step is called as ``forward(x, *state)``.
        flat: A step returns ``(output, *new_state)``.
        kind: The class of the tuple of states: `tuple`, or a named tuple of the user's.
        output_kind: The class of the tuple of outputs, likewise.
        settled: A step has shown which structure the state has. A step that returns its state untouched shows nothing,
            and another step has to be probed.
    """

    state_sizes: tuple[Size, ...]
    bare: bool
    output_sizes: tuple[Size, ...]
    has_output: bool
    names: Names = None
    spread: bool = False
    flat: bool = False
    kind: type[tuple[Any, ...]] = tuple
    output_kind: type[tuple[Any, ...]] = tuple
    settled: bool = True

    @property
    def output_size(self) -> Size:
        """The size of the output; of the first one, if there are several."""
        return self.output_sizes[0]

    @classmethod
    def of_tuples(cls, state_sizes: tuple[Size, ...], output_sizes: tuple[Size, ...]) -> Signature:
        """The signature of a cell whose states, and whose outputs, are tuples however many there are."""
        return cls(state_sizes, bare=False, output_sizes=output_sizes, has_output=True, names=len(output_sizes))

    def wrap(self, states: tuple[Tensor, ...], like: object = None) -> State:
        """Give the states the structure that the cell uses, or, if `like` is a named tuple, that of `like`."""
        if self.bare:
            return states[0]
        kind: type[Any] = type(like) if self.kind is tuple and is_named(type(like)) else self.kind
        return states if kind is tuple else kind(*states)

    def wrap_outputs(self, outputs: Sequence[Any]) -> Any:
        """Give outputs the structure in which the cell returns them."""
        if self.names is None:
            return outputs[0]
        if isinstance(self.names, tuple):
            return dict(zip(self.names, outputs, strict=True))
        return tuple(outputs) if self.output_kind is tuple else self.output_kind(*outputs)

    def step(
        self, cell: nn.Module, x: Tensor, states: tuple[Tensor, ...], extras: Iterable[tuple[int | str, Tensor]] = ()
    ) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Run ``cell`` for one step: ``x (B, ...)`` and states ``(B, ...)`` to outputs ``(B, ...)`` and new states.

        Raises:
            AnyRNNError: if the new states have another form than the old ones.
        """
        if self.spread or extras:
            result = run_step(cell, x, states if self.spread else (self.wrap(states),), extras)
        else:
            result = cell(x, states[0] if self.bare else self.wrap(states))
        try:
            outputs, new = self._parts_of(cell, result)
            self.check(cell, new, states)
            for part in (*outputs, *new):
                if not isinstance(part, Tensor):
                    raise self.unlike(cell, result, len(x))
        except AnyRNNError:
            raise
        except (AttributeError, TypeError, ValueError) as cause:
            raise self.unlike(cell, result, len(x)) from cause
        return outputs, new

    def _parts_of(self, cell: nn.Module, result: Any) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """The outputs and the new states in what a step returned."""
        if self.flat:
            return (result[0],), tuple(result[1:])
        if not self.has_output:
            new = (result,) if self.bare else tuple(result)
            return new[:1], new
        output, new_state = result
        new = (new_state,) if self.bare else tuple(new_state)
        return (output,) if self.names is None else self._outputs(cell, output), new

    def unlike(self, cell: nn.Module, result: object, rows: int) -> AnyRNNError:
        """The error that a step returned something of another structure, for so many rows, than its first step."""
        sizes = [f"a tensor ({', '.join(map(str, ('B', *shape_of(size))))})" for size in self.state_sizes]
        state = sizes[0] if self.bare else f"a tuple ({', '.join(sizes)})"
        if self.flat:
            state = f"a tuple (an output, {', '.join(sizes)})"
        elif self.has_output:
            state = f"a tuple (an output, {state})"
        got = structure_of(result, rows)
        return AnyRNNError(f"{type(cell).__name__}: a step returned {got}, expected {state}, as its first step did")

    def check(self, cell: nn.Module, new: tuple[Tensor, ...], states: tuple[Tensor, ...]) -> None:
        """Raise an AnyRNNError if new states have another form than the old ones."""
        if len(new) != len(states):
            raise AnyRNNError(_misshapen(cell, new, states))
        for n, s in zip(new, states, strict=True):  # no generator: it takes as long as a small operation
            if n.shape != s.shape:
                raise AnyRNNError(_misshapen(cell, new, states))

    def _outputs(self, cell: nn.Module, output: Any) -> tuple[Tensor, ...]:
        """The tensors of several outputs, in order."""
        if isinstance(self.names, tuple) and isinstance(output, dict) and tuple(output) == self.names:
            return tuple(output.values())
        if isinstance(self.names, int) and isinstance(output, tuple | list) and len(output) == self.names:
            return tuple(output)
        expected = f"a dict of {', '.join(self.names)}" if isinstance(self.names, tuple) else f"{self.names} outputs"
        msg = (
            f"{type(cell).__name__}: a step returned {structure_of(output)}, expected {expected}, as its first step did"
        )
        raise AnyRNNError(msg)


def _misshapen(cell: nn.Module, new: Iterable[Any], states: Iterable[Tensor]) -> str:
    """Say that a step returned another state than it was given."""
    got = ", ".join(str(tuple(n.shape)) if isinstance(n, Tensor) else type(n).__name__ for n in new)
    return (
        f"{type(cell).__name__}: a step returned the state {got}, expected "
        f"{', '.join(str(tuple(s.shape)) for s in states)}, as it was given. If the cell was changed after its "
        f"layer was made, change its `hidden_size` or `state_sizes` along, or make a new layer"
    )


def run_step(cell: Any, x: Tensor, state: Iterable[Any], extras: Iterable[tuple[int | str, Tensor]]) -> Any:
    """Call a cell with its state, in one argument or several, and further arguments by position or keyword."""
    by_position = sorted(((k, t) for k, t in extras if isinstance(k, int)), key=itemgetter(0))
    return cell(x, *state, *[t for _, t in by_position], **{k: t for k, t in extras if isinstance(k, str)})


#: The structure of a state: the class of the tuple and the number of tensors in it; (Tensor, 1) for a tensor.
Form: TypeAlias = "tuple[type, int]"


def is_named(kind: type) -> bool:
    """Whether a class is that of named tuples."""
    return issubclass(kind, tuple) and hasattr(kind, "_fields")


def is_uninitialized(tensor: Tensor) -> bool:
    """Whether a tensor is that of a lazy module, which has no shape yet."""
    return isinstance(tensor, UninitializedParameter | UninitializedBuffer)


@contextlib.contextmanager
def caching_nothing() -> Iterator[None]:
    """Leave nothing behind in the cache of parametrizations, for a step that the user did not ask for.

    Below `torch.nn.utils.parametrize.cached` the first step computes the weights for all later ones: computed without
    gradients, or for a copy of a module whose place in memory the next copy takes, they would be wrong for those.
    """
    before = set(parametrize._cache)
    try:
        yield
    finally:  # one by one, since other threads may be using the cache, too
        for key in parametrize._cache.keys() - before:
            parametrize._cache.pop(key, None)


def outside_inference_mode() -> contextlib.AbstractContextManager[Any]:
    """Leave inference mode, so that tensors made meanwhile can be trained with as well.

    The mode is left only where it is on: since Python 3.12 a profiler (cProfile) loses count of the calls around any
    `with torch.inference_mode(...)`, whose methods report a return without a call.
    """
    return torch.inference_mode(False) if torch.is_inference_mode_enabled() else contextlib.nullcontext()


def placement(module: nn.Module, x: Tensor | None = None) -> Tensor:
    """Return a tensor with the dtype and device of a module: those of its parameters, else buffers, else `x`."""
    first = next(chain(_floating(module, "_parameters"), _floating(module, "_buffers")), None)
    if first is not None:
        # A lazy parameter has a dtype and a device, and nothing else.
        return torch.empty(0, dtype=first.dtype, device=first.device) if is_uninitialized(first) else first
    return x if x is not None and x.is_floating_point() else torch.empty(0)


def _floating(module: nn.Module, kind: str) -> Iterator[Tensor]:
    """The floating-point tensors of a module and its submodules, in order; torch's iterators are slow."""
    for tensor in getattr(module, kind).values():
        if tensor is not None and tensor.is_floating_point():
            yield tensor
    for child in module._modules.values():
        if child is not None:
            yield from _floating(child, kind)


def shape_text(tensor: Tensor, rows: int = PROBE_ROWS) -> str:
    """The shape of a tensor in words, B where so many rows are."""
    sizes = [str(n) for n in tensor.shape]
    if sizes and tensor.shape[0] == rows:
        sizes[0] = "B"
    return f"({', '.join(sizes)}{',' if len(sizes) == 1 else ''})"


def structure_of(value: object, rows: int = PROBE_ROWS) -> str:
    """Describe what was returned for so many rows, for a message."""
    if isinstance(value, Tensor):
        return f"a tensor {shape_text(value, rows)}"
    if isinstance(value, tuple | list):
        return f"a {type(value).__name__} ({', '.join(structure_of(v, rows) for v in value)})"
    return f"a {type(value).__name__}"
