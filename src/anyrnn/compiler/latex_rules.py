"""The text of a tensor in a recorded step: what each operation is in mathematics. See `latex`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from anyrnn.compiler.graph import SHAPE_ARGUMENTS, Graph, Op, Ref
from anyrnn.compiler.latex_text import (
    AROUND,
    ATOM,
    BETWEEN,
    FUNCTIONS,
    LOW,
    MATRIX,
    PRODUCT,
    SUM,
    Tex,
    escaped,
    number,
    parens,
    total,
)  # fmt: skip
from anyrnn.compiler.ops import STAND_INS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

#: A range of features, the first and the one behind the last; None for all.
Span = tuple[int, int] | None

#: Operations that change neither numbers nor shapes.
SAME = {"clone", "contiguous", "alias", "lift_fresh", "_to_copy", "positive", "detach"} | {
    f"anyrnn::{name}" for name in STAND_INS
}
SPLITS = {"split", "split_with_sizes", "unsafe_split", "unsafe_split_with_sizes", "slice", "select", "unbind"}
VIEWS = {"view", "_unsafe_view", "reshape"}
MARK = re.compile("\0(\\d+)\0")  # stands for a piece of a parameter
_FILLED = {"scalar_tensor": 0, "full": 1, "full_like": 1, "new_full": 2}  # which argument is the number
_SETTINGS = torch.dtype | torch.layout | torch.device | torch.memory_format


@dataclass(frozen=True)
class Piece:
    """A parameter in an equation, or some of its rows, or columns where the axis is 1; with its symbol, if any."""

    ref: Ref
    symbol: str = ""
    start: int = 0
    end: int = 0
    axis: int = 0


class Texts:
    """Writes tensors of a graph.

    Attributes:
        graph: The graph.
        ops: The operations that its results need.
        made: By tensor, the operation that makes it, and as which of its results.
        varying: What depends on the input, the state, or further arguments.
        symbols: Of tensors that are written by a name, this.
        pieces: What stands in the texts in the place of pieces of parameters, by number: see `mark`.
    """

    def __init__(self, graph: Graph) -> None:
        self.graph, self.ops = graph, _needed(graph)
        self.made = {ref: (op, k) for op in self.ops for k, ref in enumerate(op.outputs)}
        self.varying = self.dependent((graph.x, *graph.states, *(e.ref for e in graph.extras)))
        self.symbols: dict[Ref, str] = {}
        self.pieces: list[Piece] = []
        self._parameters = set(graph.weights.values())
        self._values: dict[tuple[Ref, Span], Tex] = {}

    def dependent(self, given: Iterable[Ref]) -> set[Ref]:
        """What is given, and what is computed from it."""
        found = set(given)
        for op in self.ops:
            if found.intersection(op.inputs):
                found.update(op.outputs)
        return found

    def name(self, ref: Ref, symbol: str) -> None:
        """Write a tensor by a name from here on."""
        self.symbols[ref] = symbol
        self._values.pop((ref, None), None)

    def of(self, ref: Ref, span: Span = None) -> Tex:
        """The text of a tensor, or of a range of its features."""
        if span == (0, self.graph.shapes[ref][-1] if self.graph.shapes[ref] else 0):
            span = None
        key = ref, span
        if key not in self._values:
            self._values[key] = self._written(ref, span)
        return self._values[key]

    def _written(self, ref: Ref, span: Span) -> Tex:
        shape = self.graph.shapes[ref]
        is_bias = ref not in self.varying and len(shape) == 1
        if ref in self._parameters:
            piece = Piece(ref, self.symbols[ref]) if span is None else Piece(ref, "", *span, axis=len(shape) - 1)
            return Tex(self.mark(piece), is_bias=is_bias)
        rows = self.rows(ref) if ref in self.symbols and ref not in self.varying else None
        if rows is not None and (span is None or is_bias):
            start, end = rows[1:] if span is None else (rows[1] + span[0], rows[1] + span[1])
            return Tex(
                self.mark(Piece(rows[0], self.symbols[ref] if span is None else "", start, end)), is_bias=is_bias
            )
        if ref in self.symbols:
            symbol = self.symbols[ref]
            return Tex(symbol if span is None else f"[{symbol}]_{{{span[0]}:{span[1]}}}", is_bias=is_bias)
        op, k = self.made[ref]
        text = self._by_rule(op, k, span)
        if text is None and span is not None:
            text = Tex(f"[{self.of(ref).text}]_{{{span[0]}:{span[1]}}}")
        if text is None:
            text = self._by_name(op, k)
        return Tex(text.text, text.level, text.terms, is_bias or text.is_bias)

    def mark(self, piece: Piece) -> str:
        """What stands in the place of a piece of a parameter until it has its symbol."""
        if piece not in self.pieces:
            self.pieces.append(piece)
        return f"\0{self.pieces.index(piece)}\0"

    def _by_rule(self, op: Op, k: int, span: Span) -> Tex | None:
        """The text of a result by the signs of mathematics; None if there are none, or not for such a range."""
        name = op.short_name
        if name in SPLITS:
            return self._of_range(op, k, span)
        if name in SAME:
            return self.of(op.args[0], span)
        if torch.Tag.pointwise in op.overload.tags or name == "rsub":
            return self._pointwise(op, lambda arg: self._argument(op, arg, span))
        if name in _FILLED:
            return number(op.args[_FILLED[name]])
        if name in ("zeros", "zeros_like", "new_zeros", "ones", "ones_like", "new_ones"):
            return number(int("ones" in name))
        rule = _RULES.get(name)
        return None if rule is None else rule(self, op, span)

    def _argument(self, op: Op, arg: Any, span: Span) -> Tex:
        """An argument of an operation on each number: of a range, if it is as wide as the result."""
        if not isinstance(arg, Ref):
            return self._any(arg)
        width, wide = self.graph.shapes[arg][-1:], self.graph.shapes[op.outputs[0]][-1:]
        return self.of(arg, span if width == wide else None)

    def _pointwise(self, op: Op, of: Callable[[Any], Tex]) -> Tex | None:
        """An operation on each number, its arguments written by a function."""
        name, args = op.short_name, op.args
        if name in ("add", "sub", "rsub"):
            first, second = (of(arg) for arg in (args[:2] if name != "rsub" else (args[1], args[0])))
            scale = (*args[2:], op.kwargs.get("alpha", 1))[0]
            second = second if scale == 1 else _scaled(number(scale), second)
            return total([(1, first), (1 if name == "add" else -1, second)])
        if name == "neg":
            return total([(-1, of(args[0]))])
        if name == "mul":
            return self._product(args[0], args[1], of)
        if name == "div" and not op.kwargs:
            return Tex(rf"\frac{{{of(args[0]).text}}}{{{of(args[1]).text}}}")
        if name == "pow":
            base, exponent = of(args[0]), of(args[1])
            return Tex(rf"{base.at(ATOM)}^{{{exponent.text}}}", PRODUCT)
        if name == "where" and len(args) == 3:
            condition, yes, no = map(of, args)
            cases = rf"{yes.text} & \text{{if }} {condition.text} \\ {no.text} & \text{{otherwise}}"
            return Tex(rf"\begin{{cases}} {cases} \end{{cases}}", SUM)
        if name in BETWEEN:
            a, b = map(of, args)
            return Tex(f"{a.at(LOW + 1)} {BETWEEN[name]} {b.at(LOW + 1)}", LOW)
        if name in AROUND:
            before, after = AROUND[name]
            return Tex(f"{before}{of(args[0]).text}{after}")
        return self._called(op, of)

    def _product(self, a: Any, b: Any, of: Callable[[Any], Tex]) -> Tex:
        """A product number by number: with a scalar in front, or of two vectors."""
        for scalar, other in ((a, b), (b, a)):
            if not isinstance(scalar, Ref):
                return _scaled(of(scalar), of(other))
            if scalar not in self.varying and torch.Size(self.graph.shapes[scalar]).numel() == 1:
                return Tex(rf"{of(scalar).at(PRODUCT)}\, {of(other).at(PRODUCT)}", PRODUCT)
        return Tex(rf"{of(a).at(PRODUCT)} \circ {of(b).at(PRODUCT)}", PRODUCT)

    def _by_name(self, op: Op, k: int) -> Tex:
        """The text of a result by the name of its operation in PyTorch."""
        text = self._called(op, self._any).text
        return Tex(f"[{text}]_{{{k}}}" if op.many else text)

    def _called(self, op: Op, of: Callable[[Any], Tex]) -> Tex:
        """An operation as a function of its arguments, but for those that are left out, or are no numbers."""
        name = op.short_name.rpartition("::")[2].strip("_")
        arguments = op.overload._schema.arguments
        shown, named_from_here = [], False
        for k, arg in enumerate(op.args):
            label = arguments[k].name if k < len(arguments) else ""
            if arg is None or isinstance(arg, _SETTINGS):
                named_from_here = True
            elif k and label in SHAPE_ARGUMENTS:
                shown.append(self._shape(arg))
            elif k and arg == getattr(arguments[k], "default_value", None) and k < len(arguments):
                named_from_here = True
            else:
                text = of(arg).text
                shown.append(rf"\text{{{escaped(label)}}}={text}" if named_from_here else text)
        for label, arg in op.kwargs.items():
            default = next((a.default_value for a in arguments if a.name == label), None)
            if arg != default and arg is not False and not isinstance(arg, _SETTINGS):
                shown.append(rf"\text{{{escaped(label)}}}={of(arg).text}")
        sign = FUNCTIONS.get(op.short_name, rf"\operatorname{{{escaped(name)}}}")
        return Tex(sign + parens(", ".join(shown)))

    def _any(self, arg: Any) -> Tex:
        """Any argument."""
        if isinstance(arg, Ref):
            return self.of(arg)
        if isinstance(arg, list | tuple):
            return Tex(f"[{', '.join(self._any(each).text for each in arg)}]")
        return number(arg) if isinstance(arg, int | float | complex) else Tex(rf"\text{{{escaped(str(arg))}}}")

    def _shape(self, shape: Any) -> str:
        """A shape, or a size, with B for the rows of the batch."""
        sizes = shape if isinstance(shape, list | tuple) else [shape]
        batch = self.graph.batch
        return r" \times ".join(
            "B" if n == batch else f"{n // batch}B" if n and n % batch == 0 else str(n) for n in sizes
        )

    # ---- Products with a matrix.

    def _mm(self, op: Op, span: Span) -> Tex | None:
        return self._times(op.args[0], op.args[1], span)

    def _addmm(self, op: Op, span: Span) -> Tex | None:
        product = self._times(op.args[1], op.args[2], span)
        if product is None or op.kwargs:
            return None
        return total([(1, product), (1, self._argument(op, op.args[0], span))])

    def _times(self, x: Ref, matrix: Ref, span: Span) -> Tex | None:
        """The product of a value with a matrix: columns, where PyTorch has rows; of weights alone as it stands."""
        if matrix in self.varying:
            return None
        if x not in self.varying:
            return None if span else Tex(self._joined(self._matrix(x).text, self._matrix(matrix).text), MATRIX)
        return Tex(self._joined(self._matrix(matrix, span, turned=True).text, self.of(x).at(ATOM)), MATRIX)

    def _joined(self, a: str, b: str) -> str:
        """A matrix and what it multiplies; words need a space between them."""
        is_word = any(self.expanded(text).startswith(r"\mathrm") for text in (a, b))
        return rf"{a}\, {b}" if is_word else f"{a} {b}"

    def expanded(self, text: str) -> str:
        """A text with about as long symbols as pieces of parameters get."""

        def symbol(mark: re.Match[str]) -> str:
            piece = self.pieces[int(mark[1])]
            return piece.symbol or f"{self.symbols[piece.ref]},{piece.start}:{piece.end}"

        return MARK.sub(symbol, text)

    def _matrix(self, ref: Ref, columns: Span = None, turned: bool = False) -> Tex:
        """A matrix of weights, or some of its columns, transposed or not."""
        if ref in self.made and self.made[ref][0].short_name == "t" and ref not in self.symbols:
            return self._matrix_rows(self.made[ref][0].args[0], columns, not turned)
        text = self.of(ref, columns).at(ATOM)
        return Tex(_turned(text) if turned else text)

    def _matrix_rows(self, ref: Ref, rows: Span, turned: bool) -> Tex:
        """Some of the rows of a matrix of weights, transposed or not."""
        found = self.rows(ref)
        if found is not None:
            parameter, start, end = found
            start, end = (start, end) if rows is None else (start + rows[0], start + rows[1])
            is_whole = (start, end) == (0, self.graph.shapes[parameter][0])
            local = self.symbols.get(ref, "") if rows is None else ""
            piece = Piece(parameter, self.symbols[parameter]) if is_whole else Piece(parameter, local, start, end)
            text = self.mark(piece)
        else:
            text = self.of(ref).at(ATOM)
            text = text if rows is None else f"[{text}]_{{{rows[0]}:{rows[1]}}}"
        return Tex(_turned(text) if turned else text)

    def rows(self, ref: Ref) -> tuple[Ref, int, int] | None:
        """Of which parameter a tensor of weights is which rows; None if it is something else."""
        if ref in self._parameters:
            return (ref, 0, self.graph.shapes[ref][0]) if self.graph.shapes[ref] else None
        if ref not in self.made:
            return None
        source, dim, start, end = self._source(*self.made[ref]) or (ref, 1, 0, 0)
        inner = (
            self.rows(source) if dim == 0 and len(self.graph.shapes[ref]) == len(self.graph.shapes[source]) else None
        )
        return None if inner is None else (inner[0], inner[1] + start, inner[1] + end)

    # ---- Views.

    def _source(self, op: Op, k: int) -> tuple[Ref, int, int, int] | None:
        """Of a result that is a range of another tensor: this, the dimension, the first and the one behind the last."""
        name, (source, *args) = op.short_name, op.args
        if name not in SPLITS:
            return None
        shape = self.graph.shapes[source]
        position = {"slice": 0, "select": 0, "unbind": 0}.get(name, 1)
        dim = (args[position] if len(args) > position else op.kwargs.get("dim", 0)) % len(shape)
        if name == "slice":
            start, end, step = [*args[1:4], None, None, None][:3]
            bounds = range(*slice(start, end).indices(shape[dim]))
            return (source, dim, bounds.start, bounds.stop) if step in (None, 1) else None
        if name in ("select", "unbind"):
            index = (args[1] if name == "select" else k) % shape[dim]
            return self._of_box(source, dim, index)
        sizes = args[0] if isinstance(args[0], list) else [args[0]] * (k + 1)
        start = sum(sizes[:k])
        return source, dim, start, min(start + sizes[k], shape[dim])

    def _of_box(self, source: Ref, dim: int, index: int) -> tuple[Ref, int, int, int] | None:
        """One of the boxes that the features lie in: ``a.view(B, 4, H)[:, 2]`` is a range of a."""
        if dim != 1 or not self.is_box(source):
            return None
        op, _ = self.made[source]
        width = self.graph.shapes[source][2]
        return op.args[0], 1, index * width, (index + 1) * width

    def is_box(self, ref: Ref) -> bool:
        """Whether a tensor has the features of another one in boxes of equal size."""
        op, _ = self.made.get(ref, (None, 0))
        if op is None or op.short_name not in VIEWS or ref in self.symbols:
            return False
        shape = self.graph.shapes[ref]
        return len(shape) == 3 and self.graph.shapes[op.args[0]] == (shape[0], shape[1] * shape[2])

    def _of_range(self, op: Op, k: int, span: Span) -> Tex | None:
        """A range of features."""
        found = self._source(op, k)
        if found is None:
            return None
        source, dim, start, end = found
        if dim != len(self.graph.shapes[source]) - 1:
            rows = self.rows(op.outputs[k])
            return None if rows is None or span else Tex(self.mark(Piece(rows[0], "", *rows[1:])))
        return self.of(source, (start, end) if span is None else (start + span[0], start + span[1]))

    def _cat(self, op: Op, span: Span) -> Tex | None:
        """Features side by side; of a range that lies in one of the parts, this alone."""
        parts = op.args[0]
        dim = (*op.args[1:], 0)[0]
        shape = self.graph.shapes[op.outputs[0]]
        if dim % len(shape) != len(shape) - 1:
            return None
        if span is None:
            return Tex(f"[{'; '.join(self.of(part).text for part in parts)}]")
        first = 0
        for part in parts:
            width = self.graph.shapes[part][-1]
            if first <= span[0] and span[1] <= first + width:
                return self.of(part, (span[0] - first, span[1] - first))
            first += width
        return None

    def _turned(self, op: Op, span: Span) -> Tex | None:
        """A transposed matrix of weights."""
        source, *dims = op.args
        is_swap = sorted(d % 2 for d in (dims[0] if op.short_name == "permute" else dims or [0, 1])) == [0, 1]
        if span is not None or source in self.varying or len(self.graph.shapes[source]) != 2 or not is_swap:
            return None
        if op.short_name == "permute" and [d % 2 for d in dims[0]] == [0, 1]:
            return self.of(source)
        return self._matrix_rows(source, None, turned=True)

    def _normed(self, op: Op, span: Span) -> Tex | None:
        """A norm over the features with its weights, and a function of them all, with none of what is no number."""
        name = op.short_name
        if span is not None or name != "native_layer_norm":
            return None
        shown = "; ".join(self._any(arg).text for arg in (op.args[0], *op.args[2:4]) if arg is not None)
        return Tex(FUNCTIONS[name] + parens(shown))

    def _over_features(self, op: Op, span: Span) -> Tex | None:
        """A function over the features of one row, such as a sum."""
        shape = self.graph.shapes[op.args[0]]
        dims = op.args[1] if len(op.args) > 1 else None
        dims = dims if isinstance(dims, list | tuple) else [dims]
        if span is not None or len(shape) != 2 or None in dims or [d % 2 for d in dims] != [1]:
            return None
        name = op.short_name.strip("_")
        return Tex(rf"\operatorname{{{escaped(name)}}}{parens(self.of(op.args[0]).text)}")


def _turned(text: str) -> str:
    """A transposed matrix."""
    return text.removesuffix(r"^\top") if text.endswith(r"^\top") else rf"{text}^\top"


def _scaled(scalar: Tex, other: Tex) -> Tex:
    """A number times something."""
    if scalar.text == "1":
        return other
    sign, scalar = scalar.terms[0] if scalar.terms else (1, scalar)
    product = Tex(rf"{scalar.text}\, {other.at(PRODUCT)}", PRODUCT)
    return product if sign > 0 else Tex(f"-{product.text}", SUM, ((-1, product),))


def inputs_of(op: Op) -> Iterable[Ref]:
    """The tensors that the value of an operation depends on, not its gradient."""
    return (op.args[0],) if op.short_name.removeprefix("anyrnn::") in STAND_INS else op.inputs


def _needed(graph: Graph) -> list[Op]:
    """The operations that the results of a step need."""
    needed, found = {*graph.outputs, *graph.new_states}, []
    for op in reversed(graph.ops):
        if needed.intersection(op.outputs):
            needed.update(inputs_of(op))
            found.append(op)
    return found[::-1]


_RULES: Mapping[str, Callable[[Texts, Op, Span], Tex | None]] = {
    "mm": Texts._mm,
    "addmm": Texts._addmm,
    "cat": Texts._cat,
    **dict.fromkeys(("t", "transpose", "permute"), Texts._turned),
    "native_layer_norm": Texts._normed,
    **dict.fromkeys(
        ("sum", "mean", "amax", "amin", "prod", "_softmax", "_log_softmax", "logsumexp"), Texts._over_features
    ),
}
