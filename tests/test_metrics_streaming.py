"""Every shell: one batch, many batches, merged processes and casts give one number."""

import copy
import functools
import json
import pickle
import subprocess
import sys

import pytest
import torch
from deepens.metrics import (
    Accuracy,
    AreaUnderGeneralizedRiskCoverage,
    AreaUnderRiskCoverage,
    BrierAmbiguity,
    BrierScore,
    CosineSimilarity,
    CoverageAtRisk,
    Disagreement,
    EnsembleImprovementRate,
    ExpectedCalibrationError,
    JensenGap,
    MeanConfidence,
    MutualInformation,
    NegativeLogLikelihood,
    NormalizedDisagreement,
    OODAreaUnderROC,
    OODAveragePrecision,
    OODFalsePositiveRate,
    PairwiseKL,
    TopKAccuracy,
    evaluate,
    evaluate_ood,
)
from torchmetrics import Metric

SPLIT_METRICS = {
    "accuracy": Accuracy,
    "nll": NegativeLogLikelihood,
    "brier": BrierScore,
    "ece": ExpectedCalibrationError,
    "aurc": AreaUnderRiskCoverage,
    "augrc": AreaUnderGeneralizedRiskCoverage,
    "coverage_at_5_risk": CoverageAtRisk,
    "confidence": MeanConfidence,
    "disagreement": Disagreement,
    "mutual_information": MutualInformation,
    "pairwise_kl": PairwiseKL,
    "normalized_disagreement": NormalizedDisagreement,
    "ensemble_improvement_rate": EnsembleImprovementRate,
    "cosine_similarity": CosineSimilarity,
    "jensen_gap": JensenGap,
    "brier_ambiguity": BrierAmbiguity,
    "top_5_accuracy": TopKAccuracy,
}
OOD_METRICS = {
    f"{measure}_{score}": (kind, {"score": score, **options})
    for score in ("msp", "entropy", "mutual_information")
    for measure, kind, options in (
        ("auroc", OODAreaUnderROC, {}),
        ("aupr_out", OODAveragePrecision, {}),
        ("aupr_in", OODAveragePrecision, {"positive": "id"}),
        ("fpr95", OODFalsePositiveRate, {}),
    )
}
RAGGED = (1, 50, 7, 64, 28)


def draw(n=150, seed=0):
    generator = torch.Generator().manual_seed(seed)
    targets = torch.randint(7, (n,), generator=generator)
    logits = torch.randn(3, n, 7, generator=generator).round(decimals=1)
    logits[:, torch.arange(n), targets] += 1.5
    return logits, targets


@functools.cache
def whole():
    return evaluate(*draw())


def feed(metric, logits, second, sizes=RAGGED):
    for batch, labels in zip(logits.split(sizes, 1), second.split(sizes), strict=True):
        metric.update(batch, labels)
    return metric


@pytest.mark.parametrize("name", SPLIT_METRICS)
def test_one_batch_and_many_give_the_value_of_the_suite(name):
    logits, targets = draw()
    expected = pytest.approx(whole()[name], abs=1e-12)
    metric = SPLIT_METRICS[name]()
    assert feed(metric, logits, targets, (150,)).compute().item() == expected
    metric.reset()
    assert feed(metric, logits, targets).compute().item() == expected


@pytest.mark.parametrize("name", OOD_METRICS)
def test_mixed_batches_of_id_and_ood_give_the_value_of_the_suite(name):
    logits, _ = draw()
    is_ood = torch.rand(150, generator=torch.Generator().manual_seed(1)) < 0.3
    expected = evaluate_ood(logits[:, ~is_ood], logits[:, is_ood])[name]
    kind, options = OOD_METRICS[name]
    metric = feed(kind(**options), logits, is_ood)
    assert metric.compute().item() == pytest.approx(expected, abs=1e-12)


@pytest.mark.skipif(not hasattr(Metric, "merge_state"), reason="needs torchmetrics 1.6")
@pytest.mark.parametrize("name", SPLIT_METRICS)
def test_states_of_two_processes_add_up(name):
    logits, targets = draw()
    one, other = SPLIT_METRICS[name](), SPLIT_METRICS[name]()
    one.update(logits[:, :40], targets[:40])
    other.update(logits[:, 40:], targets[40:])
    one.merge_state(other)
    expected = whole()[name]
    assert one.compute().item() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("name", SPLIT_METRICS)
def test_forward_gives_the_value_of_the_batch_and_keeps_the_whole(name):
    logits, targets = draw()
    metric = SPLIT_METRICS[name]()
    metric(logits[:, :60], targets[:60])
    batch = metric(logits[:, 60:], targets[60:])
    expected = evaluate(logits[:, 60:], targets[60:])[name]
    assert batch.item() == pytest.approx(expected, abs=1e-12)
    expected = whole()[name]
    assert metric.compute().item() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    "cast",
    [
        lambda metric: metric.half(),
        lambda metric: metric.float(),
        lambda metric: metric.to(torch.float16),
        lambda metric: metric.set_dtype(torch.float32),
        lambda metric: torch.nn.ModuleList([metric]).to(torch.bfloat16)[0],
    ],
)
@pytest.mark.parametrize("name", SPLIT_METRICS)
def test_casting_a_model_leaves_sums_in_float64(name, cast):
    logits, targets = draw()
    metric = SPLIT_METRICS[name]()
    metric.update(logits[:, :60], targets[:60])
    metric = cast(metric)
    metric.update(logits[:, 60:], targets[60:])
    assert metric.compute().dtype == torch.float64
    expected = whole()[name]
    assert metric.compute().item() == pytest.approx(expected, abs=1e-12)
    metric.reset()
    assert feed(metric, logits, targets).compute().item() == pytest.approx(expected, abs=1e-12)


def test_states_hold_values_of_samples_never_logits():
    logits, targets = draw()
    for metric in [kind() for kind in SPLIT_METRICS.values()]:
        feed(metric, logits, targets)
        states = metric.metric_state.values()
        for state in states:
            size = sum(t.numel() for t in state) if isinstance(state, list) else state.numel()
            assert size <= 150


def test_a_pickled_metric_goes_on_where_it_was():
    logits, targets = draw()
    for name, kind in SPLIT_METRICS.items():
        metric = kind()
        metric.update(logits[:, :60], targets[:60])
        metric = pickle.loads(pickle.dumps(metric))
        metric.update(logits[:, 60:], targets[60:])
        expected = whole()[name]
        assert metric.compute().item() == pytest.approx(expected, abs=1e-12)


def test_bad_batches_are_refused_and_leave_the_state_alone():
    logits, targets = draw()
    for kind in SPLIT_METRICS.values():
        metric = kind()
        metric.update(logits, targets)
        before = {name: copy.deepcopy(state) for name, state in metric.metric_state.items()}
        with pytest.raises(ValueError, match="logits must be finite"):
            metric.update(logits * torch.nan, targets)
        with pytest.raises(ValueError, match=r"targets must lie in \[0, 7\), got -100"):
            metric.update(logits, targets * 0 - 100)
        torch.testing.assert_close(metric.metric_state, before, rtol=0, atol=0)


@pytest.mark.filterwarnings("ignore:The ``compute`` method:UserWarning")
def test_no_sample_is_an_error_not_a_number():
    for kind in [*SPLIT_METRICS.values(), OODAreaUnderROC]:
        with pytest.raises(ValueError, match=r"[Nn]o samples|>= 1 sample, got 0"):
            kind().compute()


def test_unknown_options_are_refused_at_construction():
    with pytest.raises(ValueError, match=r"score must be one of msp, .* got 'loudness'"):
        OODAreaUnderROC(score="loudness")
    with pytest.raises(ValueError, match=r"true_positive_rate must lie in \(0, 1\], got 1.5"):
        OODFalsePositiveRate(true_positive_rate=1.5)
    with pytest.raises(ValueError, match=r"risk must lie in \[0, 1\], got -1"):
        CoverageAtRisk(risk=-1.0)
    with pytest.raises(ValueError, match="bins must be >= 1, got 0"):
        ExpectedCalibrationError(bins=0)


def test_ood_metric_of_one_class_is_nan_with_a_warning():
    metric = OODAreaUnderROC()
    metric.update(draw()[0], torch.ones(150, dtype=torch.bool))
    with pytest.warns(RuntimeWarning, match="AUROC is undefined"):
        assert metric.compute().isnan()


WORKER = """
import json, sys
import torch
from deepens import metrics

rank, path, data, names = int(sys.argv[1]), sys.argv[2], sys.argv[3], sys.argv[4:]
torch.distributed.init_process_group("gloo", init_method=f"file://{path}", rank=rank, world_size=2)
logits, targets = torch.load(data, weights_only=True)
mine = slice(0, 40) if rank == 0 else slice(40, 150)
values = []
for name in names:
    metric = getattr(metrics, name)()
    metric.update(logits[:, mine], targets[mine])
    values.append(metric.compute().item())
print(json.dumps(values))
torch.distributed.destroy_process_group()
"""


@pytest.mark.slow
def test_two_real_processes_give_the_value_of_one(tmp_path):
    torch.save(draw(), tmp_path / "data")
    names = [kind.__name__ for kind in SPLIT_METRICS.values()]
    arguments = [str(tmp_path / "store"), str(tmp_path / "data"), *names]
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, str(rank), *arguments], stdout=subprocess.PIPE, text=True
        )
        for rank in range(2)
    ]
    try:
        outputs = [worker.communicate(timeout=240)[0] for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
    expected = evaluate(*draw())
    for output in outputs:
        values = json.loads(output.splitlines()[-1])
        assert values == pytest.approx([expected[name] for name in SPLIT_METRICS], abs=1e-12)
