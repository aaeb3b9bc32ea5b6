"""The recorder of a trace: a `TorchDispatchMode` that records every ATen operation while it runs."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from anyrnn.compiler.graph import PLAIN, Op, Ref, leaves, replaced
from anyrnn.errors import AnyRNNError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

#: In-place operations that do not read what they change.
_OVERWRITING = frozenset(f"aten::{name}_" for name in ("fill", "zero", "copy", "bernoulli", "uniform", "normal")) | {
    *("aten::exponential_", "aten::geometric_", "aten::cauchy_", "aten::log_normal_", "aten::random_"),
}


#: Those of them after which autograd still knows what was there before.
_REPLACING = frozenset({"aten::fill_", "aten::zero_", "aten::copy_"})

#: As long a tensor may be written down in the cell's code.
MOST_NUMBERS = 64


class Recorder(TorchDispatchMode):
    """Records operations. A tensor that none of them has computed is a weight, which `name_of` names."""

    def __init__(self, name_of: Callable[[Tensor], str] | None = None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.refs: dict[int, Ref] = {}  # by the id of the tensor
        self.shapes: dict[Ref, tuple[int, ...]] = {}
        self.dtypes: dict[Ref, torch.dtype] = {}
        self.ops: list[Op] = []
        self.weights: dict[str, Ref] = {}
        self.varying: set[Ref] = set()  # the tensors that depend on the input or the state
        self.stateful: set[Ref] = set()  # on the state
        self.rooted: set[Ref] = set()  # on the input, the state or a weight: autograd may have a way back from them
        self._name_of = name_of
        self._tensors: list[Tensor] = []  # held, so that no id is used twice
        self._stale: set[int] = set()  # ids of tensors of which a part was changed in place since
        self._uninitialized: set[int] = set()  # memory that nobody has written to

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Leave `__torch_dispatch__` as it is: the usual wrapper imports torch._dynamo, which takes seconds."""
        return False

    def ref(self, tensor: Tensor) -> Ref:
        """Return the number of a tensor, giving it one if it is new."""
        ref = self.refs.get(id(tensor))
        if ref is None:
            return self._add(tensor)
        if id(tensor) in self._stale:
            msg = "it reads a tensor after a part of it was changed in place"
            raise AnyRNNError(msg)
        return ref

    def known(self, tensor: Tensor) -> Ref | None:
        """The number of a tensor; None if it has none, or if a part of it was changed in place since."""
        return None if id(tensor) in self._stale else self.refs.get(id(tensor))

    def _add(self, tensor: Tensor) -> Ref:
        """Give a tensor a new number."""
        ref = self.refs[id(tensor)] = self._new_ref(tensor)
        self._tensors.append(tensor)
        return ref

    def _new_ref(self, tensor: Tensor) -> Ref:
        """A number for a tensor of this shape and type, such as this one before it was detached."""
        ref = Ref(len(self.shapes))
        self.shapes[ref] = tuple(tensor.shape)
        self.dtypes[ref] = tensor.dtype
        return ref

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run an operation and record it."""
        kwargs = dict(kwargs or {})
        if func is torch.ops.aten.lift_fresh.default and 1 < args[0].numel() <= MOST_NUMBERS:
            return self._made_of_numbers(args[0])
        if func is torch.ops.aten.lift_fresh.default and args[0].numel() == 1:
            number, func = args[0], torch.ops.aten.full.default  # torch.tensor(0.5) in the cell's code
            args, kwargs = (list(number.shape), number.item()), {"dtype": number.dtype}
        tensors = [t for t in leaves((args, kwargs)) if isinstance(t, Tensor)]
        if func is torch.ops.aten._linalg_check_errors.default and id(args[0]) in self.refs:
            self._enable_check_errors(args[0])
            return func(*args, **kwargs)
        without_grad = self._name_of is not None and not torch.is_grad_enabled()
        self._check_operation(func, tensors, kwargs, without_grad)
        if func._schema.is_mutable:
            return self._in_place(func, args, kwargs)
        if func is torch.ops.aten.native_batch_norm.default and args[3] is not None and args[5]:
            msg = f"`{func}` changes the running statistics"
            raise AnyRNNError(msg)
        result = func(*args, **kwargs)
        outputs = [r for r in leaves(result) if isinstance(r, Tensor)]
        self._check_initialized(func, tensors, outputs)
        if not outputs:
            msg = (
                f"`{func}`: a Python number is taken from a tensor (.item(), float(), if): compute with tensors, "
                f"e.g. torch.where"
            )
            raise AnyRNNError(msg)
        recorded = replaced(Tensor, self.ref, (args, kwargs))
        self._record(func, recorded[0], recorded[1], result, without_grad)
        return result

    def _made_of_numbers(self, tensor: Tensor) -> Tensor:
        """Record a tensor that is made in the cell's code, torch.tensor([1, 2, 3]), number by number."""
        aten, flat = torch.ops.aten, tensor.flatten()
        parts = [self._new_ref(flat[:1]) for _ in flat]
        for ref, number in zip(parts, flat.tolist(), strict=True):
            self.ops.append(Op(aten.full.default, ([1], number), {"dtype": tensor.dtype}, (ref,), many=False))
        side_by_side = self._new_ref(flat)
        self.ops.append(Op(aten.cat.default, (parts,), {}, (side_by_side,), many=False))
        shaped = aten.view.default, (side_by_side, list(tensor.shape))
        self.ops.append(Op(*shaped, {}, (self.ref(tensor),), many=False))
        return tensor

    def _check_operation(
        self, func: Any, tensors: Sequence[Tensor], kwargs: Mapping[str, Any], without_grad: bool
    ) -> None:
        """Check that an operation can be recorded, and name the weights among its tensors."""
        if without_grad and tensors and (func._schema.is_mutable or any(map(self.is_varying, tensors))):
            msg = f"`{func}` runs below torch.no_grad or in an autograd.Function: its gradient is not its own"
            raise AnyRNNError(msg)
        for tensor in tensors:
            if type(tensor) not in PLAIN or tensor.layout is not torch.strided or tensor.is_meta:
                kind = f"{type(tensor).__name__} of layout {tensor.layout} on {tensor.device}"
                msg = f"`{func}` takes a {kind}, which is no plain array of numbers"
                raise AnyRNNError(msg)
            if id(tensor) not in self.refs:
                self._add_weight(tensor)
        if any(isinstance(v, torch.Generator) for v in kwargs.values()):
            msg = f"`{func}` draws random numbers from a generator of the cell's own"
            raise AnyRNNError(msg)

    def _check_initialized(self, func: Any, tensors: Sequence[Tensor], outputs: Sequence[Tensor]) -> None:
        """Check that no memory is read that nobody has written to."""
        if "empty" in func._schema.name:
            self._uninitialized.update(map(_memory, outputs))
            return
        is_view = self._uninitialized.issuperset(map(_memory, outputs))
        if not self._uninitialized.isdisjoint(map(_memory, tensors)) and not (outputs and is_view):
            msg = f"`{func}` reads memory that nobody has written to"
            raise AnyRNNError(msg)

    def check_results(self, results: Sequence[Tensor]) -> None:
        """Check that a step's results are plain tensors, of operations that were seen, whose memory was written to."""
        for tensor in results:
            if type(tensor) not in PLAIN:
                msg = f"it returns a {type(tensor).__name__}, which is more than an array of numbers; use torch.Tensor"
                raise AnyRNNError(msg)
            if names := vars(tensor):
                msg = f"it returns a tensor with an attribute, `{next(iter(names))}`, that the next step would find"
                raise AnyRNNError(msg)
            if id(tensor) not in self.refs:
                self._add_weight(tensor)
        if not self._uninitialized.isdisjoint(map(_memory, results)):
            msg = "it returns memory that nobody has written to"
            raise AnyRNNError(msg)

    def named(self) -> Iterator[tuple[Ref, Tensor]]:
        """All tensors, with their numbers."""
        return ((self.refs[id(t)], t) for t in self._tensors)

    def _record(self, func: Any, args: Any, kwargs: Any, result: Any, without_grad: bool = False) -> None:
        """Record an operation; without gradients, its results are detached."""
        outputs = [r for r in leaves(result) if isinstance(r, Tensor)]
        if without_grad:
            refs = tuple(self._new_ref(o) for o in outputs)
            detach = torch.ops.aten.detach.default
            detached = [Op(detach, (r,), {}, (self.ref(o),), many=False) for r, o in zip(refs, outputs, strict=True)]
        else:
            refs, detached = tuple(self.ref(o) for o in outputs), []
        steps = [Op(func, args, kwargs, refs, isinstance(result, list | tuple)), *detached]
        for op in steps:
            self._append(op)

    def _append(self, op: Op) -> None:
        for each in (self.varying, self.stateful, self.rooted):
            if each.intersection(op.inputs):
                each.update(op.outputs)
        self.ops.append(op)

    def whole(self, func: Any, args: tuple[Any, ...]) -> Any:
        """Run an operation that PyTorch would take apart, and record it as one."""
        return self.__torch_dispatch__(func, (), args)

    def record_function(self, call: Any, args: tuple[Any, ...], result: Any) -> None:
        """Record a call of an autograd.Function."""
        for tensor in args:
            if isinstance(tensor, Tensor) and id(tensor) not in self.refs:
                self._add_weight(tensor)
        self._record(call, replaced(Tensor, self.ref, args), {}, result)

    def is_varying(self, tensor: Tensor) -> bool:
        """Whether a tensor depends on the input or the state."""
        return self.refs.get(id(tensor)) in self.varying

    def is_stateful(self, tensor: Tensor) -> bool:
        """Whether a tensor depends on the state."""
        return self.refs.get(id(tensor)) in self.stateful

    def _enable_check_errors(self, info: Tensor) -> None:
        """Set `check_errors` of the operation of linear algebra whose result the step's code has just checked."""
        ref = self.ref(info)
        for k, op in enumerate(self.ops):
            if ref in op.outputs and any(a.name == "check_errors" for a in op.overload._schema.arguments):
                names = [a.name for a in op.overload._schema.arguments]
                args = tuple(True if name == "check_errors" else a for name, a in zip(names, op.args, strict=False))
                extra = {} if len(args) > names.index("check_errors") else {"check_errors": True}
                self.ops[k] = replace(op, args=args, kwargs={**op.kwargs, **extra})

    def _in_place(self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
        """Record an operation such as `add_` as `add` (functionalization); the changed tensor becomes its result."""
        packet = getattr(torch.ops.aten, func._schema.name.removeprefix("aten::").removesuffix("_"), None)
        functional = _overload_like(packet, func)
        functional_args = args
        if func is torch.ops.aten.bernoulli_.float:
            functional = torch.ops.aten.bernoulli.p
            functional_args = (*args, *([] if kwargs or args[1:] else [0.5]))
        elif func is torch.ops.aten.normal_.default:
            functional = torch.ops.aten.normal_functional.default
        target = args[0] if args else None
        if functional is None or not func._schema.name.endswith("_") or not isinstance(target, Tensor):
            msg = f"`{func}` changes a tensor in place"
            raise AnyRNNError(msg)
        others = [t for t in leaves((args[1:], dict(kwargs))) if isinstance(t, Tensor)]
        self._check_initialized(func, others, ())
        storage = _memory(target)
        if storage in self._uninitialized:
            whole = target.numel() * target.itemsize == target.untyped_storage().nbytes()
            if func._schema.name not in _OVERWRITING or not whole:
                msg = f"`{func}` reads or keeps memory that nobody has written to"
                raise AnyRNNError(msg)
            self._uninitialized.discard(storage)
        views = [t for t in self._tensors if _memory(t) == storage]
        if any(self.refs[id(t)] in self.weights.values() for t in views):
            msg = f"`{func}` changes a weight or buffer"
            raise AnyRNNError(msg)
        recorded = replaced(Tensor, self.ref, (functional_args, dict(kwargs)))
        func(*args, **kwargs)
        self._stale.update(id(t) for t in views if t is not target and not _are_disjoint(t, target))
        self._stale.discard(id(target))
        parts = self._differentiable(func, functional, target, args, *recorded)
        before = recorded[0][0]
        if func._schema.name in _REPLACING and target.is_floating_point() and before in self.rooted:
            parts = self._with_zero_gradient(parts, before, target)
        self._append(Op(*parts, (self._add(target),), many=False))
        return target

    def _with_zero_gradient(
        self, parts: tuple[Any, tuple[Any, ...], Any], before: Ref, target: Tensor
    ) -> tuple[Any, tuple[Any, ...], Any]:
        """An operation that replaces all numbers, as autograd sees it: those before have a gradient, which is zero."""
        value, slope = self._new_ref(target), self._new_ref(target)
        self._append(Op(*parts, (value,), many=False))
        self._append(Op(torch.ops.aten.zeros_like.default, (before,), {}, (slope,), many=False))
        return torch.ops.anyrnn.surrogate.default, (value, before, slope), {}

    def _differentiable(
        self, func: Any, functional: Any, target: Tensor, args: tuple[Any, ...], recorded: tuple[Any, ...], options: Any
    ) -> tuple[Any, tuple[Any, ...], Any]:
        """The operation to record, with its arguments: PyTorch has no derivative of `copy` and `zero`."""
        aten = torch.ops.aten
        if func is aten.zero_.default:
            return aten.zeros_like.default, recorded[:1], {}
        if func is not aten.copy_.default:
            return functional, recorded, options
        source = recorded[1]
        if args[1].shape != target.shape:
            expanded = self._new_ref(args[1].expand(target.shape))
            self._append(Op(aten.expand.default, (source, list(target.shape)), {}, (expanded,), many=False))
            source = expanded
        return aten._to_copy.default, (source,), {"dtype": target.dtype}

    def _add_weight(self, tensor: Tensor) -> None:
        """Give a tensor that no operation has computed the number of its weight."""
        if self._name_of is None:
            msg = "a tensor turned up that is not part of the graph"
            raise AnyRNNError(msg)
        name = self._name_of(tensor)
        if name in self.weights:  # reached by another way than the attribute, as in a closure
            self.refs[id(tensor)] = self.weights[name]
        else:
            self.weights[name] = self._add(tensor)
            self.rooted.add(self.weights[name])


def _overload_like(packet: Any, func: Any) -> Any:
    """The overload of an operation that takes what another one takes: that of `pow_.Scalar` is `pow.Tensor_Scalar`."""
    wanted = [str(a.type) for a in func._schema.arguments]
    names = (
        [] if packet is None else sorted(packet.overloads(), key=lambda name: name != (func._overloadname or "default"))
    )
    overloads = (getattr(packet, name) for name in names)
    return next((o for o in overloads if [str(a.type) for a in o._schema.arguments] == wanted), None)


def _memory(tensor: Tensor) -> int:
    """The identity of a tensor's storage."""
    return int(tensor.untyped_storage()._cdata)


def _are_disjoint(a: Tensor, b: Tensor) -> bool:
    """Whether two views (B, n) of one tensor are different columns of it."""
    if a.dim() != 2 or a.stride() != b.stride() or a.stride(1) != 1:
        return False
    first, second = (t.storage_offset() % t.stride(0) for t in (a, b))
    return first + a.shape[1] <= second or second + b.shape[1] <= first
