"""The loop program: the IR of one step of a loop, which every backend compiles. `parse` reads its text back.

::

    anyrnn program 1
    stream x[12] padded
    state h[64] kept
    vector b[64]
    matrix U[64, 64]
    matrix W[12, 64]
    output y[64] padded
    v0 = dot(h[0:64] @ U[0:64, 0:64], x[0:12] @ W[0:12, 0:64])
    v1 = add(v0, b[0:64])
    c = tanh(v1)
    h <- c
    y <- c

After the version come the arrays: role, name, width of a row (of a matrix, rows and columns), and how they lie in
memory, if that is settled. Then the values, each an operation on earlier values, ranges of arrays and constants; those
that the cell's code has no name for are numbered. A range of a transposed matrix is written ``U.T[0:64, 0:64]``; a
history is read as ``previous(h[0:64])`` or ``current(h[0:64])``; a wide constant is ``full(0.5, 64)``; ``v4[0:64]`` is
read from where v4 lies in memory. Operations that read by strides (`STRIDED`) have the sizes of their loops in front,
and behind each argument where it is read::

    v5 = contract([4, 8], [16], v3, 0, [16, 0, 1], v4, 0, [0, 1, 8])
    v6 = largest(v5, 4, 8, 1)
    v7 = arrange(32, v5, [8, 4], 0, [1, 8], 0, [4, 1])

Last come the results: for each array that is written, the values that lie side by side in it.
"""

from __future__ import annotations

import ast
import functools
import keyword
import math
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from anyrnn.compiler.node import HERE, LEAVES, STRIDED, Builder, Node, filled, offsets, ordered
from anyrnn.compiler.ops import OPERATIONS, REDUCTIONS
from anyrnn.errors import AnyRNNError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

#: The roles of arrays; in brackets what `jax.lax.scan` calls them.
#: stream [xs]: read, one row for each row of the batch and step.
#: row [consts]: read, one for each row of the batch, the same at every step.
#: state [carry]: read and written: a step reads what the step before has written.
#: history: read by a backward program: a state of the forward pass, before and after each step.
#: vector [consts]: read, the same for all rows and steps.
#: matrix [consts]: read by products.
#: output [ys]: written at every step. residual: likewise, for the backward program. sum: summed over rows and steps.
ROLES = ("stream", "row", "state", "history", "vector", "matrix", "output", "residual", "sum")
#: The roles of arrays that are written.
WRITTEN = frozenset({"state", "output", "residual", "sum"})

#: How an array of a role may lie in memory. padded: a step's rows as they are in the batch; packed: the active rows of
#: all steps one after the other. kept: a state has memory for every step; carried: the new one replaces the old one.
PLACES = {
    **dict.fromkeys(("stream", "output", "residual"), ("padded", "packed")),
    **{"state": ("kept", "carried"), "history": ("padded",)},
}

_ROLE_OF_LEAF = {"previous": "history", "current": "history"}

VERSION = 1
_HEAD = "anyrnn program "
_ARRAY = re.compile(r"(\w+) (\S+)\[(?:(\d+), )?(\d+)\](?: (\w+))?")
_NUMBERED = re.compile(r"v\d+")
_HISTORY = ("previous", "current")
#: The constants that are no literals of Python's.
_NUMBERS = {"inf": math.inf, "nan": math.nan, "True": True, "False": False, "None": None}


@dataclass(frozen=True, slots=True)
class Array:
    """An array that a program reads or writes, known by its name.

    Attributes:
        name: Its name, unlike any other in the program.
        role: One of `ROLES`.
        width: The length of a row; of a matrix, its number of columns.
        rows: The rows of a matrix.
        place: How it lies in memory; see `PLACES`. Empty as long as that is open.
    """

    name: str
    role: str
    width: int
    rows: int = 0
    place: str = ""


@dataclass(frozen=True, eq=False)
class Program:
    """One step of a loop. Programs of equal text are equal.

    Attributes:
        arrays: The arrays that it reads and writes.
        results: The values that lie side by side in each state, output, residual and sum, by name. Of a state they are
            the new one; of a sum, what is summed over all rows and steps.
        names: The names of values in the cell's code.
    """

    arrays: tuple[Array, ...]
    results: Mapping[str, tuple[Node, ...]]
    names: Mapping[Node, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check that every value fits its arrays: machine code will not.

        Raises:
            AnyRNNError: if one does not.
        """
        wrong = next(self._misfits(), None)
        if wrong is not None:
            msg = f"the parts of a program do not fit: {wrong}"
            raise AnyRNNError(msg)

    def _misfits(self) -> Iterator[object]:
        """The arrays and values that do not fit, or messages about them."""
        if len(self._by_name) < len(self.arrays):
            yield f"two of {len(self.arrays)} arrays have one name"
        for array in self.arrays:
            is_known = array.role in ROLES and array.place in ("", *PLACES.get(array.role, ()))
            if not is_known or array.width < 0 or array.rows < 0:
                yield array
        written = [a for a in self.arrays if a.role in WRITTEN]
        if self.results.keys() != {a.name for a in written}:
            yield f"results of {', '.join(self.results)} for {', '.join(a.name for a in written)}"
            return
        yield from (a for a in written if sum(p.width for p in self.results[a.name]) != a.width)
        yield from (node for node in self.nodes if not self._fits(node))

    def _fits(self, node: Node) -> bool:
        if node.is_leaf:
            name, first = node.attr
            array = self._by_name.get(name)
            if array is None or array.role != _ROLE_OF_LEAF.get(node.op, node.op):
                return False
            return bool(0 <= first <= first + node.width <= array.width)
        if node.op == "dot":
            return all(self._fits_matrix(a, at, node.width) for a, at in zip(node.args, node.attr, strict=True))
        if node.op in REDUCTIONS:
            return node.width == 1
        if node.is_strided:
            return _fits_strided(node)
        if node.op == "part":
            return (
                len(node.args) == 1
                and bool(node.args[0].args)
                and _is_within(node.args[0], [node.width], node.attr[0], [1])
            )
        operation = OPERATIONS.get(node.op)
        is_known = len(node.args) == operation.arity if operation else node.op == "constant" or node.is_composite
        return is_known and all(a.width in (1, node.width) for a in node.args)

    def _fits_matrix(self, operand: Node, at: tuple[str, int, int, bool], width: int) -> bool:
        name, row, col, transposed = at
        array = self._by_name.get(name)
        if array is None or array.role != "matrix":
            return False
        rows, columns = (array.width, array.rows) if transposed else (array.rows, array.width)
        return 0 <= row <= row + operand.width <= rows and 0 <= col <= col + width <= columns

    def __eq__(self, other: object) -> bool:
        """Whether two programs do the same to arrays of the same names."""
        return str(self) == str(other) if isinstance(other, Program) else NotImplemented

    def __hash__(self) -> int:
        return hash(str(self))

    def of(self, *roles: str) -> tuple[Array, ...]:
        """The arrays of some roles."""
        return tuple(a for a in self.arrays if a.role in roles)

    def __getitem__(self, name: str) -> Array:
        """The array of a name."""
        return self._by_name[name]

    @functools.cached_property
    def _by_name(self) -> dict[str, Array]:
        return {a.name: a for a in self.arrays}

    @property
    def roots(self) -> list[Node]:
        """All values that are stored or summed."""
        return [p for a in self.arrays if a.role in WRITTEN for p in self.results[a.name]]

    @functools.cached_property
    def nodes(self) -> list[Node]:
        """All values, arguments before users."""
        return ordered(self.roots)

    def with_results(self, new: Mapping[Node, Node]) -> Program:
        """The program with new values in the place of those that are the keys of a mapping."""
        results = {name: tuple(new.get(p, p) for p in pieces) for name, pieces in self.results.items()}
        names: dict[Node, str] = {}
        for node, name in self.names.items():
            names.setdefault(new.get(node, node), name)
        return Program(self.arrays, results, names)

    def __str__(self) -> str:
        """The program in full, with the cell's own names; `parse` reads it."""
        return _written(self)


def _fits_strided(node: Node) -> bool:
    """Whether all that is read and written is there, and nothing is written twice."""
    if any(a.op == "constant" or a.is_mask for a in node.args):  # they are not in memory
        return False
    if node.op == "largest":
        outer, middle, inner = node.attr
        sizes = len(node.args) == 1 and min(outer, middle, inner) > 0
        return sizes and (outer * middle * inner, outer * inner) == (node.args[0].width, node.width)
    if node.op == "contract":
        sizes, summed, *reads = node.attr
        dims = (*sizes, *summed)
        fitting = (_is_within(a, dims, *read) for a, read in zip(node.args, reads, strict=True))
        return len(node.args) in (1, 2) and math.prod(sizes) == node.width and all(fitting)
    written = np.zeros(node.width, dtype=bool)
    for k, sizes, first, strides, to, to_strides in node.attr:
        if not _is_within(node.args[k], sizes, first, strides) or not _is_within(node, sizes, to, to_strides):
            return False
        places = offsets(sizes, to, to_strides)
        if written[places].any() or len(np.unique(places)) < places.size:
            return False
        written[places] = True
    return True


def _is_within(node: Node, sizes: Sequence[int], first: int, strides: Sequence[int]) -> bool:
    """Whether a value has all numbers of a box."""
    if len(sizes) != len(strides) or min(sizes, default=1) < 1:
        return False
    reach = [(n - 1) * stride for n, stride in zip(sizes, strides, strict=True)]
    return first + sum(r for r in reach if r < 0) >= 0 and first + sum(r for r in reach if r > 0) < node.width


def free_name(wanted: str, used: Iterable[str]) -> str:
    """Return a name that a program may use for an array or a value, as near to the one wanted as can be.

    Names are identifiers with dots, so that a program is read as Python's expressions are.
    """
    parts = [p if p.isidentifier() else f"_{re.sub(r'[^0-9A-Za-z_]', '_', p)}" for p in wanted.split(".")]
    parts = [f"{p}_" if keyword.iskeyword(p) or p in ("T", *_NUMBERS) else p for p in parts]
    name = ".".join(parts)
    if _NUMBERED.fullmatch(name):
        name += "_"
    used = set(used)
    while name in used:
        name += "_"
    return name


# ---- Writing ----


def _written(program: Program) -> str:
    """The text of a program."""
    lines = [f"{_HEAD}{VERSION}"]
    for a in program.arrays:
        size = f"{a.rows}, {a.width}" if a.role == "matrix" else str(a.width)
        lines.append(f"{a.role} {a.name}[{size}]{' ' if a.place else ''}{a.place}")
    shown: dict[Node, str] = {}  # the text of each value, as an argument
    names = {a.name for a in program.arrays}
    count = 0
    for node in program.nodes:
        if node.op == "constant":
            number = _number(node.attr[0])
            shown[node] = number if node.width == 1 else f"full({number}, {node.width})"
        elif node.is_leaf:
            name, first = node.attr
            text = f"{name}[{first}:{first + node.width}]"
            shown[node] = f"{node.op}({text})" if node.op in _HISTORY else text
        elif node.op == "part":
            (first,) = node.attr
            shown[node] = f"{shown[node.args[0]]}[{first}:{first + node.width}]"
        else:
            if node in program.names:
                shown[node] = free_name(program.names[node], names)
                names.add(shown[node])
            else:
                shown[node] = f"v{count}"
                count += 1
            lines.append(f"{shown[node]} = {_call(node, shown)}")
    pieces = {a.name: ", ".join(shown[p] for p in program.results[a.name]) for a in program.of(*WRITTEN)}
    lines += [f"{name} <- {texts}" for name, texts in pieces.items()]
    return "\n".join(lines)


def _call(node: Node, shown: dict[Node, str]) -> str:
    if node.op == "dot":
        terms = (
            f"{shown[a]} @ {m}{'.T' if transposed else ''}[{row}:{row + a.width}, {col}:{col + node.width}]"
            for a, (m, row, col, transposed) in zip(node.args, node.attr, strict=True)
        )
        return f"dot({', '.join(terms)})"
    if node.is_strided:
        return f"{node.op}({', '.join(_strided_arguments(node, shown))})"
    if node.is_composite:
        positional, named = filled(node.attr, [_Written(shown[a]) for a in node.args])
        args = [*map(_argument, positional), *(f"{k}={_argument(v)}" for k, v in named.items())]
        return f"{node.op}({', '.join(args)})"
    return f"{node.op}({', '.join(shown[a] for a in node.args)})"


def _strided_arguments(node: Node, shown: dict[Node, str]) -> Iterator[str]:
    """The arguments of an operation that reads by strides, as texts."""
    if node.op == "largest":
        yield from (shown[node.args[0]], *map(str, node.attr))
        return
    if node.op == "contract":
        sizes, summed, *reads = node.attr
        yield from (str([*sizes]), str([*summed]))
        reads = [(a, first, [*strides]) for a, (first, strides) in zip(node.args, reads, strict=True)]
    else:
        yield str(node.width)
        reads = [
            (node.args[k], [*sizes], first, [*strides], to, [*to_strides])
            for k, sizes, first, strides, to, to_strides in node.attr
        ]
    for arg, *numbers in reads:
        yield from (shown[arg], *map(str, numbers))


class _Written(str):
    """The name of a value, among arguments that are written as Python writes them."""

    __slots__ = ()


def _argument(value: Any) -> str:
    if isinstance(value, _Written):
        return str(value)
    return _number(value) if isinstance(value, float) else repr(value)


def _number(value: float) -> str:
    return repr(float(value))  # inf, -inf and nan too


# ---- Reading ----


def parse(text: str) -> Program:
    """Return the program that has this text.

    Raises:
        AnyRNNError: if the text is of another version, or no program. The message says which line.
    """
    head, *lines = text.strip().splitlines() or [""]
    if not head.startswith(_HEAD):
        msg = f"got a text that begins with {head[:40]!r}, expected {_HEAD + str(VERSION)!r}: it is no program"
        raise AnyRNNError(msg)
    if head != f"{_HEAD}{VERSION}":
        msg = f"got {head!r}, expected version {VERSION}: it was written by another version of anyrnn"
        raise AnyRNNError(msg)
    reader = _Reader()
    for number, line in enumerate(lines, 2):
        try:
            reader.read(line.strip())
        except KeyError as cause:
            msg = f"line {number} of a program is {line.strip()!r}: it has no array {cause}"
            raise AnyRNNError(msg) from cause
        except (ValueError, SyntaxError, IndexError, TypeError, AttributeError) as cause:
            msg = f"line {number} of a program is {line.strip()!r}: {cause}"
            raise AnyRNNError(msg) from cause
    return Program(tuple(reader.arrays.values()), reader.results, reader.names)


class _Reader:
    """Reads a text line by line; its attributes are what a program is made from."""

    def __init__(self) -> None:
        self.arrays: dict[str, Array] = {}
        self.results: dict[str, tuple[Node, ...]] = {}
        self.names: dict[Node, str] = {}
        self._values: dict[str, Node] = {}
        self._builder = Builder()

    def read(self, line: str) -> None:
        if (match := _ARRAY.fullmatch(line)) is not None:
            role, name, rows, width, place = match.groups()
            self._add(Array(name, role, int(width), int(rows or 0), place or ""))
        elif " <- " in line:
            name, _, pieces = line.partition(" <- ")
            self.results[self.arrays[name].name] = tuple(map(self._value, _parts(pieces)))
        else:
            name, equals, call = line.partition(" = ")
            if not equals or not name:
                msg = "neither an array, a value, nor what an array is made of"
                raise ValueError(msg)
            self._values[name] = node = self._call(_expression(call))
            if not _NUMBERED.fullmatch(name):
                self.names[node] = name

    def _add(self, array: Array) -> None:
        if array.name in self.arrays:
            msg = "its name is taken"
            raise ValueError(msg)
        self.arrays[array.name] = array

    def _call(self, call: ast.expr) -> Node:
        if not isinstance(call, ast.Call):
            msg = "no operation"
            raise ValueError(msg)  # noqa: TRY004 - told as any other fault of a line
        op = ast.unparse(call.func)
        if op == "dot":
            return self._dot(call.args)
        if op.startswith("aten."):
            return self._composite(op, call)
        if op in STRIDED:
            return self._strided(op, call.args)
        args = tuple(self._value(a) for a in call.args)
        return self._builder.node(op, args, 1 if op in REDUCTIONS else max(a.width for a in args))

    def _dot(self, terms: list[ast.expr]) -> Node:
        args, places, width = [], [], 0
        for term in terms:
            if not isinstance(term, ast.BinOp) or not isinstance(term.right, ast.Subscript):
                msg = "a product is written value @ matrix[rows, columns]"
                raise ValueError(msg)  # noqa: TRY004 - told as any other fault of a line
            name, ranges = self._range(term.right)
            transposed = name not in self.arrays and name.endswith(".T")
            (row, _), (col, end) = ranges
            args.append(self._value(term.left))
            places.append((self.arrays[name.removesuffix(".T") if transposed else name].name, row, col, transposed))
            width = end - col
        return self._builder.node("dot", tuple(args), width, tuple(places))

    def _strided(self, op: str, expressions: list[ast.expr]) -> Node:
        given: list[Any] = [self._number_or_value(e) for e in expressions]
        if op == "largest":
            arg, *sizes = given
            return self._builder.node(op, (arg,), sizes[0] * sizes[2], tuple(sizes))
        if op == "contract":
            sizes, summed, *rest = given
            reads = [(first, strides) for first, strides in zip(rest[1::3], rest[2::3], strict=True)]
            return self._builder.node(op, tuple(rest[::3]), math.prod(sizes), (sizes, summed, *reads))
        width, *rest = given
        args = tuple(dict.fromkeys(rest[::6]))
        boxes = zip(map(args.index, rest[::6]), *(rest[k::6] for k in range(1, 6)), strict=True)
        return self._builder.node(op, args, width, tuple(boxes))

    def _number_or_value(self, expression: ast.expr) -> Any:
        """An integer, several as a tuple, or a value."""
        if isinstance(expression, ast.List):
            return tuple(map(_literal, expression.elts))
        return self._value(expression) if not _is_number(expression) else _literal(expression)

    def _composite(self, op: str, call: ast.Call) -> Node:
        args: list[Node] = []

        def argument(expression: ast.expr) -> Any:
            try:
                return _literal(expression)
            except ValueError:
                args.append(self._value(expression))
                return HERE

        positional = tuple(argument(a) for a in call.args)
        named = tuple((str(k.arg), argument(k.value)) for k in call.keywords)
        return self._builder.composite(op, tuple(args), (positional, named))

    def _value(self, expression: ast.expr) -> Node:
        """A value by its name, a range of an array, or a number."""
        if isinstance(expression, ast.Subscript):
            name, ((first, end),) = self._range(expression)
            if name in self._values and name not in self.arrays:
                return self._builder.node("part", (self._values[name],), end - first, (first,))
            return self._leaf(expression, None)
        if isinstance(expression, ast.Call):
            name = ast.unparse(expression.func)
            if name == "full":
                number, width = map(_literal, expression.args)
                return self._builder.node("constant", (), width, (float(number),))
            if name in _HISTORY and isinstance(expression.args[0], ast.Subscript):
                return self._leaf(expression.args[0], name)
        name = ast.unparse(expression)
        if name in self._values:
            return self._values[name]
        return self._builder.constant(_literal(expression))

    def _leaf(self, expression: ast.Subscript, op: str | None) -> Node:
        name, ((first, end),) = self._range(expression)
        array = self.arrays[name]
        op = op or array.role
        if op not in LEAVES:
            msg = f"the {array.role} `{name}` is not read so"
            raise ValueError(msg)
        return self._builder.node(op, (), end - first, (name, first))

    def _range(self, expression: ast.Subscript) -> tuple[str, list[tuple[int, int]]]:
        inner = expression.slice
        slices = inner.elts if isinstance(inner, ast.Tuple) else [inner]
        return ast.unparse(expression.value), [(_literal(s.lower), _literal(s.upper)) for s in slices]  # type: ignore[attr-defined]


def _expression(text: str) -> ast.expr:
    return ast.parse(text, mode="eval").body


def _parts(text: str) -> list[ast.expr]:
    return _expression(f"[{text}]").elts  # type: ignore[attr-defined,no-any-return]


def _is_number(expression: ast.expr) -> bool:
    """Whether an expression is an integer."""
    negative = isinstance(expression, ast.UnaryOp) and isinstance(expression.op, ast.USub)
    return isinstance(expression.operand if negative else expression, ast.Constant)  # type: ignore[attr-defined]


def _literal(expression: ast.expr) -> Any:
    """A number or a string."""
    if isinstance(expression, ast.Name) and expression.id in _NUMBERS:
        return _NUMBERS[expression.id]
    if isinstance(expression, ast.UnaryOp) and isinstance(expression.op, ast.USub):
        return -_literal(expression.operand)
    return ast.literal_eval(expression)
