"""Sums of outer products: PyTorch's numbers, for every size, order and processor, and nothing else touched."""

import pytest
import torch
from fences import assert_whole, fenced, within

import anyrnn
from anyrnn.engines.cpu.machine import Machine
from anyrnn.engines.cpu.outer import add_outer
from anyrnn.runtime.kernel import Rows

# Rows, width of left, width of right: one of everything, edges of tiles and blocks and one beside them, none at all.
SIZES = [(1, 1, 1), (0, 3, 5), (5, 8, 32), (7, 9, 33), (304, 6, 16), (305, 256, 31), (400, 257, 17), (609, 40, 300)]


def operand(rows, width, dtype, ordered):
    """A part of the columns of a tensor between fences, and which of its rows to take."""
    tensor = within(torch.randn(rows + 3, width + 2, dtype=dtype))[:, 1 : 1 + width]
    return tensor, torch.randint(len(tensor), (rows,)) if ordered else torch.arange(rows)


def rows_of(tensor, order=None):
    if order is not None and torch.equal(order, torch.arange(len(order))):
        tensor, order = tensor[: len(order)], None
    height = len(tensor if order is None else order)
    return Rows(tensor, tensor.stride(0), 0, tensor.shape[1], 0, height, order)


def outer(left, right):
    """The sum for two tensors, or pairs of a tensor and an order of its rows."""
    left, right = (rows_of(*t) if isinstance(t, tuple) else rows_of(t) for t in (left, right))
    out = torch.empty(left.width, right.width)
    add_outer(out, 0, 0, left, right, False, Machine.host())
    return out


@pytest.mark.grid(2)
@pytest.mark.parametrize("processor", ["", "x86-64", "haswell"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("threads", [1, 2])
def test_sums_of_outer_products(processor, dtype, threads, monkeypatch):
    monkeypatch.setenv("ANYRNN_CPU", processor)
    try:
        Machine.host()
    except anyrnn.AnyRNNError as reason:
        pytest.skip(str(reason))
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    for rows, n, m in [*SIZES, (2000, 40, 70)]:
        for left_ordered, right_ordered, add in ((False, False, False), (True, False, True), (True, True, False)):
            left, left_order = operand(rows, n, dtype, left_ordered)
            right, right_order = operand(rows, m, dtype, right_ordered)
            whole = fenced((n + 2) * (m + 3), dtype).view(n + 2, m + 3)
            out = whole[1 : 1 + n, 2 : 2 + m]
            if add:
                out.normal_()
            before = out.clone().double() if add else 0
            taken, gave = left[left_order].double(), right[right_order].double()
            given = rows_of(left, left_order), rows_of(right, right_order)
            add_outer(whole, 1, 2, *given, add, Machine.host())
            error = (out.double() - taken.t() @ gave - before).abs() / (taken.abs().t() @ gave.abs() + 1)
            assert error.max() < 4 * torch.finfo(dtype).eps, (rows, n, m)
            out.fill_(float("nan"))
            assert whole.isnan().all(), "written beside the result"
            for tensor in (whole, left, right):
                assert_whole(tensor)


def test_what_is_infinite_or_no_number_is_seen():
    left, right = torch.ones(300, 9), torch.ones(300, 40)
    left[250, 3], right[7, 5] = torch.inf, torch.nan
    out = outer(left, right)
    assert torch.equal(out.isnan().nonzero()[:, 1].unique(), torch.tensor([5]))
    assert out[3].isinf().sum() == 39
    assert (out[:3, :5] == 300).all()


def test_the_order_of_rows_may_repeat_and_leave_out():
    left, right = torch.randn(4, 3), torch.randn(2, 5)
    one, other = torch.tensor([3, 3, 0]), torch.tensor([1, 0, 1])
    torch.testing.assert_close(outer((left, one), (right, other)), left[one].t() @ right[other])
