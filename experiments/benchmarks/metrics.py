"""Time of the evaluation suite, also relative to other libraries on the same metrics.

``python -m deepens.experiments.benchmarks.metrics``: a million samples of ten classes from four
members, with random logits. The core suite is accuracy, NLL, Brier score, ECE, MCE, RMS calibration
error, AURC, AUGRC, coverage at 5 % risk, entropy, mutual information and disagreement, from float32
logits; the log-softmax is also timed alone. With torch-uncertainty installed
(``pip install 'deepens[bench]'``) its metrics take their turns on the same logits; torchmetrics
always does. The paired bootstrap compares two single models on 10,000 ID and 10,000 OOD samples
with 1,000 draws.
"""

import importlib.metadata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import torchmetrics.classification as peers
from torch import Tensor

from ...metrics import (
    area_under_generalized_risk_coverage,
    area_under_risk_coverage,
    expected_calibration_error,
    member_log_probs,
    paired_bootstrap,
)
from ...metrics.calibration.reliability import maximum_of_sums, squared_of_sums
from ...metrics.core.ranking import Ranking, area_from_counts, rank
from ...metrics.detection.ood import detect
from ...metrics.samples import sample_values
from ...metrics.statistics.draws import Evaluation
from ...metrics.suite import OODEvaluation, SplitEvaluation, evaluate
from ..training.devices import threads
from . import harness

MOST_SECONDS, MOST_WITH_SOFTMAX, LEAST_SPEEDUP, MOST_OF_BOOTSTRAP = 0.4, 0.75, 4.0, 2.0
SOFTMAX, CORE, ALL, THEIRS = "log-softmax", "core suite", "everything", "torch-uncertainty, core"
BOOTSTRAP = "bootstrap of the split's metrics and one AUROC"
Works = Iterator[tuple[str, Callable[[], object]]]


@dataclass(frozen=True)
class Work(harness.ThreadedOptions):
    """What is measured."""

    samples: int = harness.option(1_000_000)
    classes: int = harness.option(10)
    members: int = harness.option(4)
    resampled: int = harness.option(10_000, "samples that the bootstrap draws from")


def main(arguments: Sequence[str] | None = None) -> harness.Outcome:
    """Measure and print."""
    given = Work.parse(__doc__, arguments)
    print(harness.setting())
    if _peer() is None:
        print("torch-uncertainty is not installed: pip install 'deepens[bench]' compares with it")
    logits, targets = draw(given.members, given.samples, given.classes)
    probs = logits.double().softmax(-1).mean(0)
    confidence, correct = probs.amax(-1), probs.argmax(-1) == targets
    is_ood = torch.arange(given.samples) % 2 == 0
    groups = [
        ("suite", _suites(logits, targets)),
        ("ECE", _calibration(confidence, correct)),
        ("AURC and AUGRC", _selection(probs, confidence, correct, targets)),
        ("AUROC, AUPR twice, FPR95", _detection(confidence, is_ood)),
        ("paired bootstrap", _bootstraps(given.classes, given.resampled)),
    ]
    found: dict[str, harness.Measurement] = {}
    with threads(given.threads):
        for title, works in groups:
            candidates = [harness.Candidate(name, harness.timed(work)) for name, work in works]
            measured = harness.compare(candidates, rounds=given.rounds)
            found |= measured
            rows = [(title, "ms (least to most)", "over the first")]
            for each in measured.values():
                rows.append((each.name, str(each.milliseconds), str(each.slowdown)))
            print("\n" + harness.table(rows))
    pairs = zip(found[CORE].seconds, found[SOFTMAX].seconds, strict=True)
    after = harness.Spread.of([core - softmax for core, softmax in pairs])
    print(f"\ncore suite after the log-softmax: {after} s")
    bounds = [
        ("core suite after the log-softmax, s", after, MOST_SECONDS),
        ("core suite with its log-softmax, s", _seconds(found[CORE]), MOST_WITH_SOFTMAX),
        (f"{BOOTSTRAP}, s", _seconds(found[BOOTSTRAP]), MOST_OF_BOOTSTRAP),
    ]
    lines = [harness.verdict(claim, spread.median, most=most) for claim, spread, most in bounds]
    if THEIRS in found:
        speedup = harness.ratio(found[THEIRS].seconds, found[CORE].seconds)
        print(f"torch-uncertainty on the same metrics takes {speedup} times as long")
        lines.append(harness.verdict("times as fast", speedup.median, least=LEAST_SPEEDUP))
    return harness.conclude(
        lines,
        given.out,
        list(found.values()),
        samples=given.samples,
        threads=torch.get_num_threads(),
        peers={THEIRS: importlib.metadata.version("torch-uncertainty")} if THEIRS in found else {},
    )


def _seconds(measurement: harness.Measurement) -> harness.Spread:
    return harness.Spread.of(measurement.seconds)


@cache
def _peer() -> Any:
    """The metrics of torch-uncertainty; None where it is not installed."""
    try:
        import torch_uncertainty.metrics as theirs
    except ImportError:
        return None
    return theirs


def _computed(metrics: Sequence[Any], *inputs: Tensor) -> list[Tensor]:
    for metric in metrics:
        metric.update(*inputs)
    return [metric.compute() for metric in metrics]


def draw(members: int, samples: int, classes: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Draw logits that agree with their labels more often than not."""
    generator = torch.Generator().manual_seed(seed)
    targets = torch.randint(classes, (samples,), generator=generator)
    logits = 2 * torch.randn(members, samples, classes, generator=generator)
    logits[:, torch.arange(samples), targets] += 3.0
    return logits, targets


def core_suite(logits: Tensor, targets: Tensor) -> dict[str, Tensor]:
    """Compute the core suite from logits."""
    values = sample_values(logits, targets, more=False)
    evaluation = SplitEvaluation(values)
    found, sums = evaluation(), evaluation.bins
    found |= {"mce": maximum_of_sums(sums), "rms": squared_of_sums(sums).sqrt()}
    return found | {"entropy": values.entropy.mean()}


def _softmax(logits: Tensor) -> None:
    """As in the suite: as many samples at a time as stay in the cache."""
    for part in logits.split(2**19 // (logits.shape[0] * logits.shape[2]), dim=1):
        member_log_probs(part.double())


def _suites(logits: Tensor, targets: Tensor) -> Works:
    yield SOFTMAX, lambda: _softmax(logits)
    yield CORE, lambda: core_suite(logits, targets)
    yield ALL, lambda: evaluate(logits, targets)
    if (theirs := _peer()) is None:
        return
    classes = logits.shape[-1]

    def run() -> list[Tensor]:
        by_member = logits.softmax(-1).transpose(0, 1)
        mean = by_member.mean(1)
        of_mean = [
            peers.MulticlassAccuracy(classes, average="micro"),
            theirs.CategoricalNLL(),
            theirs.BrierScore(num_classes=classes),
            theirs.AURC(),
            theirs.AUGRC(),
            theirs.CovAt5Risk(),
            *(
                theirs.CalibrationError(task="multiclass", num_classes=classes, norm=norm)
                for norm in ("l1", "l2", "max")
            ),
        ]
        return [
            *_computed(of_mean, mean, targets),
            *_computed([theirs.MutualInformation(), theirs.Disagreement()], by_member),
            *_computed([theirs.Entropy()], mean),
        ]

    yield THEIRS, run


def _calibration(confidence: Tensor, correct: Tensor) -> Works:
    yield "ECE", lambda: expected_calibration_error(confidence, correct)
    single = confidence.float()
    yield (
        "torchmetrics, ECE (of a binary score)",
        lambda: _computed([peers.BinaryCalibrationError(n_bins=15)], single, correct.int()),
    )


def _selection(probs: Tensor, confidence: Tensor, correct: Tensor, targets: Tensor) -> Works:
    areas = (area_under_risk_coverage, area_under_generalized_risk_coverage)
    yield "AURC and AUGRC, a sort each", lambda: [area(confidence, correct) for area in areas]
    if (theirs := _peer()) is not None:
        yield (
            "torch-uncertainty, AURC and AUGRC",
            lambda: _computed([theirs.AURC(), theirs.AUGRC()], probs, targets),
        )


def _detection(scores: Tensor, is_ood: Tensor) -> Works:
    yield "detection", lambda: detect("score", scores[~is_ood], scores[is_ood])
    yield (
        "torchmetrics, AUROC and AUPR",
        lambda: _computed(
            [peers.BinaryAUROC(), peers.BinaryAveragePrecision()], scores, is_ood.int()
        ),
    )


def _bootstraps(classes: int, samples: int) -> Works:
    values = [sample_values(*draw(1, samples, classes, seed=seed)) for seed in range(4)]
    splits = [SplitEvaluation(each) for each in values[:2]]
    detections = [OODEvaluation(*pair) for pair in (values[::2], values[1::2])]
    is_ood = torch.arange(2 * samples) >= samples
    rankings = [
        rank(1.0 - torch.cat([each.confidence for each in pair]))
        for pair in (values[::2], values[1::2])
    ]

    def areas(ranking: Ranking) -> Evaluation:
        def evaluate(*weights: Tensor) -> dict[str, Tensor]:
            counts = ranking.cumulate(is_ood, torch.cat(weights, dim=-1))
            return {"auroc": area_from_counts(counts)}

        return evaluate

    def run() -> None:
        paired_bootstrap(splits[:1], splits[1:], sizes=[samples])
        one, other = map(areas, rankings)
        paired_bootstrap([one], [other], sizes=[samples, samples])

    yield BOOTSTRAP, run
    yield (
        "bootstrap of all OOD metrics of three scores",
        lambda: paired_bootstrap(detections[:1], detections[1:], sizes=[samples, samples]),
    )


if __name__ == "__main__":
    raise SystemExit(0 if main() else 1)
