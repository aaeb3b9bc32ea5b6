"""The baselines are honest: known answers, fitted on training data, no help from scale."""

from dataclasses import replace

import pytest
import torch

from anyrnn.workbench.baselines import baselines, summary_statistics
from anyrnn.workbench.data import Dataset, Inputs, Sequences, load

VOWELS = load("japanese-vowels", validation=0)
NEIGHBOUR = "1-nearest neighbour on summary statistics"


def scores(dataset: Dataset) -> dict[str, float]:
    return {baseline.name: baseline.score for baseline in baselines(dataset)}


def numbers(train: list[float], test: list[float]) -> Dataset:
    """Sequences of one step whose only feature is the number to predict."""
    parts = [
        Sequences(tuple(torch.tensor([[v]]) for v in values), torch.tensor(values), tuple(f"{name}{v}" for v in values))
        for name, values in (("train", train), ("test", test))
    ]
    return Dataset("numbers", ("a",), None, "y", parts[0], parts[1], "made up")


def test_baselines_of_japanese_vowels() -> None:
    # Training has 30 utterances of each speaker, so the "majority" is the first: 31 of 370 in the test part. The
    # neighbour was measured; this pins it, so that nobody weakens the rival of the networks by accident.
    assert scores(VOWELS) == pytest.approx({"majority class": 31 / 370, NEIGHBOUR: 356 / 370})


def test_baselines_of_a_number_are_root_mean_squared_errors() -> None:
    assert scores(numbers([0.0, 1.0, 5.0], [1.25, 4.0])) == pytest.approx(
        {"mean": ((0.75**2 + 2**2) / 2) ** 0.5, NEIGHBOUR: ((0.25**2 + 1**2) / 2) ** 0.5}
    )


def test_the_test_part_is_not_fitted_to() -> None:
    alone = scores(numbers([0.0, 1.0, 5.0], [4.0]))
    beside = scores(numbers([0.0, 1.0, 5.0], [4.0, 1000.0]))
    for name, error in alone.items():
        other = {"mean": 998.0, NEIGHBOUR: 995.0}[name]
        assert beside[name] == pytest.approx(((error**2 + other**2) / 2) ** 0.5)


def test_the_unit_of_a_feature_does_not_matter_to_the_neighbour() -> None:
    unit = torch.tensor([1000.0, *[1.0] * 11])
    parts = {
        name: replace(part, x=tuple(x * unit for x in part.x))
        for name, part in (("train", VOWELS.train), ("test", VOWELS.test))
    }
    assert scores(replace(VOWELS, **parts)) == pytest.approx(scores(VOWELS))


def test_summary_statistics_of_a_sequence() -> None:
    x = torch.tensor([[1.0, 5.0], [1.0, 5.0], [4.0, 5.0]])
    mean, std, low, high, first, last = [2, 5], [2**0.5, 0], [1, 5], [4, 5], [1, 5], [4, 5]
    row = summary_statistics(Inputs((x,), None, ("a",)))
    assert row.tolist() == [pytest.approx([*mean, *std, *low, *high, *first, *last, 3])]
