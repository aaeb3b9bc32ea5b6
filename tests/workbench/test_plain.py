"""Tensors of any type and layout and masked arrays, and whole numbers that float64 rounds: none is another number."""

import numpy as np
import pytest
import torch

from anyrnn.errors import AnyRNNError
from anyrnn.sklearn import RecurrentClassifier, RecurrentForecaster, RecurrentRegressor
from anyrnn.workbench import from_arrays
from anyrnn.workbench.models import read
from anyrnn.workbench.plain import first_rounded

X = np.random.default_rng(0).integers(-8, 8, size=(12, 3, 1)).astype(np.float64)  # exact in any type
Y = ["a", "b"] * 6


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.int8, torch.float64])
@pytest.mark.parametrize("layout", ["strided", "sparse", "parameter"])
def test_tensors_of_any_type_and_layout_are_read(dtype: torch.dtype, layout: str) -> None:
    x = torch.from_numpy(X).to(dtype)
    if layout == "parameter":
        x = torch.nn.Parameter(x, requires_grad=dtype.is_floating_point)
    read = from_arrays(x.to_sparse() if layout == "sparse" else x, Y)
    for one, other in zip(read.train.x, from_arrays(X, Y).train.x, strict=True):
        assert torch.equal(one.double(), other)


def test_a_tensor_without_values_is_refused() -> None:
    with pytest.raises(AnyRNNError, match=r"^x: this tensor has no values to read: .*meta.*; expected one of numbers$"):
        from_arrays(torch.empty(12, 3, 1, device="meta"), Y)
    with pytest.raises(AnyRNNError, match=r"^RecurrentClassifier: X: this tensor has no values"):
        RecurrentClassifier().fit(torch.empty(12, 3, 1, device="meta"), Y)


def test_what_is_masked_is_missing_wherever_arrays_are_taken() -> None:
    masked = np.ma.masked_array(X, np.zeros_like(X, dtype=bool))
    masked[3, 1] = np.ma.masked
    one_by_one = [masked[k] for k in range(len(masked))]
    for x in (masked, one_by_one):
        with pytest.raises(AnyRNNError, match="'channel 1' is NaN at step 1"):
            from_arrays(x, Y)
        with pytest.raises(AnyRNNError, match=r"X\[3\]: 'channel 1' is NaN at step 1"):
            RecurrentClassifier().fit(x, Y)
        data = from_arrays(x, Y, missing="nan")
        assert sum(int(each.isnan().sum()) for part in data.parts for each in part.x) == 1
    with pytest.raises(AnyRNNError, match=r"x\[1\]: target 'target' is missing"):
        from_arrays(X, np.ma.masked_array(Y, np.arange(12) == 1))
    with pytest.raises(ValueError, match="Input y contains NaN"):
        RecurrentRegressor().fit(X, np.ma.masked_array(np.arange(12), np.arange(12) == 1))
    with pytest.raises(AnyRNNError, match="NaN"):
        RecurrentForecaster().fit(np.ma.masked_array(np.arange(40.0), np.arange(40) == 7))
    scaler = from_arrays(X, Y).scaler
    with pytest.raises(AnyRNNError, match="rnn: sequence 0 holds NaN"):
        read("rnn", 0, one_by_one[3], ["c"], scaler)
    other = torch.from_numpy(X[3]).to(torch.bfloat16).to_sparse()
    assert torch.equal(read("rnn", 0, other, ["c"], scaler), read("rnn", 0, X[3], ["c"], scaler))


def test_whole_numbers_that_float64_rounds_are_named() -> None:
    whole = (2**53 + np.arange(36)).reshape(12, 3)
    for x in (whole, torch.from_numpy(whole), whole.astype(np.uint64), whole.tolist()):
        notes = from_arrays(x, Y).notes
        assert any("9007199254740993 in x[0] is read as 9007199254740992" in note for note in notes)
    assert not any("rounded" in note for note in from_arrays(whole - 36, Y).notes)
    assert first_rounded(np.array([-(2**63), 2**63 - 1])) == (1,)
    assert first_rounded(np.array([2**64 - 1], dtype=np.uint64)) == (0,)
    assert first_rounded(np.array([2.0**60])) is None


def test_names_of_features_are_a_list() -> None:
    with pytest.raises(AnyRNNError, match="got feature_names='c', expected a list of names"):
        from_arrays(X, Y, feature_names="c")
