"""Bad input gives one message: where, what was got, what was expected, and the cure. The tables pin the text."""

import numpy as np
import pytest
import torch
from torch import nn

import anyrnn
from zoo import ConcatLSTM, RawLSTM

T, B, I, H = 4, 3, 2, 5


def message(call):
    with pytest.raises(anyrnn.AnyRNNError) as caught:
        call()
    assert isinstance(caught.value, ValueError)
    return str(caught.value)


def x(*shape, dtype=torch.float32, **options):
    return torch.zeros(*(shape or (T, B, I)), dtype=dtype, **options)


def lstm(**options):
    return anyrnn.LSTM(I, H, **options)


def uneven(sizes):
    return anyrnn.Recurrent(lambda i: nn.GRUCell(i, next(sizes)), I, bidirectional=True)


h = torch.zeros(1, B, H)

CALLS = {
    # x
    "rank 1": (lambda: lstm()(x(T)), "LSTM: x has shape (4,), expected (T, B, I) or (T, I)"),
    "rank 4": (
        lambda: lstm(batch_first=True)(x(B, T, I, 1)),
        "LSTM: x has shape (3, 4, 2, 1), expected (B, T, I) or (T, I)",
    ),
    "no tensor": (lambda: lstm()([[1.0]]), "LSTM: x has type list, expected (T, B, I) or (T, I)"),
    "features": (lambda: lstm()(x(T, B, 6)), "LSTM: x has 6 features, expected input_size=2"),
    "features unbatched": (lambda: lstm()(x(T, 6)), "LSTM: x has 6 features, expected input_size=2"),
    "float64": (
        lambda: lstm()(x(dtype=torch.float64)),
        "LSTM: x is torch.float64, expected torch.float32, as the parameters are: x.to(torch.float32), or convert the "
        "layer with .to(torch.float64)",
    ),
    "float64 below autocast": (
        lambda: torch.autocast("cpu", torch.bfloat16)(lstm())(x(dtype=torch.float64)),
        "LSTM: x is torch.float64, expected torch.float32, as the parameters are: x.to(torch.float32), or convert the "
        "layer with .to(torch.float64)",
    ),
    "integers": (
        lambda: lstm(dtype=torch.float64)(x(dtype=torch.int64)),
        "LSTM: x is torch.int64, expected a floating point type: x.to(torch.float64)",
    ),
    "complex": (
        lambda: lstm()(x(dtype=torch.complex64)),
        "LSTM: x is torch.complex64, expected a floating point type: x.to(torch.float32)",
    ),
    "device": (
        lambda: lstm()(x(device="meta")),
        "LSTM: x is on meta, expected cpu, where the parameters are: x.to('cpu')",
    ),
    # state
    "state for (h, c)": (
        lambda: lstm()(x(), h),
        "LSTM: the state is a Tensor, expected a tuple of 2 tensors (1, 3, 5), (1, 3, 5)",
    ),
    "state of one": (
        lambda: lstm()(x(), (h,)),
        "LSTM: the state is a tuple of 1, expected a tuple of 2 tensors (1, 3, 5), (1, 3, 5)",
    ),
    "state of no tensors": (
        lambda: lstm()(x(), (1.0, 2.0)),
        "LSTM: the state is a tuple of 2, expected a tuple of 2 tensors (1, 3, 5), (1, 3, 5)",
    ),
    "state for h": (
        lambda: anyrnn.GRU(I, H)(x(), (h, h)),
        "GRU: the state is a tuple of 2, expected one tensor (1, 3, 5)",
    ),
    "state as dict": (
        lambda: lstm()(x(), {"h": h}),
        "LSTM: the state is a dict, expected a tuple of 2 tensors (1, 3, 5), (1, 3, 5)",
    ),
    "state of another batch": (
        lambda: lstm()(x(), (torch.zeros(1, 7, H),) * 2),
        "LSTM: the state has shape (1, 7, 5), (1, 7, 5), expected a tuple of 2 tensors (1, 3, 5), (1, 3, 5)",
    ),
    "state of too few layers": (
        lambda: anyrnn.GRU(I, H, 2, bidirectional=True)(x(), h),
        "GRU: the state has shape (1, 3, 5), expected one tensor (4, 3, 5)",
    ),
    "state batch first": (
        lambda: anyrnn.GRU(I, H, batch_first=True)(x(B, T, I), h.transpose(0, 1)),
        "GRU: the state has shape (3, 1, 5), expected one tensor (1, 3, 5)",
    ),
    "state unbatched": (
        lambda: anyrnn.GRU(I, H)(x(T, I), h),
        "GRU: the state has shape (1, 3, 5), expected one tensor (1, 5)",
    ),
    "state without layers": (
        lambda: anyrnn.GRU(I, H)(x(), h[0]),
        "GRU: the state has shape (3, 5), expected one tensor (1, 3, 5)",
    ),
    "state projected": (
        lambda: lstm(proj_size=2)(x(), (h, h)),
        "LSTM: the state has shape (1, 3, 5), (1, 3, 5), expected a tuple of 2 tensors (1, 3, 2), (1, 3, 5)",
    ),
    "state float64": (
        lambda: anyrnn.GRU(I, H)(x(), h.double()),
        "GRU: the state is torch.float64 on cpu, expected torch.float32 on cpu: .to('cpu', torch.float32)",
    ),
    "state elsewhere": (
        lambda: anyrnn.GRU(I, H)(x(), h.to("meta")),
        "GRU: the state is torch.float32 on meta, expected torch.float32 on cpu: .to('cpu', torch.float32)",
    ),
    # lengths
    "negative": (lambda: lstm()(x(), lengths=[1, -2, 3]), "LSTM: lengths[1] is -2, expected 0 to T=4"),
    "too long": (lambda: lstm()(x(), lengths=torch.tensor([1, 2, 5])), "LSTM: lengths[2] is 5, expected 0 to T=4"),
    "too few": (
        lambda: lstm()(x(), lengths=[1, 2]),
        "LSTM: lengths has shape (2,), expected (3,), one length for each row of the batch",
    ),
    "rank 2": (
        lambda: lstm()(x(), lengths=[[1, 2, 3]]),
        "LSTM: lengths has shape (1, 3), expected (3,), one length for each row of the batch",
    ),
    "one for all": (
        lambda: lstm()(x(), lengths=torch.tensor(2)),
        "LSTM: lengths has shape (), expected (3,), one length for each row of the batch",
    ),
    "none for some": (
        lambda: lstm()(x(), lengths=[]),
        "LSTM: lengths has shape (0,), expected (3,), one length for each row of the batch",
    ),
    "floats": (
        lambda: lstm()(x(), lengths=[1.0, 2.0, 3.0]),
        "LSTM: lengths are torch.float32, expected integers: torch.as_tensor(lengths).long()",
    ),
    "a float array": (
        lambda: lstm()(x(), lengths=np.array([1.0, 2.0, 3.0])),
        "LSTM: lengths are torch.float64, expected integers: torch.as_tensor(lengths).long()",
    ),
    "a mask": (
        lambda: lstm()(x(), lengths=torch.ones(B, dtype=torch.bool)),
        "LSTM: lengths are torch.bool, expected integers: torch.as_tensor(lengths).long()",
    ),
    "words": (
        lambda: lstm()(x(), lengths=["a", "b", "c"]),
        "LSTM: lengths is ['a', 'b', 'c'], expected 3 integers from 0 to 4",
    ),
    "on meta": (
        lambda: lstm()(x(), lengths=torch.tensor([1, 2, 3], device="meta")),
        "LSTM: lengths are on meta, where they have no values; expected 3 integers from 0 to 4",
    ),
    "beside a packed sequence": (
        lambda: lstm()(nn.utils.rnn.pack_sequence([x(T, I)]), lengths=[4]),
        "LSTM: got lengths beside a PackedSequence, which has its own; expected only one of them",
    ),
    # scan
    "scan of a layer's input": (
        lambda: anyrnn.scan(nn.GRUCell(I, H), x(T, I)),
        "GRUCell: x has shape (4, 2), expected (T, B, ...)",
    ),
    "scan of no tensor": (
        lambda: anyrnn.scan(nn.GRUCell(I, H), None),
        "GRUCell: x has type NoneType, expected (T, B, ...)",
    ),
    "scan with a layer's state": (
        lambda: anyrnn.scan(nn.GRUCell(I, H), x(), h),
        "GRUCell: the state has shape (1, 3, 5), expected one tensor (3, 5)",
    ),
    "scan of no cell": (
        lambda: anyrnn.scan(torch.tanh, x()),
        f"a cell is an nn.Module with forward(x, state); got {torch.tanh!r}",
    ),
    # cells
    "cell input": (
        lambda: anyrnn.GRUCell(I, H)(x(B, 6)),
        "GRUCell: got an input of shape (3, 6), expected (B, 2) or (2,)",
    ),
    "cell input rank": (
        lambda: anyrnn.GRUCell(I, H)(x()),
        "GRUCell: got an input of shape (4, 3, 2), expected (B, 2) or (2,)",
    ),
    "cell state for (h, c)": (
        lambda: anyrnn.LSTMCell(I, H)(x(B, I), h[0]),
        "LSTMCell: got as state one tensor (3, 5), expected a tuple of tensors (3, 5), (3, 5)",
    ),
    "cell state of one": (
        lambda: anyrnn.LSTMCell(I, H)(x(B, I), (h[0],)),
        "LSTMCell: got as state a tuple of one tensor (3, 5), expected a tuple of tensors (3, 5), (3, 5)",
    ),
    "cell state for h": (
        lambda: anyrnn.GRUCell(I, H)(x(B, I), (h[0], h[0])),
        "GRUCell: got as state a tuple of one tensor (3, 5), one tensor (3, 5), expected one tensor (3, 5)",
    ),
    "cell state that would broadcast": (
        lambda: anyrnn.GRUCell(I, H)(x(B, I), torch.zeros(1, H)),
        "GRUCell: got as state one tensor (1, 5), expected one tensor (3, 5)",
    ),
    # the cells of a layer
    "a layer too far": (
        lambda: lstm(num_layers=2).cell(2),
        "LSTM: got layer=2 and reverse=False, expected 0 to 1, and True only if bidirectional",
    ),
    "a direction too many": (
        lambda: anyrnn.Recurrent(lambda i: nn.GRUCell(i, H), I, 2).cell(0, reverse=True),
        "Recurrent: got layer=0 and reverse=True, expected 0 to 1, and True only if bidirectional",
    ),
    # heads
    "pool": (
        lambda: anyrnn.ManyToOne(lstm(), 2, pool="first"),
        "ManyToOne: got pool='first', expected one of last, mean, max",
    ),
    "head of another layer": (
        lambda: anyrnn.ManyToOne(nn.LSTM(I, H), 2),
        "ManyToOne: got LSTM, expected a layer of anyrnn, such as anyrnn.LSTM",
    ),
    "output unbatched": (
        lambda: anyrnn.output_at(x(T, I)),
        "output_at: the output has shape (4, 2), expected (T, B, O)",
    ),
    "odd halves": (
        lambda: anyrnn.output_at(x(T, B, 5), bidirectional=True),
        "output_at: the output has 5 features, expected two equal halves with bidirectional=True",
    ),
    "output lengths": (lambda: anyrnn.output_at(x(), [1, 2, 9]), "output_at: lengths[2] is 9, expected 0 to T=4"),
}

OPTIONS = {
    "hidden_size": (lambda: anyrnn.LSTM(I, 0), "LSTMCell: got hidden_size=0, expected an int of at least 1"),
    "input_size": (lambda: anyrnn.GRU(2.0, H), "GRUCell: got input_size=2.0, expected an int of at least 1"),
    "num_layers": (lambda: lstm(num_layers=0), "LSTM: got num_layers=0, expected an int of at least 1"),
    "dropout": (lambda: lstm(num_layers=2, dropout=1.5), "LSTM: got dropout=1.5, expected a probability from 0 to 1"),
    "bias": (lambda: lstm(bias=1), "LSTM: got bias=1, expected True or False"),
    "bidirectional": (lambda: lstm(bidirectional="yes"), "LSTM: got bidirectional='yes', expected True or False"),
    "batch_first": (lambda: lstm(batch_first=None), "LSTM: got batch_first=None, expected True or False"),
    "proj_size": (lambda: lstm(proj_size=5), "LSTMCell: got proj_size=5, expected 0 (none) or less than hidden_size=5"),
    "proj_size negative": (
        lambda: lstm(proj_size=-1),
        "LSTMCell: got proj_size=-1, expected 0 (none) or less than hidden_size=5",
    ),
    "nonlinearity": (
        lambda: anyrnn.RNN(I, H, nonlinearity="gelu"),
        "RNNCell: got nonlinearity='gelu', expected 'tanh' or 'relu'; for others use activations=",
    ),
    "activation of no gate": (
        lambda: lstm(activations={"c": torch.relu}),
        "LSTMCell: got activation 'c', expected one of i, f, g, o, h",
    ),
    "activation by name": (
        lambda: lstm(activations={"f": "sigmoid"}),
        "LSTMCell: got 'sigmoid' as activation 'f', expected a function from tensor to tensor, such as torch.sigmoid",
    ),
    "activation with parameters": (
        lambda: lstm(activations={"g": nn.PReLU()}),
        "LSTM: activation_g has parameters of its own, which each layer and direction needs separately: use "
        "Recurrent(lambda size: LSTMCell(size, ...), input_size=...)",
    ),
    "init by name": (
        lambda: lstm(init="orthogonal"),
        "LSTMCell: got init='orthogonal', expected a mapping from parameters to functions, or a function of the cell, "
        "such as anyrnn.init.orthogonal or anyrnn.init.chrono(100)",
    ),
    "init of no parameter": (
        lambda: lstm(init={"weight_hh_l0": nn.init.zeros_}),
        "LSTMCell: got parameter 'weight_hh_l0', expected one of weight_ih, weight_hh, bias_ih, bias_hh",
    ),
    "init of a bias that is not there": (
        lambda: lstm(bias=False, init={"bias_ih": nn.init.zeros_}),
        "LSTMCell: got parameter 'bias_ih', expected one of weight_ih, weight_hh (it was made with bias=False)",
    ),
    "init of no gate": (
        lambda: lstm(init={"weight_hh.r": nn.init.zeros_}),
        "LSTMCell: got gate 'r', expected one of i, f, g, o",
    ),
    "init of a gate in a projection": (
        lambda: lstm(proj_size=2, init={"weight_hr.f": nn.init.zeros_}),
        "LSTMCell: got gate 'f', expected one of none",
    ),
    "forget_bias without bias": (
        lambda: lstm(bias=False, forget_bias=1.0),
        "LSTMCell: got forget_bias=1.0 with bias=False, expected a forget gate with a bias",
    ),
    "forget_bias without forget gate": (
        lambda: anyrnn.GRU(I, H, forget_bias=1.0),
        "GRUCell: got forget_bias=1.0 with the gates r, z, n, expected a forget gate with a bias",
    ),
    "chrono": (lambda: anyrnn.init.chrono(2), "chrono: got max_length=2, expected more than 2 steps"),
    "chrono without gates": (
        lambda: anyrnn.GRU(I, H, init=anyrnn.init.chrono(9)),
        "chrono: got a GRUCell with gates r, z, n and bias=True, expected the gates i and f, and biases",
    ),
    "chrono without bias": (
        lambda: lstm(bias=False, init=anyrnn.init.chrono(9)),
        "chrono: got a LSTMCell with gates i, f, g, o and bias=False, expected the gates i and f, and biases",
    ),
    "block": (lambda: anyrnn.GRUCell(I, H).block("weight_hh", "f"), "GRUCell: got gate 'f', expected one of r, z, n"),
    # Recurrent
    "one cell for two": (
        lambda: anyrnn.Recurrent(nn.GRUCell(I, H), num_layers=2),
        "Recurrent: got one GRUCell for 2 layers, bidirectional=False; expected a function that makes one each: lambda "
        "input_size: GRUCell(input_size, ...)",
    ),
    "one cell for both": (
        lambda: anyrnn.Recurrent(nn.GRUCell(I, H), bidirectional=True),
        "Recurrent: got one GRUCell for 1 layers, bidirectional=True; expected a function that makes one each: lambda "
        "input_size: GRUCell(input_size, ...)",
    ),
    "no cell": (
        lambda: anyrnn.Recurrent("lstm"),
        "Recurrent: got 'lstm', expected a cell (an nn.Module) or a function from an input size to a cell",
    ),
    "no input_size": (
        lambda: anyrnn.Recurrent(lambda i: nn.GRUCell(i, H)),
        "Recurrent: got a function that makes cells and no input_size; expected the number of features of x",
    ),
    "a function that makes no cell": (
        lambda: anyrnn.Recurrent(lambda i: None, I),
        "Recurrent: the function returned a NoneType, expected a cell, an nn.Module",
    ),
    "directions of other widths": (
        lambda: uneven(iter((3, 4))),
        "Recurrent: the states of the directions of layer 0 have sizes [(3,), (4,)], expected equal",
    ),
    "output_size not known": (
        lambda: anyrnn.Recurrent(ConcatLSTM(I, H)).output_size,
        "Recurrent: the size of its input is not known before the first call; pass input_size=",
    ),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_call_that_cannot_be_is_refused_at_the_edge(name):
    call, text = CALLS[name]
    assert message(call) == text


@pytest.mark.parametrize("name", OPTIONS)
def test_an_option_that_cannot_be_is_refused_by_the_constructor(name):
    call, text = OPTIONS[name]
    assert message(call) == text


class Sized(nn.Module):
    """A cell whose step is the test's."""

    def __init__(self, step=None, hidden_size=H):
        super().__init__()
        self.weight = nn.Linear(I, H)
        self.step = step
        if hidden_size:
            self.hidden_size = hidden_size

    def forward(self, x, state):
        return self.step(x, state)


def pair(x, state):
    h, c = state
    return h, c


ANY = "Expected forward(x, state) to return the new state, or (output, new_state), each (B, size). "
SIZES = "If the sizes are not these, give state_sizes=64 (one tensor) or state_sizes=(64, 64) (a tuple)."

OUTSIDE = {
    "a mistake inside": (
        lambda: Sized(lambda x, h: y),  # noqa: F821
        "  with every form of state: NameError: name 'y' is not defined\n" + ANY + SIZES,
    ),
    "three of two states": (
        lambda: Sized(lambda x, s: (*pair(x, s), x, x)),
        "  with a tuple (B, 5), (B, 5): returned a tuple (a tensor (B, 5), a tensor (B, 5), a tensor (B, 2), a tensor "
        "(B, 2))\n" + ANY + SIZES,
    ),
    "a dict": (lambda: Sized(lambda x, h: {"h": h}), "  with every form of state: returned a dict\n" + ANY + SIZES),
    "nothing": (lambda: Sized(lambda x, h: None), "  with every form of state: returned a NoneType\n" + ANY + SIZES),
    "a sum over the features": (
        lambda: Sized(lambda x, h: (x @ x.new_ones(I, H) + h).sum(1)),
        "  with one tensor (B, 5): returned state 0 of shape (B,), expected (B, 5)\n" + ANY + SIZES,
    ),
    "an output of one row": (
        lambda: Sized(lambda x, s: (x[0], pair(x, s))),
        "  with a tuple (B, 5), (B, 5): returned an output of shape (2,), expected (B, ...)\n" + ANY + SIZES,
    ),
    "h and c as two arguments, returned as c and h": (
        lambda: RawLSTM(I, H),
        "  with a tuple (B, 5), (B, 5): returned `c` as state 0, which it takes as `h`; expected the order (h, c): "
        "change it in forward, or by step=lambda m, x, s: ...\n" + ANY + SIZES,
    ),
    "a state of another size": (
        lambda: Sized(lambda x, h: torch.tanh(h + x.new_zeros(7, 6)), hidden_size=4),
        "RuntimeError: The size of tensor a (4) must match the size of tensor b (6) at non-singleton dimension 1\n"
        + ANY
        + SIZES,
    ),
    "torch.nn's layer": (
        lambda: nn.GRU(I, H),
        "This looks like a whole layer, which is used as it is; its cell is one step, as nn.LSTMCell is.",
    ),
    "a layer of anyrnn": (
        lstm,
        "This looks like a whole layer, which is used as it is; its cell is one step, as nn.LSTMCell is.",
    ),
}


@pytest.mark.parametrize("name", OUTSIDE)
def test_a_cell_outside_the_protocol_is_told_what_was_tried(name):
    make, text = OUTSIDE[name]
    cell = make()
    start = f"{type(cell).__name__}: a step with x (B, 2), tried with B=7, failed\n  with "
    for call in (lambda: anyrnn.Recurrent(cell, I), lambda: anyrnn.scan(cell, x())):
        got = message(call)
        assert got.startswith(start)
        assert got.endswith(text)


class Timed(nn.Module):
    """Wants the time between two steps."""

    def __init__(self, input_size=I):
        super().__init__()
        self.hidden_size = H
        self.W = nn.Linear(input_size + H, H)

    def forward(self, x, h, dt):
        return h + dt * torch.tanh(self.W(torch.cat((x, h), 1)))


class Masked(Timed):
    def forward(self, x, h, dt, mask):
        return mask * super().forward(x, h, dt)


class TimedPair(Timed):
    def forward(self, x, h, c, dt):
        return super().forward(x, h, dt), c + dt


class TimedTuple(Timed):
    def forward(self, x, state, dt):
        h, c = state
        return super().forward(x, h, dt), c + dt


class TimedByName(Timed):
    def forward(self, x, h, *, dt):
        return super().forward(x, h, dt)


class TimedAtWill(Timed):
    def forward(self, x, h, dt=None):
        return super().forward(x, h, 1.0 if dt is None else dt)


class Untimed(Timed):
    def forward(self, x, h):
        return super().forward(x, h, 1.0)


class Chosen(Timed):
    """Takes truth values, so that it does not run on the numbers that are tried."""

    def forward(self, x, h, dt):
        return torch.where(dt, super().forward(x, h, 1.0), h)


one = torch.ones(T, B, 1)
MORE = " by inputs=, one for each step, or context=, one for each sequence"
DT, BOTH = "`dt`" + MORE, "`dt` and `mask`" + MORE

#: The cell, what it is given, what it is said to have got, and what it should get.
FURTHER = {
    "none": (Timed, {}, "(x, h, dt)", "nothing", DT),
    "none of two": (Masked, {}, "(x, h, dt, mask)", "nothing", BOTH),
    "none beside h and c": (TimedPair, {}, "(x, h, c, dt)", "nothing", DT),
    "none beside a tuple": (TimedTuple, {}, "(x, state, dt)", "nothing", DT),
    "none by name": (TimedByName, {}, "(x, h, dt)", "nothing", DT),
    "another name": (Timed, {"inputs": {"delta": one}}, "(x, h, dt)", "`delta`", DT),
    "another name beside h and c": (TimedPair, {"inputs": {"delta": one}}, "(x, h, c, dt)", "`delta`", DT),
    "another name of a context": (TimedTuple, {"context": {"delta": one[0]}}, "(x, state, dt)", "`delta`", DT),
    "a name too many": (Timed, {"inputs": {"dt": one}, "context": {"k": one[0]}}, "(x, h, dt)", "`dt` and `k`", DT),
    "one of two": (Masked, {"inputs": one}, "(x, h, dt, mask)", "1 by position", BOTH),
    "one of two by name": (Masked, {"inputs": {"mask": one}}, "(x, h, dt, mask)", "`mask`", BOTH),
    "too many": (Timed, {"inputs": (one, one)}, "(x, h, dt)", "2 by position", DT),
    "too many of both kinds": (Timed, {"inputs": one, "context": one[0]}, "(x, h, dt)", "2 by position", DT),
    "too many of what may be left out": (TimedAtWill, {"inputs": (one, one)}, "(x, h, dt)", "2 by position", DT),
    "by position what has a name": (TimedByName, {"inputs": one}, "(x, h, dt)", "1 by position", DT),
    "one for a cell that wants none": (Untimed, {"inputs": one}, "(x, h)", "1 by position", "nothing"),
    "a name for a cell that wants none": (Untimed, {"context": {"k": one[0]}}, "(x, h)", "`k`", "nothing"),
    "another name for what a probe cannot guess": (
        Chosen, {"inputs": {"delta": one}}, "(x, h, dt)", "`delta`", "what else it takes" + MORE,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FURTHER)
def test_a_cell_that_is_given_other_arguments_than_it_takes_says_which(name):
    make, given, takes, got, expected = FURTHER[name]
    text = f"{make.__name__}: its forward takes {takes}, and got {got} beside x and the state; expected {expected}"
    assert message(lambda: anyrnn.scan(make(), x(), **given)) == text
    assert message(lambda: anyrnn.Recurrent(make())(x(), **given)) == text
    if not got.endswith("position") or expected != DT or make is TimedByName:  # which are two states to a constructor
        assert message(lambda: anyrnn.Recurrent(make(), I)(x(), **given)) == text
    assert message(lambda: anyrnn.Recurrent(make, I, num_layers=2)(x(), **given)) == text
    inputs, first = given.get("inputs"), x(B, I)
    assert (
        message(
            lambda: anyrnn.Recurrent(make()).generate(
                steps=T, first=first, feed=nn.Linear(H, I), inputs=inputs, context=given.get("context")
            )
        )
        == text
    )


def test_a_step_that_may_have_taken_an_argument_for_a_state_says_so():
    further = ". Its forward takes (x, h, dt): what is neither x nor a state is given" + MORE + "."
    assert message(lambda: anyrnn.scan(Chosen(), x())).endswith(SIZES.removesuffix(".") + further)


FED = {
    "another width": (nn.Linear(H, 3), "a tensor (B, 3)"),
    "one number": (lambda y: y[:, :1], "a tensor (B, 1)"),
    "no features": (lambda y: y.sum(1), "a tensor (B,)"),
    "one row": (lambda y: y[:1, :I], "a tensor (1, 2)"),
    "a tuple": (lambda y: (y[:, :I],), "a tuple (a tensor (B, 2))"),
    "nothing": (lambda y: None, "a NoneType"),
}
STACKS = {
    "LSTM": lstm,
    "own cell": lambda: anyrnn.Recurrent(Untimed()),
    "stack": lambda: anyrnn.Recurrent(lambda i: nn.GRUCell(i, H), I, num_layers=2),
}


@pytest.mark.parametrize("engine", ["auto", "reference", "cpu"])
@pytest.mark.parametrize("make", STACKS.values(), ids=STACKS)
@pytest.mark.parametrize("name", FED)
def test_a_feedback_that_makes_no_next_x_says_what_it_made(name, make, engine):
    function, got = FED[name]
    text = (
        f"feedback: got {got} for the output, a tensor (B, 5); expected the next x, a tensor (B, 2), of the function "
        f"that makes it (`feedback`, `feed` of generate)"
    )
    with anyrnn.engine(engine):
        for call in (
            lambda: make()(x(), feedback=function, forced=2),
            lambda: make().generate(steps=T, first=x(B, I), feed=function),
        ):
            assert text in message(call) if engine == "cpu" else text == message(call)


def test_a_cell_of_unknown_size_is_told_how_to_say_it():
    cell = Sized(lambda x, h: h, hidden_size=None)
    unknown = "Sized: the size of its state is not known, since it has neither `state_sizes` nor `hidden_size`; "
    assert message(lambda: anyrnn.Recurrent(cell, I)) == unknown + "give " + SIZES.removeprefix(
        "If the sizes are not these, give "
    )
    expected = unknown + "expected an initial state, one tensor (B, ...) or a tuple of them"
    for state in (None, 3, (1, 2), torch.zeros(H), {"h": h}):
        assert message(lambda state=state: anyrnn.scan(cell, x(), state)) == expected
    assert anyrnn.scan(cell, x(), torch.zeros(B, H))[1].shape == (B, H)


def test_a_step_of_another_number_of_features_says_so():
    text = message(lambda: anyrnn.Recurrent(ConcatLSTM(I, H), input_size=6))
    assert "ConcatLSTM: a step with x (B, 6)" in text
    assert "RuntimeError: mat1 and mat2 shapes cannot be multiplied (7x11 and 7x5)" in text


def test_an_option_that_is_not_there_is_not_swallowed():
    for make in (anyrnn.LSTM, anyrnn.GRU, anyrnn.RNN, anyrnn.PeepholeLSTM, anyrnn.LSTMCell):
        with pytest.raises(TypeError, match="unexpected keyword argument 'forget_gate'"):
            make(I, H, forget_gate=1.0)
    with pytest.raises(TypeError, match="unexpected keyword argument 'mask'"):
        lstm()(x(), mask=None)


def test_nothing_is_changed_by_a_call_that_is_refused():
    layer = anyrnn.Recurrent(ConcatLSTM(I, H))
    before = {k: v.clone() for k, v in layer.state_dict().items()}
    for bad in (lambda: layer(x(T, B, 7)), lambda: layer(x(), lengths=[9, 9, 9]), lambda: layer(x(), h)):
        message(bad)
    assert all(torch.equal(v, before[k]) for k, v in layer.state_dict().items())
    assert layer(x())[0].shape == (T, B, 4)


def grown():
    layer = anyrnn.Recurrent(nn.GRUCell(I, H))
    layer.cells.append(nn.GRUCell(I, H))
    return layer


def of_other_sizes(layer):
    layer.weight_hh_l0 = nn.Parameter(torch.zeros(4 * 7, 7))
    return layer


class Grown(nn.Module):
    """Its sizes are the layer's word, so that nothing says that it has changed."""

    def __init__(self):
        super().__init__()
        self.W = nn.Linear(I, H)

    def forward(self, x, h):
        return torch.tanh(self.W(x) + h.sum(1, keepdim=True))


def grown_inside():
    layer = anyrnn.Recurrent(Grown(), I, state_sizes=H)
    layer(x())
    layer.cell().W = nn.Linear(I, 7)
    return layer


CHANGED = {
    "a cell too many": (
        lambda: grown()(x()),
        "Recurrent: it has 2 cells, expected 1, one for each of 1 layers and 1 directions; for more, make a new layer",
    ),
    "a weight of another size": (
        lambda: of_other_sizes(lstm())(x()),
        "LSTM: weight_hh_l0 has shape (28, 7), expected (20, 5); for other sizes make a new layer",
    ),
    "a step of another size": (
        lambda: grown_inside()(x()),
        "Grown: a step returned the state (3, 7), expected (3, 5), as it was given. If the cell was changed after its "
        "layer was made, change its `hidden_size` or `state_sizes` along, or make a new layer",
    ),
}


@pytest.mark.parametrize("name", CHANGED)
def test_a_layer_that_was_changed_to_what_cannot_be_says_so(name):
    call, text = CHANGED[name]
    assert message(call) == text


class Turning(nn.Module):
    """A step that counts, and from its sixth on returns something else."""

    def __init__(self, otherwise):
        super().__init__()
        self.hidden_size, self.otherwise, self.count = H, otherwise, 0
        self.W = nn.Linear(I, H)

    def forward(self, x, h):
        self.count += 1
        new = torch.tanh(self.W(x) + h)
        return self.otherwise(new) if self.count > 5 else new


TURNS = {
    "a tuple": (lambda h: (h, h), "a tuple (a tensor (B, 5), a tensor (B, 5))"),
    "nothing": (lambda h: None, "a NoneType"),
    "an array": (lambda h: h.detach().numpy(), "a ndarray"),
}


@pytest.mark.parametrize("name", TURNS)
@pytest.mark.parametrize("options", [{}, {"return_states": True}])
def test_a_later_step_that_returns_something_else_says_so(name, options):
    otherwise, got = TURNS[name]
    layer = anyrnn.Recurrent(Turning(otherwise), I)
    with anyrnn.engine("reference"):
        text = message(lambda: layer(torch.zeros(6, 3, I), **options))
    assert text == f"Turning: a step returned {got}, expected a tensor (B, 5), as its first step did"


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")
@pytest.mark.parametrize("make", [lstm, lambda: anyrnn.Recurrent(nn.GRUCell(I, H))], ids=["LSTM", "Recurrent"])
def test_torchscript_is_told_that_it_cannot(make):
    for model in (make(), nn.Sequential(make())):
        assert "got torch.jit.script, which would compile the code of every step" in message(
            lambda model=model: torch.jit.script(model)
        )


class Own(anyrnn.GRU):
    def forward(self, x, hx=None):
        return super().forward(2 * x, hx)


class Model(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.layer, self.head = layer, anyrnn.ManyToOne(anyrnn.Recurrent(nn.GRUCell(H, 3)), 2)

    def forward(self, x, state, lengths):
        output, state = self.layer(x, state, lengths=lengths)
        return self.head(output, lengths=lengths)[0] + state.mean()


@pytest.mark.parametrize("make", [lambda: anyrnn.GRU(I, H), lambda: anyrnn.Recurrent(nn.GRUCell(I, H))])
def test_a_layer_is_one_node_in_a_graph_of_torch_fx(make):
    model, lengths = Model(make()), [4, 2, 0]
    traced = torch.fx.symbolic_trace(model)
    called = [node.target for node in traced.graph.nodes if node.op == "call_module"]
    assert called == ["layer", "head"]
    inputs = torch.randn(T, B, I), torch.randn(1, B, H), lengths
    assert torch.equal(traced(*inputs), model(*inputs))
    assert "got torch.fx.symbolic_trace of the layer itself" in message(lambda: torch.fx.symbolic_trace(make()))


def test_a_layer_with_a_forward_of_its_own_is_no_node_which_would_run_it_twice():
    text = message(lambda: torch.fx.symbolic_trace(nn.Sequential(Own(I, H))))
    assert text.startswith("Own: got torch.fx.symbolic_trace of a layer whose `forward` is not this package's own")


def test_a_step_with_an_output_and_a_further_argument_waits_for_it():
    class Timed(nn.Module):
        hidden_size = 4

        def __init__(self):
            super().__init__()
            self.U, self.W = nn.Linear(4, 4), nn.Linear(3, 4)

        def forward(self, x, h, dt):
            h = torch.tanh(self.W(x) + dt * self.U(h))
            return 2 * h, h

    layer, x, dt = anyrnn.Recurrent(Timed(), 3), torch.randn(5, 2, 3), torch.rand(5, 2, 1)
    with pytest.raises(anyrnn.AnyRNNError, match="expected `dt` by inputs="):
        layer(x)
    output, h = layer(x, inputs=dt)
    assert h.shape == (1, 2, 4)
    torch.testing.assert_close(output[-1], 2 * h[0])


@pytest.mark.parametrize("is_warned", [True, False])
def test_two_arguments_behind_x_are_not_taken_for_states_in_silence(is_warned):
    class Timed(nn.Module):
        hidden_size = 4

        def __init__(self):
            super().__init__()
            self.U, self.W = nn.Linear(4, 4), nn.Linear(3, 4)

        def forward(self, x, h, dt):
            new = torch.tanh(self.W(x) + dt * self.U(h))
            y = 2 * new
            return y, new

    x, dt = torch.randn(5, 2, 3), torch.rand(5, 2, 1)
    if is_warned:
        with pytest.warns(UserWarning, match=r"taken for the states `h`, `dt`.*state_sizes=4 and give what else"):
            anyrnn.Recurrent(Timed(), 3)(x)
        return
    output, h = anyrnn.Recurrent(Timed(), 3, state_sizes=4)(x, inputs=dt)
    torch.testing.assert_close(output[-1], 2 * h[0])
    anyrnn.Recurrent(Timed(), 3, state_sizes=(4, 4))(x)  # who says so is not warned


@pytest.mark.parametrize(
    "step",
    [
        "h, c): h, c = x + h, c + h; return h, c",
        "h, c): new_h, new_c = x + h, c + h; return new_h, new_c",
        "hx, cx): hy, cy = x + hx, cx + hx; return hy, cy",
        "h, c): c = c + h; return torch.tanh(c), c",
        "h, c): return x + h, c + h",
    ],
)
def test_states_that_are_returned_under_a_name_like_theirs_are_no_guess(step):
    namespace = {"torch": torch}
    exec(f"class Pair(torch.nn.Module):\n    hidden_size = 4\n    def forward(self, x, {step}", namespace)
    _, state = anyrnn.Recurrent(namespace["Pair"](), 4)(torch.randn(5, 2, 4))
    assert len(state) == 2


@pytest.mark.parametrize("asked", ["names", "output_size"])
def test_what_depends_on_the_input_is_refused_before_its_size_is_known(asked):
    class Bare(nn.Module):
        hidden_size = 4

        def forward(self, x, h):
            return torch.tanh(x + h)

    layer = anyrnn.Recurrent(Bare())
    text = "Recurrent: the size of its input is not known before the first call; pass input_size="
    assert message(lambda: getattr(layer, asked)) == text


def test_a_number_of_rows_that_stands_in_a_step_is_named():
    class FiveRows(nn.Module):
        def __init__(self):
            super().__init__()
            self.hidden_size, self.new = 4, nn.Linear(3, 4)

        def forward(self, x, h):
            return torch.tanh(self.new(x) + h) * torch.ones(5, 4)

    (part,) = anyrnn.explain(anyrnn.Recurrent(FiveRows()), torch.zeros(2, 5, 3)).parts
    assert part.engine == "reference"
    assert "its step fails for 127 rows, with which it is looked at: RuntimeError" in part.reason
    assert part.reason.endswith("a number of rows that stands in the step is to be x.shape[0]")
