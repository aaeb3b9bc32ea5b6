"""Layers below torch.compile and torch.export: each scan is one operator, which they do not look into.

Traced, a loop would be as long as the sequence. So where PyTorch traces, `choose` returns an engine that leaves a call
of the operator `anyrnn::scan` in the graph; when that runs, it chooses among the other engines as always. The operator
is a function of its arguments: input, state, lengths, weights, and the number of the cell, whose code and attributes
are those of the moment. The backward operator needs nothing but arguments and results either, and could run the scan
once more, with the same random numbers, for PyTorch's autograd to go back through; mostly it need not, see `_Kept`.
"""

from __future__ import annotations

import contextlib
import copy
import itertools
import secrets
import threading
from collections import OrderedDict
from dataclasses import astuple
from typing import TYPE_CHECKING, Any, ParamSpec, TypeAlias, TypeVar
from weakref import WeakKeyDictionary, WeakValueDictionary

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes

from anyrnn.cells.base import origin_of
from anyrnn.checks import valid_lengths
from anyrnn.engines import select
from anyrnn.errors import AnyRNNError
from anyrnn.protocol import (
    Form,
    Signature,
    caching_nothing,
    describe,
    kind_of,
    outside_inference_mode,
    stated_sizes,
    untold,
)
from anyrnn.runtime.call import Call, Result

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

Sizes: TypeAlias = "int | tuple[int, ...] | None"
P = ParamSpec("P")
R = TypeVar("R")


def _constant_to_dynamo(function: Callable[P, R]) -> Callable[P, R]:
    """Do what `torch.compiler.assume_constant_result` does, without its import of torch._dynamo: that takes seconds."""
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


class OpaqueEngine:
    """Writes a call down as an operator."""

    name = "opaque"

    def refusal(self, call: Call) -> None:
        """Never refuse: which engine can run the call is found when it runs."""

    def anatomy(self, call: Call) -> None:
        """Take the cell as it is."""

    def run(self, call: Call) -> Result:
        """Put the operator into the graph that is traced."""
        device, signature = call.x.device.type, call.signature
        weights = [tensor for _, tensor in _tensors(call.cell)]
        training = torch.is_grad_enabled() and not torch.compiler.is_exporting()
        output, *finals, _ = torch.ops.anyrnn.scan(
            [training and t.requires_grad for t in (call.x, *call.states, *weights)],
            call.x,
            list(call.states),
            call.lengths,
            weights,
            number_of(origin_of(call.cell)),
            call.reverse,
            signature.bare,
            signature.has_output,
            signature.output_size,
            torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None,
        )
        return Result(output, tuple(finals))


_OPERATOR = select.Choice(OpaqueEngine(), "PyTorch traces this call", {})
_TRACED = select.Choice(select.ENGINES["reference"], "PyTorch traces this call step by step", {})


def choose(call: Call) -> select.Choice:
    """Choose the engine for a call: as `anyrnn.engines.select` does, but where PyTorch traces, an operator."""
    if not torch.compiler.is_compiling():
        return select.choose(call)
    if call.request.record:
        msg = (
            f"{type(call.cell).__name__}: got record={call.request.record} below torch.compile or torch.export, whose "
            f"graphs hold no local variables; expected the call outside, or the layer below torch.compiler.disable"
        )
        raise AnyRNNError(msg)
    if not _step_by_step():
        return _OPERATOR
    if call.lengths is not None:
        msg = (
            f"{type(call.cell).__name__}: got lengths where each step is traced (torch.func below torch.compile, or "
            f"torch.export with the engine 'reference'); expected none, since the number of steps depends on them"
        )
        raise AnyRNNError(msg)
    return _TRACED


@_constant_to_dynamo
def _step_by_step() -> bool:
    """Whether each step is traced: for torch.func, which has no rules for the operator, or since an export asks for it.

    An export with the engine "reference" gives a program that runs without this package.
    """
    if torch._C._functorch.maybe_current_level() is not None:
        return True
    return torch.compiler.is_exporting() and select._wanted.get() == "reference"


#: What `anyrnn.scan` has found out about cells, by the size of the input and what the sizes of the state hang on.
signatures: WeakKeyDictionary[nn.Module, dict[object, Signature]] = WeakKeyDictionary()


def signature_key(cell: nn.Module, input_size: int, state_sizes: Sizes, form: Form | None) -> object:
    """By what `anyrnn.scan` knows the signature of a cell: a cell that has grown has another."""
    named = form is not None and form[0] not in (tuple, Tensor)
    return input_size, stated_sizes(cell) if state_sizes is None else state_sizes, form if named else None


def described(cell: nn.Module, input_size: int, state_sizes: Sizes, form: Form | None = None) -> Signature:
    """Find the signature of a cell with `describe`, whose steps are run, not traced, where PyTorch traces."""
    if torch.compiler.is_compiling():
        return Signature(*_signature_fields(cell, input_size, state_sizes, form))
    return describe(cell, input_size, state_sizes, form)


@_constant_to_dynamo
def _signature_fields(cell: nn.Module, input_size: int, state_sizes: Sizes, form: Form | None) -> tuple[Any, ...]:
    """The fields of a signature, but for the class of a named tuple, which a constant of a program cannot be."""
    known = signatures.get(cell, {}).get(signature_key(cell, input_size, state_sizes, form))
    if known is not None:
        return astuple(known)[:4]
    if nn.Module.__call__ is not nn.Module._wrapped_call_impl:
        # torch.export watches every call of a module, and loses count of those that fail, as some may here.
        msg = f"{type(cell).__name__}: what a step returns is not known; expected an ordinary call before torch.export"
        raise AnyRNNError(msg)
    found = describe(cell, input_size, state_sizes, form)
    if not found.settled:
        raise AnyRNNError(untold(cell, found))
    return astuple(found)[:4]


# ---- The operators ----

_OPTIONS = "int cell, bool reverse, bool bare, bool has_output, int output_size, ScalarType? autocast"


@torch.library.custom_op(
    "anyrnn::scan",
    mutates_args=(),
    schema=f"(bool[] needed, Tensor x, Tensor[] states, Tensor? lengths, Tensor[] weights, {_OPTIONS}) -> Tensor[]",
    tags=(torch.Tag.nondeterministic_seeded,),  # the cell may draw random numbers
)
def _scan(
    needed: list[bool],
    x: Tensor, states: list[Tensor], lengths: Tensor | None, weights: list[Tensor], *options: Any,
) -> list[Tensor]:  # fmt: skip
    """Return the output, the final state variables, and the state of the random numbers before.

    `needed` says of which of x, states and weights the gradients will be asked for.
    """
    given = [x, *states, *weights]
    with _dispatched_anew():
        random = _random_state(x.device)
        if not any(needed):
            return [*_own(_run(x, states, lengths, weights, *options), given), random]
        kept = _Kept(random.numpy())
        # x and states are copied since compiled code may put other numbers in their memory after this.
        kept.leaves = _leaves([*(t.clone() for t in given[: 1 + len(states)]), *weights], needed)
        kept.results = _run_with_grad(kept.leaves, len(states), lengths, *options)
        results = _own((r.detach() for r in kept.results), given)
        kept.shared = _addresses(results, weights)
        random = torch.frombuffer(kept, dtype=torch.uint8)
        _kept[random.data_ptr()] = kept
        return [*results, random]


@_scan.register_fake
def _(
    needed: list[bool],
    x: Tensor, states: list[Tensor], lengths: Tensor | None, weights: list[Tensor], *options: Any,
) -> list[Tensor]:  # fmt: skip
    *_, output_size, _ = options
    random = torch.empty(_random_size(x.device), dtype=torch.uint8, device="cpu")
    return [x.new_empty(*x.shape[:2], output_size), *(s.new_empty(s.shape) for s in states), random]


@torch.library.custom_op(
    "anyrnn::scan_backward",
    mutates_args=(),
    schema="(Tensor?[] grads, Tensor[] results, Tensor random, "
    f"bool[] needed, Tensor x, Tensor[] states, Tensor? lengths, Tensor[] weights, {_OPTIONS}) -> Tensor[]",
)
def _scan_backward(
    grads: list[Tensor | None], results: list[Tensor], random: Tensor, needed: list[bool],
    x: Tensor, states: list[Tensor], lengths: Tensor | None, weights: list[Tensor], *options: Any,
) -> list[Tensor]:  # fmt: skip
    """Return the gradients of those of x, states and weights that need one."""
    given = [x, *states, *weights]
    with _dispatched_anew():
        kept = _kept.pop(random.data_ptr(), None)
        if kept is None or kept.shared != _addresses(results, weights):
            kept = _Kept()
            kept.leaves = _leaves(given, needed)
            with _random_from(random, x.device):
                kept.results = _run_with_grad(kept.leaves, len(states), lengths, *options)
        pairs = [(r, g) for r, g in zip(kept.results, grads, strict=True) if g is not None and r.requires_grad]
        found = torch.autograd.grad(
            [r for r, _ in pairs], [leaf for leaf, n in zip(kept.leaves, needed, strict=True) if n],
            [g for _, g in pairs], allow_unused=True, materialize_grads=True,
        )  # fmt: skip
        return _own(found, [*given, *results, *(g for g in grads if g is not None)])


@_scan_backward.register_fake
def _(
    grads: list[Tensor | None], results: list[Tensor], random: Tensor, needed: list[bool],
    x: Tensor, states: list[Tensor], lengths: Tensor | None, weights: list[Tensor], *options: Any,
) -> list[Tensor]:  # fmt: skip
    return [t.new_empty(t.shape) for t, n in zip((x, *states, *weights), needed, strict=True) if n]


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    _, x, states, lengths, weights, *ctx.options = inputs
    ctx.save_for_backward(lengths, x, *states, *weights, *output)
    ctx.counts = len(states), len(weights)
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, grads: list[Tensor | None]) -> tuple[Any, ...]:
    lengths, x, *rest = ctx.saved_tensors
    first, second = ctx.counts[0], sum(ctx.counts)
    states, weights, (*results, random) = rest[:first], rest[first:second], rest[second:]
    _, x_needed, states_needed, _, weights_needed, *_ = ctx.needs_input_grad
    needed = [x_needed, *states_needed, *weights_needed]
    found = torch.ops.anyrnn.scan_backward(
        grads[:-1], results, random, needed, x, states, lengths, weights, *ctx.options
    )
    each = iter(found)
    x_grad, *others = [next(each) if n else None for n in needed]
    return None, x_grad, others[:first], None, others[first:], *(None for _ in ctx.options)


_scan.register_autograd(_backward, setup_context=_setup_context)


class _Kept(bytearray):
    """What the backward pass can go on from, as long as it is there: the graph that autograd made of a scan.

    It is the memory of the tensor that holds the state of the random numbers. So it lives as long as that is saved for
    the backward pass, and no copy of that tensor can be taken for it: a copy has another address.

    Attributes:
        leaves: The input, states and weights that the scan was given.
        results: The output and final states.
        shared: Where the memory is that the graph has in common with results and weights. If the backward pass gets
            them from elsewhere, compiled code may have used this memory for something else.
    """

    leaves: list[Tensor]
    results: list[Tensor]
    shared: list[int]


_kept: WeakValueDictionary[int, _Kept] = WeakValueDictionary()


def _leaves(given: Iterable[Tensor], needed: Sequence[bool]) -> list[Tensor]:
    return [t.detach().requires_grad_(n) for t, n in zip(given, needed, strict=True)]


def _addresses(*groups: Iterable[Tensor]) -> list[int]:
    return [t.data_ptr() for group in groups for t in group]


def _run_with_grad(leaves: list[Tensor], count: int, lengths: Tensor | None, *options: Any) -> list[Tensor]:
    """Run the scan, `count` being the number of states, so that autograd can go through it."""
    with torch.enable_grad():
        return _run(leaves[0], leaves[1 : 1 + count], lengths, leaves[1 + count :], *options)


def _run(
    x: Tensor, states: Sequence[Tensor], lengths: Tensor | None, weights: Sequence[Tensor],
    number: int, reverse: bool, bare: bool, has_output: bool, output_size: int, autocast: torch.dtype | None,
) -> list[Tensor]:  # fmt: skip
    """Run the scan: the output and the final state variables."""
    cell = _cells.get(number)
    if cell is None:
        msg = (
            "a program runs a cell that is not here, since another process exported it; expected a program exported "
            'with anyrnn.engine("reference"), which has the steps themselves in it and runs anywhere'
        )
        raise AnyRNNError(msg)
    if lengths is not None:
        lengths = valid_lengths(type(cell).__name__, lengths, len(x))
    signature = Signature(tuple(s.shape[1] for s in states), bare, output_size, has_output, kind_of(cell))
    with _lowered(x.device.type, autocast):
        if number not in _checked:
            _check_reach(cell, signature, x, states, weights)
            _checked.add(number)
        with _with_weights(cell, weights) as bound:
            call = Call(bound, signature, x, tuple(states), lengths, reverse)
            result = select.choose(call).engine.run(call)
    return [result.output.to(x.dtype), *result.states]


# Which parts of PyTorch's dispatcher are left out outside of any operator.
_LEFT_OUT = torch._C._dispatch_tls_local_exclude_set()


@contextlib.contextmanager
def _dispatched_anew() -> Iterator[None]:
    """Let operations be dispatched as outside of an operator: within one, autograd and the like are left out."""
    included = torch._C._dispatch_tls_local_include_set()
    with torch._C._ForceDispatchKeyGuard(included, _LEFT_OUT), outside_inference_mode(), torch.no_grad():
        yield


def _lowered(device: str, autocast: torch.dtype | None) -> contextlib.AbstractContextManager[Any]:
    """Compute in the precision of the call's place in the program: compiled code itself runs outside of autocast."""
    if autocast is None and not torch.is_autocast_enabled(device):
        return contextlib.nullcontext()
    return torch.autocast(device, autocast, enabled=autocast is not None)


def _own(results: Iterable[Tensor], given: Iterable[Tensor]) -> list[Tensor]:
    """Make results contiguous, and copy those that share memory with what was given or with each other.

    And those that begin within their memory: the operators promise tensors that begin where theirs does.
    """
    taken = {t.untyped_storage()._cdata for t in given}
    owned = []
    for result in results:
        own = result.contiguous()
        if own.storage_offset() or own.untyped_storage()._cdata in taken:
            own = own.clone()
        taken.add(own.untyped_storage()._cdata)
        owned.append(own)
    return owned


# ---- Random numbers: the backward pass has to draw those of the forward pass ----

_CPU_SIZE = torch.get_rng_state().numel()
_CUDA_SIZE = 16


def _random_size(device: torch.device) -> int:
    return _CPU_SIZE + (_CUDA_SIZE if device.type == "cuda" else 0)


def _random_state(device: torch.device) -> Tensor:
    state = torch.get_rng_state()
    return torch.cat([state, torch.cuda.get_rng_state(device)]) if device.type == "cuda" else state


@contextlib.contextmanager
def _random_from(state: Tensor, device: torch.device) -> Iterator[None]:
    """Draw random numbers from a state on, and put the present state back at the end."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        # Cloned, since PyTorch reads from the start of a tensor's memory, wherever in it the tensor begins.
        torch.set_rng_state(state[:_CPU_SIZE].clone())
        if device.type == "cuda":
            torch.cuda.set_rng_state(state[_CPU_SIZE:].clone(), device)
        yield


# ---- Cells by number, with other weights ----

_numbers: WeakKeyDictionary[nn.Module, int] = WeakKeyDictionary()
_cells: WeakValueDictionary[int, nn.Module] = WeakValueDictionary()
_next_number = itertools.count()
_checked: set[int] = set()


# A program may be exported to where other cells have the same numbers. What torch.compile makes stays here, and is
# found again on disk if the numbers are the same in the next run.
_FIRST_EXPORTED = (1 + secrets.randbits(30)) * 2**32
_exported: list[nn.Module] = []


@_constant_to_dynamo  # torch.compile guards on the identity of the cell
def number_of(cell: nn.Module) -> int:
    """Return the number by which the operators know a cell; in an export, as it is now, whatever becomes of it."""
    if torch.compiler.is_exporting():
        cell = _without_weights(cell)
        _exported.append(cell)
        _cells[_FIRST_EXPORTED + len(_exported)] = cell
        return _FIRST_EXPORTED + len(_exported)
    if cell not in _numbers:
        _numbers[cell] = next(_next_number)
        _cells[_numbers[cell]] = cell
    return _numbers[cell]


def _without_weights(cell: nn.Module) -> nn.Module:
    """Copy a cell, but for the numbers in its weights."""
    with _disable_current_modes():  # while PyTorch exports, what is made would have no numbers either
        return copy.deepcopy(
            cell, {id(t): torch.empty(t.shape, dtype=t.dtype, device="meta") for _, t in _tensors(cell)}
        )


def _tensors(cell: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The weights of a cell as the operators take them: its parameters, then its buffers."""
    yield from cell.named_parameters(remove_duplicate=False)
    yield from cell.named_buffers(remove_duplicate=False)


class _StandIns(threading.local):
    """For each module a bare one of its class: always the same, since engines remember what they made of a cell."""

    def __init__(self) -> None:
        self.known: WeakKeyDictionary[nn.Module, nn.Module] = WeakKeyDictionary()

    def of(self, module: nn.Module) -> nn.Module:
        if module not in self.known:
            self.known[module] = object.__new__(type(module))
        return self.known[module]


_stand_ins = _StandIns()


@contextlib.contextmanager
def _with_weights(cell: nn.Module, weights: Sequence[Tensor]) -> Iterator[nn.Module]:
    """A cell with the attributes of this one and other weights. Each thread has its own; the cell is left alone."""
    names = [name for name, _ in _tensors(cell)]
    if len(names) != len(weights):
        msg = f"{type(cell).__name__}: its weights are {', '.join(names)} now, {len(weights)} when it was compiled"
        raise AnyRNNError(msg)
    buffers = {name for name, _ in cell.named_buffers(remove_duplicate=False)}
    given = {name: w.clone() if name in buffers else w for name, w in zip(names, weights, strict=True)}
    modules = {id(m): (m, _stand_ins.of(m)) for m in cell.modules()}
    new: dict[int, object] = {key: stand_in for key, (_, stand_in) in modules.items()}
    new.update((id(old), given[name]) for name, old in _tensors(cell))
    try:
        for module, stand_in in modules.values():
            vars(stand_in).update((key, _replaced(value, new)) for key, value in vars(module).items())
        with caching_nothing():
            yield modules[id(cell)][1]
    finally:
        for _, stand_in in modules.values():
            vars(stand_in).clear()
    for name in buffers:
        if given[name]._version > 0:
            msg = (
                f"{type(cell).__name__}: a step changes its buffer {name!r}, which torch.compile and torch.export "
                f"would not see; keep the layer out of them with torch.compiler.disable"
            )
            raise AnyRNNError(msg)


def _replaced(value: Any, new: Mapping[int, Any]) -> Any:
    """Put new tensors and modules for old ones: for the value itself, or within a dict, list or tuple."""
    if type(value) in (dict, OrderedDict):
        if any(id(v) in new for v in value.values()):
            return type(value)((k, new.get(id(v), v)) for k, v in value.items())
    elif type(value) in (list, tuple) and any(id(v) in new for v in value):
        return type(value)(new.get(id(v), v) for v in value)
    return new.get(id(value), value)


def _check_reach(
    cell: nn.Module, signature: Signature, x: Tensor, states: Sequence[Tensor], weights: Sequence[Tensor]
) -> None:
    """Check that a cell finds its weights as attributes: else the operator would give them no gradient."""
    devices = [x.device] if x.device.type == "cuda" else []
    weights = [w.detach() for w in weights]
    zeros = tuple(s.new_zeros(1, s.shape[1]) for s in states)
    with torch.enable_grad(), torch.random.fork_rng(devices=devices), _with_weights(cell, weights) as bound:
        output, new = signature.step(bound, x.new_zeros(1, x.shape[2]), zeros)
    if any(t.requires_grad for t in (output, *new)):
        msg = (
            f"{type(cell).__name__}: a step uses a tensor that requires a gradient and is not among its parameters and "
            f"buffers, or that it reaches by another way than its attributes, such as a closure or a bound method; "
            f"expected an nn.Parameter, used as an attribute. Or keep the layer out of torch.compile with "
            f"torch.compiler.disable"
        )
        raise AnyRNNError(msg)
