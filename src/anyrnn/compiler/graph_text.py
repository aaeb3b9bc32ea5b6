"""The text of a recorded step: complete, readable, and read back by `parse_graph`.

::

    anyrnn step 2
    batch 127
    x: float32[127, 12]
    state state0: float32[127, 64]
    weight new.weight: float32[64, 76]
    weight new.bias: float32[64]
    v4: float32[127, 76] = aten.cat.default([x, state0], 1)
    v5: float32[76, 64] = aten.t.default(new.weight)
    v6: float32[127, 64] = aten.addmm.default(new.bias, v4, v5)
    candidate: float32[127, 64] = aten.tanh.default(v6)
    new candidate

The batch is the number of rows in the recording: another one takes its place when the step runs. Weights are in the
order in which they are handed in; one whose name is no Python name has it behind, in quotes. Further arguments of the
step are lines like that of a state, which begin with their kind: input, context or shared. Then come ATen's operations,
with the type and shape of what they give; several results are written ``[a: ..., b: ...]``. Last, the outputs, unless
there is only the first state, and the new states. Equal texts are equal steps.
"""

from __future__ import annotations

import ast
import re
from typing import Any

import torch

from anyrnn.compiler.graph import Graph, GraphExtra, Op, Ref
from anyrnn.compiler.program import free_name
from anyrnn.errors import AnyRNNError

VERSION = 2
_HEAD = "anyrnn step "
_NUMBERED = re.compile(r"v\d+")
_TENSOR = re.compile(r"([\w.]+): (\w+)\[([\d, ]*)\]")
#: Settings of PyTorch's that are written by their names.
_SETTINGS = (torch.dtype, torch.layout, torch.memory_format)
#: Names that a tensor cannot have in a text, beside those that `free_name` avoids.
_TAKEN = ("torch", "device")


def written(graph: Graph) -> str:
    """Write a step down.

    Raises:
        AnyRNNError: if it holds something that is an object of this process. The message says what.
    """
    writer = _Writer(graph)
    lines = [f"{_HEAD}{VERSION}", f"batch {graph.batch}", writer.tensor(graph.x, "x")]
    lines += [f"state {writer.tensor(ref, f'state{k}')}" for k, ref in enumerate(graph.states)]
    lines += [f"{e.kind} {writer.tensor(e.ref, f'extra{k}')}" for k, e in enumerate(graph.extras)]
    used = {r for s in graph.ops for r in s.inputs}.union(graph.outputs, graph.new_states)
    for name, ref in graph.weights.items():
        if ref in used:
            line = f"weight {writer.tensor(ref, name)}"
            lines.append(line if writer.labels[ref] == name else f"{line} {name!r}")
    lines += map(writer.op, graph.ops)
    lines += [f"output {writer.labels[ref]}" for ref in graph.outputs]
    return "\n".join([*lines, *(f"new {writer.labels[ref]}" for ref in graph.new_states)])


class _Writer:
    """Gives tensors their labels, and writes them and the operations."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.labels: dict[Ref, str] = {}
        self._taken = set(_TAKEN)

    def tensor(self, ref: Ref, name: str | None) -> str:
        """A tensor that is new in the text: its label, type and shape."""
        label = f"v{len(self.labels)}" if name is None else free_name(name, self._taken)
        self.labels[ref] = label
        self._taken.add(label)
        shape = ", ".join(map(str, self.graph.shapes[ref]))
        return f"{label}: {str(self.graph.dtypes[ref]).removeprefix('torch.')}[{shape}]"

    def op(self, op: Op) -> str:
        if not isinstance(op.overload, torch._ops.OpOverload):
            msg = f"`{op.overload}`, an autograd.Function, is code of this process, which a text cannot hold"
            raise AnyRNNError(msg)
        args = [*map(self.argument, op.args), *(f"{k}={self.argument(v)}" for k, v in op.kwargs.items())]
        results = ", ".join(self.tensor(ref, self.graph.names.get(ref)) for ref in op.outputs)
        return f"{f'[{results}]' if op.many else results} = {op.overload}({', '.join(args)})"

    def argument(self, value: Any) -> str:
        if isinstance(value, Ref):
            return self.labels[value]
        if isinstance(value, list | tuple):
            items = ", ".join(map(self.argument, value))
            return f"[{items}]" if isinstance(value, list) else f"({items}{',' if len(value) == 1 else ''})"
        if isinstance(value, torch.device):
            return f"device({str(value)!r})"
        if value is None or isinstance(value, _SETTINGS):
            return str(value)
        if type(value) in (bool, int, float, complex, str):
            return repr(value)  # inf, -inf and nan too
        msg = f"an operation takes a {type(value).__name__}, an object of this process, which a text cannot hold"
        raise AnyRNNError(msg)


def parse_graph(text: str) -> Graph:
    """Read a step that was written down.

    Raises:
        AnyRNNError: if the text is of another version, no step, or names an operation that is not here. The message
            says which line.
    """
    head, *lines = text.strip().splitlines() or [""]
    if not head.startswith(_HEAD):
        msg = f"got a text that begins with {head[:40]!r}, expected {_HEAD + str(VERSION)!r}: it is no step"
        raise AnyRNNError(msg)
    if head != f"{_HEAD}{VERSION}":
        msg = f"got {head!r}, expected version {VERSION}: it was written by another version of anyrnn"
        raise AnyRNNError(msg)
    reader = _Reader()
    for number, line in enumerate(lines, 2):
        try:
            reader.read(line.strip())
        except (ValueError, SyntaxError, KeyError, IndexError, TypeError, AttributeError) as cause:
            msg = f"line {number} of a step is {line.strip()!r}: {cause}"
            raise AnyRNNError(msg) from cause
    return reader.graph()


class _Reader:
    """What was read so far."""

    def __init__(self) -> None:
        self._refs: dict[str, Ref] = {}
        self._shapes: dict[Ref, tuple[int, ...]] = {}
        self._dtypes: dict[Ref, torch.dtype] = {}
        self._names: dict[Ref, str] = {}
        self._weights: dict[str, Ref] = {}
        self._ops: list[Op] = []
        self._batch: int | None = None
        self._extras: list[GraphExtra] = []
        self._marked: dict[str, list[Ref]] = {"x": [], "state": [], "output": [], "new": []}

    def read(self, line: str) -> None:
        kind, _, rest = line.partition(" ")
        if " = " in line:
            self._read_op(*line.split(" = ", 1))
        elif kind == "batch":
            self._batch = int(rest)
        elif kind == "x:":
            self._marked["x"] += self._tensors(line)
        elif kind == "state":
            self._marked["state"] += self._tensors(rest)
        elif kind in ("input", "context", "shared"):
            self._extras += [GraphExtra(ref, kind) for ref in self._tensors(rest)]
        elif kind == "weight":
            tensor, _, quoted = rest.partition("] ")
            (ref,) = self._tensors(f"{tensor}]" if quoted else tensor)
            label = next(label for label, r in self._refs.items() if r == ref)
            self._weights[ast.literal_eval(quoted) if quoted else label] = ref
        elif kind in ("output", "new"):
            self._marked[kind].append(self._refs[rest])
        else:
            msg = "neither a tensor nor an operation"
            raise ValueError(msg)

    def graph(self) -> Graph:
        """The step."""
        x, states, outputs, new = self._marked.values()
        if len(x) != 1 or self._batch is None or not new or len(new) != len(states):
            msg = "the text of a step lacks its batch, its x or a state"
            raise AnyRNNError(msg)
        return Graph(
            x[0], tuple(states), tuple(self._extras), self._weights, tuple(self._ops), tuple(outputs), tuple(new),
            self._batch, self._shapes, self._dtypes, self._names, {},
        )  # fmt: skip

    def _tensors(self, text: str) -> list[Ref]:
        """Tensors that are new: labels, types and shapes."""
        found = []
        for label, dtype, sizes in _TENSOR.findall(text):
            if label in self._refs:
                msg = f"`{label}` is there already"
                raise ValueError(msg)
            ref = self._refs[label] = Ref(len(self._refs))
            self._shapes[ref] = tuple(int(n) for n in sizes.split(", ") if n)
            self._dtypes[ref] = _setting(dtype)
            found.append(ref)
        return found

    def _read_op(self, results: str, called: str) -> None:
        call = ast.parse(called, mode="eval").body
        if not isinstance(call, ast.Call):
            msg = "no operation"
            raise ValueError(msg)  # noqa: TRY004 - told as any other fault of a line
        args = tuple(map(self._argument, call.args))
        kwargs = {str(k.arg): self._argument(k.value) for k in call.keywords}
        outputs = tuple(self._tensors(results))
        for label, ref in list(self._refs.items())[len(self._refs) - len(outputs) :]:
            if not _NUMBERED.fullmatch(label):
                self._names[ref] = label
        self._ops.append(Op(_operation(ast.unparse(call.func)), args, kwargs, outputs, results.startswith("[")))

    def _argument(self, value: ast.expr) -> Any:
        if isinstance(value, ast.List):
            return [*map(self._argument, value.elts)]
        if isinstance(value, ast.Tuple):
            return tuple(map(self._argument, value.elts))
        if isinstance(value, ast.Call) and ast.unparse(value.func) == "device":
            return torch.device(ast.literal_eval(value.args[0]))
        name = ast.unparse(value)
        if name in self._refs:
            return self._refs[name]
        if name.startswith("torch."):
            return _setting(name.removeprefix("torch."))
        if name.removeprefix("-") in ("inf", "nan"):
            return float(name)
        return ast.literal_eval(value)


def _setting(name: str) -> Any:
    found = getattr(torch, name)
    if not isinstance(found, _SETTINGS):
        msg = f"`torch.{name}` is no type"
        raise ValueError(msg)  # noqa: TRY004 - told as any other fault of a line
    return found


def _operation(name: str) -> torch._ops.OpOverload:
    try:
        namespace, operation, overload = name.split(".")
        found = getattr(getattr(getattr(torch.ops, namespace), operation), overload)
    except AttributeError as cause:
        msg = f"the operation `{name}` is not here; import the package that has it"
        raise ValueError(msg) from cause
    assert isinstance(found, torch._ops.OpOverload)
    return found
