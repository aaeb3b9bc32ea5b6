"""What an estimator is given, as sequences (T, C): arrays (n, T, C) and (n, T), lists of arrays, tensors and frames.

scikit-learn checks tables; what it has no notion of, channels, sequences of their own lengths, padding and gaps, is
checked as the workbench checks arrays.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.utils.validation import check_array, validate_data
from torch import Tensor

from anyrnn.errors import AnyRNNError
from anyrnn.workbench.arrays import read_arrays
from anyrnn.workbench.parsed import Missing
from anyrnn.workbench.plain import as_numpy

_FORMS = "an array (n, T, C), an array (n, T) of series with one channel, or a list of n arrays (T_i, C)"
# Other types are converted to the first; NaN is looked at when it is known which is padding.
_AS_FLOATS: dict[str, Any] = {"dtype": [np.float64, np.float32], "ensure_all_finite": "allow-nan"}


def read_sequences(estimator: Any, X: Any, *, reset: bool) -> tuple[Tensor, ...]:
    """Check X, and return its sequences, (T_i, C) each.

    Args:
        estimator: Whose X it is. It notes `n_features_in_`: the columns of a table, the channels of anything else.
        X: See `_FORMS`.
        reset: Whether this is the X of `fit`; else it has to fit to that one.

    Raises:
        ValueError: if it cannot be used as it is, by scikit-learn for a table and as `AnyRNNError` for the others.
    """
    if isinstance(X, Tensor | np.ma.MaskedArray):
        X = as_numpy(f"{type(estimator).__name__}: X", X)
    if _is_list_of_arrays(X):
        return _channels_checked(estimator, _read(estimator, X), reset=reset)
    if len(getattr(X, "shape", ())) >= 3:
        return _channels_checked(estimator, _from_cube(estimator, X), reset=reset)
    return _from_table(estimator, X, reset=reset)


def _read(estimator: Any, sequences: Sequence[Any]) -> tuple[Tensor, ...]:
    found, _ = read_arrays(f"{type(estimator).__name__}: X", sequences, absent_in(estimator))
    return found


def _is_list_of_arrays(X: Any) -> bool:
    """Whether X is a list of sequences, and not a table in lists, [[1, 2], [3, 4]]."""
    if isinstance(X, np.ndarray):
        if X.dtype != object or X.ndim != 1:
            return False
    elif not isinstance(X, list | tuple):
        return False
    if not len(X):
        return False
    if len(getattr(X[0], "shape", ())) > 0 or (_is_list(X[0]) and len(X[0]) > 0 and _is_list(X[0][0])):
        return True
    return all(map(_is_list, X)) and len({len(row) for row in X}) > 1  # series of their own lengths


def _is_list(value: Any) -> bool:
    return isinstance(value, list | tuple)


def _from_table(estimator: Any, X: Any, *, reset: bool) -> tuple[Tensor, ...]:
    """An array (n, T): series of one channel."""
    if reset:
        table = validate_data(estimator, X, **_AS_FLOATS)
        estimator._channels, estimator._columns = 1, table.shape[1]
    elif estimator._columns is not None:
        try:
            table = validate_data(estimator, X, reset=False, **_AS_FLOATS)
        except ValueError as cause:
            if "features as input" not in str(cause):
                raise
            raise AnyRNNError(f"{cause}: series of other lengths are taken as an array (n, T, 1), or a list") from cause
    else:
        table = check_array(X, **_AS_FLOATS, estimator=estimator, input_name="X")
        if estimator._channels != 1:
            raise AnyRNNError(
                f"{type(estimator).__name__}: X is a table of shape {table.shape}, n series of one channel; expected "
                f"{estimator._channels} channels as in fit: an array (n, T, {estimator._channels}), or a list of "
                f"arrays (T_i, {estimator._channels})"
            )
    return _read(estimator, table)


def _from_cube(estimator: Any, X: Any) -> tuple[Tensor, ...]:
    cube = check_array(X, **_AS_FLOATS, allow_nd=True, estimator=estimator, input_name="X")
    if cube.ndim != 3 or not cube.shape[1] or not cube.shape[2]:
        raise AnyRNNError(f"{type(estimator).__name__}: X has shape {cube.shape}, expected {_FORMS}")
    return _read(estimator, cube)


def _channels_checked(estimator: Any, x: tuple[Tensor, ...], *, reset: bool) -> tuple[Tensor, ...]:
    channels = x[0].shape[1]
    if reset:
        if hasattr(estimator, "feature_names_in_"):  # of a table that was fitted before
            del estimator.feature_names_in_
        estimator.n_features_in_ = estimator._channels = channels
        estimator._columns = None
    elif channels != estimator._channels:
        raise AnyRNNError(
            f"{type(estimator).__name__}: X has {channels} channels, expected {estimator._channels} as in fit"
        )
    return x


def absent_in(estimator: Any) -> Missing | None:
    """What is missing, by the estimator's `missing` and `gaps`; None: nothing may be, but for padding."""
    return Missing.given(estimator.missing, estimator.gaps)


def read_weights(estimator: Any, sample_weight: Any, count: int) -> NDArray[np.float64]:
    """How much each of `count` sequences counts (n,), at least 0.

    Raises:
        AnyRNNError: for weights of another number, or such as cannot be used.
    """
    name = type(estimator).__name__
    if sample_weight is None:
        return np.ones(count)
    weights = np.asarray(sample_weight, dtype=np.float64)
    if weights.ndim == 0:
        weights = np.full(count, weights)
    if weights.shape != (count,):
        raise AnyRNNError(
            f"{name}: sample_weight has shape {weights.shape}, expected ({count},), one for each sequence of X"
        )
    if not np.isfinite(weights).all() or weights.min() < 0:
        raise AnyRNNError(f"{name}: sample_weight holds NaN, infinity or a number below 0, expected weights from 0 on")
    if not weights.any():
        raise AnyRNNError(f"{name}: every sample weight is zero, expected some above it, to learn from")
    return weights


def read_groups(estimator: Any, groups: Any, count: int) -> tuple[str, ...] | None:
    """The group of each sequence as text; None if there are none.

    Raises:
        AnyRNNError: if there are not as many.
    """
    if groups is None:
        return None
    names = np.asarray(groups)
    if names.shape != (count,):
        raise AnyRNNError(
            f"{type(estimator).__name__}: groups has shape {names.shape}, expected ({count},), one for each sequence"
        )
    return tuple(map(str, names.tolist()))
