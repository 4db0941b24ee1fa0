"""Names of columns, rows and classes: by name where there are names, else refused or said."""

import numpy as np
import pandas
import pytest
import torch
from deepens.experiments.cli.entry import main
from deepens.metrics import evaluate, evaluate_ood, fit_conformal, fit_temperature, open_logits
from deepens.metrics.io.arrays import read_labels

ORDERED = "columns are taken in the order of their numbers"


def draw(classes=3, n=120, seed=0):
    generator = np.random.default_rng(seed)
    labels = generator.integers(classes, size=n)
    return generator.normal(size=(n, classes)) + 2 * np.eye(classes)[labels], labels


def frame(logits, names, order):
    return pandas.DataFrame(logits[:, order], columns=[names[place] for place in order])


def numbered(pattern, classes, first=0):
    return [pattern.format(place + first) for place in range(classes)]


@pytest.mark.parametrize("pattern", ["c{}", "{}", "logit_{}_raw", "class {}", "p{:02d}"])
@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize("suffix", [".csv", ".parquet", "frame"])
def test_columns_called_by_numbers_are_in_the_order_of_these(tmp_path, pattern, first, suffix):
    logits, labels = draw(12)
    names = numbered(pattern, 12, first)
    given = frame(logits, names, sorted(range(12), key=lambda place: names[place])[::-1])
    if suffix != "frame":
        table, given = given, tmp_path / f"a{suffix}"
        table.to_csv(given, index=False) if suffix == ".csv" else table.to_parquet(given)
    with pytest.warns(RuntimeWarning, match=f"{ORDERED}, {names[0]} as class 0, {names[-1]} as"):
        found = evaluate(given, labels, layout="NC")
    assert found["nll"] == pytest.approx(evaluate(logits, labels, layout="NC")["nll"])


def test_three_columns_called_2_0_1_are_names_and_not_a_sample(tmp_path):
    logits, labels = draw()
    file = tmp_path / "a.csv"
    frame(logits, ["0", "1", "2"], [2, 0, 1]).to_csv(file, index=False)
    with pytest.warns(RuntimeWarning, match=ORDERED):
        found = evaluate(file, labels, layout="NC")
    assert found["accuracy"] == evaluate(logits, labels, layout="NC")["accuracy"]
    file.write_text("2,0,1\n3,4,5\n6,7,8\n")  # whole numbers throughout: as they stand
    with open_logits(file, layout="NC") as source:
        assert source.shape == (1, 3, 3)


@pytest.mark.parametrize("header", ["0,1", "1,0", "1,2", "2,1"])
def test_two_numbers_before_other_numbers_may_be_names(tmp_path, header):
    (tmp_path / "a.csv").write_text(f"{header}\n0.25,0.5\n1.5,2.5\n")
    with pytest.raises(ValueError, match=f"begins with {header}, which may be names of columns"):
        open_logits(tmp_path / "a.csv", layout="NC")


def test_numbers_that_do_not_count_classes_must_ascend(tmp_path):
    logits, labels = draw()
    with pytest.raises(ValueError, match="order of the classes, got c10, c9, c2, whose numbers"):
        evaluate(pandas.DataFrame(logits, columns=["c10", "c9", "c2"]), labels, layout="NC")
    for names in (
        ["c2", "c9", "c10"],
        ["top3", "left1", "low2"],
        ["a", "b", "c"],
        ["x1", "b", "c"],
    ):
        found = evaluate(pandas.DataFrame(logits, columns=names), labels, layout="NC")
        assert found["accuracy"] == evaluate(logits, labels, layout="NC")["accuracy"]


def test_members_and_ood_sets_follow_the_first_table_and_its_order():
    logits, labels = draw()
    names = numbered("c{}", 3)
    with pytest.warns(RuntimeWarning, match=ORDERED):
        found = evaluate([frame(logits, names, [2, 1, 0]), frame(logits, names, [1, 0, 2])], labels)
    assert found["disagreement"] == 0
    other, _ = draw(seed=1)
    with pytest.warns(RuntimeWarning, match=ORDERED):
        shown = evaluate_ood(
            frame(logits, names, [2, 1, 0]), frame(other, names, [1, 0, 2]), layout="NC"
        )
    assert shown == evaluate_ood(logits, other, layout="NC")


def indexed(logits, labels, *, order=None, names=None):
    names = names or [f"image{place}" for place in range(len(labels))]
    table = pandas.DataFrame(logits, columns=list("abc"), index=names)
    series = pandas.Series(labels, index=names)
    return table, series if order is None else series.iloc[order]


def test_rows_with_an_index_are_paired_by_it():
    logits, labels = draw()
    order = np.random.default_rng(1).permutation(len(labels))
    table, series = indexed(logits, labels, order=order)
    plain = evaluate(logits, labels, layout="NC")
    assert evaluate(table, series, layout="NC") == plain
    labelled = pandas.DataFrame({"file": "x", "label": series}, index=series.index)
    assert evaluate(table, labelled, layout="NC") == plain
    with pytest.warns(RuntimeWarning, match="members 0, 1 are identical"):
        assert evaluate([table, table.iloc[order]], series)["disagreement"] == 0
    assert fit_temperature(table, series) == fit_temperature(logits, labels)
    expected = fit_conformal(torch.from_numpy(logits).log_softmax(-1), torch.from_numpy(labels))
    assert fit_conformal(table, series, kind="logits") == expected


def test_counted_rows_and_other_indices_correspond_by_place():
    logits, labels = draw()
    table, series = indexed(logits, labels)
    for one, two in (
        (table.reset_index(drop=True), series),
        (table, series.reset_index(drop=True)),
        (table.set_axis(range(500, 620)), series.reset_index(drop=True)),
        (table.set_axis(["same"] * 120), series.set_axis(["same"] * 120)),
        (table, labels),
    ):
        assert evaluate(one, two, layout="NC") == evaluate(logits, labels, layout="NC")


def test_indices_that_do_not_pair_are_refused():
    logits, labels = draw()
    table, series = indexed(logits, labels)
    order = np.random.default_rng(1).permutation(len(labels))
    for other, line in (
        (series.set_axis([f"picture{n}" for n in range(120)]), "lacks 'image0'; where rows"),
        (series.set_axis(["image0"] * 120), "lacks 'image1'"),
    ):
        with pytest.raises(ValueError, match=f"index of targets must have .* {line}"):
            evaluate(table, other, layout="NC")
    counted = table.reset_index(drop=True)
    with pytest.raises(ValueError, match=r"in another order, .*reset_index\(drop=True\)"):
        evaluate(counted, pandas.Series(labels).iloc[order], layout="NC")


@pytest.mark.parametrize("form", ["csv", "csv of words", "parquet", "series", "category", "list"])
def test_labels_may_be_names_of_the_columns(tmp_path, form):
    logits, labels = draw()
    names = ["cat", "eel", "dog"]
    words = [names[label] for label in labels]
    table = pandas.DataFrame({"filename": "x.png", "label": words})
    given = {
        "series": pandas.Series(words),
        "category": pandas.Series(words, dtype="category"),
        "list": words,
    }.get(form, tmp_path / f"y.{form[:7].split()[0]}")
    if form == "csv":
        table.to_csv(given, index=False)
    elif form == "csv of words":
        given.write_text("\n".join(words))
    elif form == "parquet":
        table.to_parquet(given)
    file = tmp_path / "a.csv"
    pandas.DataFrame(logits, columns=names).to_csv(file, index=False)
    assert evaluate(file, given, layout="NC") == evaluate(logits, labels, layout="NC")
    held = pandas.DataFrame(logits, columns=names)
    assert fit_temperature(held, given) == fit_temperature(logits, labels)


def test_words_that_name_no_class_are_refused_with_what_would_do(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    logits, labels = draw()
    np.save("a.npy", logits)
    pandas.DataFrame({"label": np.array(["cat", "dog", "eel"])[labels]}).to_csv("y.csv")
    pandas.DataFrame(logits, columns=["cat", "dog", "ant"]).to_csv("a.csv", index=False)
    words = ["score", "--labels", "y.csv", "--quiet", "--logits"]
    lines = []
    for file in ("a.npy", "a.csv"):
        assert main([*words, file]) == 2
        lines.append(capsys.readouterr().err)
    assert "y.csv must be class indices, since the logits' columns have no names" in lines[0]
    assert "y.csv must be names of the logits' columns, cat, dog, ant, or class" in lines[1]
    assert "got 'eel' at position" in lines[1]


def test_words_go_with_columns_by_number_too():
    names = ["class1", "class0"]
    logits = pandas.DataFrame(np.tile([[3.0, 0.0], [0.0, 3.0]], (10, 1)), columns=names)
    with pytest.warns(RuntimeWarning, match=ORDERED):
        assert fit_temperature(logits, ["class1", "class0"] * 10).unidentified.startswith("all 20")
    found = read_labels(["b", "a"], num_samples=2, num_classes=2, classes=("a", "b"))
    assert found.tolist() == [1, 0]


def test_whole_numbers_are_refused_with_the_remedy(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros((4, 3), dtype=np.int64))
    line = r"a\.npy must be floating point, got int64: convert raw outputs, in NumPy by \.astype"
    with pytest.raises(ValueError, match=line):
        open_logits(tmp_path / "a.npy")


@pytest.mark.parametrize("values", [np.array([["x" * 168]]), np.array([[b"x"]])])
def test_text_is_called_text(values):
    with pytest.raises(ValueError, match="of up to 64 bits, got text"):
        open_logits(values, layout="NC")
