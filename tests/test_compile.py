"""Below torch.compile a layer is operators that hold its step as text: same results and gradients, no graph breaks."""

import copy
import gc
import re
import shutil

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch._inductor.utils import fresh_cache, run_and_get_code
from torch.nn import functional as F
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

import anyrnn
from anyrnn import operators, traced
from anyrnn.compiler.graph_text import written
from anyrnn.compiler.trace import tensors_of, trace
from anyrnn.engines import select
from anyrnn.probing import describe
from zoo import CASES, flat

# PyTorch's compiler warns of itself.
pytestmark = pytest.mark.filterwarnings("default")

LAYERS = {
    "LSTM, 2 layers, 2 directions": lambda: anyrnn.LSTM(3, 5, num_layers=2, bidirectional=True),
    "PeepholeLSTM": lambda: anyrnn.PeepholeLSTM(3, 5),
    "own cell": lambda: anyrnn.Recurrent(Leaky(3, 4)),
}


class Leaky(nn.Module):
    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__()
        self.input_size, self.hidden_size = input_size, hidden_size
        self.new = nn.Linear(input_size + hidden_size, hidden_size)

    def forward(self, x, h):
        return 0.9 * h + 0.1 * torch.tanh(self.new(torch.cat((x, h), 1)))


class Noisy(Leaky):
    """Draws random numbers at each step."""

    def forward(self, x, h):
        return super().forward(F.dropout(x, 0.5, self.training), F.dropout(h, 0.5, self.training))


class Model(nn.Module):
    def __init__(self, layer) -> None:
        super().__init__()
        self.layer = layer
        self.head = nn.Linear(layer.output_size, 2)

    def forward(self, x, lengths):
        return self.head(torch.relu(self.layer(2 * x, lengths=lengths)[0]))


@pytest.fixture(params=LAYERS)
def model(request):
    torch.manual_seed(0)
    torch._dynamo.reset()
    return Model(LAYERS[request.param]()).double()


def call():
    x = torch.randn(7, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1), requires_grad=True)
    return x, torch.tensor([7, 2, 0])


def test_a_compiled_model_has_the_eager_values_and_gradients_without_graph_breaks(model):
    x, lengths = call()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    results = []
    for run in (model, compiled):
        y = run(x, lengths)
        results.append([y, *torch.autograd.grad(y.square().sum(), [x, *model.parameters()])])
    for eager, ours in zip(*results, strict=True):
        torch.testing.assert_close(ours, eager, rtol=0, atol=1e-10)


def gradients_of(y, *leaves):
    return torch.autograd.grad(y.square().sum(), leaves)


def compare(got, want, atol=1e-10):
    for a, b in zip(flat(got), flat(want), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=atol)


# ---- The operators themselves ----


class Drawing(nn.Module):
    """Its step has no loop program: what it draws differs from step to step."""

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__()
        self.hidden_size = hidden_size
        self.new = nn.Linear(input_size + hidden_size, hidden_size)

    def forward(self, x, h):
        return torch.tanh(self.new(torch.cat((x, F.dropout(h, 0.5)), 1)))


class Spiking(nn.Module):
    """Has a function with a derivative of its own before, in and after the loop."""

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__()
        self.hidden_size = hidden_size
        self.new = nn.Linear(input_size + hidden_size, hidden_size)
        self.spike = anyrnn.elementwise(lambda v: v > 0, lambda v: 1 / (1 + 10 * v.abs()) ** 2)

    def forward(self, x, v):
        v = 0.9 * v + self.new(torch.cat((self.spike(x), self.spike(v - 0.5)), 1))
        return self.spike(v) * v, v


OPERANDS = {
    "LSTM": {},
    "LSTM, ragged": {"lengths": [4, 0, 1]},
    "LSTM backward": {"lengths": [4, 0, 1], "reverse": True},
    "LSTM, no steps": {"lengths": [0, 0, 0]},
    "GRU": {},
    "ConcatLSTM": {},  # its output is no state
    "ConcatLSTM, ragged": {"lengths": [4, 0, 1]},
    "Buffered": {},
    "Buffered, ragged": {"lengths": [4, 0, 1]},
    "LSTM in bfloat16": {"autocast": torch.bfloat16},
    "GRU without gradients": {"trained": False},
    "Spiking": {},
    "Spiking, ragged": {"lengths": [4, 0, 1], "reverse": True},
    "Drawing": {},
    "Drawing, ragged": {"lengths": [4, 0, 1], "reverse": True},
}


def arguments(name, lengths=None, reverse=False, autocast=None, trained=True):
    name = name.replace(",", "").split()[0]
    own = {"Drawing": Drawing, "Spiking": Spiking}
    cell = own[name](3, 5) if name in own else next(case.cell(3) for case in CASES if case.name == name)
    cell = cell.float() if autocast else cell.double()
    dtype = next(cell.parameters()).dtype
    signature = describe(cell, 3)
    step = written(trace(cell, signature, 3, dtype))
    x = torch.randn(4, 3, 3, dtype=dtype, requires_grad=trained)
    states = [torch.randn(3, size, dtype=dtype, requires_grad=trained) for size in signature.state_sizes]
    weights = [tensors_of(cell)[n].requires_grad_(trained) for n in operators.parsed(step).weights]
    lengths = None if lengths is None else torch.tensor(lengths)
    return step, x, states, [], lengths, weights, reverse, autocast


class Leaves(TorchDispatchMode):
    """Notes the calls of this package's operators that are kernels, with what they were given."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "anyrnn":
            self.calls.append((func, args))
        return func(*args, **(kwargs or {}))


@pytest.mark.grid(3)
@pytest.mark.parametrize("name", OPERANDS)
def test_the_operators_pass_pytorchs_own_checks(name):
    """Their schemas, that they return no memory of their arguments, fake tensors, and autograd with any sizes."""
    given = arguments(name, **OPERANDS[name])
    torch.library.opcheck(torch.ops.anyrnn.scan.default, given)
    for wanted in (slice(None), slice(1)):  # gradients of all results, and of the output alone
        with Leaves() as leaves:
            results = torch.ops.anyrnn.scan(*given)[wanted]
            if results[0].requires_grad:
                sum(r.square().sum() for r in results if r.requires_grad).backward()
        kind = "steps" if name.startswith("Drawing") else "loop"
        names = [f"anyrnn::{kind}", f"anyrnn::{kind}_backward"][: 1 + results[0].requires_grad]
        kernels = [func._schema.name for func, _ in leaves.calls if func is not torch.ops.anyrnn.surrogate.default]
        assert kernels == names
        for func, args in leaves.calls:
            trained = "backward" not in func._schema.name
            leaf = pytree.tree_map_only(
                torch.Tensor, lambda t, trained=trained: t.detach().requires_grad_(trained and t.requires_grad), args
            )
            torch.library.opcheck(func, leaf)


def test_gradients_of_gradients_break_clearly():
    """An operator has one backward pass. An ordinary call has as many as are asked for."""
    step, x, *others = arguments("LSTM")
    output, *_ = torch.ops.anyrnn.scan(step, x, *others)
    (gradient,) = torch.autograd.grad(output.square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="no autograd formula was registered"):
        gradient.square().sum().backward()


def test_an_operator_is_told_how_many_weights_its_step_has():
    step, x, states, extras, lengths, weights, *others = arguments("GRU")
    with pytest.raises(anyrnn.AnyRNNError, match=r"got 3 weights, expected 4: weight_ih, weight_hh, bias_ih, bias_hh"):
        torch.ops.anyrnn.scan(step, x, states, extras, lengths, weights[:3], *others)


# ---- Sizes that change ----


def sized(T, B):
    x = torch.randn(T, B, 3, dtype=torch.float64, requires_grad=True)
    return x, torch.randint(1, T + 1, (B,))


@pytest.mark.grid(2)
@pytest.mark.parametrize("how", ["dynamic=True", "marked", "found"])
def test_sizes_that_change_are_compiled_for_once(how):
    """PyTorch finds out by itself that sizes change when it meets the second ones; told so, it need not."""
    model = Model(LAYERS["LSTM, 2 layers, 2 directions"]()).double()
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(model, fullgraph=True, backend=counter, dynamic=True if how == "dynamic=True" else None)
    compilations = []
    for T, B in ((7, 4), (9, 5), (20, 2), (2, 6), (5, 5)):
        x, lengths = sized(T, B)
        if how == "marked":
            torch._dynamo.mark_dynamic(x, (0, 1))
            torch._dynamo.mark_dynamic(lengths, 0)
        got, want = compiled(x, lengths), model(x, lengths)
        compare([got, *gradients_of(got, x)], [want, *gradients_of(want, x)])
        compilations.append(counter.frame_count)
    assert len(set(compilations[1 if how == "found" else 0 :])) == 1


def test_lengths_are_checked_when_a_compiled_model_runs():
    model = Model(LAYERS["own cell"]()).double()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    x, _ = call()
    compare(compiled(x, None), model(x, None))
    compare(compiled(x, [3, 7, 1]), model(x, [3, 7, 1]))
    with pytest.raises(anyrnn.AnyRNNError, match=r"lengths\[1\] is 8, expected 0 to T=7"):
        compiled(x, torch.tensor([7, 8, 0]))


@pytest.mark.long
def test_a_compiled_layer_takes_states_packed_sequences_and_single_sequences():
    layer = anyrnn.LSTM(3, 5, num_layers=2, bidirectional=True, dtype=torch.float64)
    compiled = torch.compile(layer, backend="aot_eager")
    x, _ = call()
    _, state = layer(x)
    leaves = [x, *(s.detach_().requires_grad_() for s in state), *layer.parameters()]
    got, want = (flat(run(x, state)) for run in (compiled, layer))
    compare(got, want)
    compare(*(torch.autograd.grad(sum(t.square().sum() for t in r), leaves) for r in (got, want)))
    packed = nn.utils.rnn.pack_padded_sequence(x, torch.tensor([3, 7, 1]), enforce_sorted=False)
    compare(compiled(packed)[0].data, layer(packed)[0].data)
    compare(compiled(x[:, 0]), layer(x[:, 0]))


def test_training_below_compile_takes_the_eager_course():
    model = Model(LAYERS["PeepholeLSTM"]()).double()
    twin = copy.deepcopy(model)
    compiled, (x, lengths) = torch.compile(model, fullgraph=True, backend="aot_eager"), call()
    for run, parameters in ((compiled, model.parameters()), (twin, twin.parameters())):
        optimizer = torch.optim.Adam(parameters, 0.1)
        for _ in range(4):
            optimizer.zero_grad()
            run(x, lengths).square().sum().backward()
            optimizer.step()
    compare(list(model.parameters()), list(twin.parameters()))
    model.layer.requires_grad_(False)
    compare(gradients_of(compiled(x, lengths), x), gradients_of(model(x, lengths), x))


# ---- Random numbers ----

RANDOM = {
    "between layers": lambda: anyrnn.GRU(3, 5, num_layers=3, bidirectional=True, dropout=0.5),
    "within a cell": lambda: anyrnn.Recurrent(Noisy(3, 4)),
}


@pytest.mark.parametrize("where", [pytest.param("between layers", marks=pytest.mark.long), "within a cell"])
def test_dropout_below_compile_is_the_eager_one_in_both_passes(where):
    """With the same seed the same numbers are dropped, in the backward pass too, where it runs the steps anew."""
    torch._dynamo.reset()
    model, (x, lengths) = Model(RANDOM[where]()).double(), call()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")

    def seeded(run, x):
        torch.manual_seed(9)
        return run(x, lengths)

    got, want = seeded(compiled, x), seeded(model, x)
    assert not torch.equal(got, compiled(x, lengths)), "drawn anew at each call"
    got = seeded(compiled, x)
    leaves, state = [x, *model.parameters()], torch.get_rng_state()
    found = gradients_of(got, *leaves)
    assert torch.equal(torch.get_rng_state(), state)
    compare([got, *found], [want, *gradients_of(want, *leaves)])
    direction, eps = torch.randn_like(x), 1e-6
    with torch.no_grad():
        up, down = (seeded(compiled, x + sign * eps * direction).square().sum() for sign in (1, -1))
    compare((found[0] * direction).sum(), (up - down) / (2 * eps), atol=1e-7)
    model.eval()
    compare(compiled(x, lengths), compiled(x, lengths))
    compare(compiled(x, lengths), model(x, lengths))


def test_autocast_below_compile_is_the_eager_one():
    layer, x = anyrnn.LSTM(3, 5), torch.randn(4, 2, 3)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    with torch.autocast("cpu", torch.bfloat16):
        for given in (x, x.bfloat16()):
            got, want = flat(compiled(given)), flat(layer(given))
            assert [t.dtype for t in got] == [t.dtype for t in want]
            compare(got, want, atol=0)


# ---- A cell that changes after it was compiled ----


class Settings(nn.Module):
    """Reads what may change: numbers, a flag, a list, a class attribute, a global."""

    power = 1.0

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__()
        self.hidden_size = hidden_size
        self.new = nn.Linear(input_size + hidden_size, hidden_size)
        self.slope, self.flag, self.scales = 0.9, True, [0.5]

    def forward(self, x, h):
        new = torch.tanh(self.new(torch.cat((x, h), 1))) * self.scales[0] * self.power * FACTOR
        return self.slope * h + (new if self.flag else -new)


FACTOR = 1.0


def _set(name, value):
    return lambda cell, monkeypatch: setattr(cell, name, value)


CHANGES = {
    "a number": _set("slope", 0.5),
    "a flag": _set("flag", False),
    "within a list": lambda cell, monkeypatch: cell.scales.__setitem__(0, 2.0),
    "another list": _set("scales", [2.0]),
    "the class": lambda cell, monkeypatch: monkeypatch.setattr(Settings, "power", 2.0),
    "a global": lambda cell, monkeypatch: monkeypatch.setitem(globals(), "FACTOR", 2.0),
    "the code": lambda cell, monkeypatch: monkeypatch.setattr(Settings, "forward", lambda self, x, h: h + self.slope),
    "a weight": lambda cell, monkeypatch: cell.new.register_parameter("bias", nn.Parameter(torch.ones(4).double())),
    "a hook": lambda cell, monkeypatch: cell.register_forward_hook(lambda cell, given, result: 2 * result),
}


@pytest.mark.grid(2)
@pytest.mark.parametrize("what", CHANGES)
def test_a_change_of_the_cell_after_compilation_is_seen(what, monkeypatch):
    torch._dynamo.reset()
    layer = anyrnn.Recurrent(Settings(3, 4)).double()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    x, _ = call()
    before = compiled(x)[0]
    compare(before, layer(x)[0])
    CHANGES[what](layer.cells[0], monkeypatch)
    compare(compiled(x)[0], layer(x)[0])
    assert not torch.allclose(layer(x)[0], before)


def test_a_number_that_changes_again_and_again_is_an_input():
    torch._dynamo.reset()
    layer = anyrnn.Recurrent(Settings(3, 4)).double()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(layer, fullgraph=True, backend=counter)
    x, _ = call()
    for slope in (0.9, 0.8, 0.7, 0.6, 0.5, 0.4):
        layer.cells[0].slope = slope
        compare(compiled(x)[0], layer(x)[0])
    assert counter.frame_count == 3  # the number, another number, a number


def test_a_step_is_recorded_once_for_all_calls_and_kept_as_long_as_its_cell():
    torch._dynamo.reset()
    layer = anyrnn.Recurrent(Settings(3, 4)).double()
    before = set(vars(traced._WATCHES))
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    for _ in range(3):
        compiled(call()[0])
    assert len(set(vars(traced._WATCHES)) - before) == 1
    del layer, compiled
    torch._dynamo.reset()
    gc.collect()
    assert set(vars(traced._WATCHES)) <= before


# ---- Engines, and cells that cannot be recorded ----


class Reading(nn.Module):
    """Decides by a number in a tensor."""

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__()
        self.hidden_size = hidden_size
        self.new = nn.Linear(input_size + hidden_size, hidden_size)
        self.doubles = True

    def forward(self, x, h):
        h = torch.tanh(self.new(torch.cat((x, h), 1)))
        return 2 * h if h.sum().item() > 0 else h


class Moving(Reading):
    """Moves the batch to the end, which the tracer does not follow."""

    def forward(self, x, h):
        return torch.tanh(self.new(torch.cat((x, h), 1))).t().contiguous().cos().t()


def test_a_cell_that_cannot_be_recorded_is_traced_step_by_step_in_a_short_sequence():
    torch._dynamo.reset()
    layer = anyrnn.Recurrent(Moving(3, 4), input_size=3).double()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    x, _ = call()
    got, want = compiled(x)[0], layer(x)[0]
    compare([got, *gradients_of(got, x)], [want, *gradients_of(want, x)])


@pytest.mark.grid(2)
@pytest.mark.parametrize("cell", [Reading, Moving])
@pytest.mark.parametrize("lengths", [None, [20, 3, 0]], ids=["full", "ragged"])
def test_a_cell_that_cannot_be_recorded_breaks_the_graph_in_a_long_or_ragged_one_and_says_why(cell, lengths):
    torch._dynamo.reset()
    layer = anyrnn.Recurrent(cell(3, 4), input_size=3).double()
    model = Model(layer).double()
    x = torch.randn(20, 3, 3, dtype=torch.float64)
    compare(torch.compile(model, backend="aot_eager")(x, lengths), model(x, lengths))
    torch._dynamo.reset()
    why = "a Python number is taken from a tensor" if cell is Reading else "moves the batch"
    with pytest.raises(torch._dynamo.exc.Unsupported, match=f"(?s){cell.__name__}: its step is no operator.*{why}"):
        torch.compile(model, fullgraph=True, backend="aot_eager")(x, lengths)


@pytest.mark.grid(2)
@pytest.mark.parametrize("engine", ["reference", "torch", "cpu"])
def test_an_engine_that_is_asked_for_by_name_is_asked_for_below_compile(engine, monkeypatch):
    torch._dynamo.reset()
    layer = anyrnn.GRU(3, 4, dtype=torch.float64)
    compiled, x = torch.compile(layer, backend="aot_eager"), call()[0]
    want = layer(x)[0]
    compare(compiled(x)[0], want)
    ran = []
    for name, each in select.ENGINES.items():
        monkeypatch.setattr(each, "run", lambda call, name=name, run=each.run: ran.append(name) or run(call))
    with anyrnn.engine(engine):
        long = torch.cat([x] * 3)
        got = compiled(long)[0]
        assert set(ran) == (set() if engine == "cpu" else {engine})
        compare(got, layer(long)[0])


def test_the_cpu_engine_asked_for_by_name_refuses_below_compile_as_ever():
    torch._dynamo.reset()
    layer = anyrnn.Recurrent(Reading(3, 4)).double()
    with anyrnn.engine("cpu"), pytest.raises(anyrnn.AnyRNNError, match="engine 'cpu' was asked for by name and cannot"):
        torch.compile(layer, backend="aot_eager")(call()[0])


# ---- Inductor ----


class Encoding(nn.Module):
    """Has much to do before the loop."""

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__()
        self.hidden_size = hidden_size
        self.new = nn.Linear(input_size + hidden_size, hidden_size)

    def forward(self, x, h):
        e = torch.sin(x) * torch.exp(-x * x) + torch.erf(x).square()
        e = torch.where(e > 0.1, e * torch.sigmoid(x), torch.log1p(x * x))
        return 0.9 * h + 0.1 * torch.tanh(self.new(torch.cat((e, h), 1)))


@pytest.mark.long
@pytest.mark.skipif(shutil.which("g++") is None, reason="Inductor needs a C++ compiler")
@fresh_cache()  # else PyTorch finds on disk what another version of the operators made of these texts
def test_inductor_fuses_what_is_before_the_loop_into_the_callers_kernel():
    torch._dynamo.reset()
    model = Model(anyrnn.Recurrent(Encoding(3, 4), input_size=3)).double()
    compiled, (x, lengths) = torch.compile(model, fullgraph=True), call()
    for given in (None, lengths):
        _, (code, *_) = run_and_get_code(lambda given=given: compiled(x, given))
        # One kernel has the model's own product, 2 x, and all of the encoding; what follows is the loop.
        kernels = re.findall(r"(?m)^ *(cpp_fused_\w+)\(|torch\.ops\.(anyrnn\.loop)", code)
        first = kernels[0][0]
        assert all(f"_{name}_" in first for name in ("mul", "sin", "exp", "erf", "sigmoid", "log1p", "where")), first
        assert kernels[1][1] == "anyrnn.loop"
        got, want = compiled(x, given), model(x, given)
        leaves = [x, *model.parameters()]
        compare([got, *gradients_of(got, *leaves)], [want, *gradients_of(want, *leaves)])
