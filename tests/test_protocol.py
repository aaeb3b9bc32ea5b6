"""How a cell is read: its two forms of return, the sizes of its state, and what finding them out leaves behind."""

import pytest
import torch
from torch import nn

import anyrnn
from anyrnn.protocol import Signature, describe
from zoo import CASES, B, H, I, T, close, flat, state_of, x_of

#: state sizes, one tensor, output size, returns (output, state)
SIGNATURES = {
    "RNN": ((H,), True, H, False),
    "LSTM": ((H, H), False, H, False),
    "LSTM-projected": ((H - 1, H), False, H - 1, False),
    "GRU-reset-before": ((H,), True, H, False),
    "Peephole": ((H, H), False, H, False),
    "nn.RNNCell": ((H,), True, H, False),
    "nn.LSTMCell": ((H, H), False, H, False),
    "nn.GRUCell": ((H,), True, H, False),
    "weight-normed": ((H,), True, H, False),
    "ConcatLSTM": ((H, H), False, 4, True),
    "ConcatGRU": ((H,), True, H, True),
    "RawLSTM": ((H, H), False, H, False),
    "SeparateLSTM": ((H, H), False, H, False),
    "IndRNN": ((H,), True, H, False),
    "MixedSizes": ((H + 2, H), False, 1, True),
    "ThreeStates": ((H, H, H), False, H, False),
    "OneTuple": ((H,), False, H, False),
    "Buffered": ((H,), True, H, False),
    "NormLSTM": ((H, H), False, H, False),
    "LowRank": ((H,), True, H, False),
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
    assert describe(Indexing(), I) == Signature((I, I), False, I, False)


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
