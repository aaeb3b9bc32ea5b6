"""What a call means: a test for each rule, on every cell, engine and direction."""

import functools

import pytest
import torch

import anyrnn
from zoo import (
    CASES,
    LAYER_PAIRS,
    PAIRS,
    B,
    H,
    I,
    T,
    close,
    flat,
    gradients,
    ids,
    layer_state,
    loss_of,
    plain,
    plain_layer,
    state_of,
    x_of,
)

BOTH = [(case, engine, direction) for case, engine in PAIRS for direction in ("forward", "backward")]
pytestmark = pytest.mark.grid(6)
every = pytest.mark.parametrize(("case", "engine", "direction"), BOTH, ids=ids(BOTH))
of_layers = pytest.mark.parametrize(("case", "engine"), LAYER_PAIRS, ids=ids(LAYER_PAIRS))
# A batch that no kernel takes is the reference's, unless an engine is asked for by name.
AUTO = [(case, engine) for case in CASES for engine in ("auto", "reference")]
auto = pytest.mark.parametrize(("case", "engine"), AUTO, ids=ids(AUTO))


def leaves(*tensors):
    return [t.detach().clone().requires_grad_() for t in tensors]


def run(cell, engine, x, state, lengths=None, reverse=False):
    """Output, final states, and the gradients of x, states and parameters."""
    bare = isinstance(state, torch.Tensor)
    x, *states = leaves(x, *flat(state))
    with anyrnn.engine(engine):
        output, final = anyrnn.scan(cell, x, states[0] if bare else tuple(states), lengths, reverse)
    loss = loss_of(output, *flat(final))
    return output.detach(), [s.detach() for s in flat(final)], gradients([x, *states, *cell.parameters()], loss)


@functools.cache  # what one engine is held against serves the others, too
def run_plain(case, batch=B, lengths=None, reverse=False):
    """What `run` should give for the cell of a case."""
    cell = case.cell()
    bare = anyrnn.probing.describe(cell, I).bare
    x, *states = leaves(x_of(B=batch), *flat(state_of(cell, batch)))
    output, final = plain(cell, x, states[0] if bare else tuple(states), lengths, reverse)
    loss = loss_of(output, *final)
    return output.detach(), [s.detach() for s in final], gradients([x, *states, *cell.parameters()], loss)


def equal(got, want):
    """Compare what `run` gives: output, states, gradients."""
    for a, b in zip(got, want, strict=True):
        close(flat(a), flat(b))


@every
@pytest.mark.parametrize("lengths", [None, (2, 4, 0), (3, 1, 4)], ids=str)
def test_a_scan_is_the_loop_over_each_row_by_itself(case, engine, direction, lengths):
    cell, reverse = case.cell(), direction == "backward"
    equal(run(cell, engine, x_of(), state_of(cell), lengths, reverse), run_plain(case, B, lengths, reverse))


@every
@pytest.mark.parametrize("filler", [torch.nan, torch.inf])
def test_what_the_padding_holds_changes_nothing(case, engine, direction, filler):
    cell, x, lengths, reverse = case.cell(), x_of(), torch.tensor([2, 4, 0]), direction == "backward"
    state = state_of(cell)
    padding = torch.arange(T).unsqueeze(1) >= lengths
    filled = x.masked_fill(padding.unsqueeze(2), filler)
    got, want = run(cell, engine, filled, state, lengths, reverse), run(cell, engine, x, state, lengths, reverse)
    for a, b in zip(got, want, strict=True):
        for one, other in zip(flat(a), flat(b), strict=True):
            assert torch.equal(one, other)
    assert (got[0][padding] == 0).all(), "output at padded steps"
    assert (got[2][0][padding] == 0).all(), "gradient of x at padded steps"


@every
def test_a_row_does_not_depend_on_its_batch_mates(case, engine, direction):
    cell, x, lengths, reverse = case.cell(), x_of(), [2, 4, 3], direction == "backward"
    state = state_of(cell)
    count = len(flat(state))
    total = [torch.zeros_like(p) for p in cell.parameters()]
    changed = x.clone()
    changed[:, 1] = 7.0
    for row, n in enumerate(lengths):
        mine = [s[row : row + 1] for s in flat(state)]
        bare = isinstance(state, torch.Tensor)
        alone = run_masked(cell, engine, x[:n, row : row + 1], mine[0] if bare else tuple(mine), None, reverse, row, n)
        among = run_masked(cell, engine, x, state, lengths, reverse, row, n)
        close([among[0][:n, row : row + 1], *(s[row : row + 1] for s in among[1])], [alone[0], *alone[1]])
        close([among[2][0][:n, row : row + 1]], [alone[2][0]])
        close([g[row : row + 1] for g in among[2][1 : 1 + count]], alone[2][1 : 1 + count])
        close(among[2][1 + count :], alone[2][1 + count :])
        for g in among[2][: 1 + count]:  # no other row's x or state has any part in this row's result
            others = torch.ones(B, dtype=torch.bool)
            others[row] = False
            assert (g.movedim(-2, 0)[others] == 0).all()
        total = [a + b for a, b in zip(total, alone[2][1 + count :], strict=True)]
        if row != 1:
            other = run_masked(cell, engine, changed, state, lengths, reverse, row, n)
            close([other[0][:n, row]], [among[0][:n, row]], atol=1e-13)
    assert any(t.abs().max() > 0 for t in total)


def run_masked(cell, engine, x, state, lengths, reverse, row, n):
    """As `run`, with a loss that looks at one row only."""
    bare = isinstance(state, torch.Tensor)
    x, *states = leaves(x, *flat(state))
    with anyrnn.engine(engine):
        output, final = anyrnn.scan(cell, x, states[0] if bare else tuple(states), lengths, reverse)
    pick = slice(row, row + 1) if x.shape[1] > 1 else slice(0, 1)
    loss = loss_of(output[:n, pick], *(s[pick] for s in flat(final)))
    return output.detach(), [s.detach() for s in flat(final)], gradients([x, *states, *cell.parameters()], loss)


@pytest.mark.parametrize(("case", "engine"), PAIRS, ids=ids(PAIRS))
def test_the_backward_direction_starts_at_each_rows_own_last_valid_step(case, engine):
    cell, x, lengths = case.cell(), x_of(), [2, 4, 1]
    state = state_of(cell)
    flipped = torch.full_like(x, torch.nan)
    for row, n in enumerate(lengths):
        flipped[:n, row] = x[:n, row].flip(0)
    with anyrnn.engine(engine):
        output, final = anyrnn.scan(cell, x, state, lengths, reverse=True)
        mirrored, mirrored_final = anyrnn.scan(cell, flipped, state, lengths)
    for row, n in enumerate(lengths):
        close([output[:n, row]], [mirrored[:n, row].flip(0)])
    close(flat(final), flat(mirrored_final))
    # The last valid step has seen one x only, the first all of them.
    step = plain(cell, x[1:2, :1], [s[:1] for s in flat(state)] if not isinstance(state, torch.Tensor) else state[:1])
    close([output[1, 0]], [step[0][0, 0]])


@every
def test_a_row_of_length_zero_returns_its_initial_state(case, engine, direction):
    cell, x = case.cell(), x_of()
    x, *states = leaves(x, *flat(state_of(cell)))
    state = states[0] if anyrnn.probing.describe(cell, I).bare else tuple(states)
    with anyrnn.engine(engine):
        output, final = anyrnn.scan(cell, x, state, [0, 3, 0], direction == "backward")
    assert (output[:, [0, 2]] == 0).all()
    for before, after in zip(states, flat(final), strict=True):
        assert torch.equal(before[[0, 2]], after[[0, 2]])
    # ... and its gradient is the gradient of that state, unchanged, whatever is asked of the output
    weight = torch.tensor([2.0, 3.0], dtype=torch.float64)
    loss = sum((s[[0, 2]].sum(1) * weight).sum() for s in flat(final)) + output[:, [0, 2]].sum()
    for g in gradients(states, loss):
        assert torch.equal(g[[0, 2]], weight.unsqueeze(1).expand_as(g[[0, 2]]))
        assert (g[1] == 0).all()


@auto
@pytest.mark.parametrize("lengths", [None, "zeros"], ids=str)
def test_no_steps_at_all(case, engine, lengths):
    cell = case.cell()
    state = state_of(cell)
    output, final, grads = run(cell, engine, x_of(T=0), state, None if lengths is None else [0] * B)
    assert output.shape == (0, B, anyrnn.probing.describe(cell, I).output_size)
    close(final, flat(state))
    close(grads[1 : 1 + len(final)], gradients(leaves_of := leaves(*flat(state)), loss_of(output, *leaves_of)))


@auto
def test_no_rows_at_all(case, engine):
    cell = case.cell()
    signature = anyrnn.probing.describe(cell, I)
    for lengths in (None, [], torch.zeros(0, dtype=torch.int64)):
        output, final, grads = run(cell, engine, x_of(B=0), state_of(cell, 0), lengths)
        assert output.shape == (T, 0, signature.output_size)
        assert [s.shape for s in final] == [(0, n) for n in signature.state_sizes]
        assert all((g == 0).all() for g in grads)


@every
def test_one_row(case, engine, direction):
    cell, x, reverse = case.cell(), x_of(B=1), direction == "backward"
    state = state_of(cell, 1)
    for lengths in (None, (2,)):
        equal(run(cell, engine, x, state, lengths, reverse), run_plain(case, 1, lengths, reverse))


LAYOUTS = {
    "batch and time swapped in memory": lambda x: x.transpose(0, 1).contiguous().transpose(0, 1),
    "features strided": lambda x: x.repeat_interleave(2, -1)[..., ::2],
    "every other step of a longer tensor": lambda x: x.repeat_interleave(2, 0)[::2],
    "offset in a larger tensor": lambda x: torch.cat((x[:1] * 9, x))[1:],
}


@every
def test_inputs_need_not_be_contiguous(case, engine, direction):
    cell, x, reverse = case.cell(), x_of(), direction == "backward"
    state = state_of(cell)
    for lengths in (None, [2, 4, 0]):
        with anyrnn.engine(engine):
            want, want_final = anyrnn.scan(cell, x, state, lengths, reverse)
            for name, lay in LAYOUTS.items():
                odd = lay(state) if isinstance(state, torch.Tensor) else tuple(lay(s) for s in state)
                assert torch.equal(lay(x), x), name
                output, final = anyrnn.scan(cell, lay(x), odd, lengths, reverse)
                close([output, *flat(final)], [want, *flat(want_final)])


@every
def test_inputs_may_be_expanded_and_gradients_add_up(case, engine, direction):
    cell, reverse = case.cell(), direction == "backward"
    x, *states = leaves(x_of(B=1), *flat(state_of(cell, 1)))
    bare = anyrnn.probing.describe(cell, I).bare

    def grads(expand):
        wide = [expand(s, -1) for s in states]
        with anyrnn.engine(engine):
            output, final = anyrnn.scan(cell, expand(x, T), wide[0] if bare else tuple(wide), [2, 4, 0], reverse)
        return [output, *flat(final), *gradients([x, *states, *cell.parameters()], loss_of(output, *flat(final)))]

    expanded = grads(lambda t, n: t.expand(*t.shape[:-2], B, t.shape[-1]))
    close(expanded, grads(lambda t, n: t.repeat_interleave(B, -2)))


@every
def test_inputs_are_not_written_to(case, engine, direction):
    cell, x = case.cell(), x_of()
    state = state_of(cell)
    before = [t.clone() for t in (x, *flat(state), *cell.parameters())]
    run(cell, engine, x, state, [2, 4, 0], direction == "backward")
    close([x, *flat(state), *cell.parameters()], before, atol=0)


CHUNKS = [[4], [1, 3], [2, 2], [3, 1], [1, 1, 1, 1], [0, 4, 0]]


@pytest.mark.parametrize(("case", "engine"), PAIRS, ids=ids(PAIRS))
@pytest.mark.parametrize("lengths", [None, [2, 4, 0], [1, 3, 4]], ids=str)
def test_chunked_calls_with_the_state_carried_equal_one_long_call(case, engine, lengths):
    cell, x = case.cell(), x_of()
    state = state_of(cell)
    want = run(cell, engine, x, state, lengths)
    for chunks in CHUNKS:
        x_, *states = leaves(x, *flat(state))
        carried = states[0] if anyrnn.probing.describe(cell, I).bare else tuple(states)
        outputs, start = [], 0
        for size in chunks:
            part = None if lengths is None else (torch.tensor(lengths) - start).clamp(0, size)
            with anyrnn.engine("auto" if size == 0 else engine):
                output, carried = anyrnn.scan(cell, x_[start : start + size], carried, part)
            outputs.append(output)
            start += size
        loss = loss_of(torch.cat(outputs), *flat(carried))
        grads = gradients([x_, *states, *cell.parameters()], loss)
        close([torch.cat(outputs), *flat(carried), *grads], [want[0], *want[1], *want[2]])


@every
def test_the_same_call_gives_the_same_bits(case, engine, direction):
    for dtype in (torch.float32, torch.float64):
        cell, x = case.cell(dtype=dtype), x_of().to(dtype)
        state = state_of(cell, like=x)
        first = run(cell, engine, x, state, [2, 4, 0], direction == "backward")
        again = run(cell, engine, x, state, [2, 4, 0], direction == "backward")
        for a, b in zip(first, again, strict=True):
            assert all(torch.equal(one, other) for one, other in zip(flat(a), flat(b), strict=True))


# float32 has 24 bits and bfloat16 8: a few roundings a step, four steps, values around 1. float16 has 11.
PRECISIONS = {torch.float32: 1e-5, torch.float16: 2e-2, torch.bfloat16: 1e-1}


@every
def test_lower_precision_gives_that_type_and_nearly_the_result(case, engine, direction):
    cell, x, lengths, reverse = case.cell(), x_of(), [2, 4, 0], direction == "backward"
    want = run(cell, engine, x, state_of(cell), lengths, reverse)
    for dtype, atol in PRECISIONS.items():
        low = x.to(dtype)
        got = run(cell.to(dtype), engine, low, state_of(cell, like=low), lengths, reverse)
        assert all(t.dtype == dtype for part in got for t in flat(part))
        for one, other in zip(flat(got[:2]), flat(want[:2]), strict=True):
            torch.testing.assert_close(one.double(), other, rtol=0, atol=atol)
        for one, other in zip(got[2], want[2], strict=True):
            scale = 1 + float(other.abs().max())
            torch.testing.assert_close(one.double(), other, rtol=0, atol=3 * atol * scale)


@every
def test_without_gradients_the_result_is_the_same(case, engine, direction):
    cell, x = case.cell(), x_of()
    state = state_of(cell)
    want = run(cell, engine, x, state, [2, 4, 0], direction == "backward")
    for mode in (torch.no_grad, torch.inference_mode):
        with mode(), anyrnn.engine(engine):
            output, final = anyrnn.scan(cell, x, state, [2, 4, 0], direction == "backward")
        assert not output.requires_grad
        close([output.clone(), *(s.clone() for s in flat(final))], [want[0], *want[1]], atol=1e-12)


def test_lengths_may_be_a_list_a_tuple_an_array_or_any_integer_tensor():
    cell, x = CASES[0].cell(), x_of()
    want, _ = anyrnn.scan(cell, x, lengths=[2, 4, 0])
    as_tensor = torch.tensor([2, 4, 0])
    forms = [(2, 4, 0), as_tensor.numpy(), as_tensor, as_tensor.int(), as_tensor.short(), as_tensor.to(torch.uint8)]
    forms += [[torch.tensor(2), torch.tensor(4), torch.tensor(0)], as_tensor.repeat_interleave(2)[::2]]
    for lengths in forms:
        assert torch.equal(anyrnn.scan(cell, x, lengths=lengths)[0], want)


def test_the_state_is_zero_where_none_is_given():
    for case in CASES:
        cell, x = case.cell(), x_of()
        zero = [torch.zeros_like(s) for s in flat(state_of(cell))]
        bare = anyrnn.probing.describe(cell, I).bare
        output, final = anyrnn.scan(cell, x, lengths=[2, 4, 0])
        want, want_final = anyrnn.scan(cell, x, zero[0] if bare else tuple(zero), [2, 4, 0])
        close([output, *flat(final)], [want, *flat(want_final)], atol=0)
        assert isinstance(final, torch.Tensor) is bare


SHAPES = [
    (case, engine, shape, lengths)
    for case, engine in LAYER_PAIRS
    for shape, lengths in (("3 layers", None), ("2 layers, 2 directions", (2, 4, 0)))
]


@pytest.mark.parametrize(("case", "engine", "shape", "lengths"), SHAPES, ids=ids(SHAPES))
def test_a_layer_is_its_cells_in_stacks_and_directions(case, engine, shape, lengths):
    with anyrnn.engine(engine):
        got = run_layer(case, shape, lengths, lambda layer, x, state: layer(x, state, lengths=lengths))
    close(got, plain_layers(case, shape, lengths))


@functools.cache
def plain_layers(case, shape, lengths):
    return run_layer(case, shape, lengths, lambda layer, x, state: plain_layer(layer, x, state, lengths))


def run_layer(case, shape, lengths, way):
    layer = case.layer(num_layers=int(shape[0]), bidirectional="directions" in shape)
    state = layer_state(layer)
    x, *states = leaves(x_of(), *flat(state))
    output, final = way(layer, x, states[0] if isinstance(state, torch.Tensor) else tuple(states))
    loss = loss_of(output, *flat(final))
    return [output.detach(), *flat(final), *gradients([x, *states, *layer.parameters()], loss)]


@of_layers
def test_padding_does_not_reach_upper_layers_or_the_other_direction(case, engine):
    layer = case.layer(num_layers=2, bidirectional=True, batch_first=True)
    x, lengths = x_of().transpose(0, 1), torch.tensor([2, 4, 0])
    padding = torch.arange(T) >= lengths.unsqueeze(1)
    results = []
    for filler in (0.0, torch.nan):
        leaf = x.masked_fill(padding.unsqueeze(2), filler).requires_grad_()
        with anyrnn.engine(engine):
            output, final = layer(leaf, lengths=lengths)
        loss = loss_of(output, *flat(final))
        results.append([output, *flat(final), *gradients([leaf, *layer.parameters()], loss)])
        assert (output[padding] == 0).all()
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)


@auto
def test_a_layer_takes_empty_input(case, engine):
    layer = case.layer(num_layers=2, bidirectional=True)
    sizes = anyrnn.probing.describe(layer.cell(), I).state_sizes
    for t, b in ((0, B), (T, 0), (0, 0)):
        with anyrnn.engine(engine):
            output, final = layer(torch.randn(t, b, I, dtype=torch.float64), layer_state(layer, b))
        assert output.shape == (t, b, layer.output_size)
        assert [s.shape for s in flat(final)] == [(4, b, n) for n in sizes]
        if t == 0:
            close(flat(final), flat(layer_state(layer, b)), atol=0)


@of_layers
def test_unbatched_and_batch_first_input_are_only_other_layouts(case, engine):
    layer, x, state = case.layer(num_layers=2, bidirectional=True), x_of(), None
    state = layer_state(layer)
    with anyrnn.engine(engine):
        output, final = layer(x, state, lengths=[2, 4, 3])
        layer.batch_first = True
        turned, turned_final = layer(x.transpose(0, 1), state, lengths=[2, 4, 3])
        close([turned.transpose(0, 1), *flat(turned_final)], [output, *flat(final)], atol=0)
        for batch_first in (False, True):
            layer.batch_first = batch_first
            for row, n in enumerate([2, 4, 3]):
                own = state[:, row] if isinstance(state, torch.Tensor) else tuple(s[:, row] for s in state)
                for lengths in (n, torch.tensor(n), [n]):
                    alone, alone_final = layer(x[:, row], own, lengths=lengths)
                    close([alone, *flat(alone_final)], [output[:, row], *(s[:, row] for s in flat(final))])


@of_layers
@pytest.mark.parametrize("sort", [True, False], ids=["sorted", "unsorted"])
def test_a_packed_sequence_goes_in_and_comes_out(case, engine, sort):
    layer, x = case.layer(num_layers=2, bidirectional=True), x_of()
    state, lengths = layer_state(layer), [4, 3, 1] if sort else [3, 1, 4]
    packed = torch.nn.utils.rnn.pack_padded_sequence(x, torch.tensor(lengths), enforce_sorted=sort)
    with anyrnn.engine(engine):
        want, want_final = layer(x, state, lengths=lengths)
        output, final = layer(packed, state)
    assert (output.sorted_indices is None) is sort
    unpacked, got_lengths = torch.nn.utils.rnn.pad_packed_sequence(output)
    assert got_lengths.tolist() == lengths
    close([unpacked, *flat(final)], [want, *flat(want_final)])


def test_dropout_acts_between_layers_while_training_only():
    torch.manual_seed(5)
    layer = CASES[6].layer(num_layers=2, dropout=0.5)
    x = x_of()
    assert not torch.equal(layer(x)[0], layer(x)[0])
    first, _ = anyrnn.scan(layer.cell(0), x)
    torch.manual_seed(6)
    output, final = layer(x)
    torch.manual_seed(6)
    dropped = torch.nn.functional.dropout(first, 0.5)
    assert set((dropped / first).unique().tolist()) == {0.0, 2.0}
    close([output], [anyrnn.scan(layer.cell(1), dropped)[0]])
    close([final[0]], [first[-1]])  # the state is not dropped
    layer.eval()
    close([layer(x)[0]], [plain_layer(layer, x, torch.zeros(2, B, H, dtype=torch.float64))[0]])


@auto
@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_a_batch_without_steps_keeps_its_graph(case, engine, direction):
    """Else a process of several that gets such a batch would leave the others waiting for its gradients."""
    cell = case.cell()
    bare = anyrnn.probing.describe(cell, I).bare
    for steps, lengths in ((0, None), (T, (0,) * B), (0, (0,) * B)):
        x, *states = leaves(x_of(T=steps).fill_(torch.nan), *flat(state_of(cell)))
        with anyrnn.engine(engine):
            output, final = anyrnn.scan(cell, x, states[0] if bare else tuple(states), lengths, direction == "backward")
        for part in (output, *flat(final)):
            found = torch.autograd.grad(part.sum(), [x, *cell.parameters()], retain_graph=True)
            assert all((g == 0).all() for g in found)
        found = torch.autograd.grad(loss_of(output, *flat(final)), states)
        close(found, torch.autograd.grad(loss_of(output.detach(), *(s.clone() for s in states)), states), atol=0)
        with torch.no_grad(), anyrnn.engine(engine):
            assert not anyrnn.scan(cell, x, lengths=lengths)[0].requires_grad


def test_a_layer_whose_batch_has_no_steps_can_be_trained_and_differentiated_twice():
    for layer in (anyrnn.LSTM(I, H, 2, bidirectional=True), CASES[19].layer(num_layers=2).float()):
        layer.zero_grad()
        x = x_of().float().requires_grad_()
        output, final = layer(x, lengths=[0] * B)
        (first,) = torch.autograd.grad(output.sum() + sum(s.sum() for s in flat(final)), x, create_graph=True)
        (first.sum() + output.sum()).backward()
        assert all((p.grad == 0).all() for p in layer.parameters())


class Writing(torch.nn.Module):
    """Writes into what it is given: at every step, from the third step on, or where x says so."""

    def __init__(self, when, pair, apart):
        super().__init__()
        self.hidden_size, self.when, self.pair, self.apart, self.count = H, when, pair, apart, 0
        self.W = torch.nn.Linear(I, H)

    def forward(self, x, state):
        self.count += self.when == "late"
        if self.when == "always" or self.count > 2 or (self.when == "x" and x[0, 0] > 0):
            x.mul_(0.5).add_(1)
            for h in state if self.pair else (state,):
                h.mul_(0.9).add_(self.W(x))
        else:
            new = 0.5 * (state[0] if self.pair else state) + self.W(x)
            state = (new, state[1]) if self.pair else new
        return (state[0] if self.pair else state, state) if self.apart else state


@pytest.mark.parametrize("given", ["nothing", "leaves", "no leaves"])
@pytest.mark.parametrize(
    ("pair", "apart"), [(False, False), (True, False), (True, True)], ids=["one state", "pair", "output and pair"]
)
@pytest.mark.parametrize("when", ["always", "late", "x"])
@pytest.mark.parametrize("engine", ["auto", "reference", "cpu"])
@pytest.mark.parametrize("lengths", [None, (2, 4, 4)], ids=str)
def test_a_step_that_writes_into_what_it_is_given_writes_into_copies(given, pair, apart, when, engine, lengths):
    """Nothing of the caller's changes, and no output of before, also where plain PyTorch would refuse to write."""
    if engine == "cpu" and when != "always":
        pytest.skip("it counts, or looks at numbers: none for machine code")
    cell, count = Writing(when, pair, apart).double(), 2 if pair else 1
    cell.state_sizes = (H, H) if pair else H
    x, *states = leaves(x_of(), *(torch.randn(B, H, dtype=torch.float64) for _ in range(count)))
    if given == "nothing":
        for t in (x, *states):
            t.requires_grad_(False)
    inputs = [t + 0 if given == "no leaves" else t for t in (x, *states)]
    before = [t.detach().clone() for t in inputs]
    trained = [t for t in (x, *states, *cell.parameters()) if t.requires_grad]

    cell.count, rows, current = 0, torch.tensor(lengths or (T,) * B), [t.clone() for t in inputs[1:]]
    outputs = []
    for t in range(T):  # the plain loop, on copies
        valid = (rows > t).unsqueeze(1)
        # Rows whose turn is over come last, so that the rows of a step are the first ones.
        order = rows.argsort(descending=True, stable=True)[: int(valid.sum())]
        parts = [s[order].clone() for s in current]
        result = cell(inputs[0][t][order].clone(), tuple(parts) if pair else parts[0])
        new = flat(result[1] if apart else result)
        current = [s.index_copy(0, order, n) for s, n in zip(current, new, strict=True)]
        outputs.append(torch.where(valid, current[0], 0.0))
    want = [torch.stack(outputs), *current]

    cell.count = 0
    with anyrnn.engine(engine):
        anyrnn.scan(cell, x.detach())  # what is looked at and traced, is now
        cell.count = 0
        output, final = anyrnn.scan(cell, inputs[0], tuple(inputs[1:]) if pair else inputs[1], lengths)
    close(inputs, before, atol=0)
    got = [output, *flat(final)]
    close(got, want)
    close(gradients(trained, loss_of(*got)), gradients(trained, loss_of(*want)))
    with torch.inference_mode(), anyrnn.engine(engine):
        cell.count = 0
        output, final = anyrnn.scan(cell, before[0], tuple(before[1:]) if pair else before[1], lengths)
        close([output.clone(), *(s.clone() for s in flat(final))], want)
    close(inputs, before, atol=0)
