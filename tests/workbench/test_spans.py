"""Spans of tags as conlleval counts them, and the scores of steps."""

import math

import numpy as np
import pytest
from sklearn.metrics import f1_score, recall_score

from anyrnn.errors import AnyRNNError
from anyrnn.workbench.tagging import spans_of
from anyrnn.workbench.tagging.scores import Scorer, step_metric
from anyrnn.workbench.tagging.spans import note_on_scheme, scheme_of


@pytest.mark.parametrize(
    ("tags", "spans"),
    [
        ("B-PER I-PER O B-LOC", [("PER", 0, 1), ("LOC", 3, 3)]),
        ("B-PER B-PER I-PER", [("PER", 0, 0), ("PER", 1, 2)]),
        ("B-PER I-PER", [("PER", 0, 1)]),  # ends with the sequence
        ("O O", []),
        # What breaks the rules of BIO: I-x begins a span where no span of type x is open.
        ("I-PER I-PER O", [("PER", 0, 1)]),
        ("O I-LOC", [("LOC", 1, 1)]),
        ("B-PER I-LOC I-LOC", [("PER", 0, 0), ("LOC", 1, 2)]),
        ("I-PER B-PER I-LOC", [("PER", 0, 0), ("PER", 1, 1), ("LOC", 2, 2)]),
        # IOB1: B only where a span follows another of its type.
        ("I-NP I-NP B-NP I-NP O I-VP", [("NP", 0, 1), ("NP", 2, 3), ("VP", 5, 5)]),
        ("B-creative-work I-creative-work", [("creative-work", 0, 1)]),
        ("", []),
    ],
)
def test_spans_are_those_of_conlleval(tags, spans):
    assert spans_of(tags.split()) == spans


@pytest.mark.parametrize(
    ("tags", "spans"),
    [
        ("B-X E-X S-Y O B-Y I-Y E-Y", [("X", 0, 1), ("Y", 2, 2), ("Y", 4, 6)]),
        ("S-X S-X B-X E-X", [("X", 0, 0), ("X", 1, 1), ("X", 2, 3)]),
        # What breaks the rules, as conlleval.py and seqeval in its default mode read it.
        ("B-X I-X O", [("X", 0, 1)]),  # never closed
        ("I-X E-X E-X", [("X", 0, 1), ("X", 2, 2)]),  # never opened, and closed twice
        ("B-X S-X I-X", [("X", 0, 0), ("X", 1, 1), ("X", 2, 2)]),
        ("B-X E-Y", [("X", 0, 0), ("Y", 1, 1)]),
        ("E-X B-X B-X E-X", [("X", 0, 0), ("X", 1, 1), ("X", 2, 3)]),
    ],
)
def test_spans_that_mark_their_ends_are_those_of_seqeval(tags, spans):
    assert spans_of(tags.split()) == spans
    others = {"BILOU": "BILU", "BMES": "BMES", "BMEWO": "BMEW"}
    for letters in others.values():  # the same spans, by other letters
        assert spans_of(tags.translate(str.maketrans("BIES", letters)).split()) == spans


@pytest.mark.parametrize(
    ("tags", "scheme"),
    [
        (["O", "B-X", "I-X"], "BIO"),
        (["I-X", "O"], "BIO"),
        (["B-X", "E-X", "O"], "BIOES"),
        (["O", "S-X"], "BIOES"),
        (["O", "B-X", "L-X", "U-X"], "BILOU"),
        (["B-X", "M-X", "E-X", "S-X", "O"], "BMES"),
        (["O", "W-X", "M-X"], "BMEWO"),
        (["S-1", "E-1"], None),  # nothing is outside
        (["O", "B-X", "L-X", "S-X"], None),
        (["O"], None),
        (["O", "N1", "B-X"], None),
    ],
)
def test_the_scheme_of_tags_is_found_and_said(tags, scheme):
    assert scheme_of(tags) == scheme
    said = "".join(note_on_scheme(tags))
    if scheme is not None:
        assert said == f"the tags are {scheme}: their spans are counted"
    else:
        assert ("are of none of the schemes BIO, BIOES" in said) is (tags == ["O", "B-X", "L-X", "S-X"])


def scorer(sequences: list[str], classes: tuple[str, ...]) -> tuple[Scorer, dict[str, int]]:
    index = {name: k for k, name in enumerate(classes)}
    y = np.array([index[tag] for tags in sequences for tag in tags.split()])
    return Scorer(y, np.array([len(tags.split()) for tags in sequences]), classes), index


TAGS = ("O", "B-MISC", "I-MISC", "B-PER", "I-PER")


@pytest.mark.parametrize(
    ("true", "said", "counts", "scores"),
    [
        # The example of seqeval's documentation: one of two spans begins a step early.
        (
            ["O O O B-MISC I-MISC I-MISC O", "B-PER I-PER O"],
            ["O O B-MISC I-MISC I-MISC I-MISC O", "B-PER I-PER O"],
            {"MISC": (1, 1, 0), "PER": (1, 1, 1)},
            (0.5, 0.5, 0.5),
        ),
        # I-PER for B-PER is the same span to conlleval, and to seqeval unless it is strict.
        (["B-PER I-PER O"], ["I-PER I-PER O"], {"MISC": (0, 0, 0), "PER": (1, 1, 1)}, (1, 1, 1)),
        # One of another type, one too long, one right; one that is not there.
        (
            ["B-PER O B-PER I-PER O B-MISC O"],
            ["B-MISC O B-PER I-PER I-PER B-MISC B-PER"],
            {"MISC": (1, 2, 1), "PER": (2, 2, 0)},
            (2 / 7, 1 / 4, 1 / 3),
        ),
        # Two sequences: what goes on at the seam is two spans.
        (["O B-PER", "I-PER O"], ["O B-PER", "I-PER O"], {"MISC": (0, 0, 0), "PER": (2, 2, 2)}, (1, 1, 1)),
        # Two spans are not one.
        (["B-PER B-PER"], ["B-PER I-PER"], {"MISC": (0, 0, 0), "PER": (2, 1, 0)}, (0, 0, 0)),
        (["O O"], ["O O"], {"MISC": (0, 0, 0), "PER": (0, 0, 0)}, (0, 0, 0)),
    ],
)
def test_spans_are_counted_as_by_hand(true, said, counts, scores):
    score, index = scorer(true, TAGS)
    got = np.array([index[tag] for tags in said for tag in tags.split()])
    assert dict(zip(score.scheme.types, map(tuple, score.span_counts(got).tolist()), strict=True)) == counts
    found = score.scores(got)
    assert (found["span-f1"], found["span-precision"], found["span-recall"]) == pytest.approx(scores)


@pytest.mark.parametrize("classes", [TAGS, ("sleep", "wake", "rem", "n1", "n2")])
def test_scores_are_those_of_scikit_learn(classes):
    draws = np.random.default_rng(0)
    y, said = draws.integers(0, 4, 60), draws.integers(0, 5, 60)  # the last class is never there
    found = Scorer(y, np.array([20, 0, 40]), classes).scores(said)
    assert found["macro-f1"] == pytest.approx(f1_score(y, said, average="macro", zero_division=0))
    assert found["balanced-accuracy"] == pytest.approx(recall_score(y, said, labels=range(4), average="macro"))
    assert found["accuracy"] == pytest.approx((y == said).mean())
    assert ("span-f1" in found) is (classes is TAGS)


@pytest.mark.parametrize("classes", [TAGS, None])
def test_scores_of_drawn_sequences_are_those_of_a_part_that_has_them(classes):
    draws, lengths = np.random.default_rng(1), np.array([7, 3, 11, 5])
    y = draws.integers(0, 5, 26) if classes else draws.normal(size=26)
    said = draws.integers(0, 5, 26) if classes else y + draws.normal(size=26)
    places = np.array([2, 0, 2, 3])
    cut = np.split(np.arange(26), np.cumsum(lengths)[:-1])
    drawn = np.concatenate([cut[k] for k in places])
    whole, part = Scorer(y, lengths, classes), Scorer(y[drawn], lengths[places], classes)
    for name, score in part.scores(said[drawn]).items():
        assert whole.statistic(name, said)(places) == pytest.approx(score), name


def test_nse_is_the_median_over_the_sequences():
    y = np.array([0.0, 1, 2, 10, 20, 30, 5, 5])
    said = np.array([0.0, 1, 2, 20, 20, 20, 4, 4])
    found = Scorer(y, np.array([3, 3, 2]), None).scores(said)
    assert found["nse"] == pytest.approx(0.5)  # of 1 and 0; the third river never changes, and has none
    assert found["rmse"] == pytest.approx(math.sqrt((2 * 100 + 2) / 8))
    assert step_metric(None, None).name == "rmse"


def test_the_usual_score_of_bio_tags_is_that_of_spans_and_of_other_classes_not_the_accuracy():
    assert step_metric(None, TAGS).name == "span-f1"
    assert step_metric(None, ("a", "b")).name == "macro-f1"
    with pytest.raises(AnyRNNError, match=r"got 'span-f1', expected one of macro-f1, .*are no tags of spans"):
        step_metric("span-f1", ("a", "b"))
    with pytest.raises(AnyRNNError, match=r"got 'auc', expected one of rmse, .*since numbers are predicted"):
        step_metric("auc", None)
