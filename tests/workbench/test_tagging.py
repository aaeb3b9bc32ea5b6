"""Tagging: spans as conlleval counts them, answers that look at nothing later, steps without a target, runs kept."""

import csv
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import f1_score, recall_score
from typer.testing import CliRunner, Result

import anyrnn
from anyrnn.errors import AnyRNNError
from anyrnn.workbench import load
from anyrnn.workbench.cli import app
from anyrnn.workbench.models import network
from anyrnn.workbench.runs import open_run
from anyrnn.workbench.tagging import (
    Steps,
    Tagging,
    TagSettings,
    compare,
    fit,
    load_tagged,
    open_tag_run,
    predict,
    spans_of,
)
from anyrnn.workbench.tagging.baselines import baselines
from anyrnn.workbench.tagging.model import batches, outputs
from anyrnn.workbench.tagging.scores import Scorer, step_metric
from anyrnn.workbench.tagging.train import TagLesson
from anyrnn.workbench.tagging.words import Words, pieces

QUICK = TagSettings(hidden_size=8, epochs=2, batch_size=8, learning_rate=0.02, threads=1, embedding_size=6)


# Spans


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
    with pytest.raises(AnyRNNError, match=r"got 'span-f1', expected one of macro-f1, .*the tags are not BIO"):
        step_metric("span-f1", ("a", "b"))
    with pytest.raises(AnyRNNError, match=r"got 'auc', expected one of rmse, .*since numbers are predicted"):
        step_metric("auc", None)


# Reading


def conll(tmp_path: Path, text: str, name: str = "a.conll") -> Path:
    path = tmp_path / name
    path.write_bytes(text.encode())
    return path


SENTENCES = "Anna\tB-PER\nlives\tO\nin\tO\nBerlin\tB-LOC\n\nshe\tO\nsings\tO\n"


@pytest.mark.parametrize(
    "text",
    [
        SENTENCES,
        SENTENCES.replace("\n", "\r\n"),
        "\ufeff" + SENTENCES.replace("\n\n", "\n\t\n\n\n"),
        SENTENCES.replace("\t", " ") + "\n\n",
        SENTENCES.replace("\t", "\tNN\t"),
        "-DOCSTART-\tO\n\n# text = Anna lives\n" + SENTENCES,
    ],
)
def test_sentences_are_read(tmp_path, text):
    data = load_tagged(conll(tmp_path, text), test=conll(tmp_path, text, "b.txt"))
    assert data.train.x == (("Anna", "lives", "in", "Berlin"), ("she", "sings"))
    assert data.classes == ("B-LOC", "B-PER", "O")
    assert [y.tolist() for y in data.test.y] == [[1, 2, 2, 0], [2, 2]]


def test_a_token_may_begin_with_a_hash_and_a_tag_may_be_missing(tmp_path):
    path = conll(tmp_path, "#\tO\n#rain\tB-x\nfalls\t_\n")
    data = load_tagged(path, test=path)
    assert data.train.x == (("#", "#rain", "falls"),)
    assert data.train.y[0].tolist() == [1, 0, -1]
    assert any("2 of 6 steps have no target" in note for note in data.notes)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("Anna\tB-PER\nlives\n", r"a.conll: line 2 has 1 column \('lives'\), expected 2"),
        ("Anna\n\nlives\n", "a line is one column, 'Anna', expected a token and its tag"),
        ("\n\n", "there is no token in it"),
        ("-DOCSTART-\tO\n\n", "there is no token in it but -DOCSTART- and comments"),
        ("Anna\tO\n", "is 'O' for every step, expected at least two classes"),
    ],
)
def test_a_text_that_is_none_is_refused_with_its_line(tmp_path, text, says):
    path = conll(tmp_path, text)
    with pytest.raises(AnyRNNError, match=says):
        load_tagged(path, test=path)


def test_bytes_that_are_no_utf_8_are_named(tmp_path):
    path = tmp_path / "x.conll"
    path.write_bytes(b"a\tO\nb\xe9\tO\n")
    with pytest.raises(AnyRNNError, match="line 2: byte 0xe9 is not UTF-8"):
        load_tagged(path)


def table(path: Path, rows: int = 30, sequences: int = 12, *, numbers: bool = False, gaps: bool = False) -> Path:
    """Whether the sum of what has come so far is above 0, or that sum; some rows without it."""
    draws = np.random.default_rng(0)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("river", "day", "rain", "site", "flow"))
        for k in range(sequences):
            x = draws.normal(size=rows - k).round(3)
            for day, (rain, total) in enumerate(zip(x, x.cumsum(), strict=True)):
                flow = f"{total:.3f}" if numbers else "high" if total > 0 else "low"
                site = "abcd"[k // 3]
                writer.writerow((f"r{k}", day, rain, site, "" if gaps and draws.random() < 0.3 else flow))
    return path


COLUMNS = {"id_column": "river", "time_column": "day", "target_column": "flow", "feature_columns": ["rain"]}


def test_a_table_whose_target_varies_has_its_option_named(tmp_path):
    with pytest.raises(
        AnyRNNError, match=r"unless each row has one of its own, .*--task tagging \(workbench.tagging\)"
    ):
        load(table(tmp_path / "t.csv"), **COLUMNS)


@pytest.mark.parametrize("numbers", [False, True])
def test_a_table_is_read_with_a_target_in_each_row(tmp_path, numbers):
    path = table(tmp_path / "t.csv", numbers=numbers, gaps=True)
    data = load_tagged(path, **COLUMNS, group_column="site")
    assert data.classes == (None if numbers else ("high", "low"))
    groups = [set(part.groups) for part in data.parts]
    assert sum(map(len, groups)) == len(set.union(*groups)) == 4  # each in one part
    rows = [*csv.DictReader(path.read_text().splitlines())]
    for part in data.parts:
        for x, y, name in zip(part.x, part.y, part.ids, strict=True):
            own = [row for row in rows if row["river"] == name]
            assert x[:, 0].tolist() == [float(row["rain"]) for row in own]
            if numbers:
                expected = [float(row["flow"] or "nan") for row in own]
                assert torch.equal(y.nan_to_num(99.0), torch.tensor(expected, dtype=torch.float64).nan_to_num(99.0))
            else:
                assert y.tolist() == [{"high": 0, "low": 1, "": -1}[row["flow"]] for row in own]


def test_whole_numbers_are_classes_unless_numbers_are_asked_for(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("id,x,y\n" + "".join(f"{k},{t}.5,{(k + t) % 3}\n" for k in range(4) for t in range(5)))
    columns = {"id_column": "id", "target_column": "y"}
    data = load_tagged(path, **columns)
    assert data.classes == ("0", "1", "2")
    assert any("in 20 steps: read as classes; answers='numbers' (--answers numbers)" in note for note in data.notes)
    assert load_tagged(path, **columns, answers="numbers").classes is None


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"answers": "tags"}, "got answers='tags', expected 'classes', 'numbers' or None"),
        ({"test_fraction": 0}, "got test_fraction=0"),
        ({"target_column": "flaw"}, "column 'flaw' is not there.*Did you mean 'flow'"),
        ({"feature_columns": "rain"}, "expected a list of names"),
        ({"test": "b.conll"}, "b.conll: expected a file of the same format as"),
    ],
)
def test_options_that_do_not_fit_are_refused(tmp_path, options, says):
    with pytest.raises(AnyRNNError, match=says):
        load_tagged(table(tmp_path / "t.csv"), **{**COLUMNS, **options})


def test_columns_are_for_tables(tmp_path):
    with pytest.raises(AnyRNNError, match="read as a text of tokens and tags, which has no columns to name"):
        load_tagged(conll(tmp_path, SENTENCES), id_column="a")
    with pytest.raises(AnyRNNError, match=r"one sequence only.*give a file with the test part"):
        load_tagged(conll(tmp_path, "a\tO\nb\tX\n"))
    with pytest.raises(AnyRNNError, match=r"x.ts: a .ts file has one target for each sequence"):
        load_tagged(tmp_path / "x.ts")
    with pytest.raises(AnyRNNError, match="there is no such file"):
        load_tagged(tmp_path / "x.conll")


def test_what_is_known_and_what_is_not_is_said(tmp_path):
    test = conll(tmp_path, SENTENCES.replace("Berlin", "Bremen"), "test.conll")
    notes = load_tagged(conll(tmp_path, SENTENCES), test=test).notes
    assert any(note.startswith("1 of 6 words of the test part (16.7%) are not in the training part") for note in notes)
    assert any(note.startswith("1 of 2 sentences of the test part are in the training part") for note in notes)


def test_a_tag_that_training_never_has_counts_as_an_error(tmp_path):
    test = conll(tmp_path, SENTENCES.replace("B-LOC", "B-ORG"), "test.conll")
    data = load_tagged(conll(tmp_path, SENTENCES * 3), test=test)
    assert data.classes == ("B-LOC", "B-PER", "O", "B-ORG")
    assert any("classes B-ORG of" in note and "count as errors" in note for note in data.notes)


# Words


def test_a_word_is_itself_its_shape_and_its_ends():
    assert pieces("Berlin") == ("=berlin", "~Xx", "<b", "<be", "<ber", ">n", ">in", ">lin")
    assert pieces("#1") == ("=#0", "~#d", "<#", "<#0", ">0", ">#0")
    words = Words.fit([["Berlin", "Merlin", "a", "a"]])
    assert words.knows("A")
    assert not words.knows("Berlin")
    rows = words(["Dublin", "a"])
    assert rows.shape == (2, 8)
    known = ["<none>", "<unknown word>", *words.pieces]
    assert [known[n] for n in rows[0].tolist() if n] == [
        "<unknown word>", "~Xx", ">n", ">in", ">lin"
    ]  # fmt: skip


def test_words_are_lost_in_training_only():
    torch.manual_seed(0)
    module = TagSettings(hidden_size=4, embedding_size=3, word_dropout=0.5).tagger(network("gru"), toy())
    x, lengths = torch.full((50, 1, 8), 2), torch.tensor([50])
    x[:, :, 1:] = 0
    seen: list[torch.Tensor] = []
    module[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    module.train().answers(x, lengths)
    module.eval().answers(x, lengths)
    assert set(seen[0][..., 0].unique().tolist()) == {1, 2}
    assert torch.equal(seen[0][..., 1:], x[..., 1:])
    assert torch.equal(seen[1], x)


def toy(sentences: int = 24) -> Tagging:
    """A name stands behind mr; whether it is one of two words is told by the word behind it."""
    draws = np.random.default_rng(0)
    x, y = [], []
    for _ in range(sentences):
        words, tags = [], []
        for _ in range(draws.integers(2, 5)):
            two = draws.random() < 0.5
            first, last = draws.choice(["ann", "ben", "eve"]), draws.choice(["lee", "poe"])
            words += ["saw", "mr", first, *([last] if two else []), "go"]
            tags += [2, 2, 0, *([1] if two else []), 2]
        x.append(tuple(map(str, words)))
        y.append(torch.tensor(tags))
    ids = tuple(map(str, range(sentences)))
    steps = Steps(tuple(x), tuple(y), ids)
    cut = sentences // 4
    return Tagging(
        "toy",
        ("word",),
        ("B-name", "I-name", "O"),
        "tag",
        steps.subset(range(2 * cut)),
        steps.subset(range(3 * cut, sentences)),
        "in order",
        validation=steps.subset(range(2 * cut, 3 * cut)),
    )


def sums(*, numbers: bool, count: int = 16, masked: float = 0.0) -> Tagging:
    """The sum of all that has come, or whether it is above 0, from steps of 2 numbers; some without a target."""
    draws = torch.Generator().manual_seed(0)
    x = [torch.randn(5 + k % 4, 2, dtype=torch.float64, generator=draws) for k in range(count)]
    totals = [each.sum(1).cumsum(0) for each in x]
    y = totals if numbers else [(each > 0).long() for each in totals]
    none = math.nan if numbers else -1
    y = [each.masked_fill(torch.rand(len(each), generator=draws) < masked, none) for each in y]
    steps = Steps(tuple(x), tuple(y), tuple(f"s{k}" for k in range(count)))
    return Tagging(
        "sums",
        ("a", "b"),
        None if numbers else ("no", "yes"),
        "total",
        steps.subset(range(count // 2)),
        steps.subset(range(3 * count // 4, count)),
        "in order",
        validation=steps.subset(range(count // 2, 3 * count // 4)),
    )


# What a tagger may look at, and what it learns from


@pytest.mark.parametrize("name", ["rnn", "lstm", "gru", "lstm-2", "peephole-lstm"])
@pytest.mark.parametrize("words", [False, True])
def test_a_causal_answer_depends_on_nothing_that_comes_later(name, words):
    data = toy() if words else sums(numbers=False)
    module = TagSettings(hidden_size=5, embedding_size=4, causal=True).tagger(network(name), data).eval()
    x = torch.stack([data.reader(each)[:5] for each in data.train.x[:3]], dim=1)  # (T, B, ...)
    before = module.answers(x, torch.tensor([5, 5, 5]))
    for t in range(1, 5):
        other = x.clone()
        other[t:] = other[t:].flip(-1) + 1
        after = module.answers(other, torch.tensor([5, 5, 5]))
        assert torch.equal(after[:t], before[:t])
        assert not torch.equal(after[t], before[t])


def test_a_bidirectional_answer_depends_on_what_comes_later_and_is_refused_as_causal():
    data = sums(numbers=False)
    module = TagSettings(hidden_size=5).tagger(network("bilstm"), data).eval()
    x = data.reader(data.train.x[0]).unsqueeze(1)
    other = x.clone()
    other[-1] += 1
    lengths = torch.tensor([len(x)])
    assert not torch.equal(module.answers(other, lengths)[0], module.answers(x, lengths)[0])
    with pytest.raises(AnyRNNError, match=r"bidirectional LSTM: .* reads what comes after a step.*--causal"):
        TagSettings(causal=True).tagger(network("bilstm"), data)
    with pytest.raises(AnyRNNError, match="got bidirectional and causal"):
        TagSettings(causal=True, bidirectional=True)
    with pytest.raises(AnyRNNError, match="got pool='mean', but each step has an answer of its own"):
        TagSettings(pool="mean")


@pytest.mark.parametrize("words", [False, True])
def test_a_causal_model_streams(words):
    data = toy() if words else sums(numbers=True)
    model = fit(data, "gru", settings=TagSettings(hidden_size=4, epochs=1, causal=True)).best.model
    x = data.test.x[0]
    said = outputs(model.module, [model.reader(x)])[0]
    size = (8,) if words else 2
    stream = anyrnn.stepwise(model.module, size).stream()
    for t, step in enumerate(model.reader(x)):
        stream.x[:] = step
        stream.step()
        torch.testing.assert_close(stream.y[0], said[t], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("numbers", [False, True])
@pytest.mark.parametrize("name", ["lstm", "bilstm"])
def test_gradients_are_those_of_steps_that_have_a_target(numbers, name):
    """Those of one loss over all such steps, whatever is masked, and however sequences lie side by side."""
    data = sums(numbers=numbers, masked=0.4)
    assert 0 < data.train.labelled < sum(map(len, data.train.x))
    settings = TagSettings(hidden_size=4, batch_size=8, threads=1).resolved(data)
    training = TagLesson(data, settings).training(network(name), 0)
    loss, count = next(training.losses())
    assert count == data.train.labelled
    parameters = [*training.model.module.parameters()]
    found = torch.autograd.grad(loss, parameters)

    total = torch.zeros(())
    for x, y, known in zip(data.train.x, data.train.y, data.train.known, strict=True):
        answers = training.model.module.answers(data.reader(x).unsqueeze(1), torch.tensor([len(x)]))[:, 0]
        for t in known.nonzero().flatten().tolist():
            if numbers:
                mean, std = training.model.target_scale
                total = total + (answers[t, 0] - (y[t] - mean) / std).square()
            else:
                total = total - answers[t].log_softmax(0)[y[t]]
    expected = torch.autograd.grad(total / count, parameters)
    torch.testing.assert_close(loss, (total / count).to(loss.dtype))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


def test_a_batch_without_any_target_is_left_out():
    data = sums(numbers=False)
    empty = [torch.full_like(y, -1) for y in data.train.y[1:]]
    train = Steps(data.train.x, (data.train.y[0], *empty), data.train.ids)
    data = Tagging("few", data.features, data.classes, "total", train, data.test, "so", validation=data.validation)
    settings = TagSettings(batch_size=1, hidden_size=2).resolved(data)
    training = TagLesson(data, settings).training(network("rnn"), 0)
    assert [count for _, count in training.losses()] == [len(train.y[0])]


def test_sequences_side_by_side_are_answered_as_alone():
    data = sums(numbers=True)
    module = TagSettings(hidden_size=6).tagger(network("bilstm"), data)
    read = [data.reader(x) for x in data.train.x]
    together = outputs(module, read)
    for x, said in zip(read, together, strict=True):
        assert len(said) == len(x)
        torch.testing.assert_close(outputs(module, [x])[0], said, atol=1e-6, rtol=1e-5)
    assert [len(lengths) for _, lengths in batches(read, 16)] == [2] * 4
    assert torch.cat([lengths for _, lengths in batches(read, 16)]).tolist() == [len(x) for x in read]


def test_the_same_seed_gives_the_same_run():
    data = toy()
    one, two = (fit(data, "bilstm", settings=QUICK) for _ in range(2))
    assert one.best.runs[0].predictions == two.best.runs[0].predictions
    assert [e.validation_loss for e in one.best.runs[0].history] == [
        e.validation_loss for e in two.best.runs[0].history
    ]


# What is learned, and what stands beside it


@pytest.fixture(scope="module")
def names():
    return compare(toy(48), ["gru", "bilstm"], seeds=2, settings=TagSettings(
        hidden_size=16, embedding_size=12, epochs=12, batch_size=4, learning_rate=0.02, threads=1
    ))  # fmt: skip


@pytest.fixture(scope="module")
def totals():
    settings = TagSettings(hidden_size=12, epochs=40, batch_size=8, learning_rate=0.02, threads=1, causal=True)
    return fit(sums(numbers=True, count=64, masked=0.2), settings=settings)


def test_names_are_found_where_counts_of_words_do_as_well(names):
    assert names.metric == "span-f1"
    assert names.best.score_mean > 0.95
    found = {each.name: each.scores["span-f1"] for each in names.baselines}
    assert found["most frequent tag"] == 0
    assert found["most frequent tag of each word"] == 1  # each word has one tag here
    assert "tie" in names.verdict  # so nobody needs a network


def test_sums_are_learned_where_no_window_is_wide_enough(totals):
    assert totals.best.model.network.name == "lstm"
    assert totals.best.model.causal
    mean, step, window = (each.score for each in totals.baselines)
    assert totals.best.score_mean < window < step < mean


def test_baselines_of_causal_answers_look_back_only():
    data = sums(numbers=True)
    later = [x.clone() for x in data.test.x]
    for x in later:
        x[3:] = x[3:].flip(1) * 2
    test = Steps(tuple(later), data.test.y, data.test.ids)
    other = Tagging("other", data.features, None, "total", data.train, test, "so", validation=data.validation)

    def firsts(data: Tagging, causal: bool) -> list[float]:
        cut = Steps(
            data.test.x, tuple(torch.cat([y[:3], torch.full_like(y[3:], math.nan)]) for y in data.test.y), data.test.ids
        )
        whole = Tagging("cut", data.features, None, "total", data.train, cut, "so", validation=data.validation)
        return [each.score for each in baselines(whole, causal=causal)]

    assert firsts(data, True) == firsts(other, True)
    assert firsts(data, False) != firsts(other, False)


# What is kept


@pytest.mark.parametrize("which", ["names", "totals"])
def test_a_run_that_is_kept_says_the_same(which, request, tmp_path):
    results = request.getfixturevalue(which)
    folder = results.save(tmp_path / "run")
    model, trained = open_tag_run(folder).model(), results.best.model
    assert (model.reader, model.classes, model.causal) == (trained.reader, trained.classes, trained.causal)
    said = model.predict(results.dataset.test.x)
    for one, other in zip(said, trained.predict(results.dataset.test.x), strict=True):
        assert one.values == other.values
        assert one.labels == other.labels
        assert one.probabilities is None or torch.equal(one.probabilities, other.probabilities)
    flat = [value for each, known in zip(said, results.dataset.test.known, strict=True)
            for value in np.array(each.values)[known.numpy()].tolist()]  # fmt: skip
    assert flat == pytest.approx(list(results.best.runs[0].predictions))
    content = json.loads((folder / "results.json").read_text())
    assert content["kind"] == "tagging"
    assert content["best"] == results.best.model.network.name
    page = (folder / "report.html").read_text()
    assert page.count("<section") == page.count("</section>")
    assert "<script" not in page
    assert results.verdict.split(" ")[-1].rstrip(".") in page
    for part in ('id="spans"', 'id="tags"', 'class="tags"') if which == "names" else ('id="sequences"', "s1 line"):
        assert part in page


def test_a_run_of_taggers_is_opened_by_its_own_function(names, tmp_path):
    folder = names.save(tmp_path / "run")
    with pytest.raises(AnyRNNError, match=r"a run of another kind, which anyrnn.workbench.tagging.open_tag_run opens"):
        open_run(folder)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"pieces": None}, "expected a scaler or pieces of words, got both or none"),
        ({"embedding_size": 10**6}, "embedding_size=1000000, but no weight"),
        ({"classes": ["B-name", "O"]}, "the weights are of another cell"),
        ({"layers": 10**6}, "layers=1000000, but gru.safetensors has"),
        ({"embedding_size": "12"}, "got embedding_size='12', expected null, or a whole number above 0"),
    ],
)
def test_a_damaged_description_is_refused(names, tmp_path, change, says):
    folder = names.save(tmp_path / "run")
    path = folder / "models" / "gru.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(AnyRNNError, match=says):
        open_tag_run(folder).model("gru")


def test_a_text_is_predicted_and_scored_as_far_as_it_has_tags(names, tmp_path):
    path = conll(
        tmp_path, "saw\tO\nmr\tO\nann\tB-name\nlee\t_\ngo\tO\n\nsaw\tO\nmr\tO\nzoe\tB-place\ngo\tO\n", "new.txt"
    )
    found = predict(names.best.model, path)
    lines = [*csv.DictReader(found.csv().splitlines())]
    assert [line["word"] for line in lines] == ["saw", "mr", "ann", "lee", "go", "saw", "mr", "zoe", "go"]
    assert [line["line"] for line in lines] == ["1", "2", "3", "4", "5", "7", "8", "9", "10"]
    assert lines[2]["prediction"] == "B-name"
    assert 0.5 < float(lines[2]["probability"]) <= 1
    assert found.verdict.endswith("on 7 of 9 steps")
    assert any("targets 'B-place' are none that the model can predict" in note for note in found.notes)
    assert any("1 of 9 words (11.1%) are none that the network knows" in note for note in found.notes)
    alone = predict(names.best.model, conll(tmp_path, "mr\nann\n", "plain.txt"))
    assert alone.verdict == ""
    assert len(alone.csv().splitlines()) == 3
    with pytest.raises(AnyRNNError, match="expected a text of tokens, as the model was trained on"):
        predict(names.best.model, table(tmp_path / "t.csv"))


def test_a_table_is_predicted_a_line_for_each_row(tmp_path):
    path = table(tmp_path / "t.csv", numbers=True, gaps=True)
    data = load_tagged(path, **COLUMNS)
    model = fit(data, "gru", settings=QUICK).best.model
    rows = [*csv.reader(path.read_text().splitlines())]
    shuffled = tmp_path / "u.csv"
    with shuffled.open("w", newline="") as file:
        csv.writer(file).writerows([rows[0], *rows[:0:-1]])
    one, two = predict(model, path), predict(model, shuffled)
    assert one.scores == pytest.approx(two.scores)
    by_row = {int(line["row"]): line["prediction"] for line in csv.DictReader(one.csv().splitlines())}
    other = {int(line["row"]): line["prediction"] for line in csv.DictReader(two.csv().splitlines())}
    count = len(rows) - 1
    assert len(by_row) == count
    assert [float(by_row[k]) for k in range(1, count + 1)] == pytest.approx(
        [float(other[count + 1 - k]) for k in range(1, count + 1)], abs=1e-5
    )


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ([torch.zeros(3, 5)], r"sequence 0 has shape \(3, 5\), expected \(T, 2\)"),
        ([torch.full((3, 2), math.nan)], "sequence 0 holds NaN or infinity"),
        ([object()], "sequence 0 is a object"),
    ],
)
def test_what_is_no_sequence_is_refused(totals, given, says):
    with pytest.raises(AnyRNNError, match=says):
        totals.best.model.predict(given)


def test_words_in_a_text_are_no_list_of_words(names):
    with pytest.raises(AnyRNNError, match="sequence 0 is 'saw mr ann', expected at least one word in a list"):
        names.best.model.predict(["saw mr ann"])


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"y": (torch.zeros(3),)}, "expected at least one step, and for each a target"),
        ({"ids": ()}, "got 1 sequences, 1 of targets and 0 ids"),
        ({"groups": ("a", "b")}, "got 2 groups of 1 sequences"),
    ],
)
def test_steps_that_do_not_belong_together_are_refused(given, says):
    fields = {"x": (torch.zeros(3, 1).double(),), "y": (torch.zeros(3, dtype=torch.int64),), "ids": ("a",), **given}
    with pytest.raises(AnyRNNError, match=says):
        Steps(**fields)


# The command line


def invoke(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, list(map(str, arguments)))


QUICKLY = ("--hidden", "4", "--epochs", "1", "--batch-size", "4")


def test_rows_are_tagged_from_the_command_line(tmp_path):
    path, folder = table(tmp_path / "t.csv", gaps=True), tmp_path / "run"
    columns = ("--id", "river", "--time", "day", "--target", "flow", "--features", "rain")
    asked = ("--task", "tagging", "--causal", "--cells", "rnn,gru", "--seeds", 1, "--metric", "accuracy")
    out = invoke("compare", path, *asked, *columns, *QUICKLY, "--out", folder)
    assert out.exit_code == 0, out.output
    assert "test accuracy" in out.stdout
    assert "anyrnn predict" in out.stdout
    content = json.loads((folder / "results.json").read_text())
    assert content["causal"] == ["rnn", "gru"]
    assert content["settings"]["causal"]
    said = invoke("predict", folder, path, "--model", "gru")
    assert said.exit_code == 0, said.output
    lines = [*csv.DictReader(said.stdout.splitlines())]
    assert len(lines) == len(path.read_text().splitlines()) - 1
    assert {line["prediction"] for line in lines} <= {"high", "low"}
    assert "accuracy" in said.stderr
    assert "of 294 steps" in said.stderr


def test_words_are_tagged_from_the_command_line_by_the_name_of_their_file(tmp_path):
    path, folder = conll(tmp_path, (SENTENCES + "\n") * 6), tmp_path / "run"
    out = invoke("fit", path, "--validation-file", path, "--out", folder, *QUICKLY, "--embedding", 3)
    assert out.exit_code == 0, out.output
    content = json.loads((folder / "results.json").read_text())
    assert content["best"] == "bilstm"
    assert content["settings"]["embedding_size"] == 3
    said = invoke("predict", folder, conll(tmp_path, "Anna\nsings\n", "new.txt"))
    assert [line.split(",")[2] for line in said.stdout.splitlines()] == ["word", "Anna", "sings"]


def test_the_file_that_init_writes_is_one_of_rivers(tmp_path):
    invoke("init", "--task", "tagging", "--out", tmp_path / "run.toml")
    path = table(tmp_path / "t.csv", numbers=True)
    text = (tmp_path / "run.toml").read_text().replace("rivers.csv", str(path)).replace("discharge", "flow")
    (tmp_path / "run.toml").write_text(text)
    asked = ("--config", tmp_path / "run.toml", "--features", "rain", "--cell", "rnn", "--out", tmp_path / "run")
    out = invoke("fit", *asked, *QUICKLY)
    assert out.exit_code == 0, out.output
    assert "test rmse" in out.stdout


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--causal", "--cell", "bilstm"), "reads what comes after a step"),
        (("--horizon", "3"), "--horizon is for forecasts, and the task here is tagging"),
        (("--pool", "mean"), "nothing is pooled"),
        (("--id", "a"), "has no columns to name"),
        (("--metric", "f1"), "got 'f1', expected one of span-f1"),
    ],
)
def test_options_that_are_not_for_tagging_are_refused(tmp_path, arguments, says):
    out = invoke("fit", conll(tmp_path, (SENTENCES + "\n") * 6), *arguments)
    assert out.exit_code == 2
    assert says in out.stderr
    assert out.stderr.count("\n") == 1


def test_text_is_no_feature_of_tagging(tmp_path: Path) -> None:
    rows = [f"{k},{t},{'wet' if t % 2 else 'dry'},{t % 3}" for k in range(4) for t in range(5)]
    (tmp_path / "d.csv").write_text("\n".join(["id,t,ground,y", *rows, ""]))
    with pytest.raises(AnyRNNError, match=r"column 'ground' holds text \(dry, wet\).*--features"):
        load_tagged(tmp_path / "d.csv", id_column="id", time_column="t", target_column="y")
