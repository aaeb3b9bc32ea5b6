"""What a recurrent language model has to beat: counts of the last few tokens."""

from collections import Counter, defaultdict
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from anyrnn.errors import AnyRNNError

_MOST = 2_000_000  # tokens that are counted, from the end of the training part: a few seconds, and some 1 GB


class NGrams:
    """Probabilities by the last n - 1 tokens, interpolated with those by fewer.

    p(w | h) = (c(h w) + N(h) p(w | h')) / (c(h) + N(h)), where c counts occurrences, N(h) is the number of different
    tokens that have followed h, h' is h without its first token, and below the counts of single tokens all are alike:
    Witten and Bell (1991), "The zero-frequency problem", method C, as Chen and Goodman (1999) interpolate it.

    Args:
        tokens: What is counted: the training part.
        order: n, the length of the longest group of tokens.
        size: The number of different tokens that there may be.
    """

    def __init__(self, tokens: Sequence[int] | NDArray[np.int64], order: int, size: int) -> None:
        if order < 1 or size < 1:
            raise AnyRNNError(f"ngrams: got order={order} and size={size}, expected at least 1 of each")
        read = [int(token) for token in tokens][-_MOST:]
        self.order, self.size, self.counted = order, size, len(read)
        self._followed: list[dict[tuple[int, ...], dict[int, int]]] = []
        self._totals: list[dict[tuple[int, ...], int]] = []
        for n in range(1, order + 1):
            followed: dict[tuple[int, ...], dict[int, int]] = defaultdict(dict)
            for group, count in Counter(zip(*(read[k:] for k in range(n)), strict=False)).items():
                followed[group[:-1]][group[-1]] = count
            self._followed.append(dict(followed))
            self._totals.append({context: sum(counts.values()) for context, counts in followed.items()})

    def probability(self, token: int, before: Sequence[int]) -> float:
        """The probability of a token behind these ones."""
        p = 1 / self.size
        for n, (followed, totals) in enumerate(zip(self._followed, self._totals, strict=True)):
            context = tuple(before[len(before) - n :]) if n else ()
            if n > len(before) or context not in totals:
                break
            counts = followed[context]
            p = (counts.get(token, 0) + len(counts) * p) / (totals[context] + len(counts))
        return p

    def nats(self, tokens: Sequence[int] | NDArray[np.int64]) -> NDArray[np.float64]:
        """How surprising each token of a text is but for the first, given those before it, in nats: (T - 1,)."""
        read = [int(token) for token in tokens]
        found = [self.probability(read[t], read[max(0, t - self.order + 1) : t]) for t in range(1, len(read))]
        surprise: NDArray[np.float64] = -np.log(found)
        return surprise
