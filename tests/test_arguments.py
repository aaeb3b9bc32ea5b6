"""More than x: further arguments of a step for each step, each sequence or all, and what a step may return."""

import copy
import math
import pickle
import re
from typing import NamedTuple

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import anyrnn

T, B, I, H, S, K = 6, 5, 3, 4, 7, 2
DOUBLE = torch.float64
LENGTHS = {"full": None, "ragged": [6, 0, 3, 1, 5]}
ENGINES = ("reference", "cpu")


def normal(*shape, seed=0):
    return torch.randn(*shape, dtype=DOUBLE, generator=torch.Generator().manual_seed(seed + 7 * len(shape)))


class Base(nn.Module):
    def __init__(self, input_size=I, hidden_size=H):
        super().__init__()
        self.hidden_size = hidden_size
        self.W, self.U = nn.Linear(input_size, hidden_size), nn.Linear(hidden_size, hidden_size, bias=False)


class TimeGap(Base):
    """A leak by the time since the last step."""

    def forward(self, x, h, dt):
        return torch.tanh(self.W(x) + self.U(torch.exp(-F.softplus(dt)) * h))


class Masked(Base):
    """Missing values: x as it is where it is known, else a decayed mean (GRU-D); the mask is true and false."""

    def __init__(self, input_size=I, hidden_size=H):
        super().__init__(input_size, hidden_size)
        self.mean = nn.Parameter(torch.randn(input_size))
        self.decay = nn.Linear(1, input_size)

    def forward(self, x, h, mask, delta):
        gamma = torch.exp(-torch.relu(self.decay(delta)))
        x = torch.where(mask, x, gamma * self.mean)
        return torch.tanh(self.W(x) + self.U(h) + mask.sum(1, keepdim=True))


class Static(Base):
    """A gate by static attributes (EA-LSTM), which also lie beside x and h in a product."""

    def __init__(self, input_size=I, hidden_size=H):
        super().__init__(input_size, hidden_size)
        self.gate, self.mix = nn.Linear(K, hidden_size), nn.Linear(hidden_size + K + input_size, hidden_size)

    def forward(self, x, state, static):
        h, c = state
        i = torch.sigmoid(self.gate(static))
        c = (1 - i) * c + i * torch.tanh(self.mix(torch.cat([h, static, x], 1)))
        return torch.tanh(c * static[:, :1]), c


class DropMask(Base):
    """One mask on the state for a whole sequence, drawn outside."""

    def forward(self, x, h, *, mask):
        return torch.tanh(self.W(x) + self.U(h * mask))


class Graph(Base):
    """A matrix that is one for all rows."""

    def forward(self, x, h, A, dt):
        return torch.tanh(self.W(x) + torch.relu(h) @ A * dt)


class Attention(Base):
    """Additive attention over a memory with few places."""

    def __init__(self, input_size=I, hidden_size=H):
        super().__init__(input_size, hidden_size)
        self.query, self.read = nn.Linear(hidden_size, K), nn.Linear(K, hidden_size)
        self.v = nn.Parameter(torch.randn(K))

    def forward(self, x, h, memory):
        scores = (torch.tanh(memory + self.query(h).unsqueeze(1)) * self.v).sum(2)
        weights = torch.softmax(scores, 1)
        return torch.tanh(self.W(x) + self.U(h) + self.read((weights.unsqueeze(2) * memory).sum(1)))


def step_input(*shape, seed):
    return lambda: normal(T, B, *shape, seed=seed).requires_grad_()


def row(*shape, seed):
    return lambda: normal(B, *shape, seed=seed).requires_grad_()


#: The cell, its inputs, its context: made anew for each engine.
CASES = {
    "time gap (T, B, 1)": (TimeGap, {"inputs": step_input(1, seed=1)}),
    "a mask and time gaps, by position": (
        Masked,
        {"inputs": (lambda: normal(T, B, I, seed=2) > 0, step_input(1, seed=3))},
    ),
    "a mask and time gaps, by keyword": (
        Masked,
        {"inputs": {"delta": step_input(1, seed=3), "mask": lambda: normal(T, B, I, seed=2) > 0}},
    ),
    "static attributes": (Static, {"context": row(K, seed=4)}),
    "a mask for a sequence, keyword only": (
        DropMask,
        {"context": {"mask": (normal(B, H, seed=5) > 0).double}},
    ),
    "a matrix for all, and an input": (
        Graph,
        {
            "inputs": {"dt": step_input(1, seed=6)},
            "context": {"A": lambda: anyrnn.shared(normal(H, H, seed=7).requires_grad_())},
        },
    ),
    "a memory to attend to": (Attention, {"context": row(S, K, seed=8)}),
}


def made(value):
    if isinstance(value, dict):
        return {k: made(v) for k, v in value.items()}
    if isinstance(value, tuple):
        return tuple(map(made, value))
    return value()


def tensors_of(value):
    if isinstance(value, dict):
        value = tuple(value.values())
    if isinstance(value, torch.Tensor):
        return [value]
    if type(value).__name__ == "Shared":
        return [value.tensor]
    return [t for v in value or () for t in tensors_of(v)]


def weighted(tensor):
    return (tensor * torch.cos(torch.arange(tensor.numel(), dtype=DOUBLE)).reshape(tensor.shape)).sum()


def results(layer, engine, options, lengths=None, state=None, x=None):
    """Output, state and all gradients."""
    options = {k: made(v) for k, v in options.items()}
    x = (normal(T, B, I) if x is None else x.detach()).requires_grad_()
    with anyrnn.engine(engine):
        output, final = layer(x, state, lengths=lengths, **options)
    finals = final if isinstance(final, tuple) else (final,)
    sources = [x, *layer.parameters(), *(t for v in options.values() for t in tensors_of(v) if t.requires_grad)]
    loss = weighted(output) + sum(map(weighted, finals))
    grads = torch.autograd.grad(loss, sources, allow_unused=True)
    return [output, *finals, *(g for g in grads if g is not None)], [g is None for g in grads]


def by_hand(cell, x, states, extras, lengths, reverse=False):
    """The definition: a loop for each row."""
    outputs, finals = torch.zeros(T, B, H, dtype=DOUBLE), [s.clone() for s in states]
    for b in range(B):
        own = tuple(s[b : b + 1] for s in states)
        n = T if lengths is None else lengths[b]
        for t in reversed(range(n)) if reverse else range(n):
            args = [
                (k, v[t, b : b + 1] if kind == "inputs" else v if kind == "shared" else v[b : b + 1])
                for k, kind, v in extras
            ]
            state = own if len(own) > 1 else own[0]
            new = cell(
                x[t, b : b + 1], state, *(v for k, v in args if isinstance(k, int)),
                **{k: v for k, v in args if isinstance(k, str)},
            )  # fmt: skip
            own = new if isinstance(new, tuple) else (new,)
            outputs[t, b] = own[0][0]
        for k, s in enumerate(own):
            finals[k][b] = s[0]
    return outputs, finals


def flat(options):
    found = []
    for kind in ("inputs", "context"):
        value = made(options.get(kind, ()))
        value = {len(found): value} if not isinstance(value, dict | tuple) else value
        pairs = value.items() if isinstance(value, dict) else enumerate(value, len(found))
        for key, each in pairs:
            shared = type(each).__name__ == "Shared"
            found.append((key, "shared" if shared else kind, each.tensor if shared else each))
    return found


@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS)
@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
@pytest.mark.parametrize("name", CASES)
def test_further_arguments_reach_the_cell(name, reverse, lengths):
    make, options = CASES[name]
    torch.manual_seed(0)
    cell = make().double()
    x = normal(T, B, I)
    states = tuple(normal(B, H, seed=9 + k) for k in range(2 if make is Static else 1))
    with torch.no_grad():
        outputs, finals = by_hand(cell, x, states, flat(options), lengths, reverse)
        for engine in ENGINES:
            with anyrnn.engine(engine):
                output, final = anyrnn.scan(
                    cell, x, states if len(states) > 1 else states[0], lengths, reverse,
                    **{k: made(v) for k, v in options.items()},
                )  # fmt: skip
            torch.testing.assert_close(output, outputs, rtol=1e-10, atol=1e-12)
            torch.testing.assert_close(final if isinstance(final, tuple) else (final,), tuple(finals))


@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS)
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("shape", ["one layer", "two layers, two directions"])
def test_values_and_gradients_are_those_of_the_plain_loop(shape, name, lengths):
    make, options = CASES[name]
    if make is Masked and shape != "one layer":
        pytest.skip("a mask of the features of x, which the second layer does not read")
    torch.manual_seed(0)
    if shape == "one layer":
        layer = anyrnn.Recurrent(make()).double()
    else:
        layer = anyrnn.Recurrent(make, input_size=I, num_layers=2, bidirectional=True).double()
    (plain, none), (compiled, none_too) = (results(layer, engine, options, lengths) for engine in ENGINES)
    assert none == none_too
    torch.testing.assert_close(compiled, plain, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", CASES)
def test_what_padding_holds_changes_nothing(name):
    make, options = CASES[name]
    torch.manual_seed(0)
    layer, lengths = anyrnn.Recurrent(make()).double(), LENGTHS["ragged"]
    valid = torch.arange(T).unsqueeze(1) < torch.tensor(lengths)
    for engine in ENGINES:
        clean, _ = results(layer, engine, options, lengths)
        x = torch.where(valid.unsqueeze(2), normal(T, B, I), math.nan)

        def spoiled(value):
            if isinstance(value, dict):
                return {k: spoiled(v) for k, v in value.items()}
            if isinstance(value, tuple):
                return tuple(map(spoiled, value))

            def make_spoiled(value=value):
                tensor = value()
                if type(tensor).__name__ == "Shared" or not tensor.is_floating_point():
                    return tensor
                mask = valid if tensor.shape[:2] == (T, B) else torch.tensor(lengths) > 0
                mask = mask.reshape(*mask.shape, *[1] * (tensor.dim() - mask.dim()))
                return torch.where(mask, tensor.detach(), math.nan).requires_grad_(tensor.requires_grad)

            return make_spoiled

        dirty, _ = results(layer, engine, {k: spoiled(v) for k, v in options.items()}, lengths, x=x)
        torch.testing.assert_close(dirty, clean, rtol=1e-10, atol=1e-12)


def test_chunks_with_the_state_carried_equal_one_call():
    layer = anyrnn.Recurrent(Static()).double()
    x, static = normal(T, B, I), normal(B, K)
    whole, last = layer(x, context=static)
    first, state = layer(x[:2], context=static)
    second, state = layer(x[2:], state, context=static)
    torch.testing.assert_close(torch.cat([first, second]), whole)
    torch.testing.assert_close(state, last)


def test_batch_first_unbatched_and_packed_calls():
    torch.manual_seed(0)
    layer = anyrnn.Recurrent(Masked()).double()
    first = anyrnn.Recurrent(layer.cells[0], batch_first=True)
    x, mask, delta = normal(T, B, I), normal(T, B, I, seed=1) > 0, normal(T, B, 1, seed=2)
    output, state = layer(x, inputs=(mask, delta))
    turned, same = first(x.transpose(0, 1), inputs=(mask.transpose(0, 1), delta.transpose(0, 1)))
    torch.testing.assert_close(turned.transpose(0, 1), output)
    torch.testing.assert_close(same, state)
    alone, _ = layer(x[:, 1], inputs={"mask": mask[:, 1], "delta": delta[:, 1]})
    torch.testing.assert_close(alone, output[:, 1])
    lengths = [6, 2, 3, 1, 5]
    packed = nn.utils.rnn.pack_padded_sequence(x, torch.tensor(lengths), enforce_sorted=False)
    got, _ = nn.utils.rnn.pad_packed_sequence(layer(packed, inputs=(mask, delta))[0])
    torch.testing.assert_close(got, layer(x, lengths=lengths, inputs=(mask, delta))[0])
    by_row = anyrnn.Recurrent(DropMask()).double()
    mask = (normal(B, H) > 0).double()
    torch.testing.assert_close(
        by_row(x[:, 1], context={"mask": mask[1]})[0], by_row(x, context={"mask": mask})[0][:, 1]
    )


def test_what_depends_on_context_alone_is_computed_once_a_sequence():
    layer = anyrnn.Recurrent(Static())
    told = anyrnn.explain(layer, torch.zeros(T, B, I), context=torch.zeros(B, K), show="program")
    assert told.parts[0].engine == "cpu"
    program = told.parts[0].anatomy.program
    assert "row i[4]" in program, "the gate is computed before the loop, for each row"
    assert program.count(" @ ") == 2, "the product with static attributes is, too"


def test_what_does_not_fit_is_told():
    layer, x = anyrnn.Recurrent(Masked()), torch.zeros(T, B, I)
    mask, delta = torch.zeros(T, B, I, dtype=torch.bool), torch.zeros(T, B, 1)
    with pytest.raises(anyrnn.AnyRNNError, match=r"Its forward takes \(x, h, mask, delta\).*inputs=.*context="):
        layer(x)
    with pytest.raises(anyrnn.AnyRNNError, match=r"Its forward takes \(x, h, mask, delta\)"):
        layer(x, inputs=mask)
    with pytest.raises(
        anyrnn.AnyRNNError, match=r"inputs\[1\] has shape \(6, 4, 1\), expected \(T, B, ...\) with T, B = 6, 5"
    ):
        layer(x, inputs=(mask, delta[:, 1:]))
    with pytest.raises(anyrnn.AnyRNNError, match=r"context\[0\] has shape \(3,\), expected \(B, ...\).*anyrnn.shared"):
        layer(x, context=torch.zeros(3))
    with pytest.raises(anyrnn.AnyRNNError, match=r"inputs\['delta'\] is torch.float64 on cpu, expected torch.float32"):
        layer(x, inputs={"mask": mask, "delta": delta.double()})
    with pytest.raises(anyrnn.AnyRNNError, match="'mask' in inputs and in context, expected it once"):
        layer(x, inputs={"mask": mask}, context={"mask": mask[0]})
    with pytest.raises(anyrnn.AnyRNNError, match="inputs of type int, expected a tensor"):
        layer(x, inputs=3)
    with pytest.raises(anyrnn.AnyRNNError, match=r"inputs\['delta'\] has type float"):
        layer(x, inputs={"mask": mask, "delta": 0.5})
    output, _ = layer(x, inputs=(mask, delta))
    assert output.shape == (T, B, H), "and a later call that fits runs"


# ---- How a step is called, and what it returns ----


class SpreadLSTM(Base):
    """Takes h and c apart, and a time gap; returns the output beside them."""

    def forward(self, x, h, c, dt):
        c = c * torch.sigmoid(self.W(x)) + dt * torch.tanh(self.U(h))
        h = torch.tanh(c)
        return h * 2, h, c


class Named(NamedTuple):
    v: torch.Tensor
    i: torch.Tensor


class Neuron(Base):
    """A named tuple as the state, with an output."""

    def forward(self, x, state: Named):
        i = 0.8 * state.i + self.W(x)
        v = 0.9 * state.v + i
        return torch.sigmoid(v), Named(v, i)


class Gates(Base):
    """A dict of outputs."""

    def forward(self, x, state):
        h, c = state
        f = torch.sigmoid(self.W(x))
        c = f * c + torch.tanh(self.U(h))
        h = torch.tanh(c)
        return {"h_n": h, "f": f, "score": c.sum(1)}, (h, c)


class Several(Base):
    """A tuple of outputs, one of which has two dimensions and one of which does not depend on the state."""

    def forward(self, x, h):
        h = torch.tanh(self.W(x) + self.U(h))
        return (h.unsqueeze(2) * h.unsqueeze(1), x.exp()), h


@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS)
def test_states_by_argument(lengths):
    torch.manual_seed(0)
    layer = anyrnn.Recurrent(SpreadLSTM()).double()
    x, dt = normal(T, B, I), normal(T, B, 1, seed=1)
    found = {}
    for engine in ENGINES:
        with anyrnn.engine(engine):
            output, (h, c) = layer(x, inputs=dt, lengths=lengths)
        found[engine] = output, h, c
        h = c = torch.zeros(B, H, dtype=DOUBLE)
        for t in range(T):
            valid = torch.ones(B, 1, dtype=torch.bool) if lengths is None else t < torch.tensor(lengths).unsqueeze(1)
            out, new_h, new_c = layer.cells[0](x[t], h, c, dt[t])
            torch.testing.assert_close(output[t], torch.where(valid, out, 0.0))
            h, c = torch.where(valid, new_h, h), torch.where(valid, new_c, c)
        torch.testing.assert_close(found[engine][1:], (h.unsqueeze(0), c.unsqueeze(0)))


def test_states_that_come_back_in_another_order_are_seen():
    class Swapped(Base):
        def forward(self, x, h, c):
            c = torch.tanh(self.W(x) + c)
            h = torch.tanh(self.U(h) + c)
            return c, h

    with pytest.raises(anyrnn.AnyRNNError, match=r"returned `c` as state 0, which it takes as `h`"):
        anyrnn.Recurrent(Swapped(), I)
    layer = anyrnn.Recurrent(Swapped(), I, step=lambda m, x, s: m(x, *s)[::-1], state_sizes=(H, H))
    assert list(layer.state_dict()) == ["cells.0.W.weight", "cells.0.W.bias", "cells.0.U.weight"]
    output, (h, _) = layer(torch.randn(T, B, I))
    assert torch.equal(output[-1], h[0])


@pytest.mark.parametrize("engine", ENGINES)
def test_named_tuples_as_states(engine):
    layer = anyrnn.Recurrent(Neuron()).double()
    x = normal(T, B, I)
    with anyrnn.engine(engine):
        output, state = layer(x)
        assert type(state) is Named
        _, later = layer(x, state)
        assert type(later) is Named
    v = i = torch.zeros(B, H, dtype=DOUBLE)
    for t in range(T):
        out, (v, i) = layer.cells[0](x[t], Named(v, i))
        torch.testing.assert_close(output[t], out)


@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS)
@pytest.mark.parametrize("bidirectional", [False, True])
def test_several_outputs_come_back_in_their_structure(bidirectional, lengths):
    torch.manual_seed(0)
    x = normal(T, B, I)
    for make in (Gates, Several):
        layer = anyrnn.Recurrent(lambda _, make=make: make(), I, bidirectional=bidirectional).double()
        found = {}
        for engine in ENGINES:
            with anyrnn.engine(engine):
                output, state = layer(x, lengths=lengths)
            values = list(output.values()) if make is Gates else list(output)
            assert type(output) is (dict if make is Gates else tuple)
            states = state if isinstance(state, tuple) else (state,)
            loss = sum(map(weighted, (*values, *states)))
            found[engine] = [*values, *states, *torch.autograd.grad(loss, [*layer.parameters()])]
        torch.testing.assert_close(found["cpu"], found["reference"], rtol=1e-9, atol=1e-11)
        assert {e.engine for e in anyrnn.explain(layer, x, lengths=lengths).parts} == {"cpu"}
        size = 2 if bidirectional else 1
        if make is Gates:
            assert list(output) == ["h_n", "f", "score"]
            assert output["score"].shape == ((T, B, 2) if bidirectional else (T, B))
        else:
            assert output[0].shape == (T, B, H, H * size)


def test_a_tuple_of_outputs_feeds_no_further_layer():
    layer = anyrnn.Recurrent(lambda _: Gates(H), input_size=H, num_layers=2)
    with pytest.raises(anyrnn.AnyRNNError, match="several outputs of the last layer only"):
        layer(torch.zeros(T, B, H))


@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS)
@pytest.mark.parametrize("reverse", [False, True])
def test_states_of_all_steps(reverse, lengths):
    torch.manual_seed(0)
    cell, x = SpreadLSTM().double(), normal(T, B, I).requires_grad_()
    dt = normal(T, B, 1, seed=1)
    found = {}
    for engine in ENGINES:
        with anyrnn.engine(engine):
            output, final, states = anyrnn.scan(cell, x, None, lengths, reverse, inputs=dt, return_states=True)
        grads = torch.autograd.grad(sum(map(weighted, states)), [x, *cell.parameters()])
        found[engine] = [output, *final, *states, *grads]
        last = T - 1 if lengths is None else torch.tensor(lengths) - 1
        for state, end in zip(states, final, strict=True):
            if lengths is None:
                torch.testing.assert_close(state[0 if reverse else last], end)
            else:
                assert not state[:, 1].any(), "a row without steps"
    torch.testing.assert_close(found["cpu"], found["reference"], rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("batch_first", [False, True])
def test_states_of_all_steps_of_a_stack(batch_first):
    layer = anyrnn.LSTM(I, H, num_layers=2, bidirectional=True, batch_first=batch_first).double()
    x = normal(B, T, I) if batch_first else normal(T, B, I)
    for engine in ENGINES:
        with anyrnn.engine(engine):
            output, (h_n, c_n), (h, c) = layer(x, return_states=True)
        assert c.shape == ((4, B, T, H) if batch_first else (4, T, B, H))
        time = 2 if batch_first else 1
        torch.testing.assert_close(h.select(time, T - 1)[0::2], h_n[0::2])
        torch.testing.assert_close(c.select(time, 0)[1::2], c_n[1::2])
        torch.testing.assert_close(torch.cat([h[2], h[3]], -1), output)


def test_a_step_given_as_a_function():
    class Model(nn.Module):
        """A larger model, one of whose methods is the step."""

        def __init__(self):
            super().__init__()
            self.embed, self.head = nn.Linear(I, H), nn.Linear(H, 2)
            self.scale = 0.5

        def advance(self, x, h, c):
            c = self.scale * c + torch.tanh(self.embed(x) + h)
            return torch.tanh(c), c

    torch.manual_seed(0)
    model = Model().double()
    layer = anyrnn.Recurrent(model, I, step=lambda m, x, s: m.advance(x, *s), state_sizes=(H, H))
    assert set(layer.state_dict()) == {f"cells.0.{k}" for k in model.state_dict()}
    x = normal(T, B, I)
    assert anyrnn.explain(layer, x).parts[0].engine == "cpu"
    for _ in range(2):
        output, (h, c) = layer(x)
        h = c = torch.zeros(B, H, dtype=DOUBLE)
        for t in range(T):
            h, c = model.advance(x[t], h, c)
            torch.testing.assert_close(output[t], h)
        model.scale = -0.3  # an attribute that the step reads is seen by the next call
    twin = copy.deepcopy(layer)
    torch.testing.assert_close(twin(x)[0], layer(x)[0])
    with torch.no_grad():
        twin.cells[0].embed.weight.zero_()
    assert not torch.allclose(twin(x)[0], layer(x)[0])


# ---- x and states of any shape ----


class Image(nn.Module):
    """x and state of shape (B, C, H, W), elementwise."""

    state_sizes = torch.Size([2, 3, 4])

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Parameter(torch.randn(2, 1, 1)), nn.Parameter(torch.randn(3, 4))

    def forward(self, x, h):
        return torch.tanh(self.a * h + self.b * x)


class TwoShapes(nn.Module):
    """A state (B, 2, 3) and a state (B, 4)."""

    state_sizes = ((2, 3), 4)

    def __init__(self):
        super().__init__()
        self.W = nn.Linear(I, 4)

    def forward(self, x, state):
        m, c = state
        c = torch.tanh(self.W(x) + c) + m.sum((1, 2)).unsqueeze(1)
        return c, (0.5 * m + c[:, :2].unsqueeze(2) * c[:, 1:].unsqueeze(1), torch.tanh(c))


@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS)
def test_x_and_states_of_any_shape(lengths):
    torch.manual_seed(0)
    for make, size in ((Image, (2, 3, 4)), (TwoShapes, I)):
        layer = anyrnn.Recurrent(make(), input_size=size).double()
        shape = size if isinstance(size, tuple) else (size,)
        x = normal(T, B, *shape)
        (plain, _), (compiled, _) = (results(layer, engine, {}, lengths, x=x) for engine in ENGINES)
        torch.testing.assert_close(compiled, plain, rtol=1e-9, atol=1e-11)
        alone, _ = layer(x[:, 2])
        torch.testing.assert_close(alone, layer(x)[0][:, 2])
        one, _ = anyrnn.scan(make().double(), x)
        assert one.shape[:2] == (T, B)
    _, (m, c) = layer(x)
    assert m.shape == (1, B, 2, 3)
    assert layer(x, (m, c))[1][0].shape == m.shape
    with pytest.raises(anyrnn.AnyRNNError, match=r"a tuple of 2 tensors \(1, 5, 2, 3\), \(1, 5, 4\)"):
        layer(x, (m, m))
    with pytest.raises(anyrnn.AnyRNNError, match=r"expected \(T, B, 2, 3, 4\)"):
        anyrnn.Recurrent(Image(), input_size=(2, 3, 4))(torch.zeros(T, B, 3))


def test_a_cell_that_holds_something_for_each_row():
    class PerRow(Base):
        def __init__(self):
            super().__init__()
            self.register_buffer("mask", torch.rand(B, H))

        def forward(self, x, h):
            return torch.tanh(self.W(x) + self.U(h * self.mask))

    layer = anyrnn.Recurrent(PerRow())
    output, _ = layer(torch.randn(T, B, I))
    assert output.shape == (T, B, H)


# ---- Feedback ----


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("layers", [1, 2])
def test_feedback_with_teacher_forcing(layers, engine):
    torch.manual_seed(0)
    layer, head = anyrnn.LSTM(I, H, num_layers=layers).double(), nn.Linear(H, I).double()
    x, forced = normal(T, B, I).requires_grad_(), normal(T, B, seed=3) > 0
    forced[0] = True
    plain = nn.LSTM(I, H, num_layers=layers).double()
    plain.load_state_dict(layer.state_dict())
    with anyrnn.engine(engine):
        output, (h, c) = layer(x, feedback=head, forced=forced)
    state, following, outputs = None, None, []
    for t in range(T):
        now = x[t] if following is None else torch.where(forced[t].unsqueeze(1), x[t], following)
        out, state = plain(now.unsqueeze(0), state)
        outputs.append(out[0])
        following = head(out[0])
    expected = torch.stack(outputs)
    torch.testing.assert_close(output, expected)
    torch.testing.assert_close((h, c), state)
    got = torch.autograd.grad(weighted(output) + weighted(c), [x, *layer.parameters(), *head.parameters()])
    want = torch.autograd.grad(weighted(expected) + weighted(state[1]), [x, *plain.parameters(), *head.parameters()])
    torch.testing.assert_close(got, want)


@pytest.mark.parametrize("engine", ENGINES)
def test_generation_goes_on_from_a_state(engine):
    torch.manual_seed(0)
    for batch_first in (False, True):
        layer, head = anyrnn.GRU(I, H, num_layers=2, batch_first=batch_first).double(), nn.Linear(H, I).double()
        x = normal(B, T, I) if batch_first else normal(T, B, I)
        with anyrnn.engine(engine):
            known, state = layer(x)
            first = head(known[:, -1] if batch_first else known[-1])
            output, last = layer.generate(state, 4, first=first, feed=head)
            time = 1 if batch_first else 0
            assert output.shape[time] == 4
            now, s = first, state
            for t in range(4):
                out, s = layer(now.unsqueeze(time), s)
                torch.testing.assert_close(output.select(time, t), out.select(time, 0))
                now = head(out.select(time, 0))
            torch.testing.assert_close(last, s)


def test_the_feedback_may_be_a_function_and_runs_compiled():
    layer = anyrnn.GRU(I, H).double()
    x = normal(T, B, I)
    fed = {}
    for engine in ENGINES:
        with anyrnn.engine(engine):
            fed[engine] = layer(x, feedback=lambda y: torch.tanh(y[:, :I]), forced=2)[0]
    torch.testing.assert_close(fed["cpu"], fed["reference"])
    torch.testing.assert_close(fed["cpu"][:2], layer(x[:2])[0])
    for again in (pickle.loads(pickle.dumps(layer)), copy.deepcopy(layer)):
        torch.testing.assert_close(again(x)[0], layer(x)[0])
    with pytest.raises(anyrnn.AnyRNNError, match="bidirectional"):
        anyrnn.GRU(I, H, bidirectional=True)(torch.zeros(T, B, I), feedback=torch.tanh)
    with pytest.raises(anyrnn.AnyRNNError, match=r"forced torch.bool \(2,\), expected true or false \(T, B\)"):
        layer(x, feedback=torch.tanh, forced=torch.ones(2, dtype=torch.bool))


# ---- Where PyTorch traces ----


@pytest.mark.grid(2)
@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS)
@pytest.mark.parametrize("name", CASES)
def test_below_torch_compile(name, lengths):
    make, options = CASES[name]
    torch.manual_seed(0)
    layer = anyrnn.Recurrent(make()).double()
    torch._dynamo.reset()
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    valid = None if lengths is None else torch.tensor(lengths)
    found = []
    for run in (layer, compiled):
        x, given = normal(T, B, I).requires_grad_(), {k: made(v) for k, v in options.items()}
        output, state = run(x, lengths=valid, **given)
        states = state if isinstance(state, tuple) else (state,)
        sources = [x, *layer.parameters(), *(t for v in given.values() for t in tensors_of(v) if t.requires_grad)]
        grads = torch.autograd.grad(weighted(output) + sum(map(weighted, states)), sources, allow_unused=True)
        found.append([output, *states, *(torch.zeros(()) if g is None else g for g in grads)])
    torch.testing.assert_close(found[1], found[0], rtol=1e-9, atol=1e-11)


def test_saved_programs_take_further_arguments(tmp_path):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = anyrnn.Recurrent(lambda _: Static(I), input_size=I, bidirectional=True)
            self.gates = anyrnn.Recurrent(Gates())
            self.images = anyrnn.Recurrent(Image(), input_size=(2, 3, 4))

        def forward(self, x, static, images):
            output, _ = self.layer(x, context=static)
            named, _, states = self.gates(x, return_states=True)
            fed, _ = self.gates(x, feedback=lambda y: y["f"][:, :I], forced=2)
            return output, named, states, fed["score"], self.images(images)[0]

    torch.manual_seed(0)
    model = Model().double()
    arguments = normal(T, B, I), normal(B, K), normal(T, B, 2, 3, 4)
    expected = model(*arguments)
    t, b = torch.export.Dim("T", min=2), torch.export.Dim("B", min=2)
    program = torch.export.export(model, arguments, dynamic_shapes=({0: t, 1: b}, {0: b}, {0: t, 1: b}))
    torch.export.save(program, tmp_path / "model.pt2")
    loaded = torch.export.load(tmp_path / "model.pt2").module()
    torch.testing.assert_close(loaded(*arguments), expected)
    other = normal(T + 3, B - 2, I), normal(B - 2, K), normal(T + 3, B - 2, 2, 3, 4)
    torch.testing.assert_close(loaded(*other), model(*other))


@pytest.mark.parametrize("layers", [1, 2])
def test_feedback_below_torch_compile(layers):
    torch.manual_seed(0)
    layer, head = anyrnn.LSTM(I, H, num_layers=layers).double(), nn.Linear(H, I).double()

    def run(x, forced):
        return layer(x, feedback=head, forced=forced)

    torch._dynamo.reset()
    x, forced = normal(T, B, I), normal(T, B, seed=3) > 0
    compiled = torch.compile(run, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x, forced), run(x, forced))
    with torch.no_grad():
        layer.weight_ih_l0.mul_(0.5)
    torch.testing.assert_close(compiled(x, forced), run(x, forced))
    layer.weight_ih_l0 = nn.Parameter(-layer.weight_ih_l0.detach())
    torch.testing.assert_close(compiled(x, forced), run(x, forced))


def test_explain_shows_what_is_run_once_a_row():
    layer = anyrnn.Recurrent(Static().double())
    context = normal(B, K)
    text = str(anyrnn.explain(layer, normal(T, B, I), context=context))
    assert re.search(r"rows +addmm, i = sigmoid", text)
    assert "rows " not in str(anyrnn.explain(anyrnn.GRU(I, H), torch.randn(T, B, I)))
