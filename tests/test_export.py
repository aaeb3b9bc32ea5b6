"""An exported model has its cells in it, as text: it runs with other sizes, other weights and in another process."""

import copy
import functools
import shutil
import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.export import Dim
from torch.nn import functional as F
from torch.nn.utils import parametrizations

import anyrnn

# PyTorch's exporter warns of itself.
pytestmark = pytest.mark.filterwarnings("default")

TIME, BATCH = Dim("T"), Dim("B")


class Own(nn.Module):
    """Has all four parts, an attribute that is no parameter, and an output of its own."""

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__()
        self.hidden_size, self.rate = hidden_size, 0.9
        self.encoder, self.new = nn.Linear(input_size, 6), nn.Linear(6 + hidden_size, hidden_size)
        self.A = nn.Parameter(torch.randn(hidden_size, hidden_size) / 4)
        self.readout = nn.Linear(hidden_size, 3)
        self.scale = torch.linspace(0.5, 1.5, hidden_size)
        self.register_buffer("shift", torch.linspace(-1, 1, hidden_size))

    def forward(self, x, h):
        e = torch.relu(self.encoder(torch.log1p(x * x)))
        new = torch.tanh(self.new(torch.cat((e, h), 1)) + h @ (self.A - self.A.T)) * self.scale + self.shift
        h = self.rate * h + (1 - self.rate) * new
        return F.softplus(self.readout(h)) / (0.1 + h.square().mean(1, keepdim=True)), h


class Forgetful(nn.Module):
    """Draws random numbers, so that it runs step by step."""

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__()
        self.hidden_size = hidden_size
        self.new = nn.Linear(input_size + hidden_size, hidden_size)

    def forward(self, x, h):
        return torch.tanh(self.new(torch.cat((x, F.dropout(h, 0.5)), 1)))


class Spiking(nn.Module):
    """Has a function with a derivative of its own."""

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__()
        self.hidden_size = hidden_size
        self.new = nn.Linear(input_size + hidden_size, hidden_size)
        self.spike = anyrnn.elementwise(lambda v: v > 0, lambda v: 1 / (1 + 10 * v.abs()) ** 2)

    def forward(self, x, v):
        v = 0.9 * v + self.new(torch.cat((self.spike(x - 0.1), self.spike(v - 0.5)), 1))
        return self.spike(v) * v, v


def weight_normed():
    layer = anyrnn.GRU(3, 5)
    parametrizations.weight_norm(layer, "weight_hh_l0")
    return layer


LAYERS = {
    "own cell": lambda: anyrnn.Recurrent(Own(3, 4), input_size=3),
    "own cell, 2 layers, 2 directions": lambda: anyrnn.Recurrent(
        lambda size: Own(size, 4), input_size=3, num_layers=2, bidirectional=True, batch_first=True
    ),
    "LSTM": lambda: anyrnn.LSTM(3, 5),
    "LSTM, 2 layers, 2 directions": lambda: anyrnn.LSTM(3, 5, num_layers=2, bidirectional=True),
    "LSTM with a projection": lambda: anyrnn.LSTM(3, 5, proj_size=2),
    "GRU with weight norm": weight_normed,
    "torch's cell": lambda: anyrnn.Recurrent(nn.LSTMCell(3, 4)),
    "spiking": lambda: anyrnn.Recurrent(Spiking(3, 4), input_size=3),
    "step by step": lambda: anyrnn.Recurrent(Forgetful(3, 4), input_size=3),
}


class Model(nn.Module):
    def __init__(self, layer) -> None:
        super().__init__()
        self.layer = layer
        self.head = nn.Linear(layer.output_size, 2)

    def forward(self, x, lengths=None):
        output, state = self.layer(2 * x, lengths=lengths)
        return self.head(torch.relu(output)), state


def given_to(model, T, B, ragged):
    """x, with NaN in the padding, and lengths."""
    generator = torch.Generator().manual_seed(T + B)
    x = torch.randn(T, B, 3, generator=generator)
    if not ragged:
        return (x.transpose(0, 1) if model.layer.batch_first else x,)
    lengths = torch.randint(0, T + 1, (B,), generator=generator)
    x[torch.arange(T).unsqueeze(1) >= lengths] = torch.nan
    return (x.transpose(0, 1) if model.layer.batch_first else x), lengths


def exported(model, ragged, strict=False):
    sizes = {0: BATCH, 1: TIME} if model.layer.batch_first else {0: TIME, 1: BATCH}
    shapes = {"x": sizes, "lengths": {0: BATCH}} if ragged else {"x": sizes}
    return torch.export.export(model, given_to(model, 7, 4, ragged), dynamic_shapes=shapes, strict=strict)


def seeded(run, given):
    torch.manual_seed(5)
    return run(*given)


def operators_of(program):
    names = [str(n.target) for n in program.graph.nodes if n.op == "call_function"]
    return {name for name in names if name.startswith("anyrnn.")}


@functools.cache
def program_of(name, ragged):
    """A model, which no test changes, and its program: each is exported once for all tests."""
    torch.manual_seed(0)
    model = Model(LAYERS[name]())
    return model, exported(model, ragged)


ragged_or_full = pytest.mark.parametrize("ragged", [False, True], ids=["full", "ragged"])


@pytest.mark.grid(2)
@ragged_or_full
@pytest.mark.parametrize("name", LAYERS)
def test_a_program_takes_any_sizes_and_its_own_weights(name, ragged):
    model, program = program_of(name, ragged)
    assert operators_of(program) == {"anyrnn.scan.default"}
    ours = program.module()
    for sizes in ((7, 4), (20, 2), (2, 5)):
        given = given_to(model, *sizes, ragged)
        torch.testing.assert_close(seeded(ours, given), seeded(model, given), rtol=1e-4, atol=1e-5)
    lighter, ours = copy.deepcopy(model), copy.deepcopy(ours)
    with torch.no_grad():
        for parameter in (*lighter.parameters(), *ours.parameters()):
            parameter.mul_(0.5)
    torch.testing.assert_close(seeded(ours, given), seeded(lighter, given), rtol=1e-4, atol=1e-5)


@pytest.mark.grid(3)
@ragged_or_full
@pytest.mark.parametrize("name", LAYERS)
def test_decomposed_it_is_plain_operations_around_the_loop(name, ragged):
    model, program = program_of(name, ragged)
    program = program.run_decompositions()
    leaf = (
        "steps" if isinstance(model.layer, anyrnn.Recurrent) and isinstance(model.layer.cells[0], Forgetful) else "loop"
    )
    own = {"anyrnn.surrogate.default"} if isinstance(model.layer.cell(), Spiking) else set()
    assert operators_of(program) == {f"anyrnn.{leaf}.default"} | own
    given = given_to(model, 9, 3, ragged)
    torch.testing.assert_close(seeded(program.module(), given), seeded(model, given), rtol=1e-4, atol=1e-5)


def test_an_export_that_traces_python_has_the_same_operators():
    model = Model(LAYERS["own cell"]())
    program = exported(model, True, strict=True)
    assert operators_of(program) == {"anyrnn.scan.default"}
    given = given_to(model, 9, 3, True)
    torch.testing.assert_close(program.module()(*given), model(*given))


class Named(nn.Module):
    """Its layer has two names, and torch.export then runs a stand-in for it."""

    def __init__(self, model) -> None:
        super().__init__()
        self.model, self.layer = model, model.layer

    def forward(self, x, lengths=None):
        return self.model(x, lengths)


@pytest.mark.parametrize("name", ["own cell, 2 layers, 2 directions", "LSTM", "torch's cell"])
def test_a_layer_of_two_names_is_exported(name):
    model = Named(Model(LAYERS[name]()))
    given = given_to(model, 9, 3, True)
    torch.testing.assert_close(exported(model, True).module()(*given), model(*given), rtol=1e-4, atol=1e-5)


def test_an_exported_program_can_be_trained():
    model, given = Model(LAYERS["own cell"]()), None
    ours = exported(model, True).module()
    given = given_to(model, 9, 3, True)
    for run in (model, ours):
        run(*given)[0].square().sum().backward()
    wanted = dict(model.named_parameters())
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(parameter.grad, wanted[name].grad, rtol=1e-4, atol=1e-5)
        assert parameter.grad.isfinite().all()


def test_the_program_is_of_the_cell_as_it_was_exported():
    model = Model(LAYERS["own cell"]())
    given = given_to(model, 6, 2, False)
    program, want = exported(model, False), model(*given)
    model.layer.cells[0].rate = 0.1
    torch.testing.assert_close(program.module()(*given), want)


# ---- In another process ----

ELSEWHERE = """
import sys
import torch, anyrnn
load = {"export": lambda file: torch.export.load(file).module(), "aoti": torch._inductor.aoti_load_package}[sys.argv[1]]
for file in sys.argv[2:]:
    run = load(file)
    for given, expected in torch.load(file + ".numbers"):
        torch.manual_seed(5)
        torch.testing.assert_close(run(*given), expected, rtol=1e-4, atol=1e-5)
    print(file, flush=True)
"""


def run_elsewhere(kind, files, code=ELSEWHERE):
    """Run programs in another process, which compares with what is stored beside each and says which are done."""
    command = [sys.executable, "-W", "ignore", "-c", code, kind, *files]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout.splitlines() == files, done.stderr


def store_numbers(model, ragged, file):
    cases = [given_to(model, *sizes, ragged) for sizes in ((7, 4), (20, 2), (2, 5))]
    torch.save([(given, seeded(model, given)) for given in cases], f"{file}.numbers")


@pytest.mark.long
@ragged_or_full
def test_saved_programs_run_in_a_process_that_has_only_torch_and_this_package(ragged, tmp_path):
    files = {name: str(tmp_path / f"{k}.pt2") for k, name in enumerate(LAYERS)}
    for name, file in files.items():  # all in one process, which takes seconds to start
        model, program = program_of(name, ragged)
        torch.export.save(program, file)
        store_numbers(model, ragged, file)
    run_elsewhere("export", [*files.values()])


class Both(nn.Module):
    """Two models in one, since to compile one takes AOTInductor ten seconds."""

    def __init__(self, first, second) -> None:
        super().__init__()
        self.first, self.second, self.layer = first, second, second.layer

    def forward(self, x, lengths):
        return self.first(x.transpose(0, 1), lengths), self.second(x, lengths)


@pytest.mark.long
@pytest.mark.skipif(shutil.which("g++") is None, reason="AOTInductor needs a C++ compiler")
def test_a_package_of_aotinductor_runs_there_too(tmp_path):
    names = "own cell, 2 layers, 2 directions", "LSTM, 2 layers, 2 directions"
    model = Both(*(Model(LAYERS[name]()) for name in names))
    file = torch._inductor.aoti_compile_and_package(exported(model, True), package_path=str(tmp_path / "package.pt2"))
    store_numbers(model, True, file)
    run_elsewhere("aoti", [file])


ALONE = """
import sys, torch
program, ((given, expected),) = torch.export.load(sys.argv[2]), torch.load(sys.argv[2] + ".numbers")
torch.testing.assert_close(program.module()(*given), expected)
assert "anyrnn" not in sys.modules
print(sys.argv[2])
"""


@pytest.mark.long
def test_a_program_exported_step_by_step_runs_without_this_package(tmp_path):
    model = Model(anyrnn.GRU(3, 5, bidirectional=True))
    given = given_to(model, 5, 2, False)
    with anyrnn.engine("reference"):
        program = torch.export.export(model, given)
    file = str(tmp_path / "program.pt2")
    torch.export.save(program, file)
    torch.save([(given, model(*given))], f"{file}.numbers")
    run_elsewhere("export", [file], ALONE)


# ---- What cannot be exported as a whole ----


class Doubling(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return 2 * x

    @staticmethod
    def backward(ctx, grad):
        return 2 * grad


class WithFunction(nn.Module):
    """Its weight goes through a function with a gradient of its own, which a text cannot hold."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden_size = 4
        self.W = nn.Parameter(torch.randn(3, 4))

    def forward(self, x, h):
        return torch.tanh(x @ Doubling.apply(self.W) + h)


def test_what_has_no_text_is_exported_step_by_step_in_a_short_sequence_and_else_told_why():
    model = Model(anyrnn.Recurrent(WithFunction(), input_size=3))
    given = given_to(model, 7, 4, False)
    program = torch.export.export(model, given)
    assert operators_of(program) == set()
    torch.testing.assert_close(program.module()(*given), model(*given))
    with pytest.raises(
        anyrnn.AnyRNNError, match=r"WithFunction: its step is no operator.*`Doubling`, an autograd.Func"
    ):
        torch.export.export(model, given_to(model, 20, 4, False))
