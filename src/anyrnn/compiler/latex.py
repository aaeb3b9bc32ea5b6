r"""The equations of a recorded step, as LaTeX: the graph of a cell, with the author's names, as a paper would print it.

::

    i_t = \sigma(W_{ih,i} x_t + W_{hh,i} h_{t-1} + b_{ih,i} + b_{hh,i})
    c_t = f_t \circ c_{t-1} + i_t \circ g_t

Vectors are columns: what is ``F.linear(x, W)`` in the code is :math:`W x`, and ``x @ W`` is :math:`W^\top x`. A local
variable has an equation of its own if more than sums and products with matrices made it, or if it is used twice. Rows
of a parameter that one equation alone reads have its name, :math:`W_{ih,f}`; others have their numbers. An operation
that mathematics has no sign for is written by its name in PyTorch, with its arguments.
"""

from __future__ import annotations

import re
from collections import Counter
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
    VAGUE,
    Tex,
    escaped,
    indexed,
    named,
    number,
    of_parameter,
    of_state,
    parens,
    seen,
    side_by_side,
    total,
)
from anyrnn.compiler.ops import STAND_INS

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence

#: A range of features, the first and the one behind the last; None for all.
Span = tuple[int, int] | None

#: Operations that change neither numbers nor shapes.
_SAME = {"clone", "contiguous", "alias", "lift_fresh", "_to_copy", "positive", "detach"} | {
    f"anyrnn::{name}" for name in STAND_INS
}
_SPLITS = {"split", "split_with_sizes", "unsafe_split", "unsafe_split_with_sizes", "slice", "select", "unbind"}
_VIEWS = {"view", "_unsafe_view", "reshape"}
_SUMS = _SAME | _SPLITS | _VIEWS | {"add", "sub", "rsub", "neg", "mm", "addmm", "cat", "t", "mul", "div"}
_FILLED = {"scalar_tensor": 0, "full": 1, "full_like": 1, "new_full": 2}  # which argument is the number
_SETTINGS = torch.dtype | torch.layout | torch.device | torch.memory_format
_MARK = re.compile("\0(\\d+)\0")  # a range of a parameter, whose name is known when all equations are written
#: Of which a range of the features is written as one of their arguments, beside operations on each number.
_CUT = _SAME | _SPLITS | {"mm", "addmm", "cat", "t", "rsub"}
#: As many characters of a value without a name may be seen where it is used twice, of a function, and at all.
_TWICE, _FUNCTION, _LINE = 20, 40, 120


@dataclass(frozen=True)
class Equations:
    r"""The equations of a step.

    Attributes:
        lines: One equation each, such as ``h_t = \tanh(...)``.
        symbols: What the symbols for parameters stand for: LaTeX, and the name with its range or shape.
    """

    lines: tuple[str, ...]
    symbols: tuple[tuple[str, str], ...]

    def __str__(self) -> str:
        """One equation a line."""
        return "\n".join(self.lines)


def equations(graph: Graph) -> Equations:
    """Write the equations of a recorded step."""
    return _Writer(graph).result()


@dataclass(frozen=True)
class _Piece:
    """A parameter in an equation, or some of its rows, or columns where the axis is 1; with its symbol if there is one."""

    ref: Ref
    symbol: str = ""
    start: int = 0
    end: int = 0
    axis: int = 0


class _Writer:
    """Writes the tensors of a graph that have an equation, in order."""

    def __init__(self, graph: Graph) -> None:
        self.graph, self.ops = graph, _needed(graph)
        self.made = {ref: (op, k) for op in self.ops for k, ref in enumerate(op.outputs)}
        self.users: dict[Ref, list[Op]] = {}
        for op in self.ops:
            for ref in op.inputs:
                self.users.setdefault(ref, []).append(op)
        self.timed = _dependent(self.ops, (graph.x, *graph.states, *graph.extras_of("input")))
        self.varying = _dependent(self.ops, (*self.timed, *(e.ref for e in graph.extras)))
        self.parameters = {ref: name for name, ref in graph.weights.items()}
        self.symbols: dict[Ref, str] = {}  # of what is written by a name
        self.bases: dict[str, str] = {}  # of a left side, without the step; empty for a made up name
        self.pieces: list[_Piece] = []
        self._values: dict[tuple[Ref, Span], Tex] = {}
        self._cut: dict[Ref, bool] = {}
        self._sums: dict[Ref, bool] = {}

    def result(self) -> Equations:
        """All equations, in the order of the step."""
        lefts = self._named()
        lines: list[tuple[str, str]] = []
        unnamed = 0
        for ref in self.made:
            if ref not in lefts and ref not in self.symbols and self._needs_name(ref):
                unnamed += 1
                lefts[ref] = [self._symbol(f"v_{unnamed}", ref)]
                self.bases[lefts[ref][0]] = ""
            if ref in lefts:
                left, *others = lefts.pop(ref)
                lines.append((left, self.of(ref).text))
                self.symbols[ref] = left
                self._values.pop((ref, None))
                lines += [(other, left) for other in others]
        lines += [(left, self.of(ref).text) for ref, names in lefts.items() for left in names]  # given, and returned
        return self._finished(lines)

    def _finished(self, lines: Sequence[tuple[str, str]]) -> Equations:
        """The equations with pieces of parameters named: after the one that reads them, or by their numbers."""
        readers: dict[int, set[str]] = {}
        for left, text in lines:
            for mark in _MARK.findall(text):
                readers.setdefault(int(mark), set()).add(left)
        symbols: dict[int, str] = {}
        for k, lefts in readers.items():
            piece = self.pieces[k]
            rivals = [each for j, each in readers.items() if j != k and self.pieces[j].ref == piece.ref]
            is_alone = len(lefts) == 1 and all(lefts.isdisjoint(each) for each in rivals)
            label = self.bases.get(next(iter(lefts)), "") if is_alone else ""
            symbols[k] = piece.symbol or indexed(self.symbols[piece.ref], label or f"{piece.start}:{piece.end}")
        written = (f"{left} = {_MARK.sub(lambda mark: symbols[int(mark[1])], text)}" for left, text in lines)
        return Equations(tuple(written), tuple(self._meanings(symbols)))

    def _meanings(self, symbols: Mapping[int, str]) -> Iterator[tuple[str, str]]:
        """What the symbols stand for, parameter by parameter."""
        for ref, name in self.parameters.items():
            parts = [(symbols[k], self.pieces[k]) for k in sorted(symbols) if self.pieces[k].ref == ref]
            ranges = ", ".join(f"{piece.start}:{piece.end}" for _, piece in parts if piece.end)
            kind = (
                "columns" if any(p.axis for _, p in parts) else "rows" if len(self.graph.shapes[ref]) > 1 else "numbers"
            )
            shape = " × ".join(map(str, self.graph.shapes[ref])) or "a number"
            if parts:
                what = f"{kind} {ranges} of {name}" if ranges else name
                yield r",\ ".join(dict.fromkeys(symbol for symbol, _ in parts)), f"{what}, {shape}"

    # ---- Which tensors have a name, and which of these an equation.

    def _named(self) -> dict[Ref, list[str]]:
        """Name what is given, and what has an equation; returns the left sides of the latter."""
        graph, lefts = self.graph, dict[Ref, list[str]]()
        often = Counter(graph.names.values())
        found: dict[Ref, list[str]] = {}
        for name, ref in (*graph.locals.items(), *((n, r) for r, n in graph.names.items() if often[n] == 1)):
            if name not in VAGUE or ref in graph.states:
                found.setdefault(ref, []).append(name)
        self.symbols[graph.x] = self._symbol("x", graph.x)
        count = len(graph.states)
        for k, (old, new) in enumerate(zip(graph.states, graph.new_states, strict=True)):
            base = self._free(of_state(found.get(old, ()), found.get(new, ()), k, count))
            self.symbols[old] = indexed(base, "t-1")
            lefts.setdefault(new, []).append(self._left(base, "t"))
        for extra in graph.extras:
            self.symbols[extra.ref] = self._symbol(found.get(extra.ref, ["u"])[0], extra.ref)
        for name, ref in graph.weights.items():
            short = of_parameter(name)
            self.symbols[ref] = self._free(short if short not in self.bases else of_parameter(name, in_full=True))
        for k, ref in enumerate(graph.outputs):
            if ref not in lefts:
                name = found.get(ref, ["y" if len(graph.outputs) == 1 else f"y_{k + 1}"])[0]
                lefts[ref] = [self._symbol(name, ref)]
        for ref in self.made:
            if ref not in lefts and ref in found:
                self._name_local(ref, found, lefts)
            self._cut[ref] = ref in lefts or ref in self.symbols or self._can_cut(ref)
            self._sums[ref] = self._is_sum(ref, lefts)
        return lefts

    def _name_local(self, ref: Ref, found: Mapping[Ref, list[str]], lefts: dict[Ref, list[str]]) -> None:
        """Name a local variable: a range of a parameter as such, and what deserves an equation."""
        name = found[ref][0]
        if ref not in self.varying and self._rows(ref) is not None:
            self.symbols[ref] = self._symbol(name, ref)
        elif self._is_only_split(ref) and self._can_cut(ref):
            return
        elif len(self.users.get(ref, ())) > 1 or not self._is_sum(ref, ()) or not self._feeds_a_name(ref, found):
            lefts[ref] = [self._symbol(name, ref)]

    def _symbol(self, name: str, ref: Ref) -> str:
        return self._left(self._free(named(name)), "t" if ref in self.timed else "")

    def _left(self, base: str, step: str) -> str:
        left = indexed(base, step) if step else base
        self.bases[left] = base
        return left

    def _free(self, base: str) -> str:
        """A symbol that nothing else has."""
        while base in self.bases:
            base += "'"
        self.bases[base] = base
        return base

    def _needs_name(self, ref: Ref) -> bool:
        """Whether a value without a name is to be written once: used twice, a long function, or cut where it cannot."""
        op, _ = self.made[ref]
        users = self.users.get(ref, ())
        if not users or op.short_name == "t" or self._rows(ref) is not None:
            return False
        if self._is_only_split(ref) and not self._can_cut(ref):
            return True
        most = _TWICE if len(users) > 1 else _FUNCTION if self._is_function(op) else _LINE
        most = _LINE if self._is_only_split(ref) else most
        return seen(_MARK.sub(self._longest, self.of(ref).text)) > most

    def _longest(self, mark: re.Match[str]) -> str:
        """As long a symbol as a piece of a parameter may get."""
        piece = self.pieces[int(mark[1])]
        return piece.symbol or f"{self.symbols[piece.ref]},{piece.start}:{piece.end}"

    def _is_function(self, op: Op) -> bool:
        """Whether an operation is more than a sum or a product."""
        return op.short_name not in _SUMS

    def _is_only_split(self, ref: Ref) -> bool:
        users = self.users.get(ref)
        return users is not None and all(op.short_name in _SPLITS for op in users)

    def _can_cut(self, ref: Ref) -> bool:
        """Whether a range of the features can be written as one of what they are computed from."""
        if ref not in self.made:
            return True
        op, _ = self.made[ref]
        is_open = op.short_name in _CUT or torch.Tag.pointwise in op.overload.tags
        return is_open and all(self._cut.get(r, True) for r in op.inputs)

    def _feeds_a_name(self, ref: Ref, found: Container[Ref]) -> bool:
        """Whether what a value goes into has a name before it has been through a function."""
        results = {*self.graph.new_states, *self.graph.outputs}
        while ref not in results and ref in self.users:
            op = self.users[ref][0]
            ref = op.outputs[0]
            if ref in found:
                return True
            if self._is_function(op):
                return ref in results
        return True

    def _is_sum(self, ref: Ref, named_refs: Container[Ref]) -> bool:
        """Whether sums and products with matrices and numbers alone made a value of what has a name."""
        if ref in named_refs or ref not in self.varying:
            return True
        op, _ = self.made[ref]
        factors = [r for r in op.inputs if torch.Size(self.graph.shapes[r]).numel() != 1]
        if self._is_function(op) or (op.short_name in ("mul", "div") and len(factors) > 1):
            return False
        return all(self._sums.get(r, True) for r in op.inputs)

    # ---- The text of a tensor.

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
        if ref in self.parameters:
            piece = _Piece(ref, self.symbols[ref]) if span is None else _Piece(ref, "", *span, axis=len(shape) - 1)
            return Tex(self._mark(piece), is_bias=is_bias)
        rows = self._rows(ref) if ref in self.symbols and ref not in self.varying else None
        if rows is not None and (span is None or is_bias):
            start, end = rows[1:] if span is None else (rows[1] + span[0], rows[1] + span[1])
            return Tex(
                self._mark(_Piece(rows[0], self.symbols[ref] if span is None else "", start, end)), is_bias=is_bias
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

    def _mark(self, piece: _Piece) -> str:
        """What stands in the place of a piece of a parameter until it has its symbol."""
        if piece not in self.pieces:
            self.pieces.append(piece)
        return f"\0{self.pieces.index(piece)}\0"

    def _by_rule(self, op: Op, k: int, span: Span) -> Tex | None:
        """The text of a result by the signs of mathematics; None if there are none, or not for such a range."""
        name = op.short_name
        if name in _SPLITS:
            return self._of_range(op, k, span)
        if name in _SAME:
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
            return Tex(rf"\begin{{cases}} {cases} \end{{cases}}", LOW)
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
            if arg != default and not isinstance(arg, _SETTINGS):
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
            return None if span else Tex(side_by_side(self._matrix(x).text, self._matrix(matrix).text), MATRIX)
        return Tex(side_by_side(self._matrix(matrix, span, turned=True).text, self.of(x).at(ATOM)), MATRIX)

    def _matrix(self, ref: Ref, columns: Span = None, turned: bool = False) -> Tex:
        """A matrix of weights, or some of its columns, transposed or not."""
        if ref in self.made and self.made[ref][0].short_name == "t" and ref not in self.symbols:
            return self._matrix_rows(self.made[ref][0].args[0], columns, not turned)
        text = self.of(ref, columns).at(ATOM)
        return Tex(rf"{text}^\top" if turned else text)

    def _matrix_rows(self, ref: Ref, rows: Span, turned: bool) -> Tex:
        """Some of the rows of a matrix of weights, transposed or not."""
        found = self._rows(ref)
        if found is not None:
            parameter, start, end = found
            start, end = (start, end) if rows is None else (start + rows[0], start + rows[1])
            is_whole = (start, end) == (0, self.graph.shapes[parameter][0])
            local = self.symbols.get(ref, "") if rows is None else ""
            piece = _Piece(parameter, self.symbols[parameter]) if is_whole else _Piece(parameter, local, start, end)
            text = self._mark(piece)
        else:
            text = self.of(ref).at(ATOM)
            text = text if rows is None else f"[{text}]_{{{rows[0]}:{rows[1]}}}"
        return Tex(rf"{text}^\top" if turned else text)

    def _rows(self, ref: Ref) -> tuple[Ref, int, int] | None:
        """Of which parameter a tensor of weights is which rows; None if it is something else."""
        if ref in self.parameters:
            return (ref, 0, self.graph.shapes[ref][0]) if self.graph.shapes[ref] else None
        if ref not in self.made:
            return None
        source, dim, start, end = self._source(*self.made[ref]) or (ref, 1, 0, 0)
        inner = (
            self._rows(source) if dim == 0 and len(self.graph.shapes[ref]) == len(self.graph.shapes[source]) else None
        )
        return None if inner is None else (inner[0], inner[1] + start, inner[1] + end)

    # ---- Views.

    def _source(self, op: Op, k: int) -> tuple[Ref, int, int, int] | None:
        """Of a result that is a range of another tensor: this, the dimension, the first and the one behind the last."""
        name, (source, *args) = op.short_name, op.args
        if name not in _SPLITS:
            return None
        shape = self.graph.shapes[source]
        position = {"slice": 0, "select": 0, "unbind": 0}.get(name, 1)
        dim = (args[position] if len(args) > position else op.kwargs.get("dim", 0)) % len(shape)
        if name == "slice":
            start, end, step = [*args[1:], None, None, 1][:2] + [args[3] if len(args) > 3 else 1]
            bounds = range(*slice(start, end).indices(shape[dim]))
            return (source, dim, bounds.start, bounds.stop) if step == 1 else None
        if name in ("select", "unbind"):
            index = (args[1] if name == "select" else k) % shape[dim]
            return self._of_box(source, dim, index)
        sizes = args[0] if isinstance(args[0], list) else [args[0]] * (k + 1)
        start = sum(sizes[:k])
        return source, dim, start, min(start + sizes[k], shape[dim])

    def _of_box(self, source: Ref, dim: int, index: int) -> tuple[Ref, int, int, int] | None:
        """One of the boxes that the features lie in: ``a.view(B, 4, H)[:, 2]`` is a range of a."""
        op, _ = self.made.get(source, (None, 0))
        if op is None or op.short_name not in _VIEWS or source in self.symbols:
            return None
        inner, shape = op.args[0], self.graph.shapes[source]
        is_box = len(shape) == 3 and dim == 1 and self.graph.shapes[inner] == (shape[0], shape[1] * shape[2])
        return (inner, 1, index * shape[2], (index + 1) * shape[2]) if is_box else None

    def _of_range(self, op: Op, k: int, span: Span) -> Tex | None:
        """A range of features."""
        found = self._source(op, k)
        if found is None:
            return None
        source, dim, start, end = found
        if dim != len(self.graph.shapes[source]) - 1:
            rows = self._rows(op.outputs[k])
            return None if rows is None or span else Tex(self._mark(_Piece(rows[0], "", *rows[1:])))
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


def _scaled(scalar: Tex, other: Tex) -> Tex:
    """A number times something."""
    sign, scalar = scalar.terms[0] if scalar.terms else (1, scalar)
    product = Tex(rf"{scalar.text}\, {other.at(PRODUCT)}", PRODUCT)
    return product if sign > 0 else Tex(f"-{product.text}", SUM, ((-1, product),))


def _needed(graph: Graph) -> list[Op]:
    """The operations that the results of a step need."""
    needed, found = {*graph.outputs, *graph.new_states}, []
    for op in reversed(graph.ops):
        if needed.intersection(op.outputs):
            needed.update(op.inputs)
            found.append(op)
    return found[::-1]


def _dependent(ops: Iterable[Op], given: Iterable[Ref]) -> set[Ref]:
    """What is given, and what is computed from it."""
    found = set(given)
    for op in ops:
        if found.intersection(op.inputs):
            found.update(op.outputs)
    return found


_RULES: Mapping[str, Callable[[_Writer, Op, Span], Tex | None]] = {
    "mm": _Writer._mm,
    "addmm": _Writer._addmm,
    "cat": _Writer._cat,
    **dict.fromkeys(("t", "transpose", "permute"), _Writer._turned),
    "native_layer_norm": _Writer._normed,
    **dict.fromkeys(
        ("sum", "mean", "amax", "amin", "prod", "_softmax", "_log_softmax", "logsumexp"), _Writer._over_features
    ),
}
