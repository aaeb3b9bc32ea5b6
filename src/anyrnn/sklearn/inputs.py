"""What an estimator is given, as sequences (T, C): arrays (n, T, C) and (n, T), lists of arrays, tensors and frames.

scikit-learn checks tables; what it has no notion of, channels and sequences of their own lengths, is checked here.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.utils.validation import check_array, validate_data
from torch import Tensor

from anyrnn.errors import AnyRNNError

_FORMS = "an array (n, T, C), an array (n, T) of series with one channel, or a list of n arrays (T_i, C)"
_FLOATS = [np.float64, np.float32]  # others are converted to the first


def read_sequences(estimator: Any, X: Any, *, reset: bool) -> tuple[Tensor, ...]:
    """Check X, and return its sequences, (T_i, C) each.

    Args:
        estimator: Whose X it is. It notes `n_features_in_`: the columns of a table, the channels of anything else.
        X: See `_FORMS`.
        reset: Whether this is the X of `fit`; else it has to fit to that one.

    Raises:
        ValueError: if it cannot be used as it is, by scikit-learn for a table and as `AnyRNNError` for the others.
    """
    if isinstance(X, Tensor):
        X = X.detach().cpu().numpy()
    name = type(estimator).__name__
    if _is_list_of_arrays(X):
        return _channels_checked(estimator, _from_list(name, X), reset=reset)
    if len(getattr(X, "shape", ())) >= 3:
        return _channels_checked(estimator, _from_cube(estimator, X), reset=reset)
    return _from_table(estimator, X, reset=reset)


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
        table = validate_data(estimator, X, dtype=_FLOATS)
        estimator._channels, estimator._columns = 1, table.shape[1]
    elif estimator._columns is not None:
        try:
            table = validate_data(estimator, X, dtype=_FLOATS, reset=False)
        except ValueError as cause:
            if "features as input" not in str(cause):
                raise
            raise AnyRNNError(f"{cause}: series of other lengths are taken as an array (n, T, 1), or a list") from cause
    else:
        table = check_array(X, dtype=_FLOATS, estimator=estimator, input_name="X")
        if estimator._channels != 1:
            raise AnyRNNError(
                f"{type(estimator).__name__}: X is a table of shape {table.shape}, n series of one channel; expected "
                f"{estimator._channels} channels as in fit: an array (n, T, {estimator._channels}), or a list of "
                f"arrays (T_i, {estimator._channels})"
            )
    return tuple(_tensor(table).unsqueeze(2))


def _from_cube(estimator: Any, X: Any) -> tuple[Tensor, ...]:
    cube = check_array(X, dtype=_FLOATS, allow_nd=True, estimator=estimator, input_name="X")
    if cube.ndim != 3 or not cube.shape[1] or not cube.shape[2]:
        raise AnyRNNError(f"{type(estimator).__name__}: X has shape {cube.shape}, expected {_FORMS}")
    return tuple(_tensor(cube))


def _from_list(name: str, X: Sequence[Any]) -> tuple[Tensor, ...]:
    """Arrays (T_i, C), or (T_i,) of one channel."""
    found: list[Tensor] = []
    for k, given in enumerate(X):
        try:
            array = np.asarray(given.detach().cpu() if isinstance(given, Tensor) else given)
            if np.iscomplexobj(array):
                raise ValueError("complex numbers are not supported")
            x = _tensor(array)
        except (TypeError, ValueError) as cause:
            raise AnyRNNError(f"{name}: X[{k}] is no array of numbers: {cause}; expected {_FORMS}") from cause
        if x.dim() == 1:
            x = x.unsqueeze(1)
        if x.dim() != 2 or not x.numel():
            raise AnyRNNError(f"{name}: X[{k}] has shape {array.shape}, expected (steps, channels), of each at least 1")
        if x.shape[1] != (found[0] if found else x).shape[1]:
            raise AnyRNNError(
                f"{name}: X[{k}] has {x.shape[1]} channels, expected {found[0].shape[1]} as in X[0]: the sequences "
                "may differ in their steps, the first dimension, and not in their channels"
            )
        wild = (~x.isfinite()).nonzero()
        if len(wild):
            step, channel = wild[0].tolist()
            raise AnyRNNError(
                f"{name}: X[{k}] holds NaN or infinity, first at step {step}, channel {channel}; expected finite "
                "numbers: fill or drop them first"
            )
        found.append(x)
    return tuple(found)


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


def _tensor(array: NDArray[Any]) -> Tensor:
    """As float32 if it is that, else as float64; it is copied if torch cannot write to it, of which it would warn."""
    dtype = np.float32 if array.dtype == np.float32 else np.float64
    return torch.from_numpy(np.require(array, dtype=dtype, requirements=["C", "W"]))


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
