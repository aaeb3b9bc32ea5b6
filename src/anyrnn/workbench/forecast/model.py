"""A forecaster: a recurrent layer that reads a series, and a head that says how it goes on.

Numbers are scaled for it: each series by the mean and deviation of its training part. What is forecast is how far a
value will be from a naive forecast, so that an untrained network forecasts about as well as that one.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from anyrnn.errors import AnyRNNError
from anyrnn.layers import Layer
from anyrnn.workbench.models import Network, stacked

Head = Literal["direct", "recursive"]
HEADS: tuple[Head, ...] = get_args(Head)


@dataclass(frozen=True)
class Form:
    """What a forecaster reads and says.

    Attributes:
        horizon: h.
        past, future, static: The numbers of covariates of each kind.
        levels: The levels of the quantiles, rising, 0.5 among them: its quantile is the forecast. With (0.5,) there
            are no others; with () the forecast is a mean, trained by squared errors.
        head: "direct": all steps of a forecast at once, from the state at the origin and what is known ahead (Wen et
            al., 2017, arXiv:1711.11053, a local and a global part in one). "recursive": one step at a time, each read
            as the next value.
        season: The base of a forecast: how many steps back the value is from which it is how far away; 1 is the last
            value. 0: no base.
    """

    horizon: int
    past: int
    future: int
    static: int
    levels: tuple[float, ...]
    head: Head
    season: int

    @property
    def outputs(self) -> int:
        """The numbers for a step of a forecast."""
        return max(1, len(self.levels))

    @property
    def steps(self) -> int:
        """The steps that the head gives at once."""
        return self.horizon if self.head == "direct" else 1

    @property
    def features(self) -> int:
        """The numbers that are read at a step: the value, covariates of the step, what is known of the next one."""
        return 1 + self.past + 2 * self.future + self.static


class Forecaster(nn.Module):
    """A recurrent layer and a head.

    Args:
        layer: The layer, in one direction, of `form.features` features.
        form: What it reads and says.
        dropout: Between the layer and the head, in training.
    """

    def __init__(self, layer: Layer, form: Form, dropout: float = 0.0) -> None:
        super().__init__()
        if layer.bidirectional:
            raise AnyRNNError(
                f"{type(layer).__name__}: a bidirectional layer reads what it is to forecast; expected one direction"
            )
        if not isinstance(layer.output_size, int):
            raise AnyRNNError(f"{type(layer).__name__}: got outputs {layer.output_size}, expected (B, features)")
        self.layer, self.form, self.dropout = layer, form, nn.Dropout(dropout)
        ahead = form.steps * form.future
        self.head = nn.Linear(layer.output_size + ahead, form.steps * form.outputs)
        nn.init.zeros_(self.head.weight)  # begins as the naive forecast
        nn.init.zeros_(self.head.bias)

    def read(self, steps: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        """Read steps (T, B, features): the output of the layer, and the state."""
        output, state = self.layer(steps, state)
        return self.dropout(output), state

    def say(self, output: Tensor, ahead: Tensor) -> Tensor:
        """From outputs (..., H) and what is known ahead (..., steps, F) to differences from the base.

        Returns:
            (..., steps, outputs).
        """
        joined = torch.cat((output, ahead.flatten(-2)), dim=-1)
        return self.head(joined).unflatten(-1, (self.form.steps, self.form.outputs))  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Windows:
    """Windows of series, scaled: L steps that are read, and as many that are known ahead as the last forecast takes.

    Attributes:
        y: (L, B): the values that are read.
        past: (L, B, P).
        future: (L + h, B, F): L steps that are read, and those of the forecast.
        static: (B, S).
    """

    y: Tensor
    past: Tensor
    future: Tensor
    static: Tensor

    def steps(self) -> Tensor:
        """What the layer reads, (L, B, features): at each step what is known of the next one as well."""
        L = len(self.y)
        static = self.static.expand(L, *self.static.shape)
        return torch.cat((self.y[..., None], self.past, self.future[:L], self.future[1 : L + 1], static), dim=-1)


def forecast(model: Forecaster, windows: Windows) -> Tensor:
    """Forecast from the end of windows: (B, h, outputs), scaled. Nothing of the horizon is read but what is ahead.

    A recursive forecaster reads its own median (or mean) as the next value, and of covariates of the past those of the
    last step that had some.
    """
    form, L = model.form, len(windows.y)
    output, state = model.read(windows.steps())
    if form.head == "direct":
        ahead = windows.future[L:].transpose(0, 1)  # (B, h, F)
        said = model.say(output[-1], ahead)
        return said + _base(form, windows.y, form.horizon).unsqueeze(-1)
    middle = form.levels.index(0.5) if form.levels else 0
    known, found, last = windows.y, [], output[-1]
    for k in range(form.horizon):
        said = model.say(last, windows.future[L + k].unsqueeze(1))[:, 0] + _base(form, known, 1)
        found.append(said)
        known = torch.cat((known, said[:, middle].unsqueeze(0)))
        if k + 1 < form.horizon:
            parts = (
                known[-1:, :, None], windows.past[-1:], windows.future[L + k : L + k + 1],
                windows.future[L + k + 1 : L + k + 2], windows.static.unsqueeze(0),
            )  # fmt: skip
            output, state = model.read(torch.cat(parts, dim=-1), state)
            last = output[-1]
    return torch.stack(found, dim=1)


def _base(form: Form, known: Tensor, count: int) -> Tensor:
    """The naive forecast (B, count) behind known values (L, B): the last season again, as far as it is known."""
    if form.season == 0:
        return known.new_zeros(known.shape[1], count)
    season = min(form.season, len(known))
    places = torch.arange(count) % season - season
    return known[len(known) + places].t()


def losses(model: Forecaster, windows: Windows, later: Tensor, first: int) -> Tensor:
    """The training loss of all forecasts from position `first` of windows on.

    Args:
        model: The forecaster.
        windows: Of L steps; `future` reaches h beyond.
        later: (h, B): the values behind the windows.
        first: The first position after whose reading there is a forecast, from 0.

    Returns:
        The mean over windows, positions and steps: quantile losses, or squared errors.
    """
    form, L = model.form, len(windows.y)
    output, _ = model.read(windows.steps())
    everything = torch.cat((windows.y, later[: form.steps]))
    index = torch.arange(first, L)[:, None] + 1 + torch.arange(form.steps)  # (N, steps)
    target = everything[index].transpose(1, 2)  # (N, B, steps)
    ahead = windows.future[index].transpose(1, 2)  # (N, B, steps, F)
    said = model.say(output[first:], ahead)  # (N, B, steps, outputs)
    if form.season:
        season = min(form.season, first + 1)
        behind = torch.arange(first, L)[:, None] + 1 + torch.arange(form.steps) % season - season
        said = said + everything[behind].transpose(1, 2).unsqueeze(-1)
    error = target.unsqueeze(-1) - said
    if not form.levels:
        return error.square().mean()
    level = error.new_tensor(form.levels)
    return torch.maximum(level * error, (level - 1) * error).mean() * 2


@dataclass(frozen=True)
class TrainedForecaster:
    """A trained forecaster with all that it takes to forecast from values as read.

    Attributes:
        network: Which one.
        hidden_size: H.
        context: L, how many steps are read.
        module: The trained model.
        target: The name of what is forecast.
        names: The names of the covariates: past, future, static.
        scale: Mean and deviation of the covariates, in the order past, future, static: (2, P + F + S).
        seed: Of the training run.
        id_column: The column that named the series of the table that it was trained on, if one did.
        time_column: The column that sorted their steps, if one did.
        target_columns: Of a wide table the column of each series; () of a long one.
    """

    network: Network
    hidden_size: int
    context: int
    module: Forecaster
    target: str
    names: tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]
    scale: tuple[tuple[float, ...], tuple[float, ...]]
    seed: int
    id_column: str | None = None
    time_column: str | None = None
    target_columns: tuple[str, ...] = ()

    @property
    def layer(self) -> Layer:
        """The recurrent layer."""
        return self.module.layer


def build(network: Network, form: Form, hidden_size: int, dropout: float = 0.0, layers: int = 1) -> Forecaster:
    """Make the untrained model.

    Raises:
        AnyRNNError: if the network reads in both directions.
    """
    return Forecaster(stacked(network, form.features, hidden_size, layers), form, dropout)


def check_levels(levels: Sequence[float]) -> None:
    """Refuse levels of quantiles that are none, or without the median."""
    fine = all(isinstance(v, int | float) and 0 < v < 1 for v in levels) and list(levels) == sorted(set(levels))
    if not fine or (levels and 0.5 not in levels):
        raise AnyRNNError(f"quantiles: got {list(levels)}, expected rising numbers between 0 and 1, 0.5 among them")
