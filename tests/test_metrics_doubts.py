"""What nothing refuses is said: members that say nothing, foreign labels, OOD that is the test."""

import warnings

import numpy as np
import pytest
import torch
from deepens.experiments.cli.entry import main
from deepens.metrics import evaluate, evaluate_ood, open_logits, score_split

TWICE = "are identical: is one file given twice?"


def draw(members=3, n=300, classes=4, seed=0):
    generator = np.random.default_rng(seed)
    labels = generator.integers(classes, size=n)
    return generator.normal(size=(members, n, classes)) + 2 * np.eye(classes)[labels], labels


def said(call, *words, **options):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call(*words, **options)
    return [str(each.message) for each in caught if "is undefined" not in str(each.message)]


def changed(logits, how):
    logits = logits.copy()
    if how == "constant":
        logits[1] = logits[1, :1]
    elif how == "all constant":
        logits[:] = logits[:, :1]
    elif how == "twice":
        logits[2] = logits[0]
    elif how == "all one":
        logits[:] = logits[:1]
    elif how == "two pairs":
        logits = np.concatenate([logits[:2], logits[:2]])
    return logits


@pytest.mark.parametrize(
    ("how", "lines"),
    [
        ("sound", []),
        ("constant", ["member 1 gives the same output for all 300 samples"]),
        ("all constant", ["members 0, 1, 2 give the same output for all 300 samples"]),
        ("twice", [f"members 0, 2 {TWICE}"]),
        ("all one", [f"members 0, 1, 2 {TWICE}"]),
        ("two pairs", [f"members 0, 2 {TWICE}", f"members 1, 3 {TWICE}"]),
    ],
)
@pytest.mark.parametrize("rows", [None, 7])
def test_members_that_add_nothing_are_said_in_chunks_of_any_size(how, lines, rows):
    logits, labels = draw()
    with open_logits(changed(logits, how)) as source:
        found = said(score_split, source, torch.from_numpy(labels), rows=rows)
    shown = [line for line in found if "predictions are of" not in line]
    assert shown == [f"logits: {line}" for line in lines]


def test_members_that_begin_alike_and_differ_later_are_not_alike():
    logits, labels = draw()
    logits[:, :200] = logits[:1, :1]
    assert said(evaluate, logits, labels) == []


def test_a_single_model_without_a_view_is_said():
    _, labels = draw()
    assert said(evaluate, np.tile([0.3, 0.2, 0.1, 0.0], (300, 1)), labels) == [
        "logits: the model gives the same output for all 300 samples",
        "logits: all 300 predictions are of class 0",
    ]


def test_labels_of_one_class_or_of_other_samples_are_said():
    logits, labels = draw()
    assert said(evaluate, logits, labels * 0 + 2) == ["logits: all 300 labels are of class 2"]
    other = np.random.default_rng(1).permutation(labels)
    (line,) = said(evaluate, logits, other)
    assert "accuracy 0.2" in line
    assert "do the labels belong to these samples, in this order?" in line


def test_a_weak_model_and_good_labels_are_not_doubted():
    generator = np.random.default_rng(3)
    labels = generator.integers(10, size=2000)
    weak = generator.normal(size=(2, 2000, 10)) + 0.4 * np.eye(10)[labels]
    assert said(evaluate, weak, labels) == []


def test_ood_samples_that_are_the_test_samples_are_said_in_any_order():
    logits, _ = draw()
    other, _ = draw(seed=5)
    assert said(evaluate_ood, logits, other) == []
    for part, count in ((logits, "300 of 300"), (logits[:, 250:99:-1], "151 of 151")):
        (line,) = said(evaluate_ood, logits, part)
        assert line.startswith(f"{count} OOD samples have exactly the outputs of in-distribution")
    mixed = np.concatenate([other, logits[:, :100]], axis=1)
    (line,) = said(evaluate_ood, logits, mixed)
    assert line.startswith("100 of 400 OOD samples")


def test_outputs_of_few_digits_are_not_taken_for_the_same_samples():
    generator = np.random.default_rng(0)
    p, q = (generator.integers(0, 101, 500) / 100 for _ in range(2))
    both = [np.stack([1 - each, each], 1) for each in (p, q)]
    assert not any("exactly" in line for line in said(evaluate_ood, *both, kind="probs"))


def test_score_says_it_too(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    logits, labels = draw(1)
    np.save("a.npy", logits[0])
    np.save("y.npy", labels)
    words = ["score", "--logits", "a.npy", "a.npy", "--labels", "y.npy", "--ood", "o=a.npy"]
    assert main([*words, "--ood", "o=a.npy", "--quiet"]) == 0
    told = capsys.readouterr().err.splitlines()
    assert "deepens: logits: members 0, 1 are identical: is one file given twice?" in told
    assert any("o: 300 of 300 OOD samples have exactly the outputs" in line for line in told)
