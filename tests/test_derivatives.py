"""Derivatives that the vendors' kernels refuse, of every cell with every option: right, or refused with the reason.

In evaluation mode, of gradients, forwards, for each sample, for many outputs at once, of ensembles by `vmap`.
"""

import warnings
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.func import functional_call, grad, jacrev, jvp, stack_module_state, vmap
from torch.utils import _pytree as pytree

import anyrnn
from zoo import ConcatGRU, ConcatLSTM, H, I, MixedSizes, close, gradients, loss_of, x_of

T, B = 4, 3
ENGINES = ("reference", "cpu")
RESET = torch.tensor([[0, 0, 0], [0, 1, 0], [1, 0, 0], [0, 1, 1]], dtype=torch.bool)
LENGTHS = [4, 2, 3]
CELLS = {
    "LSTM": (lambda **options: anyrnn.LSTM(I, H, dtype=torch.float64, **options), "c"),
    "GRU": (lambda **options: anyrnn.GRU(I, H, dtype=torch.float64, **options), "n"),
    "ConcatLSTM": (lambda **options: anyrnn.Recurrent(lambda n: ConcatLSTM(n, H), I, **options).double(), "kept"),
    "ConcatGRU": (lambda **options: anyrnn.Recurrent(lambda n: ConcatGRU(n, H), I, **options).double(), "z"),
    "MixedSizes": (lambda **options: anyrnn.Recurrent(lambda n: MixedSizes(n, H), I, **options).double(), "slow"),
}


@dataclass(frozen=True)
class Option:
    """How a layer is made and called, and what that means for derivatives.

    Attributes:
        made: Options of the layer.
        called: Options of a call.
        draws: Random numbers in training mode.
        limits: The gradient is limited, so that it is not the derivative of the output.
    """

    made: dict[str, Any] = field(default_factory=dict)
    called: dict[str, Any] = field(default_factory=dict)
    draws: bool = False
    limits: bool = False


OPTIONS = {
    "none": Option(),
    "reset": Option(called={"reset": RESET}),
    "learned": Option({"learn_initial_state": True}, {"reset": RESET}),
    "clip": Option({"clip": 0.2}),
    "clip_gradient": Option({"clip_gradient": 0.05}, limits=True),
    "clip_gradient_norm": Option({"clip_gradient_norm": 0.05}, limits=True),
    "input_dropout": Option({"input_dropout": 0.4}, draws=True),
    "recurrent_dropout": Option({"recurrent_dropout": 0.4}, draws=True),
    "zoneout": Option({"zoneout": 0.4}, draws=True),
    "weight_dropout": Option({"weight_dropout": 0.4}, draws=True),
    "record": Option(called={"record": True}),
    "states": Option(called={"return_states": True}),
    "checkpoint": Option(called={"checkpoint_every": 2}),
    "several": Option(
        {"learn_initial_state": True, "clip": 0.3, "recurrent_dropout": 0.3, "zoneout": 0.2},
        {"reset": RESET, "record": True}, draws=True,
    ),
}  # fmt: skip

each = pytest.mark.parametrize("option", OPTIONS)
every = pytest.mark.parametrize("name", CELLS)
some = pytest.mark.parametrize("name", ["LSTM", "MixedSizes"])
limited = [key for key, option in OPTIONS.items() if option.limits]
unlimited = [key for key, option in OPTIONS.items() if not option.limits]

# The first state of MixedSizes, which alone recurrent dropout would be for, is read by no product.
pytestmark = pytest.mark.filterwarnings("ignore:Recurrent. recurrent_dropout=.* does nothing:UserWarning")


def made(name: str, option: str, seed: int = 1, **more):
    """A layer, its learned initial states not zero, and the options of a call."""
    torch.manual_seed(seed)
    make, variable = CELLS[name]
    layer = make(**OPTIONS[option].made, **more)
    with torch.no_grad():
        for key, parameter in layer.named_parameters():
            if key.startswith("initial_state"):
                parameter.normal_()
    called = dict(OPTIONS[option].called)
    if "record" in called:
        called["record"] = variable
    return layer, called


def called(layer, x: Tensor, weights=None, **options) -> list[Tensor]:
    """All tensors that a call returns."""
    return pytree.tree_leaves(functional_call(layer, weights or {}, (x,), options))


def seeded(function, *args, **options):
    """Call with the same random numbers each time."""
    torch.manual_seed(5)
    return function(*args, **options)


def gradient(function, x: Tensor) -> Tensor:
    """The gradient of a number by autograd, from the reference."""
    leaf = x.detach().clone().requires_grad_()
    with anyrnn.engine("reference"):
        return torch.autograd.grad(function(leaf), leaf)[0]


@pytest.mark.grid(2)
@every
@each
def test_in_evaluation_mode_gradients_are_those_of_the_reference_and_nothing_is_drawn(name, option):
    layer, options = made(name, option, bidirectional=True)
    layer.eval()
    found, before = [], torch.get_rng_state()
    for engine in ENGINES:
        x = x_of(T, B).requires_grad_()
        with anyrnn.engine(engine):
            results = called(layer, x, lengths=LENGTHS, **options)
        found.append([*results, *gradients([x, *layer.parameters()], loss_of(*results))])
    close(*found)
    assert torch.equal(torch.get_rng_state(), before)


@some
@pytest.mark.parametrize("option", unlimited)
def test_gradients_of_gradients(name, option):
    layer, options = made(name, option)
    names, weights = zip(*layer.named_parameters(), strict=True)
    if "reset" in options:
        options["reset"] = RESET[1:, 1:2]

    def run(x, *given):
        found = seeded(called, layer, x, dict(zip(names, given, strict=True)), **options)
        return tuple(t for t in found if t.requires_grad)

    point = [t.detach().clone().requires_grad_() for t in (x_of(3, 1), *weights)]
    assert torch.autograd.gradgradcheck(run, point, fast_mode=True, atol=1e-4)


@some
@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=str)
def test_gradients_of_gradients_of_a_call_in_pieces(name, lengths):
    """A piece that goes on from another one has sums of its own here."""
    layer, _ = made(name, "none", bidirectional=True)
    found = []
    for engine in ENGINES:
        x = x_of(T, B).requires_grad_()
        leaves = [x, *layer.parameters()]
        with anyrnn.engine(engine):
            results = called(layer, x, lengths=lengths, checkpoint_every=1)
            first = torch.autograd.grad(loss_of(*results), leaves, create_graph=True)
            found.append([*first, *gradients(leaves, loss_of(*first).square())])
    close(*found, atol=1e-8)


@some
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("option", limited)
def test_a_gradient_of_a_limited_gradient_is_refused(name, engine, option):
    """It would be limited again on its way through the forward pass: the derivative of nothing."""
    layer, _ = made(name, option)

    def total(x):
        return layer(x)[0].square().sum()

    x = x_of(T, B).requires_grad_()
    with anyrnn.engine(engine):
        value = total(x)
    with pytest.raises(anyrnn.AnyRNNError, match=rf"{option}: got a gradient .* once more .* expected {option}=None"):
        torch.autograd.grad(value, x, create_graph=True)
    if engine == "reference":
        with pytest.raises(anyrnn.AnyRNNError, match="once more"):
            grad(lambda x: grad(total)(x).sum())(x_of(T, B))
        outer = grad(total)(x).sum()
        with pytest.raises(anyrnn.AnyRNNError, match="once more"):
            outer.backward()


@some
@each
def test_derivatives_forwards(name, option):
    """What forward mode carries is no gradient: limits of gradients leave it alone."""
    layer, options = made(name, option)
    layer.requires_grad_(False)
    x, tangent = x_of(T, B), x_of(T, B, seed=9)

    def run(x):
        return seeded(called, layer, x, **options)

    values, slopes = jvp(run, (x,), (tangent,))
    eps = 1e-6
    numeric = [(a - b) / (2 * eps) for a, b in zip(run(x + eps * tangent), run(x - eps * tangent), strict=True)]
    close(values, run(x))
    close(slopes, numeric, atol=1e-8)
    with forward_ad.dual_level():
        slopes = [forward_ad.unpack_dual(t).tangent for t in run(forward_ad.make_dual(x, tangent))]
    close(slopes, numeric, atol=1e-8)


@some
@each
def test_a_hessian_times_a_vector_forwards_over_backwards(name, option):
    layer, options = made(name, option)
    layer.requires_grad_(False)
    x, tangent, eps = x_of(T, B), x_of(T, B, seed=9), 1e-6

    def loss(x):
        return loss_of(*seeded(called, layer, x, **options)).square()

    found, slope = jvp(grad(loss), (x,), (tangent,))
    close([found], [gradient(loss, x)])
    numeric = (gradient(loss, x + eps * tangent) - gradient(loss, x - eps * tangent)) / (2 * eps)
    torch.testing.assert_close(slope, numeric, rtol=1e-6, atol=1e-6 * max(1, numeric.abs().max().item()))


@some
@each
def test_gradients_of_each_sample(name, option):
    """By `vmap` over `grad`; what is drawn, is drawn for each sample as in calls one after another."""
    layer, options = made(name, option, num_layers=2)
    weights = {key: p.detach() for key, p in layer.named_parameters()}
    reset = options.pop("reset", None)
    x, kind = x_of(T, B), "different" if OPTIONS[option].draws else "error"

    def loss(weights, x, *reset):
        more = {"reset": reset[0]} if reset else {}
        return loss_of(*called(layer, x, weights, **options, **more))

    mapped = vmap(grad(loss), in_dims=(None, 1, *[1] * (reset is not None)), randomness=kind)
    given = () if reset is None else (reset,)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # PyTorch's, of what it would run sample by sample
        found = seeded(mapped, weights, x, *given)
    torch.manual_seed(5)
    with anyrnn.engine("reference"):
        for row in range(B):
            value = loss(dict(layer.named_parameters()), x[:, row], *(r[:, row] for r in given))
            close([g[row] for g in found.values()], gradients(layer.parameters(), value))


@some
@pytest.mark.parametrize("option", [key for key, option in OPTIONS.items() if option.draws])
def test_vmap_asks_whether_samples_are_to_draw_alike(name, option):
    layer, options = made(name, option)
    options.pop("reset", None)
    x = x_of(T, B)

    def run(x):
        return called(layer, x, **options)

    with pytest.raises(RuntimeError, match="use the 'same' or 'different' randomness"):
        vmap(run, in_dims=1)(x)
    alike = seeded(vmap(run, in_dims=1, randomness="same"), x)
    for row in range(B):
        close([t[row] for t in alike], seeded(run, x[:, row]))


@some
@each
def test_ensembles_by_vmap_over_stacked_weights(name, option):
    members = [made(name, option, seed)[0] for seed in range(3)]
    _, options = made(name, option)
    weights, _ = stack_module_state(members)
    x = x_of(T, B)

    def run(weights):
        found = called(members[0], x, weights, **options)
        return *found, loss_of(*found)

    kind = "different" if OPTIONS[option].draws else "error"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = seeded(vmap(run, randomness=kind), weights)
        slopes = seeded(vmap(grad(lambda w: run(w)[-1]), randomness=kind), weights)
    totals = torch.autograd.grad(found[-1].sum(), [*weights.values()])
    torch.manual_seed(5)
    for k, member in enumerate(members):
        with anyrnn.engine("reference"):
            want = called(member, x, **options)
        close([t[k] for t in found[:-1]], want)
        one = gradients(member.parameters(), loss_of(*want))
        close([slopes[key][k] for key in weights], one)
        close([g[k] for g in totals], one)


@some
@each
def test_jacobians_row_by_row_and_at_once(name, option):
    layer, options = made(name, option)
    layer.requires_grad_(False)
    x = x_of(2, 1)
    if "reset" in options:
        options["reset"] = RESET[1:3, 1:2]

    def output(x):
        return seeded(called, layer, x, **options)[0]

    with anyrnn.engine("reference"):
        want = torch.autograd.functional.jacobian(output, x)
    close([torch.autograd.functional.jacobian(output, x, vectorize=True)], [want])
    if not OPTIONS[option].draws:  # seeds are not set within vmap
        close([jacrev(output)(x)], [want])
