"""Other ways to compute a recurrent layer, to measure ours beside: torch.nn, a Python loop, XLA's scan, ONNX Runtime.

Each is a `Contender`: the same weights, the same x, the same gradient of the output, the same results asked for. A
"forward" call returns the output and the final state; a "training" call the output and the gradients of x and of every
parameter. Which of them are there for a network, `bench.py` decides.
"""

import copy
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import repeat
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from anyrnn.cells import Cell
from anyrnn.engines.vendor import kernel_of
from anyrnn.errors import AnyRNNError
from anyrnn.layers import Layer
from anyrnn.protocol import Signature, shape_of

Run = Callable[[Tensor], tuple[Any, ...]]  # from x (T, B, I) to the output and the final state
Arrange = Callable[[list[Tensor]], list[Tensor]]  # from gradients of a module's parameters to those of anyrnn's layer

#: torch.nn's layer of a named network, and the cell of those that have one layer and one direction.
TORCH_LAYERS: Mapping[str, Callable[[int, int], nn.RNNBase]] = {
    "rnn": nn.RNN,
    "lstm": nn.LSTM,
    "gru": nn.GRU,
    "bilstm": partial(nn.LSTM, bidirectional=True),
    "lstm-2": partial(nn.LSTM, num_layers=2),
}
_TORCH_CELLS: Mapping[str | None, Callable[..., nn.Module]] = {
    "rnn_tanh": nn.RNNCell,
    "lstm": nn.LSTMCell,
    "gru": nn.GRUCell,
}

_TOLERANCE = 1e-3  # of the largest value: a thousand steps in float32, summed in another order, differ by 1e-4


@dataclass(frozen=True)
class Problem:
    """What every contender is given.

    Attributes:
        x: The input (T, B, I).
        upstream: The gradient of the output (T, B, O) that a training call starts from.
        lengths: The valid steps of each row (B,), or None if all are T.
    """

    x: Tensor
    upstream: Tensor
    lengths: Tensor | None = None

    @classmethod
    def draw(cls, T: int, B: int, I: int, O: int, *, ragged: bool = False) -> "Problem":  # noqa: E741
        """Draw x and the gradient from N(0, 1) and, if ragged, lengths uniformly from 1 to T; always the same ones."""
        generator = torch.Generator().manual_seed(0)
        x, upstream = (torch.randn(T, B, size, generator=generator) for size in (I, O))
        if not ragged:
            return cls(x, upstream)
        lengths = torch.randint(1, T + 1, (B,), generator=generator)
        # No loss looks at padding, so no gradient comes from there.
        return cls(x, upstream * valid_steps(lengths, T), lengths)


def valid_steps(lengths: Tensor, T: int) -> Tensor:
    """Return which steps are valid, (T, B, 1)."""
    return (torch.arange(T).unsqueeze(1) < lengths).unsqueeze(2)


@dataclass(frozen=True)
class Contender:
    """One way to compute a layer.

    Attributes:
        name: As shown in tables.
        calls: "forward" and, for one that can train, "training".
        tensors: From the kind of call and what it returned to tensors, in the order of those of `anyrnn`'s layer.
    """

    name: str
    calls: Mapping[str, Callable[[], Any]]
    tensors: Callable[[str, Any], list[Tensor]]


def check(ours: Contender, other: Contender) -> None:
    """Run both once and compare.

    Raises:
        AnyRNNError: if a result differs: what is computed twice differently is not worth a comparison of speed.
    """
    for kind, call in other.calls.items():
        expected = ours.tensors(kind, ours.calls[kind]())
        for number, (got, want) in enumerate(zip(other.tensors(kind, call()), expected, strict=False)):
            if got.numel() != want.numel():
                raise AnyRNNError(
                    f"{other.name} and {ours.name}: result {number} of a {kind} call has shapes {tuple(got.shape)} and "
                    f"{tuple(want.shape)}, expected equal ones"
                )
            error = float((got.detach().reshape(want.shape) - want.detach()).abs().max())
            if not error <= _TOLERANCE * max(1.0, float(want.detach().abs().max())):
                raise AnyRNNError(
                    f"{other.name} and {ours.name}: result {number} of a {kind} call differs by {error:.3g}, expected "
                    f"the same; a cell that draws random numbers, keeps a count or is chaotic cannot be compared"
                )


def contender(
    name: str,
    module: nn.Module,
    problem: Problem,
    prepare: Callable[[nn.Module], Run],
    arrange: Arrange = list,
) -> Contender:
    """Measure a PyTorch module.

    Args:
        name: As shown in tables.
        module: It owns the parameters.
        problem: What it is given.
        prepare: From the module, in training or in evaluation mode, to the function that is measured.
        arrange: Brings the gradients of `module.parameters()` into the order and form of those of anyrnn's layer.
    """
    # Two copies, since it is the module's mode that tells oneDNN not to write what only a backward pass reads.
    infer, train = prepare(copy.deepcopy(module).eval()), prepare(module.train())
    parameters = [p for p in module.parameters() if p.requires_grad]
    x = problem.x.clone().requires_grad_()

    def forward() -> object:
        with torch.no_grad():
            return infer(problem.x)

    def training() -> object:
        output = train(x)[0]
        return output, torch.autograd.grad(
            output, [x, *parameters], problem.upstream, allow_unused=True, materialize_grads=True
        )

    def tensors(kind: str, result: Any) -> list[Tensor]:
        if kind == "forward":
            return list(_flat(result))
        output, (x_grad, *grads) = result
        return [output, x_grad, *arrange(grads)]

    return Contender(name, {"forward": forward, "training": training}, tensors)


def ours(layer: Layer, problem: Problem, name: str = "anyrnn") -> Contender:
    """Measure a layer of anyrnn."""
    return contender(name, layer, problem, lambda module: partial(module, lengths=problem.lengths))


def torch_layer(twin: nn.RNNBase, layer: Layer, problem: Problem, name: str) -> Contender:
    """Measure torch.nn's layer with our weights; a ragged batch is packed for it, and its output padded again."""
    twin.load_state_dict(layer.state_dict())
    return contender(name, twin, problem, lambda module: module if problem.lengths is None else packed(module, problem))


def packed(module: nn.Module, problem: Problem) -> Run:
    """Return a function that packs the valid steps, runs a module of torch.nn, and pads its output."""

    def run(x: Tensor) -> tuple[Any, ...]:
        assert problem.lengths is not None
        rows = pack_padded_sequence(x, problem.lengths, enforce_sorted=False)
        output, state = module(rows)
        return pad_packed_sequence(output, total_length=len(x))[0], state

    return run


# ---- The same cell in a plain Python loop ----


def python_loop(layer: Layer, problem: Problem, name: str = "Python loop", arrange: Arrange = list) -> Contender:
    """Measure the cells of a layer in a loop over the steps, as one writes it by hand."""
    return contender(name, layer, problem, lambda module: loop(module, problem.lengths), arrange)


def compiled_loop(
    layer: Layer, problem: Problem, name: str = "torch.compile of the loop", arrange: Arrange = list
) -> Contender:
    """Measure that loop under `torch.compile`, which takes a minute to begin with, and a C++ compiler."""

    def prepare(module: nn.Module) -> Run:
        torch._dynamo.reset()  # else its limit of recompilations is reached, and it runs the loop as it is
        compiled = torch.compile(loop(module, problem.lengths), dynamic=False)

        def run(x: Tensor) -> tuple[Any, ...]:
            try:
                return compiled(x)
            except torch._dynamo.exc.TorchDynamoException as cause:  # no C++ compiler, for instance
                raise AnyRNNError(f"{name} failed: {str(cause).strip().splitlines()[0]}") from cause

        return run

    return contender(name, layer, problem, prepare, arrange)


def loop(layer: nn.Module, lengths: Tensor | None) -> Run:
    """Return a plain loop over the steps of every layer and direction, over padding too where there is any."""
    assert isinstance(layer, Layer)
    cells = [
        [(_plain_cell(layer.cell(k, d == 1)), layer._signature(k), d == 1) for d in range(layer.num_directions)]
        for k in range(layer.num_layers)
    ]

    def run(x: Tensor) -> tuple[Any, ...]:
        valid = None if lengths is None else valid_steps(lengths, len(x))
        finals = []
        for directions in cells:
            outputs = []
            for cell, signature, reverse in directions:
                output, state = _unroll(cell, signature, x, valid, reverse)
                outputs.append(output)
                finals.append(state)
            x = torch.cat(outputs, 2) if len(outputs) > 1 else outputs[0]
        return x, tuple(torch.stack(states) for states in zip(*finals, strict=True))

    return run


def _unroll(
    cell: Any, signature: Signature, x: Tensor, valid: Tensor | None, reverse: bool
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Call a cell step by step; where rows have ended (or, backwards, not begun) the state is kept by a mask."""
    states = tuple(x.new_zeros(x.shape[1], *shape_of(size)) for size in signature.state_sizes)
    steps = list(zip(x, repeat(None) if valid is None else valid))  # noqa: B905 - one of them may have no end
    outputs = []
    for x_t, now in reversed(steps) if reverse else steps:
        (output,), new = signature.step(cell, x_t, states)
        if now is not None:
            output = torch.where(now, output, 0.0)
            new = tuple(torch.where(now, n, s) for n, s in zip(new, states, strict=True))
        states = new
        outputs.append(output)
    return torch.stack(outputs[::-1] if reverse else outputs), states


def _plain_cell(cell: nn.Module) -> Callable[..., Any]:
    """The cell, as somebody would put it in a loop: torch.nn's where there is one, else only the equations."""
    twin_type = _TORCH_CELLS.get(kernel_of(cell))
    if not isinstance(cell, Cell):
        return cell
    if twin_type is None or getattr(cell, "weight_hr", None) is not None:
        return cell.step  # without the checks of a call
    twin = twin_type(cell.input_size, cell.hidden_size, bias=cell.bias, device="meta")
    for name, parameter in cell.named_parameters():
        setattr(twin, name, parameter)
    return twin


def _flat(value: Any) -> Iterable[Tensor]:
    return (value,) if isinstance(value, Tensor) else (t for part in value for t in _flat(part))


# ---- Packages beside PyTorch. The gates are those of torch.nn: LSTM i f g o, GRU r z n ----


def xla_scan(kind: str, layer: Layer, problem: Problem, threads: int, name: str = "XLA scan (JAX)") -> Contender:
    """Measure `jax.lax.scan`, compiled by XLA, in the form of `flax.linen.RNN`.

    The product with x is a part of the step and weights are (in, out), as there. (The product taken out of the scan,
    and an unrolled scan, were slower on most shapes.) There is one bias a gate, where a second is redundant.
    """
    jax = _jax(threads)
    jnp = jax.numpy
    weights = {key: value.detach().numpy() for key, value in layer.state_dict().items()}
    H = weights["weight_hh_l0"].shape[1]
    W, U = (jnp.array(np.ascontiguousarray(weights[f"weight_{side}_l0"].T)) for side in ("ih", "hh"))
    b_ih, b_hh = weights["bias_ih_l0"], weights["bias_hh_l0"]
    inner = b_hh[2 * H :] if kind == "gru" else b_hh[:0]  # the part of b_hh that the reset gate multiplies
    outer = b_ih + (np.concatenate([b_hh[: 2 * H], 0 * inner]) if kind == "gru" else b_hh)
    parameters = (W, U, jnp.array(outer), jnp.array(inner))

    def rnn(p: Any, state: Any, x: Any) -> Any:
        h = jnp.tanh(x @ p[0] + state[0] @ p[1] + p[2])
        return (h,), h

    def lstm(p: Any, state: Any, x: Any) -> Any:
        h, c = state
        i, f, g, o = jnp.split(x @ p[0] + h @ p[1] + p[2], 4, axis=1)
        c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
        h = jax.nn.sigmoid(o) * jnp.tanh(c)
        return (h, c), h

    def gru(p: Any, state: Any, x: Any) -> Any:
        (h,) = state
        (r, z, n), (u_r, u_z, u_n) = jnp.split(x @ p[0] + p[2], 3, axis=1), jnp.split(h @ p[1], 3, axis=1)
        r, z = jax.nn.sigmoid(r + u_r), jax.nn.sigmoid(z + u_z)
        h = (1 - z) * jnp.tanh(n + r * (u_n + p[3])) + z * h
        return (h,), h

    step = {"rnn": rnn, "lstm": lstm, "gru": gru}[kind]

    def scan(p: Any, x: Any) -> Any:
        zeros = (jnp.zeros((x.shape[1], H), jnp.float32),) * (2 if kind == "lstm" else 1)
        state, output = jax.lax.scan(partial(step, p), zeros, x)
        return output, state

    def gradients(p: Any, x: Any, upstream: Any) -> Any:
        output, pull = jax.vjp(lambda p, x: scan(p, x)[0], p, x)
        return output, pull(upstream)

    x, upstream = jnp.array(problem.x.numpy()), jnp.array(problem.upstream.numpy())
    forward, training = jax.jit(scan), jax.jit(gradients)

    def tensors(called: str, result: Any) -> list[Tensor]:
        if called == "forward":
            return [torch.tensor(np.asarray(a)) for a in jax.tree.leaves(result)]
        output, ((dW, dU, d_outer, d_inner), dx) = result
        d_hh = np.concatenate([d_outer[: 2 * H], d_inner]) if kind == "gru" else d_outer
        return [torch.tensor(np.asarray(a)) for a in (output, dx, dW.T, dU.T, d_outer, d_hh)]

    calls = {
        "forward": lambda: jax.block_until_ready(forward(parameters, x)),
        "training": lambda: jax.block_until_ready(training(parameters, x, upstream)),
    }
    return Contender(name, calls, tensors)


def _jax(threads: int) -> Any:
    """Import JAX with a number of threads, which it reads from the environment once a process."""
    wanted = {"NPROC": str(threads), "JAX_PLATFORMS": "cpu"}
    if "jax" not in sys.modules:
        os.environ.update(wanted)
    elif any(os.environ.get(key) != value for key, value in wanted.items()):
        raise AnyRNNError(
            f"XLA scan: jax was imported before, and keeps the number of threads that it found then; start a new "
            f"process, or set NPROC={threads} and JAX_PLATFORMS=cpu before the import"
        )
    import jax  # noqa: PLC0415 - an optional package

    return jax


def onnx_runtime(kind: str, layer: Layer, problem: Problem, threads: int, name: str = "ONNX Runtime") -> Contender:
    """Measure ONNX Runtime's LSTM, GRU or RNN, which has no backward pass."""
    import onnxruntime  # noqa: PLC0415 - an optional package

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    model = onnx_model(kind, {key: value.detach().numpy() for key, value in layer.state_dict().items()})
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    feeds = {"x": problem.x.numpy()}
    calls = {"forward": lambda: session.run(None, feeds)}
    return Contender(name, calls, lambda _, result: [torch.tensor(array) for array in result])


def onnx_model(kind: str, weights: Mapping[str, np.ndarray[Any, Any]]) -> bytes:
    """Make a model of one LSTM, GRU or RNN node, from torch.nn's weights of one layer and direction."""
    from onnx import TensorProto, helper, numpy_helper  # noqa: PLC0415 - an optional package

    # ONNX orders the gates i o f c and z r h.
    order = {"rnn": (0,), "lstm": (0, 3, 1, 2), "gru": (1, 0, 2)}[kind]

    def reordered(key: str) -> np.ndarray[Any, Any]:
        blocks: Sequence[np.ndarray[Any, Any]] = np.split(weights[f"{key}_l0"], len(order))
        return np.concatenate([blocks[k] for k in order])

    arrays = {
        "W": reordered("weight_ih")[None],
        "R": reordered("weight_hh")[None],
        "B": np.concatenate([reordered("bias_ih"), reordered("bias_hh")])[None],
    }
    outputs = ["y", "y_h", "y_c"] if kind == "lstm" else ["y", "y_h"]
    options = {"linear_before_reset": 1} if kind == "gru" else {}
    H = weights["weight_hh_l0"].shape[1]
    node = helper.make_node(kind.upper(), ["x", *arrays], outputs, hidden_size=H, **options)
    values = {
        key: helper.make_tensor_value_info(key, TensorProto.FLOAT, None) for key in ("x", *outputs)
    }  # shapes are left open
    graph = helper.make_graph(
        [node], kind, [values["x"]], [values[key] for key in outputs],
        [numpy_helper.from_array(array, key) for key, array in arrays.items()],
    )  # fmt: skip
    # The oldest version that has these nodes as they are here: every ONNX Runtime reads it.
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 14)], ir_version=8)
    return bytes(model.SerializeToString())
