"""What a step computes on its way, for all steps: the same in every engine, with gradients, ragged and reversed."""

# ruff: noqa: F841 - local variables that nothing uses are what is recorded

import pytest
import torch
from torch import nn

import anyrnn
from zoo import CASES, H, I

T, B = 7, 4
LENGTHS = [7, 0, 3, 5]


class Gated(nn.Module):
    """A cell with locals of every kind: from x alone, of the loop, behind it, of a method, a mask, of three dims."""

    def __init__(self):
        super().__init__()
        self.hidden_size = H
        self.W, self.U = nn.Linear(I, 2 * H), nn.Linear(H, 2 * H)
        self.read = nn.Linear(H, 2)
        self.scale = nn.Parameter(torch.rand(H))

    def gates(self, x, h):
        f, g = (self.W(x) + self.U(h)).chunk(2, dim=1)
        f = torch.sigmoid(f)
        return f, torch.tanh(g)

    def forward(self, x, h):
        e = torch.relu(self.W(x)) * 2
        f, g = self.gates(x, h)
        before = h
        h = f * h + (1 - f) * g * self.scale
        large = h > 0.1
        pair = torch.stack((f, h), dim=1)
        y = self.read(h)
        size, weight, spread = len(x.shape), self.scale, self.scale.expand(x.shape[0], H)
        return torch.exp(y) * size + weight.sum() + spread.sum() / x.shape[0] + pair.sum() * 0 + e.sum() * 0, h


class Plain(nn.Module):
    """Without what runs row by row only."""

    def __init__(self):
        super().__init__()
        self.hidden_size = H
        self.W, self.U = nn.Linear(I, 2 * H), nn.Linear(H, 2 * H)
        self.read = nn.Linear(H, 2)

    def gates(self, x, h):
        f, g = (self.W(x) + self.U(h)).chunk(2, dim=1)
        f = torch.sigmoid(f)
        return f, torch.tanh(g)

    def forward(self, x, h):
        e = torch.relu(self.W(x)) * 2
        f, g = self.gates(x, h)
        before = h
        h = f * h + (1 - f) * g
        large = h > 0.1
        pair = torch.stack((f, h), dim=1)
        y = self.read(h)
        return torch.exp(y), h


NAMES = ("e", "f", "g", "before", "h", "large", "pair", "y", "x")


def by_hand(cell, x, lengths, reverse):
    """Each row by itself, one step after the other, with the formulas of the cell written out."""
    found = {name: [] for name in NAMES}
    for b, n in enumerate(lengths):
        h = x.new_zeros(1, H)
        rows = {name: {} for name in NAMES}
        for t in reversed(range(n)) if reverse else range(n):
            at = x[t, b : b + 1]
            e = torch.relu(cell.W(at)) * 2
            f, g = (cell.W(at) + cell.U(h)).chunk(2, dim=1)
            f, g, before = torch.sigmoid(f), torch.tanh(g), h
            h = f * h + (1 - f) * g
            pair = torch.stack((f, h), dim=1)
            for name, value in zip(NAMES, (e, f, g, before, h, h > 0.1, pair, cell.read(h), at), strict=True):
                rows[name][t] = value
        for name in NAMES:
            like = torch.zeros(1, *{"e": (2 * H,), "pair": (2, H), "y": (2,), "x": (I,)}.get(name, (H,)), dtype=x.dtype)
            like = like.bool() if name == "large" else like
            found[name].append(torch.stack([rows[name].get(t, like) for t in range(T)]))
    return {name: torch.cat(parts, 1) for name, parts in found.items()}


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("lengths", [None, LENGTHS])
@pytest.mark.parametrize("engine", ["cpu", "reference"])
def test_records_are_what_the_step_computes_with_their_gradients(engine, lengths, reverse):
    torch.manual_seed(0)
    cell = Plain().double()
    x = torch.randn(T, B, I, dtype=torch.float64, requires_grad=True)
    want = by_hand(cell, x, lengths or [T] * B, reverse)
    with anyrnn.engine(engine):
        output, state, records = anyrnn.scan(cell, x, lengths=lengths, reverse=reverse, record=NAMES)
    alone = anyrnn.scan(cell, x, lengths=lengths, reverse=reverse)
    torch.testing.assert_close((output, state), alone, rtol=1e-10, atol=1e-12)
    assert tuple(records) == NAMES
    for name in NAMES:
        torch.testing.assert_close(records[name], want[name], rtol=1e-10, atol=1e-12)
        assert records[name].dtype == (torch.bool if name == "large" else torch.float64)
    weights = [p for n, p in cell.named_parameters()]
    for name in ("f", "pair", "y", "e", "before"):
        grads = [
            torch.autograd.grad(r[name].pow(2).sum(), [x, *weights], allow_unused=True, retain_graph=True)
            for r in (records, want)
        ]
        for a, b in zip(*grads, strict=True):
            zero = torch.zeros(()).double()
            torch.testing.assert_close(*((zero if g is None else g.sum()) for g in (a, b)), rtol=1e-9, atol=1e-11)
            if a is not None and b is not None:
                torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)


def test_a_layer_records_in_its_own_forms():
    torch.manual_seed(0)
    layer = anyrnn.LSTM(I, H, batch_first=True)
    x = torch.randn(B, T, I)
    output, (h, c), records = layer(x, record=("f", "c"))
    assert {name: t.shape for name, t in records.items()} == {"f": (B, T, H), "c": (B, T, H)}
    torch.testing.assert_close(records["c"][:, -1], c[0])
    torch.testing.assert_close((output, (h, c)), layer(x))
    alone = layer(x[0], record="f")[2]["f"]
    torch.testing.assert_close(alone, records["f"][0])
    packed = nn.utils.rnn.pack_padded_sequence(x, [7, 3, 5, 1], batch_first=True, enforce_sorted=False)
    ragged = layer(packed, record="f")[2]["f"]
    torch.testing.assert_close(ragged[1, :3], records["f"][1, :3])
    assert not ragged[1, 3:].any()


@pytest.mark.parametrize("engine", ["reference", "cpu"])
@pytest.mark.parametrize("first", [False, True])
def test_a_stack_records_every_layer_and_direction(engine, first):
    layer = anyrnn.LSTM(I, H, num_layers=2, bidirectional=True, batch_first=first).double()
    below = torch.randn(T, B, I, dtype=torch.float64)
    x = below.transpose(0, 1) if first else below
    lengths = LENGTHS[:B]
    with anyrnn.engine(engine):
        _, _, records, (_, c) = layer(x, lengths=lengths, record=("f", "c"), return_states=True)
        assert records["f"].shape == (4, *x.shape[:2], H)
        torch.testing.assert_close(records["c"], c)
        (gradient,) = torch.autograd.grad(records["f"][3].sum(), layer.weight_hh_l1_reverse)
        for d in (0, 1):
            alone = anyrnn.scan(layer.cell(0, d == 1), below, lengths=lengths, reverse=d == 1, record="f")[2]["f"]
            torch.testing.assert_close(records["f"][d], alone.transpose(0, 1) if first else alone)
    assert gradient.any()
    assert set(layer.names) >= {"i", "f", "g", "o", "c"}


def test_layers_of_several_kinds_record_what_each_has():
    layer = anyrnn.Recurrent([lambda size: anyrnn.GRUCell(size, H), lambda size: anyrnn.LSTMCell(size, H + 1)], I)
    assert {"z", "f"} <= set(layer.names)
    records = layer(torch.randn(T, B, I), record=("f", "h"))[2]
    assert records["f"][0] is None
    assert records["f"][1].shape == (T, B, H + 1)
    assert [r.shape[-1] for r in records["h"]] == [H, H + 1]
    with pytest.raises(anyrnn.AnyRNNError, match=r"'wonder', expected one of .*z"):
        layer(torch.randn(T, B, I), record="wonder")


def test_a_function_as_a_step_records_the_variables_of_what_it_calls():
    layer = anyrnn.Recurrent(anyrnn.LSTMCell(I, H), I, step=lambda m, x, s: m(x, s))
    plain, x = anyrnn.Recurrent(layer.cells[0], I), torch.randn(T, B, I)
    for engine in ("reference", "cpu"):
        with anyrnn.engine(engine):
            torch.testing.assert_close(layer(x, record="f")[2]["f"], plain(x, record="f")[2]["f"])


@pytest.mark.parametrize("name", ["LSTM", "LSTM-projected", "Peephole"])
def test_the_memory_that_the_cells_of_the_package_record_is_their_state(name):
    (case,) = (case for case in CASES if case.name == name)
    cell = case.cell().double()
    x = torch.randn(T, B, I, dtype=torch.float64)
    for engine in ("cpu", "reference"):
        with anyrnn.engine(engine):
            _, (_, c), records = anyrnn.scan(cell, x, lengths=LENGTHS, record=("c", "f"))
        for row, n in enumerate(LENGTHS):
            torch.testing.assert_close(records["c"][n - 1, row] if n else torch.zeros_like(c[row]), c[row])
        assert ((records["f"] > 0) == (torch.arange(T)[:, None] < torch.tensor(LENGTHS))[..., None]).all()


@pytest.mark.parametrize("engine", ["cpu", "reference", "auto"])
def test_where_no_row_has_a_step_records_are_zero(engine):
    layer = anyrnn.Recurrent(Plain(), input_size=I)
    with anyrnn.engine(engine):
        records = layer(torch.randn(T, 2, I), lengths=[0, 0], record=("pair", "large"))[2]
    assert records["pair"].shape == (T, 2, 2, H)
    assert not records["pair"].any()
    assert records["large"].dtype == torch.bool


def test_a_traced_model_records_what_its_layer_does():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = anyrnn.LSTM(I, H)

        def forward(self, x):
            return self.layer(x, record="f")[2]["f"]

    model, x = Model(), torch.randn(T, B, I)
    traced = torch.fx.symbolic_trace(model)
    torch.testing.assert_close(traced(x), model(x))
    assert len(anyrnn.LSTM(I, H, num_layers=2)(x, record=[])) == 2


def test_what_cannot_be_recorded_is_told():
    layer, x = anyrnn.Recurrent(Gated(), input_size=I), torch.randn(T, B, I)
    with pytest.raises(anyrnn.AnyRNNError, match=r"'wonder', expected a local variable of its step, .*before"):
        layer(x, record="wonder")
    with pytest.raises(anyrnn.AnyRNNError, match="'size', which is a int, expected one"):
        layer(x, record=("f", "size"))
    with pytest.raises(anyrnn.AnyRNNError, match=r"'weight', which is a tensor \(\d,\)"):
        layer(x, record="weight")
    with pytest.raises(anyrnn.AnyRNNError, match="expected names"):
        layer(x, record=(1,))
    plain = anyrnn.Recurrent(Plain(), input_size=I)
    with anyrnn.engine("cpu"), pytest.raises(anyrnn.AnyRNNError, match="`wonder`, which is to be recorded"):
        plain(x, record="wonder")
    compiled = torch.compile(layer, backend="eager", fullgraph=True)
    with pytest.raises(Exception, match=r"below torch\.compile"):
        compiled(x, record="f")


def test_what_is_recorded_is_part_of_the_plan():
    layer, x = anyrnn.Recurrent(Plain(), input_size=I), torch.randn(T, B, I)
    first = layer(x)
    with_f = layer(x, record="f")
    with_both = layer(x, record=("f", "y"))
    assert [len(r) for r in (first, with_f, with_both)] == [2, 3, 3]
    assert [*with_both[2]] == ["f", "y"]
    torch.testing.assert_close(with_both[2]["f"], with_f[2]["f"])
    assert torch.equal(layer(x)[0], first[0])
