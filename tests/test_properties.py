"""Random shapes, lengths and options: every engine gives what a loop in numpy gives."""

from typing import NamedTuple

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from torch import nn

import anyrnn
from zoo import ENGINES, close, flat, gradients, loss_of

random = settings(
    max_examples=120,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)


def run(weights, kind, x, state, length, reverse):
    """One row (T, I) through one cell, from torch.nn's documented equations: the outputs (T, H) and the state."""
    W, U, b, d = (np.asarray(w) for w in weights)
    h, *rest = (np.array(s) for s in state)
    out = np.zeros((len(x), len(h)))
    sigmoid = lambda a: 1 / (1 + np.exp(-a))  # noqa: E731
    for t in range(length)[:: -1 if reverse else 1]:
        if kind == "LSTM":
            i, f, g, o = np.split(W @ x[t] + b + U @ h + d, 4)
            rest = [sigmoid(f) * rest[0] + sigmoid(i) * np.tanh(g)]
            h = sigmoid(o) * np.tanh(rest[0])
        elif kind == "GRU":
            (wr, wz, wn), (ur, uz, un) = np.split(W @ x[t] + b, 3), np.split(U @ h + d, 3)
            z = sigmoid(wz + uz)
            h = (1 - z) * np.tanh(wn + sigmoid(wr + ur) * un) + z * h
        else:
            a = W @ x[t] + b + U @ h + d
            h = np.tanh(a) if kind == "RNN" else np.maximum(a, 0)
        out[t] = h
    return out, [h, *rest]


def loop(layer, kind, x, state, lengths):
    """All layers and directions, for each row by itself."""
    x, state = x.detach().numpy(), [s.detach().numpy() for s in state]
    final, k = [np.array(s) for s in state], 0
    for number in range(layer.num_layers):
        parts = []
        for suffix in ("", "_reverse")[: layer.num_directions]:
            names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
            weights = [getattr(layer, f"{n}_l{number}{suffix}", torch.zeros(())).detach() for n in names]
            part = np.zeros((*x.shape[:2], layer.hidden_size))
            for row, length in enumerate(lengths):
                part[:, row], new = run(weights, kind, x[:, row], [s[k, row] for s in state], length, bool(suffix))
                for f, n in zip(final, new, strict=True):
                    f[k, row] = n
            parts.append(part)
            k += 1
        x = np.concatenate(parts, axis=2)
    return x, final


class Drawn(NamedTuple):
    kind: str
    sizes: tuple[int, int, int, int]  # T, B, I, H
    num_layers: int
    bidirectional: bool
    bias: bool
    batch_first: bool
    lengths: list[int] | None
    form: str
    seed: int


@st.composite
def drawn(draw):
    T, B = draw(st.integers(0, 6)), draw(st.integers(0, 5))
    lengths = draw(st.none() | st.lists(st.integers(0, T), min_size=B, max_size=B))
    return Drawn(
        draw(st.sampled_from(["RNN", "RNN-relu", "LSTM", "GRU"])),
        (T, B, *draw(st.sampled_from([(2, 3), (1, 1), (4, 5), (5, 2)]))),
        draw(st.integers(1, 2)),
        draw(st.booleans()),
        draw(st.booleans()),
        draw(st.booleans()),
        lengths,
        draw(st.sampled_from(["plain", "strided", "padded with NaN", "packed"])),
        draw(st.integers(0, 99)),
    )


@random
@given(case=drawn())
def test_every_engine_gives_the_numpy_loop(case):
    T, B, I, H = case.sizes
    torch.manual_seed(case.seed)
    make = getattr(anyrnn, case.kind.removesuffix("-relu"))
    options = {"nonlinearity": "relu"} if case.kind.endswith("relu") else {}
    layer = make(
        I, H, case.num_layers, bias=case.bias, batch_first=case.batch_first, bidirectional=case.bidirectional,
        dtype=torch.float64, **options,
    )  # fmt: skip
    x = torch.randn(T, B, I, dtype=torch.float64)
    count = case.num_layers * (1 + case.bidirectional)
    state = [torch.randn(count, B, H, dtype=torch.float64) for _ in range(2 if case.kind == "LSTM" else 1)]
    lengths = [T] * B if case.lengths is None else case.lengths
    want, want_final = loop(layer, case.kind, x, state, lengths)

    given_x = x
    if case.form == "strided":
        given_x = x.repeat_interleave(2, 2)[..., ::2]
    elif case.form == "padded with NaN":
        given_x = x.masked_fill((torch.arange(T).unsqueeze(1) >= torch.tensor(lengths)).unsqueeze(2), torch.nan)
    packs = case.form == "packed" and B > 0 and min(lengths) > 0
    for engine in ENGINES:
        if engine != "reference" and 0 in case.sizes:
            continue  # asked for by name, others refuse empty input
        if engine == "cpu" and case.sizes[2:] != (2, 3):
            continue  # other sizes are other programs to compile
        leaf = given_x.detach().clone().requires_grad_()
        arguments = {"lengths": case.lengths}
        if packs:
            whole = nn.utils.rnn.pack_padded_sequence(leaf, torch.tensor(lengths), enforce_sorted=False)
            arguments = {}
        else:
            whole = leaf.transpose(0, 1) if case.batch_first else leaf
        with anyrnn.engine(engine):
            output, final = layer(whole, state[0] if len(state) == 1 else tuple(state), **arguments)
        if packs:
            output, _ = nn.utils.rnn.pad_packed_sequence(output, total_length=T)
        elif case.batch_first:
            output = output.transpose(0, 1)
        close([output, *flat(final)], [torch.from_numpy(want), *map(torch.from_numpy, want_final)], atol=1e-10)
        (grad, *rest) = gradients([leaf, *layer.parameters()], loss_of(output, *flat(final)))
        padding = torch.arange(T).unsqueeze(1) >= torch.tensor(lengths)
        assert (grad[padding] == 0).all()
        if engine == "reference":
            first = [grad, *rest]
        close([grad, *rest], first)


FACTORIES = {
    "peephole": anyrnn.PeepholeLSTMCell,
    "projected": lambda i, h: anyrnn.LSTMCell(i, h + 1, proj_size=h),
    "nn.GRUCell": nn.GRUCell,
    "nn.LSTMCell": nn.LSTMCell,
    "reset before": lambda i, h: anyrnn.GRUCell(i, h, reset_after=False),
}


@pytest.mark.usefixtures("plainly")
@random
@given(
    cell=st.sampled_from(sorted(FACTORIES)),
    sizes=st.tuples(st.integers(1, 3), st.integers(1, 4)),
    cuts=st.lists(st.integers(0, 8), max_size=3).map(sorted),
    lengths=st.none() | st.lists(st.integers(0, 8), min_size=3, max_size=3),
    num_layers=st.integers(1, 2),
)
def test_a_sequence_may_be_cut_anywhere(cell, sizes, cuts, lengths, num_layers):
    layer = anyrnn.Recurrent(lambda i: FACTORIES[cell](i, sizes[1]), sizes[0], num_layers).double()
    x = torch.randn(8, 3, sizes[0], dtype=torch.float64)
    want, want_state = layer(x, lengths=lengths)
    outputs, state = [], None
    for start, end in zip([0, *cuts], [*cuts, 8], strict=True):
        part = None if lengths is None else [min(max(n - start, 0), end - start) for n in lengths]
        output, state = layer(x[start:end], state, lengths=part)
        outputs.append(output)
    close([torch.cat(outputs), *flat(state)], [want, *flat(want_state)])
