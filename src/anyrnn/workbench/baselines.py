"""What a recurrent network has to beat: answers that do not look at the order of the steps, from scikit-learn."""

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from anyrnn.workbench.data import Dataset, Inputs
from anyrnn.workbench.sequences import moments
from anyrnn.workbench.train import score


@dataclass(frozen=True)
class Baseline:
    """A name and its score on the test part: accuracy for classes, root mean squared error for a number."""

    name: str
    score: float


def baselines(dataset: Dataset) -> tuple[Baseline, ...]:
    """Score the simplest answers on the test part, fitted on all that is not the test part: they choose no epoch.

    The majority class (or the mean target) says what knowing nothing about a sequence gives. The nearest neighbour
    on summary statistics (per feature: mean, standard deviation, minimum, maximum, first and last value; and the
    length; all standardised) says how far one comes without recurrence.
    """
    # scikit-learn takes a second to load, which `anyrnn --help` shall not wait for.
    from sklearn.dummy import DummyClassifier, DummyRegressor  # noqa: PLC0415
    from sklearn.neighbors import KNeighborsClassifier, KNeighborsRegressor  # noqa: PLC0415
    from sklearn.pipeline import make_pipeline  # noqa: PLC0415
    from sklearn.preprocessing import StandardScaler  # noqa: PLC0415

    neighbour = "1-nearest neighbour on summary statistics"
    if dataset.classes is not None:
        models = {
            "majority class": DummyClassifier(strategy="most_frequent"),
            neighbour: KNeighborsClassifier(n_neighbors=1),
        }
    else:
        models = {"mean": DummyRegressor(strategy="mean"), neighbour: KNeighborsRegressor(n_neighbors=1)}
    # What the networks get: with the offset of a Unix time left in, its deviation would be lost in the squares.
    scaler, fitted = dataset.scaler, dataset.train_and_validation
    seen, unseen = (
        summary_statistics(replace(part, x=tuple(scaler(x) for x in part.x))) for part in (fitted, dataset.test)
    )
    mean, std = (0.0, 1.0) if dataset.classes is not None else moments(fitted.y.double().numpy())
    y = fitted.y if dataset.classes is not None else (fitted.y.double() - mean) / std
    scores: list[Baseline] = []
    for name, model in models.items():
        predicted = make_pipeline(StandardScaler(), model).fit(seen, y.numpy()).predict(unseen)
        scores.append(Baseline(name, score((predicted * std + mean).tolist(), dataset.test.y, dataset.classes)))
    return tuple(scores)


def summary_statistics(sequences: Inputs) -> NDArray[np.float64]:
    """A row of 6 I + 1 numbers for each sequence, whatever its length: (N, 6 I + 1)."""
    rows = []
    for x in sequences.x:
        steps = x.double()  # (T, I)
        std = steps.std(0, correction=0)
        parts = (steps.mean(0), std, steps.amin(0), steps.amax(0), steps[0], steps[-1])
        rows.append(torch.cat([*parts, torch.tensor([float(len(steps))])]))
    return torch.stack(rows).numpy()
