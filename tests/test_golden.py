"""What finished runs hold is read, judged and reported as when it was written.

``golden/`` holds one run and one comparison on the digits, as an earlier version trained them, of
the shifted copies two only, and what that version concluded from their logits. Nothing is trained
here but what the last test resumes, so that the numbers hold on every processor.
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
    golden = json.loads((GOLDEN / "verdicts.json").read_text())
    rows = [dict(zip(golden["columns"], row, strict=True)) for row in golden[kind]]
    verdicts = {
        (v.challenger, v.baseline, v.metric, v.split): v for v in getattr(loaded_comparison, held)
    }
    assert len(verdicts) == len(rows)
    for row in rows:
        each = verdicts[row["challenger"], row["baseline"], row["metric"], row["split"]]
        assert each.outcome == row["outcome"]
        assert _close(each.estimate, row["difference"])
        assert all(map(_close, (each.low, each.high), row["interval"]))
        assert _close(each.raw_p_value, row["p_value"])
        assert _close(each.p_value, row["adjusted_p_value"])


@pytest.mark.usefixtures("unchecked")
def test_a_finished_comparison_is_not_trained_again(finished_comparison):
    path = finished_comparison.directory()
    compare(finished_comparison)
    for name in TRAINED:
        weights = Path(name).relative_to("comparison") / "weights.safetensors"
        assert (path / weights).read_bytes() == (GOLDEN / "comparison" / weights).read_bytes()
    stored = _results(path)
    assert all(_close(stored[k], v) for k, v in _results(GOLDEN / "comparison").items())
