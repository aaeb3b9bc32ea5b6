"""Few steps: "auto" takes PyTorch's kernel by a rule, in one call for the whole stack, where nothing differs by it."""

import copy
import itertools

import pytest
import torch
from torch import Tensor, nn

import anyrnn
from anyrnn.engines import select, short
from anyrnn.zoo import CellLayer
from zoo import flat, gradients, loss_of

I, H, T, B = 3, 5, 2, 4

KINDS = {
    "RNN": (anyrnn.RNN, {}),
    "RNN-relu": (anyrnn.RNN, {"nonlinearity": "relu"}),
    "LSTM": (anyrnn.LSTM, {}),
    "GRU": (anyrnn.GRU, {}),
}
FORMS = {
    "plain": {},
    "no bias": {"bias": False},
    "stacked, both directions": {"num_layers": 2, "bidirectional": True},
    "batch first": {"batch_first": True},
    "dropout": {"num_layers": 2, "dropout": 0.5},
}


@pytest.fixture(autouse=True)
def _at_any_size(monkeypatch):
    monkeypatch.setattr(short, "is_faster", lambda *_: True)


@pytest.fixture
def taken(monkeypatch) -> list[bool]:
    """Whether each call of a layer went the short way."""
    found: list[bool] = []
    run = short.run

    def counting(*args):
        result = run(*args)
        found.append(result is not None)
        return result

    monkeypatch.setattr(short, "run", counting)
    return found


def made(kind: str, **options) -> CellLayer:
    torch.manual_seed(0)
    layer, own = KINDS[kind]
    return layer(I, H, **own, **options)


def state_for(layer: CellLayer, batch: int = B):
    n = layer.num_layers * layer.num_directions
    states = tuple(torch.randn(n, batch, H, requires_grad=True) for _ in layer._signature(0).state_sizes)
    return states if len(states) > 1 else states[0]


def on(engine: str, layer: nn.Module, *args, **options):
    torch.manual_seed(7)
    with anyrnn.engine(engine):
        return layer(*args, **options)


@pytest.mark.parametrize("with_state", [False, True])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", KINDS)
def test_results_and_gradients_are_those_of_the_definition(kind: str, form: str, with_state: bool, taken: list[bool]):
    layer = made(kind, **FORMS[form])
    x = torch.randn((B, T, I) if layer.batch_first else (T, B, I), requires_grad=True)
    args = (x, state_for(layer)) if with_state else (x,)
    got, want = (flat(on(engine, layer, *args)) for engine in ("auto", "reference"))
    assert taken == [True]
    leaves = [x, *flat(args[1:]), *layer.parameters()]
    for a, b in zip(
        (*got, *gradients(leaves, loss_of(*got))), (*want, *gradients(leaves, loss_of(*want))), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_the_second_derivative_is_there(kind: str, taken: list[bool]):
    layer, x = made(kind), torch.randn(T, B, I, requires_grad=True)
    found = []
    for engine in ("auto", "reference"):
        (first,) = torch.autograd.grad(loss_of(*flat(on(engine, layer, x))), [x], create_graph=True)
        found.append(torch.autograd.grad(loss_of(first**2), [x, *layer.parameters()], allow_unused=True))
    assert taken == [True]
    for a, b in zip(*found, strict=True):
        zero = torch.zeros(())
        torch.testing.assert_close(zero if a is None else a, zero if b is None else b, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_of_many_outputs_at_once(kind: str, taken: list[bool]):
    layer, x = made(kind), torch.randn(T, B, I, requires_grad=True)
    found = []
    for engine in ("auto", "reference"):
        output, _ = on(engine, layer, x)
        eye = torch.eye(output.numel()).view(-1, *output.shape)
        found.append(
            torch.autograd.grad(output, x, eye, is_grads_batched=engine == "auto")
            if engine == "auto"
            else (torch.stack([torch.autograd.grad(output, x, e, retain_graph=True)[0] for e in eye]),)
        )
    assert taken == [True]
    torch.testing.assert_close(found[0][0], found[1][0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_unbatched(kind: str, taken: list[bool]):
    layer, x = made(kind), torch.randn(T, I)
    h = state_for(layer, 1)
    state = h.squeeze(1) if isinstance(h, Tensor) else tuple(s.squeeze(1) for s in h)
    got, want = (flat(on(engine, layer, x, state)) for engine in ("auto", "reference"))
    assert taken == [True]
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def hooked(layer, _x):
    layer.cell().register_forward_hook(lambda *_: None)


def other_activation(layer, _x):
    layer._templates[0].activations[next(iter(layer._templates[0].activations))] = torch.sin


def other_weight(layer, _x):
    weight = layer._parameters.pop("weight_ih_l0")
    layer.weight_ih_l0 = 2 * weight.detach()


def other_parameter(layer, _x):
    layer.weight_ih_l0 = nn.Parameter(torch.ones(len(layer.weight_ih_l0), I))


def parametrized(layer, _x):
    class Double(nn.Module):
        def forward(self, w):
            return 2 * w

    nn.utils.parametrize.register_parametrization(layer, "weight_hh_l0", Double())


@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
@pytest.mark.parametrize(
    ("change", "short"),
    [(hooked, False), (other_activation, False), (other_weight, False), (other_parameter, True),
     (parametrized, False)],
)  # fmt: skip
def test_what_computes_something_else_is_seen(kind: str, change, short: bool, taken: list[bool]):
    layer, x = made(kind), torch.randn(T, B, I)
    before = layer(x)[0]
    change(layer, x)
    got, want = (flat(on(engine, layer, x)) for engine in ("auto", "reference"))
    assert taken == [True, short]
    assert change is hooked or not torch.equal(got[0], before)
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_a_weight_changed_between_two_calls_is_seen(taken: list[bool]):
    for change in (lambda w: w.data.mul_(2), lambda w: w.detach().numpy().__imul__(2), lambda w: w.data.copy_(w + 1)):
        layer, x = made("GRU"), torch.randn(T, B, I)
        layer(x)
        change(layer.weight_hh_l0)
        torch.testing.assert_close(layer(x)[0], on("reference", layer, x)[0], rtol=1e-4, atol=1e-5)
    assert all(taken)


def test_a_cell_of_a_subclass_is_its_own():
    class Scaled(anyrnn.GRU):
        is_ready = False

        def cell(self, layer: int = 0, reverse: bool = False):
            cell = super().cell(layer, reverse)
            if not self.is_ready:  # its constructor fills the parameters by this very method
                return cell
            return cell.bound({k: 2 * v for k, v in cell._parameters.items()})

    torch.manual_seed(0)
    layer, x = Scaled(I, H), torch.randn(T, B, I)
    layer.is_ready = True
    torch.testing.assert_close(layer(x)[0], on("reference", layer, x)[0], rtol=1e-4, atol=1e-5)


def test_a_step_set_on_the_object_is_what_runs():
    torch.manual_seed(0)
    cell, x = anyrnn.GRUCell(I, H), torch.randn(T, B, I)
    step = cell.step
    cell.step = lambda x, state: step(2 * x, state)
    layer = anyrnn.Recurrent(cell)
    torch.testing.assert_close(layer(x)[0], on("reference", layer, x)[0], rtol=1e-4, atol=1e-5)


def test_elsewhere_the_engines_decide(taken: list[bool]):
    layer, x = made("GRU"), torch.randn(T, B, I)
    layer(x, lengths=[2, 1, 0, 2])  # does not even ask
    with torch.autocast("cpu", torch.bfloat16):
        layer(x)
    torch.func.vmap(lambda x: layer(x)[0])(torch.randn(3, T, B, I))
    with anyrnn.engine("cpu"):
        layer(x)
    layer(torch.randn(17, B, I))
    layer.double()(x.double())
    handle = torch.nn.modules.module.register_module_forward_hook(lambda *_: None)
    try:
        layer.float()(x)
    finally:
        handle.remove()
    assert not any(taken)


@pytest.mark.parametrize("shape", [(T, B, I + 1), (T, B), (T,), (T, B, I, 1)])
def test_what_is_wrong_is_said_as_ever(shape: tuple[int, ...]):
    with pytest.raises(anyrnn.AnyRNNError, match="x has"):
        made("GRU")(torch.randn(shape))


def test_explain_says_so_and_what_it_says_happens(taken: list[bool], monkeypatch):
    monkeypatch.undo()
    torch.manual_seed(0)
    ran: list[bool] = []
    run = short.run
    monkeypatch.setattr(short, "run", lambda *args: ran.append((done := run(*args)) is not None) or done)
    for kind, T, B, H, grad in itertools.product(
        ("RNN", "LSTM", "GRU"), (1, 2, 4, 12, 16, 17), (1, 8), (32, 400), (0, 1)
    ):
        layer, x = getattr(anyrnn, kind)(4, H, num_layers=2), torch.randn(T, B, 4)
        with torch.set_grad_enabled(bool(grad)):
            said = {part.engine for part in anyrnn.explain(layer, x).parts}
            if T * B * H > 2000:
                continue  # what it says is asked for everywhere, but not everything is compiled and run
            layer(x)
        assert said == {"torch" if ran[-1] else "cpu"}, (kind, T, B, H, grad)


def test_explain_names_the_number_of_steps():
    x = torch.randn(T, B, I)
    text = "layer 0 forward: {} on engine 'torch': PyTorch's kernel is faster for so few steps (T=2)"
    assert text.format("GRUCell") in str(anyrnn.explain(made("GRU"), x))
    assert text.format("GRUCell") in str(anyrnn.explain(anyrnn.Recurrent(nn.GRUCell(I, H), input_size=I), x))


def test_an_accelerated_layer_goes_the_same_way(taken: list[bool]):
    torch.manual_seed(0)
    theirs = nn.Sequential(nn.GRU(I, H, 2))
    ours, x = copy.deepcopy(theirs), torch.randn(T, B, I)
    anyrnn.accelerate(ours)
    for a, b in zip(flat(ours(x)), flat(theirs(x)), strict=True):
        assert torch.equal(a, b)
    assert taken == [True]


def test_the_rule_is_one_of_sizes_alone(monkeypatch):
    monkeypatch.undo()
    kernels = ("rnn_tanh", "rnn_relu", "lstm", "gru")
    for kernel, training, B, H in itertools.product(kernels, (False, True), (1, 3, 64), (1, 32, 512)):
        steps = [short.is_faster(kernel, T, B, H, training) for T in range(1, 30)]
        assert steps == sorted(steps, reverse=True), "faster up to a number of steps"
        assert not any(steps[16:])
    assert select.wanted_name() == "auto"
