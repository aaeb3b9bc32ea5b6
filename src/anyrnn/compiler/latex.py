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

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from anyrnn.compiler.latex_rules import MARK, SAME, SPLITS, VIEWS, Texts, inputs_of
from anyrnn.compiler.latex_text import SUM, VAGUE, indexed, named, of_parameter, of_state, seen

if TYPE_CHECKING:
    from collections.abc import Container, Iterator, Mapping, Sequence

    from anyrnn.compiler.graph import Graph, Op, Ref

_SUMS = SAME | SPLITS | VIEWS | {"add", "sub", "rsub", "neg", "mm", "addmm", "cat", "t", "mul", "div"}
#: Of which a range of the features is written as one of their arguments, beside operations on each number.
_CUT = SAME | SPLITS | {"mm", "addmm", "cat", "t", "rsub"}
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


class _Writer:
    """Writes the tensors of a graph that have an equation, in order."""

    def __init__(self, graph: Graph) -> None:
        self.graph, self.texts = graph, Texts(graph)
        self.users: dict[Ref, list[Op]] = {}
        for op in self.texts.ops:
            for ref in inputs_of(op):
                self.users.setdefault(ref, []).append(op)
        self.timed = self.texts.dependent((graph.x, *graph.states, *graph.extras_of("input")))
        self.bases: dict[str, str] = {}  # of a left side, without the step; empty for a made up name
        self._cut: dict[Ref, bool] = {}
        self._sums: dict[Ref, bool] = {}

    def result(self) -> Equations:
        """All equations, in the order of the step."""
        lefts = self._named()
        lines: list[tuple[str, str]] = []
        unnamed = 0
        for ref in self.texts.made:
            if ref not in lefts and ref not in self.texts.symbols and self._needs_name(ref):
                unnamed += 1
                lefts[ref] = [self._symbol(f"v_{unnamed}", ref)]
                self.bases[lefts[ref][0]] = ""
            if ref in lefts:
                left, *others = lefts.pop(ref)
                lines.append((left, self.texts.of(ref).at(SUM)))
                self.texts.name(ref, left)
                lines += [(other, left) for other in others]
        lines += [
            (left, self.texts.of(ref).text) for ref, names in lefts.items() for left in names
        ]  # given, and returned
        return self._finished(lines)

    def _finished(self, lines: Sequence[tuple[str, str]]) -> Equations:
        """The equations with pieces of parameters named: after the one that reads them, or by their numbers."""
        readers: dict[int, set[str]] = {}
        for left, text in lines:
            for mark in MARK.findall(text):
                readers.setdefault(int(mark), set()).add(left)
        symbols: dict[int, str] = {}
        for k, lefts in readers.items():
            piece = self.texts.pieces[k]
            rivals = [each for j, each in readers.items() if j != k and self.texts.pieces[j].ref == piece.ref]
            is_alone = len(lefts) == 1 and all(lefts.isdisjoint(each) for each in rivals)
            label = self.bases.get(next(iter(lefts)), "") if is_alone else ""
            symbols[k] = piece.symbol or indexed(self.texts.symbols[piece.ref], label or f"{piece.start}:{piece.end}")
        written = (f"{left} = {MARK.sub(lambda mark: symbols[int(mark[1])], text)}" for left, text in lines)
        return Equations(tuple(written), tuple(self._meanings(symbols)))

    def _meanings(self, symbols: Mapping[int, str]) -> Iterator[tuple[str, str]]:
        """What the symbols stand for, parameter by parameter."""
        for name, ref in self.graph.weights.items():
            parts = [(symbols[k], self.texts.pieces[k]) for k in sorted(symbols) if self.texts.pieces[k].ref == ref]
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
        graph = self.graph
        lefts: dict[Ref, list[str]] = {}
        often = Counter(graph.names.values())
        found: dict[Ref, list[str]] = {}
        for name, ref in (*graph.locals.items(), *((n, r) for r, n in graph.names.items() if often[n] == 1)):
            if name not in VAGUE or ref in graph.states:
                found.setdefault(ref, []).append(name)
        self.texts.symbols[graph.x] = self._symbol("x", graph.x)
        count = len(graph.states)
        for k, (old, new) in enumerate(zip(graph.states, graph.new_states, strict=True)):
            base = self._free(of_state(found.get(old, ()), found.get(new, ()), k, count))
            self.texts.symbols[old] = indexed(base, "t-1")
            lefts.setdefault(new, []).append(self._left(base, "t"))
        for extra in graph.extras:
            self.texts.symbols[extra.ref] = self._symbol(found.get(extra.ref, ["u"])[0], extra.ref)
        for name, ref in graph.weights.items():
            short = of_parameter(name)
            self.texts.symbols[ref] = self._free(short if short not in self.bases else of_parameter(name, in_full=True))
        for k, ref in enumerate(graph.outputs):
            if ref not in lefts:
                name = found.get(ref, ["y" if len(graph.outputs) == 1 else f"y_{k + 1}"])[0]
                lefts[ref] = [self._symbol(name, ref)]
        for ref in self.texts.made:
            if ref not in lefts and ref in found:
                self._name_local(ref, found, lefts)
            self._cut[ref] = ref in lefts or ref in self.texts.symbols or self._can_cut(ref)
            self._sums[ref] = self._is_sum(ref, lefts)
        return lefts

    def _name_local(self, ref: Ref, found: Mapping[Ref, list[str]], lefts: dict[Ref, list[str]]) -> None:
        """Name a local variable: a range of a parameter as such, and what deserves an equation."""
        name = found[ref][0]
        if ref not in self.texts.varying and self.texts.rows(ref) is not None:
            self.texts.symbols[ref] = self._symbol(name, ref)
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
        op, _ = self.texts.made[ref]
        users = self.users.get(ref, ())
        if not users or op.short_name == "t" or self.texts.rows(ref) is not None:
            return False
        if self._is_only_split(ref) and not self._can_cut(ref):
            return True
        most = _TWICE if len(users) > 1 else _FUNCTION if self._is_function(op) else _LINE
        most = _LINE if self._is_only_split(ref) else most
        return seen(self.texts.expanded(self.texts.of(ref).text)) > most

    def _is_function(self, op: Op) -> bool:
        """Whether an operation is more than a sum or a product."""
        return op.short_name not in _SUMS

    def _is_only_split(self, ref: Ref) -> bool:
        users = self.users.get(ref)
        return users is not None and all(op.short_name in SPLITS for op in users)

    def _can_cut(self, ref: Ref) -> bool:
        """Whether a range of the features can be written as one of what they are computed from."""
        if ref not in self.texts.made:
            return True
        op, _ = self.texts.made[ref]
        is_open = op.short_name in _CUT or torch.Tag.pointwise in op.overload.tags or self.texts.is_box(ref)
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
        if ref in named_refs or ref not in self.texts.varying:
            return True
        op, _ = self.texts.made[ref]
        factors = [r for r in op.inputs if torch.Size(self.graph.shapes[r]).numel() != 1]
        if self._is_function(op) or (op.short_name in ("mul", "div") and len(factors) > 1):
            return False
        return all(self._sums.get(r, True) for r in op.inputs)
