"""What peers give: ours are the numbers of metrics/README.md, and theirs as it explains."""

from pathlib import Path

import pytest
import torch
from deepens import metrics
from deepens.experiments.benchmarks.peers import data, rows

README = Path(metrics.__file__).with_name("README.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def table():
    return list(rows())


@pytest.mark.parametrize(
    ("name", "digits"),
    [("nll", 7), ("brier", 7), ("ece", 8), ("aurc", 7), ("augrc", 7), ("auroc_entropy", 7)],
)
def test_the_readme_has_the_numbers_of_the_script(table, name, digits):
    ours = next(ours for key, ours, _, _ in table if key == name)
    assert f"{ours:.{digits}f}" in README


@pytest.mark.parametrize("name", ["nll", "ece", "auroc_entropy"])
def test_installed_peers_agree(table, name):
    pairs = [
        (ours, float(theirs()))
        for key, ours, library, theirs in table
        if key == name and library in ("scikit-learn", "netcal", "torchmetrics")
    ]
    assert pairs
    for ours, theirs in pairs:
        assert theirs == pytest.approx(ours, abs=1e-6)


@pytest.mark.parametrize(("name", "value"), [("aurc", 0.2560760), ("augrc", 0.1635427)])
def test_torch_uncertainty_joins_points_by_trapezoids_over_the_coverages_that_they_span(
    name, value
):
    logits, targets, _ = data()
    probs = logits.double().softmax(-1).mean(0)
    n = len(targets)
    wrong = (probs.argmax(-1) != targets)[probs.amax(-1).argsort(descending=True, stable=True)]
    number = torch.arange(1, n + 1).double()
    risk = wrong.double().cumsum(0) / (number if name == "aurc" else n)
    area = torch.trapezoid(risk, number / n) / (1 - 1 / n)
    assert area.item() == pytest.approx(value, abs=5e-7)
    assert f"torch-uncertainty {value:.7f}" in README
