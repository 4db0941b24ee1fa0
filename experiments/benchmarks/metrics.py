"""What the evaluation suite costs, and how much faster it is than peers on the same metrics.

``python -m deepens.experiments.benchmarks.metrics``: a million samples of ten classes from four
members (logits drawn at random: only time is measured). The core suite is accuracy, NLL, Brier
score, ECE, MCE, RMS calibration error, AURC, AUGRC, coverage at 5 % risk, entropy, mutual
information and disagreement, from float32 logits; the log-softmax is timed by itself too. With
torch-uncertainty installed (``pip install 'deepens[bench]'``) its metrics take their turns on the
same logits; torchmetrics always does. The paired bootstrap compares two single models on 10,000
samples, and on as many OOD samples, by 1,000 draws.
"""

import argparse
import importlib.metadata
import time
from collections.abc import Callable, Iterator, Sequence
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
from ...metrics.detection.score_detection import detect
from ...metrics.samples import sample_values
from ...metrics.statistics.bootstrap import Evaluation
from ...metrics.suite import OODEvaluation, SplitEvaluation, evaluate
from ..training.devices import threads
from .harness import Candidate, Measurement, Spread, compare, setting, table, verdict, write

MOST_SECONDS, MOST_WITH_SOFTMAX, LEAST_SPEEDUP, MOST_OF_BOOTSTRAP = 0.4, 0.75, 4.0, 2.0
SOFTMAX, CORE, ALL, THEIRS = "log-softmax", "core suite", "everything", "torch-uncertainty, core"
BOOTSTRAP = "bootstrap of the split's metrics and one AUROC"


def main(arguments: Sequence[str] | None = None) -> bool:
    """Measure, print and judge.

    Args:
        arguments: Of the command line.

    Returns:
        Whether all bounds are kept.
    """
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=1_000_000)
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--members", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, help="torch's own number when absent")
    parser.add_argument("--out", help="a JSON file for every round")
    given = parser.parse_args(arguments)
    print(setting())
    logits, targets = draw(given.members, given.samples, given.classes)
    probs = logits.double().softmax(-1).mean(0)
    confidence, correct = probs.amax(-1), probs.argmax(-1) == targets
    is_ood = torch.arange(given.samples) % 2 == 0
    groups = [
        ("suite", list(_suites(logits, targets))),
        ("ECE", list(_calibration(confidence, correct))),
        ("AURC and AUGRC", list(_selection(probs, confidence, correct, targets))),
        ("AUROC, AUPR twice, FPR95", list(_detection(confidence, is_ood))),
        ("paired bootstrap", list(_bootstraps(given.classes))),
    ]
    measurements: list[Measurement] = []
    found: dict[str, Measurement] = {}
    with threads(given.threads):
        for title, candidates in groups:
            measured = compare([_timed(*each) for each in candidates], rounds=given.rounds)
            found |= measured
            measurements += measured.values()
            rows = [(title, "ms (least to most)", "over the first")]
            for each in measured.values():
                milliseconds = Spread.of([1000 * seconds for seconds in each.seconds])
                rows.append((each.name, str(milliseconds), str(each.slowdown)))
            print("\n" + table(rows))
    pairs = zip(found[CORE].seconds, found[SOFTMAX].seconds, strict=True)
    after = Spread.of([core - softmax for core, softmax in pairs])
    print(f"\ncore suite after the log-softmax: {after} s")
    whole, bootstrap = (Spread.of(found[name].seconds) for name in (CORE, BOOTSTRAP))
    lines = [
        verdict("core suite after the log-softmax, s", after.median, most=MOST_SECONDS),
        verdict("core suite with its log-softmax, s", whole.median, most=MOST_WITH_SOFTMAX),
        verdict(f"{BOOTSTRAP}, s", bootstrap.median, most=MOST_OF_BOOTSTRAP),
    ]
    if THEIRS in found:
        theirs = zip(found[THEIRS].seconds, found[CORE].seconds, strict=True)
        speedup = Spread.of([other / own for other, own in theirs])
        print(f"torch-uncertainty on the same metrics takes {speedup} times as long")
        lines.append(verdict("times as fast", speedup.median, least=LEAST_SPEEDUP))
    print("\n".join(lines))
    peer = {THEIRS: importlib.metadata.version("torch-uncertainty")} if THEIRS in found else {}
    threads_taken = torch.get_num_threads()
    write(given.out, measurements, samples=given.samples, threads=threads_taken, peers=peer)
    return not any(line.endswith("BROKEN") for line in lines)


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
    """As the suite does it: as many samples at a time as stay in the cache."""
    for part in logits.split(2**19 // (logits.shape[0] * logits.shape[2]), dim=1):
        member_log_probs(part.double())


def _suites(logits: Tensor, targets: Tensor) -> Iterator[tuple[str, Callable[[], object]]]:
    yield SOFTMAX, lambda: _softmax(logits)
    yield CORE, lambda: core_suite(logits, targets)
    yield ALL, lambda: evaluate(logits, targets)
    try:
        import torch_uncertainty.metrics as theirs
    except ImportError:
        print("torch-uncertainty is not installed: pip install 'deepens[bench]' compares with it")
        return
    classes = logits.shape[-1]

    def run() -> list[Tensor]:
        by_member = logits.softmax(-1).transpose(0, 1)
        mean = by_member.mean(1)
        of_mean: list[Any] = [
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
        of_members: list[Any] = [theirs.MutualInformation(), theirs.Disagreement()]
        entropy: Any = theirs.Entropy()
        for metric in of_mean:
            metric.update(mean, targets)
        for metric in of_members:
            metric.update(by_member)
        entropy.update(mean)
        return [metric.compute() for metric in (*of_mean, *of_members, entropy)]

    yield THEIRS, run


def _calibration(confidence: Tensor, correct: Tensor) -> Iterator[tuple[str, Callable[[], object]]]:
    yield "ECE", lambda: expected_calibration_error(confidence, correct)
    single = confidence.float()

    def run() -> Tensor:
        metric: Any = peers.BinaryCalibrationError(n_bins=15)
        metric.update(single, correct.int())
        return torch.as_tensor(metric.compute())

    yield "torchmetrics, ECE (of a binary score)", run


def _selection(
    probs: Tensor, confidence: Tensor, correct: Tensor, targets: Tensor
) -> Iterator[tuple[str, Callable[[], object]]]:
    def ours() -> list[Tensor]:
        return [
            area_under_risk_coverage(confidence, correct),
            area_under_generalized_risk_coverage(confidence, correct),
        ]

    yield "AURC and AUGRC, a sort each", ours
    try:
        import torch_uncertainty.metrics as theirs
    except ImportError:
        return

    def run() -> list[Tensor]:
        metrics: list[Any] = [theirs.AURC(), theirs.AUGRC()]
        for metric in metrics:
            metric.update(probs, targets)
        return [metric.compute() for metric in metrics]

    yield "torch-uncertainty, AURC and AUGRC", run


def _detection(scores: Tensor, is_ood: Tensor) -> Iterator[tuple[str, Callable[[], object]]]:
    yield "detection", lambda: detect("score", scores[~is_ood], scores[is_ood])

    def run() -> list[Tensor]:
        metrics: list[Any] = [peers.BinaryAUROC(), peers.BinaryAveragePrecision()]
        for metric in metrics:
            metric.update(scores, is_ood.int())
        return [metric.compute() for metric in metrics]

    yield "torchmetrics, AUROC and AUPR", run


def _bootstraps(classes: int) -> Iterator[tuple[str, Callable[[], object]]]:
    samples = 10_000
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


def _timed(name: str, work: Callable[[], object]) -> Candidate:
    def measure() -> float:
        begin = time.perf_counter()
        work()
        return time.perf_counter() - begin

    return Candidate(name, measure)


if __name__ == "__main__":
    raise SystemExit(0 if main() else 1)
