"""On a CUDA device everything is what it is on the CPU; these tests run where there is one: pytest -m gpu."""

import pytest
import torch
from torch import nn
from torch.utils import _pytree as pytree

import anyrnn
from anyrnn.masks import mask
from zoo import CASES, B, H, I, T, ids, state_of, x_of

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

LENGTHS = (2, 4, 0)
OPTIONS = {
    "plain": {},
    "limits": {"clip": 0.5, "clip_gradient": 0.1, "clip_gradient_norm": 0.2},
    "regularised": {"recurrent_dropout": 0.3, "input_dropout": 0.2, "zoneout": 0.2, "weight_dropout": 0.3},
    "learned": {"learn_initial_state": True},
}


def moved(tree):
    return pytree.tree_map(lambda t: t.cuda() if isinstance(t, torch.Tensor) else t, tree)


def close(got, want, tolerance=1e-9):
    got, want = pytree.tree_leaves(got), pytree.tree_leaves(want)
    assert all(g.is_cuda for g in got)
    torch.testing.assert_close([g.cpu() for g in got], want, rtol=tolerance, atol=tolerance)


def with_gradients(run, leaves):
    results = [t for t in pytree.tree_leaves(run()) if t.requires_grad]
    loss = sum(
        (t * torch.linspace(0.5, 2, t.numel(), dtype=t.dtype, device=t.device).view_as(t)).sum() for t in results
    )
    return results, torch.autograd.grad(loss, leaves, materialize_grads=True)


#: LowRank makes a matrix on the CPU in its step, wherever it is.
MOVABLE = [case for case in CASES if case.name != "LowRank"]


@pytest.mark.parametrize("case", MOVABLE, ids=ids([(case,) for case in MOVABLE]))
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("on", ["cpu", "cuda"])
def test_a_scan_is_the_same_there(case, reverse, on):
    cell, x = case.cell(), x_of()
    state = state_of(cell)
    lengths = torch.tensor(LENGTHS)
    x.requires_grad_()
    want = with_gradients(lambda: anyrnn.scan(cell, x, state, lengths, reverse), [x, *cell.parameters()])
    there, y, begin = case.cell().cuda(), x.detach().cuda().requires_grad_(), moved(state)
    there.load_state_dict(cell.state_dict())
    got = with_gradients(lambda: anyrnn.scan(there, y, begin, lengths.to(on), reverse), [y, *there.parameters()])
    # PyTorch's weight norm is less exact there.
    close(got, want, 1e-6 if case.name == "weight-normed" else 1e-9)


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("kind", ["LSTM", "nn.GRUCell"])
def test_a_layer_is_the_same_there_with_every_option(options, kind):
    def make():
        torch.manual_seed(1)
        options_ = OPTIONS[options]
        if kind == "LSTM":
            return anyrnn.LSTM(I, H, num_layers=2, bidirectional=True, **options_).double()
        return anyrnn.Recurrent(lambda i: nn.GRUCell(i, H), I, num_layers=2, bidirectional=True, **options_).double()

    layer, there, x = make(), make().cuda(), x_of()
    reset = torch.rand(T, B) < 0.3
    x.requires_grad_()
    y = x.detach().cuda().requires_grad_()
    seed = torch.tensor(12345)
    with pytest.MonkeyPatch.context() as patch:  # a device has a generator, and so seeds, of its own
        patch.setattr("anyrnn.layers.seed_for", lambda x: seed.to(x.device))
        want = with_gradients(lambda: layer(x, lengths=LENGTHS, reset=reset), [x, *layer.parameters()])
        got = with_gradients(lambda: there(y, lengths=LENGTHS, reset=reset.cuda()), [y, *there.parameters()])
    close(got, want)


def test_masks_are_the_same_there():
    seed = torch.tensor(7)
    for p in (0.1, 0.5):
        here = mask(seed, 3, (5, 4, 33), p, torch.float32)
        assert torch.equal(mask(seed.cuda(), 3, (5, 4, 33), p, torch.float32).cpu(), here)


def test_the_same_seed_gives_the_same_masks_there_and_each_call_others():
    layer = anyrnn.LSTM(I, H, recurrent_dropout=0.5).cuda()
    x = torch.randn(T, B, I, device="cuda")
    torch.manual_seed(3)
    first, second = layer(x)[0], layer(x)[0]
    torch.manual_seed(3)
    assert torch.equal(layer(x)[0], first)
    assert not torch.equal(first, second)


@pytest.mark.parametrize("kind", [anyrnn.LSTM, anyrnn.GRU, anyrnn.RNN])
@pytest.mark.parametrize("lengths", [None, LENGTHS])
def test_pytorchs_own_kernels_run_there(kind, lengths, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    layer = kind(I, H, bidirectional=True).cuda()
    x = torch.randn(T, B, I, device="cuda")
    with anyrnn.engine("reference"):
        want = layer(x, lengths=lengths)
    with anyrnn.engine("torch"):
        got = layer(x, lengths=lengths)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


def test_what_runs_there_is_said_and_machine_code_is_not():
    layer = anyrnn.Recurrent(nn.GRUCell(I, H)).cuda()
    x = torch.randn(T, B, I, device="cuda")
    assert "cuda" in str(anyrnn.explain(layer, x))
    with anyrnn.engine("cpu"), pytest.raises(anyrnn.AnyRNNError, match="cuda"):
        layer(x)


def test_what_lies_elsewhere_is_told():
    layer = anyrnn.LSTM(I, H).cuda()
    x = torch.randn(T, B, I, device="cuda")
    state = (torch.zeros(1, B, H),) * 2
    for given, options in [(x.cpu(), {}), (x, {"hx": state}), (x, {"reset": torch.zeros(T, B, dtype=torch.bool)})]:
        with pytest.raises(anyrnn.AnyRNNError, match="on c"):
            layer(given, **options)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_there(dtype):
    layer = anyrnn.Recurrent(lambda i: nn.GRUCell(i, H), I).cuda()
    x = torch.randn(T, B, I, device="cuda", requires_grad=True)
    with torch.autocast("cuda", dtype):
        output, state = layer(x)
    assert state.dtype == torch.float32
    torch.testing.assert_close(output.float(), layer(x)[0], rtol=0.05, atol=0.05)
    output.float().sum().backward()
    assert x.grad.isfinite().all()


def test_records_streams_of_chunks_and_gradient_flow_there():
    layer = anyrnn.LSTM(I, H, num_layers=2).cuda().double()
    x = x_of().cuda()
    output, state, record, (_, c) = layer(x, lengths=LENGTHS, record="c", return_states=True)
    torch.testing.assert_close(record["c"], c)
    first, middle = layer(x[:2])
    second, last = layer(x[2:], middle)
    torch.testing.assert_close((torch.cat([first, second]), last), layer(x))
    flow, _ = anyrnn.gradient_flow(layer, x, lengths=LENGTHS)
    close(flow[:, :2], anyrnn.gradient_flow(layer.cpu(), x.cpu(), lengths=LENGTHS)[0][:, :2])
    assert output.is_cuda
    assert all(s.is_cuda for s in state)


@pytest.mark.usefixtures("_compiled_anew")
@pytest.mark.parametrize("kind", ["LSTM", "own"])
def test_torch_compile_there(kind):
    make = {"LSTM": lambda: anyrnn.LSTM(I, H), "own": lambda: anyrnn.Recurrent(nn.GRUCell(I, H))}[kind]
    layer = make().cuda().double()
    compiled, x = torch.compile(layer, backend="aot_eager", fullgraph=True), x_of().cuda().requires_grad_()
    for lengths in (None, torch.tensor(LENGTHS)):
        want = with_gradients(lambda n=lengths: layer(x, lengths=n), [x, *layer.parameters()])
        got = with_gradients(lambda n=lengths: compiled(x, lengths=n), [x, *layer.parameters()])
        torch.testing.assert_close(got, want)


def test_a_layer_moves_between_devices_within_a_program():
    layer, x = anyrnn.Recurrent(nn.LSTMCell(I, H)).double(), x_of()
    want = layer(x)
    close(layer.cuda()(x.cuda()), want)
    torch.testing.assert_close(layer.cpu()(x), want)
