"""Detectors through training, evaluation and comparison: what files hold, and resuming."""

import csv
import dataclasses
from collections import Counter

import numpy as np
import pytest
import torch
from deepens.ensembles import LoRA, Packed
from deepens.experiments.cli.commands import run_evaluate
from deepens.experiments.cli.entry import main
from deepens.experiments.comparison.compare import compare
from deepens.experiments.config import CompareConfig, TrainConfig
from deepens.experiments.evaluation.evaluate import evaluate
from deepens.experiments.evaluation.options import EvaluateConfig
from deepens.experiments.evaluation.predictions import Predictions, load_metrics
from deepens.experiments.evaluation.train_and_evaluate import train_and_evaluate as train
from deepens.experiments.report.tables import detection_tables
from deepens.experiments.store.checkpoint import load_tensors, save_tensors
from deepens.experiments.store.progress import Display
from deepens.experiments.store.run import Run, read_json, write_json
from deepens.metrics.core.catalogue import DETECTORS, METRICS
from sklearn.metrics import average_precision_score, roc_auc_score
from stored_logits import load_logits

QUIET = Display(quiet=True)
OOD = ("near_ood/digits-8-9", "far_ood/photographs")
TINY = {
    "backbone": "vit-micro/4", "width": 0.25, "depth": 0.5, "lora": LoRA(rank=2, head_norm=True)
}  # fmt: skip
pytestmark = pytest.mark.usefixtures("unchecked")  # whole trainings; their parts are checked
MEASURES = ("auroc", "aupr_out", "aupr_in", "fpr95")


class Listener(Display):
    """A display that remembers what is said."""

    def __init__(self):
        super().__init__(quiet=True)
        self.lines = []

    def say(self, line):
        self.lines.append(line)


def _config(out, **changes):
    options = {"epochs": 1, "members": 2, "corruptions": ("none",), "quiet": True}
    return TrainConfig(out=str(out), **(options | changes))


@pytest.fixture(scope="module")
def splits(few_splits):
    return few_splits


@pytest.fixture(scope="module")
def plain(shared_run):
    return shared_run("without-detectors", epochs=1, members=2)


@pytest.fixture(scope="module")
def scored(shared_run):
    return shared_run("with-all-detectors", epochs=1, members=2, detectors=("all",))


@pytest.fixture
def with_gen(shared_run, copy_run):
    """A copy, which the test may change, of a run with one detector."""
    return copy_run(shared_run("with-gen", epochs=1, members=2, detectors=("gen",)))


def _files(run):
    """What predictions and metrics of a run are, byte for byte."""
    files = [*run.path.glob("predictions/**/*.safetensors"), run.metrics]
    return {str(file.relative_to(run.path)): file.read_bytes() for file in files}


def load_scores(run):
    predictions = Predictions(run)
    scores = {name: predictions.scores(name) for name in predictions.splits}
    return {name: each for name, each in scores.items() if each}


def _shared(metrics, others):
    return {split: {k: held[k] for k in others[split]} for split, held in metrics.items()}


def test_detectors_change_neither_weights_nor_logits_nor_the_other_metrics(plain, scored):
    assert scored.weights.read_bytes() == plain.weights.read_bytes()
    logits, others = load_logits(scored), load_logits(plain)
    assert logits.keys() == others.keys()
    for name, (values, targets) in logits.items():
        assert torch.equal(values, others[name][0])
        assert targets is None or torch.equal(targets, others[name][1])
    assert _shared(load_metrics(scored), load_metrics(plain)) == load_metrics(plain)


def test_every_split_has_the_scores_of_every_detector_and_member(scored):
    scores = load_scores(scored)
    assert set(scores) == {"val/calibrate", "val/conform", "test", *OOD}
    for name, (logits, _) in load_logits(scored).items():
        assert set(scores[name]) == set(DETECTORS)
        for values in scores[name].values():
            assert values.shape == logits.shape[:2]
    assert Predictions(scored).detectors == tuple(DETECTORS)


@pytest.mark.parametrize("name", DETECTORS)
@pytest.mark.parametrize("split", OOD)
def test_metrics_are_scikit_learns_of_the_mean_score_and_of_each_members_own(scored, name, split):
    held, scores = load_metrics(scored)[split], load_scores(scored)
    both = torch.cat([scores["test"][name], scores[split][name]], dim=1).numpy()
    is_ood = np.arange(both.shape[1]) >= held["n_id"]
    assert is_ood.sum() == held["n_ood"]
    for measure, reference in (
        ("auroc", lambda s: roc_auc_score(is_ood, s)),
        ("aupr_out", lambda s: average_precision_score(is_ood, s)),
        ("aupr_in", lambda s: average_precision_score(~is_ood, -s)),
    ):
        assert held[f"{measure}_{name}"] == pytest.approx(reference(both.mean(0)), abs=1e-12)
        own = np.mean([reference(member) for member in both])
        assert held[f"{measure}_{name}_member"] == pytest.approx(own, abs=1e-12)
    values = Predictions(scored).values(split)
    torch.testing.assert_close(values.detectors[name], scores[split][name].mean(0))


def test_every_metric_is_explained(scored):
    for split in OOD:
        held = load_metrics(scored)[split]
        for name in DETECTORS:
            for measure in MEASURES:
                for key in (f"{measure}_{name}", f"{measure}_{name}_member"):
                    low, high = METRICS[key].bounds
                    assert low <= held[key] <= high
                    assert METRICS[key].higher_is_better == (measure != "fpr95")


@pytest.mark.parametrize(
    ("ensemble", "options"),
    [
        ("packed", {"packed": Packed()}),
        ("lora", TINY),
        ("explicit", {}),
    ],
)
def test_members_of_every_family_are_scored_by_their_own_features(
    tmp_path, splits, ensemble, options
):
    config = _config(tmp_path / "run", ensemble=ensemble, detectors=("all",), **options)
    run = train(config, splits=splits, display=QUIET)
    scores, logits = load_scores(run), load_logits(run)
    for split in OOD:
        assert set(scores[split]) == set(DETECTORS)
        for name, values in scores[split].items():
            assert values.isfinite().all()
            assert not torch.equal(values[0], values[1]), name
        said = logits[split][0].double().softmax(-1)
        expected = (said**0.1 * (1 - said) ** 0.1).mean(-1)
        torch.testing.assert_close(scores[split]["gen"], expected, rtol=1e-6, atol=1e-9)


def test_one_network_has_no_mean_over_members(tmp_path, splits):
    config = _config(tmp_path / "run", members=1, detectors=("knn",))
    held = load_metrics(train(config, splits=splits, display=QUIET))[OOD[0]]
    assert "auroc_knn" in held
    assert not any(key.endswith("_member") for key in held)


def test_detectors_are_added_to_a_finished_run_without_training(copy_run, splits, scored, plain):
    def start(name):
        run = copy_run(plain, name)
        return run.config, run, (run.path / "log.csv").stat().st_mtime_ns

    config, run, log = start("resumed")
    for names in (("vim", "knn"), ("gen",), ("knn",)):
        train(dataclasses.replace(config, detectors=names), splits=splits, display=QUIET)
    assert Predictions(run).detectors == ("knn", "vim", "gen")
    assert (run.path / "log.csv").stat().st_mtime_ns == log
    # By another way, in another order.
    _, other, _ = start("evaluated")
    for names in (("gen",), ("knn", "vim")):
        evaluate(other, predict=True, detectors=names, splits=splits, display=QUIET)
    assert _files(run) == _files(other)
    wanted = {"gen", "knn", "vim"}
    for split, scores in load_scores(scored).items():
        for name in wanted:
            assert torch.equal(load_scores(run)[split][name], scores[name])
    # What is there is not made again, and asking for less takes nothing away.
    before = run.metrics.stat().st_mtime_ns
    for names in ((), ("vim",)):
        train(dataclasses.replace(config, detectors=names), splits=splits, display=QUIET)
    assert run.metrics.stat().st_mtime_ns == before
    evaluate(run, predict=True, splits=splits, display=QUIET)
    assert Predictions(run).detectors == ("knn", "vim", "gen")


def test_runs_and_predictions_of_earlier_versions_are_read(copy_run, plain):
    run = copy_run(plain)
    file = run.path / "config.yaml"
    file.write_text("".join(x for x in file.open() if not x.startswith(("detectors", "#"))))
    index = run.path / "predictions" / "index.json"
    held = read_json(index)
    write_json(index, {k: v for k, v in held.items() if k != "detectors"})
    assert Run.open(run.path).config.detectors == ()
    assert evaluate(Run.open(run.path), display=QUIET) == load_metrics(plain)
    assert load_scores(run) == {}


def test_detectors_by_the_command_line(tmp_path, plain, capsys):
    run = tmp_path / "run"
    words = ["train", "--out", str(run), "--epochs", "1", "--members", "2"]
    assert main([*words, "--corruptions", "none", "--detectors", "knn,vm"]) == 2
    assert "unknown detector 'vm'; did you mean 'vim'?" in capsys.readouterr().err
    assert not run.exists()
    assert main([*words, "--corruptions", "none", "--quiet"]) == 0
    assert main(["evaluate", str(run), "--detectors", "knn,vim"]) == 2
    said = capsys.readouterr().err
    assert f"run `deepens evaluate {run} --predict --detectors knn,vim`" in said
    assert run_evaluate(EvaluateConfig(str(run), True, ("knn", "vim"), quiet=True)) == 0
    assert "auroc_vim" in load_metrics(Run.open(run))[OOD[1]]


def test_predicting_mends_a_damaged_index(with_gen, splits):
    run = with_gen
    index = run.path / "predictions" / "index.json"
    before = index.read_text()
    for text in ("{", before.replace('"gen"', "[1]"), before.replace('"gen"', '"old"')):
        index.write_text(text)
        evaluate(run, predict=True, splits=splits, display=QUIET)
        assert index.read_text() == before


def test_scores_of_another_shape_are_refused(with_gen):
    run = with_gen
    file = run.prediction(OOD[0])
    tensors, content = load_tensors(file)
    save_tensors(file, tensors | {"detector/gen": torch.zeros(2, 7)}, content)
    with pytest.raises(ValueError, match=r"scores of the detector gen of shape \[2, 7\], not \[2,"):
        evaluate(run, display=QUIET)
    save_tensors(file, tensors | {"detector/gen": torch.full((2, 354), np.nan)}, content)
    index = run.path / "predictions" / "index.json"
    held = read_json(index)
    write_json(index, {k: v for k, v in held.items() if k != "checksums"})
    with pytest.raises(ValueError, match=r"digits-8-9\.safetensors: gen must be finite"):
        evaluate(run, display=QUIET)


def test_data_without_ood_images_are_told_once(tmp_path, splits):
    kept = {name: splits[name] for name in splits.names() if "_ood/" not in name}
    alone = dataclasses.replace(splits, splits=kept)
    display = Listener()
    config = CompareConfig(
        out=str(tmp_path / "digits"), methods=("single", "deep"), members=2, replicates=1,
        epochs=1, draws=100, detectors=("gen",), quiet=True,
    )  # fmt: skip
    compare(config, splits=alone, display=display)
    assert sum("has no OOD images" in line for line in display.lines) == 1


def _blocks(comparison):
    """Count the rows of each score in the tables of scores that are not compared."""
    folded = [each for each in detection_tables(comparison) if each.block == "folded"]
    table = folded[0].blocks[0]
    return Counter(row.group for row in table.rows)


def test_comparison_takes_detectors_up_and_shows_them(tmp_path, splits):
    config = CompareConfig(
        out=str(tmp_path / "digits"), methods=("single", "deep"), members=2, replicates=1,
        epochs=1, draws=100, corruptions=("none",), quiet=True,
    )  # fmt: skip
    before = compare(config, splits=splits, display=QUIET)
    weights = (tmp_path / "digits" / "deep-0" / "weights.safetensors").stat().st_mtime_ns
    more = dataclasses.replace(config, detectors=("relative_mahalanobis", "gen"))
    found = compare(more, splits=splits, display=QUIET)
    assert (tmp_path / "digits" / "deep-0" / "weights.safetensors").stat().st_mtime_ns == weights
    assert found.judgements == before.judgements
    blocks = _blocks(found)
    assert "relative Mahalanobis" not in _blocks(before)
    for label, methods in (("relative Mahalanobis", 2), ("GEN", 2), ("GEN, by member", 1)):
        assert blocks[label] == methods
    with (tmp_path / "digits" / "results.csv").open() as file:
        metrics = {row["metric"] for row in csv.DictReader(file) if row["method"] == "deep"}
    assert {"auroc_gen", "fpr95_relative_mahalanobis_member"} <= metrics
