"""The cpu engine inside PyTorch: autograd, checkpoints, autocast, copies, parametrizations, random numbers."""

import copy
import cProfile
import gc
import pickle
import statistics
import sys
import weakref

import pytest
import torch
from compare import CALL, DOUBLE, SINGLE, H, I, assert_near, made, outcome, plain
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, parametrize
from torch.utils.checkpoint import checkpoint

import anyrnn
from zoo import CASES, close, flat, gradients, loss_of

pytestmark = pytest.mark.usefixtures("runs")


# ---- Gradients beyond the first, and what a backward pass leaves behind ----------------------------------------------

TWICE = [case for case in CASES if case.twice]


@pytest.mark.parametrize("case", TWICE, ids=lambda case: case.name)
def test_second_derivatives_are_those_of_the_reference(case):
    cell = case.cell()
    x = torch.randn(3, 2, I, dtype=DOUBLE, requires_grad=True)
    results = []
    for engine in ("reference", "cpu"):
        with anyrnn.engine(engine):
            output, state = anyrnn.scan(cell, x, lengths=[3, 2])
        leaves = [x, *cell.parameters()]
        first = torch.autograd.grad(loss_of(output.sin(), *flat(state)), leaves, create_graph=True, allow_unused=True)
        assert all(g is None or g.requires_grad for g in first) or case.name == "RNN-relu"
        results.append(gradients(leaves, loss_of(*(g for g in first if g is not None and g.requires_grad))))
    assert_near(results[1], results[0], 1e-10)


class Mirrored(nn.Module):
    """A cell that reads one weight in two ways: as a matrix, and transposed."""

    def __init__(self):
        super().__init__()
        self.hidden_size = I
        self.W = nn.Parameter(torch.randn(I, I, dtype=DOUBLE) / 3)

    def forward(self, x, h):
        return torch.tanh(x + h @ self.W + torch.sigmoid(h) @ self.W.t())


def test_gradients_with_a_graph_are_those_without_where_a_tensor_comes_in_twice():
    h = torch.randn(2, 3, dtype=DOUBLE, requires_grad=True)
    x = torch.randn(3, 2, I, dtype=DOUBLE, requires_grad=True)
    for cell, state in ((Mirrored(), None), (nn.LSTMCell(I, 3).double(), (h, h))):
        leaves = [x, *cell.parameters(), *([] if state is None else [h])]
        with anyrnn.engine("cpu"):
            loss = loss_of(anyrnn.scan(cell, x, state)[0].sin())
        plainly = torch.autograd.grad(loss, leaves, retain_graph=True)
        close(torch.autograd.grad(loss, leaves, create_graph=True), plainly, atol=1e-12)


def test_what_a_backward_pass_reads_is_freed_by_it(monkeypatch):
    cell, x = made(CASES[2], 5, DOUBLE), torch.randn(3, 2, I, dtype=DOUBLE)
    kept = []
    keep = torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(weakref.ref(t)) or t, lambda t: t)
    with anyrnn.engine("cpu"), keep:
        output, state = anyrnn.scan(cell, x)
    loss = loss_of(output, *state)
    weights = {id(p) for p in cell.parameters()}
    before = [r() for r in kept if r() is not None and id(r()) not in weights]
    assert len(before) >= 5, "the gates are kept"
    before.clear()
    loss.backward(retain_graph=True)
    first = [p.grad.clone() for p in cell.parameters()]
    loss.backward()
    close([p.grad for p in cell.parameters()], [2 * g for g in first])
    with pytest.raises(RuntimeError, match="second time"):
        loss.backward()
    gc.collect()
    left = [t for t in (r() for r in kept) if t is not None and id(t) not in weights]
    shared = {t.untyped_storage().data_ptr() for t in (output, *state, x)}
    assert all(t.untyped_storage().data_ptr() in shared for t in left)


def test_only_what_needs_a_gradient_gets_one():
    cell = made(CASES[2], 5, DOUBLE)
    x, h, c = (torch.randn(n, dtype=DOUBLE) for n in ((3, 2, I), (2, 5), (2, 5)))
    for frozen in (["weight_hh"], ["weight_ih", "bias_ih"], [n for n, _ in cell.named_parameters()]):
        for leaf in (x, h, None):
            results = []
            for engine in ("reference", "cpu"):
                for name, p in cell.named_parameters():
                    p.requires_grad_(name not in frozen)
                leaves = [p for p in cell.parameters() if p.requires_grad]
                if leaf is not None:
                    leaves.append(leaf.detach_().requires_grad_())
                with anyrnn.engine(engine):
                    output, (final, _) = anyrnn.scan(cell, x, (h, c), lengths=[3, 1])
                assert output.requires_grad == bool(leaves)
                results.append(gradients(leaves, loss_of(output, final)) if leaves else [output])
            assert_near(results[1], results[0], 1e-10)
            if leaf is not None:
                leaf.requires_grad_(False)


def test_gradients_that_nobody_sends_count_as_zero():
    cell, x = made(CASES[2], 5, DOUBLE), torch.randn(4, 3, I, dtype=DOUBLE, requires_grad=True)
    for part in (
        lambda o, s: o[1:2, :1],
        lambda o, s: s[0],
        lambda o, s: s[1][:1],
        lambda o, s: o.sum(2, keepdim=True).expand(-1, -1, 9),
    ):
        for lengths in (None, [4, 0, 2]):
            results = []
            for engine in ("reference", "cpu"):
                with anyrnn.engine(engine):
                    loss = loss_of(part(*anyrnn.scan(cell, x, lengths=lengths)))
                results.append(gradients([x, *cell.parameters()], loss))
            assert_near(results[1], results[0], 1e-10)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_gradient_changed_in_place_changes_no_other(case):
    """As clipping does: the gradients of two biases are equal, but have to be tensors of their own."""
    layer = case.layer(num_layers=2)
    x, state = (
        torch.randn(4, 3, I, dtype=DOUBLE),
        [torch.randn(2, 3, s, dtype=DOUBLE) for s in layer._signature(0).state_sizes],
    )
    leaves = [t.requires_grad_() for t in (x, *state)] + [p for p in layer.parameters() if p.requires_grad]
    with anyrnn.engine("cpu"):
        output, final = layer(x, layer._signature(0).wrap(tuple(state)))
        loss_of(output, *flat(final)).backward()
    want = [leaf.grad.clone() for leaf in leaves]
    for k, leaf in enumerate(leaves):
        leaf.grad.mul_(k + 2)
    close([leaf.grad for leaf in leaves], [(k + 2) * g for k, g in enumerate(want)])


# ---- Inside the rest of PyTorch --------------------------------------------------------------------------------------


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointing(reentrant):
    cell, x = made(CASES[2], 5, DOUBLE), torch.randn(4, 3, I, dtype=DOUBLE, requires_grad=True)

    def run(x):
        output, state = anyrnn.scan(cell, x, lengths=[4, 0, 2])
        return output, *state

    leaves = [x, *cell.parameters()]
    with anyrnn.engine("reference"):
        want = gradients(leaves, loss_of(*run(x)))
    with anyrnn.engine("cpu"):
        loss = loss_of(*checkpoint(run, x, use_reentrant=reentrant))
        for leaf in leaves:
            leaf.grad = None
        loss.backward()
    assert_near([leaf.grad for leaf in leaves], want, 1e-10)


def test_below_autocast_it_computes_in_float32(runs):
    cell, x = made(CASES[2], 17, SINGLE), torch.randn(4, 3, I)
    with anyrnn.engine("cpu"):
        want, want_state = anyrnn.scan(cell, x)
        with torch.autocast("cpu", torch.bfloat16):
            output, state = anyrnn.scan(cell, x)
            low, _ = anyrnn.scan(cell, x.bfloat16())
            grads = torch.autograd.grad(loss_of(output.float()), list(cell.parameters()))
    assert torch.equal(output, want)
    assert all(torch.equal(a, b) for a, b in zip(state, want_state, strict=True))
    assert low.dtype == torch.bfloat16
    torch.testing.assert_close(low.float(), want, rtol=0, atol=2e-2)
    assert_near(grads, torch.autograd.grad(loss_of(want), list(cell.parameters())), 1e-6)
    assert len(runs) == 5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_lower_precision_is_converted_at_the_edge(dtype):
    """The only roundings to the lower type are those of the results, half a unit of about 1."""
    cell = made(CASES[2], 17, SINGLE).to(dtype)
    x = torch.randn(6, 3, I).to(dtype)
    with anyrnn.engine("cpu"):
        output, state = anyrnn.scan(cell, x)
        loss_of(output.float()).backward()
    assert {output.dtype, *(s.dtype for s in state), *(p.grad.dtype for p in cell.parameters())} == {dtype}
    low = [output, *state, *(p.grad for p in cell.parameters())]
    cell.zero_grad()
    with anyrnn.engine("reference"):
        wide, state = anyrnn.scan(cell.float(), x.float())
    want = [wide, *state, *gradients(cell.parameters(), loss_of(wide))]
    assert_near(low, want, torch.finfo(dtype).eps)


def test_copies_and_pickles_of_a_layer_that_has_run(runs):
    layer = anyrnn.PeepholeLSTM(I, 5, 2)
    layer, x = layer.double(), torch.randn(3, 2, I, dtype=DOUBLE)
    with anyrnn.engine("cpu"):
        want, _ = layer(x)
        for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
            assert torch.equal(twin(x)[0], want)
            loss_of(twin(x)[0]).backward()
            assert all(p.grad is None for p in layer.parameters())
            with torch.no_grad():
                next(twin.parameters()).mul_(2)
            assert not torch.equal(twin(x)[0], want)
        assert torch.equal(layer(x)[0], want)


PARAMETRIZED = {
    "weight_norm": lambda cell: parametrizations.weight_norm(cell, "weight_hh"),
    "orthogonal": lambda cell: parametrizations.orthogonal(cell, "weight_hh"),
    "of one's own": lambda cell: parametrize.register_parametrization(cell, "weight_hh", Skew()),
}


class Skew(nn.Module):
    def forward(self, W):
        return W - W.T


@pytest.mark.parametrize("name", PARAMETRIZED)
def test_parametrizations_come_and_go(name):
    torch.manual_seed(1)
    cell = nn.RNNCell(I, 4).double()
    for _ in range(2):
        assert_near(outcome("cpu", cell, CALL, DOUBLE), outcome("reference", cell, CALL, DOUBLE), 1e-10)
        PARAMETRIZED[name](cell)
        assert_near(outcome("cpu", cell, CALL, DOUBLE), outcome("reference", cell, CALL, DOUBLE), 1e-10)
        parametrize.remove_parametrizations(cell, "weight_hh")


def test_tensors_of_any_layout():
    cell = made(CASES[2], 5, DOUBLE)
    cell.weight_hh = nn.Parameter(torch.randn(5, 20, dtype=DOUBLE).T)
    cell.weight_ih = nn.Parameter(torch.randn(40, 2 * I, dtype=DOUBLE)[::2, ::2])
    forms = {
        "batch first": torch.randn(3, 4, I, dtype=DOUBLE).transpose(0, 1),
        "strided": torch.randn(4, 3, 3 * I, dtype=DOUBLE)[..., ::3],
        "one row for all": torch.randn(4, 1, I, dtype=DOUBLE).expand(-1, 3, -1),
        "one step for all": torch.randn(1, 3, I, dtype=DOUBLE).expand(4, -1, -1),
        "part of more": torch.randn(9, 9, I, dtype=DOUBLE)[2:6, 3:6],
    }
    state = torch.randn(1, 5, dtype=DOUBLE).expand(3, -1), torch.randn(5, 3, dtype=DOUBLE).T
    for x in forms.values():
        for lengths in (None, [2, 4, 0]):
            results = []
            for engine in ("reference", "cpu"):
                with anyrnn.engine(engine):
                    output, final = anyrnn.scan(cell, x, state, lengths=lengths)
                results.append([output, *final, *gradients(cell.parameters(), loss_of(output, *final))])
            assert_near(results[1], results[0], 1e-10)


def test_results_may_be_changed_in_place_where_no_gradient_needs_them():
    cell, x = made(CASES[2], 5, DOUBLE), torch.randn(4, 3, I, dtype=DOUBLE)
    with anyrnn.engine("cpu"), torch.no_grad():
        first, (h, c) = anyrnn.scan(cell, x)
        kept = [t.clone() for t in (first, h, c)]
        again, state = anyrnn.scan(cell, x, (h, c))
        for t in (again, *state):
            t.zero_()
        close([first, h, c], kept)
    with anyrnn.engine("cpu"):
        output, _ = anyrnn.scan(cell, x)
        with pytest.raises(RuntimeError, match="inplace"):
            output.mul_(2).sum().backward()


def test_a_plan_made_without_gradients_serves_training(runs):
    for mode in (torch.inference_mode, torch.no_grad):
        cell = made(CASES[2], 5 + (mode is torch.no_grad), DOUBLE)
        x = torch.randn(4, 3, I, dtype=DOUBLE)
        with anyrnn.engine("cpu"), mode():
            output, _ = anyrnn.scan(cell, x)
            assert not output.requires_grad
        assert_near(outcome("cpu", cell, CALL, DOUBLE), outcome("reference", cell, CALL, DOUBLE), 1e-10)


def test_random_numbers_of_the_input_are_drawn_anew_at_each_step():
    cell = plain(lambda c, x, h: F.dropout(x[:, :1].expand(-1, H), 0.5, c.training) + 0 * h)
    x = torch.ones(200, 50, I, dtype=DOUBLE)
    for lengths in (None, [200] * 49 + [7]):
        with anyrnn.engine("cpu"):
            torch.manual_seed(5)
            output, _ = anyrnn.scan(cell.train(), x, lengths=lengths)
            torch.manual_seed(5)
            again, _ = anyrnn.scan(cell, x, lengths=lengths)
            still, _ = anyrnn.scan(cell.eval(), x, lengths=lengths)
        assert torch.equal(output, again)
        assert (still[:, :49] == 1).all()
        assert set(output[:, :49].unique().tolist()) == {0.0, 2.0}
        assert abs(output[:, :49].mean().item() - 1) < 0.05  # 29,400 draws: 8 standard errors
        assert not torch.equal(output[0], output[1])


DRAWS = {
    "dropout of the state": (lambda c, x, h: F.dropout(torch.exp(0 * h), 0.75), 1, 3**0.5),
    "a mask in place": (lambda c, x, h: torch.empty_like(h).bernoulli_(0.25) + 0 * h, 0.25, 0.1875**0.5),
    "a mask of a tensor": (lambda c, x, h: torch.bernoulli(torch.full_like(h, 0.25)) + 0 * h, 0.25, 0.1875**0.5),
    "a chance of the state's": (lambda c, x, h: torch.bernoulli(torch.sigmoid(0 * h)), 0.5, 0.5),
    "noise": (lambda c, x, h: torch.rand_like(h) + 0 * h, 0.5, 12**-0.5),
    "normal noise": (lambda c, x, h: torch.randn_like(h) + 0 * h, 0, 1),
    "normal noise in place": (lambda c, x, h: torch.empty_like(h).normal_(1, 2) + 0 * h, 1, 2),
    "exponential noise": (lambda c, x, h: torch.empty_like(h).exponential_(2) + 0 * h, 0.5, 0.5),
    "noise of a shape": (lambda c, x, h: torch.randn(x.shape[0], H) + 0 * h, 0, 1),
    "dropout of channels": (lambda c, x, h: F.dropout1d(torch.exp(0 * h)[:, :, None], 0.75)[..., 0], 1, 3**0.5),
}


@pytest.mark.parametrize("name", DRAWS)
def test_random_numbers_in_the_shape_of_the_state_are_of_the_distribution_and_others_at_each_step(name, runs):
    step, mean, deviation = DRAWS[name]
    cell, x = plain(step), torch.ones(200, 50, I, dtype=DOUBLE)
    count = 200 * 50 * H
    for engine in ("cpu", "reference"):
        with anyrnn.engine(engine):
            torch.manual_seed(5)
            output, _ = anyrnn.scan(cell, x)
            torch.manual_seed(5)
            again, _ = anyrnn.scan(cell, x)
        assert torch.equal(output, again)
        assert abs(output.mean().item() - mean) < 5 * deviation / count**0.5
        assert abs(output.std().item() - deviation) < 0.05 * deviation
        assert not torch.equal(output[0], output[1])
        assert not torch.equal(output[:, 0], output[:, 1])
        assert not torch.equal(output[..., 0], output[..., 1])
    assert runs


def test_the_gradient_is_of_the_numbers_that_were_drawn():
    def step(c, x, h):
        keep = torch.empty_like(h).bernoulli_(0.5)
        return keep * h + (1 - keep) * (x[:, :1] + c.v)  # zoneout of a sum

    cell, state = plain(step), torch.zeros(7, H, dtype=DOUBLE)
    for lengths in (None, [30, 1, 0, 30, 2, 17, 5]):
        x = torch.randn(30, 7, I, dtype=DOUBLE, requires_grad=True)
        with anyrnn.engine("cpu"):
            output, final = anyrnn.scan(cell, x, state, lengths=lengths)
        (grad,) = torch.autograd.grad(final.sum(), x)
        # Each final number was taken at one step, and kept since: its gradient is one, of that x alone.
        expected = torch.zeros_like(grad)
        for row, k in ((row, k) for row in range(7) for k in range(H) if final[row, k] != 0):
            expected[(output[:, row, k] == final[row, k]).to(torch.int8).argmax(), row, 0] += 1
        assert expected.sum() > 7
        torch.testing.assert_close(grad, expected)


def test_numbers_of_the_state_that_others_are_drawn_from_are_refused_with_the_cure():
    cell = plain(lambda c, x, h: torch.tanh(c.W(x) + torch.normal(h, 1.0)) if c.training else torch.tanh(c.W(x) + h))
    with anyrnn.engine("cpu"), pytest.raises(anyrnn.AnyRNNError, match="draw them apart"):
        anyrnn.scan(cell, torch.zeros(2, 2, I, dtype=DOUBLE))
    outcome("cpu", cell.eval(), CALL, DOUBLE)


class Containers(nn.Module):
    """Weights in every container, reached by attributes, by a closure and by a bound method."""

    def __init__(self):
        super().__init__()
        self.hidden_size = H
        self.listed = nn.ParameterList([torch.randn(I, H), torch.randn(H, H)])
        self.named = nn.ParameterDict({"b": nn.Parameter(torch.randn(H))})
        self.layers = nn.ModuleList([nn.Linear(H, H), nn.Linear(H, H)])
        self.stack = nn.Sequential(nn.Linear(H, 4), nn.Tanh(), nn.Linear(4, H))
        self.first = self.layers[0]
        self.by_closure = lambda h: torch.tanh(self.layers[1](h))
        self.by_method = self.method

    @property
    def skew(self):
        return self.listed[1] - self.listed[1].T

    def method(self, h):
        return self.stack(h)

    def forward(self, x, h):
        a = x @ self.listed[0] + h @ self.skew + self.named["b"] + self.first(h) + self.layers[1](h)
        return torch.tanh(a + self.by_closure(h) + self.by_method(h))


def test_weights_are_found_wherever_they_are():
    cell = Containers().double()
    assert_near(outcome("cpu", cell, CALL, DOUBLE), outcome("reference", cell, CALL, DOUBLE), 1e-10)


def test_weights_of_other_modules_are_refused():
    other = nn.Linear(H, H).double()
    cell = plain(lambda c, x, h: torch.tanh(c.W(x) + other(h)))
    with anyrnn.engine("cpu"), pytest.raises(anyrnn.AnyRNNError, match="no attribute of the cell"):
        anyrnn.scan(cell, torch.zeros(2, 2, I, dtype=DOUBLE))


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("how", ["script", "trace"])
def test_torchscript_is_refused(how):
    cell, x, h = nn.RNNCell(I, H), torch.randn(4, 3, I), torch.zeros(3, H)
    given = torch.jit.script(cell) if how == "script" else torch.jit.trace(cell, (x[0], h))
    with anyrnn.engine("cpu"), pytest.raises(anyrnn.AnyRNNError, match="TorchScript"):
        anyrnn.scan(given, x, h)
    close(flat(anyrnn.scan(given, x, h)), flat(anyrnn.scan(cell, x, h)), atol=1e-6)


def test_hooks_are_refused():
    hooked = plain(lambda c, x, h: torch.tanh(c.U(h) + c.W(x)))
    seen = []
    handle = hooked.U.register_forward_hook(lambda *_: seen.append(1))
    x = torch.zeros(2, 2, I, dtype=DOUBLE)
    with anyrnn.engine("cpu"), pytest.raises(anyrnn.AnyRNNError, match="hooks"):
        anyrnn.scan(hooked, x)
    seen.clear()
    anyrnn.scan(hooked, x)
    assert len(seen) == 2
    handle.remove()
    with anyrnn.engine("cpu"):
        anyrnn.scan(hooked, x)


@pytest.mark.parametrize("engine", ["auto", "reference"])
@pytest.mark.parametrize("trained", [False, True], ids=["forward", "training"])
def test_a_profile_taken_meanwhile_goes_on(engine, trained):
    # The cell is probed, traced and compiled within the profile: a first call, which most people profile.
    x, called = torch.randn(3, 2, I, dtype=DOUBLE), []

    def call():
        layer = anyrnn.Recurrent(made(CASES[2], 7, DOUBLE))
        called.append(layer(x)[0])
        if trained:
            called[0].sum().backward()

    profile = cProfile.Profile()
    profile.enable()
    try:
        with anyrnn.engine(engine):
            call()
        statistics.median([1])
    finally:
        profile.disable()
    entries = {entry.code: entry for entry in profile.getstats()}
    assert entries[statistics.median.__code__].callcount == len(called) == 1
    # Before Python 3.12 it stands still during a trace, and counts the call that it was in when it goes on once more.
    assert entries[call.__code__].callcount in ((1,) if sys.version_info >= (3, 12) else (1, 2))
    # The profiler's own stack of calls is whole: what the call made is counted as made by it.
    assert "_wrapped_call_impl" in {getattr(e.code, "co_name", None) for e in entries[call.__code__].calls}


def test_a_function_that_profiles_goes_on():
    x, seen = torch.randn(3, 2, I, dtype=DOUBLE), []

    def watch(frame, event, _):
        seen.append((frame.f_code.co_name, event))

    sys.setprofile(watch)
    try:
        anyrnn.scan(made(CASES[2], 7, DOUBLE), x)
        statistics.median([1])
        after = sys.getprofile()
    finally:
        sys.setprofile(None)
    assert after is watch
    assert {("scan", "return"), ("median", "return")} <= set(seen)


def test_an_output_that_no_gradient_reads_may_be_written_into():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.hidden_size = 4
            self.W, self.U = nn.Linear(3, 4), nn.Linear(4, 4)

        def forward(self, x, h):
            h = torch.tanh(self.W(x) + self.U(h))
            return h + torch.sigmoid(h), h

    torch.manual_seed(0)
    cell, grads = Scaled().double(), []
    x = torch.randn(5, 2, 3, dtype=torch.float64)
    for engine in ("reference", "cpu"):
        with anyrnn.engine(engine):
            output = anyrnn.scan(cell, x)[0]
        output.mul_(2).sum().backward()
        grads.append([p.grad.clone() for p in cell.parameters()])
        cell.zero_grad()
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def test_a_buffer_that_the_step_does_not_read_may_be_of_any_kind():
    class Sparse(nn.Module):
        def __init__(self):
            super().__init__()
            self.hidden_size = 4
            self.W, self.U, self.read = nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 2)
            self.register_buffer("graph", torch.eye(4).to_sparse())

        def forward(self, x, h):
            h = torch.tanh(self.W(x) + self.U(h))
            return self.read(h), h

    layer, x = anyrnn.Recurrent(Sparse(), input_size=3), torch.randn(5, 2, 3)
    with anyrnn.engine("cpu"):
        output = layer(x)[0]
    with anyrnn.engine("reference"):
        torch.testing.assert_close(layer(x)[0], output, rtol=1e-4, atol=1e-5)
