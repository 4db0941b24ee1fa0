"""Benchmarks of packed and LoRA-ensembles: that they compare like with like, and run."""

import json
import re

import pytest
import torch
from deepens.ensembles import DeepEnsemble, Network, Objective
from deepens.ensembles.backbones import build
from deepens.ensembles.objective import ObjectiveValue
from deepens.experiments.benchmarks import cascade, harness, lora, objectives, packed
from deepens.experiments.benchmarks import step as one_step
from deepens.experiments.benchmarks.harness import Measurement
from torch import nn


def test_packed_candidates_are_judged_over_the_faster_layout_of_the_plain_network():
    def measured(name, seconds):
        return Measurement(name, (seconds,) * 3, (9.0,) * 3)

    found = {
        name: measured(name, seconds)
        for name, seconds in [
            ("plain network, contiguous", 2.0),
            ("plain network, channels last", 1.0),
            ("packed, loop, contiguous", 3.0),
            ("packed, loop, channels last", 1.5),
            ("deep ensemble of 4, channels last", 1.2),
        ]
    }
    rows, fastest = packed.judged(found)
    assert {row.baseline for row in rows} == {(1.0, 1.0, 1.0)}
    assert fastest.name == "packed, loop, channels last"
    assert fastest.slowdown.median == 1.5


def test_packed_benchmark_runs_and_writes_every_round(tmp_path, capsys):
    out = tmp_path / "packed.json"
    packed.main(
        f"--backbone resnet8 --members 2 --batch-size 4 --rounds 1 --steps 1 --executions loop "
        f"--threads 1 --out {out}".split()
    )
    written = json.loads(out.read_text())
    names = {each["name"] for each in written["measurements"]}
    assert {f"{what}, packed, loop, channels last" for what in packed.MOST} <= names
    assert "over the plain network's" in capsys.readouterr().out


@pytest.mark.slow  # four steps of vit-tiny
def test_every_candidate_of_the_lora_benchmark_takes_the_same_step():
    device = torch.device("cpu")
    gradients = {}
    for name, ensemble, objective in lora.candidates("vit-tiny/4", 2, device, copies=False):
        if name in (lora.NAIVE, lora.TOGETHER, lora.IN_TURN, lora.CHECKPOINTS):
            images, targets, _ = harness.cifar_batch(2, device)
            ensemble.zero_grad()
            objective(ensemble, images, targets)[0].backward()
            gradients[name] = {
                key: p.grad.clone() for key, p in ensemble.named_parameters() if p.requires_grad
            }
    assert len(gradients) == 4
    for name, found in gradients.items():
        for key, expected in gradients[lora.NAIVE].items():
            torch.testing.assert_close(
                found[key], expected, rtol=1e-3, atol=1e-5, msg=f"{name} {key}"
            )


class _SumOfLogits(Objective):
    def forward(self, ensemble, images, targets):
        total = ensemble(images).sum()
        return ObjectiveValue(total, total.detach().reshape(1))


class _OneLinear(DeepEnsemble):
    """A linear layer and nothing else: a view of the images, one product, a view of it."""

    def features(self, images, members):
        return [images.flatten(1)]

    def head(self, features, members):
        return self.networks[0].head(features[0])[None]


@pytest.mark.parametrize(("batch", "inputs", "outputs"), [(2, 64, 16), (128, 4, 8)])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_memory_of_a_step_is_that_of_activations_gradients_and_temporaries(
    batch, inputs, outputs, momentum
):
    def network():
        return Network(nn.Flatten(), nn.Linear(inputs, outputs, bias=False))

    ensemble = _OneLinear(network, seeds=[1])
    images, targets = torch.ones(batch, 1, 1, inputs), torch.zeros(batch, dtype=torch.long)
    step = one_step.Step(ensemble, _SumOfLogits(), images, targets)
    step.optimizer = torch.optim.SGD(ensemble.parameters(), lr=0.1, momentum=momentum)
    loss, seed = 1, 1  # the gradient of the loss itself is the seed of all others
    forward, backward = batch * outputs + loss, loss + seed + outputs * inputs
    for _ in range(2):
        found = one_step.memory_of(step, torch.device("cpu"))
        assert found == 4 * max(forward, backward)


@pytest.mark.slow
def test_lora_benchmark_runs_and_writes_every_round(tmp_path, capsys):
    out = tmp_path / "lora.json"
    options = "--backbones vit-tiny/4 --members 2 --batch-size 1 --rounds 1 --threads 1"
    lora.main([*options.split(), "--out", str(out)])
    written = json.loads(out.read_text())
    where = "vit-tiny/4 at 32 px, M = 2"
    measured = {each["name"] for each in written["measurements"]}
    assert measured >= {f"{name}, {where}" for name in (lora.NAIVE, lora.TOGETHER)}
    sizes = written["memory"][where]
    assert sizes[lora.IN_TURN] < sizes[lora.TOGETHER]
    assert "memory in turn over that of explicit copies" in capsys.readouterr().out


@pytest.mark.slow
def test_objectives_benchmark_runs_and_writes_every_round(tmp_path, capsys):
    out = tmp_path / "objectives.json"
    options = "--backbone resnet8 --members 2 --batch-size 4 --rounds 1 --threads 1"
    objectives.main([*options.split(), "--out", str(out)])
    written = json.loads(out.read_text())
    assert {each["name"] for each in written["measurements"]} >= {
        "deep ensemble, contiguous",
        "FoRDE, joint, channels last",
    }
    sizes = written["memory"]
    assert sizes[objectives.DEEP] < sizes[objectives.CHUNKED] < sizes[objectives.JOINT]
    assert "memory of chunked over that of joint" in capsys.readouterr().out
    objectives.main([*options.split(), "--memory-only", "--out", str(out)])
    assert json.loads(out.read_text())["memory"] == sizes
    assert "memory of chunked over that of joint" in capsys.readouterr().out


def test_cascade_benchmark_runs_and_its_candidates_answer_alike(tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("DEEPENS_DATA", raising=False)
    out = tmp_path / "cascade.json"
    cascade.main(
        "--images 64 --batch-size 32 --rounds 2 --singles 8 --threads 1 --members 2 "
        f"--out {out}".split()
    )
    written = json.loads(out.read_text())
    names = [each["name"] for each in written["measurements"]]
    assert names == [
        cascade.FIRST, cascade.CASCADE, cascade.QUEUE, cascade.FULL, cascade.ENSEMBLE
    ]  # fmt: skip
    assert written["work"]["reached"][0] == 1.0
    assert written["work"]["reached"][1] == pytest.approx(0.2, abs=0.04)
    printed = capsys.readouterr().out
    assert "scikit-learn's digits" in printed
    assert "cascade over its MACs" in printed
    assert "full window over the ensemble" in printed
    seconds = {each["name"]: each["seconds"] for each in written["measurements"]}
    (rate,) = re.findall(r"^first stage alone .*? ([\d.e+]+) \([^)]*\) +1 \(", printed, re.M)
    assert float(rate) == pytest.approx(sum(1 / each for each in seconds[cascade.FIRST]) / 2, 1e-2)
    singly = written["one_by_one_ms"]
    assert list(singly) == [cascade.FIRST, cascade.CASCADE, cascade.FULL, cascade.ENSEMBLE]
    for rounds in singly.values():
        assert len(rounds) == 2
        assert all(0 < each["p50"] <= each["p95"] for each in rounds)
    ours, first = (singly[name] for name in (cascade.FULL, cascade.FIRST))
    over = sum(a["p95"] / b["p95"] for a, b in zip(ours, first, strict=True)) / 2
    (shown,) = re.findall(r"^full window .*95th ([\d.]+) \(", printed, re.M)
    assert float(shown) == pytest.approx(over, rel=1e-2)


def test_one_by_one_the_cascade_runs_the_later_stages_of_some_images_only(monkeypatch):
    """What is timed is what the policy says, on the images given."""
    monkeypatch.delenv("DEEPENS_DATA", raising=False)
    images, _ = cascade.real_images(20)
    assert images.shape == (20, 3, 32, 32)
    assert images.unique(dim=0).shape[0] == 20
    ensemble = DeepEnsemble(
        lambda: build("resnet8", num_classes=10, channels=3, image_size=32), seeds=range(2)
    ).eval()
    policy, reached = cascade.calibrated_policy(ensemble, [images])
    models = cascade.make_models(ensemble, policy)
    runs, ran = {}, []
    features = ensemble.features
    monkeypatch.setattr(
        ensemble, "features", lambda x, members: ran.extend(members) or features(x, members)
    )
    for name, model in models.items():
        ran.clear()
        with torch.inference_mode():
            for image in images.split(1):
                model(image)
        runs[name] = [ran.count(index) for index in range(2)]
    assert runs[cascade.FULL] == runs[cascade.ENSEMBLE] == [20, 20]
    assert runs[cascade.FIRST] == [20, 0]
    assert runs[cascade.CASCADE] == [20, round(20 * reached[1])]
    whole = models[cascade.FULL](images).log_probs
    torch.testing.assert_close(models[cascade.ENSEMBLE](images), whole, rtol=1e-5, atol=1e-5)
