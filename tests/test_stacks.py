"""Stacks: a cell for each layer, widths that differ, directions that are added, layers that read more than the last."""

import copy
from typing import NamedTuple

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import anyrnn
from zoo import ConcatLSTM, H, I, MixedSizes, close, flat, gradients, loss_of, plain, x_of

pytestmark = pytest.mark.grid(2)

T, B = 4, 3
LENGTHS = [4, 0, 2]

MERGES = ("concat", "sum", "mean")
CONNECTIONS = ("plain", "residual", "dense")


def gru(size):
    return nn.GRUCell(size, H)


def wide(size):
    return anyrnn.RNNCell(size, H + 2)


def lstm(size):
    return nn.LSTMCell(size, H)


def memory(size):
    return ConcatLSTM(size, H, H)


#: What each layer is made from.
STACKS = {
    "one-layer": [gru],
    "alike": [gru, lambda size: anyrnn.RNNCell(size, H)],
    "widths": [gru, wide, gru],
    "states": [lstm, gru, lambda size: MixedSizes(size, H)],
    "output": [gru, memory, lstm],
}


def make(stack, seed=1, **options):
    torch.manual_seed(seed)
    return anyrnn.Recurrent(STACKS[stack], I, **options).double()


def layer_states(layer, seed=5):
    """For each layer a list of its directions' states, not zero."""
    D = layer.num_directions
    return [[flat(state_of_cell(layer, k, d, seed + 2 * k + d)) for d in range(D)] for k in range(layer.num_layers)]


def state_of_cell(layer, k, d, seed):
    signature = layer._signature(k, d == 1)
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(B, n, generator=generator, dtype=torch.float64) for n in signature.state_sizes)


def given(layer, states):
    """The state as it is passed: stacked if the layers' are alike, else a tuple with one for each layer."""
    bare = [layer._signature(k).bare for k in range(layer.num_layers)]
    sizes = [layer._signature(k).state_sizes for k in range(layer.num_layers)]

    def stacked(rows, bare):
        variables = tuple(torch.stack(variable) for variable in zip(*rows, strict=True))
        return variables[0] if bare else variables

    if all((b, s) == (bare[0], sizes[0]) for b, s in zip(bare, sizes, strict=True)):
        return stacked([row for rows in states for row in rows], bare[0])
    return tuple(stacked(rows, b) for rows, b in zip(states, bare, strict=True))


def composed(layer, x, states, lengths, merge="concat", connect="plain"):
    """What a stack means: each direction of each layer by itself, put together by hand. Output, and finals by layer."""
    outputs, finals = [x], []
    for k in range(layer.num_layers):
        read = torch.cat(outputs, dim=2) if connect == "dense" else outputs[-1]
        ways, rows = [], []
        for d in range(layer.num_directions):
            state, bare = states[k][d], layer._signature(k).bare
            output, final = plain(layer.cell(k, d == 1), read, state[0] if bare else state, lengths, d == 1)
            ways.append(output)
            rows.append(final)
        finals.append(rows)
        output = torch.cat(ways, dim=2) if merge == "concat" else sum(ways) / (len(ways) if merge == "mean" else 1)
        if connect == "residual" and k:
            output = output + read
        outputs.append(output)
    return outputs[-1], finals


@pytest.mark.parametrize("engine", ["reference", "cpu"])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("stack", STACKS)
def test_a_stack_of_different_cells_is_its_layers_one_after_another(stack, bidirectional, engine):
    layer = make(stack, bidirectional=bidirectional)
    states = layer_states(layer)
    with anyrnn.engine(engine):
        for lengths in (None, LENGTHS):
            output, final = layer(x_of(), given(layer, states), lengths=lengths)
            wanted, finals = composed(layer, x_of(), states, lengths)
            close([output, *flat(final)], [wanted, *flat(given(layer, finals))], atol=1e-9)
    assert output.shape[2] == layer.output_size


@pytest.mark.parametrize("engine", ["reference", "cpu"])
@pytest.mark.parametrize("connect", CONNECTIONS)
@pytest.mark.parametrize("merge", MERGES)
def test_directions_are_merged_and_layers_connected(merge, connect, engine):
    # Residual layers are all as wide as what they read.
    makers = [gru, lstm, gru] if connect == "residual" else STACKS["states"]
    torch.manual_seed(1)
    layer = anyrnn.Recurrent(makers, I, bidirectional=True, merge=merge, connect=connect).double()
    states = layer_states(layer)
    x = x_of().requires_grad_()
    parameters = [x, *layer.parameters()]
    wanted, finals = composed(layer, x, states, LENGTHS, merge, connect)
    wanted = [wanted, *flat(given(layer, finals))]
    with anyrnn.engine(engine):
        output, final = layer(x, given(layer, states), lengths=LENGTHS)
    assert output.shape[2] == layer.output_size
    close([output, *flat(final)], wanted, atol=1e-9)
    close(gradients(parameters, loss_of(output, *flat(final))), gradients(parameters, loss_of(*wanted)), atol=1e-9)


@pytest.mark.parametrize("connect", CONNECTIONS)
def test_what_stands_in_the_padding_changes_nothing(connect):
    torch.manual_seed(1)
    layer = anyrnn.Recurrent([gru, gru], I, bidirectional=True, merge="sum", connect=connect).double()
    x = x_of()
    clean = layer(x, lengths=LENGTHS)
    spoilt = x.clone()
    for b, n in enumerate(LENGTHS):
        spoilt[n:, b] = torch.nan
    spoilt.requires_grad_()
    output, final = layer(spoilt, lengths=LENGTHS)
    close([output, final], clean)
    assert all((output[n:, b] == 0).all() for b, n in enumerate(LENGTHS))
    (gradient,) = torch.autograd.grad(loss_of(output, final), spoilt)
    assert all((gradient[n:, b] == 0).all() for b, n in enumerate(LENGTHS))
    assert torch.isfinite(gradient).all()


@pytest.mark.parametrize("stack", STACKS)
@pytest.mark.parametrize("connect", ["plain", "dense"])
def test_chunks_with_the_state_carried_are_one_call(stack, connect):
    layer = make(stack, connect=connect)
    x = x_of(7)
    whole, final = layer(x)
    first, state = layer(x[:3])
    second, state = layer(x[3:], state)
    close([torch.cat((first, second)), *flat(state)], [whole, *flat(final)], atol=1e-10)


@pytest.mark.parametrize("options", [{}, {"bidirectional": True, "merge": "mean", "connect": "dense"}])
def test_batch_first_unbatched_and_packed_are_the_same_call(options):
    layer = make("states", **options)
    x, states = x_of(), layer_states(layer)
    state = given(layer, states)
    output, final = layer(x, state, lengths=[4, 1, 2])

    batch_first = make("states", batch_first=True, **options)
    got, got_final = batch_first(x.transpose(0, 1), state, lengths=[4, 1, 2])
    close([got.transpose(0, 1), *flat(got_final)], [output, *flat(final)])

    packed = pack_padded_sequence(x, torch.tensor([4, 1, 2]), enforce_sorted=False)
    got, got_final = layer(packed, state)
    close([pad_packed_sequence(got)[0], *flat(got_final)], [output, *flat(final)])

    row = [[tuple(s[:1] for s in way) for way in ways] for ways in states]
    alone = tuple(
        part.squeeze(1) if isinstance(part, torch.Tensor) else tuple(s.squeeze(1) for s in part)
        for part in given(layer, row)
    )
    got, got_final = layer(x[:, 0], alone)
    close([got, *flat(got_final)], [output[:, 0], *(s[:, 0] for s in flat(final))])
    assert type(got_final) is tuple


def test_without_a_state_it_is_zero():
    layer = make("states", bidirectional=True)
    zeros = tuple(tuple(torch.zeros_like(s) for s in part) if isinstance(part, tuple) else torch.zeros_like(part)
                  for part in given(layer, layer_states(layer)))  # fmt: skip
    output, final = layer(x_of(), zeros)
    close(flat(layer(x_of())), flat((output, final)))


class Pair(NamedTuple):
    h: torch.Tensor
    c: torch.Tensor


class Named(nn.Module):
    def __init__(self, size):
        super().__init__()
        self.hidden_size = H
        self.cell = nn.LSTMCell(size, H)

    def forward(self, x, state: Pair) -> Pair:
        return Pair(*self.cell(x, (state.h, state.c)))


def test_named_states_keep_their_names_in_their_layer():
    layer = anyrnn.Recurrent([gru, Named], I)
    _, final = layer(torch.randn(T, B, I))
    assert [type(part) for part in final] == [torch.Tensor, Pair]
    assert final[1].c.shape == (1, B, H)
    assert type(layer(torch.randn(T, B, I), final)[1][1]) is Pair


def test_a_list_may_hold_cells_and_their_input_size_may_come_with_the_first_x():
    torch.manual_seed(0)
    cells = [ConcatLSTM(I, H), nn.GRUCell(4, 5)]
    layer = anyrnn.Recurrent(cells)
    assert [*layer.cells] == cells
    x = torch.randn(T, B, I)
    output, final = layer(x)
    first, state = anyrnn.scan(cells[0], x)
    second, h = anyrnn.scan(cells[1], first)
    close([output, *flat(final)], [second, *(s[None] for s in state), h[None]], atol=1e-6)
    assert (layer.input_size, layer.output_size) == (I, 5)
    assert anyrnn.Recurrent([nn.GRUCell(I, 4), gru]).input_size == I


def test_one_function_may_make_layers_of_other_widths():
    layer = anyrnn.Recurrent(lambda size: nn.GRUCell(size, size + 1), I, 3)
    output, final = layer(torch.randn(T, B, I))
    assert output.shape == (T, B, I + 3)
    assert [h.shape for h in final] == [(1, B, I + 1), (1, B, I + 2), (1, B, I + 3)]


def test_parameters_have_the_names_that_they_always_had():
    assert [*make("widths", bidirectional=True).state_dict()] == [
        f"cells.{k}.{name}" for k in range(6) for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    ]


@pytest.mark.parametrize("engine", ["reference", "cpu"])
@pytest.mark.parametrize("connect", CONNECTIONS)
def test_dropout_acts_on_the_output_of_every_layer_but_the_last(connect, engine):
    torch.manual_seed(1)
    layer = anyrnn.Recurrent([gru, gru, gru], I, dropout=0.5, connect=connect).double()
    x, p = x_of(), 0.5
    with anyrnn.engine(engine):
        torch.manual_seed(7)
        got, _ = layer(x)
        torch.manual_seed(7)
        inputs = [x]
        for k in range(3):
            read = torch.cat(inputs, dim=2) if connect == "dense" else inputs[-1]
            output, _ = anyrnn.scan(layer.cell(k), read)
            output = output + read if connect == "residual" and k else output
            inputs.append(nn.functional.dropout(output, p) if k < 2 else output)
        close([got], [inputs[-1]], atol=1e-10)
        layer.eval()
        close([layer(x)[0]], [layer(x)[0]])


@pytest.mark.grid(2)
@pytest.mark.usefixtures("_compiled_anew")
@pytest.mark.parametrize("connect", CONNECTIONS)
def test_below_torch_compile_and_export(connect):
    torch.manual_seed(1)
    makers = [gru, lstm, gru]
    layer = anyrnn.Recurrent(makers, I, bidirectional=True, merge="sum", connect=connect).double()
    x = x_of()
    state = given(layer, layer_states(layer))
    output, final = layer(x, state)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    got, got_final = compiled(x, state)
    close([got, *flat(got_final)], [output, *flat(final)], atol=1e-9)
    parameters = [*layer.parameters()]
    close(
        gradients(parameters, loss_of(got, *flat(got_final))),
        gradients(parameters, loss_of(output, *flat(final))),
        atol=1e-9,
    )
    exported = torch.export.export(layer, (x, state)).module()
    got, got_final = exported(x, state)
    close([got, *flat(got_final)], [output, *flat(final)], atol=1e-9)


def test_every_layer_is_explained():
    layer = make("states", bidirectional=True, merge="mean", connect="dense")
    parts = anyrnn.explain(layer, x_of()).parts
    assert [(part.layer, part.direction, part.engine) for part in parts] == [
        (k, way, "cpu") for k in range(3) for way in ("forward", "backward")
    ]


def test_copies_keep_the_wiring_and_repr_shows_it():
    layer = make("alike", bidirectional=True, merge="sum", connect="residual")
    other = copy.deepcopy(layer)
    close([other(x_of())[0]], [layer(x_of())[0]])
    assert (other.merge, other.connect) == ("sum", "residual")
    assert layer.extra_repr() == "2, num_layers=2, bidirectional=True, merge=sum, connect=residual"
    assert make("alike").extra_repr() == "2, num_layers=2"


def test_a_cell_that_is_replaced_by_one_with_another_state_changes_the_form_of_the_state():
    layer = make("alike")
    assert isinstance(layer(x_of())[1], torch.Tensor)
    layer.cells[1] = nn.LSTMCell(H, 7).double()
    output, final = layer(x_of())
    assert output.shape == (T, B, 7)
    assert [len(flat(part)) for part in final] == [1, 2]


def test_one_prediction_a_sequence_from_merged_directions():
    layer = make("alike", bidirectional=True, merge="sum")
    model = anyrnn.ManyToOne(layer, 2, pool="mean").double()
    assert model(x_of(), lengths=LENGTHS)[0].shape == (B, 2)


@pytest.mark.parametrize("engine", ["reference", "cpu"])
@pytest.mark.parametrize("stack", ["alike", "states"])
def test_the_states_of_all_steps_are_in_the_form_of_the_state(stack, engine):
    layer = make(stack, connect="dense")
    with anyrnn.engine(engine):
        _, final, states = layer(x_of(), return_states=True)
        assert [type(part) for part in states] == [type(part) for part in final]
        for t in range(T):
            _, after = layer(x_of()[: t + 1])
            close([every[:, t] for every in flat(states)], flat(after), atol=1e-10)
        both_ways = make(stack, bidirectional=True)
        _, final, states = both_ways(x_of(), lengths=LENGTHS, return_states=True)
        assert [s.shape for s in flat(states)] == [(f.shape[0], T, *f.shape[1:]) for f in flat(final)]


class Twofold(nn.Module):
    """Two outputs."""

    def __init__(self, size):
        super().__init__()
        self.hidden_size = H
        self.cell = nn.GRUCell(size, H)

    def forward(self, x, h):
        h = self.cell(x, h)
        return (2 * h, h), h


def test_the_states_of_all_steps_where_only_the_last_layer_has_several_outputs():
    torch.manual_seed(1)
    layer = anyrnn.Recurrent([lstm, Twofold], I, connect="residual").double()
    (first, second), _, ((h, c), after) = layer(x_of(), return_states=True)
    wanted, (_, _), (wanted_h, wanted_c) = anyrnn.scan(layer.cell(0), x_of(), return_states=True)
    close([h[0], c[0], h[0]], [wanted_h, wanted_c, wanted])
    close([second, first], [after[0], 2 * after[0] + wanted])


@pytest.mark.parametrize("engine", ["reference", "cpu"])
@pytest.mark.parametrize("connect", CONNECTIONS)
def test_a_stack_that_runs_on_its_own_output(connect, engine):
    torch.manual_seed(1)
    makers = [gru, lstm, gru]
    layer = anyrnn.Recurrent(makers, I, connect=connect).double()
    head, first = nn.Linear(H, I).double(), x_of()[0]
    state = given(layer, layer_states(layer))
    with anyrnn.engine(engine):
        output, final = layer.generate(state, steps=3, first=first, feed=head)
        x, wanted = first, []
        for _ in range(3):
            y, state = layer(x[None], state)
            wanted.append(y[0])
            x = head(y[0])
    close([output, *flat(final)], [torch.stack(wanted), *flat(state)], atol=1e-9)


MESSAGES = {
    "merge": (
        lambda: anyrnn.Recurrent(gru, I, merge="max"),
        "Recurrent: got merge='max', expected one of concat, sum, mean",
    ),
    "connect": (
        lambda: anyrnn.Recurrent(gru, I, connect="skip"),
        "Recurrent: got connect='skip', expected one of plain, residual, dense",
    ),
    "no layers": (
        lambda: anyrnn.Recurrent([], I),
        "Recurrent: got a list of 0 cells with num_layers=1, expected one cell or function for each layer, and "
        "num_layers left out",
    ),
    "two numbers of layers": (
        lambda: anyrnn.Recurrent([gru, gru], I, 3),
        "Recurrent: got a list of 2 cells with num_layers=3, expected one cell or function for each layer, and "
        "num_layers left out",
    ),
    "no cell": (
        lambda: anyrnn.Recurrent([gru, "lstm"], I),
        "Recurrent: got 'lstm', expected a cell (an nn.Module) or a function from an input size to a cell",
    ),
    "a cell for both directions": (
        lambda: anyrnn.Recurrent([gru, nn.GRUCell(2 * H, H)], I, bidirectional=True),
        "Recurrent: got one GRUCell for 1 layers, bidirectional=True; expected a function that makes one each: lambda "
        "input_size: GRUCell(input_size, ...)",
    ),
    "a bridge between widths": (
        lambda: anyrnn.Recurrent([gru, wide], I, connect="residual"),
        "Recurrent: got connect='residual' for layer 1, which reads 3 features and gives 5, expected equal, since they "
        "are added: give the layers equal sizes, bring the output to that width by anyrnn.Projected(cell, 3), or use "
        "connect='dense'",
    ),
    "directions of two widths": (
        lambda: anyrnn.Recurrent(two_widths(), I, bidirectional=True, merge="sum"),
        "Recurrent: got merge='sum' for directions of 3 and 2 features in layer 0, expected equal ones, since they are "
        "added; merge='concat' puts them side by side",
    ),
    "a state too few": (
        lambda: make("states")(x_of(), given(make("states"), layer_states(make("states")))[:2]),
        "Recurrent: the state is a tuple of 2, expected a tuple of 3 states, one for each layer, since they differ",
    ),
    "one tensor": (
        lambda: make("widths")(x_of(), torch.zeros(3, B, H)),
        "Recurrent: the state is a Tensor, expected a tuple of 3 states, one for each layer, since they differ",
    ),
    "a state of another size": (
        lambda: make("widths")(x_of(), tuple(torch.zeros(1, B, H).double() for _ in range(3))),
        "Recurrent: the state has shape (1, 3, 3), expected one tensor (1, 3, 5)",
    ),
    "the last output of a sum": (
        lambda: anyrnn.ManyToOne(make("alike", bidirectional=True, merge="sum"), 2),
        "ManyToOne: got pool='last' for a bidirectional layer with merge='sum', in whose output the directions cannot "
        "be told apart; expected merge='concat', or pool='mean' or 'max'",
    ),
}


def two_widths():
    sizes = iter((3, 2))
    return lambda size: ConcatLSTM(size, H, next(sizes))


@pytest.mark.parametrize("name", MESSAGES)
def test_what_does_not_fit_is_refused_with_a_cure(name):
    call, text = MESSAGES[name]
    with pytest.raises(anyrnn.AnyRNNError) as caught:
        call()
    assert str(caught.value) == text
