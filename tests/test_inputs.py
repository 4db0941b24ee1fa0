"""What takes logits takes what `evaluate` does: any array, a list, a table, one model or many."""

import numpy as np
import pandas
import pytest
import torch
from deepens import metrics
from deepens.ensembles import policies
from deepens.experiments.cli.entry import main
from deepens.experiments.evaluation.predictions import Predictions

CLASSES = list("abc")


def draw(members=2, n=80):
    generator = torch.Generator().manual_seed(0)
    targets = torch.randint(3, (n,), generator=generator)
    logits = 2 * torch.randn(members, n, 3, generator=generator).double()
    logits[:, torch.arange(n), targets] += 1.5
    return logits, targets


def save(path, array):
    np.save(path, array)
    return str(path)


FORMS = {  # how members [M, N, C] are given, and with which options
    "tensor": lambda z, at: (z, {}),
    "array": lambda z, at: (z.numpy(), {}),
    "NMC": lambda z, at: (z.transpose(0, 1).numpy(), {"layout": "NMC"}),
    "list": lambda z, at: (list(z.numpy()), {}),
    "frames": lambda z, at: ([pandas.DataFrame(each, columns=CLASSES) for each in z.numpy()], {}),
    "file": lambda z, at: (save(at / "logits.npy", z.numpy()), {}),
    "log_probs": lambda z, at: (z.log_softmax(-1).numpy(), {"kind": "log_probs"}),
    "probs": lambda z, at: (z.softmax(-1).numpy(), {"kind": "probs"}),
}
LABELS = {
    "tensor": lambda y: y,
    "array": lambda y: y.numpy().astype(np.uint8),
    "list": lambda y: y.tolist(),
    "series": lambda y: pandas.Series(y.numpy()),
}


@pytest.mark.parametrize("labels", LABELS)
@pytest.mark.parametrize("form", FORMS)
def test_all_functions_and_shells_take_any_form(form, labels, tmp_path):
    logits, targets = draw()
    given, options = FORMS[form](logits, tmp_path)
    y = LABELS[labels](targets)

    fitted = metrics.fit_temperature(given, y, "pooled", **options)
    expected = metrics.fit_temperature(logits, targets, "pooled")
    assert fitted.values == pytest.approx(expected.values, rel=1e-6)
    torch.testing.assert_close(
        metrics.mixture_log_probs(fitted.scale(given, **options)),
        metrics.mixture_log_probs(expected.scale(logits)),
    )

    sets = metrics.fit_conformal(given, y, **({"kind": "logits"} | options))
    log_probs = metrics.mixture_log_probs(logits)
    assert sets.threshold == pytest.approx(metrics.fit_conformal(log_probs, targets).threshold)
    found = metrics.evaluate_sets(sets.sets(given, **({"kind": "logits"} | options)), y)
    assert 0.85 < found.coverage <= 1.0

    values = metrics.sample_values(given, y, **options)
    torch.testing.assert_close(values.nll, metrics.sample_values(logits, targets).nll)

    for shell in (metrics.NegativeLogLikelihood(), metrics.AreaUnderRiskCoverage()):
        shell.update(given, y, **options)
        key = "nll" if isinstance(shell, metrics.NegativeLogLikelihood) else "aurc"
        assert shell.compute().item() == pytest.approx(metrics.evaluate(logits, targets)[key])
    shell = metrics.OODAreaUnderROC("entropy")
    is_ood = (targets == 0) if labels == "tensor" else (targets == 0).numpy()
    shell.update(given, is_ood, **options)
    assert 0.0 < shell.compute().item() < 1.0


@pytest.mark.parametrize("labels", LABELS)
def test_two_axes_are_one_model(labels):
    logits, targets = draw(members=1)
    y = LABELS[labels](targets)
    expected = metrics.evaluate(logits, targets)
    for given in (logits[0], logits[0].numpy(), pandas.DataFrame(logits[0].numpy())):
        assert metrics.evaluate(given, y) == expected
        assert metrics.fit_temperature(given, y) == metrics.fit_temperature(logits, targets)
        nll = metrics.sample_values(logits, targets).nll
        assert torch.equal(metrics.sample_values(given, y).nll, nll)
        shell = metrics.Accuracy()
        shell.update(given, y)
        assert shell.compute().item() == expected["accuracy"]
    metrics.evaluate_ood(logits[0], logits[0].numpy())


def test_score_takes_one_model_without_a_layout(tmp_path, monkeypatch, capsys):
    logits, targets = draw(members=1)
    monkeypatch.chdir(tmp_path)
    np.save("one.npy", logits[0].numpy())
    np.save("labels.npy", targets.numpy())
    assert main(["score", "--logits", "one.npy", "--labels", "labels.npy", "--quiet"]) == 0
    assert "1 member" in capsys.readouterr().out


def test_policies_are_calibrated_on_what_evaluate_takes(tmp_path):
    logits, targets = draw(n=400)
    task = policies.Task(target_coverage=0.8)
    expected = policies.calibrate(list(logits.split(1)), targets, task)
    frames = [pandas.DataFrame(each.numpy()) for each in logits]
    files = [save(tmp_path / f"{place}.npy", each.numpy()) for place, each in enumerate(logits)]
    for given in (logits, logits.numpy(), list(logits.numpy()), frames, files):
        found = policies.calibrate(given, targets.tolist(), task)
        assert found.policy.to_dict() == expected.policy.to_dict()
        assert policies.assess(found.policy, given, targets.numpy()).reached == expected.reached
        assert len(policies.replay(found.policy, given)) == 400
    macs = {"macs": [1, 1], "budget": 1.5}
    searched = policies.search_windows(list(logits.numpy()), targets.numpy(), task, **macs)
    assert searched[1].images == 200


def test_policies_print_what_they_are():
    policy = policies.WindowPolicy([(0.25, 0.75), (float("inf"), float("-inf"))], threshold=0.5)
    assert repr(policy) == (
        "WindowPolicy(3 stages by msp, continue within [0.25, 0.75], nothing, accept from 0.5)"
    )
    assert "continue within everything" in repr(policies.WindowPolicy.full(2))


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("given", "options", "line"),
    [
        (np.zeros((4, 3, 2, 1)), {}, "logits must have 3 dimensions"),
        (np.zeros((4, 3), dtype=int), {}, "logits must be floating point"),
        (7, {}, "logits must be a path or an array .* got int"),
        (np.full((4, 3), 0.2), {"kind": "probs"}, "logits must sum to 1 over classes, got 0.6"),
        (np.zeros((4, 3)), {"kind": "softmax"}, "kind must be one of logits, log_probs, probs"),
        (np.zeros((4, 1)), {}, "1 - p beside p"),
    ],
)
def test_what_is_no_logits_is_refused_in_one_line_everywhere(given, options, line):
    y = [0, 1, 0, 1]
    for call in (
        lambda: metrics.fit_temperature(given, y, **options),
        lambda: metrics.sample_values(given, y, **options),
        lambda: metrics.evaluate(given, y, **options),
        lambda: metrics.Accuracy().update(given, y, **options),
        lambda: metrics.OODAreaUnderROC().update(given, np.array(y) == 1, **options),
    ):
        with pytest.raises(ValueError, match=line):
            call()


def test_scores_of_raw_outputs_are_refused_of_probabilities():
    shell = metrics.OODAreaUnderROC("energy")
    with pytest.raises(ValueError, match="score energy needs raw outputs, got kind='probs'"):
        shell.update(np.full((2, 2), 0.5), np.array([True, False]), kind="probs")


def test_a_runs_predictions_are_read_from_its_path(single_run):
    by_path = Predictions(str(single_run.path))
    assert torch.equal(by_path.logits("test"), Predictions(single_run).logits("test"))
