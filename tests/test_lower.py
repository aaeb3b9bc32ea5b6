"""Each rule of the table in rules.py, values and gradients, against the operation of PyTorch that it stands for."""

import math

import pytest
import torch
from torch.nn import functional as F
from torch.utils import _pytree as pytree

import anyrnn
from anyrnn.compiler.clipping import clip_gradient, clip_gradient_norm
from anyrnn.compiler.contraction import Contractions
from anyrnn.compiler.derive import derive
from anyrnn.compiler.graph import Ref
from anyrnn.compiler.indexing import Indexing
from anyrnn.compiler.lower import Lowering
from anyrnn.compiler.node import Builder, Node, evaluate
from anyrnn.compiler.passes import elementary
from anyrnn.compiler.program import Array, Program
from anyrnn.compiler.recorder import Recorder
from anyrnn.compiler.rules import COMPOSITE, RULES, lower
from anyrnn.compiler.surrogate import surrogate
from anyrnn.errors import AnyRNNError

B = 11
#: Where the operations have kinks, jumps and edges, and numbers between them.
POINTS = torch.tensor([-3.0, -1.0, -0.5, 0.0, 0.5, 1.0, 3.0, 6.0, 20.0, 21.0, -30.0], dtype=torch.float64)
SPECIAL = torch.tensor(
    [math.nan, math.inf, -math.inf, 0.0, -0.0, 1e-300, 709.0, -745.0, 1.0, -1.0, 0.5], dtype=torch.float64
)


class Vector(tuple):
    """The shape of an operand without a batch."""


def rows(*shape):
    """The shape of an operand with a batch, less the batch."""
    return shape


X, Y, V, ONE = rows(4), rows(4), Vector((4,)), rows(1)


def positive(f):
    """An operation on positive numbers."""
    return lambda x: f(x.abs() + 0.25)


# (the rule, a function that PyTorch computes by it, the shapes of its operands)
ROWS = [
    *((f.__name__, f, X) for f in (torch.neg, torch.abs, torch.expm1, torch.tanh, torch.sigmoid, torch.sin)),
    *((f.__name__, f, X) for f in (torch.cos, torch.erf, torch.floor, torch.ceil, torch.trunc, torch.round)),
    *((f.__name__, f, X) for f in (torch.sign, torch.sgn, torch.atan, torch.asinh)),
    *((f.__name__, lambda x, f=f: f(x / 4), X) for f in (torch.sinh, torch.cosh)),
    *((f.__name__, lambda x, f=f: f(x / 32), X) for f in (torch.atanh, torch.asin, torch.acos)),
    ("acosh", lambda x: torch.acosh(x.abs() + 1.25), X),
    *((f.__name__, lambda x, f=f: f(x / 4), X) for f in (torch.exp, torch.exp2)),
    *((f.__name__, positive(f), X) for f in (torch.log, torch.log2, torch.log1p, torch.sqrt, torch.rsqrt)),
    ("log10", positive(torch.log10), X),
    ("logaddexp", torch.logaddexp, X, Y),
    ("logaddexp", lambda x: torch.logaddexp(x, x * 1.0), X),
    ("isnan", lambda x: torch.where(x.isnan(), 1.0, x), X),
    ("heaviside", lambda x, y: torch.heaviside(x.detach(), y.detach()) * x, X, Y),
    ("heaviside", lambda x: torch.heaviside(x.detach(), torch.full_like(x, 0.5)) * 2, X),
    ("anyrnn::surrogate", lambda x, y: surrogate((x > 0).to(x.dtype), x, 1 / (1 + y * y)), X, Y),
    ("anyrnn::surrogate", lambda x: surrogate(x.round().detach(), x, torch.ones_like(x)) * x, X),
    ("anyrnn::surrogate", lambda x, y: surrogate(surrogate(x * y, x, y), y, x.abs()), X, ONE),
    ("anyrnn::clip_gradient", lambda x, y: clip_gradient(x * y, torch.scalar_tensor(0.2)) * x, X, Y),
    ("anyrnn::clip_gradient_norm", lambda x, y: clip_gradient_norm(x * y, torch.scalar_tensor(0.2)) * y, X, Y),
    ("reciprocal", positive(torch.reciprocal), X),
    ("add", lambda x, y: torch.add(x, y, alpha=0.5), X, Y),
    ("add", lambda x, y: x + y + 2, X, ONE),
    ("sub", lambda x, y: torch.sub(x, y, alpha=0.5), X, V),
    ("sub", lambda x: x - 1, X),
    *(("add", lambda x, n=n: 1 / (x + n), X) for n in (0.0, -0.0)),
    *(("sub", lambda x, n=n: 1 / (x - n), X) for n in (0.0, -0.0)),
    ("mul", lambda x: 1 / (x * 1), X),
    ("rsub", lambda x: 1 - x, X),
    ("rsub", lambda x, y: torch.rsub(x, y, alpha=2), X, Y),
    ("mul", lambda x, y: x * y * 3, X, Y),
    ("mul", lambda x, y: x * y, ONE, V),
    ("mul", lambda x, y: x.unsqueeze(2) * y.unsqueeze(1), rows(3), rows(2)),
    ("mul", lambda x, v: x.view(-1, 2, 2) * v, X, Vector((2, 2))),
    ("div", lambda x, y: x / (y.abs() + 1) / 2, X, Y),
    ("div", lambda x, y: torch.div(x, y.abs() + 1, rounding_mode="floor"), X, Y),
    ("div", lambda x, y: torch.div(x, y.abs() + 1, rounding_mode="trunc"), X, ONE),
    ("div", lambda x: torch.div(x, 0.1, rounding_mode="floor"), X),
    ("div", lambda x, y: torch.div(x, y.round(), rounding_mode="floor"), X, Y),
    ("fmod", lambda x: torch.fmod(x, 0.7), X),
    ("fmod", lambda x, y: torch.fmod(x, y + 0.3), X, Y),
    ("atan2", torch.atan2, X, Y),
    ("atan2", lambda x: torch.atan2(x, x * x - 1), X),
    ("atan2", lambda x: torch.atan2(1 - x * x, x), X),
    ("remainder", lambda x: x % -0.7, X),
    ("remainder", lambda x, y: torch.remainder(x, y + 0.3), X, Y),
    *(("pow", lambda x, n=n: x**n, X) for n in (0, 1, 2, 3, 4, 5, -3)),
    *(("pow", positive(lambda x, n=n: x**n), X) for n in (0.5, -1, -2, -0.5, 1.7)),
    ("pow", lambda x, y: (x.abs() + 0.25) ** (y / 8), X, Y),
    ("pow", lambda x: 2 ** (x / 4), X),
    ("maximum", torch.maximum, X, Y),
    ("maximum", lambda x: torch.maximum(x, x * 1.0), X),
    ("minimum", torch.minimum, X, V),
    *((f.__name__, lambda x, y, f=f: torch.where(f(x, y), x, 2 * y), X, Y) for f in (torch.lt, torch.le, torch.gt)),
    *((f.__name__, lambda x, f=f: torch.where(f(x, 0.5), x, 7.0), X) for f in (torch.ge, torch.eq, torch.ne)),
    ("where", lambda x, y: torch.where(x > 0, 1.0, y), X, Y),
    ("where", lambda x, y: torch.where(x > y, x, y.mean(1, keepdim=True)), ONE, Y),
    ("masked_fill", lambda x, y: x.masked_fill(y > 0, -1.0), X, Y),
    ("logical_and", lambda x, y: torch.where(torch.logical_and(x > 0, y), x, y), X, Y),
    ("logical_or", lambda x, y: torch.where(torch.logical_or(x > 0, y > 0), x, y), X, Y),
    ("logical_not", lambda x, y: torch.where(torch.logical_not(x), x, y), X, Y),
    ("bitwise_and", lambda x, y: torch.where((x > 0) & (y > 0), x, y), X, Y),
    ("bitwise_or", lambda x, y: torch.where((x > 0) | (y > 0), x, y), X, Y),
    ("bitwise_xor", lambda x, y: torch.where((x > 0) ^ (y > 0), x, y), X, Y),
    ("logical_xor", lambda x, y: torch.where(torch.logical_xor(x, y > 0), x, y), X, Y),
    ("any", lambda x, y: torch.where((x > 1).any(1, keepdim=True), x, y), X, Y),
    ("any", lambda x: torch.where(torch.relu(x).any(1), x[:, 0], 2 * x[:, 1])[:, None], X),
    ("all", lambda x, y: torch.where((x > -1).all(1, keepdim=True), x, y), X, Y),
    ("bitwise_not", lambda x, y: torch.where(~(x > 0), x, y), X, Y),
    ("clamp", lambda x: x.clamp(-1, 1), X),
    ("clamp", lambda x: x.clamp(max=1), X),
    ("clamp", lambda x, v: x.clamp(v, v + 1), X, V),
    ("clamp", lambda x, v: x.clamp(v + 1, v), X, V),
    ("clamp", lambda x, y: x.clamp(y, x), X, Y),
    ("clamp", lambda x: x.clamp(1, -1), X),
    ("clamp_min", torch.clamp_min, X, Y),
    ("clamp_max", torch.clamp_max, X, Y),
    ("clamp_min", lambda x: torch.clamp_min(x, 0.5), X),
    ("clamp_max", lambda x: torch.clamp_max(x, 0.5), X),
    ("relu", torch.relu, X),
    ("leaky_relu", lambda x: F.leaky_relu(x, 0.2), X),
    ("threshold", lambda x: F.threshold(x, 0.5, -2), X),
    ("softplus", F.softplus, X),
    ("softplus", lambda x: F.softplus(x, 2, 6), X),
    *(("elu", f, X) for f in (F.elu, F.selu, lambda x: F.elu(x, 0.3))),
    ("hardtanh", F.hardtanh, X),
    ("hardtanh", F.relu6, X),
    ("hardsigmoid", F.hardsigmoid, X),
    ("hardswish", F.hardswish, X),
    ("silu", F.silu, X),
    ("celu", lambda x: F.celu(x, 0.7), X),
    ("mish", F.mish, X),
    ("softshrink", lambda x: F.softshrink(x, 0.6), X),
    ("hardshrink", lambda x: F.hardshrink(x, 0.6), X),
    ("_prelu_kernel", F.prelu, X, Vector((4,))),
    ("_prelu_kernel", F.prelu, X, Vector((1,))),
    ("glu", lambda x: F.glu(x, 1), X),
    ("tan", torch.tan, X),
    ("gelu", F.gelu, X),
    ("gelu", lambda x: F.gelu(x, approximate="tanh"), X),
    ("log_sigmoid_forward", F.logsigmoid, X),
    ("addcmul", lambda x, y, v: torch.addcmul(x, y, v, value=0.5), X, Y, V),
    ("addcdiv", lambda x, y: torch.addcdiv(x, x, y.abs() + 1, value=-2), X, Y),
    ("lerp", lambda x, y: torch.lerp(x, y, 0.3), X, Y),
    ("lerp", torch.lerp, X, Y, V),
    ("detach", lambda x: x * x.detach(), X),
    ("sum", lambda x: x.sum(1), X),
    ("sum", lambda x: x.view(-1, 2, 3).sum((1, 2), keepdim=True).flatten(1) * x, rows(6)),
    ("sum", lambda x, y: torch.cat([x, y.expand(-1, 3), torch.ones_like(x)], 1).sum(-1, keepdim=True), X, ONE),
    ("sum", lambda x: (x > 0).sum(1, keepdim=True) * x, X),
    ("mean", lambda x: x.mean(-1, keepdim=True) * x, X),
    ("mean", lambda x: x.view(-1, 2, 3).mean(1), rows(6)),
    ("amax", lambda x, y: torch.cat([x, y], 1).amax(1, keepdim=True) * x, X, rows(3)),
    ("amax", lambda x: torch.cat([x, torch.relu(x)], 1).amax(1), X),
    ("amin", lambda x, y: torch.cat([x, y], 1).amin(1, keepdim=True) * x, X, rows(3)),
    *((f.__name__, lambda x, f=f: f(x, 1, keepdim=True).values * x, X) for f in (torch.max, torch.min)),
    *((f.__name__, lambda x, f=f: f(x, 1, keepdim=True).indices + x, X) for f in (torch.max, torch.min)),
    *((f.__name__, lambda x, f=f: f(x.view(-1, 3, 2), -2).values, rows(6)) for f in (torch.max, torch.min)),
    ("max", lambda x: torch.cat([x[:, 1:], 0 * x], 1).max(1, keepdim=True).values * x, X),
    ("max", lambda x, y: torch.where(torch.cat([x, y], 1).max(1).indices[:, None] == 2, x, y), X, Y),
    *((f.__name__, lambda x, f=f: f(x, 1, keepdim=True) * x, X) for f in (torch.argmax, torch.argmin)),
    ("cumsum", lambda x: x.cumsum(1) * x, X),
    ("cumsum", lambda x: x.view(-1, 3, 2).cumsum(1).flatten(1), rows(6)),
    ("cumsum", lambda x: x.view(-1, 3, 2).cumsum(-1).flatten(1), rows(6)),
    ("einsum", lambda x, y: torch.einsum("bik,bkj->bji", x, y).flatten(1), rows(3, 4), rows(4, 5)),
    ("einsum", lambda x, v: torch.einsum("bik,kj->bij", x, v).flatten(1), rows(3, 4), Vector((4, 2))),
    ("einsum", lambda x, v: torch.einsum("bk,k->b", x, v).unsqueeze(1), X, V),
    ("einsum", lambda x, y: torch.einsum("bik,bi->bk", x, y), rows(3, 4), rows(3)),
    ("argmax", lambda x: x.view(-1, 3, 2).argmax(1) + x[:, :2], rows(6)),
    ("sort", lambda x, v: x.sort(1).values * v, X, V),
    ("sort", lambda x, v: x.sort(-1, descending=True).values * v, X, V),
    ("sort", lambda x: x.sort(1).indices + x, X),
    ("sort", lambda x: torch.sort(x, dim=1, descending=True, stable=True).indices + x, X),
    ("sort", lambda x: x.argsort(1) * x, X),
    ("sort", lambda x: x.view(-1, 3, 2).sort(1).values.flatten(1), rows(6)),
    ("sort", lambda x: torch.cat([x[:, 1:], 0 * x], 1).sort(1).values, X),
    ("topk", lambda x, v: (x + v).topk(2, 1).values * v[:2], X, V),
    ("topk", lambda x, v: (x + v).topk(3, 1, largest=False).values + x[:, 1:], X, V),
    ("topk", lambda x, v: (x + v).topk(1).values * x, X, V),
    ("prod", lambda x: torch.cat([x, x[:, :2] - 1], 1).prod(1, keepdim=True) * x, X),
    ("prod", lambda x: x.view(-1, 3, 2).prod(1), rows(6)),
    ("prod", lambda x: x.prod(-1)[:, None], X),
    ("cumprod", lambda x: torch.cat([x, x[:, :2] - 1], 1).cumprod(1), X),
    ("cumprod", lambda x: x.view(-1, 3, 2).cumprod(1).flatten(1), rows(6)),
    ("logcumsumexp", lambda x: x.logcumsumexp(1) * x, X),
    ("var", lambda x: x.var(1, keepdim=True), X),
    ("var", lambda x: x.var(1, correction=0), X),
    ("std", lambda x: x.std(1, keepdim=True), X),
    ("var_mean", lambda x: torch.cat(torch.var_mean(x, 1, keepdim=True), 1), X),
    ("native_layer_norm", lambda x, v, w: F.layer_norm(x, (4,), v, w, 0.1), X, V, V),
    ("native_layer_norm", lambda x: F.layer_norm(x.view(-1, 3, 2), (2,)).flatten(1), rows(6)),
    ("native_layer_norm", lambda x: F.layer_norm(x.view(-1, 3, 2), (3, 2)).flatten(1), rows(6)),
    ("native_group_norm", lambda x, v, w: F.group_norm(x, 2, v, w, 0.1), X, V, V),
    ("native_group_norm", lambda x: F.group_norm(x.view(-1, 3, 2), 3).flatten(1), rows(6)),
    ("native_group_norm", lambda x: F.group_norm(x, 1), rows(6)),
    ("_softmax", lambda x: torch.softmax(x, 1), X),
    ("_log_softmax", lambda x: torch.log_softmax(x, 1), X),
    ("_log_softmax", lambda x: F.log_softmax(x.view(-1, 3, 2), 1).flatten(1), rows(6)),
    ("logsumexp", lambda x: torch.logsumexp(x, 1, keepdim=True) * x, X),
    ("logsumexp", lambda x: torch.logsumexp(x.view(-1, 3, 2), (1, 2), keepdim=False)[:, None], rows(6)),
    ("_softmax", lambda x: torch.softmax(x.view(-1, 3, 2), 1).flatten(1), rows(6)),
    ("linalg_vector_norm", lambda x: torch.linalg.vector_norm(x + 0.1, dim=1), X),
    ("linalg_vector_norm", lambda x: F.normalize(x + 0.1, dim=1), X),
    *(("linalg_vector_norm", lambda x, p=p: torch.linalg.vector_norm(x, p, dim=1), X)
      for p in (1, math.inf, -math.inf, 3, 1.5, 0.5)),
    ("linalg_vector_norm", lambda x: x.norm(1, dim=1, keepdim=True) * x, X),
    ("linalg_vector_norm", lambda x: F.normalize(x, p=1, dim=1), X),
    ("linalg_vector_norm", lambda x: F.normalize(x.view(-1, 3, 2), p=math.inf, dim=2).flatten(1), rows(6)),
    ("index", lambda x: x[:, [2, 0, 0, 3]] * x, X),
    ("index", lambda x: x[:, [1, -1]] * x[..., range(2)], X),
    ("index", lambda x: x[:, [True, False, True, True]], X),
    ("index", lambda x: x[:, torch.tensor([[2, 0], [1, 1]])].flatten(1), X),
    ("index", lambda x: x.view(-1, 2, 3)[:, [1, 0, 1], [2, 0, 0]], rows(6)),
    ("index", lambda x: x.view(-1, 2, 3)[:, :, [2, 1]].flatten(1), rows(6)),
    ("index", lambda x, v: x * v[[3, 1, 1, 0]], X, V),
    ("index_select", lambda x: x.index_select(1, torch.tensor([2, 0])), X),
    ("index_select", lambda x: x.view(-1, 2, 3).index_select(-1, torch.tensor([2, 0, 2])).flatten(1), rows(6)),
    ("gather", lambda x: x.gather(1, torch.tensor([[3, 1]]).expand(len(x), -1)), X),
    ("gather", lambda x: torch.take_along_dim(x.view(-1, 2, 3), torch.tensor([[[1, 0, 0]]]), 1).flatten(1), rows(6)),
    ("constant_pad_nd", lambda x: F.pad(x, (1, 2)), X),
    ("constant_pad_nd", lambda x: F.pad(x, (-1, 1), value=0.5) * x, X),
    ("constant_pad_nd", lambda x: F.pad(x.view(-1, 2, 2), (1, 0, 0, 1)).flatten(1), X),
    ("slice", lambda x: x[:, 1:3], X),
    ("slice", lambda x: torch.cat([x[:, ::2], x[:, -1:]], 1), rows(5)),
    ("split", lambda x: torch.cat(x.split(2, 1)[::-1], 1), rows(5)),
    ("split", lambda x: x.chunk(3, 1)[2], rows(7)),
    ("split_with_sizes", lambda x: x.split([1, 3], 1)[1] * x.split([1, 3], 1)[0], X),
    ("unsafe_split", lambda x: x.unsafe_chunk(2, 1)[1], X),
    ("unbind", lambda x: torch.stack(x.unbind(1)[1:3], 1), X),
    ("cat", lambda x, y: torch.cat([x, y, x], -1), X, rows(3)),
    ("stack", lambda x, y: torch.stack([x, y], 2).flatten(1), X, Y),
    ("stack", lambda x, y: torch.stack([x, y], -2).mean(1), X, Y),
    ("select", lambda x: x[:, 2].unsqueeze(1) * x, X),
    ("select", lambda x, v: x * v[1], X, V),
    ("view", lambda x: x.view(-1, 2, 3).transpose(1, 2).sum(2), rows(6)),
    ("_unsafe_view", lambda x: x.view(-1, 2, 3).transpose(1, 2).reshape(len(x), 6), rows(6)),
    ("expand", lambda x: x.expand(-1, 5) * 2, ONE),
    ("unsqueeze", lambda x: x.unsqueeze(-1).squeeze(-1), X),
    ("squeeze", lambda x: x.unsqueeze(1).squeeze(), X),
    ("squeeze", lambda x: x.unsqueeze(1).squeeze((1, 2)), X),
    ("transpose", lambda x: x.view(-1, 2, 2).transpose(-1, -2).flatten(1), X),
    ("permute", lambda x: x.view(-1, 2, 2).permute(0, 2, 1).flatten(1), X),
    ("repeat", lambda x: x.repeat(1, 2), X),
    ("roll", lambda x: x.roll(1, 1) * x, X),
    ("roll", lambda x: x.view(-1, 3, 2).roll((1, -1), (1, 2)).flatten(1), rows(6)),
    ("flip", lambda x: x.flip(1) * x, X),
    ("_to_copy", lambda x: (x > 0).to(torch.float64) * x, X),
    ("_to_copy", lambda x: torch.where((x * 2).bool(), 1.0, x), X),
    ("clone", lambda x: x.clone() * 2, X),
    ("fill", lambda x: torch.empty_like(x).fill_(0.7) * x, X),
    ("alias", lambda x: torch.ops.aten.alias(x) * 2, X),
    ("zeros_like", lambda x: torch.zeros_like(x) + x, X),
    ("sum", lambda x: x + x[:, 4:].sum(1, keepdim=True), X),
    ("ones_like", lambda x: torch.ones_like(x) * x, X),
    ("full_like", lambda x: torch.full_like(x, 0.7) * x, X),
]  # fmt: skip


class Lowered:
    """A function of tensors as a loop program, with streams and vectors in the place of its operands."""

    def __init__(self, function, shapes):
        self.shapes = shapes
        recorder = Recorder()
        operands = [
            torch.ones(shape if isinstance(shape, Vector) else (B, *shape), dtype=torch.float64) for shape in shapes
        ]
        builder = Builder()
        lowering = Lowering(builder)
        values, self.leaves = {}, []
        for k, (shape, operand) in enumerate(zip(shapes, operands, strict=True)):
            kind = "vector" if isinstance(shape, Vector) else "stream"
            node = builder.node(kind, (), math.prod(shape), (f"x{k}", 0))
            self.leaves.append(node)
            values[recorder.ref(operand)] = lowering.of_nodes([node], shape, batched=kind == "stream")
        recorder.stateful.update(ref for ref, value in values.items() if value.batched)
        recorder.varying |= recorder.stateful
        with torch.no_grad(), Contractions(recorder), Indexing(), recorder:
            result = function(*operands)
        numbers = dict(recorder.named())
        for op in recorder.ops:
            if values.keys().isdisjoint(op.inputs):  # what indices are made of
                continue
            args, kwargs = pytree.tree_map_only(
                Ref,
                lambda ref: values[ref] if ref in values else numbers[ref].numpy(),
                (op.args, dict(op.kwargs)),
            )
            values.update(zip(op.outputs, lower(lowering, op, args, kwargs), strict=False))
        self.rules = {op.short_name for op in recorder.ops}
        pieces = lowering.pieces(values[recorder.ref(result)])
        arrays = [Array(n.attr[0], n.op, n.width, place="packed" * (n.op == "stream")) for n in self.leaves]
        output = Array("y", "output", sum(p.width for p in pieces))
        self.program = Program((*arrays, output), {"y": pieces})

    def __call__(self, *tensors):
        program = elementary(self.program)
        known = self._computed(program, self._leaves(program, tensors))
        return self._output(program.results["y"], known, B)

    def gradients(self, tensors, grad):
        """The gradients of the operands, by the backward program."""
        derivative = derive(self.program)
        forward, back, names = derivative.forward, derivative.backward, derivative.gradients
        known = self._computed(forward, self._leaves(forward, tensors))
        kept = {a.name: self._output(forward.results[a.name], known, B) for a in forward.of("residual")}
        known = self._computed(back, self._leaves(back, tensors, {names["y"]: grad, **kept}))
        found = [torch.zeros_like(t) for t in tensors]
        for k, leaf in enumerate(self.leaves):
            pieces = back.results.get(names.get(leaf.attr[0]))
            if pieces is None:
                continue
            if leaf.op == "stream":
                found[k] = self._output(pieces, known, B)
            else:
                found[k] = torch.cat([known[n].expand(B, n.width).sum(0) for n in pieces])
        return found

    def _leaves(self, program, tensors, more=()):
        arrays = {**{leaf.attr[0]: t for leaf, t in zip(self.leaves, tensors, strict=True)}, **dict(more)}
        return {n: arrays[n.attr[0]][..., n.attr[1] : n.attr[1] + n.width] for n in program.nodes if n.is_leaf}

    @staticmethod
    def _computed(program, known):
        known.setdefault(Node("anything", (), 1), torch.zeros((), dtype=torch.float64))  # where all is constant
        evaluate(program.nodes, known)
        return known

    @staticmethod
    def _output(pieces, known, count):
        return torch.cat([known[p].double().expand(count, p.width) for p in pieces], 1) if pieces else None


def operands(shapes, seed):
    """Random numbers; and in the first rows all the edges, each against each where there are two operands."""
    generator = torch.Generator().manual_seed(seed)
    made = []
    for k, shape in enumerate(shapes):
        size = (math.prod(shape),) if isinstance(shape, Vector) else (B, math.prod(shape))
        drawn = torch.randn(size, generator=generator, dtype=torch.float64) * 2
        if seed == 0 and not isinstance(shape, Vector):
            drawn = POINTS.roll(k * 3).unsqueeze(1).expand(size).clone()
        made.append(drawn)
    return made


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_a_rule_is_what_pytorch_computes(row):
    name, function, *shapes = row
    lowered = Lowered(function, shapes)
    assert name in lowered.rules, "the table is about this rule"
    for seed in range(3):
        tensors = [t.requires_grad_() for t in operands(shapes, seed)]
        shaped = [
            t.view(shape if isinstance(shape, Vector) else (B, *shape))
            for t, shape in zip(tensors, shapes, strict=True)
        ]
        want = function(*shaped).reshape(B, -1)
        with torch.no_grad():
            got = lowered(*tensors)
        torch.testing.assert_close(got, want.detach(), rtol=1e-12, atol=1e-12)
        grad = torch.cos(torch.arange(want.numel(), dtype=torch.float64)).view(want.shape)
        expected = [torch.zeros_like(t) for t in tensors]
        if want.requires_grad:
            found = torch.autograd.grad(want, tensors, grad, allow_unused=True)
            expected = [z if g is None else g for g, z in zip(found, expected, strict=True)]
        # PyTorch's own gradients of these use a sixth, or 1 / alpha, in float32, even in float64.
        tolerance = 1e-7 if name in ("hardsigmoid", "celu") else 1e-11
        with torch.no_grad():
            for a, b in zip(lowered.gradients([t.detach() for t in tensors], grad), expected, strict=True):
                torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


UNARY = [row for row in ROWS if row[2:] == (X,) and row[0] not in ("mean", "var_mean")]


@pytest.mark.parametrize("row", UNARY, ids=lambda row: row[0])
def test_a_rule_keeps_nan_and_the_limits(row):
    _, function, _ = row
    x = SPECIAL.unsqueeze(1).expand(-1, 4).clone()
    torch.testing.assert_close(
        Lowered(function, [X])(x), function(x).reshape(B, -1), equal_nan=True, rtol=1e-12, atol=0
    )


def test_every_rule_has_a_row(monkeypatch):
    met = {"empty_like", "new_empty_strided"}  # written before they are read

    def noting(lowering, op, *args, **options):
        met.add(op.short_name)
        return lower(lowering, op, *args, **options)

    monkeypatch.setattr(anyrnn.compiler.derive, "lower", noting)
    for _, function, *shapes in ROWS:
        derive(Lowered(function, shapes).program)
    assert set(RULES) - {row[0] for row in ROWS} - met == set()


def test_what_stays_whole_has_a_rule_and_prints_as_pytorch_has_it():
    assert set(RULES) >= {name.partition(".")[0] for name in COMPOSITE}
    lowered = Lowered(lambda x, y: F.elu(torch.lerp(x, y, 0.25).clamp(-1, 1), 0.3), [X, Y])
    assert "aten.lerp.Scalar(x0[0:4], x1[0:4], 0.25)" in str(lowered.program)
    assert "aten.clamp.default(v0, -1, 1)" in str(lowered.program)
    assert all(n.is_composite for n in lowered.program.nodes if n.args)
    assert not any(n.is_composite for n in elementary(lowered.program).nodes)


REFUSED = {
    "a sum along the batch": (lambda x: x - x.sum(0), "along the batch"),
    "a sum of everything": (lambda x: x * x.sum(), "along the batch"),
    "rows by number": (lambda x: x[1:] + x[:-1], "along the batch"),
    "the batch transposed": (lambda x: x.view(-1, 2, 2).transpose(0, 1).flatten(1), "along the batch"),
    "the batch permuted": (lambda x: x.view(-1, 2, 2).permute(1, 0, 2).sum(0), "of the batch"),
    "rows side by side": (lambda x: x.view(-1, 2), "across the batch"),
    "rows under each other": (lambda x: torch.cat([x, x], 0), "along the batch"),
    "rows stacked": (lambda x: torch.stack([x, x], 0), "along the batch"),
    "rows taken apart": (lambda x: x.unbind(0)[0], "along the batch"),
    "rows repeated": (lambda x: x.repeat(2, 1), "along the batch"),
    "a new dimension in front": (lambda x: x.unsqueeze(0), "before the batch"),
    "another norm": (lambda x: x.norm(0, dim=1), "of order 0"),
    "a norm with a pole": (lambda x: x.norm(-1, dim=1), "of order -1"),
    "rows by a list": (lambda x: x[[1, 0]], "along the batch"),
    "rows and features by lists": (lambda x: x[[1, 0], [2, 3]], "along the batch"),
    "features by lists far apart": (lambda x: x.view(-1, 2, 1, 2)[:, [0, 1], :, [1, 0]], "side by side"),
    "another feature in each row": (
        lambda x: x.gather(1, torch.arange(len(x))[:, None] % 4),
        "of its own for each row",
    ),
    "the mean of nothing": (lambda x: x[:, :0].mean(1, keepdim=True) + x, "division by zero"),
    "the variance of one number": (lambda x: x[:, :1].var(1, keepdim=True) + x, "of so few features"),
    "the deviation of fewer than none": (lambda x: x.std(1, correction=5, keepdim=True) + x, "of so few features"),
    "padded rows": (lambda x: F.pad(x, (0, 0, 1, 0)), "along the batch"),
    "the product of everything": (lambda x: x * x.prod(), "along the batch"),
    "the order of many": (lambda x: x.repeat(1, 3).sort(1).values, "12 of 12 features, by 66 comparisons: 50 at most"),
    "integers": (lambda x: x.long() + x, "to torch.int64"),
    "an unknown operation": (torch.lgamma, "`aten.lgamma` in the loop"),
    "the largest of everything": (lambda x: x * x.max(), "along the batch"),
    "sums along the batch": (lambda x: x.cumsum(0), "along the batch"),
    "the sums of many": (lambda x: x.repeat(1, 9).cumsum(1), "along 36 features, .* one by one: 32 at most"),
    "the largest of many": (lambda x: x.repeat(1, 9).max(1).values, "one by one: 32 at most; amax and amin"),
    "a random draw": (lambda x: x * torch.bernoulli(x), "draw them apart, by torch.rand_like"),
}


@pytest.mark.filterwarnings("ignore:.*degrees of freedom")
@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_rule_is_named(name):
    function, reason = REFUSED[name]
    with pytest.raises(AnyRNNError, match=reason) as caught:
        Lowered(function, [X])
    assert "`aten." in str(caught.value)
    assert "in the loop" in str(caught.value)
