"""Metrics from saved logits: the same as from the network, and nothing foreign is read."""

import dataclasses
import itertools
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from deepens.experiments.config import TrainConfig
from deepens.experiments.evaluation.evaluate import evaluate
from deepens.experiments.evaluation.predictions import load_metrics
from deepens.experiments.evaluation.train_and_evaluate import train_and_evaluate as train
from deepens.experiments.store.checkpoint import save_tensors
from deepens.experiments.store.progress import Display
from deepens.experiments.store.run import Run, read_json, write_json
from deepens.experiments.training.weights import load_ensemble
from safetensors.torch import save_file
from sklearn.metrics import average_precision_score, log_loss, roc_auc_score
from stored_logits import load_logits

GOLDEN = Path(__file__).parent / "golden" / "comparison"
QUIET = Display(quiet=True)


def test_saved_logits_are_those_of_the_saved_network(run, splits):
    ensemble, form = load_ensemble(run)
    images = splits["test"].images.double() / 255
    images = (images - form.mean[0]) / form.std[0]
    with torch.no_grad():
        expected = ensemble.double()(images)
    logits, _ = load_logits(run)["test"]
    torch.testing.assert_close(logits.double(), expected, rtol=1e-4, atol=1e-4)


def test_metrics_agree_with_scikit_learn_on_the_saved_logits(run):
    metrics = load_metrics(run)
    probabilities = {
        name: logits.double().softmax(-1).mean(0).numpy()
        for name, (logits, _) in load_logits(run).items()
    }
    targets = load_logits(run)["test"][1].numpy()
    test = probabilities["test"]
    assert metrics["test"]["nll"] == pytest.approx(log_loss(targets, test), abs=1e-9)
    assert metrics["test"]["accuracy"] == (test.argmax(-1) == targets).mean()
    for name in ("near_ood/digits-8-9", "far_ood/photographs"):
        scores = 1 - np.concatenate([test.max(-1), probabilities[name].max(-1)])
        is_ood = np.arange(len(scores)) >= len(test)
        held = metrics[name]
        assert held["auroc_msp"] == pytest.approx(roc_auc_score(is_ood, scores), abs=1e-9)
        expected = average_precision_score(is_ood, scores)
        assert held["aupr_out_msp"] == pytest.approx(expected, abs=1e-9)
        assert (held["n_id"], held["n_ood"]) == (len(test), len(probabilities[name]))


def test_evaluating_again_changes_nothing_and_needs_no_network(run):
    before = load_metrics(run)
    run.metrics.unlink()
    run.weights.unlink()
    again = evaluate(run, display=QUIET)
    assert again == before == load_metrics(run)


def test_cascade_of_a_comparison_is_refused_and_stays_as_it_is(tmp_path):
    copy = shutil.copytree(GOLDEN / "cascade-deep-0", tmp_path / "cascade-deep-0")
    before = (copy / "metrics.json").read_bytes()
    with pytest.raises(ValueError, match="follow from its ensemble: run `deepens compare` again"):
        evaluate(Run.open(copy), display=QUIET)
    assert (copy / "metrics.json").read_bytes() == before


def test_predicting_again_restores_the_predictions(run, splits, unchecked):
    before = run.metrics.read_text()
    logits = load_logits(run)["test"][0]
    shutil.rmtree(run.path / "predictions")
    evaluate(run, predict=True, splits=splits, display=QUIET)
    assert run.metrics.read_text() == before
    assert torch.equal(load_logits(run)["test"][0], logits)


def test_logits_of_shift_splits_are_kept_when_asked_for_and_agree(run):
    assert _agreeing_shift_splits(run) == 5


@pytest.mark.slow
def test_logits_of_all_corruptions_are_kept_when_asked_for_and_agree(tmp_path):
    config = TrainConfig(
        out=str(tmp_path / "run"), epochs=1, members=2, quiet=True, keep_logits=True
    )
    assert _agreeing_shift_splits(train(config, display=QUIET)) == 25


def _agreeing_shift_splits(run) -> int:
    """Check the metrics of shift splits against the stored logits; return their number."""
    metrics, logits = load_metrics(run), load_logits(run)
    names = [name for name in metrics if name.startswith("shift/")]
    for name in names:
        values, targets = logits[name]
        predicted = values.double().softmax(-1).mean(0).argmax(-1)
        assert metrics[name]["accuracy"] == float((predicted == targets).double().mean())
    return len(names)


def test_gradient_similarity_of_each_split_is_that_of_the_saved_network(run, splits):
    metrics = load_metrics(run)
    ensemble, form = load_ensemble(run)
    networks = [ensemble.member(i).double().eval() for i in range(3)]
    for name, most in (("test", 512), ("near_ood/digits-8-9", 512), ("shift/contrast/3", 128)):
        split = splits[name]
        count = min(len(split), most)
        chosen = [(2 * i + 1) * len(split) // (2 * count) for i in range(count)]
        images = (split.images[chosen].double() / 255 - form.mean[0]) / form.std[0]
        images.requires_grad_()
        logits = torch.stack([network(images) for network in networks])
        said = logits.softmax(-1).mean(0).argmax(-1)
        classes = said if split.targets is None else split.targets[chosen]
        gradients = [
            torch.autograd.grad(own[torch.arange(count), classes].sum(), images, retain_graph=True)[
                0
            ].flatten(1)
            for own in logits
        ]
        pairs = [
            torch.cosine_similarity(a, b).mean() for a, b in itertools.combinations(gradients, 2)
        ]
        expected = torch.stack(pairs).mean().item()
        assert metrics[name]["input_gradient_similarity"] == pytest.approx(expected, abs=1e-4)
        assert metrics[name]["n_gradients"] == count
    measured = {name for name, held in metrics.items() if "n_gradients" in held}
    assert measured == {name for name in metrics if not name.startswith("val/")}


def test_ambiguity_decomposition_holds_on_every_labelled_split(run):
    metrics = load_metrics(run)
    labelled = [name for name in metrics if "_ood/" not in name]
    assert len(labelled) == 8
    for name in labelled:
        held = metrics[name]
        assert held["nll"] == pytest.approx(held["mean_member_nll"] - held["jensen_gap"], abs=1e-12)
        gained = held["mean_member_brier"] - held["brier_ambiguity"]
        assert held["brier"] == pytest.approx(gained, abs=1e-12)
    assert all(held["pairwise_kl"] > 0 for held in metrics.values())


def test_predictions_of_an_earlier_version_are_evaluated_without_gradients(run):
    before = load_metrics(run)
    file = run.path / "predictions" / "index.json"
    index = read_json(file)
    file.write_text(json.dumps({k: v for k, v in index.items() if k != "gradients"}))
    added = {"input_gradient_similarity", "n_gradients"}
    assert evaluate(run, display=QUIET) == {
        split: {k: v for k, v in held.items() if k not in added} for split, held in before.items()
    }
    file.write_text(json.dumps(index | {"gradients": [1]}))
    with pytest.raises(ValueError, match=r"index\.json is missing or damaged"):
        evaluate(run, display=QUIET)


def test_one_network_has_no_gradient_similarity(single_run):
    held = load_metrics(single_run)
    assert not any("n_gradients" in each for each in held.values())
    assert held["test"]["jensen_gap"] == held["test"]["pairwise_kl"] == 0.0


def test_truncated_predictions_are_named(run):
    file = run.prediction("test")
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"test\.safetensors is truncated or damaged"):
        evaluate(run, display=QUIET)


def test_foreign_predictions_are_refused(run):
    save_file({"logits": torch.zeros(3, 577, 8)}, run.prediction("test"))
    with pytest.raises(ValueError, match=r"test\.safetensors was not written by deepens"):
        evaluate(run, display=QUIET)


def test_predictions_of_another_split_are_refused(run):
    shutil.copy(run.prediction("val/calibrate"), run.prediction("test"))
    with pytest.raises(ValueError, match="no predictions of the split 'test'"):
        evaluate(run, display=QUIET)


def test_predictions_of_other_weights_are_refused(run):
    logits, targets = load_logits(run)["test"]
    content = {"split": "test", "data": "", "weights": "0" * 64}
    save_tensors(run.prediction("test"), {"logits": logits, "targets": targets}, content)
    with pytest.raises(ValueError, match=r"predictions of other weights .*evaluate .*--predict"):
        evaluate(run, display=QUIET)


@pytest.mark.parametrize("name", ["test", "near_ood/digits-8-9", "val/conform"])
def test_missing_predictions_are_named_with_the_remedy(run, name):
    run.prediction(name).unlink()
    line = rf"{name}\.safetensors is missing or damaged; run `deepens evaluate .* --predict`"
    with pytest.raises(ValueError, match=line):
        evaluate(run, display=QUIET)


@pytest.mark.parametrize("text", ["[1]", "{}", '{"splits": []}', '{"splits": ["test"]}', "{"])
def test_damaged_index_of_predictions_is_named(run, text):
    (run.path / "predictions" / "index.json").write_text(text)
    with pytest.raises(ValueError, match=r"index\.json is missing or damaged"):
        evaluate(run, display=QUIET)


@pytest.mark.parametrize("text", ["[]", "{}", '{"test": {}}', '{"test": [1]}', ""])
def test_damaged_metrics_are_named(run, text):
    run.metrics.write_text(text)
    with pytest.raises(ValueError, match=r"metrics\.json is missing or damaged"):
        load_metrics(run)


@pytest.mark.parametrize("shape", [(3, 354, 5), (2, 354, 8), (3, 354)])
def test_predictions_of_another_shape_are_refused(run, shape):
    from deepens.experiments.store.checkpoint import load_tensors

    file = run.prediction("near_ood/digits-8-9")
    _, content = load_tensors(file)
    save_tensors(file, {"logits": torch.zeros(shape)}, content)
    with pytest.raises(ValueError, match=r"holds logits of shape .*, not \[3, samples, 8\]"):
        evaluate(run, display=QUIET)


def test_logits_that_are_not_finite_are_named_with_their_file(run):
    from deepens.experiments.store.checkpoint import load_tensors

    file = run.prediction("test")
    tensors, content = load_tensors(file)
    tensors["logits"][1, 2, 3] = float("nan")
    save_tensors(file, tensors, content)
    index = run.path / "predictions" / "index.json"
    recorded = read_json(index)
    write_json(index, {name: recorded[name] for name in recorded if name != "checksums"})
    with pytest.raises(ValueError, match=r"test\.safetensors: logits must be finite, got nan"):
        evaluate(run, display=QUIET)


def test_data_that_changed_since_the_training_is_refused(run, splits):
    seen = splits["train"]
    changed = dataclasses.replace(seen, images=255 - seen.images)
    other = dataclasses.replace(splits, splits={**splits.splits, "train": changed})
    with pytest.raises(ValueError, match="was trained on other data than digits holds now"):
        evaluate(run, predict=True, splits=other, display=QUIET)
    with pytest.raises(ValueError, match="was trained on other data than digits holds now"):
        train(run.config, splits=other, display=QUIET)


def test_other_test_images_are_predicted_with_the_weights_there_are(run, splits, unchecked):
    before = run.weights.read_bytes()
    logits, _ = load_logits(run)["test"]
    test = splits["test"]
    changed = dataclasses.replace(test, images=test.images.flip(-1))
    added = dataclasses.replace(splits["near_ood/digits-8-9"])
    more = {"test": changed, "far_ood/more": added}
    train(
        dataclasses.replace(run.config, out=str(run.path)),
        splits=dataclasses.replace(splits, splits={**splits.splits, **more}),
        display=QUIET,
    )
    assert run.weights.read_bytes() == before
    assert not torch.equal(load_logits(run)["test"][0], logits)
    assert "far_ood/more" in load_metrics(run)


def test_run_of_a_machine_with_a_gpu_is_used_on_one_without(run):
    file = run.path / "config.yaml"
    _, text = file.read_text().split("\n", 1)  # an edit goes without the checksum
    file.write_text(text.replace("device: auto", "device: cuda"))
    assert "device: cuda" in file.read_text()
    assert Run.open(run.path).config.device == "auto"


def test_truncated_weights_are_named(run):
    run.weights.write_bytes(run.weights.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"weights\.safetensors is truncated or damaged"):
        load_ensemble(run)
    with pytest.raises(ValueError, match=r"weights\.safetensors is truncated or damaged"):
        evaluate(run, display=QUIET)
    with pytest.raises(ValueError, match=r"weights\.safetensors is truncated or damaged"):
        train(dataclasses.replace(run.config, out=str(run.path)), display=QUIET)


def test_weights_of_another_run_are_refused(run, shared_run):
    other = shared_run("other-deep", members=3, epochs=1, seed=1)
    shutil.copy(other.weights, run.weights)
    line = r"weights\.safetensors belongs to another run \(.*epochs: 4, not 1"
    with pytest.raises(ValueError, match=line):
        load_ensemble(run)


def test_weights_without_a_tensor_are_refused(run):
    from deepens.experiments.store.checkpoint import load_tensors

    tensors, content = load_tensors(run.weights)
    tensors.pop("networks.1.head.weight")
    save_tensors(run.weights, tensors, content)
    with pytest.raises(ValueError, match=r"1 tensors differ, such as networks\.1\.head\.weight"):
        load_ensemble(run)


def test_run_without_weights_says_what_to_do(run):
    run.weights.unlink()
    with pytest.raises(ValueError, match="has no trained ensemble yet .* run `deepens train`"):
        evaluate(run, predict=True, display=QUIET)
