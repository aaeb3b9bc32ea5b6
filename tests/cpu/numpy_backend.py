"""A backend that interprets programs in NumPy: all that another backend has to give."""

import functools
from dataclasses import dataclass

import numpy as np
import torch
from scipy import special

from anyrnn.compiler.node import offsets
from anyrnn.runtime.engine import CompiledEngine

OPERATIONS = {
    **{name: getattr(np, name) for name in ("abs", "exp", "exp2", "expm1", "log", "log2", "log1p", "tanh", "sqrt")},
    **{name: getattr(np, name) for name in ("reciprocal", "sin", "cos", "floor", "ceil", "trunc", "sign", "positive")},
    **{name: getattr(np, name) for name in ("fmod", "maximum", "minimum", "logical_and", "logical_or", "logical_not")},
    **{"neg": np.negative, "round": np.round, "erf": special.erf, "sigmoid": special.expit, "detach": np.positive},
    **{"atan": np.arctan, "atan2": np.arctan2, "remainder": np.remainder},
    **{"sinh": np.sinh, "cosh": np.cosh, "asinh": np.arcsinh, "acosh": np.arccosh, "atanh": np.arctanh},
    **dict.fromkeys(("clip_gradient", "clip_gradient_norm"), lambda x, bound: x),
    "surrogate": lambda value, x, slope: np.broadcast_to(value, np.broadcast_shapes(value.shape, x.shape, slope.shape)),
    **{"add": np.add, "sub": np.subtract, "mul": np.multiply, "div": np.divide, "pow": np.power, "where": np.where},
    **{"lt": np.less, "le": np.less_equal, "gt": np.greater, "ge": np.greater_equal, "eq": np.equal},
    **{"ne": np.not_equal, "rsqrt": lambda x: 1 / np.sqrt(x)},
    "sum": lambda *values: sum(v.sum(-1, keepdims=True) for v in values),
    "max": lambda *values: np.concatenate(values, -1).max(-1, keepdims=True),
}


@dataclass(frozen=True)
class NumpyBackend:
    """Compiles nothing."""

    name: str = "numpy"
    block: int = 1 << 62  # it has no blocks

    def compile(self, program, precision):
        return NumpyKernel(program)

    def add_outer(self, out, row, column, left, right, add, last_first):
        total = _taken(left).T @ _taken(right)
        part = out.numpy()[row : row + left.width, column : column + right.width]
        part[:] = part + total if add else total


def _taken(rows):
    """The rows of an operand, which lie `stride` numbers apart."""
    numbers = rows.tensor.detach().numpy().reshape(-1, rows.stride)[:, rows.column : rows.column + rows.width]
    return numbers[rows.which.numpy()] if rows.which is not None else numbers[rows.first : rows.first + rows.height]


@dataclass(frozen=True)
class NumpyKernel:
    program: object
    stages: int = 1
    source: str = ""
    assembly: str = ""

    def bind(self, layout, arrays, initial, transposed, totals=None):
        assert not layout.is_continued, "it finds no memory in front of an array"
        turned = {name: t.t() if name in transposed else t for name, t in arrays.items()}
        numbers = ({name: t.detach().numpy() for name, t in each.items()} for each in (turned, initial))
        return NumpyBound(self.program, layout, *numbers)


@dataclass
class NumpyBound:
    program: object
    layout: object
    arrays: dict
    initial: dict
    totals: None = None

    def launch(self):
        table = self.layout.table[:, ::-1] if self.program.of("history") else self.layout.table
        like = next(iter(self.arrays.values()))
        self.sums = {a.name: np.zeros(a.width, like.dtype) for a in self.program.of("sum")}
        with np.errstate(all="ignore"):
            for at in table.T.tolist():
                self._step(*at)
        return {name: torch.from_numpy(total) for name, total in self.sums.items()}

    def _rows(self, array, n, offset, place):
        """The rows of an array that are computed at a step: all its rows, and which of them."""
        numbers, order = self.arrays[array.name], self.layout.order[:n]
        if array.place == "carried":
            return numbers, order
        return numbers.reshape(-1, array.width), slice(offset, offset + n) if array.place == "packed" else place + order

    def _step(self, n, offset, place, continued, before):
        known = {}
        for node in self.program.nodes:
            if node.op == "constant":
                known[node] = np.full((1, node.width), node.attr[0])
            elif node.is_leaf:
                name, first = node.attr
                rows = self._read(node.op, self.program[name], n, offset, place, continued, before)
                known[node] = rows[..., first : first + node.width]
            elif node.is_strided:
                known[node] = self._strided(node, [np.broadcast_to(known[a], (n, a.width)) for a in node.args])
            elif node.op == "part":
                known[node] = known[node.args[0]][:, node.attr[0] : node.attr[0] + node.width]
            elif node.op == "dot":
                terms = zip(node.args, node.attr, strict=True)
                known[node] = sum(self._product(known[a], a, node.width, *at) for a, at in terms)
            else:
                known[node] = OPERATIONS[node.op](*(known[a] for a in node.args))
        for name, pieces in self.program.results.items():
            array = self.program[name]
            rows = np.concatenate([np.broadcast_to(known[p], (n, p.width)) for p in pieces], 1)
            if array.role == "sum":
                self.sums[name] += rows.sum(0)
            else:
                numbers, at = self._rows(array, n, offset, place)
                numbers[at] = rows

    def _strided(self, node, args):
        n = len(args[0])
        if node.op == "largest":
            return args[0].reshape(n, *node.attr).max(2).reshape(n, -1)
        if node.op == "arrange":
            result = np.zeros((n, node.width), args[0].dtype)
            for k, sizes, first, strides, to, to_strides in node.attr:
                result[:, offsets(sizes, to, to_strides)] = args[k][:, offsets(sizes, first, strides)]
            return result
        sizes, summed, *reads = node.attr
        read = (a[:, offsets((*sizes, *summed), *at)] for a, at in zip(args, reads, strict=True))
        total = functools.reduce(np.multiply, read).sum(tuple(range(len(sizes) + 1, len(sizes) + len(summed) + 1)))
        return total.reshape(n, -1)

    def _product(self, value, operand, width, matrix, row, col, turned):
        numbers = (self.arrays[matrix].T if turned else self.arrays[matrix])[row : row + operand.width]
        return np.broadcast_to(value, (len(value), operand.width)) @ numbers[:, col : col + width]

    def _read(self, op, array, n, offset, place, continued, before):
        if op == "vector":
            return self.arrays[array.name].reshape(1, -1)
        if op == "row":
            return self.arrays[array.name][self.layout.order[:n]]
        if op in ("current", "stream") or array.place == "carried":
            numbers, at = self._rows(array, n, offset, place)
            return numbers[at]
        order = self.layout.order[:n]  # a state before the step: that after the one before, or the initial one
        earlier = self.arrays[array.name].reshape(-1, array.width)[before + order[:continued]]
        return np.concatenate([earlier, self.initial[array.name][order[continued:]]])


ENGINE = CompiledEngine("numpy", NumpyBackend)
