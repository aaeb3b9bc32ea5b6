"""What a tagger has to beat: answers that look at one step, or at a few around it, without recurrence."""

import itertools
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anyrnn.workbench.baselines import Baseline
from anyrnn.workbench.sequences import moments
from anyrnn.workbench.tagging.scores import step_metric
from anyrnn.workbench.tagging.steps import Steps, Tagging
from anyrnn.workbench.tagging.words import Words

_AROUND = 2  # steps on either side; of causal answers twice as many before
_MOST_NUMBERS = 2e7  # that a linear model learns from: some ten seconds
_ALPHA = 1e-5  # of the linear model on words


def baselines(data: Tagging, chosen: str | None = None, *, causal: bool = False) -> tuple[Baseline, ...]:
    """Score the simplest answers on the steps of the test part, fitted on all that is not the test part.

    The most frequent class (or the mean) says what knowing nothing gives. Of words, the most frequent tag of each one,
    and a linear model of the pieces of a word and of the two words on either side; of numbers, a linear model of the
    step (logistic regression, or ridge), and one of the steps around it. What looks around looks back only, if the
    networks do.

    Args:
        data: What to learn.
        chosen: The name of the metric; None: the usual one.
        causal: Look at nothing that comes after a step.
    """
    name = step_metric(chosen, data.classes).name
    scorer = data.test.scorer(data.classes)
    found = []
    for title, answers in (_of_words if data.has_words else _of_numbers)(data, causal):
        scores = scorer.scores(answers)
        found.append(Baseline(title, scores[name], scores))
    return tuple(found)


def _of_words(data: Tagging, causal: bool) -> Iterator[tuple[str, NDArray[Any]]]:
    seen, test, K = data.train_and_validation, data.test, len(data.classes or ())
    usual = int(np.bincount(seen.flat.numpy(), minlength=K).argmax())
    yield "most frequent tag", np.full(test.labelled, usual)

    counts: dict[str, Counter[int]] = {}
    for words, tags in zip(seen.x, seen.y, strict=True):
        for word, tag in zip(words, tags.tolist(), strict=True):
            if tag >= 0:
                counts.setdefault(word, Counter())[tag] += 1
    tag_of = {word: count.most_common(1)[0][0] for word, count in counts.items()}
    answers = [tag_of.get(word, usual) for word in itertools.chain.from_iterable(test.x)]
    yield "most frequent tag of each word", np.array(answers)[_known(test)]

    if len(seen.flat.unique()) == 1:
        return
    from sklearn.linear_model import SGDClassifier  # noqa: PLC0415 - it takes a second to load

    reader = Words.fit(seen.x)
    model = SGDClassifier(loss="log_loss", alpha=_ALPHA, random_state=0)
    fitted, asked = (_pieces(reader, part, causal) for part in (seen, test))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of too few iterations: a poor rival is still one
        model.fit(fitted[_known(seen)], seen.flat.numpy())
    before = "and those before it" if causal else "and its neighbours"
    yield f"linear model of the word {before}", model.predict(asked[_known(test)])


def _pieces(reader: Words, part: Steps, causal: bool) -> Any:
    """A sparse row of zeros and ones for each step (N, places x pieces): which pieces stand at which place."""
    from scipy.sparse import csr_array  # noqa: PLC0415 - scikit-learn has it

    window = _window([reader(words).numpy() for words in part.x], causal)  # (N, places, P)
    columns = window + np.arange(window.shape[1])[:, None] * reader.size
    rows = np.broadcast_to(np.arange(len(window))[:, None, None], window.shape)
    there = window > 0
    ones = np.ones(int(there.sum()), dtype=np.float32)
    where = (rows[there].astype(np.int32), columns[there].astype(np.int32))  # what scikit-learn takes
    return csr_array((ones, where), shape=(len(window), window.shape[1] * reader.size))


def _of_numbers(data: Tagging, causal: bool) -> Iterator[tuple[str, NDArray[Any]]]:
    seen, test, classes = data.train_and_validation, data.test, data.classes is not None
    y = seen.flat.numpy()
    usual = np.bincount(y).argmax() if classes else y.mean()
    yield ("most frequent class" if classes else "mean"), np.full(test.labelled, usual)
    read = [[data.reader(x).numpy() for x in part.x] for part in (seen, test)]
    kind = "logistic regression" if classes else "ridge"
    before = "back" if causal else "around it"
    steps: tuple[tuple[str, Callable[[Sequence[NDArray[Any]]], NDArray[Any]]], ...] = (
        ("on the step", np.concatenate),
        (f"on {2 * _AROUND} steps {before}, too", lambda xs: _window(xs, causal).reshape(sum(map(len, xs)), -1)),
    )
    for title, features in steps:
        x, unseen = (features(xs)[_known(part)] for xs, part in zip(read, (seen, test), strict=True))
        yield f"{kind} {title}", _fitted(x, y, unseen, classes=classes)


def _fitted(x: NDArray[Any], y: NDArray[Any], unseen: NDArray[Any], *, classes: bool) -> NDArray[Any]:
    from sklearn.linear_model import LogisticRegression, RidgeCV  # noqa: PLC0415 - as above

    most = max(1000, int(_MOST_NUMBERS / x.shape[1]))
    if len(x) > most:
        chosen = np.sort(np.random.default_rng(0).permutation(len(x))[:most])
        x, y = x[chosen], y[chosen]
    if len(np.unique(y)) == 1:
        return np.full(len(unseen), y[0])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # as above, and of ill-conditioned matrices
        if classes:
            answers: NDArray[Any] = LogisticRegression(max_iter=200).fit(x, y).predict(unseen)
            return answers
        mean, std = moments(y)
        said: NDArray[Any] = RidgeCV(np.logspace(-3, 4, 8)).fit(x, (y - mean) / std).predict(unseen)
        return said * std + mean


def _window(xs: Sequence[NDArray[Any]], causal: bool) -> NDArray[Any]:
    """Each step with those around it, (N, places, features); what lies outside of a sequence is 0."""
    before, after = (2 * _AROUND, 0) if causal else (_AROUND, _AROUND)
    padded = (np.pad(x, ((before, after), (0, 0))) for x in xs)
    views = (np.lib.stride_tricks.sliding_window_view(x, before + after + 1, axis=0) for x in padded)
    return np.concatenate([view.transpose(0, 2, 1) for view in views])


def _known(part: Steps) -> NDArray[np.bool_]:
    return np.concatenate([known.numpy() for known in part.known])
