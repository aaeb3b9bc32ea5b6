"""Text: vocabularies that lose nothing, counts that are probabilities, models that learn, are kept, and write."""

import json
import math
import re
from pathlib import Path

import pytest
import torch

from anyrnn.errors import AnyRNNError
from anyrnn.workbench.language import TextSettings, compare, fit, generate, load_text, open_text_run
from anyrnn.workbench.language.model import build, surprise
from anyrnn.workbench.language.ngrams import NGrams
from anyrnn.workbench.language.text import UNKNOWN, Vocabulary
from anyrnn.workbench.language.train import train
from anyrnn.workbench.models import network
from anyrnn.workbench.runs import open_run

VERSE = "The rain falls on.\n\tThe rain doesn't fall, said Mr. O’Hara; “it” falls <b>on</b> & on…\n"
QUICK = TextSettings(hidden_size=16, embedding_size=8, steps=16, batch_size=8, epochs=2, threads=1, dropout=0.0)


@pytest.fixture(scope="module")
def book(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "book.txt"
    path.write_text(VERSE * 30, encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def results(book: Path):
    return compare(load_text(book), ["gru", "lstm"], seeds=2, settings=QUICK)


@pytest.mark.parametrize("level", ["character", "word"])
@pytest.mark.parametrize("text", [VERSE, "a  b\n\n\nc\t d", "don't stop; _under_score 3.14 naïve — 漢字", " ", ""])
def test_what_is_encoded_is_decoded_to_the_same_text(text, level):
    vocabulary = Vocabulary.of(VERSE * 2 + text, level)
    assert vocabulary.decode(vocabulary.encode(text).tolist()) == text


def test_a_rare_word_is_spelled_and_a_frequent_one_is_a_token():
    vocabulary = Vocabulary.of("and so it goes and so it went", "word")
    assert [vocabulary.tokens[n] for n in vocabulary.encode(" so it went")] == [" so", " it", " ", "w", "e", "n", "t"]


@pytest.mark.parametrize("level", ["character", "word"])
def test_a_character_that_training_has_not_is_unknown_and_said(tmp_path, level):
    path = tmp_path / "b.txt"
    path.write_text(VERSE * 20 + "Ω and Ж" + VERSE, encoding="utf-8")
    text = load_text(path, level=level, test_fraction=0.1, validation=0.1)
    assert text.notes == (
        "2 characters of the validation and test parts are not in the training part ('Ω', 'Ж'): no model can expect "
        "them",
    )
    assert (text.test.tokens == text.vocabulary.numbers[UNKNOWN]).sum() == 2


def test_the_parts_follow_each_other_and_are_the_text(book):
    text = load_text(book, validation=0.1, test_fraction=0.2)
    whole = VERSE * 30
    assert text.train.text + text.validation.text + text.test.text == whole
    assert len(text.test.text) == round(0.2 * len(whole))
    assert len(text.validation.text) == round(0.1 * len(whole))
    assert Vocabulary.of(text.train.text).tokens == text.vocabulary.tokens


def test_a_file_may_be_the_test_part(book, tmp_path):
    test = tmp_path / "test.txt"
    test.write_text("The rain falls on.", encoding="utf-8")
    text = load_text(book, test=test)
    assert (text.train.text + text.validation.text, text.test.text) == (VERSE * 30, "The rain falls on.")


def test_the_marks_of_other_systems_are_no_characters(tmp_path):
    path = tmp_path / "dos.txt"
    path.write_bytes(b"\xef\xbb\xbf" + (VERSE * 20).replace("\n", "\r\n").encode())
    assert load_text(path).train.text.startswith("The rain falls on.\n\tThe")


@pytest.mark.parametrize(
    ("content", "options", "says"),
    [
        (b"short", {}, "got a text of 5 characters, expected at least 1,000"),
        (b"a" * 2000, {}, "the text has 'a' only, expected something to predict"),
        (
            b"caf\n" * 400 + b"caf\xe9",
            {},
            r"line 401: byte 0xe9 is not utf-8; name the encoding of the file \(encoding, --encoding\), such as lat",
        ),
        (b"abc" * 900, {"encoding": "klingon"}, "encoding 'klingon' is not known"),
        (b"abc" * 900, {"level": "syllable"}, "got level='syllable', expected 'character' or 'word'"),
        (b"abc" * 900, {"test_fraction": 0.5}, "got test_fraction=0.5, expected a share above 0 and below 0.5"),
        (b"abc" * 900, {"least": 0}, "got least=0, expected a whole number of at least 1"),
    ],
)
def test_a_text_that_cannot_be_used_is_refused_with_the_cure(tmp_path, content, options, says):
    path = tmp_path / "x.txt"
    path.write_bytes(content)
    with pytest.raises(AnyRNNError, match=says):
        load_text(path, **options)
    assert load_text.__doc__


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(AnyRNNError, match=r"none\.txt: this cannot be read: No such file"):
        load_text(tmp_path / "none.txt")


# Counts


def test_counts_are_those_of_the_formula():
    grams = NGrams([0, 1, 0, 1, 1], 2, 3)
    single = [(2 + 2 / 3) / (5 + 2), (3 + 2 / 3) / (5 + 2), (0 + 2 / 3) / (5 + 2)]  # two kinds in five, three possible
    assert [grams.probability(w, []) for w in range(3)] == pytest.approx(single)
    # Behind 0 stood 1 twice: one kind. Behind 1 stood 0 once and 1 once: two kinds.
    assert grams.probability(1, [0]) == pytest.approx((2 + single[1]) / 3)
    assert grams.probability(2, [1, 0, 1]) == pytest.approx((0 + 2 * single[2]) / (2 + 2))
    assert grams.probability(0, [2]) == pytest.approx(single[0])  # never seen: as if nothing stood before


@pytest.mark.parametrize("order", [1, 2, 4])
def test_counts_are_probabilities_in_every_context(order):
    tokens = torch.randint(5, (300,), generator=torch.Generator().manual_seed(0)).tolist()
    grams = NGrams(tokens[:250], order, 6)
    for t in range(250, 299):
        assert sum(grams.probability(w, tokens[:t]) for w in range(6)) == pytest.approx(1)
    expected = [-math.log(grams.probability(tokens[t], tokens[:t])) for t in range(251, 300)]
    short = [-math.log(grams.probability(tokens[t], tokens[250:t])) for t in range(251, 300)]
    assert grams.nats(tokens[250:]).tolist() == pytest.approx(short)
    assert sum(expected[order:]) == pytest.approx(sum(short[order:]))


# Training


def test_a_text_that_repeats_itself_is_learned(tmp_path):
    path = tmp_path / "abc.txt"
    path.write_text("aaaaaab" * 400)
    settings = TextSettings(16, 8, steps=21, batch_size=8, epochs=8, learning_rate=0.02, threads=1, dropout=0.0)
    found = fit(load_text(path), "gru", settings=settings)
    assert found.best.score_mean < 0.2  # to know when the b comes is to count to six
    assert found.baselines[1].score > 0.3  # who sees four letters cannot
    assert "".join(generate(found.best.model, 14, prompt="aabaaaaaabaaa", temperature=0)) == "aaabaaaaaabaaa"


def test_a_text_is_scored_as_in_one_call_and_without_dropout(monkeypatch):
    torch.manual_seed(1)
    model, tokens = build(network("lstm"), 7, 8, 4, 0.5), torch.randint(7, (2345,))
    logits, _ = model.eval().logits(tokens[:-1])
    whole = torch.nn.functional.cross_entropy(logits, tokens[1:], reduction="none")
    model.train()
    torch.testing.assert_close(surprise(model, tokens), whole, rtol=1e-4, atol=1e-5)
    assert model.training


def test_the_same_seed_gives_the_same_weights_and_leaves_other_random_numbers_alone(book):
    text, before = load_text(book), torch.get_rng_state()
    runs = [train(network("rnn"), text, QUICK, seed)[0].module.state_dict() for seed in (3, 3, 4)]
    assert all(torch.equal(a, b) for a, b in zip(runs[0].values(), runs[1].values(), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(runs[0].values(), runs[2].values(), strict=True))
    assert torch.equal(torch.get_rng_state(), before)


def test_the_weights_are_those_of_the_best_epoch_and_training_ends_without_a_better_one(book):
    text = load_text(book, validation=0.02)
    settings = TextSettings(8, 8, steps=32, batch_size=8, epochs=40, patience=2, learning_rate=0.3, threads=1)
    model, run = train(network("rnn"), text, settings, 0)
    losses = [epoch.validation_loss for epoch in run.history]
    assert len(losses) < 40
    assert run.epoch == losses.index(min(losses)) + 1 == len(losses) - 2
    assert float(surprise(model.module, text.validation.tokens).double().mean()) == min(losses)


@pytest.mark.parametrize("level", ["character", "word"])
def test_the_score_is_bits_for_each_character_of_the_test_part(book, level):
    text = load_text(book, level=level)
    model, run = train(network("rnn"), text, QUICK, 0)
    nats = float(surprise(model.module, text.test.tokens).double().sum())
    first = text.vocabulary.tokens[int(text.test.tokens[0])]
    assert run.score == pytest.approx(nats / math.log(2) / (len(text.test.text) - len(first)))


def test_a_network_that_reads_backwards_is_refused(book):
    with pytest.raises(AnyRNNError, match="reads the token that it is to predict; expected one direction"):
        fit(load_text(book), "bilstm", settings=QUICK)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"steps": 0}, "got steps=0, expected an int of at least 1"),
        ({"learning_rate": -1}, "got learning_rate=-1, expected a number above 0"),
        ({"dropout": 1}, "got dropout=1, expected a share from 0 to below 1"),
    ],
)
def test_wrong_settings_are_refused(options, says):
    with pytest.raises(AnyRNNError, match=says):
        TextSettings(**options)


def test_a_short_text_is_read_in_fewer_rows_and_more_epochs():
    settings = TextSettings()
    assert settings.rows_for(1_000_000) == 32
    assert settings.rows_for(1000) == 3
    assert settings.rows_for(10) == 1
    assert settings.epochs_for(1_000_000) == 10
    assert settings.epochs_for(1000) > 200


# Writing


def test_what_is_written_depends_on_the_seed_and_on_nothing_else(results):
    model, before = results.best.model, torch.get_rng_state()
    texts = ["".join(generate(model, 30, prompt="The ", seed=seed)) for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]
    assert len(texts[0]) == 30
    assert torch.equal(torch.get_rng_state(), before)


def test_what_nobody_knows_is_never_written(results):
    model = results.best.model
    with torch.no_grad():
        model.module[-1].bias[model.vocabulary.numbers[UNKNOWN]] += 50
    assert UNKNOWN not in "".join(generate(model, 50, seed=0))
    with torch.no_grad():
        model.module[-1].bias[model.vocabulary.numbers[UNKNOWN]] -= 50


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"prompt": "Ж and"}, "the prompt has 'Ж', which the text that the model was trained on has not"),
        ({"temperature": -1}, "got temperature=-1, expected a number of at least 0"),
        ({"length": -1}, "got length=-1, expected a whole number of at least 0"),
    ],
)
def test_a_wrong_question_is_refused_before_anything_is_written(results, options, says):
    with pytest.raises(AnyRNNError, match=says):
        generate(results.best.model, **options)


# Kept


def test_a_model_that_was_kept_reads_and_writes_as_before(results, tmp_path):
    folder = results.save(tmp_path / "run")
    model = open_text_run(folder).model()
    tokens = results.dataset.test.tokens
    assert torch.equal(surprise(model.module, tokens), surprise(results.best.model.module, tokens))
    assert "".join(generate(model, 20, seed=5)) == "".join(generate(results.best.model, 20, seed=5))
    assert open_text_run(folder).model("lstm").network.name == "lstm"
    with pytest.raises(AnyRNNError, match=r"there is no model 'rnn'; the models are gru, lstm"):
        open_text_run(folder).model("rnn")


def test_a_run_of_a_text_and_one_of_sequences_are_told_apart(results, tmp_path):
    folder = results.save(tmp_path / "run")
    with pytest.raises(
        AnyRNNError, match=r"a run of another kind, which anyrnn.workbench.language.open_text_run opens"
    ):
        open_run(folder)
    kept = json.loads((folder / "results.json").read_text())
    (folder / "results.json").write_text(json.dumps({**kept, "kind": "sequences"}))
    with pytest.raises(AnyRNNError, match="it does not list its models"):
        open_text_run(folder)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"hidden_size": 10**9}, "got hidden_size=1000000000, but no weight of"),
        ({"embedding_size": "8"}, "got embedding_size='8', expected a whole number above 0"),
        ({"tokens": ["a", "a"]}, r"got tokens=\['a', 'a'\], expected different tokens"),
        ({"tokens": ["a", UNKNOWN]}, "expected a share for each token"),
        ({"level": "../x"}, "expected one of character, word"),
        ({"network": "evil:Cell"}, r"this is the model 'evil:Cell', expected 'gru'"),
        ({"seed": None}, "got seed=None, expected a whole number"),
    ],
)
def test_a_damaged_description_is_refused(results, tmp_path, change, says):
    folder = results.save(tmp_path / "run")
    path = folder / "models" / "gru.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(AnyRNNError, match=says):
        open_text_run(folder).model("gru")


# Shown


def test_the_table_and_the_verdict_say_what_came_out(results):
    table = results.table()
    assert re.search(r"^GRU +\d\.\d{3} ± \d\.\d{3} +\d\.\d{3} +[\d,]+ +2 +\d+\.\d s$", table, re.MULTILINE)
    assert re.search(r"^counts of up to 5 characters +\d\.\d{3}", table, re.MULTILINE)
    assert results.verdict.startswith("No network: the baseline “counts of up to 5 characters” has ")


def test_the_report_shows_text_as_text_and_needs_nothing_from_elsewhere(results, tmp_path):
    page = (results.save(tmp_path / "run") / "report.html").read_text(encoding="utf-8")
    assert "<script" not in page
    assert not re.search(r'(src|href)="http', page)
    assert ">&lt;</i>" in page  # of VERSE's <b>
    assert "<b>on</b>" not in page
    assert f"{results.best.score_mean:.3f}" in page
    assert page.count("What it writes at temperature") == 3
    assert re.findall(r'download="([\w-]+\.csv)"', page) == ["train-loss.csv", "validation-loss.csv"]


def test_a_network_that_overfits_is_named(results, tmp_path):
    from anyrnn.workbench.language.report import render  # noqa: PLC0415

    found = results.to_dict()
    history = [
        {"epoch": 1, "train_loss": 2.0, "validation_loss": 1.0},
        {"epoch": 2, "train_loss": 1.0, "validation_loss": 1.5},
    ]
    found["models"][0]["runs"][0] |= {"epoch": 1, "history": history}
    page = render(found, "answer", [("a", None), ("b", 1.0)], {})
    assert "GRU (seed 0) overfits from epoch 1 on: its validation loss rose by 0.72 bits" in page
