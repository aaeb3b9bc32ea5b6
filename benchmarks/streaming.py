"""One step at a time, batch 1: what a step costs from Python, beside others that step and the machine code itself.

A turn of each contender times single calls; p50 and p99 are over the calls of all turns. "machine code" is the same
program for many steps in one call of the kernel, by the step: what a stream would take if the call cost nothing.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import nn

import anyrnn
import record
from anyrnn.runtime.layout import layout
from record import Claim, claims_table, table, verdict

Row = dict[str, Any]  # kind, H, contender, p50, p99: microseconds

KINDS, SIZES = ("LSTM", "GRU"), (16, 64, 128)
LIMIT = 2.0  # microseconds that a call may cost beside the machine code
STEPS = 100  # of a call of the bare kernel


def stepped(layer: nn.Module) -> Callable[[], object]:
    """A step of a stream."""
    stream = layer.stream()
    stream.x.normal_()
    return stream.step


def with_numpy(layer: nn.Module) -> Callable[[], object]:
    """The same with new input, and the output read, as a program would."""
    stream = layer.stream()
    x, y, new = stream.x.numpy(), stream.y.numpy(), np.random.randn(1, layer.input_size).astype(np.float32)

    def step() -> float:
        x[:] = new
        stream.step()
        return y[0, 0]

    return step


def bare(layer: nn.Module) -> Callable[[], object]:
    """The machine code of the stream for many steps at once."""
    steps = layer.stream()._steps
    loop, kernel = steps._step.loop, steps._step.loop.kernel("step", steps.states[0], steps._backend)
    arrays = {**steps._arrays, **steps._constants(layer._cell(0, False))}
    for array in steps._step.split.program.of("stream"):
        arrays[array.name] = torch.randn(STEPS, 1, array.width)
    for array in steps._step.split.program.of("output"):
        arrays[array.name] = torch.empty(STEPS, 1, array.width)
    return kernel.repeated(layout(STEPS, 1, None, False), arrays, loop.transposed).launch


def torch_cell(layer: nn.Module) -> Callable[[], object]:
    """A step of torch.nn's cell."""
    kind = type(layer).__name__
    cell = getattr(nn, f"{kind}Cell")(layer.input_size, layer.hidden_size)
    state: Any = torch.zeros(1, layer.hidden_size)
    x, state = torch.randn(1, layer.input_size), (state, state) if kind == "LSTM" else state

    def step() -> None:
        nonlocal state
        with torch.inference_mode():
            state = cell(x, state)

    return step


def called(layer: nn.Module) -> Callable[[], object]:
    """A call of the layer with one step."""
    x, (_, state) = torch.randn(1, 1, layer.input_size), layer(torch.zeros(1, 1, layer.input_size))

    def step() -> None:
        nonlocal state
        with torch.no_grad():
            _, state = layer(x, state)

    return step


def onnxruntime(layer: nn.Module) -> Callable[[], object] | None:
    """A step of ONNX Runtime: a model of one node, whose state is fed back; None if it is not installed."""
    try:
        import onnxruntime as ort  # noqa: PLC0415
        from onnx import TensorProto, helper, numpy_helper  # noqa: PLC0415
    except ImportError:
        return None
    kind, H, size = type(layer).__name__, layer.hidden_size, layer.input_size
    gates = 4 if kind == "LSTM" else 3
    rng = np.random.default_rng(0)
    weights = {"W": (1, gates * H, size), "R": (1, gates * H, H), "B": (1, 2 * gates * H)}
    made = {n: rng.uniform(-0.1, 0.1, shape).astype(np.float32) for n, shape in weights.items()}
    states = ["h", "c"] if kind == "LSTM" else ["h"]
    news = [f"new_{s}" for s in states]
    options = {} if kind == "LSTM" else {"linear_before_reset": 1}
    node = helper.make_node(kind, ["x", "W", "R", "B", "", *states], ["y", *news], hidden_size=H, **options)

    def form(name: str, shape: tuple[int, ...]) -> Any:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)

    graph = helper.make_graph(
        [node], "step", [form("x", (1, 1, size)), *(form(s, (1, 1, H)) for s in states)],
        [form("y", (1, 1, 1, H)), *(form(s, (1, 1, H)) for s in news)],
        [numpy_helper.from_array(a, n) for n, a in made.items()],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 10
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = ort.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])
    feed = {"x": rng.standard_normal((1, 1, size)).astype(np.float32)}
    feed |= {s: np.zeros((1, 1, H), np.float32) for s in states}
    names = ["y", *news]

    def step() -> None:
        _, *new = session.run(names, feed)
        feed.update(zip(states, new, strict=True))

    return step


CONTENDERS: dict[str, Callable[[nn.Module], Callable[[], object] | None]] = {
    "stream.step()": stepped,
    "stream, x written, y read": with_numpy,
    "layer(x, state)": called,
    "torch.nn's cell": torch_cell,
    "ONNX Runtime": onnxruntime,
}
BARE = "machine code"


def times(call: Callable[[], object], count: int) -> list[int]:
    """Nanoseconds of single calls."""
    clock, found = time.perf_counter_ns, []
    for _ in range(count):
        start = clock()
        call()
        found.append(clock() - start)
    return found


def measure(rounds: int, count: int) -> Iterator[Row]:
    """Measure all contenders in turns."""
    torch.set_num_threads(1)
    for kind in KINDS:
        for H in SIZES:
            layer = getattr(anyrnn, kind)(H, H)
            calls = {name: make(layer) for name, make in CONTENDERS.items()}
            calls = {name: call for name, call in calls.items() if call is not None}
            found: dict[str, list[float]] = {name: [] for name in (*calls, BARE, "clock")}
            kernel = bare(layer)
            for _ in range(rounds):
                for name, call in calls.items():
                    times(call, 200)
                    found[name] += times(call, count)
                times(kernel, 2)
                found[BARE] += [t / STEPS for t in times(kernel, max(10, count // STEPS))]
                found["clock"] += times(int, count)
            clock = statistics.median(found.pop("clock"))  # what it takes to look twice, and to call what does nothing
            for name, each in found.items():
                less = 0 if name == BARE else clock
                p50, p99 = ((float(np.percentile(each, q)) - less) / 1000 for q in (50, 99))
                yield {"kind": kind, "H": H, "contender": name, "p50": p50, "p99": p99}


def claims(rows: list[Row]) -> Iterator[Claim]:
    """What a call costs beside the machine code."""
    found = {(r["kind"], r["H"], r["contender"]): r for r in rows}
    for kind in KINDS:
        for H in SIZES:
            own, code = found[kind, H, "stream.step()"], found[kind, H, BARE]
            for q, limit in (("p50", LIMIT), ("p99", None)):
                yield Claim(kind, str(H), f"call, {q}", own[q] - code["p50"], limit, at_most=True, unit=" µs")


def text(data: dict[str, Any]) -> Iterator[str]:
    """Make the section of results.md."""
    found = list(claims(data["rows"]))
    yield "## Streaming"
    yield f"`python benchmarks/streaming.py` took {data['took']} s, one thread. {verdict(found)}"
    yield "### A step with batch 1, µs: p50 / p99"
    names = list(dict.fromkeys(r["contender"] for r in data["rows"]))
    cells = {(r["kind"], r["H"], r["contender"]): f"{r['p50']:.2f} / {r['p99']:.2f}" for r in data["rows"]}
    keys = list(dict.fromkeys((r["kind"], r["H"]) for r in data["rows"]))
    yield table(("", "units", *names), [(k, str(H), *(cells.get((k, H, n), "-") for n in names)) for k, H in keys])
    yield "### What a step costs beside the p50 of the machine code"
    yield claims_table(found, ("", "units"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=10, help="turns of each contender")
    parser.add_argument("--calls", type=int, default=2000, help="of each contender and turn")
    parser.add_argument("--print", action="store_true", help="print, and write nothing")
    arguments = parser.parse_args()
    start = time.monotonic()
    rows = list(measure(arguments.rounds, arguments.calls))
    data = {"took": round(time.monotonic() - start), "rows": rows}
    if arguments.print:
        print("\n\n".join(text(data)))
    else:
        record.write("streaming", data)


if __name__ == "__main__":
    main()
