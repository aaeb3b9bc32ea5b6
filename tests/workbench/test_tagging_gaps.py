"""Tagging with missing values, with the time between steps, and with words as features."""

import csv
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from test_tagging import QUICK, SENTENCES, conll

import anyrnn
from anyrnn.errors import AnyRNNError
from anyrnn.workbench import load
from anyrnn.workbench.tagging import fit, load_tagged, open_tag_run, predict


def gappy(path: Path, sequences: int = 12, *, target: bool = True, ground: str = "dry") -> Path:
    """Rain with gaps at clock times, and whether more than 1 fell since the start; the ground is a word."""
    draws = np.random.default_rng(2)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("river", "time", "rain", "ground", *(("flow",) if target else ())))
        for k in range(sequences):
            fallen = 0.0
            for minute in np.cumsum(draws.integers(1, 30, 10)).tolist():
                rain = draws.random()
                fallen += rain
                seen = f"{rain:.3f}" if draws.random() < 0.6 else draws.choice(["", "-9"])
                word = "frozen" if k == 3 else "wet" if rain > 0.5 else ground
                clock = f"{minute // 60}:{minute % 60:02}"
                writer.writerow((f"r{k}", clock, seen, word, *(("high" if fallen > 3 else "low",) if target else ())))
    return path


GAPPY = {"id_column": "river", "time_column": "time", "target_column": "flow", "missing": "-9"}
TOLD = {**GAPPY, "gaps": "since", "delta_time": True}


def test_a_table_with_gaps_and_words_is_read_as_for_whole_sequences(tmp_path):
    path = gappy(tmp_path / "t.csv")
    data = load_tagged(path, **TOLD)
    assert data.features == ("rain", "ground=dry", "ground=frozen", "ground=wet", "delta time")
    assert data.reader.width == 15
    rows = [row.rsplit(",", 1)[0] for row in path.read_text().splitlines()[1:]]
    whole = [f"{row},{int(row.split(',')[0][1:]) % 2}" for row in rows]
    (tmp_path / "whole.csv").write_text("\n".join(["river,time,rain,ground,flow", *whole, ""]))
    other = load(tmp_path / "whole.csv", **TOLD, validation=0)
    ours, theirs = (
        {k: x for part in each.parts for k, x in zip(part.ids, part.x, strict=True)} for each in (data, other)
    )
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[k].nan_to_num(7.0), theirs[k].nan_to_num(7.0)) for k in ours)
    said = " ".join(data.notes)
    assert "feature 'ground' holds text: read as 3 features that are 0 or 1" in said
    assert "cells are missing ('rain'" in said
    assert "how long ago each feature was seen" in said


def test_a_word_that_training_has_not_is_none_of_its_features(tmp_path):
    path = gappy(tmp_path / "t.csv")
    data = load_tagged(path, **GAPPY, test=gappy(tmp_path / "test.csv", ground="icy"))
    assert data.test.x[0][:, 1:].sum(1).tolist().count(0.0) == 10 - int(data.test.x[0][:, 3].sum())
    assert any("feature 'ground' is 'icy', which is none of the words of the training" in note for note in data.notes)
    drawn = load_tagged(path, **GAPPY, seed=1)  # the only sequence with frozen ground is in the test part
    assert drawn.features == ("rain", "ground=dry", "ground=wet")
    assert not drawn.test.x[drawn.test.ids.index("r3")][:, 1:].any()
    assert any("no sequence of the training part has 'ground=frozen'" in note for note in drawn.notes)


@pytest.mark.parametrize("cell", ["gru-d", "lstm", "bilstm"])
def test_causal_answers_are_the_same_whatever_comes_later(tmp_path, cell):
    data = load_tagged(gappy(tmp_path / "t.csv"), **TOLD)
    with anyrnn.engine("reference"):  # which need not be compiled: it is the reading that could look ahead
        model = fit(data, cell, settings=QUICK).best.model
        x = data.test.x[0]
        for later in (torch.full_like(x[6:], math.nan), x[6:] * -3 + 50, x[:0]):
            changed = torch.cat((x[:6], later))
            one, other = (model.predict([each])[0].probabilities[:6] for each in (x, changed))
            assert torch.allclose(one, other, atol=1e-6, rtol=0) is (cell != "bilstm")


@anyrnn.engine("reference")
def test_a_run_of_gaps_and_words_is_kept_and_predicts_as_it_was_trained(tmp_path):
    data = load_tagged(gappy(tmp_path / "t.csv"), **TOLD)
    results = fit(data, "gru-d", settings=QUICK)
    folder = results.save(tmp_path / "run")
    assert json.loads((folder / "results.json").read_text())["dataset"]["gaps"] == "since"
    new = gappy(tmp_path / "new.csv", ground="icy")
    found = predict(open_tag_run(folder).model(), new)
    said = " ".join(found.notes)
    assert "feature 'ground' is 'icy', which is none of the words of the training" in said
    assert "cells are missing: a network gets the last value" in said
    assert [each.values for each in found.said] == [each.values for each in results.best.model.predict(found.read.x)]
    lines = [*csv.DictReader(found.csv().splitlines())]
    assert [*lines[0]] == ["id", "row", "prediction", "probability", "truth", "p(high)", "p(low)"]
    rows = [*csv.DictReader(new.read_text().splitlines())]
    for line in lines:
        assert line["truth"] == rows[int(line["row"]) - 1]["flow"]
        assert line["probability"] == line[f"p({line['prediction']})"] == max(line["p(high)"], line["p(low)"])
        assert float(line["p(high)"]) + float(line["p(low)"]) == pytest.approx(1, abs=2e-4)
    right = sum(line["truth"] == line["prediction"] for line in lines)
    assert found.scores["accuracy"] == right / len(lines)
    without = predict(open_tag_run(folder).model(), gappy(tmp_path / "bare.csv", target=False))
    assert without.csv().startswith("id,row,prediction,probability,p(high),p(low)\n")


@pytest.mark.parametrize(
    ("source", "options", "cell", "says"),
    [
        ("t.csv", GAPPY, "gru-d", r"told by gaps='fill'; expected gaps='since' \(--gaps since\)"),
        ("a.conll", {}, "gru-d", "cell 'gru-d' reads what is said of missing values, and words have none"),
        ("a.conll", {"gaps": "mask"}, "gru", "has no columns to name"),
        ("a.conll", {"answers": "numbers"}, "gru", "and classes only"),
        ("a.tsv", {"gaps": "mask"}, "gru", "with --id it is read as a table"),
        ("t.csv", {**GAPPY, "gaps": "masks"}, "gru", "Did you mean 'mask'"),
        ("t.csv", {**TOLD, "time_column": None, "feature_columns": ["rain"]}, "gru", "which takes the column that"),
    ],
)
def test_gaps_that_do_not_fit_are_refused(tmp_path, source, options, cell, says):
    gappy(tmp_path / "t.csv")
    for name in ("a.conll", "a.tsv"):
        conll(tmp_path, SENTENCES, name)
    with pytest.raises(AnyRNNError, match=says):
        fit(load_tagged(tmp_path / source, test=tmp_path / source, **options), cell, settings=QUICK)


def test_tabs_make_a_table_where_columns_are_named_and_a_text_where_none_are(tmp_path):
    gappy(tmp_path / "t.csv")
    (tmp_path / "t.tsv").write_text((tmp_path / "t.csv").read_text().replace(",", "\t"))
    data = load_tagged(tmp_path / "t.tsv", **GAPPY)
    model = fit(data, "rnn", settings=QUICK).best.model
    assert predict(model, tmp_path / "t.tsv").csv() == predict(model, tmp_path / "t.csv").csv()
    text = load_tagged(conll(tmp_path, SENTENCES, "a.tsv"), test=tmp_path / "a.tsv")
    assert text.has_words


def test_a_text_in_another_encoding_is_read_by_its_name(tmp_path):
    path = tmp_path / "x.conll"
    path.write_bytes("Zoé\tB-PER\nrit\tO\n".encode("latin-1"))
    assert load_tagged(path, test=path, encoding="latin-1").train.x == (("Zoé", "rit"),)
    with pytest.raises(AnyRNNError, match=r"is not UTF-8.*\(encoding, --encoding\)"):
        load_tagged(path)
