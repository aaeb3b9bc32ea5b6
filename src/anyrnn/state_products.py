"""Matrix products that take the state: where recurrent dropout acts, and which weights DropConnect is for.

A product takes the state if one of its operands is the state itself, a part of it, the state gated by a factor
(``r * h``), behind an activation or a norm, or beside others (``cat((x, h))``). What a step adds to the state is
something else, and so is the output of another product. So in a GRU the mask is on h in ``U h`` and not in ``z * h``,
as in Keras; on the latter it would be applied again at each step.
"""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING, Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import _disable_current_modes

from anyrnn.cells.base import origin_of
from anyrnn.cells.products import KERNELS, made_up, probing, step_of
from anyrnn.compiler.trace import trace
from anyrnn.errors import AnyRNNError
from anyrnn.probing import kinds_of
from anyrnn.protocol import ExtraForm, Signature, outside_inference_mode, size_of
from anyrnn.traced import constant_to_dynamo, fields_of, with_numbers
from anyrnn.twin import twin_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from anyrnn.compiler.graph import Graph, Op, Ref
    from anyrnn.runtime.call import Call

# ---- Products with a mask on the state ----

_PRODUCTS = frozenset(
    {"linear", "matmul", "__matmul__", "__rmatmul__", "mm", "addmm", "bmm", "baddbmm", "addbmm", "mv", "addmv", "dot"}
    | {"einsum", "tensordot", "bilinear", "inner", "vdot", "multi_dot", "chain_matmul"}
    | {"conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d"}
)
_VIEWS = frozenset(
    {"__getitem__", "chunk", "split", "split_with_sizes", "tensor_split", "unbind", "select", "narrow", "index_select"}
    | {"view", "reshape", "flatten", "unflatten", "squeeze", "unsqueeze", "transpose", "permute", "t", "movedim"}
    | {"swapaxes", "swapdims", "expand", "expand_as", "repeat", "contiguous", "clone", "to", "float", "double"}
    | {"type", "type_as", "T", "mT", "alias", "view_as", "reshape_as", "unsafe_chunk", "unsafe_split"}
)
_SIDE_BY_SIDE = frozenset({"cat", "concat", "concatenate", "hstack", "stack", "column_stack"})
_GATING = frozenset({"mul", "multiply", "__mul__", "__rmul__", "div", "true_divide", "__truediv__", "neg", "__neg__"})
_IN_PLACE: Mapping[str, Callable[..., Tensor]] = {
    **dict.fromkeys(("mul_", "multiply_", "__imul__"), torch.mul),
    **dict.fromkeys(("div_", "__itruediv__"), torch.div),
}
_OF_ONE = frozenset(
    {"tanh", "relu", "sigmoid", "gelu", "silu", "mish", "softplus", "softsign", "elu", "selu", "celu", "leaky_relu"}
    | {"hardtanh", "hardsigmoid", "hardswish", "relu6", "sin", "cos", "clamp", "abs", "softmax", "layer_norm"}
    | {"group_norm", "rms_norm", "normalize"}
)


class _Masked(NamedTuple):
    """A tensor that is the state in some form, the same with the mask, and the mask in its form, if it has one."""

    tensor: Tensor
    masked: Tensor
    mask: Tensor | None


class MaskedProducts(TorchFunctionMode):
    """While it is on, matrix products take the states with masks on them; nothing else does.

    Args:
        pairs: States, each with a mask of its shape.
    """

    def __init__(self, pairs: Iterable[tuple[Tensor, Tensor]]) -> None:
        super().__init__()
        # By the id of the tensor, which is held, so that no id is used twice.
        self._found = {id(s): _Masked(s, s * m, m) for s, m in pairs}

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        """Call a function; with masks on the states, if it is a product."""
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name == "__get__":  # of an attribute
            name = getattr(func.__self__, "__name__", "")
        if name in _PRODUCTS:
            return func(*self._masked(args), **self._masked(kwargs))
        if name in KERNELS:
            with self:  # which PyTorch has put aside meanwhile
                return step_of(KERNELS[name], *args, **kwargs)
        if not self._is_any([*args, *kwargs.values()]):
            return func(*args, **kwargs)
        if name in _IN_PLACE:
            masked = _IN_PLACE[name](*self._masked(args), **kwargs)
            return self._note(func(*args, **kwargs), masked, self._mask_of(args))
        result = func(*args, **kwargs)
        if name in _VIEWS:
            mask = self._mask_of(args)
            moved = None if mask is None else func(mask, *args[1:], **kwargs)
            return self._note(result, func(*self._masked(args), **self._masked(kwargs)), moved)
        if name in _GATING or name in _SIDE_BY_SIDE:
            masked = func(*self._masked(args), **self._masked(kwargs))
            return self._note(result, masked, self._mask_of(args) if name in _GATING else None)
        if name in _OF_ONE and isinstance(result, Tensor):
            mask = self._mask_of(args)
            return result if mask is None else self._note(result, result * mask, mask)
        if args and (result is args[0] or name == "__setitem__"):  # changed in place
            self._found.pop(id(args[0]), None)
        return result

    def _masked(self, values: Any) -> Any:
        """The same with the mask on each tensor that is the state in some form."""
        if isinstance(values, Tensor):
            found = self._found.get(id(values))
            return values if found is None else found.masked
        if isinstance(values, tuple | list):
            return type(values)(map(self._masked, values)) if not hasattr(values, "_fields") else values
        return {k: self._masked(v) for k, v in values.items()} if isinstance(values, dict) else values

    def _is_any(self, args: Any) -> bool:
        return any(
            id(a) in self._found or (isinstance(a, tuple | list) and any(id(t) in self._found for t in a)) for a in args
        )

    def _mask_of(self, args: Any) -> Tensor | None:
        """The mask of the first tensor that has one."""
        return next((self._found[id(a)].mask for a in args if id(a) in self._found), None)

    def _note(self, result: Any, masked: Any, mask: Any) -> Any:
        """Note a tensor, or several, with the mask on it, and return it."""
        if isinstance(result, Tensor):
            fits = mask is not None and mask.shape == result.shape
            self._found[id(result)] = _Masked(result, masked, mask if fits else None)
        elif isinstance(result, tuple | list):
            masks = [None] * len(result) if mask is None else mask
            for each in zip(result, masked, masks, strict=True):
                self._note(*each)
        return result


def takes_states(call: Call) -> tuple[bool, ...]:
    """Whether a product takes each state of a cell; seen by running a step on made-up numbers."""
    forms = [e.form for e in call.extras]
    with probing():
        given = made_up(call.cell, call.signature, size_of(call.x.shape[2:]), forms)
        masks = [torch.ones_like(s, requires_grad=True) for s in given.states]
        with MaskedProducts(zip(given.states, masks, strict=True)):
            outputs, new = call.signature.step(twin_of(call.cell, to_probe=True), given.x, given.states, given.extras)
        results = [t.sum() for t in (*outputs, *new) if t.requires_grad]
        if not results:
            return (False,) * len(masks)
        found = torch.autograd.grad(torch.stack(results).sum(), masks, allow_unused=True)
    return tuple([g is not None for g in found])


# ---- The weights of these products ----


class Region(NamedTuple):
    """A part of a parameter.

    Attributes:
        name: The parameter's dotted name.
        dim: Along which dimension; -1 for all of it.
        ranges: The first index and the one after the last, of each piece.
    """

    name: str
    dim: int = -1
    ranges: tuple[tuple[int, int], ...] = ()


_known: WeakKeyDictionary[nn.Module, dict[Any, tuple[Region, ...]]] = WeakKeyDictionary()


def recurrent_weights(call: Call) -> tuple[Region, ...]:
    """The parameters of a cell that are multiplied with its state, or the parts of them that are.

    Raises:
        AnyRNNError: if the step cannot be recorded.
    """
    shape = tuple([int(n) for n in call.x.shape[2:]])
    forms = tuple([(e.key, e.kind, tuple([int(n) for n in e.form.shape]), e.tensor.dtype) for e in call.extras])
    found = _of_cell(origin_of(call.cell), fields_of(call.signature), shape, call.x.dtype, forms)
    return tuple([Region(name, dim, ranges) for name, dim, ranges in found])


@constant_to_dynamo
def _of_cell(
    origin: nn.Module, fields: tuple[Any, ...], shape: tuple[int, ...], dtype: torch.dtype,
    forms: tuple[tuple[Any, ...], ...],
) -> tuple[tuple[Any, ...], ...]:  # fmt: skip
    known, key = _known.setdefault(origin, {}), (fields, shape, dtype, forms)
    if key not in known:
        signature: Signature = Signature(*(*fields, *kinds_of(origin)))
        with (
            _disable_current_modes(), torch._C.DisableTorchFunction(), temporarily_clear_interpreter_stack(),
            outside_inference_mode(), torch.enable_grad(),
        ):  # fmt: skip
            cell = with_numbers(origin, (), origin.training)
            graph = trace(cell, signature, size_of(shape), dtype, extras=tuple(ExtraForm(*f) for f in forms))
            parameters = {name: p.shape for name, p in cell.named_parameters()}
            known[key] = tuple(_Search(graph, parameters).regions())
    return tuple(map(tuple, known[key]))


class _Search:
    """Looks through the graph of a step.

    Attributes:
        columns: For each tensor that is the state in some form, where it is, true or false of its shape.
        numbers: For each tensor that consists of elements of parameters, which ones, counted through all parameters.
        hit: Which elements are multiplied with the state.
    """

    def __init__(self, graph: Graph, parameters: Mapping[str, torch.Size]) -> None:
        self.graph = graph
        self.columns: dict[Ref, Tensor] = {s: torch.ones(graph.shapes[s], dtype=torch.bool) for s in graph.states}
        self.numbers: dict[Ref, Tensor] = {}
        self.parameters = {name: shape for name, shape in parameters.items() if name in graph.weights}
        self.firsts: dict[str, int] = {}
        count = 0
        for name, shape in self.parameters.items():
            self.firsts[name] = count
            self.numbers[graph.weights[name]] = torch.arange(count, count + shape.numel()).reshape(shape)
            count += shape.numel()
        self.hit = torch.zeros(count, dtype=torch.bool)
        self.producers = {ref: op for op in graph.ops for ref in op.outputs}

    def regions(self) -> list[Region]:
        for op in self.graph.ops:
            if op.short_name in _CONTRACTED:
                self._multiply(op)
            else:
                self._carry(op)
        found = []
        for name, shape in self.parameters.items():
            hit = self.hit[self.firsts[name] : self.firsts[name] + shape.numel()].reshape(shape)
            if hit.any():
                found.append(_region_of(name, hit))
        return found

    def _multiply(self, op: Op) -> None:
        """Note the elements of parameters that a product multiplies with the state."""
        left, right = (_CONTRACTED[op.short_name])(op.args)
        for rows, matrix, dims in ((left, right, (-1, -2)), (right, left, (-2, -1))):
            if rows not in self.columns:
                continue
            numbers = self.numbers.get(matrix)
            if numbers is None:
                self._derived(matrix)
                continue
            columns = self.columns[rows]
            if op.short_name == "convolution":
                taken = columns.transpose(0, 1).flatten(1).any(1)  # by channel
                whole = op.args[8] > 1 or op.args[6]  # groups; transposed
                self.hit[(numbers if whole else numbers[:, taken]).flatten()] = True
                continue
            # Along what is summed over; the operand may be a vector.
            taken = columns if columns.dim() == 1 else columns.movedim(dims[0], -1).flatten(0, -2).any(0)
            self.hit[numbers.movedim(dims[1] if numbers.dim() > 1 else 0, 0)[taken].flatten()] = True

    def _derived(self, matrix: Ref) -> None:
        """Note what a matrix is computed from: parameters of its size; if there are none, all matrices."""
        waiting, seen = [matrix], set[Any]()
        while waiting:
            ref = waiting.pop()
            if ref not in seen:
                seen.add(ref)
                waiting += self.producers[ref].inputs if ref in self.producers else ()
        named = [n for n, ref in self.graph.weights.items() if ref in seen and n in self.parameters]
        size = torch.Size(self.graph.shapes[matrix]).numel()
        alike = [n for n in named if self.parameters[n].numel() == size]
        for name in alike or [n for n in named if len(self.parameters[n]) > 1]:
            self.hit[self.firsts[name] : self.firsts[name] + self.parameters[name].numel()] = True

    def _carry(self, op: Op) -> None:
        """Follow the state, and elements of parameters, through an operation."""
        name, tags = op.short_name, op.overload.tags
        moves = name in _MOVES or op.overload.is_view
        if moves or name in ("cat", "stack"):
            for found, empty in ((self.columns, False), (self.numbers, None)):
                self._move(op, found, empty)
            return
        inputs = [r for r in op.inputs if r in self.columns]
        if not inputs or not (name in ("mul", "div") or name in _NORMS or _is_of_one(op, tags)):
            return
        for ref in op.outputs[:1]:
            shape = self.graph.shapes[ref]
            columns = [self.columns[r] for r in inputs]
            if all(torch.broadcast_shapes(c.shape, shape) == torch.Size(shape) for c in columns):
                self.columns[ref] = torch.stack([c.expand(shape) for c in columns]).any(0)

    def _move(self, op: Op, found: dict[Ref, Tensor], empty: bool | None) -> None:
        refs = [*op.inputs]
        if not refs or not any(r in found for r in refs) or (empty is None and not all(r in found for r in refs)):
            return

        def moved(ref: Ref) -> Tensor:
            return found[ref] if ref in found else torch.zeros(self.graph.shapes[ref], dtype=torch.bool)

        if op.short_name == "_to_copy":
            found[op.outputs[0]] = moved(refs[0])
            return
        args, kwargs = pytree.tree_map_only(type(refs[0]), moved, (op.args, dict(op.kwargs)))
        result = op.overload(*args, **kwargs)
        found.update(zip(op.outputs, result if op.many else (result,), strict=True))


#: Products, and which of their arguments are multiplied.
_CONTRACTED: Mapping[str, Callable[[Sequence[Any]], tuple[Any, Any]]] = {
    **dict.fromkeys(("mm", "bmm", "mv", "convolution"), lambda args: (args[0], args[1])),
    **dict.fromkeys(("addmm", "baddbmm", "addmv", "addbmm"), lambda args: (args[1], args[2])),
}
_MOVES = frozenset({"clone", "_to_copy", "_unsafe_view", "_reshape_alias", "repeat", "index_select", "contiguous"}) | {
    *("unsafe_split", "unsafe_chunk"),
}
_NORMS = frozenset({"native_layer_norm", "native_group_norm", "_fused_rms_norm", "_softmax"})


def _is_of_one(op: Op, tags: Sequence[Any]) -> bool:
    """Whether it is a function of each number of one tensor, such as an activation."""
    return torch.Tag.pointwise in tags and len([*op.inputs]) == 1 and op.short_name not in ("add", "sub", "rsub")


def _region_of(name: str, hit: Tensor) -> Region:
    """The part of a parameter, which is true in `hit`."""
    if hit.all():
        return Region(name)
    for dim in reversed(range(hit.dim())):
        along = hit.movedim(dim, 0).flatten(1)
        taken = along.any(1)
        if along[taken].all():
            indices = taken.nonzero().flatten().tolist()
            runs = [[i for _, i in run] for _, run in groupby(enumerate(indices), lambda pair: pair[1] - pair[0])]
            return Region(name, dim, tuple((run[0], run[-1] + 1) for run in runs))
    msg = f"the elements of {name} that are multiplied with the state are no rows or columns of it"
    raise AnyRNNError(msg)
