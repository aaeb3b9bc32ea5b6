"""Look inside a trained network: what its gates do at each step of a sequence, and how far its gradients reach."""

import inspect
import math
from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

import anyrnn
from anyrnn.cells import Cell
from anyrnn.workbench.charts import Point
from anyrnn.workbench.models import Model
from anyrnn.workbench.report import Gates
from anyrnn.workbench.sequences import Sequences

_RANGES: Mapping[object, tuple[float, float]] = {torch.sigmoid: (0.0, 1.0), torch.tanh: (-1.0, 1.0)}
_MOST_PANELS = 11  # of variables, beside the sequence and the output
_MOST_LAGS = 200
_SEQUENCES = 32


def gates(model: Model, part: Sequences, index: int) -> Gates:
    """Record what a trained network does over one sequence: its first layer, in the forward direction.

    Of a cell of this package the gates, by the letters of its equations, and the cell state where there is one; of
    another cell the local variables of its step that have as many numbers as the output. Then the output h.

    Args:
        model: The trained network.
        part: Sequences as read: the model's scaler is applied here.
        index: Which of them.
    """
    cell, x = model.layer.cell(0), model.scaler(part.x[index])
    if isinstance(cell, Cell):
        names = [name for name in (*cell.gates, "c") if name in model.layer.names]
        ranges = {name: _RANGES[f] for name, f in cell.activations.items() if name in names and f in _RANGES}
    else:
        given = inspect.signature(cell.forward).parameters
        names, ranges = [name for name in model.layer.names if name not in given], {}
    with torch.no_grad():
        output, _, *recorded = anyrnn.scan(cell, x.unsqueeze(1), record=names)
    records = recorded[0] if recorded else {}
    shown = {name: r[:, 0] for name, r in records.items() if r.shape == output.shape and r.is_floating_point()}
    shown = dict([*shown.items()][:_MOST_PANELS])
    if not isinstance(cell, Cell):
        ranges = {name: found for name, values in shown.items() if (found := _range_of(values)) is not None}
    y, predicted = part.y[index].item(), model.predict([part.x[index]])
    true, answer = (
        alike(y, predicted.values[0])
        if model.classes is None or predicted.labels is None
        else (model.classes[int(y)], predicted.labels[0])
    )
    return Gates(
        title=model.network.title,
        sequence=part.ids[index],
        true=true,
        predicted=answer,
        matrices={**shown, "h": output[:, 0]},
        ranges=ranges,
        inputs=x[:, : len(model.features)],  # without what is said of missing values
    )


def _range_of(values: Tensor) -> tuple[float, float] | None:
    """The range that values of a gate or a squashed state lie in, as far as they show it."""
    low, high = values.min(), values.max()
    if not -1 <= low <= high <= 1:
        return None
    return (0.0, 1.0) if low >= 0 else (-1.0, 1.0)


def flow(model: Model, part: Sequences) -> list[Point]:
    """Measure how far back the gradient reaches in a trained network: that of its last state at earlier ones.

    Args:
        model: The trained network: of its first layer the forward direction is measured, and the state that is h.
        part: Sequences as read, of which the first ones are taken.

    Returns:
        For each number of steps back the mean norm of the gradient, and twice more in the place of a range.
    """
    xs = [model.scaler(x) for x in part.x[:_SEQUENCES]]
    layer, lengths = model.layer, [len(x) for x in xs]
    found = anyrnn.gradient_flow(layer, pad_sequence(xs, batch_first=layer.batch_first), lengths=lengths)
    while isinstance(found, tuple):  # by layer, by state variable
        found = found[0]
    norms = found[0, :_MOST_LAGS].tolist()
    return [(lag, norm, norm, norm) for lag, norm in enumerate(norms) if math.isfinite(norm)]


def alike(*values: float) -> tuple[str, ...]:
    """Write numbers that are to be compared with as many decimals each: three digits of their difference, or more."""
    largest, apart = max(map(abs, values)), max(values) - min(values)
    if largest == 0 or not math.isfinite(apart):
        return tuple(f"{value:.4g}" for value in values)
    digits = min(17, max(4, math.ceil(math.log10(largest / apart)) + 3) if apart else 4)
    decimals = digits - 1 - math.floor(math.log10(largest))
    form = f".{max(decimals, 0)}f" if -6 <= decimals <= 9 else f".{digits}g"
    return tuple(f"{value:{form}}" for value in values)
