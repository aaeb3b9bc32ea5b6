"""Look inside a trained network: what its gates do at each step of one real sequence.

A copy of the cell is run whose activation functions write down what they return. The recurrence itself is
`anyrnn.scan`'s, on the reference engine, so that nothing is computed here a second time.
"""

import copy
import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

import anyrnn
from anyrnn.cells import Cell
from anyrnn.workbench.models import Model
from anyrnn.workbench.report import Gates
from anyrnn.workbench.sequences import Sequences

_RANGES: Mapping[Callable[[Tensor], Tensor], tuple[float, float]] = {torch.sigmoid: (0.0, 1.0), torch.tanh: (-1.0, 1.0)}


def gates(model: Model, part: Sequences, index: int) -> Gates | None:
    """Record the gates of a trained network over one sequence.

    They are those of its first layer, in the forward direction: by the letters of the cell's equations, then the
    tanh of the cell state where there is one, then the output h.

    Args:
        model: The trained network.
        part: Sequences as read: the model's scaler is applied here.
        index: Which of them.

    Returns:
        The gates, or None for a cell of the user's own, which does not name its activations.
    """
    cell = copy.copy(model.layer.cell(0))
    if not isinstance(cell, Cell):
        return None
    functions = cell.activations
    recorded: dict[str, list[Tensor]] = {name: [] for name in functions}
    cell.activations = {name: _recorder(functions[name], recorded[name]) for name in functions}
    x = model.scaler(part.x[index])
    with torch.no_grad(), anyrnn.engine("reference"):
        output, _ = anyrnn.scan(cell, x.unsqueeze(1))
    # A cell that is new to `scan` is tried on a few rows first: the last T calls are the steps.
    steps = {name: torch.cat(calls[-len(x) :]) for name, calls in recorded.items()}
    shown = {name: "tanh(c)" if name == "h" and "h" not in cell.gates else name for name in steps}
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
        matrices={**{shown[name]: values for name, values in steps.items()}, "h": output[:, 0]},
        ranges={shown[name]: _RANGES[functions[name]] for name in steps if functions[name] in _RANGES},
        inputs=x,
    )


def _recorder(function: Callable[[Tensor], Tensor], calls: list[Tensor]) -> Callable[[Tensor], Tensor]:
    def record(x: Tensor) -> Tensor:
        calls.append(function(x))
        return calls[-1]

    return record


def alike(*values: float) -> tuple[str, ...]:
    """Write numbers that are to be compared with as many decimals each: three digits of their difference, or more."""
    largest, apart = max(map(abs, values)), max(values) - min(values)
    if largest == 0 or not math.isfinite(apart):
        return tuple(f"{value:.4g}" for value in values)
    digits = min(17, max(4, math.ceil(math.log10(largest / apart)) + 3) if apart else 4)
    decimals = digits - 1 - math.floor(math.log10(largest))
    form = f".{max(decimals, 0)}f" if -6 <= decimals <= 9 else f".{digits}g"
    return tuple(f"{value:{form}}" for value in values)
