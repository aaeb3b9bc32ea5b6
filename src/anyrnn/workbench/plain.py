"""Arrays as others hold them, made plain ones of NumPy: tensors of any type and layout, and masked arrays."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from anyrnn.errors import AnyRNNError

_HAS_NO_SUCH = (torch.bfloat16, torch.float16)  # of the first NumPy has none; to float64 both are exact
EXACT = 1 << 53  # whole numbers beyond are rounded by float64


def as_numpy(place: str, given: Any) -> NDArray[Any]:
    """An array of numbers or text; NaN, or None among texts, where a masked one is masked.

    Args:
        place: What it is, for messages.
        given: A tensor, or whatever NumPy makes an array of.

    Raises:
        AnyRNNError: for a tensor whose values cannot be had (on the meta device).
        TypeError, ValueError: by NumPy, for what it makes no array of.
    """
    if isinstance(given, Tensor):
        try:
            dense = given.detach().to_dense().cpu()
            return (dense.double() if dense.dtype in _HAS_NO_SUCH else dense).numpy()
        except (NotImplementedError, RuntimeError, TypeError) as cause:
            reason = str(cause).split("\n", maxsplit=1)[0]
            raise AnyRNNError(
                f"{place}: this tensor has no values to read: {reason}; expected one of numbers"
            ) from cause
    if isinstance(given, np.ma.MaskedArray) and given.mask.any():
        of_numbers = given.dtype.kind in "fiub"
        plain = np.array(given.data, dtype=np.float64 if of_numbers else object)
        plain[given.mask] = np.nan if of_numbers else None
        return plain
    return np.asarray(given)


def first_rounded(whole: NDArray[Any]) -> tuple[int, ...] | None:
    """Where the first of whole numbers stands that float64 has not; None if it has all of them, or they are others."""
    if whole.dtype.kind not in "iu" or whole.dtype.itemsize < 8 or not whole.size:
        return None
    beyond = np.argwhere((whole > EXACT) | (whole < -EXACT))
    return next((at for at in map(tuple, beyond.tolist()) if int(whole[at]) != int(float(whole[at]))), None)
