"""Cascades as methods: their answers are evaluated by the code that evaluates every run."""

import dataclasses
from pathlib import Path

import pytest
import torch
from deepens.ensembles.policies import WindowPolicy, calibrate, replay
from deepens.ensembles.policies.calibration import Task
from deepens.experiments.comparison.cascade_runs import (
    CascadeModel,
    CascadeRecord,
    cascade_logits,
    make_cascade,
)
from deepens.experiments.config import CascadePolicy
from deepens.experiments.cost.macs import count_macs
from deepens.experiments.evaluation.predictions import Predictions, load_metrics
from deepens.experiments.store.run import CALIBRATION, Run
from deepens.experiments.training.weights import load_ensemble
from deepens.metrics import energy_score
from deepens.metrics.core.mixture import mixture_log_probs
from deepens.metrics.scoring.proper_scores import negative_log_likelihood
from stored_logits import load_logits

OPTIONS = CascadePolicy(target_coverage=0.8)
pytestmark = pytest.mark.usefixtures("unchecked")  # whole trainings; their parts are checked


GOLDEN = Path(__file__).parent / "golden" / "comparison"


@pytest.fixture(scope="module")
def source():
    """A stored run of two members, with the logits of two shifted copies."""
    return Run.open(GOLDEN / "deep-0")


@pytest.fixture
def stages(seeded):
    return [3 * torch.randn(1, 400, 5, dtype=torch.float64) for _ in range(3)]


def test_a_full_window_has_the_mixture_and_the_energy_of_all_members(stages):
    answers, reached = cascade_logits(WindowPolicy.full(3), stages)
    together = torch.cat(stages)
    expected = mixture_log_probs(together)
    torch.testing.assert_close(mixture_log_probs(answers), expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(energy_score(answers), energy_score(together), rtol=0, atol=1e-12)
    assert reached.tolist() == [1.0, 1.0, 1.0]


def test_an_empty_window_has_the_logits_of_the_first_stage(stages):
    answers, reached = cascade_logits(WindowPolicy.first(3), stages)
    torch.testing.assert_close(answers, stages[0], rtol=0, atol=1e-12)
    assert reached.tolist() == [1.0, 0.0, 0.0]


def test_each_image_has_the_mixture_and_energy_of_the_members_that_ran(stages):
    policy = WindowPolicy([(0.5, 0.9), (0.6, 0.8)])
    answers, _ = cascade_logits(policy, stages)
    stage = replay(policy, stages).stage
    assert set(stage.tolist()) == {1, 2, 3}
    for ran in (1, 2, 3):
        here = stage == ran
        members = torch.cat(stages[:ran])[:, here]
        found = mixture_log_probs(answers[:, here])
        torch.testing.assert_close(found, mixture_log_probs(members), rtol=0, atol=1e-12)
        energy = energy_score(answers[:, here])
        torch.testing.assert_close(energy, energy_score(members), rtol=0, atol=1e-12)


def test_metrics_are_those_of_the_replayed_cascade(source, tmp_path):
    found = make_cascade(Predictions(source), tmp_path / "cascade", OPTIONS, policy="window")
    logits = {name: each for name, (each, _) in load_logits(source).items()}
    labels = {name: each for name, (_, each) in load_logits(source).items()}
    calibration = [logits["val/calibrate"][[i]] for i in range(2)]
    policy = calibrate(calibration, labels["val/calibrate"], Task("selective", None, 0.8)).policy
    assert found.policy.to_dict() == policy.to_dict()
    metrics = load_metrics(found.run)
    shifted = [name for name in logits if name.startswith("shift/")]
    assert shifted
    for name in ("test", *shifted):
        answers = replay(policy, [logits[name][[i]] for i in range(2)])
        nll = negative_log_likelihood(answers.log_probs, labels[name]).mean().item()
        assert metrics[name]["nll"] == pytest.approx(nll, abs=1e-6)
        accuracy = (answers.predicted == labels[name]).double().mean().item()
        assert metrics[name]["accuracy"] == pytest.approx(accuracy, abs=1e-12)
    assert metrics.keys() >= {name for name in load_metrics(source) if name != "train"}
    assert Predictions(found.run).splits == Predictions(source).splits


def test_average_macs_are_those_of_the_share_that_goes_on(source, tmp_path):
    found = make_cascade(Predictions(source), tmp_path / "cascade", OPTIONS, policy="window")
    ensemble, form = load_ensemble(source)
    one = count_macs(ensemble.member(0), form.shape)
    logits, _ = load_logits(source)["test"]
    on = (replay(found.policy, [logits[[0]], logits[[1]]]).stage == 2).double().mean().item()
    assert 0 < on < 1
    assert found.average_macs == pytest.approx((1 + on) * one, rel=1e-12)


def test_the_single_threshold_sends_on_as_many_calibration_images(source, tmp_path):
    window = make_cascade(Predictions(source), tmp_path / "window", OPTIONS, policy="window")
    single = make_cascade(Predictions(source), tmp_path / "single", OPTIONS, policy="single")
    logits, targets = load_logits(source)["val/calibrate"]
    shares = [
        (replay(each.policy, [logits[[0]], logits[[1]]]).stage == 2).double().mean().item()
        for each in (window, single)
    ]
    assert abs(shares[0] - shares[1]) <= 1.5 / len(targets)
    assert single.policy.windows[0][0] == -torch.inf
    assert window.policy.windows[0][0] > -torch.inf


def test_what_was_calibrated_is_kept_until_its_options_or_members_change(source, tmp_path):
    path = tmp_path / "cascade"
    first = make_cascade(Predictions(source), path, OPTIONS, policy="window")
    written = (path / CALIBRATION).stat().st_mtime_ns
    again = make_cascade(Predictions(source), path, OPTIONS, policy="window")
    assert (path / CALIBRATION).stat().st_mtime_ns == written
    assert again.average_macs == first.average_macs
    wider = make_cascade(
        Predictions(source), path, dataclasses.replace(OPTIONS, width=0.3), policy="window"
    )
    assert wider.average_macs > first.average_macs
    (path / "metrics.json").unlink()  # killed before it was whole
    make_cascade(
        Predictions(source), path, dataclasses.replace(OPTIONS, width=0.3), policy="window"
    )
    assert (path / "metrics.json").exists()


@pytest.mark.parametrize("number", [0, 1])
def test_metrics_and_records_are_those_of_earlier_versions(number, tmp_path):
    source = Run.open(GOLDEN / f"deep-{number}")
    earlier = CascadeRecord.open(GOLDEN / f"cascade-deep-{number}", source)
    made = make_cascade(Predictions(source), tmp_path / "cascade", CascadePolicy(), policy="window")
    assert not (made.path / "config.yaml").exists()
    assert made.policy.to_dict() == earlier.policy.to_dict()
    assert made.macs == earlier.macs
    for split, shares in made.reached.items():
        assert shares == pytest.approx(earlier.reached[split], abs=1e-12)
    metrics, expected = made.predictions.metrics, earlier.predictions.metrics
    assert metrics.keys() == expected.keys()
    for split, values in metrics.items():
        assert values == pytest.approx(expected[split], abs=1e-9, nan_ok=True)


def test_a_damaged_record_is_refused(source, tmp_path):
    made = make_cascade(Predictions(source), tmp_path / "cascade", OPTIONS, policy="window")
    (made.path / CALIBRATION).write_text('{"policy": 3}')
    with pytest.raises(ValueError, match="calibration.json is missing or damaged"):
        CascadeRecord.open(made.path, source)


def test_a_cascade_of_one_stage_is_refused(tmp_path):
    alone = Run.open(GOLDEN / "single-0")
    with pytest.raises(ValueError, match=r"a cascade needs >= 2 stages, and .* has 1 member"):
        make_cascade(Predictions(alone), tmp_path / "cascade", OPTIONS, policy="window")


def test_the_module_that_is_timed_answers_as_the_cascade(source, tmp_path):
    found = make_cascade(Predictions(source), tmp_path / "cascade", OPTIONS, policy="window")
    ensemble, form = load_ensemble(source)
    images = torch.rand(32, *form.shape, generator=torch.Generator().manual_seed(0))
    model = CascadeModel(ensemble.eval(), found.policy)
    with torch.no_grad():
        together = ensemble(images)
        answers = replay(found.policy, [together[[0]], together[[1]]])
    torch.testing.assert_close(model(images), answers.log_probs, rtol=0, atol=1e-5)
    assert len(list(model.parameters())) == len(list(ensemble.parameters()))


def test_both_targets_at_once_are_refused():
    with pytest.raises(ValueError, match="target_coverage or target_risk, got both"):
        CascadePolicy(target_coverage=0.8, target_risk=0.1)
    assert CascadePolicy().coverage == 0.8
    assert CascadePolicy(target_risk=0.1).coverage is None
