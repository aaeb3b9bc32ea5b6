"""detach, reset, select: for every structure of state, with the gradients that they let pass."""

from typing import NamedTuple

import pytest
import torch
from torch import nn

import anyrnn


class Pair(NamedTuple):
    h: torch.Tensor
    c: torch.Tensor


class Image(nn.Module):
    """A cell whose state is an image."""

    state_sizes = torch.Size([4, 6])

    def forward(self, x, h):
        return torch.tanh(h + x.unsqueeze(1))


def tensors_of(state):
    if isinstance(state, torch.Tensor):
        return [state]
    return [t for part in state for t in tensors_of(part)]


def of_layers():
    x = torch.randn(7, 4, 6)
    several = anyrnn.Recurrent([nn.LSTMCell(6, 5), nn.GRUCell(5, 3)], input_size=6)
    return {
        "one tensor": anyrnn.GRU(6, 5, 2, bidirectional=True)(x)[1],
        "tuple": anyrnn.LSTM(6, 5)(x)[1],
        "by layer": several(x)[1],
        "named": Pair(*anyrnn.LSTM(6, 5)(x)[1]),
        "list": [*anyrnn.LSTM(6, 5)(x)[1]],
        "inner dimensions": anyrnn.Recurrent(Image(), input_size=6)(x)[1],
    }


KINDS = ("one tensor", "tuple", "by layer", "named", "list", "inner dimensions")


def structure(state):
    return type(state), [structure(s) for s in state] if isinstance(state, tuple | list) else []


@pytest.mark.parametrize("kind", KINDS)
def test_every_structure_comes_back_as_it_was(kind):
    state = of_layers()[kind]
    for found in (anyrnn.detach(state), anyrnn.reset(state, [1]), anyrnn.select(state, [2, 0])):
        assert structure(found) == structure(state)
    for before, after in zip(tensors_of(state), tensors_of(anyrnn.detach(state)), strict=True):
        assert torch.equal(before, after)
        assert not after.requires_grad
        assert after.data_ptr() == before.data_ptr()


@pytest.mark.parametrize(
    "rows",
    [
        torch.tensor([False, True, False, True]), [False, True, False, True], torch.tensor([1, 3]), [3, 1], (1, 3, 3),
        torch.tensor([1, 3], dtype=torch.int32),
    ],
    ids=["mask", "list of bools", "numbers", "list", "tuple, one twice", "int32"],
)  # fmt: skip
@pytest.mark.parametrize("kind", KINDS)
def test_rows_are_set_back_and_the_others_are_not(kind, rows):
    state = of_layers()[kind]
    for before, after in zip(tensors_of(state), tensors_of(anyrnn.reset(state, rows)), strict=True):
        assert (after[:, [1, 3]] == 0).all()
        assert torch.equal(after[:, [0, 2]], before[:, [0, 2]])
        assert (before[:, [1, 3]] != 0).any()


def test_no_gradient_passes_from_what_was_set_back():
    h = torch.randn(2, 4, 3, dtype=torch.float64, requires_grad=True)
    initial = torch.randn(2, 1, 3, dtype=torch.float64, requires_grad=True)
    after = anyrnn.reset(h, torch.tensor([True, False, False, True]), to=initial)
    of_h, of_initial = torch.autograd.grad(after.sum(), [h, initial])
    assert of_h[0, :, 0].tolist() == [0, 1, 1, 0]
    assert of_initial.flatten().tolist() == [2] * 6
    torch.autograd.gradcheck(lambda h, i: anyrnn.reset(h, [2], to=i).sin(), (h, initial))


def test_what_is_no_number_is_set_back_as_well():
    h = torch.full((1, 2, 3), torch.nan, requires_grad=True)
    after = anyrnn.reset(h, [0])
    assert torch.equal(after[0, 0], torch.zeros(3))
    (gradient,) = torch.autograd.grad(after[0, 0].square().sum(), h)
    assert torch.equal(gradient, torch.zeros(1, 2, 3))


def test_a_call_goes_on_as_if_rows_began_anew():
    layer, x = anyrnn.LSTM(3, 5, 2), torch.randn(6, 4, 3)
    _, state = layer(x)
    mask = torch.tensor([True, False, True, False])
    output, _ = layer(x, anyrnn.reset(state, mask))
    torch.testing.assert_close(output[:, mask], layer(x[:, mask])[0])
    torch.testing.assert_close(output[:, ~mask], layer(x, state)[0][:, ~mask])


@pytest.mark.parametrize("kind", KINDS)
def test_rows_are_selected_in_any_order(kind):
    state = of_layers()[kind]
    for before, after in zip(tensors_of(state), tensors_of(anyrnn.select(state, [3, 0, 3])), strict=True):
        assert torch.equal(after, before[:, [3, 0, 3]])
    mask = torch.tensor([True, False, False, True])
    for before, after in zip(tensors_of(state), tensors_of(anyrnn.select(state, mask)), strict=True):
        assert torch.equal(after, before[:, [0, 3]])
    (first, *_) = tensors_of(anyrnn.select(state, []))
    assert first.shape[1] == 0


def test_gradients_of_selected_rows_are_summed():
    h = torch.randn(1, 3, 2, requires_grad=True)
    (gradient,) = torch.autograd.grad(anyrnn.select(h, [1, 1, 0]).sum(), h)
    assert gradient[0, :, 0].tolist() == [1, 2, 0]


def test_a_state_without_a_batch():
    layer = anyrnn.LSTM(3, 5)
    _, state = layer(torch.randn(6, 3))
    for done in (True, torch.tensor(True)):
        assert all((s == 0).all() for s in anyrnn.reset(state, done))
    assert all(torch.equal(a, b) for a, b in zip(anyrnn.reset(state, False), state, strict=True))


def test_states_of_scan_have_their_rows_in_front():
    _, h = anyrnn.scan(nn.GRUCell(3, 5), torch.randn(6, 4, 3))
    assert (anyrnn.reset(h, [1], dim=0)[1] == 0).all()
    assert torch.equal(anyrnn.select(h, [2], dim=0), h[2:3])


def test_no_state_is_the_initial_one():
    assert anyrnn.detach(None) is anyrnn.reset(None, [0]) is anyrnn.select(None, [0]) is None


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda h: anyrnn.reset(h, [True]), r"reset: rows has shape \(1,\), expected \(4,\), one for each row"),
        (lambda h: anyrnn.reset(h, [4]), r"reset: rows are numbers from 4 to 4, expected 0 to 3"),
        (lambda h: anyrnn.select(h, [-1, 2]), r"select: rows are numbers from -1 to 2, expected 0 to 3"),
        (lambda h: anyrnn.select(h, torch.ones(4)), r"select: rows are torch.float32, expected bool or integers"),
        (lambda h: anyrnn.select(h, "all"), r"select: rows is 'all', expected true or false for each of 4 rows"),
        (lambda h: anyrnn.reset(h[:, 0], [0], dim=2), r"which has no rows in dimension 2; expected a batch"),
        (lambda h: anyrnn.detach({"h": h}), r"detach: the state has a dict, expected a tensor, or a tuple of them"),
        (lambda h: anyrnn.reset((h, h), [0], to=h), r"reset: `to` is a Tensor, expected a tuple of 2"),
        (lambda h: anyrnn.reset(h, [0], to=(h,)), r"`to` has a tuple where the state has a tensor"),
        (lambda h: anyrnn.reset(h, [0], to=h[:, :2]), r"`to` has a tensor \(1, 2, 3\) .* expected \(1, 4, 3\)"),
        (lambda h: anyrnn.reset(h, [0], to=h.double()), r"of torch.float64, expected \(1, 4, 3\) of torch.float32"),
    ],
)
def test_messages(call, message):
    with pytest.raises(anyrnn.AnyRNNError, match=message):
        call(torch.randn(1, 4, 3))
