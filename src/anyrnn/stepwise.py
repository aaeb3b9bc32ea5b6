"""A causal model as one cell: what is computed at each step, the recurrent layers, and what is made of their output.

The model is traced by `torch.fx`, with its recurrent layers as single nodes. In their place the cell has one step of
each, whose states are the states of the cell; all else is run on the rows of one step. That this is what the model does
is not derived but seen: both are run on made-up numbers, and a model that looks at several steps gives itself away.
"""

from __future__ import annotations

import contextlib
import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from anyrnn.accelerate import as_layer
from anyrnn.adapters import Stacked
from anyrnn.controls import resting
from anyrnn.errors import AnyRNNError
from anyrnn.layers import Layer
from anyrnn.protocol import Signature, Size, State, outside_inference_mode, placement, shape_of, size_of
from anyrnn.stream import Source, Stream, check_streamed, grouped

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from torch import fx

_T, _B = 4, 3  # steps and rows of the made-up sequence
_TAKEN = "training", "input_size", "state_sizes"  # attributes of the cell itself


class Stepwise(nn.Module):
    """A model as a cell: ``forward(x, states)`` for one step, x (B, ...); see `stepwise`.

    Attributes:
        input_size: The size of x.
        state_sizes: The sizes of all state variables, layer by layer.
    """

    def __init__(self, traced: _Traced, input_size: Size) -> None:
        super().__init__()
        self.input_size = input_size
        self._name = traced.name
        self._reads_tokens = traced.reads_tokens
        self.state_sizes = tuple(size for _, layer in traced.layers for size in _sizes_of(layer))
        self._layers = tuple(traced.layers)  # in a tuple they are no submodules beside their own cells
        for name, value in traced.attributes.items():
            _register(self, name, value)
        self._renew()
        self._function = traced.function

    def forward(self, x: Tensor, states: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Run a step of the whole model: the output, and the new states."""
        output, new = self._function(self, x, *states)
        return output, tuple(new)

    def stream(self, batch: int = 1, *, state: State | None = None) -> Stream:
        """Make a stream of the model, as `Recurrent.stream` makes one of a layer.

        Args:
            batch: B, the number of rows.
            state: The initial state; that of the layers if None. It has the form of the recurrent layer's own state,
                (L, B, size) or a tuple; of several recurrent layers, it is a tuple of these.

        Raises:
            AnyRNNError: for arguments that do not fit.

        Example:
            >>> import torch, anyrnn
            >>> model = torch.nn.Sequential(torch.nn.Linear(3, 8), anyrnn.GRU(8, 8), torch.nn.Linear(8, 2))
            >>> stream = anyrnn.stepwise(model).stream()
            >>> stream.x[:] = torch.ones(1, 3)
            >>> stream.step()
            >>> stream.y.shape, stream.state.shape
            (torch.Size([1, 2]), torch.Size([1, 1, 8]))
        """
        check_streamed(self._name, batch, bidirectional=False)
        with outside_inference_mode(), torch.no_grad():
            like = placement(self)
            x = like.new_zeros(
                batch, *shape_of(self.input_size), dtype=torch.int64 if self._reads_tokens else like.dtype
            )
        layers = [layer for _, layer in self._layers]

        def initial(state: State | None) -> list[Tensor]:
            return _initial(self._name, layers, state, batch, like)

        def wrap(variables: Sequence[Tensor]) -> State:
            states: list[Any] = []
            first = 0
            for layer in layers:
                own = variables[first : first + len(_sizes_of(layer))]
                first += len(own)
                states.append(layer._stack(grouped(layer, own), True, None))
            return states[0] if len(states) == 1 else tuple(states)

        def cell() -> tuple[nn.Module, Signature, Signature]:
            self._renew()
            signature = self.signature(x)
            return self, signature, signature

        return Stream(Source(self._name, cell, initial, wrap, x, like.dtype), state)

    def signature(self, x: Tensor) -> Signature:
        """The signature of the step, whose output is seen by running it."""
        with outside_inference_mode(), torch.no_grad(), _in_evaluation(self):
            like = placement(self)
            states = tuple(like.new_zeros(len(x), *shape_of(size)) for size in self.state_sizes)
            output, _ = self(torch.zeros_like(x), states)
        return Signature(self.state_sizes, False, (size_of(output.shape[1:]),), has_output=True)

    def _renew(self) -> None:
        """Take the cells of the layers, which may have others now."""
        for name, layer in self._layers:
            self.add_module(name, _one_step(layer))


def stepwise(model: nn.Module, input_size: Size | None = None) -> Stepwise:
    """Turn a causal model into one cell, which computes one step of all of it: encoder, recurrent layers, head.

    The cell streams the whole model as one program, ``anyrnn.stepwise(model).stream()``; and it is a cell as any other,
    for `anyrnn.scan` and `anyrnn.Recurrent`. It computes with the model's own parameters, as in evaluation mode.

    Args:
        model: A module whose ``forward(x)`` takes a sequence (T, B, ...), or (B, T, ...) if its recurrent layers are
            batch first, and returns one, or a tuple with the sequence first, such as ``(output, state)``. Around its
            recurrent layers (this package's, or torch.nn's RNN, LSTM and GRU, in one direction) it may compute
            anything step by step. It is traced by `torch.fx`; dimensions of features have to be counted from the end
            (``dim=-1``), since in a step there is no T. Or an `nn.Sequential` with recurrent layers, of which what
            follows reads the output, although they return a tuple.
        input_size: The size of x, the number of features or the shape behind T and B; () for numbers of tokens, which
            an embedding reads. If None, it is that of the first module that has a size.

    Returns:
        The cell. Of a parameter that is replaced by another object, the cell learns by `Stream.refresh`.

    Raises:
        AnyRNNError: for a bidirectional layer, for a model that looks at several steps at once (a convolution over
            time, the mean over all steps, the last step alone), that reads the final state or begins with one, or
            that `torch.fx` cannot trace. The message says which.

    Example:
        >>> import torch, anyrnn
        >>> class Tagger(torch.nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.embedding, self.rnn = torch.nn.Embedding(10, 4), torch.nn.LSTM(4, 8, num_layers=2)
        ...         self.head = torch.nn.Linear(8, 3)
        ...     def forward(self, tokens):
        ...         output, _ = self.rnn(self.embedding(tokens))
        ...         return self.head(torch.relu(output))
        >>> model, tokens = Tagger(), torch.tensor([[3], [1], [4]])
        >>> stream = anyrnn.stepwise(model).stream(batch=1)
        >>> for t in range(3):
        ...     stream.x[:] = tokens[t]
        ...     stream.step()
        >>> torch.allclose(stream.y, model(tokens)[-1], atol=1e-6)
        True
    """
    if not isinstance(model, nn.Module):
        msg = f"stepwise: got a {type(model).__name__}, expected a model, an nn.Module"
        raise AnyRNNError(msg)
    name = type(model).__name__
    if _is_recurrent(model):
        model = nn.Sequential(model)  # torch.fx takes no model for a single node
    try:
        with _in_evaluation(model):
            traced = _Tracing(model, name).traced()
            size = _input_size(traced, input_size)
            cell = Stepwise(traced, size)
            _check_stepwise(model, traced, cell)
    except AnyRNNError as reason:
        msg = f"stepwise({name}): {reason}"
        raise AnyRNNError(msg) from reason.__cause__
    return cell


@dataclass(frozen=True)
class _Traced:
    """A model, traced.

    Attributes:
        name: Its class.
        function: One step: (cell, x, *states) to the output and a list of new states.
        sequence: The model as it is, from sequence to sequence.
        layers: The recurrent layers, by the name that their step has in the cell.
        attributes: The other modules, parameters and tensors that the function reads, by name.
        modules: The modules that are called, in order.
        reads_tokens: What reads x is an embedding, so that it is whole numbers.
        batch_first: Sequences are (B, T, ...).
    """

    name: str
    function: Callable[..., tuple[Tensor, list[Tensor]]]
    sequence: Callable[[Tensor], Tensor]
    layers: list[tuple[str, Layer]]
    attributes: dict[str, Any]
    modules: list[nn.Module]
    reads_tokens: bool
    batch_first: bool


class _Tracing:
    """The graph of a model, and the functions made of it."""

    def __init__(self, model: nn.Module, name: str) -> None:
        self.model, self.name = model, name
        self.graph = _graph_of(model)
        self._names: dict[str, str] = {}
        x, *others = [node for node in self.graph.nodes if node.op == "placeholder"]
        if others:
            msg = f"its forward takes {', '.join(node.target for node in (x, *others))}, expected x alone"
            raise AnyRNNError(msg)
        self.x = x
        self.recurrent: dict[fx.Node, Layer] = {}
        for node in self.graph.nodes:
            module = model.get_submodule(str(node.target)) if node.op == "call_module" else None
            if module is not None and _is_recurrent(module):
                self.recurrent[node] = self._layer(node, module)
        if not self.recurrent:
            msg = "it has no recurrent layer, so that there is no state: run it on the steps as it is"
            raise AnyRNNError(msg)
        if len({layer.batch_first for layer in self.recurrent.values()}) > 1:
            msg = "some of its recurrent layers are batch first and some are not, expected all alike"
            raise AnyRNNError(msg)
        if len({id(model.get_submodule(str(node.target))) for node in self.recurrent}) < len(self.recurrent):
            msg = "it calls a recurrent layer twice, whose state would be two"
            raise AnyRNNError(msg)
        self._as_sequences()

    def traced(self) -> _Traced:
        """The model, traced."""
        from torch import fx  # noqa: PLC0415 - it takes time to import

        modules = {n: self.model.get_submodule(str(n.target)) for n in self.graph.nodes if n.op == "call_module"}
        reads_tokens = any(isinstance(m, nn.Embedding) and self.x in n.all_input_nodes for n, m in modules.items())
        layers = [(self._name(node.target), layer) for node, layer in self.recurrent.items()]
        sequence = fx.GraphModule(self.model, self.graph)
        attributes = {}
        for node in self.graph.nodes:
            if node not in self.recurrent and node.op in ("call_module", "get_attr"):
                attributes[self._name(node.target)] = _attribute(self.model, node.target)
        batch_first = next(iter(self.recurrent.values())).batch_first
        return _Traced(
            self.name, self._step_function(), sequence, layers, attributes, [*modules.values()], reads_tokens,
            batch_first,
        )  # fmt: skip

    def _name(self, target: Any) -> str:
        """The name that a module or tensor of the model has in the cell."""
        if target not in self._names:
            name = target.replace(".", "_")
            name = name if name.isidentifier() else f"part{name}"  # those of an nn.Sequential are numbers
            while name in self._names.values() or hasattr(Stepwise, name) or name in _TAKEN:
                name += "_"
            self._names[target] = name
        return self._names[target]

    def _layer(self, node: fx.Node, module: nn.Module) -> Layer:
        """The recurrent layer of a node, checked."""
        try:
            layer = as_layer(module)
        except AnyRNNError as reason:
            msg = f"{node.target} is a {type(module).__name__} that is not known: {reason}"
            raise AnyRNNError(msg) from None
        if layer.bidirectional:
            msg = f"{node.target} is bidirectional: its output at a step depends on later x"
            raise AnyRNNError(msg)
        if [a for a in (*node.args[1:], *node.kwargs.values()) if a is not None]:
            msg = (
                f"{node.target} is given more than x, expected none: a stream begins with the layer's own initial state"
            )
            raise AnyRNNError(msg)
        if not layer.input_size and layer.input_size != ():
            msg = f"{node.target} does not know the size of its input before its first call; pass input_size= to it"
            raise AnyRNNError(msg)
        for k in range(layer.num_layers):
            signature = layer._signature(k)
            if signature.names is not None or not signature.settled:
                msg = (
                    f"{node.target} has cells with several outputs or a state of unknown structure, expected one output"
                )
                raise AnyRNNError(msg)
        return layer

    def _as_sequences(self) -> None:
        """Let recurrent layers give their output alone, and the model that of a tuple that is a sequence."""
        import operator  # noqa: PLC0415

        from torch import fx  # noqa: PLC0415

        (output,) = [node for node in self.graph.nodes if node.op == "output"]
        result = output.args[0]
        if isinstance(result, tuple | list) and result:
            output.args = (result[0],)
        elif not isinstance(result, fx.Node):
            kind = "dict" if isinstance(result, dict) else type(result).__name__
            msg = f"it returns a {kind}, expected a tensor, or a tuple with the output first"
            raise AnyRNNError(msg)
        _prune(self.graph)
        for node in self.recurrent:
            picks = [user for user in node.users if user.op == "call_function" and user.target is operator.getitem]
            if any(user.args[1] != 0 for user in picks):
                msg = f"it reads the final state of {node.target}, which a sequence has once, and a step has not"
                raise AnyRNNError(msg)
            others = [user for user in node.users if user not in picks]
            with self.graph.inserting_after(node):
                pick = self.graph.call_function(operator.getitem, (node, 0))
            for user in (*picks, *others):
                if user in picks:
                    user.replace_all_uses_with(pick)
                    self.graph.erase_node(user)
                else:
                    user.replace_input_with(node, pick)

    def _step_function(self) -> Callable[..., tuple[Tensor, list[Tensor]]]:
        """The function of one step, made from the same graph."""
        import operator  # noqa: PLC0415

        from torch import fx  # noqa: PLC0415

        graph, new = fx.Graph(), []
        values = {self.x: graph.placeholder("x")}
        states = {
            node: tuple(graph.placeholder(f"{self._name(node.target)}_{k}") for k in range(len(_sizes_of(layer))))
            for node, layer in self.recurrent.items()
        }
        for node in self.graph.nodes:
            if node.op == "placeholder":
                continue
            if node in self.recurrent:
                x = values[node.args[0]] if node.args else values[next(iter(node.kwargs.values()))]
                step = graph.call_module(self._name(node.target), (x, states[node]))
                values[node] = graph.call_function(operator.getitem, (step, 0))
                variables = graph.call_function(operator.getitem, (step, 1))
                new += [graph.call_function(operator.getitem, (variables, k)) for k in range(len(states[node]))]
            elif node.args and node.args[0] in self.recurrent:  # what `_as_sequences` has put behind each
                values[node] = values[node.args[0]]
            elif node.op == "output":
                graph.output((values[node.args[0]], new))
            else:
                values[node] = graph.node_copy(node, values.__getitem__)
                if node.op in ("call_module", "get_attr"):
                    values[node].target = self._name(node.target)
        module = nn.Module()
        for node in graph.nodes:
            if node.op == "call_module" and node.target not in module._modules:
                module.add_module(node.target, nn.Identity())
            if node.op == "get_attr":
                setattr(module, node.target, torch.zeros(()))
        return type(fx.GraphModule(module, graph)).forward


def _graph_of(model: nn.Module) -> fx.Graph:
    """The graph of a model, arguments with defaults left out."""
    import inspect  # noqa: PLC0415

    from torch import fx  # noqa: PLC0415

    class Tracer(fx.Tracer):
        def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
            return _is_recurrent(m) or super().is_leaf_module(m, module_qualified_name)

    parameters = inspect.signature(model.forward).parameters.values()
    optional = {p.name: p.default for p in parameters if p.default is not p.empty}
    try:
        graph = Tracer().trace(model, concrete_args=optional or None)
    except AnyRNNError:
        raise
    except Exception as cause:
        msg = f"torch.fx cannot trace it: {type(cause).__name__}: {str(cause).partition(chr(10))[0]}"
        raise AnyRNNError(msg) from cause
    for node in reversed(graph.nodes):  # what torch.fx adds for arguments that have their defaults
        is_check = node.op == "call_function" and getattr(node.target, "__name__", "") in ("_assert_is_none", "_assert")
        is_given = node.op == "placeholder" and node.args and not node.users
        if is_check or is_given:
            graph.erase_node(node)
    return graph


def _prune(graph: fx.Graph) -> None:
    """Take out what nothing reads; `torch.fx` would ask whether it has side effects, which a traced step has not."""
    for node in reversed(graph.nodes):
        if not node.users and node.op not in ("placeholder", "output"):
            graph.erase_node(node)


def _is_recurrent(module: nn.Module) -> bool:
    return isinstance(module, Layer | nn.RNNBase)


def _sizes_of(layer: Layer) -> tuple[Size, ...]:
    """The sizes of the state variables of all layers of a stack."""
    return tuple(size for k in range(layer.num_layers) for size in layer._signature(k).state_sizes)


def _one_step(layer: Layer) -> nn.Module:
    """The cells of a layer as one, with its present weights."""
    cells = [layer._cell(k, False) for k in range(layer.num_layers)]
    signatures = [layer._signature(k) for k in range(layer.num_layers)]
    parts = resting(cells, signatures, [layer._standing(s, training=False) for s in signatures])
    return _First(Stacked(*parts, layer._wiring, 0.0))


class _First(nn.Module):
    """A stack of cells, of whose outputs the first one counts."""

    def __init__(self, stack: Stacked) -> None:
        super().__init__()
        self.stack = stack

    def forward(self, x: Tensor, states: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Run a step."""
        (output, *_), new = self.stack(x, states)
        return output, new


def _initial(name: str, layers: Sequence[Layer], state: State | None, batch: int, like: Tensor) -> list[Tensor]:
    """The initial state variables of all layers."""
    states: Any = [state] if len(layers) == 1 else [None] * len(layers) if state is None else state
    if not isinstance(states, tuple | list) or len(states) != len(layers):
        msg = f"{name}: got a state of another form than a tuple of {len(layers)}, one for each recurrent layer"
        raise AnyRNNError(msg)
    x = like.new_zeros(1, batch, 1)
    pairs = zip(layers, states, strict=True)
    return [s for layer, own in pairs for each in layer._initial(own, batch, True, x, like.dtype) for s in each]


def _attribute(model: nn.Module, target: str) -> Any:
    value: Any = model
    for name in target.split("."):
        value = getattr(value, name)
    return value


def _register(module: nn.Module, name: str, value: Any) -> None:
    """Give a module a part of another one: a module, a parameter, or a tensor."""
    if isinstance(value, Tensor) and not isinstance(value, nn.Parameter):
        module.register_buffer(name, value)
    else:
        setattr(module, name, value)


def _input_size(traced: _Traced, given: Size | None) -> Size:
    """The size of x: what is given, or what the first module says that has a size; that it fits is seen later."""
    if given is not None:
        return size_of(shape_of(given))
    if traced.reads_tokens:
        return ()
    for module in traced.modules:
        for name in ("in_features", "input_size", "normalized_shape"):
            size = getattr(module, name, None)
            if isinstance(size, int | tuple) and size:
                return size_of(shape_of(size))
    msg = "no module of it tells the size of x; expected input_size="
    raise AnyRNNError(msg)


def _check_stepwise(model: nn.Module, traced: _Traced, cell: Stepwise) -> None:
    """Check on made-up numbers that the model gives for a sequence what the cell gives step by step."""
    like, size = placement(model), shape_of(cell.input_size)
    generator = torch.Generator().manual_seed(0)
    if not traced.reads_tokens:
        x = torch.randn(_T, _B, *size, generator=generator, dtype=torch.float32, device="cpu").to(like)
    else:
        most = min(m.num_embeddings for m in traced.modules if isinstance(m, nn.Embedding))
        x = torch.randint(most, (_T, _B, *size), generator=generator).to(like.device)
    with outside_inference_mode(), torch.no_grad():
        whole = _tried(
            f"on a sequence of x {size}", lambda: traced.sequence(x.transpose(0, 1) if traced.batch_first else x)
        )
        layers = [layer for _, layer in traced.layers]
        states = tuple(_initial(traced.name, layers, None, _B, like))
        outputs = []
        for row in x:
            output, states = _tried("for one step", functools.partial(cell, row, states))
            outputs.append(output)
    steps = torch.stack(outputs)
    whole = whole.transpose(0, 1) if traced.batch_first and whole.dim() > 1 else whole
    tolerance = torch.finfo(like.dtype).eps ** 0.5
    if whole.shape != steps.shape or not torch.allclose(whole, steps, tolerance, tolerance, equal_nan=True):
        got = (
            f"{tuple(whole.shape)} for {_T} steps of {_B} rows, where the steps together are {tuple(steps.shape)}"
            if whole.shape != steps.shape
            else "of other values"
        )
        msg = (
            f"its output for a sequence is not that of its steps one by one: it is {got}. It may look at several steps "
            f"at once (a convolution over time, a mean over all steps, the last step alone), count dimensions from the "
            f"front (in a step there is no T: write dim=-1), or draw random numbers"
        )
        raise AnyRNNError(msg)


def _tried(how: str, run: Callable[[], Any]) -> Any:
    try:
        return run()
    except Exception as cause:
        msg = (
            f"it fails {how}: {type(cause).__name__}: {str(cause).partition(chr(10))[0]}. Expected a model that "
            f"computes on (B, ...) what it does on each step of a sequence; dimensions count from the end (dim=-1)"
        )
        raise AnyRNNError(msg) from cause


@contextlib.contextmanager
def _in_evaluation(model: nn.Module) -> Iterator[None]:
    """Put a model into evaluation mode for a while."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
