"""The gain over public projects' own loops: `python benchmarks/strangers.py`, one thread, a table in Markdown.

`STRANGERS` says how each cell of `strangers_cells.py` is run: unchanged, by at most one line for its step. Each layer
and the loop of its project take turns, `anyrnn.workbench.bench.alternate` being the clock.
"""

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from torch.utils._pytree import tree_leaves

import anyrnn
import strangers_cells as cells
from anyrnn.workbench import bench


class Sizes(NamedTuple):
    """The sizes of a call: steps, rows, features, units, and places of a memory."""

    T: int
    B: int
    I: int
    H: int
    S: int


Shapes = tuple[int | tuple[int, ...], ...]
Extras = tuple[Any, ...] | dict[str, Any]


def units(count: int) -> Callable[[Sizes], Shapes]:
    """So many states (B, H)."""
    return lambda n: (n.H,) * count


def nothing(_: Sizes) -> Extras:
    return ()


@dataclass(frozen=True)
class Stranger:
    """A cell of a public project, and how it is run.

    Attributes:
        make: The module, of sizes.
        loop: The loop of its users: (module, x, state, *inputs, *context) to (outputs, final state).
        states: The sizes of its states, without the batch.
        x: The shape of x, without time and batch.
        inputs: What else a step gets, (T, B, ...).
        context: What it gets that is the same at every step, (B, ...), or `anyrnn.shared`.
        options: Arguments of `anyrnn.Recurrent`, such as its step.
        before: What its module makes of x before the loop, which a step then reads.
        reads: The shape of that, where it is another one.
        engine: The engine that is to run it.
        usual: I and H as the project uses them.
        small: I and H for tests.
        start: The initial states, of drawn ones.
    """

    make: Callable[[Sizes], nn.Module]
    loop: Callable[..., tuple[Any, Any]]
    states: Callable[[Sizes], Shapes] = lambda n: (n.H,)
    x: Callable[[Sizes], tuple[int, ...]] = lambda n: (n.I,)
    inputs: Callable[[Sizes], Extras] = nothing
    context: Callable[[Sizes], Extras] = nothing
    options: Callable[[Sizes], dict[str, Any]] = lambda _: {}
    before: Callable[[Any, Tensor], Tensor] = lambda _, x: x
    reads: Callable[[Sizes], tuple[int, ...]] | None = None
    engine: str = "cpu"
    usual: tuple[int, int] = (64, 128)
    small: tuple[int, int] = (3, 4)
    start: Callable[[list[Tensor]], list[Tensor]] = list

    def layer(self, n: Sizes, model: nn.Module | None = None, **options: Any) -> anyrnn.Recurrent:
        """The layer of anyrnn."""
        shape = (self.reads or self.x)(n)
        size = shape[0] if len(shape) == 1 else shape
        cell = (lambda _: self.make(n)) if model is None else model
        return anyrnn.Recurrent(cell, size, **self.options(n), **options)

    def drawn(self, n: Sizes) -> list[Tensor]:
        """Initial states (B, ...)."""
        return self.start([torch.randn(n.B, *((s,) if isinstance(s, int) else s)) for s in self.states(n)])


def mask(*shape: int) -> Tensor:
    return (torch.rand(*shape) > 0.3).to(torch.get_default_dtype())


def gaps(*shape: int) -> Tensor:
    return torch.rand(*shape) + 0.1


def adjacency(count: int) -> Tensor:
    """The weights of a graph between all nodes."""
    return torch.rand(count, count) / count + torch.eye(count)


def laplacian(count: int) -> Tensor:
    """The scaled Laplacian of such a graph, whose eigenvalues are from -1 to 1."""
    A = adjacency(count)
    A = A + A.T
    root = A.sum(1).rsqrt()
    return -root.unsqueeze(1) * A * root


def packed(model: nn.Module, x: Tensor, state: Any, mask: Tensor) -> tuple[Tensor, Any]:
    """Run stanza's loop on a batch without padding."""
    output, final = cells.lstm_with_dropout(model, pack_padded_sequence(x, [len(x)] * x.shape[1]), state, mask)  # type: ignore[arg-type]
    return pad_packed_sequence(output)[0], final


def seven(n: Sizes) -> Shapes:
    return n.H, n.H, n.H, n.H, n.S, n.S, n.I


def tacotron(filters: int, engine: str) -> Stranger:
    return Stranger(
        lambda n: cells.TacotronDecoder(n.I, n.H, n.I, filters),
        cells.tacotron,
        states=seven,
        context=lambda n: (torch.randn(n.B, n.S, n.I),),
        options=lambda n: {
            "step": lambda m, x, s, memory: m.decode(x, s, memory, m.attention.memory(memory)),
            "state_sizes": seven(n),
        },
        engine=engine,
        usual=(64, 128),
    )


STRANGERS: dict[str, Stranger] = {
    "neuralhydrology CustomLSTM": Stranger(
        lambda n: cells.CustomLSTM(n.I, n.H),
        cells.custom_lstm,
        units(2),
        options=lambda n: {
            "step": lambda m, x, s: ((found := m(x, *s)), (found["h_n"], found["c_n"])),
            "state_sizes": (n.H, n.H),
        },
        usual=(5, 64),
    ),
    "neuralhydrology EALSTM": Stranger(
        lambda n: cells.EALSTM(n.I, n.H, 2 * n.I),
        cells.ealstm,
        units(2),
        context=lambda n: (torch.randn(n.B, 2 * n.I),),
        options=lambda n: {
            "step": lambda m, x, s, static: m.recurrence(x, *s, torch.sigmoid(m.input_gate(static))),
            "state_sizes": (n.H, n.H),
        },
        usual=(5, 128),
    ),
    "neuralhydrology MCLSTM": Stranger(
        lambda n: cells.MCLSTM(n.I, 2, n.H),
        cells.mclstm,
        inputs=lambda n: (torch.randn(n.T, n.B, 2),),
        usual=(1, 64),
    ),
    "ODE-LSTM": Stranger(
        lambda n: cells.ODELSTM(n.I, n.H, unfolds=3 if n.H > 16 else 1),
        cells.odelstm,
        units(2),
        inputs=lambda n: (gaps(n.T, n.B),),
        usual=(16, 64),
    ),
    "ncps CfC": Stranger(
        lambda n: cells.CfC(n.I, n.H, n.H + 1), cells.cfc, inputs=lambda n: (gaps(n.T, n.B),), usual=(16, 64)
    ),
    "ncps LTC": Stranger(
        lambda n: cells.LTC(n.I, n.H, 2),
        cells.ltc,
        inputs=lambda n: (gaps(n.T, n.B, 1),),
        usual=(8, 16),
        small=(2, 16),
    ),
    "GRU-D": Stranger(
        lambda n: cells.GRUD(n.I, n.H),
        cells.grud,
        lambda n: (n.H, n.I),
        inputs=lambda n: {"mask": mask(n.T, n.B, n.I), "delta": gaps(n.T, n.B, n.I)},
        options=lambda n: {"state_sizes": (n.H, n.I)},
        usual=(32, 64),
    ),
    "T-LSTM": Stranger(
        lambda n: cells.TimeAwareLSTM(n.I, n.H),
        cells.at_times,
        units(2),
        inputs=lambda n: (gaps(n.T, n.B, 1),),
        options=lambda n: {"state_sizes": (n.H, n.H)},
        usual=(32, 64),
    ),
    "Phased LSTM": Stranger(
        lambda n: cells.PhasedLSTM(n.I, n.H), cells.at_times, units(2), inputs=lambda n: (gaps(n.T, n.B, 1).cumsum(0),)
    ),
    "speechbrain LiGRU": Stranger(
        lambda n: cells.LiGRU(n.I, n.H),
        cells.ligru,
        reads=lambda n: (2 * n.H,),
        context=lambda n: (mask(n.B, n.H),),
        options=lambda _: {"step": cells.LiGRU.step},
        before=cells.LiGRU.gates,
    ),
    "stanza LSTMwRecDropout": Stranger(
        lambda n: cells.LSTMwRecDropout(n.I, n.H), packed, units(2), context=lambda n: (mask(n.B, n.H),)
    ),
    "haste LayerNormLSTM, zoneout": Stranger(
        lambda n: cells.LayerNormLSTM(n.I, n.H),
        cells.at_times,
        units(2),
        inputs=lambda n: (mask(n.T, n.B, n.H),),
        options=lambda n: {"state_sizes": (n.H, n.H)},
    ),
    "xlstm sLSTM, 4 heads": Stranger(
        lambda n: cells.SLSTM(n.I, n.H),
        cells.with_states,
        units(4),
        small=(3, 8),
        start=lambda s: [s[0], s[1], s[2].abs() + 0.5, s[3]],
    ),
    "LMU": Stranger(
        lambda n: cells.LMU(n.I, n.H, max(n.H // 16, 3)),
        cells.with_states,
        lambda n: (n.H, max(n.H // 16, 3)),
        options=lambda n: {"state_sizes": (n.H, max(n.H // 16, 3))},
        usual=(1, 128),
    ),
    "coRNN": Stranger(
        lambda n: cells.CoRNN(n.I, n.H),
        cells.two_states,
        units(2),
        options=lambda n: {"state_sizes": (n.H, n.H)},
        usual=(1, 128),
    ),
    "LEM": Stranger(
        lambda n: cells.LEM(n.I, n.H),
        cells.two_states,
        units(2),
        options=lambda n: {"state_sizes": (n.H, n.H)},
        usual=(1, 128),
    ),
    "expRNN": Stranger(lambda n: cells.ExpRNN(n.I, n.H), cells.exprnn, usual=(1, 128)),
    "snntorch, two layers of Leaky": Stranger(
        lambda n: cells.SpikingNet(n.I, n.H),
        cells.spiking_net,
        units(2),
        options=lambda n: {"state_sizes": (n.H, n.H)},
    ),
    "norse LIFRecurrentCell": Stranger(lambda n: cells.LIFRecurrentCell(n.I, n.H), cells.lif, units(3)),
    "GConvGRU": Stranger(
        lambda n: cells.GConvGRU(laplacian(20 if n.H > 16 else 5), n.I, n.H),
        cells.on_graph,
        lambda n: ((20 if n.H > 16 else 5, n.H),),
        x=lambda n: (20 if n.H > 16 else 5, n.I),
        options=lambda n: {"state_sizes": torch.Size([20 if n.H > 16 else 5, n.H])},
        usual=(2, 32),
    ),
    "DCRNN": Stranger(
        lambda n: cells.DCRNN(n.I, n.H),
        cells.on_graph,
        lambda n: ((20 if n.H > 16 else 5, n.H),),
        x=lambda n: (20 if n.H > 16 else 5, n.I),
        context=lambda n: (anyrnn.shared(adjacency(20 if n.H > 16 else 5)),),
        options=lambda n: {"state_sizes": torch.Size([20 if n.H > 16 else 5, n.H])},
        usual=(2, 32),
    ),
    "ConvLSTM": Stranger(
        lambda n: cells.ConvLSTM(n.I, n.H),
        cells.at_images,
        lambda n: ((n.H, 4, 3),) * 2,
        x=lambda n: (n.I, 4, 3),
        options=lambda n: {"state_sizes": ((n.H, 4, 3),) * 2},
        engine="reference",
        usual=(1, 16),
    ),
    "Tacotron 2 decoder, no convolution": tacotron(0, "cpu"),
    "Tacotron 2 decoder": tacotron(4, "reference"),
    "OpenNMT input-feed decoder": Stranger(
        lambda n: cells.InputFeedDecoder(n.I, n.H),
        cells.input_feed,
        lambda n: ((2, n.H), (2, n.H), n.H),
        context=lambda n: (torch.randn(n.B, n.S, n.H),),
        options=lambda n: {"state_sizes": ((2, n.H), (2, n.H), n.H)},
    ),
}

#: A spike is 0 or 1: after a hundred steps in float32 one that was near its threshold may be another. Tests compare
#: them in float64.
SPIKING = ("snntorch, two layers of Leaky", "norse LIFRecurrentCell")


# ---- Measuring ----

Call = Callable[[], object]


def calls_of(stranger: Stranger, n: Sizes) -> tuple[str, dict[str, dict[str, Call]]]:
    """The engine of a stranger's layer; and by kind of call, the calls of its users' loop and of the layer."""
    torch.manual_seed(0)
    model = stranger.make(n)
    layer = stranger.layer(n, model)
    x = stranger.before(model, torch.randn(n.T, n.B, *stranger.x(n))).detach()
    inputs, context = stranger.inputs(n), stranger.context(n)
    given = [*(inputs.values() if isinstance(inputs, dict) else inputs), *context]
    extras = [getattr(extra, "tensor", extra) for extra in given]
    states = [torch.zeros_like(s) for s in stranger.drawn(n)]
    state = states[0] if len(states) == 1 else tuple(states)
    weights = list(model.parameters())
    engine = anyrnn.explain(layer, x, inputs=inputs or None, context=context or None).parts[0].engine

    def ours() -> Any:
        return layer(x, inputs=inputs or None, context=context or None)[0]

    def theirs() -> Any:
        return stranger.loop(model, x, state, *extras)[0]

    def forward(run: Call) -> list[Tensor]:
        with torch.no_grad():
            return tree_leaves(run())

    def training(run: Call) -> list[Tensor]:
        x.requires_grad_()
        total = sum(t.sum() for t in tree_leaves(run()))
        grads = torch.autograd.grad(total, [x, *weights], allow_unused=True)
        return [torch.zeros(()) if g is None else g for g in grads]

    kinds = {"forward": forward, "training": training}
    return engine, {
        kind: {"theirs": partial(call, theirs), "ours": partial(call, ours)} for kind, call in kinds.items()
    }


def check(name: str, first: list[Tensor], second: list[Tensor]) -> None:
    """See that outputs or gradients agree: to float32's rounding, which a long loop makes larger."""
    for a, b in zip(first, second, strict=True):
        difference = (a - b).abs().max() / max(1.0, float(b.abs().max()))
        if difference > 1e-2:
            sys.exit(f"{name}: they differ by {difference:.1e}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=0.5, help="for each loop and kind of call, about")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each, at least 2")
    parser.add_argument("--only", nargs="+", default=list(STRANGERS), choices=STRANGERS, help="some of the projects")
    arguments = parser.parse_args()
    print("| project | I, H | engine | forward | forward + backward |\n| --- | --- | --- | --- | --- |")
    with bench.using(1):
        for name in arguments.only:
            stranger = STRANGERS[name]
            sizes = Sizes(100, 32, *stranger.usual, 50)
            engine, kinds = calls_of(stranger, sizes)
            cells_of_row = []
            for kind, calls in kinds.items():
                results = {by: call() for by, call in calls.items()}
                if name not in SPIKING:
                    check(f"{name}, {kind}", results["ours"], results["theirs"])
                timing = bench.alternate(calls, arguments.seconds, threads=1, rounds=arguments.rounds)
                ours, theirs = timing["ours"].median, timing["theirs"].median
                cells_of_row.append(f"{theirs / ours:.1f}x ({theirs * 1e3:.1f} / {ours * 1e3:.1f} ms)")
            row = (name, f"{sizes.I}, {sizes.H}", engine, *cells_of_row)
            print(f"| {' | '.join(row)} |", flush=True)


if __name__ == "__main__":
    main()
