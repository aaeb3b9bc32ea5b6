"""How a cell is read: its two forms of return, the sizes of its state, and what finding them out leaves behind."""

import copy
import random
import threading
import warnings
from collections import namedtuple
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import nn

import anyrnn
from anyrnn.probing import describe
from anyrnn.protocol import Signature
from zoo import CASES, B, H, I, T, close, flat, gradients, loss_of, state_of, x_of

#: state sizes, one tensor, output size, returns (output, state)
SIGNATURES = {
    "RNN": ((H,), True, (H,), False),
    "LSTM": ((H, H), False, (H,), False),
    "LSTM-projected": ((H - 1, H), False, (H - 1,), False),
    "GRU-reset-before": ((H,), True, (H,), False),
    "Peephole": ((H, H), False, (H,), False),
    "nn.RNNCell": ((H,), True, (H,), False),
    "nn.LSTMCell": ((H, H), False, (H,), False),
    "nn.GRUCell": ((H,), True, (H,), False),
    "weight-normed": ((H,), True, (H,), False),
    "ConcatLSTM": ((H, H), False, (4,), True),
    "ConcatGRU": ((H,), True, (H,), True),
    "RawLSTM": ((H, H), False, (H,), False),
    "SeparateLSTM": ((H, H), False, (H,), False),
    "IndRNN": ((H,), True, (H,), False),
    "MixedSizes": ((H + 2, H), False, (1,), True),
    "ThreeStates": ((H, H, H), False, (H,), False),
    "OneTuple": ((H,), False, (H,), False),
    "Buffered": ((H,), True, (H,), False),
    "NormLSTM": ((H, H), False, (H,), False),
    "LowRank": ((H,), True, (H,), False),
}
BY_NAME = {case.name: case for case in CASES}


@pytest.mark.parametrize("name", SIGNATURES)
def test_the_signature_is_found_from_one_step(name):
    assert describe(BY_NAME[name].cell(), I) == Signature(*SIGNATURES[name])


OWN = [case for case in CASES if isinstance(case.cell(), anyrnn.cells.Cell)]


@pytest.mark.parametrize("case", OWN, ids=lambda case: case.name)
def test_a_layer_of_the_package_states_the_signature_that_a_step_shows(case):
    cell = case.cell()
    named = getattr(anyrnn, type(cell).__name__.removesuffix("Cell"))
    options = {"proj_size": cell.proj_size} if getattr(cell, "proj_size", 0) else {}
    layer = named(I, H, 2, bidirectional=True, **options)
    for number in range(2):
        found = describe(layer.cell(number), layer.cell(number).input_size)
        assert layer._signature(number) == found
    assert layer.output_size == 2 * found.output_size


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_state_comes_back_in_the_structure_of_the_cell(case):
    cell, state = case.cell(), state_of(case.cell())
    _, final = anyrnn.scan(cell, x_of(), state)
    assert type(final) is type(state)
    assert len(flat(final)) == len(flat(state))
    _, stacked = case.layer(num_layers=2)(x_of())
    assert type(stacked) is type(state)
    assert [s.shape for s in flat(stacked)] == [(2, *s.shape) for s in flat(state)]
    as_list = state if isinstance(state, torch.Tensor) else list(state)
    close(flat(anyrnn.scan(cell, x_of(), as_list)[1]), flat(final), atol=0)


class Counting(nn.Module):
    """Draws random numbers, counts its steps in a buffer, and normalises with running statistics."""

    def __init__(self, hidden_size):
        super().__init__()
        self.hidden_size = hidden_size
        self.norm = nn.BatchNorm1d(I)
        self.weight = nn.Linear(I + hidden_size, hidden_size)
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def forward(self, x, h):
        self.steps += 1
        return torch.tanh(self.weight(torch.cat((self.norm(x), h), 1))) + torch.randn_like(h)


def test_describing_a_cell_leaves_its_buffers_gradients_and_the_random_state_alone():
    cell = Counting(H)
    before = {k: v.clone() for k, v in cell.state_dict().items()}
    random = torch.get_rng_state()
    layer = anyrnn.Recurrent(cell, input_size=I)
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(v, before[k]) for k, v in cell.state_dict().items())
    assert all(p.grad is None for p in cell.parameters())
    layer(torch.randn(T, B, I))
    assert cell.steps == T
    assert cell.norm.num_batches_tracked == T


def test_random_cells_repeat_under_a_seed():
    layer, x = anyrnn.Recurrent(Counting(H), input_size=I).eval(), torch.randn(T, B, I)
    results = []
    for _ in range(2):
        torch.manual_seed(1)
        results.append(layer(x, lengths=[1, 4, 2])[0])
    assert torch.equal(*results)
    assert not torch.equal(results[0], layer(x, lengths=[1, 4, 2])[0])


class Bare(nn.Module):
    """No sizes to be seen."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Linear(I + H, H)

    def forward(self, x, h):
        return torch.tanh(self.weight(torch.cat((x, h), 1)))


def test_sizes_may_be_given_or_come_from_the_state():
    cell, x = Bare(), torch.randn(T, B, I)
    layer = anyrnn.Recurrent(cell, I, state_sizes=H)
    output, final = anyrnn.scan(cell, x, torch.zeros(B, H))
    close([layer(x)[0], layer(x)[1][0]], [output, final], atol=0)
    assert anyrnn.Recurrent(lambda i: OverTuple(), I, state_sizes=(H, H))(x)[1][0].shape == (1, B, H)


class OverTuple(Bare):
    def forward(self, x, state):
        h, c = state
        return super().forward(x, h), c + 1


class Indexing(nn.Module):
    """Takes its states by index, which a bare tensor has too: row 0 and row 1 of the batch."""

    def __init__(self):
        super().__init__()
        self.hidden_size = I
        self.rate = nn.Parameter(torch.rand(I))

    def forward(self, x, state):
        h, c = state[0], state[1]
        c = self.rate * c + x
        return h + torch.tanh(c), c


def test_a_cell_that_indexes_its_state_gets_a_tuple_and_not_the_rows_of_a_batch():
    assert describe(Indexing(), I) == Signature((I, I), False, (I,), False)


def test_a_size_found_at_the_first_call_is_kept():
    layer = anyrnn.Recurrent(Bare(), state_sizes=H)
    assert layer.input_size is None
    layer(torch.randn(T, B, I))
    assert layer.input_size == I
    with pytest.raises(anyrnn.AnyRNNError, match="x has 5 features, expected input_size=2"):
        layer(torch.randn(T, B, 5))


def test_input_size_is_read_from_the_cell_where_it_has_one():
    assert anyrnn.Recurrent(nn.GRUCell(I, H)).input_size == I
    assert anyrnn.Recurrent(nn.GRUCell(I, H)).output_size == H


def test_upper_layers_take_the_output_of_the_lower_one_not_its_state():
    layer = BY_NAME["ConcatLSTM"].layer(num_layers=2, bidirectional=True)
    assert [cell.input_gate.in_features for cell in layer.cells] == [I + H, I + H, 8 + H, 8 + H]
    output, (h, c) = layer(x_of())
    assert output.shape == (T, B, 8)
    assert h.shape == c.shape == (4, B, H)


def test_a_factory_is_called_once_for_each_layer_and_direction_in_the_order_of_the_state():
    sizes = []

    def make(input_size):
        sizes.append(input_size)
        return nn.RNNCell(input_size, H)

    anyrnn.Recurrent(make, I, num_layers=3, bidirectional=True)
    assert sizes == [I, I, 2 * H, 2 * H, 2 * H, 2 * H]


def test_a_cell_may_call_a_script_module():
    class Scripted(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight, self.hidden_size = nn.Linear(I, H), H

        def forward(self, x: torch.Tensor, h: torch.Tensor) -> torch.Tensor:
            return torch.tanh(self.weight(x) + h)

    cell = torch.jit.script(Scripted())
    x = torch.randn(T, B, I)
    assert anyrnn.Recurrent(cell, I)(x)[0].shape == (T, B, H)


# ---- A step that does not tell, named tuples, lazy modules ----


class Skips(nn.Module):
    """Hands its state back untouched while `idle`, and where x is zero if `at_zero`."""

    def __init__(self, kind=nn.GRUCell, idle=False, at_zero=False):
        super().__init__()
        self.hidden_size, self.idle, self.at_zero = H, idle, at_zero
        self.cell = kind(I, H)

    def forward(self, x, state):
        if self.idle or (self.at_zero and not x.any()):
            return state
        return self.cell(x, state)


@pytest.mark.parametrize("kind", [nn.GRUCell, nn.LSTMCell])
def test_a_state_handed_back_untouched_is_no_proof_of_its_structure(kind):
    x, state = torch.randn(T, B, I), (torch.randn(B, H), torch.randn(B, H))
    state = state if kind is nn.LSTMCell else state[0]
    assert describe(Skips(kind, at_zero=True), I).bare is (kind is nn.GRUCell)
    cell = Skips(kind, idle=True)
    layer = anyrnn.Recurrent(cell, I)
    assert layer.output_size == H
    for call in (lambda: layer(x), lambda: anyrnn.scan(cell, x)):
        with pytest.raises(anyrnn.AnyRNNError, match=rf"state_sizes={H} \(one tensor\) or state_sizes=\({H}, {H}\)"):
            call()
    output, final = anyrnn.scan(cell, x, state)  # here the state tells
    assert type(final) is type(state)
    assert torch.equal(output[-1], flat(state)[0])
    cell.idle = False
    for found in (layer(x)[1], anyrnn.scan(cell, x, state)[1]):
        assert type(found) is type(state)
    close(flat(anyrnn.scan(cell, x, state)), flat(anyrnn.scan(cell.cell, x, state)), atol=1e-6)


class Pair(NamedTuple):
    h: torch.Tensor
    c: torch.Tensor


Sizes = namedtuple("Sizes", "h c")


class Named(nn.Module):
    """A cell that reads its states by name."""

    def __init__(self, **attributes):
        super().__init__()
        vars(self).update(attributes)
        self.cell = nn.LSTMCell(I, H)

    def forward(self, x, state):
        h, c = self.cell(x, (state.h, state.c))
        return type(state)(h, c)


class Annotated(Named):
    def forward(self, x: torch.Tensor, state: Pair) -> Pair:
        return super().forward(x, state)


class WithOutput(Annotated):
    def forward(self, x: torch.Tensor, state: Pair):
        return x, super().forward(x, state)


NAMED = {
    "annotated": (lambda: Annotated(hidden_size=H), Pair),
    "with an output": (lambda: WithOutput(hidden_size=H), Pair),
    "named sizes": (lambda: Named(state_sizes=Sizes(H, H)), Sizes),
}


@pytest.mark.parametrize("name", NAMED)
@pytest.mark.parametrize("engine", ["cpu", "reference"])
def test_states_may_be_named_tuples_and_come_back_as_such(name, engine):
    make, kind = NAMED[name]
    cell, x = make(), torch.randn(T, B, I)
    layer = anyrnn.Recurrent(lambda _: cell, I, num_layers=1)
    with anyrnn.engine("reference"):
        want, (h, c) = anyrnn.scan(cell.cell, x, lengths=[2, 4, 0])
    with anyrnn.engine(engine):
        output, final = anyrnn.scan(cell, x, lengths=[2, 4, 0])
        assert type(final) is kind
        close(flat(final), [h, c], atol=1e-6)
        close([output], [x * (torch.arange(T).view(-1, 1, 1) < torch.tensor([2, 4, 0]).view(1, -1, 1))]
              if name == "with an output" else [want], atol=1e-6)  # fmt: skip
        for state in (None, final, tuple(final)):
            assert type(anyrnn.scan(cell, x, state)[1]) is kind
        _, stacked = layer(x)
        assert type(stacked) is kind
        assert stacked.h.shape == stacked.c.shape == (1, B, H)
        for state in (stacked, tuple(stacked), list(stacked)):
            assert type(layer(x, state)[1]) is kind
        assert type(layer(x[:, 0])[1]) is kind
    twin = copy.deepcopy(layer)
    assert type(twin(x)[1]) is kind


def test_a_named_tuple_that_is_given_to_a_cell_of_plain_tuples_comes_back():
    cell, x, zero = nn.LSTMCell(I, H), torch.randn(T, B, I), torch.zeros(B, H)
    assert type(anyrnn.scan(cell, x, Pair(zero, zero))[1]) is Pair
    assert type(anyrnn.scan(cell, x, (zero, zero))[1]) is tuple
    assert type(anyrnn.LSTM(I, H)(x, Pair(zero[None], zero[None]))[1]) is Pair
    free = Named()  # no sizes, no annotation: the state says it
    assert type(anyrnn.scan(free, x, Pair(zero, zero))[1]) is Pair


class Lazily(nn.Module):
    def __init__(self):
        super().__init__()
        self.hidden_size = H
        self.W, self.U = nn.LazyLinear(H), nn.LazyLinear(H)
        self.norm = nn.LazyBatchNorm1d()
        self.register_buffer("steps", torch.zeros(()))

    def forward(self, x, h):
        self.steps += 1
        return torch.tanh(self.norm(self.W(x)) + self.U(torch.cat((nn.functional.dropout(h), h), 1)))


@pytest.mark.parametrize(
    "use",
    [
        lambda cell, x: anyrnn.Recurrent(cell, I),
        lambda cell, x: anyrnn.Recurrent(lambda _: cell, I),
        lambda cell, x: anyrnn.Recurrent(cell)(x[:0]),
        lambda cell, x: anyrnn.scan(cell, x[:0]),
    ],
    ids=["made", "made by a function", "first call", "scan"],
)
def test_lazy_modules_get_their_parameters_once_as_a_first_step_would_give_them(use):
    cell, plainly, x = Lazily().eval(), Lazily().eval(), torch.randn(T, B, I)
    torch.manual_seed(5)
    plainly.W.initialize_parameters(x[0])
    plainly.U.initialize_parameters(torch.zeros(B, 2 * H))
    after = torch.rand(3)
    torch.manual_seed(5)
    use(cell, x)
    assert torch.equal(torch.rand(3), after)
    assert type(cell.W) is type(cell.U) is nn.Linear
    assert type(cell.norm) is nn.BatchNorm1d
    for name in ("W", "U"):
        assert torch.equal(getattr(cell, name).weight, getattr(plainly, name).weight)
    assert cell.steps == 0
    assert cell.norm.num_batches_tracked == 0
    weight = cell.W.weight.clone()
    layer = anyrnn.Recurrent(cell, I)
    output, _ = layer(x)
    output.sum().backward()
    assert torch.equal(cell.W.weight, weight)
    assert all(p.grad is not None for p in cell.parameters())


# ---- What finding a signature out leaves alone ----


class Drawing(nn.Module):
    """Draws random numbers of every kind."""

    def __init__(self, generator=None):
        super().__init__()
        self.hidden_size, self.generator = H, generator
        self.weight = nn.Linear(I + H, H)

    def forward(self, x, h):
        noise = torch.randn(h.shape, generator=self.generator) + torch.rand_like(h) + torch.randperm(len(h))[:, None]
        noise = noise + random.random() + np.random.rand()
        return nn.functional.dropout(torch.tanh(self.weight(torch.cat((x, h), 1)) + noise))


def states_of_chance(generator):
    _, key, *rest = np.random.get_state()
    return [torch.get_rng_state(), generator.get_state(), random.getstate(), key.tobytes(), rest]


def test_a_probe_draws_from_nobodys_random_numbers():
    generator = torch.Generator().manual_seed(3)
    cell, before = Drawing(generator), states_of_chance(generator)
    anyrnn.Recurrent(cell, I)
    for a, b in zip(states_of_chance(generator), before, strict=True):
        assert torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


def test_a_probe_does_not_put_the_clock_back_for_other_threads():
    """Another thread draws while a step is looked at: it never gets a number twice."""
    drawn, here = [], []

    class Slow(Drawing):
        def forward(self, x, h):
            result = super().forward(x, h)
            thread = threading.Thread(target=lambda: drawn.append(torch.rand(1).item()))
            thread.start()
            thread.join()
            return result

    with warnings.catch_warnings():
        for _ in range(3):
            describe(Slow(), I, H)
            here.append(torch.rand(1).item())
    assert len({*drawn, *here}) == len(drawn) + len(here)


class Descending(nn.Module):
    """Follows the gradient of an energy."""

    def __init__(self):
        super().__init__()
        self.hidden_size = H
        self.W, self.U = nn.Linear(I, H), nn.Linear(H, H)

    def forward(self, x, h):
        with torch.enable_grad():
            h = h if h.requires_grad else h.requires_grad_()
            energy = torch.tanh(self.U(h)).square().sum()
            (g,) = torch.autograd.grad(energy, h, create_graph=True)
        return torch.tanh(self.W(x) + h - 0.1 * g)


def test_a_step_may_ask_for_gradients():
    cell, x, h = Descending(), torch.randn(T, B, I), torch.randn(B, H)
    with torch.no_grad():
        layer = anyrnn.Recurrent(cell, I)
    output, final = layer(x, h[None])
    assert not h.requires_grad
    for t in range(T):
        h = cell(x[t], h.detach() if t == 0 else h)
        close([output[t]], [h], atol=1e-6)
    want = gradients(cell.parameters(), loss_of(h))
    close(gradients(cell.parameters(), loss_of(final[0])), want, atol=1e-5)


def test_a_cell_made_in_inference_mode_is_described_there_and_elsewhere():
    with torch.inference_mode():
        cell = nn.GRUCell(I, H)
        x = torch.randn(T, B, I)
        assert anyrnn.Recurrent(cell)(x)[0].shape == (T, B, H)
    assert describe(cell, I).bare
    with torch.inference_mode():
        assert describe(nn.GRUCell(I, H), I).bare
    assert describe(nn.GRUCell(I, H), I).bare


# ---- Cells that change ----


def test_a_cell_that_is_replaced_or_has_grown_is_described_again():
    x, layer = torch.randn(T, B, I), anyrnn.Recurrent(lambda size: nn.GRUCell(size, H), I, num_layers=2)
    layer(x)
    layer.cells[0] = BY_NAME["ConcatGRU"].make(I, H)  # it returns an output, too
    layer.cells[1] = nn.GRUCell(H, H)
    with anyrnn.engine("reference"):
        want = layer(x)
    close(flat(layer(x)), flat(want), atol=1e-6)
    close([anyrnn.scan(layer.cells[1], anyrnn.scan(layer.cells[0], x)[0])[0]], [want[0]], atol=1e-6)
    single = anyrnn.Recurrent(Bare2(H))
    single(x)
    cell = single.cell()
    cell.hidden_size, cell.U, cell.W = 2 * H, nn.Linear(2 * H, 2 * H), nn.Linear(I, 2 * H)
    assert single.output_size == 2 * H
    assert single(x)[1].shape == (1, B, 2 * H)
    assert anyrnn.scan(cell, x)[1].shape == (B, 2 * H)
    single.cells[0] = nn.LSTMCell(I, 3)
    assert [s.shape for s in single(x)[1]] == [(1, B, 3)] * 2


class Bare2(nn.Module):
    def __init__(self, hidden_size):
        super().__init__()
        self.hidden_size = hidden_size
        self.W, self.U = nn.Linear(I, hidden_size), nn.Linear(hidden_size, hidden_size)

    def forward(self, x, h):
        return torch.tanh(self.W(x) + self.U(h))


def test_scan_takes_states_of_several_sizes_in_turn():
    class Free(nn.Module):
        def forward(self, x, h):
            return torch.tanh(h + x.sum(1, keepdim=True))

    cell, x = Free(), torch.randn(T, B, I)
    for size in (64, 32, 1, 64):
        output, final = anyrnn.scan(cell, x, torch.zeros(B, size))
        assert output.shape == (T, B, size)
        assert final.shape == (B, size)


def test_both_directions_are_described():
    sizes = iter([H, H + 1])
    with pytest.raises(anyrnn.AnyRNNError, match=rf"sizes \[\({H},\), \({H + 1},\)\], expected equal"):
        anyrnn.Recurrent(lambda i: nn.GRUCell(i, next(sizes)), I, bidirectional=True)
