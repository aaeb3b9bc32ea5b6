"""Measure a layer of anyrnn beside its peers on this machine, in turns: the content of `anyrnn bench`.

`alternate` is the way in which everything is timed, here and in the repository's `benchmarks/`: the contenders take
turns, so that what else the machine does falls on all of them, and medians are compared.
"""

import gc
import importlib.metadata
import importlib.util
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median, quantiles

import torch

import anyrnn
from anyrnn.errors import AnyRNNError
from anyrnn.layers import Layer
from anyrnn.workbench import peers
from anyrnn.workbench.doctor import machine
from anyrnn.workbench.models import Network, network
from anyrnn.workbench.names import did_you_mean
from anyrnn.workbench.peers import Contender, Problem

PEERS = ("torch.nn", "loop", "onnxruntime", "jax", "compile")

_ROUNDS = 7
_WARM = 0.002  # seconds of calls at the start of a turn that are not counted: caches, clock, threads that slept
_REST = 0.08  # seconds between turns if there are threads: idle ones spin for a while, in the others' way: OpenMP's for
# up to 10 ms, those of ONNX Runtime for 60 ms


@dataclass(frozen=True)
class Timing:
    """How long a call took, in seconds.

    Attributes:
        median: Of all calls that count.
        low: The lower quartile.
        high: The upper quartile.
        calls: How many there were.
    """

    median: float
    low: float
    high: float
    calls: int

    @classmethod
    def of(cls, seconds: Sequence[float]) -> "Timing":
        """Summarise single calls."""
        low, _, high = quantiles(seconds, n=4, method="inclusive")
        return cls(median(seconds), low, high, len(seconds))


def alternate(
    calls: Mapping[str, Callable[[], object]], seconds: float, threads: int, rounds: int = _ROUNDS
) -> dict[str, Timing]:
    """Time functions in turns, A B C A B C ...

    Args:
        calls: The functions, by name. Each must have been called before.
        seconds: To spend on each, about; but each is called at least once a turn.
        threads: How many they run on.
        rounds: The number of turns of each, at least 2.
    """
    spent: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        gc.collect()
        gc.disable()
        try:
            for name, call in calls.items():
                time.sleep(_REST if threads > 1 else 0)
                spent[name] += _turn(call, seconds / rounds)
        finally:
            gc.enable()
    return {name: Timing.of(each) for name, each in spent.items()}


def _turn(call: Callable[[], object], seconds: float) -> list[float]:
    """Time single calls, after some that do not count; but a call that fills the turn by itself counts."""
    begin = time.perf_counter()
    call()
    now = time.perf_counter()
    if now - begin >= seconds:
        return [now - begin]
    while now < begin + _WARM:
        call()
        now = time.perf_counter()
    counted: list[float] = []
    while not counted or now < begin + seconds:
        start = time.perf_counter()
        call()
        now = time.perf_counter()
        counted.append(now - start)
    return counted


@dataclass(frozen=True)
class Measured:
    """A contender's times, by kind of call ("forward", "training"): of the first one, in seconds, and of the others."""

    name: str
    first: Mapping[str, float]
    timing: Mapping[str, Timing]


def measure(
    groups: Sequence[Sequence[Contender]], seconds: float, threads: int, rounds: int = _ROUNDS
) -> list[Measured]:
    """Call every contender once, see that all of a group agree with its first one, and time all of them in turns.

    Raises:
        AnyRNNError: if they do not agree.
    """
    contenders = [each for group in groups for each in group]
    first: dict[str, dict[str, float]] = {}
    for each in contenders:
        first[each.name] = {}
        for kind, call in each.calls.items():
            start = time.perf_counter()
            call()
            first[each.name][kind] = time.perf_counter() - start
    for group in groups:
        for each in group[1:]:
            peers.check(group[0], each)
    timed = {
        kind: alternate({c.name: c.calls[kind] for c in contenders if kind in c.calls}, seconds, threads, rounds)
        for kind in ("forward", "training")
    }
    return [Measured(c.name, first[c.name], {kind: timed[kind][c.name] for kind in c.calls}) for c in contenders]


@contextmanager
def using(threads: int) -> Iterator[None]:
    """Let PyTorch use a number of threads, and start what it starts once, outside all measurements."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        x = torch.ones(256, 256, requires_grad=True)
        torch.autograd.grad((x @ x).tanh().sum(), x)
        yield
    finally:
        torch.set_num_threads(before)


@dataclass(frozen=True)
class Setting:
    """What is measured.

    Attributes:
        cell: A name of `anyrnn.workbench.models.NETWORKS`, or "module:Class".
        hidden_size: H, the number of units.
        input_size: I, the number of features.
        batch_size: B.
        steps: T.
        ragged: The lengths are uniform in 1..T, else all are T.
        threads: How many each contender may use; None for as many as PyTorch uses.
        peers: Of `PEERS`; None for all that are there but "compile".
        seconds: To spend on each contender and kind of call.
    """

    cell: str = "lstm"
    hidden_size: int = 128
    input_size: int = 64
    batch_size: int = 32
    steps: int = 100
    ragged: bool = False
    threads: int | None = None
    peers: tuple[str, ...] | None = None
    seconds: float = 1.0

    def __post_init__(self) -> None:
        sizes = {"hidden": self.hidden_size, "input": self.input_size, "batch": self.batch_size, "steps": self.steps}
        for name, value in {**sizes, "threads": 1 if self.threads is None else self.threads}.items():
            if value < 1:
                raise AnyRNNError(f"bench: got {name}={value}, expected at least 1")
        if not self.seconds > 0:
            raise AnyRNNError(f"bench: got seconds={self.seconds}, expected more than 0")
        for peer in self.peers or ():
            if peer not in PEERS:
                names = ", ".join(PEERS)
                raise AnyRNNError(f"peer {peer!r} is not known; the names are {names}.{did_you_mean(peer, PEERS)}")


@dataclass(frozen=True)
class Bench:
    """What was measured; as text, a table.

    Attributes:
        setting: What was asked for.
        title: The network.
        threads: How many each contender was allowed.
        engines: The engine that ran our layer and why, for each layer and direction.
        measured: Our layer, then its peers.
        missing: Peers that are not there, and why.
    """

    setting: Setting
    title: str
    threads: int
    engines: tuple[str, ...]
    measured: tuple[Measured, ...]
    missing: Mapping[str, str]

    def __str__(self) -> str:
        s = self.setting
        lengths = f"lengths from 1 to {s.steps}" if s.ragged else f"{s.steps} steps"
        lines = [
            f"{self.title}: input {s.input_size}, hidden {s.hidden_size}, batch {s.batch_size}, {lengths}, float32",
            f"{machine()}; {self.threads} {'thread' if self.threads == 1 else 'threads'}",
            versions(),
            *self.engines,
            "",
            f"{'':26}{'forward':>20}{'forward + backward':>22}{'first calls':>14}",
        ]
        lines += [
            f"{m.name:26}{self._cell(m, 'forward'):>20}{self._cell(m, 'training'):>22}{sum(m.first.values()):>12.2f} s"
            for m in self.measured
        ]
        lines += [
            "",
            "Medians of calls in turns; (x) is how many times as long as anyrnn. All gave the same results.",
            "First calls: one forward, one forward + backward, with what is compiled or loaded for them. The machine "
            "code of a cell is kept on disk: ANYRNN_CACHE=off anyrnn bench shows a first call without it.",
        ]
        return "\n".join([*lines, *(f"Not measured: {name}: {reason}" for name, reason in self.missing.items())])

    def _cell(self, measured: Measured, kind: str) -> str:
        if kind not in measured.timing:
            return "-"
        time = measured.timing[kind].median
        return f"{milliseconds(time)} ms ({time / self.measured[0].timing[kind].median:.3g}x)"


def milliseconds(seconds: float) -> str:
    """Three digits, and no more than three decimals."""
    value = seconds * 1e3
    return f"{value:.{0 if value >= 100 else 1 if value >= 10 else 2 if value >= 1 else 3}f}"


def versions() -> str:
    """Name the versions of what is measured."""
    packages = ("anyrnn", "torch", "llvmlite", "numpy", "jax", "onnxruntime")
    found = [f"{p} {importlib.metadata.version(p)}" for p in packages if importlib.util.find_spec(p)]
    return ", ".join([f"Python {platform.python_version()}", *found])


def bench(setting: Setting) -> Bench:
    """Measure a layer beside its peers.

    Raises:
        AnyRNNError: for a network or peer that is not known or, asked for by name, not there; and if the results of
            two contenders differ.
    """
    chosen = network(setting.cell)
    threads = setting.threads or torch.get_num_threads()
    with using(threads), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layer = chosen.layer(setting.input_size, setting.hidden_size)
        problem = Problem.draw(
            setting.steps, setting.batch_size, setting.input_size, _features(layer), ragged=setting.ragged
        )
        contenders, missing = [peers.ours(layer, problem)], {}
        for name in (p for p in PEERS if p != "compile") if setting.peers is None else setting.peers:
            found = _peer(name, setting, chosen, layer, problem, threads)
            if isinstance(found, Contender):
                contenders.append(found)
            elif setting.peers is None:
                missing[name] = found
            else:
                raise AnyRNNError(f"peer {name!r}: {found}")
        measured = measure([contenders], setting.seconds, threads)
        parts = anyrnn.explain(layer, problem.x, lengths=problem.lengths).parts
    engines = dict.fromkeys(f"engine {part.engine!r}: {part.reason}" for part in parts)
    return Bench(setting, chosen.title, threads, tuple(engines), tuple(measured), missing)


def _peer(
    name: str, setting: Setting, chosen: Network, layer: Layer, problem: Problem, threads: int
) -> Contender | str:
    """Return a contender, or why it is not there."""
    if name == "loop":
        return peers.python_loop(layer, problem)
    if name == "compile":
        return peers.compiled_loop(layer, problem)
    if name == "torch.nn":
        if chosen.name not in peers.TORCH_LAYERS:
            return f"PyTorch has no layer for {chosen.title}"
        twin = peers.TORCH_LAYERS[chosen.name](setting.input_size, setting.hidden_size)
        shown = f"torch.nn.{type(twin).__name__}{'' if problem.lengths is None else ', packed'}"
        return peers.torch_layer(twin, layer, problem, shown)
    if chosen.name not in ("rnn", "lstm", "gru"):
        return "written here for rnn, lstm and gru"
    if problem.lengths is not None:
        return "written here for batches without padding"
    packages, make = _OPTIONAL[name]
    absent = [package for package in packages if importlib.util.find_spec(package) is None]
    if absent:
        return f"{' and '.join(absent)} not installed: pip install 'anyrnn[bench]'"
    return make(chosen.name, layer, problem, threads)


_OPTIONAL: Mapping[str, tuple[tuple[str, ...], Callable[[str, Layer, Problem, int], Contender]]] = {
    "jax": (("jax",), peers.xla_scan),
    "onnxruntime": (("onnxruntime", "onnx"), peers.onnx_runtime),
}


def _features(layer: Layer) -> int:
    size = layer.output_size
    if not isinstance(size, int):
        msg = f"bench: got a cell with an output of shape (B, {', '.join(map(str, size))}), expected features"
        raise AnyRNNError(msg)
    return size
