"""Sums of outer products: PyTorch's numbers, for every size, order and processor, and nothing else touched."""

import pytest
import torch
from fences import assert_whole, fenced, within

import anyrnn
from anyrnn.engines.cpu.machine import Machine
from anyrnn.engines.cpu.outer import Rows, add_outer

# Rows, width of left, width of right: one of everything, edges of tiles and blocks and one beside them, none at all.
SIZES = [(1, 1, 1), (0, 3, 5), (5, 8, 32), (7, 9, 33), (192, 6, 16), (193, 256, 31), (400, 257, 17), (385, 40, 300)]


def operand(rows, width, dtype, ordered):
    """A part of the columns of a tensor between fences, and which of its rows to take."""
    tensor = within(torch.randn(rows + 3, width + 2, dtype=dtype))[:, 1 : 1 + width]
    if ordered:
        return Rows(tensor, torch.randint(len(tensor), (rows,)))
    return Rows(tensor[:rows])


def taken(rows):
    return rows.tensor if rows.order is None else rows.tensor[rows.order]


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
            left, right = operand(rows, n, dtype, left_ordered), operand(rows, m, dtype, right_ordered)
            whole = fenced(n * (m + 3), dtype).view(n, m + 3)
            out = whole[:, :m]
            if add:
                out.normal_()
            before = out.clone().double() if add else 0
            expected = taken(left).double().t() @ taken(right).double() + before
            add_outer(out, left, right, add)
            sizes = taken(left).double().abs().t() @ taken(right).double().abs() + 1
            error = (out.double() - expected).abs() / sizes
            assert error.max() < 4 * torch.finfo(dtype).eps, (rows, n, m)
            assert whole[:, m:].isnan().all(), "written beside the result"
            for tensor in (out, left.tensor, right.tensor):
                assert_whole(tensor)


def test_what_is_infinite_or_no_number_is_seen():
    left, right = torch.ones(300, 9), torch.ones(300, 40)
    left[250, 3], right[7, 5] = torch.inf, torch.nan
    out = torch.empty(9, 40)
    add_outer(out, Rows(left), Rows(right), add=False)
    assert torch.equal(out.isnan().nonzero()[:, 1].unique(), torch.tensor([5]))
    assert out[3].isinf().sum() == 39
    assert (out[:3, :5] == 300).all()


def test_the_order_of_rows_may_repeat_and_leave_out():
    left, right = torch.randn(4, 3), torch.randn(2, 5)
    out = torch.empty(3, 5)
    add_outer(out, Rows(left, torch.tensor([3, 3, 0])), Rows(right, torch.tensor([1, 0, 1])), add=False)
    torch.testing.assert_close(out, left[[3, 3, 0]].t() @ right[[1, 0, 1]])
