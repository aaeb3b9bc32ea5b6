"""A compiled layer is not slower than the plain loop over its cell: no cliff, at any shape, with x's gradient or not.

The bound is generous, since other things run on the machine of a test: a cliff is a factor of ten or a hundred. Both
ways take turns, the fastest call of each counts, and only what stays slow in several tries fails.
"""

import time
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import anyrnn
from anyrnn.runtime.gradients import _Place, _product
from zoo import CASES, Case

BOUND = 2.0  # times as long as the plain loop, at most
TRIES = 4

I, H = 95, 96  # odd: the slices of a weight for (x, h) begin anywhere
SHAPES = {"few steps": (3, 2), "one row": (40, 1), "large products": (8, 40)}  # T, B


def fastest(calls: list[Callable[[], object]], rounds: int) -> list[float]:
    """The time of the fastest of some calls each, in turns: CPU time of this thread, which others cannot lengthen."""
    found = [float("inf")] * len(calls)
    for _ in range(rounds):
        for k, call in enumerate(calls):
            start = time.thread_time()
            call()
            found[k] = min(found[k], time.thread_time() - start)
    return found


def is_slow(ours: Callable[[], object], theirs: Callable[[], object], bound: float) -> str:
    """Say how slow, if ours takes longer than the bound in every try; else ""."""
    ours(), theirs()  # compiles, allocates
    said = ""
    for _ in range(TRIES):
        a, b = fastest([ours, theirs], 3)
        if a <= bound * b:
            return ""
        said = f"{1e3 * a:.2f} ms beside {1e3 * b:.2f} ms"
    return said


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the clock counts this thread
    yield
    torch.set_num_threads(threads)


@pytest.mark.grid(2)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_what_is_compiled_is_not_slower_than_the_plain_loop(case: Case):
    slow = {}
    torch.manual_seed(1)
    layer = anyrnn.Recurrent(case.make(I, H), input_size=I)
    for name, (T, B) in SHAPES.items():
        for x_needs_gradient in (False, True):
            x = torch.randn(T, B, I, requires_grad=x_needs_gradient)

            def ours(x=x):
                layer(x)[0].sum().backward()

            def plain(ours=ours):
                with anyrnn.engine("reference"):
                    ours()

            if said := is_slow(ours, plain, BOUND):
                slow[name, x_needs_gradient] = said
    assert not slow


def columns(rows: int, width: int) -> Tensor:
    return torch.randn(rows, width + 40)[:, 7 : 7 + width]


#: How a weight may lie in memory: whole, transposed, some columns, some rows, every second row.
LAYOUTS: dict[str, Callable[[int, int], Tensor]] = {
    "whole": torch.randn,
    "transposed": lambda k, m: torch.randn(m, k).t(),
    "columns": columns,
    "columns, transposed": lambda k, m: columns(m, k).t(),
    "rows": lambda k, m: torch.randn(k + 9, m)[3 : 3 + k],
    "rows, transposed": lambda k, m: torch.randn(m + 9, k)[3 : 3 + m].t(),
    "every second row": lambda k, m: torch.randn(2 * k, m)[::2],
    "one row for all": lambda k, m: torch.randn(1, m).expand(k, m),
    "misaligned": lambda k, m: torch.randn(k * m + 1)[1:].view(k, m),
}


@pytest.mark.parametrize(
    "size", [(900, 256, 12), (2000, 1100, 1), (12800, 1, 200), (3200, 4, 200), (1, 1500, 1500)], ids=str
)
@pytest.mark.parametrize("given", ["whole", "columns"])
@pytest.mark.parametrize("weight", LAYOUTS)
def test_the_gradient_of_a_stream_has_no_slow_layout(weight: str, given: str, size: tuple[int, int, int]):
    n, k, m = size
    a, b = LAYOUTS[given](n, k), LAYOUTS[weight](k, m)
    place = _Place(0, n, n, n)
    torch.testing.assert_close(_product(a, b, place), a @ b, rtol=1e-4, atol=1e-3)
    # PyTorch's own product of matrices without gaps.
    dense = a.contiguous(), b.contiguous()
    assert not is_slow(lambda: _product(a, b, place), lambda: torch.mm(*dense), 5)
