"""Below torch.compile and torch.export a layer is one operator a scan: same results and gradients, no graph breaks."""

import copy
import subprocess
import sys

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.export import Dim
from torch.nn import functional as F

import anyrnn
from anyrnn import opaque
from anyrnn.protocol import describe
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


def test_an_exported_model_has_the_eager_values(model):
    x, lengths = call()
    program = torch.export.export(model, (x, lengths))
    torch.testing.assert_close(program.module()(x, lengths), model(x, lengths), rtol=0, atol=1e-10)


def gradients_of(y, *leaves):
    return torch.autograd.grad(y.square().sum(), leaves)


def compare(got, want, atol=1e-10):
    for a, b in zip(flat(got), flat(want), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=atol)


# ---- The operators themselves ----

OPERANDS = {
    "LSTM": {},
    "LSTM, ragged": {"lengths": [4, 0, 1]},
    "LSTM backward": {"lengths": [4, 0, 1], "reverse": True},
    "GRU": {},
    "ConcatLSTM": {},  # its output is no state
    "Buffered": {},
    "LSTM in bfloat16": {"autocast": torch.bfloat16},
    "GRU without gradients": {"trained": False},
}


def arguments(name, lengths=None, reverse=False, autocast=None, trained=True):
    case = next(case for case in CASES if case.name == name.replace(",", "").split()[0])
    cell = case.cell(3, torch.float32 if autocast else torch.float64)
    signature, weights = describe(cell, 3), [*cell.parameters(), *cell.buffers()]
    dtype = weights[0].dtype
    x = torch.randn(4, 3, 3, dtype=dtype, requires_grad=trained)
    states = [torch.randn(3, size, dtype=dtype, requires_grad=trained) for size in signature.state_sizes]
    needed = [trained and t.requires_grad for t in (x, *states, *weights)]
    number = opaque.number_of(cell), reverse, signature.bare, signature.has_output, signature.output_size, autocast
    lengths = None if lengths is None else torch.tensor(lengths)
    return cell, (needed, x, states, lengths, weights, *number)


@pytest.mark.parametrize("name", OPERANDS)
def test_the_operators_pass_pytorchs_own_checks(name):
    """Their schemas, that they return no memory of their arguments, fake tensors, and autograd with any sizes."""
    cell, given = arguments(name, **OPERANDS[name])
    torch.library.opcheck(torch.ops.anyrnn.scan.default, given)
    *results, random = (t.detach() for t in torch.ops.anyrnn.scan(*given))
    needed, x, states, lengths, weights, *options = given
    fixed = (x.detach(), [s.detach() for s in states], lengths, [w.detach() for w in weights], *options)
    for grads in ([torch.randn_like(r) for r in results], [torch.ones_like(results[0]), *[None] * len(states)]):
        if any(needed):
            torch.library.opcheck(torch.ops.anyrnn.scan_backward.default, (grads, results, random, needed, *fixed))
    assert cell is not None  # kept alive: the operators know it by a number


# ---- Sizes that change ----


def sized(T, B):
    x = torch.randn(T, B, 3, dtype=torch.float64, requires_grad=True)
    return x, torch.randint(1, T + 1, (B,))


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


@pytest.mark.parametrize("kept", [True, False], ids=["kept", "replayed"])
@pytest.mark.parametrize("where", RANDOM)
def test_dropout_below_compile_is_the_eager_one_in_both_passes(where, kept):
    """With the same seed the same numbers are dropped, in the backward pass too, even where it runs the scan anew."""
    torch._dynamo.reset()
    model, (x, lengths) = Model(RANDOM[where]()).double(), call()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")

    def seeded(run, x):
        torch.manual_seed(9)
        return run(x, lengths)

    got, want = seeded(compiled, x), seeded(model, x)
    assert not torch.equal(got, compiled(x, lengths)), "drawn anew at each call"
    got = seeded(compiled, x)
    if not kept:
        opaque._kept.clear()
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


# ---- Export ----


def test_an_exported_model_takes_any_sizes_and_its_own_weights(model):
    T, B = Dim("T"), Dim("B")
    program = torch.export.export(model, sized(7, 4), dynamic_shapes=({0: T, 1: B}, {0: B}))
    exported = program.module()
    for sizes in ((7, 4), (20, 2), (2, 5)):
        given = sized(*sizes)
        compare(exported(*given), model(*given))
    lighter, exported = copy.deepcopy(model), copy.deepcopy(exported)
    with torch.no_grad():
        for parameter in (*lighter.parameters(), *exported.parameters()):
            parameter.mul_(0.5)
    compare(exported(*given), lighter(*given))


ALONE = """
import sys, torch
program, (x, expected) = torch.export.load(sys.argv[1]), torch.load(sys.argv[2])
torch.testing.assert_close(program.module()(x), expected)
assert "anyrnn" not in sys.modules
"""


class First(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = anyrnn.GRU(3, 5, bidirectional=True)

    def forward(self, x):
        return self.layer(x)[0]


def test_a_program_exported_step_by_step_runs_without_this_package(tmp_path):
    model, x = First(), torch.randn(5, 2, 3)
    with anyrnn.engine("reference"):
        program = torch.export.export(model, (x,))
    torch.export.save(program, tmp_path / "program.pt2")
    torch.save((x, model(x)), tmp_path / "numbers.pt")
    command = [sys.executable, "-W", "ignore", "-c", ALONE, tmp_path / "program.pt2", tmp_path / "numbers.pt"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_program_of_operators_runs_where_it_was_exported_and_elsewhere_says_so(tmp_path, monkeypatch):
    model, x = First(), torch.randn(5, 2, 3)
    want = model(x)
    torch.export.save(torch.export.export(model, (x,)), tmp_path / "program.pt2")
    del model
    loaded = torch.export.load(tmp_path / "program.pt2")
    for program in (loaded, loaded.run_decompositions({})):
        compare(program.module()(x), want)
    monkeypatch.setattr(opaque, "_cells", {})  # as in another process
    with pytest.raises(anyrnn.AnyRNNError, match=r'a cell that is not here, .*with anyrnn.engine\("reference"\)'):
        loaded.module()(x)
