"""A layer is an ordinary module: copies, files, devices, types, shared and computed weights, hooks, threads."""

import contextlib
import copy
import gc
import io
import pickle
import threading
import weakref
from collections import OrderedDict, deque

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

import anyrnn
from zoo import CASES, B, H, I, T, close, flat, gradients, layer_state, loss_of, plain_layer, x_of

pytestmark = pytest.mark.grid(2)

LAYERS = {
    "RNN": anyrnn.RNN,
    "LSTM": anyrnn.LSTM,
    "LSTM-projected": lambda *a, **k: anyrnn.LSTM(*a, proj_size=2, **k),
    "GRU": anyrnn.GRU,
    "GRU-reset-before": lambda *a, **k: anyrnn.GRU(*a, reset_after=False, **k),
    "Peephole": anyrnn.PeepholeLSTM,
    "Recurrent": lambda i, h, n, bidirectional, **k: anyrnn.Recurrent(
        lambda size: anyrnn.GRUCell(size, h, **k), i, n, bidirectional=bidirectional
    ),
}
every = pytest.mark.parametrize("make", LAYERS.values(), ids=LAYERS)
both_engines = pytest.mark.parametrize("engine", ["auto", "reference"])


def made(make, **options):
    torch.manual_seed(3)
    return make(I, H, 2, bidirectional=True, dtype=torch.float64, **options)


def result(layer, x=None):
    x = x_of() if x is None else x
    output, final = layer(x, lengths=[2, 4, 0])
    return [output, *flat(final)]


COPIES = {
    "copy.copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "pickle": lambda layer: pickle.loads(pickle.dumps(layer)),
    "torch.save": lambda layer: torch.load(saved(layer), weights_only=False),
}


def saved(layer):
    file = io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    return file


@every
@pytest.mark.parametrize("way", COPIES)
def test_copies_compute_the_same_on_the_same_engine(make, way):
    layer = made(make)
    twin = COPIES[way](layer)
    close(result(twin), result(layer), atol=0)
    assert str(anyrnn.explain(twin, x_of())) == str(anyrnn.explain(layer, x_of()))
    assert repr(twin) == repr(layer)
    if way != "copy.copy":
        with torch.no_grad():
            for p in twin.parameters():
                p.mul_(2.0)
        assert not torch.equal(result(twin)[0], result(layer)[0])


@every
def test_weights_alone_go_through_a_file(make):
    layer, other = made(make), made(make)
    with torch.no_grad():
        for p in layer.parameters():
            p.add_(0.3)
    file = io.BytesIO()
    torch.save(layer.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    close(result(other), result(layer), atol=0)


@every
def test_types_change_and_come_back(make):
    layer = made(make)
    want = result(layer)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        low = copy.deepcopy(layer).to(dtype)
        got = result(low, x_of().to(dtype))
        assert all(t.dtype == dtype for t in got)
    close(result(layer.float().double()), want, atol=1e-6)


@every
def test_the_meta_device_gives_shapes_and_takes_real_weights_later(make):
    real = made(make)
    with torch.device("meta"):
        layer = made(make)
    assert all(p.is_meta for p in layer.parameters())
    for lengths in (None, [2, 4, 0]):
        with torch.device("cpu"):
            want, want_final = real(x_of(), lengths=lengths)
            x = x_of().to("meta")
        output, final = layer(x, lengths=lengths)
        assert output.is_meta
        assert [t.shape for t in (output, *flat(final))] == [t.shape for t in (want, *flat(want_final))]
    layer = layer.to_empty(device="cpu")
    layer.load_state_dict(real.state_dict())
    close(result(layer), result(real), atol=0)


@every
@both_engines
def test_a_weight_changed_between_two_calls_is_seen_by_the_second(make, engine):
    layer = made(make)
    with anyrnn.engine(engine):
        for name, parameter in layer.named_parameters():
            before = result(layer)
            with torch.no_grad():
                parameter.mul_(1.5)
            assert not torch.equal(
                torch.cat([t.flatten() for t in result(layer)]), torch.cat([t.flatten() for t in before])
            ), name
            parameter.data = parameter.data / 1.5  # other memory under the same parameter
            close(result(layer), before, atol=1e-12)


NAMED = {name: make for name, make in LAYERS.items() if name != "Recurrent"}
every_named = pytest.mark.parametrize("make", NAMED.values(), ids=NAMED)


@every_named
@both_engines
def test_computed_weights(make, engine):
    """weight_norm, an own parametrization, pruning, and a tensor put in a parameter's place."""
    for change in (
        lambda layer: parametrizations.weight_norm(layer, "weight_hh_l0"),
        lambda layer: parametrize.register_parametrization(layer, "weight_hh_l1_reverse", Tripled()),
        lambda layer: prune.l1_unstructured(layer, "weight_hh_l0_reverse", amount=0.5),
        dropped,
    ):
        layer = made(make)
        plainly = made(make)
        change(layer)
        for key in plainly.state_dict():
            with torch.no_grad():
                getattr(plainly, key).copy_(getattr(layer, key))
        with anyrnn.engine(engine):
            close(result(layer), result(plainly), atol=1e-12)
            trained = dict(layer.named_parameters())
            grads = gradients(trained.values(), loss_of(*result(layer)))
        assert all(g.abs().max() > 0 for g in grads), "every parameter under a computed weight is trained"


@pytest.mark.parametrize(
    "computed", [parametrizations.weight_norm, parametrizations.orthogonal], ids=lambda f: f.__name__
)
@pytest.mark.parametrize("engine", ["auto", "cpu", "reference"])
def test_computed_weights_that_are_cached_stay_trainable(engine, computed):
    """From the first call on, in which the cell's step is looked at, and in further calls within the same block."""
    found = []
    for context in (contextlib.nullcontext(), parametrize.cached()):
        torch.manual_seed(1)
        cell = computed(nn.GRUCell(I, H).double(), "weight_hh")
        with anyrnn.engine(engine), context:
            first, state = anyrnn.scan(cell, x_of())
            second, state = anyrnn.scan(cell, x_of(seed=4), state)
            found.append(gradients(cell.parameters(), loss_of(first, second, state)))
    close(*found)
    assert all(g.abs().max() > 0 for g in found[0])
    assert not parametrize._cache


class Tripled(nn.Module):
    def forward(self, weight):
        return 3 * weight


def dropped(layer):
    """What weight-drop code does: the parameter is kept under another name, a tensor takes its place."""
    raw = layer.weight_hh_l0
    del layer._parameters["weight_hh_l0"]
    layer.register_parameter("weight_hh_l0_raw", raw)
    layer.weight_hh_l0 = nn.functional.dropout(raw, 0.5)


@every_named
@both_engines
def test_shared_weights_get_the_sum_of_the_gradients(make, engine):
    layer = made(make)
    layer.weight_hh_l1 = layer.weight_hh_l0
    assert len(list(layer.parameters())) == len(made(make)._parameters) - 1
    with anyrnn.engine(engine):
        (shared,) = gradients([layer.weight_hh_l0], loss_of(*result(layer)))
        layer.weight_hh_l1 = nn.Parameter(layer.weight_hh_l0.detach().clone())
        close([shared], [sum(gradients([layer.weight_hh_l0, layer.weight_hh_l1], loss_of(*result(layer))))])


def test_one_cell_in_two_layers_shares_its_weights():
    cell = CASES[6].cell()
    first, second = anyrnn.Recurrent(cell), anyrnn.Recurrent(cell, batch_first=True)
    assert [id(p) for p in first.parameters()] == [id(p) for p in second.parameters()]
    close([first(x_of())[0]], [second(x_of().transpose(0, 1))[0].transpose(0, 1)])


@every
def test_hooks_on_the_layer_are_called(make):
    layer, seen = made(make), []
    layer.register_forward_hook(lambda module, given, made: seen.append(made[0].shape))
    layer.register_full_backward_hook(lambda module, into, out: seen.append("backward"))
    x = x_of().requires_grad_()
    layer(x)[0].sum().backward()
    assert seen == [(T, B, layer.output_size), "backward"]


@every
@both_engines
def test_hooks_on_gradients_of_parameters_are_called_once_a_backward_pass(make, engine):
    layer, called = made(make), []
    with anyrnn.engine(engine):
        want = gradients(layer.parameters(), loss_of(*result(layer)))
        for parameter in layer.parameters():
            parameter.register_hook(lambda g: 2 * g)
            parameter.register_post_accumulate_grad_hook(called.append)
        loss_of(*result(layer)).backward()
    assert {id(p) for p in called} == {id(p) for p in layer.parameters()}
    assert len(called) == len(want)
    close([p.grad for p in layer.parameters()], [2 * g for g in want])


@pytest.fixture
def one_process(tmp_path):
    """A group of processes of which this is the only one."""
    distributed = torch.distributed
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


@pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="PyTorch without gloo")
@pytest.mark.usefixtures("one_process")
@both_engines
def test_distributed_data_parallel_reduces_every_gradient(engine):
    """Its hooks fire: else the second pass would raise an error, and nothing would be counted."""
    layer = made(anyrnn.LSTM)
    twin, seen = copy.deepcopy(layer), []
    parallel = nn.parallel.DistributedDataParallel(layer, bucket_cap_mb=0.0005)

    def reduce(_, bucket):
        seen.extend(id(p) for p in bucket.parameters())
        done = torch.futures.Future()
        done.set_result(3 * bucket.buffer())
        return done

    parallel.register_comm_hook(None, reduce)
    for k in range(2):
        layer.zero_grad()
        with anyrnn.engine(engine):
            output, state = parallel(x_of(seed=k), lengths=[2, 4, 3])
            loss_of(output, *state).backward()
            output, state = twin(x_of(seed=k), lengths=[2, 4, 3])
        want = gradients(twin.parameters(), loss_of(output, *state))
        close([p.grad for p in layer.parameters()], [3 * g for g in want])
    assert sorted(seen) == sorted([id(p) for p in layer.parameters()] * 2)


def test_hooks_on_a_cell_are_called_at_every_step():
    layer, steps = anyrnn.Recurrent(nn.LSTMCell(I, H)), []
    usual = anyrnn.explain(layer, torch.zeros(T, B, I)).parts[0].engine
    assert usual != "reference"
    handle = layer.cell().register_forward_hook(lambda *_: steps.append(1))
    x = torch.randn(T, B, I)
    part = anyrnn.explain(layer, x).parts[0]
    assert part.engine == "reference"
    assert "hooks" in part.refused["torch"]
    layer(x)
    assert len(steps) == T
    handle.remove()
    assert anyrnn.explain(layer, x).parts[0].engine == usual


@pytest.mark.parametrize("kind", ["register_full_backward_hook", "register_full_backward_pre_hook"])
def test_hooks_on_the_gradients_of_a_cell_are_called_at_every_step(kind):
    cell, steps = Settled(), []
    layer, x = anyrnn.Recurrent(cell, I), torch.randn(T, B, I, requires_grad=True)
    layer(x)
    handle = getattr(cell, kind)(lambda *_: steps.append(1))
    layer(x)[0].sum().backward()
    assert len(steps) == T
    handle.remove()
    layer(x)[0].sum().backward()
    assert len(steps) == T


def test_a_patched_or_overridden_step_is_the_one_that_runs():
    x = torch.randn(T, B, I)

    class Doubled(anyrnn.LSTMCell):
        def step(self, x, state):
            h, c = super().step(x, state)
            return 2 * h, c

    class Turned(anyrnn.RNNCell):
        def step(self, x, h):
            return -super().step(x, h)

    class Twice(nn.GRUCell):
        def forward(self, x, h=None):
            return super().forward(x, super().forward(x, h))

    patched = nn.RNNCell(I, H)
    patched.forward = lambda x, h: h + 1
    for cell in (Doubled(I, H), Turned(I, H), Twice(I, H), patched):
        layer = anyrnn.Recurrent(cell, I)
        with anyrnn.engine("torch"), pytest.raises(anyrnn.AnyRNNError, match="RNN, LSTM and GRU only"):
            layer(x)
        with anyrnn.engine("reference"):
            want = layer(x)
        close(flat(layer(x)), flat(want), atol=1e-6)


@every
def test_evaluation_mode_reaches_activations_that_are_modules(make):
    key = "n" if "GRU" in repr(made(make)) else "h"
    layer = made(make, activations={key: nn.RReLU()})
    assert not torch.equal(result(layer)[0], result(layer)[0])
    layer.eval()
    assert torch.equal(result(layer)[0], result(layer)[0])
    assert torch.equal(result(copy.deepcopy(layer))[0], result(layer)[0])
    layer.train()
    assert not torch.equal(result(layer)[0], result(layer)[0])


@every
@both_engines
def test_several_threads_may_call_one_layer_at_once(make, engine):
    layer = made(make)
    inputs = [x_of(seed=k) for k in range(6)]
    with anyrnn.engine(engine):
        want = [result(layer, x) for x in inputs]
    got, barrier = [None] * len(inputs), threading.Barrier(len(inputs))

    def work(k):
        barrier.wait()
        with anyrnn.engine(engine):
            for _ in range(5):
                got[k] = result(layer, inputs[k])
                gradients(layer.parameters(), loss_of(*got[k]))

    threads = [threading.Thread(target=work, args=(k,)) for k in range(len(inputs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for a, b in zip(got, want, strict=True):
        close(a, b, atol=0)


@every_named
def test_replicas_as_dataparallel_makes_them_compute_with_their_own_weights(make):
    layer = made(make)
    replica = layer._replicate_for_data_parallel()
    for name, parameter in layer.named_parameters():
        setattr(replica, name, parameter * 2)
    twice = copy.deepcopy(layer)
    with torch.no_grad():
        for p in twice.parameters():
            p.mul_(2)
    close(result(replica), result(twice), atol=1e-12)
    loss_of(*result(replica)).backward()
    assert all(p.grad is not None for p in layer.parameters())


@every
def test_a_layer_is_freed_with_its_last_reference(make):
    layer = made(make)
    result(layer)
    anyrnn.scan(layer.cell(), x_of(size=I))
    gone = weakref.ref(layer), weakref.ref(layer.cell(0))
    del layer
    gc.collect()
    assert gone[0]() is None
    assert gone[1]() is None


def test_a_parameter_list_of_a_recurrent_holds_every_cell_once():
    for case in CASES:
        layer = case.layer(num_layers=2, bidirectional=True)
        assert len(list(layer.parameters())) == 4 * len(list(case.cell().parameters()))
        assert [cell is layer.cell(k // 2, k % 2 == 1) for k, cell in enumerate(layer.cells)] == [True] * 4


@every_named
def test_cell_gives_one_step_with_the_layers_present_weights(make):
    layer = made(make)
    state = layer_state(layer)
    x = x_of()
    close([layer(x, state)[0]], [plain_layer(layer, x, state)[0]])
    assert layer.cell(1, reverse=True).weight_hh is layer.weight_hh_l1_reverse
    assert layer.cell().weight_ih is layer.weight_ih_l0
    assert set(layer.cell().state_dict()) == {k.removesuffix("_l0") for k in layer.state_dict() if k.endswith("_l0")}


def test_cells_on_a_device_without_parameters_follow_x():
    class Decay(nn.Module):
        hidden_size = I

        def forward(self, x, h):
            return 0.5 * h + x

    layer = anyrnn.Recurrent(Decay())
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        x = torch.ones(3, 1, I, dtype=dtype)
        output, final = layer(x)
        assert output.dtype == final.dtype == dtype
        assert output[:, 0, 0].tolist() == [1.0, 1.5, 1.75]
        assert anyrnn.scan(Decay(), x)[1].dtype == dtype
    assert layer(x.to("meta"))[0].is_meta


class Settled(nn.Module):
    """A cell whose step depends on what its attributes hold."""

    def __init__(self, **attributes):
        super().__init__()
        self.hidden_size = I
        self.W, self.V = nn.Parameter(torch.randn(I, I)), nn.Parameter(torch.randn(I, I))
        vars(self).update({"rates": {"h": 0.1}, "acts": (nn.LeakyReLU(0.1),), "p": torch.ones(I), "q": torch.ones(I)})
        vars(self).update(attributes)

    def forward(self, x, h):
        rate = self.rates["h"]
        rate = rate[0] if isinstance(rate, deque) else rate
        return self.acts[0](x @ self.V + rate * self.p * h - self.q * (h @ self.W).tanh())


class Inheriting(Settled):
    def __repr__(self):
        return "a class with a method, so that it is one of those looked at"


def test_a_method_added_to_a_cells_class_is_seen():
    cell, x = Inheriting(), torch.randn(T, B, I)
    with anyrnn.engine("cpu"):
        anyrnn.scan(cell, x)
        Inheriting.forward = lambda self, x, h: x - h
        try:
            found = anyrnn.scan(cell, x)[0]
        finally:
            del Inheriting.forward
    close([found[:2]], [torch.stack([x[0], x[1] - x[0]])], atol=1e-6)


def untie(cell):
    cell.W = nn.Parameter(torch.randn(I, I))


TIED = torch.ones(I)
CHANGES = {
    "an ordered dict": ({"rates": OrderedDict(h=0.1)}, lambda cell: cell.rates.update(h=2.0)),
    "a module that is not registered": ({}, lambda cell: vars(cell.acts[0]).update(negative_slope=0.9)),
    "a module within it": (
        {"acts": (nn.Sequential(nn.Tanh()),)},
        lambda cell: cell.acts[0].register_module("0", nn.ReLU()),
    ),
    "a deque": ({"rates": {"h": deque([0.1])}}, lambda cell: cell.rates["h"].__setitem__(0, 2.0)),
    "a weight tied before": ({}, untie),
    "a tensor tied before": ({"p": TIED, "q": TIED}, lambda cell: vars(cell).update(p=torch.full((I,), 0.2))),
}


@pytest.mark.parametrize("attributes, change", CHANGES.values(), ids=CHANGES)
def test_a_cell_changed_between_two_calls_is_seen_by_the_second(attributes, change):
    cell, x = Settled(**attributes), torch.randn(T, B, I)
    if change is untie:
        cell.V = cell.W
    with anyrnn.engine("cpu"):
        before = anyrnn.scan(cell, x)[0]
    change(cell)
    found = []
    for engine in ("cpu", "reference"):
        with anyrnn.engine(engine):
            found.append(anyrnn.scan(cell, x)[0])
    assert not torch.allclose(found[0], before)
    close(found[:1], found[1:], atol=1e-5)


def test_cells_of_unequal_ordered_dicts_or_ties_share_no_machine_code():
    x = torch.randn(T, B, I)
    for some, others in (({"rates": OrderedDict(h=0.1)}, {"rates": OrderedDict(h=2.0)}), ({"p": TIED, "q": TIED}, {})):
        first, second = (Settled(acts=(torch.tanh,), **a) for a in (some, others))
        second.q = torch.full((I,), 0.2)
        found = []
        for engine in ("cpu", "reference"):
            with anyrnn.engine(engine):
                anyrnn.scan(first, x)
                found.append(anyrnn.scan(second, x)[0])
        close(found[:1], found[1:], atol=1e-5)


class Passing(nn.Module):
    """A cell whose output is what it was given, or a weight."""

    def __init__(self, output):
        super().__init__()
        self.hidden_size, self.output = I, output
        self.b = nn.Parameter(torch.randn(I))

    def forward(self, x, h):
        return x if self.output == "x" else self.b.expand(len(x), -1), torch.tanh(x + self.b * h)


@both_engines
def test_an_output_is_a_tensor_of_its_own_also_where_a_cell_passes_it_through(engine):
    for output in ("x", "b"):
        cell, x = Passing(output), torch.randn(T, B, I)
        kept = x.clone(), cell.b.detach().clone()
        for grad in (False, True):
            with anyrnn.engine(engine), torch.set_grad_enabled(grad):
                anyrnn.scan(cell, x)[0].mul_(2)
        close([x, cell.b.detach()], kept, atol=0)


@every_named
def test_a_cell_of_a_layer_is_in_the_mode_of_the_layer(make):
    layer = made(make)
    for mode in (True, False, True):
        layer.train(mode)
        result(layer)
        assert layer.cell().training is layer.cell(1, reverse=True).training is mode
        assert all(layer._cell(k, False).training is mode for k in range(2))


class Reading(anyrnn.GRUCell):
    """Its step depends on the mode."""

    def step(self, x, h):
        return super().step(x, h) if self.training else h + 1


class OfReading(anyrnn.GRU):
    cell_type = Reading


@both_engines
def test_a_step_that_asks_for_the_mode_gets_the_layers(engine):
    layer, plainly = OfReading(I, H), anyrnn.GRU(I, H)
    plainly.load_state_dict(layer.state_dict())
    x = torch.randn(T, B, I)
    with anyrnn.engine(engine):
        for _ in range(2):
            close([layer.train()(x)[0]], [plainly(x)[0]], atol=1e-6)
            assert (layer.eval()(x)[1] == T).all()


@both_engines
@pytest.mark.parametrize("value", [(1, 2), None, nn.Linear(1, 1), "text"], ids=str)
def test_an_attribute_of_a_cell_may_have_any_name(engine, value):
    x = torch.randn(T, B, I)
    for cell in (nn.GRUCell(I, H), anyrnn.GRUCell(I, H)):
        plainly = copy.deepcopy(cell)
        cell._origin = value
        with anyrnn.engine(engine):
            close(anyrnn.Recurrent(cell)(x), anyrnn.Recurrent(plainly)(x), atol=1e-6)


@pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="PyTorch without gloo")
@pytest.mark.usefixtures("one_process")
@both_engines
def test_distributed_data_parallel_goes_on_where_a_batch_has_no_steps(engine):
    layer = made(anyrnn.GRU)
    parallel = nn.parallel.DistributedDataParallel(layer)
    for lengths in ([2, 4, 3], [0] * B, [0] * B, [2, 4, 3]):
        layer.zero_grad()
        with anyrnn.engine(engine):
            output, state = parallel(x_of(), lengths=lengths)
        loss_of(output, state).backward()
        assert all(bool(p.grad.abs().max() > 0) is (max(lengths) > 0) for p in layer.parameters())


# ---- Layers of ours inside a cell ----


class OverInput(nn.Module):
    """A recurrent layer runs over the features of x, at every step."""

    def __init__(self, inner):
        super().__init__()
        self.hidden_size, self.inner = H, inner(1, 4)
        self.w = nn.Linear(4 + H, H)

    def forward(self, x, h):
        _, e = self.inner(x.t().unsqueeze(-1))
        return torch.tanh(self.w(torch.cat((flat(e)[0][0], h), 1)))


class OverState(OverInput):
    """... over the features of h."""

    def forward(self, x, h):
        _, e = self.inner(h.t().unsqueeze(-1), lengths=[H] * len(h))
        return torch.tanh(self.w(torch.cat((flat(e)[0][0], torch.tanh(h) + x.sum(1, keepdim=True)), 1)))


class OverOutput(nn.Module):
    """... over what the step returns, and no state depends on it."""

    def __init__(self, inner):
        super().__init__()
        self.hidden_size, self.inner = H, inner(H, 4)
        self.w = nn.Linear(I + H, H)

    def forward(self, x, h):
        h = torch.tanh(self.w(torch.cat((x, h), 1)))
        return self.inner(h.unsqueeze(0))[0][0], h


INNER = {
    "GRU": anyrnn.GRU,
    "LSTM": anyrnn.LSTM,
    "Recurrent": lambda i, h: anyrnn.Recurrent(nn.GRUCell(i, h)),
    "plain own cell": lambda i, h: anyrnn.Recurrent(lambda size: OfOne(size, h), i),
}


class OfOne(nn.Module):
    def __init__(self, input_size, hidden_size):
        super().__init__()
        self.hidden_size = hidden_size
        self.W, self.U = nn.Linear(input_size, hidden_size), nn.Linear(hidden_size, hidden_size)

    def forward(self, x, h):
        return torch.tanh(self.W(x) + self.U(h))


@pytest.mark.parametrize("kind", [OverInput, OverState, OverOutput])
@pytest.mark.parametrize("inner", INNER)
@pytest.mark.parametrize("warm", [False, True], ids=["cold", "warm"])
def test_a_layer_inside_a_cell_gives_what_it_gives_in_plain_python(kind, inner, warm):
    torch.manual_seed(2)
    cell, x = kind(INNER[inner]).double(), x_of()
    layer = anyrnn.Recurrent(cell, I)
    if warm:
        cell.inner(torch.zeros(2, 1, cell.inner.input_size, dtype=torch.float64))
    for lengths in (None, [2, 4, 0]):
        found = []
        for engine in ("reference", "auto", "auto"):
            leaf = x.clone().requires_grad_()
            with anyrnn.engine(engine):
                output, final = layer(leaf, lengths=lengths)
            found.append([output, final, *gradients([leaf, *cell.parameters()], loss_of(output, final))])
        close(found[1], found[0])
        close(found[2], found[0])
    changed = next(cell.inner.parameters())
    with torch.no_grad():
        changed.mul_(-2)
    with anyrnn.engine("reference"):
        want = layer(x)
    assert not torch.allclose(want[0], found[0][0])
    close(layer(x), want)
