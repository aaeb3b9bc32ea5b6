"""Sequences that are in memory: arrays (n, T, C), lists of arrays (T, C), and PyTorch's datasets."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils import data as torch_data

from anyrnn.errors import AnyRNNError
from anyrnn.workbench.data import Choices, Dataset, dataset_of
from anyrnn.workbench.gaps import Gaps, note_on_padding, without_padding
from anyrnn.workbench.parsed import Missing, Parsed, Task, Value
from anyrnn.workbench.plain import as_numpy, first_rounded

_FORMS = "an array (n, T, C), an array (n, T) of series with one channel, or a list of n arrays (T, C)"


def from_arrays(
    x: Any,
    y: Any = None,
    *,
    test: Any = None,
    ids: Sequence[Any] | None = None,
    groups: Sequence[Any] | None = None,
    feature_names: Sequence[str] | None = None,
    target: str = "target",
    channels_first: bool = False,
    task: Task | None = None,
    test_fraction: float = 0.3,
    seed: int = 0,
    missing: str | float | Sequence[str | float] | None = None,
    validation: float = 0.2,
    gaps: Gaps = "fill",
) -> Dataset:
    """Take sequences and targets that are in memory, and split them as `load` does.

    Steps at the end of a sequence in which every channel is NaN are padding, as in tslearn and aeon. A NaN before them
    is missing.

    >>> import numpy as np
    >>> x = np.random.default_rng(0).normal(size=(20, 8, 3))
    >>> x[0, 5:] = np.nan
    >>> data = from_arrays(x, ["up", "down"] * 10)
    >>> min(len(each) for part in data.parts for each in part.x), data.classes
    (5, ('down', 'up'))

    Args:
        x: An array or tensor (n, T, C), or (n, T) of series with one channel; or a list of n arrays (T, C), each of a
            length of its own; or a PyTorch dataset of pairs (sequence, target), and no y then.
        y: The class or the number of each sequence (n,).
        test: The test part, (x, y) or a PyTorch dataset. None: it is split off.
        ids: Names of the sequences. None: 0, 1, and so on.
        groups: As for `load`: what each sequence is of (an engine, a patient). Sequences of one group are in one part.
        feature_names: Names of the channels.
        target: The name of what is predicted.
        channels_first: Sequences are (C, T), as in aeon and sktime ("numpy3D", "np-list"), and not (T, C).
        task: As for `load`; so are all arguments below.
        test_fraction: The share of the sequences in the test part, where we split.
        seed: Which split.
        missing: What stands for a missing value beside NaN; "nan" for NaN alone. Without it NaN is refused.
        validation: The share of the training part to choose the epoch by.
        gaps: What a network is told of missing values.

    Raises:
        AnyRNNError: The data cannot be used as it is.
    """
    chosen = Choices(task, test_fraction, seed, missing, validation, gaps, caller="from_arrays")
    if isinstance(feature_names, str):
        raise AnyRNNError(f"from_arrays: got feature_names={feature_names!r}, expected a list of names")
    names = None if feature_names is None else tuple(map(str, feature_names))
    own = _parsed("x", x, y, names, target, chosen.absent, channels_first)
    own = _named(own, ids, groups)

    def given(_: Parsed) -> tuple[Parsed | None, str]:
        if test is None:
            return None, ""
        unseen, truth = test if isinstance(test, tuple | list) and len(test) == 2 else (test, None)
        found = _parsed("test x", unseen, truth, own.features, target, chosen.absent, channels_first)
        return found, "the test part was given"

    return dataset_of(own, given, chosen, name="arrays")


def _parsed(
    name: str,
    x: Any,
    y: Any,
    features: tuple[str, ...] | None,
    target: str,
    missing: Missing | None,
    channels_first: bool,
) -> Parsed:
    if isinstance(x, torch_data.Dataset):
        if y is not None:
            raise AnyRNNError(f"{name}: a PyTorch dataset gives the targets itself; leave out y")
        x, y = _of_dataset(name, x)
    several = [_numbers(f"{name}[{k}]", each) for k, each in enumerate(_several(name, x))]
    kept, cut = read_arrays(name, several, missing, channels_first=channels_first, features=features)
    if y is None:
        raise AnyRNNError(f"{name}: there are no targets; expected y, the class or the number of each sequence")
    targets = _targets(name, y)
    if len(targets) != len(kept):
        raise AnyRNNError(f"{name}: got {len(kept)} sequences and {len(targets)} targets, expected one for each")
    features = features_of(kept[0].shape[1]) if features is None else features
    ids = tuple(f"{name[:-1]}{k}" for k in range(len(kept)))  # "3" and "test 3"
    return Parsed(
        path=name,
        features=features,
        x=kept,
        ids=ids,
        where=tuple(f"{name}[{k}]" for k in range(len(kept))),
        target=target,
        targets=targets,
        task=None,
        notes=(*note_on_padding(cut), *_notes_on_rounding(name, several)),
    )


def _notes_on_rounding(name: str, given: Sequence[NDArray[Any]]) -> Iterator[str]:
    """Where the first whole number is that float64 has not."""
    for k, whole in enumerate(given):
        at = first_rounded(whole)
        if at is not None:
            yield (
                f"{name} holds whole numbers beyond 2**53, which are rounded: {whole[at]} in {name}[{k}] is read as "
                f"{int(float(whole[at]))}; take a constant off them if the last digits matter"
            )
            return


def features_of(width: int, first: int = 1) -> tuple[str, ...]:
    """The names of channels that have none."""
    return tuple(f"channel {k}" for k in range(first, first + width))


def read_arrays(
    name: str,
    given: Sequence[Any],
    missing: Missing | None,
    *,
    channels_first: bool = False,
    features: Sequence[str] | None = None,
) -> tuple[tuple[Tensor, ...], list[int]]:
    """Sequences (T, C) from arrays, without padding, and how many steps of padding each had; estimators read so, too.

    Args:
        name: What the caller calls them.
        given: An array (T, C), or (T,) of one channel, for each sequence.
        missing: What stands for a missing value, which is NaN in the result. None: NaN is refused but for padding.
        channels_first: They are (C, T).
        features: The names of the channels, for messages. None: numbers.

    Raises:
        AnyRNNError: for what is no array of numbers, for channels that differ, and for what is not finite.
    """
    whole = [_array(f"{name}[{k}]", each, channels_first) for k, each in enumerate(given)]
    if not whole:
        raise AnyRNNError(f"{name}: got no sequences, expected at least one")
    width = whole[0].shape[1]
    for k, array in enumerate(whole):
        if array.shape[1] != width:
            raise AnyRNNError(
                f"{name}[{k}]: got {array.shape[1]} channels, expected {width} as in {name}[0]; sequences may differ "
                f"in their steps only, the {'last' if channels_first else 'first'} dimension"
            )
    features = features_of(width) if features is None else tuple(features)
    if len(features) != width or len(set(features)) < width:
        raise AnyRNNError(
            f"{name}: got {width} channels and the feature names {', '.join(features)}, expected a different name for "
            "each channel"
        )
    kept = [
        _with_gaps(f"{name}[{k}]", without_padding(torch.from_numpy(each)), features, missing)
        for k, each in enumerate(whole)
    ]
    return tuple(kept), [len(each) - len(rest) for each, rest in zip(whole, kept, strict=True)]


def _named(own: Parsed, ids: Sequence[Any] | None, groups: Sequence[Any] | None) -> Parsed:
    for what, names in (("ids", ids), ("groups", groups)):
        if names is not None and len(names) != len(own.x):
            raise AnyRNNError(f"{what}: got {len(names)} for {len(own.x)} sequences, expected one for each")
    if ids is not None:
        own = replace(own, ids=tuple(map(str, ids)))
        if len(set(own.ids)) < len(own.ids):
            raise AnyRNNError("ids: two sequences have one name, expected different ones")
    return own if groups is None else replace(own, groups=tuple(map(str, groups)))


def _of_dataset(name: str, dataset: Any) -> tuple[list[Any], list[Any]]:
    items = [dataset[k] for k in range(len(dataset))] if hasattr(dataset, "__len__") else list(dataset)
    for k, item in enumerate(items):
        if not (isinstance(item, tuple | list) and len(item) == 2):
            raise AnyRNNError(
                f"{name}[{k}]: the PyTorch dataset gives {type(item).__name__}, expected pairs (sequence, target)"
            )
    return [x for x, _ in items], [y.item() if isinstance(y, Tensor) and y.numel() == 1 else y for _, y in items]


def _several(name: str, x: Any) -> Sequence[Any]:
    """The sequences one by one."""
    if isinstance(x, Tensor | np.ma.MaskedArray):
        x = as_numpy(name, x)
    if isinstance(x, np.ndarray) and x.dtype != object:
        if x.ndim not in {2, 3}:
            raise AnyRNNError(f"{name}: got an array of shape {x.shape}, expected {_FORMS}")
        return list(x)
    if not isinstance(x, list | tuple | np.ndarray):
        raise AnyRNNError(
            f"{name}: got {type(x).__name__}, expected {_FORMS}, or a PyTorch dataset; a data frame with a row for "
            "each step goes to load(frame, id_column=..., target_column=...)"
        )
    return list(x)


def _numbers(place: str, x: Any) -> NDArray[Any]:
    """An array of numbers of any type and shape."""
    try:
        array = as_numpy(place, x)
        if array.dtype.kind == "O":  # of numbers perhaps, or of text
            array = array.astype(np.float64)
        if array.dtype.kind not in "fiub":
            raise TypeError(f"it holds {array.dtype}")
    except (TypeError, ValueError) as cause:
        raise AnyRNNError(f"{place}: this is no array of numbers: {cause}; expected (T, C)") from cause
    return array


def _array(place: str, x: Any, channels_first: bool) -> NDArray[Any]:
    """A sequence (T, C), float64, or float32 if it is that."""
    array = _numbers(place, x)
    array = array[:, np.newaxis] if array.ndim == 1 else array.T if channels_first and array.ndim == 2 else array
    if array.ndim != 2 or not array.size:
        raise AnyRNNError(f"{place}: got shape {array.shape}, expected (T, C), at least one step and one channel")
    # A view where nothing has to be converted: a large array in float32 is not copied.
    return np.require(array, np.float32 if array.dtype == np.float32 else np.float64, ["C", "W"])


def _with_gaps(place: str, x: Tensor, features: Sequence[str], missing: Missing | None) -> Tensor:
    """A sequence with NaN where a value is missing, or refused."""
    if missing is not None:
        absent = torch.from_numpy(missing.mask(x.double().numpy()))
        x = x.masked_fill(absent, torch.nan) if absent.any() else x
    wrong = x.isinf() if missing is not None else ~x.isfinite()
    if wrong.any():
        step, k = wrong.nonzero()[0].tolist()
        value, cure = f"{x[step, k]:g}", ""
        if x[step, k].isnan():
            value, cure = "NaN", "; missing='nan' has missing values filled, and gaps='mask' tells of them, too"
        raise AnyRNNError(
            f"{place}: {features[k]!r} is {value} at step {step}, expected a finite number: fill it in, or leave the "
            f"sequence out{cure}"
        )
    return x


def _targets(name: str, y: Any) -> tuple[Value, ...]:
    """The targets as Python has them."""
    array = as_numpy(f"{name}: y", y)
    if array.ndim != 1:
        cure = "; of one-hot classes take y.argmax(1)" if array.ndim == 2 else ""
        raise AnyRNNError(f"{name}: y has shape {array.shape}, expected (n,), a class or a number each{cure}")
    values = array.tolist() if array.dtype != object else [v.item() if isinstance(v, np.generic) else v for v in array]
    for k, value in enumerate(values):
        if not isinstance(value, str | bool | int | float | None):
            raise AnyRNNError(f"y[{k}] is a {type(value).__name__}, expected a class (text, a number) or a number")
    return tuple(None if isinstance(value, float) and math.isnan(value) else value for value in values)
