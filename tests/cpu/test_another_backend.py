"""A backend is what runtime/kernel.py says, and no more: one that interprets programs in NumPy runs random cells."""

import pytest
import test_random_cells as cells
import torch
from compare import assert_near
from hypothesis import assume, given, settings
from numpy_backend import ENGINE, OPERATIONS

import anyrnn
from anyrnn.compiler.ops import OPERATIONS as KNOWN
from anyrnn.compiler.ops import REDUCTIONS
from anyrnn.engines import select


@pytest.fixture(autouse=True, scope="module")
def numpy_engine():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(select.ENGINES, "numpy", ENGINE)
        yield


def test_a_backend_has_a_line_for_each_operation():
    assert set(OPERATIONS) == {*KNOWN, *REDUCTIONS}


@settings(cells.random, max_examples=max(1, cells.random.max_examples // 3))
@given(recipe=cells.recipes(smooth=True), shape=cells.shapes())
def test_random_cells_have_the_values_and_gradients_of_the_reference(recipe, shape):
    want = cells.results("reference", recipe, shape, torch.float64)
    assume(all(t.isfinite().all() and cells.scale(t) < 1e6 for t in want))
    got = cells.results("numpy", recipe, shape, torch.float64)
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-10 * cells.scale(b))


def test_it_runs_torchs_own_networks():
    twin, layer = torch.nn.LSTM(3, 5, bidirectional=True).double(), anyrnn.LSTM(3, 5, bidirectional=True).double()
    layer.load_state_dict(twin.state_dict())
    x = torch.randn(7, 4, 3, dtype=torch.float64)
    with anyrnn.engine("numpy"):
        output, state = layer(x)
    assert_near([output, *state], [twin(x)[0], *twin(x)[1]], 1e-12)
    assert anyrnn.explain(layer, x).parts[0].engine == "cpu"
