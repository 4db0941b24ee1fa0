"""What finished runs hold is read, judged and reported as when it was written.

``golden/`` holds one run and one comparison on the digits, as an earlier version trained them, of
the shifted copies two only, and what that version concluded from their logits
(``verdicts.json``). Since then the interaction of images and networks counts once, where that makes
an interval shorter: ``verdicts_two_way.json`` holds what follows from the same logits by this rule.
Nothing is trained here but what the last test resumes, so that the numbers hold on every processor.
"""

import csv
import json
import math
import shutil
from pathlib import Path

import pytest
from deepens.experiments.cli.compare_command import rebuild
from deepens.experiments.comparison.compare import compare
from deepens.experiments.evaluation.evaluate import evaluate
from deepens.experiments.store.progress import Display
from deepens.experiments.store.run import Run

GOLDEN = Path(__file__).parent / "golden"
TRAINED = [f"comparison/{m}-{r}" for m in ("single", "wide", "deep", "packed") for r in (0, 1)]
QUIET = Display(quiet=True)


@pytest.fixture
def golden(tmp_path):
    shutil.copytree(GOLDEN, tmp_path / "golden")
    return tmp_path / "golden"


def _close(value, expected):
    expected = math.nan if expected is None else expected
    return value == pytest.approx(expected, abs=1e-9, rel=1e-9, nan_ok=True)


def _results(path):
    with (path / "results.csv").open(encoding="utf-8") as file:
        return {
            (r["method"], r["replicate"], r["split"], r["metric"]): float(r["value"])
            for r in csv.DictReader(file)
        }


@pytest.mark.parametrize("name", ["run", *TRAINED])
def test_metrics_of_a_run_follow_from_its_logits(golden, name):
    expected = json.loads((golden / name / "metrics.json").read_text())
    (golden / name / "metrics.json").unlink()
    metrics = evaluate(Run.open(golden / name))
    assert metrics.keys() == expected.keys()
    for split, values in expected.items():
        assert values.keys() <= metrics[split].keys()
        for metric, value in values.items():
            assert _close(metrics[split][metric], value), (split, metric)


@pytest.mark.usefixtures("unchecked")
def test_results_hold_the_numbers_of_the_runs(golden):
    expected = _results(golden / "comparison")
    (golden / "comparison" / "results.csv").unlink()
    rebuild(golden / "comparison", display=QUIET)
    held = _results(golden / "comparison")
    assert expected.keys() <= held.keys()
    assert all(_close(held[key], value) for key, value in expected.items())
    assert (golden / "comparison" / "report.html").stat().st_size > 100_000


@pytest.mark.parametrize(
    ("kind", "held"), [("verdicts", "judgements"), ("against_singles", "against_singles")]
)
def test_verdicts_are_those_concluded_from_the_same_logits(loaded_comparison, kind, held):
    for each, row in _beside(loaded_comparison, "verdicts_two_way.json", kind, held):
        assert each.outcome == row["outcome"]
        assert _close(each.estimate, row["difference"])
        assert all(map(_close, (each.low, each.high), row["interval"]))
        assert _close(each.raw_p_value, row["p_value"])
        assert _close(each.p_value, row["adjusted_p_value"])


@pytest.mark.parametrize(
    ("kind", "held"), [("verdicts", "judgements"), ("against_singles", "against_singles")]
)
def test_nothing_that_an_earlier_version_concluded_is_taken_back(loaded_comparison, kind, held):
    same = 0
    for each, row in _beside(loaded_comparison, "verdicts.json", kind, held):
        low, high = (math.nan if end is None else end for end in row["interval"])
        assert each.outcome == row["outcome"]
        assert _close(each.estimate, row["difference"])
        if not _close(each.low, low):
            assert low < each.low < each.high < high
        if row["p_value"] is not None:
            assert each.raw_p_value <= row["p_value"] + 1e-9
            assert each.p_value <= row["adjusted_p_value"] + 1e-9
            same += _close(each.raw_p_value, row["p_value"])
    # Most rest on what images and replicates add each by itself, and are as they were.
    assert same > sum(each.outcome != "undefined" for each in getattr(loaded_comparison, held)) / 3


def _beside(comparison, file, kind, held):
    """Each verdict and what a file of golden ones says of it."""
    golden = json.loads((GOLDEN / file).read_text())
    rows = [dict(zip(golden["columns"], row, strict=True)) for row in golden[kind]]
    # The cascade, which no single model costs as much as, had no verdict in earlier versions.
    held = [v for v in getattr(comparison, held) if not v.between]
    found = {(v.challenger, v.baseline, v.metric, v.split): v for v in held}
    assert len(found) == len(rows)
    keys = ("challenger", "baseline", "metric", "split")
    return [(found[tuple(row[key] for key in keys)], row) for row in rows]


@pytest.mark.usefixtures("unchecked")
def test_a_finished_comparison_is_not_trained_again(finished_comparison):
    path = finished_comparison.directory()
    compare(finished_comparison)
    for name in TRAINED:
        weights = Path(name).relative_to("comparison") / "weights.safetensors"
        assert (path / weights).read_bytes() == (GOLDEN / "comparison" / weights).read_bytes()
    stored = _results(path)
    assert all(_close(stored[k], v) for k, v in _results(GOLDEN / "comparison").items())
