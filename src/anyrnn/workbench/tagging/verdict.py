"""Which tagger won: as for whole sequences, but that luck is in the choice of the sequences, not of their steps."""

import statistics
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anyrnn.workbench.metrics import spread
from anyrnn.workbench.tagging.scores import Scorer, step_metric
from anyrnn.workbench.verdict import Comparison


class TagComparison(Comparison):
    """results.json's dictionary of taggers, read once. Targets and predictions are those of all labelled test steps."""

    unit = "steps"
    is_kept = False

    def __init__(self, results: Mapping[str, Any]) -> None:
        classes = results["dataset"]["classes"]
        dtype = np.float64 if classes is None else np.int64
        lengths = np.array(results["test_lengths"], dtype=np.int64)
        self.scorer = Scorer(
            np.array(results["test_targets"], dtype=dtype), lengths, None if classes is None else tuple(classes)
        )
        self.sequence_ids: list[str] = results["test_ids"]
        steps = results["test_steps"] or [t + 1 for length in lengths.tolist() for t in range(length)]
        names = (f"{self.sequence_ids[k]}, step {t}" for k, t in zip(self.scorer.sequence.tolist(), steps, strict=True))
        super().__init__({**results, "test_ids": list(names)})

    @property
    def drawn(self) -> str:
        """Of what the test part might have been another choice."""
        return f"{len(self.scorer.lengths):,} test sequences"

    def in_percent(self, name: str) -> bool:
        """Whether a metric is a share that is written in percent."""
        return step_metric(name, self.scorer.classes).percent

    def _luck_of_test(self, score: float) -> float:
        """Twice the standard error over the sequences, or groups: steps of one sequence err alike."""
        runs = [np.array(run["predictions"], dtype=self.scorer.y.dtype) for run in self.best.runs]
        each = [self.scorer.statistic(self.metric, said) for said in runs]

        def mean(places: NDArray[Any]) -> float:
            return statistics.fmean(statistic(places) for statistic in each)

        return self._twice(spread(mean, len(self.scorer.lengths), self.test_groups))
