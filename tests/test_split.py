"""What goes into which of the four parts: once, before, loop, after."""

from collections import Counter

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import anyrnn
from anyrnn.compiler.derive import derive
from anyrnn.compiler.split import split
from anyrnn.compiler.surrogate import surrogate
from anyrnn.compiler.torch_ops import _ROW_WISE, Ops, mixes_rows
from anyrnn.compiler.trace import registered_of, trace
from anyrnn.engines.cpu.schedule import schedule
from anyrnn.errors import AnyRNNError
from zoo import CASES, H, I


def taken_apart(cell):
    return split(trace(cell, anyrnn.probing.describe(cell, I), I))


def names(steps):
    """The operations, without the transpositions of linear layers."""
    return [op.short_name for op in steps if op.short_name != "t"]


class Step(nn.Module):
    """A cell whose step is a function of it, x and h."""

    def __init__(self, step):
        super().__init__()
        self.hidden_size, self.step = H, step
        self.W, self.U, self.V = nn.Linear(I, H), nn.Linear(H, H, bias=False), nn.Linear(H, H)
        self.v = nn.Parameter(torch.randn(H))
        self.register_buffer("mask", torch.tensor([True, False, True]))

    def forward(self, x, h):
        return self.step(self, x, h)


# ---- The cells of the table ------------------------------------------------------------------------------------------

# cell: (once, before, after, arrays of x, products with a matrix, stages)
PARTS = {
    "LSTM": ([], [], [], (I,), 4, 1),
    "nn.GRUCell": ([], [], [], (I,), 4, 1),
    "GRU-reset-before": (["split_with_sizes", "split_with_sizes"], [], [], (I,), 3, 2),
    "LSTM-projected": ([], [], [], (I,), 5, 2),
    "Peephole": (["split"], [], [], (I,), 4, 1),
    "ConcatLSTM": ([], [], ["addmm"], (I,), 4, 1),
    "ConcatGRU": ([], [], ["addmm"], (I,), 3, 2),
    "MixedSizes": ([], [], ["cat", "addmm"], (I,), 2, 2),
    "IndRNN": ([], [], [], (I,), 1, 1),
    "Buffered": ([], [], [], (I,), 1, 1),
    "NormLSTM": ([], [], [], (I,), 8, 5),
    "weight-normed": (["_weight_norm_interface"], [], [], (I,), 4, 1),
}


@pytest.mark.parametrize("name", PARTS)
def test_a_cell_of_the_table_is_taken_apart_as_expected(name):
    (case,) = (case for case in CASES if case.name == name)
    parts = taken_apart(case.cell())
    program = parts.program
    found = names(parts.once), names(parts.before), names(parts.after), tuple(a.width for a in program.of("stream"))
    products = sum(node.op == "dot" for node in program.nodes)
    stages = 1 + max(group.stage for group in schedule(program, 4).groups)
    assert (*found, products, stages) == PARTS[name]


def test_products_of_values_side_by_side_become_products_of_each():
    """``cat(x, h) @ W`` is ``x @ W[:I] + h @ W[I:]``, and both read the one weight."""
    (case,) = (case for case in CASES if case.name == "RawLSTM")
    program = taken_apart(case.cell()).program
    assert [(a.rows, a.width) for a in program.of("matrix")] == [(I + H, H)] * 4
    for node in program.nodes:
        if node.op == "dot":
            terms = {arg.op: at[1:] for arg, at in zip(node.args, node.attr, strict=True)}
            assert terms == {"stream": (0, 0, False), "state": (I, 0, False)}


# ---- Single steps ----------------------------------------------------------------------------------------------------

# step: (once, before, operations of the loop, after)
STEPS = {
    "a product of the input is the loop's": (
        lambda c, x, h: torch.tanh(c.W(x) + c.U(h)),
        ([], [], {"dot": 1, "add": 1, "tanh": 1}, []),
    ),
    "what follows it before the state comes in is not": (
        lambda c, x, h: torch.tanh(c.W(x)) + c.U(h),
        ([], ["addmm", "tanh"], {"dot": 1, "add": 1}, []),
    ),
    "any operation on the input": (
        lambda c, x, h: torch.tanh(torch.atan(x).sort(1).values[:, :1] * h),
        ([], ["atan", "sort", "slice"], {"mul": 1, "tanh": 1}, []),
    ),
    "any operation on weights": (
        lambda c, x, h: torch.tanh(h @ torch.matrix_exp(c.U.weight - c.U.weight.T) + c.v.cumsum(0)),
        (["permute", "sub", "linalg_matrix_exp", "cumsum"], [], {"dot": 1, "add": 1, "tanh": 1}, []),
    ),
    "any operation on the output": (
        lambda c, x, h: ((n := torch.tanh(c.U(h))).atan().cumsum(1), n),
        ([], [], {"dot": 1, "tanh": 1}, ["atan", "cumsum"]),
    ),
    "weights, input and old state meet behind the loop": (
        lambda c, x, h: (torch.atan(c.V(h)) * c.v.exp() + torch.atan(c.W(x)), torch.tanh(c.U(h))),
        (["exp"], ["addmm", "atan"], {"dot": 1, "tanh": 1}, ["addmm", "atan", "mul", "add"]),
    ),
    "what nothing needs is nowhere": (
        lambda c, x, h: (torch.atan(c.V(h)), torch.atan(x), c.v.exp(), torch.tanh(c.U(h)))[-1],
        ([], [], {"dot": 1, "tanh": 1}, []),
    ),
    "a state that stays and an output of the input": (
        lambda c, x, h: (torch.atan(c.W(x)), h),
        ([], ["addmm", "atan"], {}, []),
    ),
    "a random draw for the input": (
        lambda c, x, h: torch.tanh(c.W(F.dropout(x, 0.5)) + h),
        ([], ["empty_like", "bernoulli", "div", "mul"], {"dot": 1, "add": 2, "tanh": 1}, []),
    ),
    "a random draw for the state": (
        lambda c, x, h: torch.tanh(F.dropout(c.U(h), 0.5)),
        ([], ["new_empty", "bernoulli", "div"], {"dot": 1, "mul": 1, "tanh": 1}, []),
    ),
    "a random draw with a probability": (
        lambda c, x, h: torch.tanh(c.U(h) * torch.bernoulli(h.sigmoid())),
        (
            [],
            ["new_empty", "rand_like"],
            {"dot": 1, "sigmoid": 1, "lt": 1, "where": 1, "surrogate": 1, "mul": 1, "tanh": 1},
            [],
        ),
    ),
    "layout is gone": (
        lambda c, x, h: torch.tanh(torch.cat([x, h], 1)[:, 1:].view(-1, 2, 2).transpose(1, 2).flatten(1)[:, :H] * c.v),
        ([], [], {"mul": 3, "tanh": 3}, []),
    ),
    "a mask": (
        lambda c, x, h: torch.where(~c.mask & (x[:, :1] > 0), h, c.v),
        (["bitwise_not"], ["slice", "gt", "bitwise_and"], {"ne": 1, "where": 1}, []),
    ),
    "a mask behind the loop too": (
        lambda c, x, h: ((n := torch.where((m := h > 0), h.tanh(), -h)).where(m, n * 2), n),
        ([], [], {"gt": 1, "tanh": 1, "neg": 1, "where": 1}, ["mul", "where"]),
    ),
}


@pytest.mark.parametrize("name", STEPS)
def test_a_step_is_taken_apart_as_expected(name):
    function, (once, before, loop, after) = STEPS[name]
    parts = taken_apart(Step(function))
    found = Counter(n.op for n in parts.program.nodes if n.args)
    assert (names(parts.once), names(parts.before), dict(found), names(parts.after)) == (once, before, loop, after)


REFUSED = {
    "an operation that the loop lacks": (lambda c, x, h: torch.lgamma(h), "`aten.lgamma` in the loop"),
    "numbers of the state that others are drawn from": (
        lambda c, x, h: torch.tanh(torch.normal(c.U(h), 1.0)),
        "`aten.normal` in the loop, which reads numbers of the state",
    ),
    "a product with scale factors": (
        lambda c, x, h: torch.addmm(c.v, h, c.U.weight, beta=0.5),
        "`aten.addmm.default` in the loop with scale factors",
    ),
    "a convolution of the state": (
        lambda c, x, h: torch.tanh(F.conv1d(h.unsqueeze(1), c.U.weight.unsqueeze(1), padding=1).sum(1)),
        "`aten.convolution` in the loop; convolve x before the loop",
    ),
    "a mean over the batch that the loop needs": (
        lambda c, x, h: torch.tanh(h * c.W(x).mean(0)),
        r"a tensor \(3,\) without a batch is computed from x",
    ),
    "a mean over the batch that the output needs": (
        lambda c, x, h: (torch.atan(h) * c.W(x).mean(0), torch.tanh(h)),
        r"a tensor \(3,\) without a batch is computed from x",
    ),
    "weights along the batch": (
        lambda c, x, h: (torch.tanh(h) * c.v.expand(len(x), -1).cumsum(0), torch.tanh(h)),
        "`aten.cumsum.default` of weights along the batch",
    ),
    "a draw without a batch": (
        lambda c, x, h: (torch.atan(h) * torch.rand(H), torch.tanh(h)),
        r"a tensor \(3,\) without a batch is computed from x",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_the_loop_cannot_hold_is_named(name):
    function, reason = REFUSED[name]
    with pytest.raises(AnyRNNError, match=reason):
        taken_apart(Step(function))


def test_features_far_apart_are_put_together():
    """Every second feature would be a value of its own: of two gates that take turns, 256 units each are 1,500."""

    class Turns(nn.Module):
        def __init__(self, hidden_size):
            super().__init__()
            self.hidden_size = hidden_size
            self.gates = nn.Linear(I + hidden_size, 2 * hidden_size)

        def forward(self, x, h):
            both = self.gates(torch.cat([x, h], 1))
            return torch.tanh(both[:, ::2]) * torch.sigmoid(both[:, 1::2])

    assert len(taken_apart(Turns(256)).program.nodes) < 12


def test_a_long_chain_of_values_that_are_used_twice_is_cut_in_no_time():
    def step(c, x, h):
        u = c.W(x)
        for k in range(40):
            h = h + 0.1 * torch.tanh(h * k + u)
        return torch.cat([h[:, :1] * 2, h[:, 1:]], 1)

    assert len(taken_apart(Step(step)).program.nodes) < 500


def test_a_step_of_too_many_operations_is_refused_before_it_takes_minutes():
    def step(c, x, h):
        return sum(torch.tanh(h + k) for k in range(800))

    with pytest.raises(AnyRNNError, match="more than 1,500 values"):
        taken_apart(Step(step))


def test_dimensions_are_summed_a_whole_row_at_a_time():
    parts = taken_apart(Step(lambda c, x, h: torch.tanh(torch.cat([h, c.U(h)], 1).view(-1, 2, H).sum(1))))
    found = Counter(n.op for n in parts.program.nodes if n.args)
    assert found == {"dot": 1, "add": 1, "tanh": 1}


# ---- Names -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "kept"),
    [("LSTM", "ifgoc"), ("GRU", "rzn"), ("Peephole", "ifgoc"), ("ConcatGRU", "rznh"), ("RawLSTM", "ifoch")],
)
def test_values_keep_the_names_of_the_cells_code(name, kept):
    (case,) = (case for case in CASES if case.name == name)
    program = taken_apart(case.cell()).program
    assert set(kept) <= set(program.names.values())
    assert set(program.names) <= set(program.nodes) | {n for n in program.names if n not in program.nodes}
    text = str(program)
    for gate in kept:
        assert f"\n{gate} = " in f"\n{text}"


def test_a_gate_is_named_by_what_it_is():
    def step(c, x, h):
        forget_gate = torch.sigmoid(c.W(x) + c.U(h))
        c_tilde = torch.tanh(c.V(h) * forget_gate)
        return forget_gate * h + (1 - forget_gate) * c_tilde

    program = taken_apart(Step(step)).program
    named = {name: node.op for node, name in program.names.items()}
    assert named["forget_gate"] == "sigmoid"
    assert named["c_tilde"] == "tanh"
    assert "c_tilde = tanh(" in str(program)


# ---- The parts that PyTorch runs -------------------------------------------------------------------------------------

ROWS = {
    "each number": (lambda c, x: torch.atan(x) * 2 + c.v[:I], False),
    "a product": (lambda c, x: c.W(x), False),
    "along the features": (lambda c, x: torch.softmax(x, 1) - x.sum(-1, keepdim=True) + x.cumsum(1), False),
    "a norm of the features": (lambda c, x: F.layer_norm(x, (I,)), False),
    "side by side": (lambda c, x: torch.cat([x, x], 1).view(len(x), 2, I).transpose(1, 2).flatten(1), False),
    "a weight for every row": (lambda c, x: x * c.v[:I].expand(len(x), -1), False),
    "a mean over rows": (lambda c, x: x - x.mean(0), True),
    "a sum over rows": (lambda c, x: x - x.sum(0, keepdim=True), True),
    "along the rows": (lambda c, x: x.cumsum(0), True),
    "a softmax over rows": (lambda c, x: torch.softmax(x, 0), True),
    "rows in another order": (lambda c, x: x.flip(0), True),
    "rows one further": (lambda c, x: x.roll(1, 0), True),
    "a random draw": (lambda c, x: F.dropout(x, 0.5), True),
    "what is not known to keep rows apart": (lambda c, x: x.median(1).values[:, None], True),
    "the largest": (
        lambda c, x: torch.cat([x.max(1, True).values + x.argmax(1, True), x.max(-1).values[:, None]], 1),
        False,
    ),
    "the smallest": (
        lambda c, x: torch.cat([x.min(1, True).values + x.argmin(1, True), x.min(-1).values[:, None]], 1),
        False,
    ),
    "the largest of all": (lambda c, x: x - x.max(), True),
    "the largest of a column": (lambda c, x: x - x.max(0).values, True),
    "where it is in the column": (lambda c, x: x + x.argmin(0), True),
    "where it is of all": (lambda c, x: x + x.argmax(), True),
    "in order": (lambda c, x: x.sort().values + x.argsort(1) + torch.sort(x, dim=-1, stable=True).values, False),
    "columns in order": (lambda c, x: x.sort(0).values, True),
    "columns in a stable order": (lambda c, x: torch.sort(x, dim=0, stable=True).values, True),
    "the largest ones": (lambda c, x: x.topk(2).values, False),
    "products": (lambda c, x: x.prod(1, keepdim=True) + x.cumprod(-1), False),
    "a product of a column": (lambda c, x: x * x.prod(0), True),
    "products along the rows": (lambda c, x: x.cumprod(0), True),
    "logarithms of sums": (lambda c, x: x.logsumexp(1, True) + x.logcumsumexp(1), False),
    "logarithms of sums along the rows": (lambda c, x: x.logcumsumexp(0), True),
    "any and all": (lambda c, x: torch.where((x > 1).any(1, True) | (x > -1).all(-1, True), x, 2.0), False),
    "any of a column": (lambda c, x: torch.where((x > 1).any(0), x, 2.0), True),
    "variances": (
        lambda c, x: torch.cat([*torch.var_mean(x, 1, keepdim=True), *torch.std_mean(x, -1, keepdim=True)], 1),
        False,
    ),
    "variances of columns": (lambda c, x: torch.var_mean(x, 0)[0] + x, True),
    "features in another order": (
        lambda c, x: x.flip(1) + x.roll(1, 1) + x.view(-1, 1, I).permute(0, 2, 1).flatten(1),
        False,
    ),
    "rows and features in another order": (lambda c, x: x.flip((0, 1)), True),
    "numbers rolled over rows": (lambda c, x: x.roll(1), True),
    "features repeated": (lambda c, x: x.repeat(1, 2), False),
    "a gate": (lambda c, x: F.glu(torch.cat([x, x], 1)), False),
    "the largest so far": (lambda c, x: x.cummax(1).values + x.cummin(-1).values, False),
    "the largest so far along the rows": (lambda c, x: x.cummax(0).values, True),
    "features by number": (
        lambda c, x: x[:, [1, 0]] + x.index_select(1, torch.tensor([0, 0])) + x[:, c.mask[:I]][:, :1],
        False,
    ),
    "a row by number": (lambda c, x: x + x[[0]], True),
    "a row by number, taken otherwise": (lambda c, x: x + x.index_select(0, torch.tensor([0])), True),
    "features by numbers of their own": (lambda c, x: x.gather(1, x.argsort(1)), False),
    "rows by numbers of their own": (lambda c, x: x.gather(0, x.argsort(0)), True),
    "features beside numbers": (lambda c, x: F.pad(x, (1, -1)), False),
    "a diagonal": (lambda c, x: (x[:, :, None] * x[:, None]).diagonal(dim1=1, dim2=2), False),
    "products of matrices": (lambda c, x: torch.bmm(x[:, None], x[:, :, None]).flatten(1) + x, False),
    "a convolution": (lambda c, x: F.conv1d(x[:, None], c.v.view(1, 1, -1), padding=1).flatten(1), False),
    "parts": (
        lambda c, x: torch.cat(
            [x[:, 1:], *x.split([1, 1], 1), *x.chunk(2, 1), *torch.stack(x.unbind(1), 1).unsafe_chunk(2, 1)], 1
        ),
        False,
    ),
    "parts of other shapes": (lambda c, x: x.unsqueeze(1).squeeze(1).view(-1, 1, I)[:, 0].detach() + x.clone(), False),
    "numbers in its shape": (
        lambda c, x: x + torch.ones_like(x) + torch.zeros_like(x) + torch.full_like(x, 0.5),
        False,
    ),
    "another type": (lambda c, x: x.double().to(x.dtype), False),
    "the ends": (lambda c, x: x.amax(1, True) + x.amin(1, True), False),
    "statistics": (
        lambda c, x: x.log_softmax(1) + x.std(1, keepdim=True) + x.var(1, keepdim=True) + x.mean(1, True),
        False,
    ),
    "norms": (lambda c, x: F.group_norm(x, 1) + x.norm(dim=1, keepdim=True) + x.norm(1, dim=1, keepdim=True), False),
    "a surrogate": (lambda c, x: surrogate(x.sign(), x, x.abs()), False),
}  # fmt: skip


@pytest.mark.parametrize("name", ROWS)
def test_operations_that_mix_rows_are_found(name):
    function, mixing = ROWS[name]
    cell = Step(lambda c, x, h: (function(c, x).sum(1, keepdim=True).expand(-1, H) * 1, h))
    parts = taken_apart(cell)
    assert any(mixes_rows(op, parts.graph) for op in parts.before) == mixing
    before = Ops(parts.before, parts.graph)
    assert before.mixing == mixing
    if not mixing:  # a few rows are what they are among others
        x, results = torch.randn(9, I), []
        for rows in (x, x[3:7]):
            weights = {ref: registered_of(cell)[name] for name, ref in parts.graph.weights.items()}
            tensors = {parts.graph.x: rows, **weights}
            once = Ops(parts.once, parts.graph)
            once.run(tensors, len(rows))
            before.run(tensors, len(rows))
            results.append(tensors[parts.graph.outputs[0]])
        torch.testing.assert_close(results[1], results[0][3:7])


def test_every_operation_that_keeps_rows_apart_is_among_these():
    met = set()
    for function, mixing in ROWS.values():
        parts = taken_apart(Step(lambda c, x, h, f=function: (f(c, x).sum(1, keepdim=True).expand(-1, H) * 1, h)))
        met |= {op.short_name for op in parts.before if not mixing}
    # PyTorch takes the first apart; the second is recorded of the state only (`contraction`).
    assert set(_ROW_WISE) - met == {"reshape", "einsum"}


def test_the_parts_run_on_any_number_of_rows():
    cell = Step(
        lambda c, x, h: (x.view(len(x), 1, I).expand(-1, 2, -1).reshape(x.shape[0], -1) + x.new_ones(len(x), 1), h)
    )
    parts = taken_apart(cell)
    ops = Ops(parts.before, parts.graph)
    for rows in (1, 2, 127, 254, 300):
        x = torch.randn(rows, I)
        tensors = {parts.graph.x: x}
        ops.run(tensors, rows)
        torch.testing.assert_close(tensors[parts.graph.outputs[0]], cell(x, None)[0])


def test_what_takes_long_to_compute_is_kept_for_the_gradient_and_the_rest_computed_again():
    def step(c, x, h):
        a = torch.tanh(c.W(x) + c.U(h))
        b = a * a + 1
        return torch.exp(b * h) * 0.5 * b

    forward = derive(taken_apart(Step(step)).program).forward
    saved = [p for a in forward.of("residual") for p in forward.results[a.name]]
    assert sorted((node.op, node.width) for node in saved) == [("exp", H), ("tanh", H)]
