"""Combinations of options: whatever a layer is made and called with, the cpu engine gives what the reference gives.

Padding and batch mates change nothing, the same call under the same seed has the same bits, and what one engine
refuses, the other does. ``ANYRNN_EXAMPLES=500`` runs that many examples instead of a few, and other ones each time.
"""

import os
import warnings
from dataclasses import dataclass
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import anyrnn
from zoo import ConcatLSTM, MixedSizes, close, gradients

EXAMPLES = os.environ.get("ANYRNN_EXAMPLES")
random = settings(
    max_examples=int(EXAMPLES or 10),
    derandomize=not EXAMPLES,
    deadline=None,
    database=None,
    print_blob=False,
    suppress_health_check=[HealthCheck.too_slow],
)

# No other size of a tensor is B, so that its dimension is known by it.
I, H, B, T = 2, 4, 3, 5


class Timed(nn.Module):
    """Takes the time since the last step, and gates of the sequence."""

    def __init__(self, input_size: int) -> None:
        super().__init__()
        self.hidden_size = H
        self.W, self.U = nn.Linear(input_size, H), nn.Linear(H, H)

    def forward(self, x, h, dt, gate):
        leaked = torch.exp(-dt * dt) * h
        pull = torch.tanh(self.W(x) + self.U(leaked))
        return leaked + gate * (pull - leaked)


def foreign(cell):
    return lambda **options: anyrnn.Recurrent(cell, I, **options)


@dataclass(frozen=True)
class Kind:
    """A cell.

    Attributes:
        make: From options to a layer.
        variable: What can be recorded of it.
        weight: The parameter that is dropped where it is named.
        states: How many states it has, of which the first is read by products.
        first: Whether it is.
        takes_more: It takes further arguments.
    """

    make: Any
    variable: str
    weight: str
    states: int = 1
    first: bool = True
    takes_more: bool = False


KINDS = {
    "LSTM": Kind(lambda **options: anyrnn.LSTM(I, H, **options), "c", "weight_hh", 2),
    "GRU": Kind(lambda **options: anyrnn.GRU(I, H, **options), "n", "weight_hh"),
    "ConcatLSTM": Kind(foreign(lambda n: ConcatLSTM(n, H)), "kept", "forget_gate.weight", 2),
    "MixedSizes": Kind(foreign(lambda n: MixedSizes(n, H)), "fast", "slow.weight", 2, first=False),
    "Timed": Kind(foreign(Timed), "pull", "U.weight", takes_more=True),
}


@dataclass(frozen=True)
class Combination:
    """How a layer is made and called.

    Attributes:
        cell: A name in KINDS.
        made: Options of the layer.
        training: Its mode.
        T: The number of steps.
        lengths: Of the rows, or None.
        state: A state is given.
        reset: None, "initial", or "other": a state to start from is given, too.
        called: Options of the call.
        mistake: A name in MISTAKES, or None.
        seed: Of weights, arguments and masks.
    """

    cell: str
    made: dict[str, Any]
    training: bool
    T: int
    lengths: tuple[int, ...] | None
    state: bool
    reset: str | None
    called: dict[str, Any]
    mistake: str | None
    seed: int

    @property
    def draws(self) -> bool:
        """Whether a call draws random numbers."""
        names = "dropout", "recurrent_dropout", "zoneout", "weight_dropout", "input_dropout"
        return self.training and any(name in self.made for name in names)


def following(y: Tensor) -> Tensor:
    """The next x, made of an output."""
    return torch.cat((y, -y), -1)[..., :I]


#: What is refused, as options of a call that change those of a combination.
MISTAKES = {
    "a start without resets": lambda layer, x: {"reset": None, "reset_to": layer.initial_state(B)},
    "a variable that is not there": lambda layer, x: {"record": "nothing"},
    "resets of another shape": lambda layer, x: {"reset": torch.zeros(x.shape[0] + 1, x.shape[1], dtype=torch.bool)},
    "resets and feedback": lambda layer, x: {
        "reset": torch.zeros(x.shape[:2], dtype=torch.bool),
        "feedback": following,
    },
    "no interval": lambda layer, x: {"checkpoint_every": 0},
    "too many lengths": lambda layer, x: {"lengths": [1] * (B + 1)},
}


@st.composite
def combinations(draw):
    def maybe(share: int = 3) -> bool:
        return draw(st.integers(0, share)) == share

    name = draw(st.sampled_from(list(KINDS)))
    kind, made = KINDS[name], {}
    layers = draw(st.sampled_from((1, 1, 2)))
    made["num_layers"] = layers
    made["bidirectional"] = draw(st.booleans())
    made["batch_first"] = draw(st.booleans())
    options = (
        ("learn_initial_state", True),
        ("clip", 0.3),
        ("clip_gradient", 0.2),
        ("clip_gradient_norm", 0.4),
        ("input_dropout", 0.3),
        ("recurrent_dropout", 0.3 if kind.first else (0.0, 0.3)),
        ("zoneout", draw(st.sampled_from((0.3, (0.2,) * kind.states)))),
        ("weight_dropout", draw(st.sampled_from((0.3, {kind.weight: 0.3})))),
    )
    made.update({option: value for option, value in options if maybe()})
    if layers == 2 and maybe():
        made["dropout"] = 0.3
    steps = draw(st.sampled_from((T, T, T, 1)))
    lengths = draw(st.none() | st.lists(st.integers(0, steps), min_size=B, max_size=B).map(tuple))
    called: dict[str, Any] = {}
    if maybe(2):
        called["record"] = kind.variable
    if maybe(2):
        called["return_states"] = True
    if maybe(2):
        called["checkpoint_every"] = draw(st.integers(1, 6))
    if maybe(5):  # which goes with few of the others
        called |= {"feedback": following, "forced": 2}
    return Combination(
        name, made, draw(st.booleans()), steps, lengths, draw(st.booleans()),
        draw(st.sampled_from((None, "initial", "other"))), called,
        draw(st.sampled_from((None,) * 12 + tuple(MISTAKES))), draw(st.integers(0, 9)),
    )  # fmt: skip


def on_tensors(function, values):
    return pytree.tree_map_only(Tensor, function, values)


def tensors_of(values) -> list[Tensor]:
    return [t for t in pytree.tree_leaves(values) if t is not None]


class Run:
    """The arguments of a combination, and calls with them."""

    def __init__(self, combination: Combination) -> None:
        self.combination = combination
        kind, T = KINDS[combination.cell], combination.T
        torch.manual_seed(combination.seed)
        self.layer = kind.make(**combination.made).double().train(combination.training)
        with torch.no_grad():
            for parameter in self.layer.parameters():
                parameter.copy_(torch.randn_like(parameter) / 2)
        self.x = torch.randn(T, B, I, dtype=torch.float64)
        self.state = self.fresh = None
        if combination.state:
            self.state = self.some_state()
        self.reset = torch.rand(T, B) < 0.3 if combination.reset else None
        if combination.reset == "other":
            self.fresh = self.some_state()
        self.more = ()
        if kind.takes_more:
            self.more = torch.randn(T, B, 1, dtype=torch.float64), torch.rand(B, H, dtype=torch.float64)
        self.lengths = combination.lengths

    def some_state(self):
        return on_tensors(torch.randn_like, self.layer.initial_state(B))

    def rows(self, index: list[int]) -> "Run":
        """The same of some rows."""
        other = object.__new__(Run)
        other.__dict__.update(self.__dict__)
        take = torch.tensor(index)
        for name in ("x", "state", "fresh", "reset", "more"):
            setattr(other, name, on_tensors(lambda t: t.index_select(t.shape.index(B), take), getattr(self, name)))
        other.lengths = None if self.lengths is None else [self.lengths[row] for row in index]
        return other

    def with_padding(self) -> "Run":
        """The same with NaN, and resets, where rows have no steps."""
        other = object.__new__(Run)
        other.__dict__.update(self.__dict__)
        if self.lengths is not None:
            padding = torch.arange(len(self.x)).unsqueeze(1) >= torch.tensor(self.lengths)
            other.x = torch.where(padding.unsqueeze(2), torch.nan, self.x)
            if self.reset is not None:
                other.reset = padding | self.reset
            if self.more:
                other.more = torch.where(padding.unsqueeze(2), torch.nan, self.more[0]), self.more[1]
        return other

    def __call__(self, engine: str) -> tuple[list[Tensor], list[Tensor]]:
        """The results of a call, and the gradients of what it reads, those of rows first."""
        combination, layer = self.combination, self.layer
        first = combination.made["batch_first"]

        def leaf(tensor):
            return tensor.detach().clone().requires_grad_()

        x, state, fresh, more = on_tensors(leaf, (self.x, self.state, self.fresh, self.more))
        options: dict[str, Any] = {
            "lengths": self.lengths,
            "reset": self.reset,
            "reset_to": fresh,
            **combination.called,
        }
        if more:
            options["inputs"], options["context"] = more
        if combination.mistake:
            options.update(MISTAKES[combination.mistake](layer, x))
        if first:
            turned = {k: options[k].transpose(0, 1) for k in ("reset", "inputs") if isinstance(options.get(k), Tensor)}
            options.update(turned)
        torch.manual_seed(combination.seed)
        with anyrnn.engine(engine):
            found = layer(x.transpose(0, 1) if first else x, state, **options)
            results = tensors_of(found)
            # Of each number the same function, so that a row's gradient depends on that row alone.
            loss = sum(torch.sin(t + k).sum() for k, t in enumerate(results))
            leaves = tensors_of((x, state, fresh, more))
            found = gradients([*leaves, *layer.parameters()], loss)
        return [t.detach() for t in results], found[: len(leaves)], found[len(leaves) :]


def check(combination: Combination) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run = Run(combination)
    try:
        want = run("reference")
    except anyrnn.AnyRNNError:
        with pytest.raises(anyrnn.AnyRNNError):
            run("cpu")
        return
    got = run.with_padding()("cpu")
    assert all(t.isfinite().all() for part in want for t in part)
    for a, b in zip(got, want, strict=True):
        close(a, b, atol=1e-9)
    again = run.with_padding()("cpu")
    assert all(torch.equal(a, b) for each in zip(got, again, strict=True) for a, b in zip(*each, strict=True))
    if not combination.draws:
        some = [2, 0]
        results, of_rows, _ = run.rows(some)("cpu")
        for found, whole in ((results, got[0]), (of_rows, got[1])):
            close(found, [t.index_select(t.shape.index(B), torch.tensor(some)) for t in whole], atol=1e-9)


@random
@given(combination=combinations())
def test_a_combination_of_options_is_what_the_reference_says(combination):
    check(combination)


@pytest.mark.parametrize("mistake", MISTAKES)
@pytest.mark.parametrize("cell", KINDS)
def test_a_mistake_is_refused_by_every_engine(mistake, cell):
    made = {"num_layers": 2, "bidirectional": True, "batch_first": False, "zoneout": 0.2}
    combination = Combination(cell, made, True, T, (5, 0, 2), False, None, {}, mistake, 0)
    with pytest.raises(anyrnn.AnyRNNError):
        Run(combination)("reference")
    check(combination)
