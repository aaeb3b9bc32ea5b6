"""A cell's step as a graph of ATen operations, recorded while it runs on tensors without data.

Nothing of the cell is interpreted: its own Python code runs, with a batch size that occurs nowhere else, below a
dispatch mode that writes down every operation. Parameters, buffers and plain tensor attributes become inputs by name,
so that a later call computes with their present values. The run is real, on made up numbers: tensors without data would
cost seconds of imports inside PyTorch. It is done twice, with other numbers and another batch size: a step that then
does something else (it reads numbers, counts steps, divides by the batch size) is not a graph.
"""

from __future__ import annotations

import copy
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from anyrnn import contraction
from anyrnn.errors import AnyRNNError
from anyrnn.opaque_function import recorded
from anyrnn.protocol import caching_nothing, placement

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from types import FrameType

    from anyrnn.protocol import Signature

#: Batch sizes for a trace: the first of these primes that no number of features is a multiple of.
BATCHES = (127, 131, 137, 139, 149, 151)

#: The names of arguments of ATen operations that are shapes, or sizes of the batch.
SHAPE_ARGUMENTS = ("size", "shape", "repeats", "N")

_TORCH = str(Path(torch.__file__).parent)


class Ref(int):
    """A tensor in a graph, by number."""


@dataclass(frozen=True)
class Step:
    """One ATen operation: `args` and `kwargs` with a Ref in the place of each tensor, and the tensors it returns."""

    op: torch._ops.OpOverload
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    outputs: tuple[Ref, ...]
    many: bool

    @property
    def inputs(self) -> Iterator[Ref]:
        """The tensors it reads."""
        for value in pytree.tree_leaves((self.args, dict(self.kwargs))):
            if isinstance(value, Ref):
                yield value

    @property
    def short_name(self) -> str:
        """The operation without its namespace and overload, such as "add"."""
        return self.op._schema.name.removeprefix("aten::")

    @property
    def name(self) -> str:
        """The operation without its namespace, such as "add.Tensor"."""
        return str(self.op).removeprefix("aten.")


@dataclass(frozen=True)
class Graph:
    """A step of a cell.

    Attributes:
        x: The input.
        states: The state variables before the step.
        weights: Parameters, buffers and tensor attributes, by dotted name.
        steps: The operations, in order.
        output: The output of the step; None if it is the first new state.
        new_states: The state variables after the step.
        batch: The batch size of the trace.
        shapes: The shape of every tensor.
        dtypes: The type of every tensor.
        names: The local variables of the cell's code that hold a tensor.
    """

    x: Ref
    states: tuple[Ref, ...]
    weights: Mapping[str, Ref]
    steps: tuple[Step, ...]
    output: Ref | None
    new_states: tuple[Ref, ...]
    batch: int
    shapes: Mapping[Ref, tuple[int, ...]]
    dtypes: Mapping[Ref, torch.dtype]
    names: Mapping[Ref, str]

    def __str__(self) -> str:
        """One operation a line."""

        def show(value: Any) -> str:
            if isinstance(value, Ref):
                return self.names.get(value, f"t{int(value)}")
            if isinstance(value, list | tuple):
                return f"[{', '.join(show(v) for v in value)}]"
            return str(value)

        lines = []
        for step in self.steps:
            shapes = ", ".join(str(self.shapes[r]).replace(str(self.batch), "B") for r in step.outputs)
            args = ", ".join([*map(show, step.args), *(f"{k}={show(v)}" for k, v in step.kwargs.items())])
            lines.append(f"{', '.join(map(show, step.outputs))} = {step.name}({args})  # {shapes}")
        return "\n".join(lines)


class Recorder(TorchDispatchMode):
    """Writes down operations; tensors that come from elsewhere are asked for by `name_of`."""

    def __init__(self, name_of: Callable[[Tensor], str] | None = None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.refs: dict[int, Ref] = {}
        self.shapes: dict[Ref, tuple[int, ...]] = {}
        self.dtypes: dict[Ref, torch.dtype] = {}
        self.steps: list[Step] = []
        self.weights: dict[str, Ref] = {}
        self._name_of = name_of
        self._kept: list[Tensor] = []  # so that no id is used twice
        self._stale: set[int] = set()
        self.varying: set[Ref] = set()  # what depends on the input or the state

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Leave `__torch_dispatch__` as it is: the usual wrapper imports torch._dynamo, which takes seconds."""
        return False

    def ref(self, tensor: Tensor) -> Ref:
        """Return the number of a tensor, giving it one if it is new."""
        found = self.refs.get(id(tensor))
        if found is None:
            return self._number(tensor)
        if id(tensor) in self._stale:
            msg = "it reads a tensor after a part of it was changed in place"
            raise AnyRNNError(msg)
        return found

    def _number(self, tensor: Tensor) -> Ref:
        ref = self.refs[id(tensor)] = self._fresh(tensor)
        self._kept.append(tensor)
        return ref

    def _fresh(self, tensor: Tensor) -> Ref:
        """A number for what a tensor is before it is detached."""
        ref = Ref(len(self.shapes))
        self.shapes[ref] = tuple(tensor.shape)
        self.dtypes[ref] = tensor.dtype
        return ref

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run an operation and write it down."""
        kwargs = dict(kwargs or {})
        if func is torch.ops.aten.lift_fresh.default and args[0].numel() == 1:
            number, func = args[0], torch.ops.aten.full.default  # torch.tensor(0.5) in the cell's code
            args, kwargs = (list(number.shape), number.item()), {"dtype": number.dtype}
        tensors = [t for t in pytree.tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        if func is torch.ops.aten._linalg_check_errors.default and id(args[0]) in self.refs:
            self._let_check(args[0])
            return func(*args, **kwargs)
        frozen = self._name_of is not None and not torch.is_grad_enabled()
        if frozen and tensors and (func._schema.is_mutable or any(map(self.is_varying, tensors))):
            msg = f"`{func}` runs below torch.no_grad or in an autograd.Function: its gradient is not its own"
            raise AnyRNNError(msg)
        for tensor in tensors:
            if id(tensor) not in self.refs:
                self._name(tensor)
        if func._schema.is_mutable:
            return self._in_place(func, args, kwargs)
        if func is torch.ops.aten.native_batch_norm.default and args[3] is not None and args[5]:
            msg = f"`{func}` changes the running statistics"
            raise AnyRNNError(msg)
        result = func(*args, **kwargs)
        outputs = [r for r in pytree.tree_leaves(result) if isinstance(r, Tensor)]
        if not outputs:
            msg = (
                f"`{func}`: a Python number is taken from a tensor (.item(), float(), if): compute with tensors, "
                f"e.g. torch.where"
            )
            raise AnyRNNError(msg)
        recorded = pytree.tree_map_only(Tensor, self.ref, (args, kwargs))
        self._note(func, recorded[0], recorded[1], result, frozen)
        return result

    def _note(self, func: Any, args: Any, kwargs: Any, result: Any, frozen: bool = False) -> None:
        """Write a step down; `frozen` ends the path of gradients at what it gives."""
        outputs = [r for r in pytree.tree_leaves(result) if isinstance(r, Tensor)]
        if frozen:
            refs = tuple(self._fresh(o) for o in outputs)
            detach = torch.ops.aten.detach.default
            after = [Step(detach, (r,), {}, (self.ref(o),), many=False) for r, o in zip(refs, outputs, strict=True)]
        else:
            refs, after = tuple(self.ref(o) for o in outputs), []
        steps = [Step(func, args, kwargs, refs, isinstance(result, list | tuple)), *after]
        for step in steps:
            if self.varying.intersection(step.inputs):
                self.varying.update(step.outputs)
        self.steps += steps

    def note_function(self, call: Any, args: tuple[Any, ...], result: Any) -> None:
        """Write a call of an autograd.Function down."""
        for tensor in args:
            if isinstance(tensor, Tensor) and id(tensor) not in self.refs:
                self._name(tensor)
        self._note(call, pytree.tree_map_only(Tensor, self.ref, args), {}, result)

    def is_varying(self, tensor: Tensor) -> bool:
        """Whether a tensor depends on the input or the state."""
        return self.refs.get(id(tensor)) in self.varying

    def _let_check(self, info: Tensor) -> None:
        """Have an operation of linear algebra check its own result, as its caller just did."""
        ref = self.ref(info)
        for k, step in enumerate(self.steps):
            if ref in step.outputs and any(a.name == "check_errors" for a in step.op._schema.arguments):
                names = [a.name for a in step.op._schema.arguments]
                args = tuple(True if name == "check_errors" else a for name, a in zip(names, step.args, strict=False))
                given = {} if len(args) > names.index("check_errors") else {"check_errors": True}
                self.steps[k] = replace(step, args=args, kwargs={**step.kwargs, **given})

    def _in_place(self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
        """Write an operation such as `add_` down as `add`, and let the changed tensor stand for its result."""
        packet = getattr(torch.ops.aten, func._schema.name.removeprefix("aten::").removesuffix("_"), None)
        plain = getattr(packet, func._overloadname, None)
        if func is torch.ops.aten.bernoulli_.float:
            plain, args = torch.ops.aten.bernoulli.p, (args[0], *args[1:], *([] if kwargs or args[1:] else [0.5]))
        target = args[0] if args else None
        if plain is None or not func._schema.name.endswith("_") or not isinstance(target, Tensor):
            msg = f"`{func}` changes a tensor in place"
            raise AnyRNNError(msg)
        storage = target.untyped_storage()._cdata
        views = [t for t in self._kept if t.untyped_storage()._cdata == storage]
        if any(self.refs[id(t)] in self.weights.values() for t in views):
            msg = f"`{func}` changes a weight or buffer"
            raise AnyRNNError(msg)
        recorded = pytree.tree_map_only(Tensor, self.ref, (args, dict(kwargs)))
        self._stale.update(id(t) for t in views if t is not target and not _apart(t, target))
        self._stale.discard(id(target))
        self.steps.append(Step(plain, recorded[0], recorded[1], (self._number(target),), many=False))
        if self.varying.intersection(self.steps[-1].inputs):
            self.varying.update(self.steps[-1].outputs)
        return target

    def _name(self, tensor: Tensor) -> None:
        if self._name_of is None:
            msg = "a tensor turned up that is not part of the graph"
            raise AnyRNNError(msg)
        name = self._name_of(tensor)
        if name in self.weights:  # reached by another way than the attribute, as in a closure
            self.refs[id(tensor)] = self.weights[name]
        else:
            self.weights[name] = self._number(tensor)


def trace(cell: nn.Module, signature: Signature, input_size: int, dtype: torch.dtype = torch.float32) -> Graph:
    """Record one step of a cell; `dtype` is that of x and the states if the cell has no tensors that say so.

    Raises:
        AnyRNNError: if the step cannot be recorded: it reads numbers out of tensors, changes weights or attributes, or
            uses a tensor that is no attribute of the cell. The message is the reason.
    """
    graphs: list[Graph] = []
    for batch in BATCHES:
        graph = _trace(cell, signature, input_size, dtype, batch, fill=float(len(graphs)))
        weights = set(graph.weights.values())
        sizes = (size for ref, shape in graph.shapes.items() for size in (shape if ref in weights else shape[1:]))
        if not any(size % batch == 0 for size in sizes if size):
            graphs.append(graph)
        if len(graphs) == 2:  # with other numbers and another number of rows
            _check_same(*graphs)
            return graphs[0]
    raise AnyRNNError(_moved(graph))


def _moved(graph: Graph) -> str:
    """Say which operation moves the batch, if it is one; else a size happens to be a multiple of each batch tried."""
    weights = set(graph.weights.values())
    for step in graph.steps:
        for ref in step.outputs:
            if ref not in weights and any(size and size % graph.batch == 0 for size in graph.shapes[ref][1:]):
                return (
                    f"`{step.op}` moves the batch (einsum, bmm and transpositions do): the batch is not the first "
                    f"dimension throughout; keep it first, as in h @ W or (a.unsqueeze(-1) * W).sum(1)"
                )
    return f"it has sizes that are multiples of each of {BATCHES[:-1]}: the batch is not the first dimension throughout"


def _check_same(a: Graph, b: Graph) -> None:
    """Check that two traces are of the same operations, but for the number of rows."""
    for first, second in zip(a.steps, b.steps, strict=False):
        if _sized(first, a.batch) != _sized(second, b.batch):
            msg = f"`{first.op}` differs between two runs: by a size of the batch, a number in a tensor, or by chance"
            raise AnyRNNError(msg)
    if len(a.steps) != len(b.steps) or (a.output, a.new_states) != (b.output, b.new_states):
        msg = "its operations differ between two runs: by a size of the batch, a number in a tensor, or by chance"
        raise AnyRNNError(msg)


def scaled(value: Any, batch: int, rows: Callable[[int], Any]) -> Any:
    """A shape or a size, with `rows(k)` in the place of k times the batch; anything else as it is."""
    if isinstance(value, list | tuple):
        return [scaled(n, batch, rows) for n in value]
    return rows(value // batch) if type(value) is int and value % batch == 0 < value else value


def _sized(step: Step, batch: int) -> str:
    """A step as text, with the number of rows in shapes made B."""
    args = [
        scaled(value, batch, "{}B".format) if argument.name in SHAPE_ARGUMENTS else value
        for value, argument in zip(step.args, step.op._schema.arguments, strict=False)
    ]
    return repr((step.op, args, step.kwargs, step.outputs))


def _trace(
    cell: nn.Module, signature: Signature, input_size: int, dtype: torch.dtype, batch: int, fill: float
) -> Graph:
    twin = _twin_of(cell)
    stand_ins = registered_of(twin)
    names = {id(t): name for found in (tensors_of(cell), stand_ins) for name, t in found.items()}

    def name_of(tensor: Tensor) -> str:
        if id(tensor) not in names:
            msg = f"it uses a tensor {tuple(tensor.shape)} that is no attribute of the cell"
            raise AnyRNNError(msg)
        return names[id(tensor)]

    recorder = Recorder(name_of)
    recorder.weights.update((key, recorder.ref(value)) for key, value in stand_ins.items())
    like = placement(cell, torch.empty(0, dtype=dtype))
    x, *states = (
        like.new_full((batch, 1), fill / batch).cumsum(0).expand(-1, size).contiguous()
        for size in (input_size, *signature.state_sizes)
    )
    inputs = [recorder.ref(t) for t in (x, *states)]
    recorder.varying.update(inputs)
    outer = sys.getprofile()
    locals_seen: dict[Ref, str] = {}

    def note_locals(frame: FrameType, event: str, _: object) -> None:
        if event == "return" and not frame.f_code.co_filename.startswith((_TORCH, "<", __file__, contraction.__file__)):
            for name, value in frame.f_locals.items():
                if isinstance(value, Tensor) and id(value) in recorder.refs:
                    locals_seen.setdefault(recorder.refs[id(value)], name)

    devices = [like.device] if like.device.type == "cuda" else []
    try:
        functions = recorded(recorder.note_function, recorder.is_varying)
        with torch.enable_grad(), torch.random.fork_rng(devices=devices), caching_nothing(), functions, recorder:
            sys.setprofile(note_locals)
            with contraction.Contractions():
                output, new = signature.step(twin, x, tuple(states))
    except AnyRNNError:
        raise
    except Exception as cause:
        first, _, _ = str(cause).partition("\n")
        msg = f"its step fails: {type(cause).__name__}: {first}"
        raise AnyRNNError(msg) from cause
    finally:
        sys.setprofile(outer if callable(outer) else None)
        put_back = getattr(outer, "enable", None)  # cProfile's, which only itself can put back
        if put_back is not None:
            put_back()
    _check_unchanged(cell, twin, stand_ins)
    return Graph(
        inputs[0],
        tuple(inputs[1:]),
        dict(recorder.weights),
        tuple(recorder.steps),
        recorder.ref(output) if signature.has_output else None,
        tuple(recorder.ref(s) for s in new),
        batch,
        dict(recorder.shapes),
        dict(recorder.dtypes),
        {r: n for r, n in locals_seen.items() if r not in inputs},
    )


def _twin_of(cell: nn.Module) -> nn.Module:
    """A cell of the same attributes to run instead of the cell itself, which other threads may be running."""
    if any(isinstance(m, torch.jit.ScriptModule) for m in cell.modules()):
        msg = "it is TorchScript, which cannot be looked into"
        raise AnyRNNError(msg)
    weights: dict[int, Tensor] = {}
    twins = {id(m): object.__new__(type(m)) for m in cell.modules()}
    for module in cell.modules():
        own = vars(twins[id(module)])
        own.update((k, copy.copy(v) if isinstance(v, list | dict) else v) for k, v in vars(module).items())
        for kind in ("_parameters", "_buffers"):
            held = {k: t if t is None else weights.setdefault(id(t), t.detach()) for k, t in own[kind].items()}
            own[kind] = held
        own["_modules"] = {k: m if m is None else twins[id(m)] for k, m in own["_modules"].items()}
    return twins[id(cell)]


def _check_unchanged(cell: nn.Module, twin: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Check that the step has left the attributes of its cell as they were."""
    if any(value is not weights.get(name) for name, value in registered_of(twin).items()):
        msg = "its step puts another tensor in the place of a weight or buffer"
        raise AnyRNNError(msg)
    for module, other in zip(cell.modules(), twin.modules(), strict=True):
        before, after = vars(module), vars(other)
        for key in dict.fromkeys([*before, *after]):
            a, b = before.get(key, module), after.get(key, module)
            same = a is b if not isinstance(a, list | dict) else key in _MODULES_OWN or _parts(a) == _parts(b)
            if not same:
                msg = f"its step changes the attribute `{key}` of {type(module).__name__}"
                raise AnyRNNError(msg)


def _parts(value: Any) -> list[int]:
    return [id(v) for v in (value.values() if isinstance(value, dict) else value)]


_MODULES_OWN = frozenset({"_parameters", "_buffers", "_modules"})


def registered_of(cell: nn.Module) -> dict[str, Tensor]:
    """Return the parameters and buffers of a cell, by dotted name."""
    return {**dict(cell.named_parameters()), **dict(cell.named_buffers())}


def tensors_of(cell: nn.Module) -> dict[str, Tensor]:
    """Return the parameters, buffers and plain tensor attributes of a cell and its submodules, by dotted name."""
    found = registered_of(cell)
    for prefix, module in cell.named_modules():
        for key, value in module.__dict__.items():
            if isinstance(value, Tensor):
                found[f"{prefix}.{key}" if prefix else key] = value
    return found


def _apart(a: Tensor, b: Tensor) -> bool:
    """Whether two views (B, n) of one tensor are different columns of it."""
    if a.dim() != 2 or a.stride() != b.stride() or a.stride(1) != 1:
        return False
    first, second = (t.storage_offset() % t.stride(0) for t in (a, b))
    return first + a.shape[1] <= second or second + b.shape[1] <= first
