"""What other libraries give on the same logits: the numbers of ``metrics/README.md``.

``python -m deepens.experiments.benchmarks.peers``: 10,000 samples of ten classes from four members
and 5,000 OOD samples, drawn with seed 0 and rounded to bfloat16, so that there are ties. Libraries
that are not installed are left out; ``pip install 'deepens[bench,dev,ood]'`` has all but relplot.
"""

import importlib
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from ...metrics import (
    SCORES,
    area_under_risk_coverage,
    average_precision,
    evaluate,
    evaluate_ood,
)

Row = tuple[str, float, str, Callable[[], Any]]


def data() -> tuple[Tensor, Tensor, Tensor]:
    """Return logits, labels and the logits of OOD samples."""
    generator = torch.Generator().manual_seed(0)
    shared = 3 * torch.randn(15_000, 10, generator=generator)
    logits = (shared + torch.randn(4, 15_000, 10, generator=generator)).bfloat16()
    inside, outside = logits[:, :10_000], logits[:, 10_000:] / 2
    honest = (0.8 * inside.double()).softmax(-1).mean(0)  # networks are over-confident
    return inside, torch.multinomial(honest, 1, generator=generator)[:, 0], outside


def rows() -> Iterator[Row]:
    """Yield each metric, our value, the library, and what computes its value."""
    logits, targets, outside = data()
    members = logits.double().softmax(-1)
    probs, by_member = members.mean(0), members.transpose(0, 1)
    found, detected = evaluate(logits, targets), evaluate_ood(logits, outside)
    entropy = torch.cat([SCORES["entropy"](logits), SCORES["entropy"](outside)])
    is_ood = torch.arange(len(entropy)) >= len(targets)
    confidence, correct = probs.amax(-1), probs.argmax(-1) == targets
    levels = (20 * confidence).round() / 20

    def peer(name: str, *path: str) -> Any:
        """An attribute of a module of another library, imported when a row is computed."""
        module = importlib.import_module(name)
        for each in path:
            module = getattr(module, each)
        return module

    def updated(metric: Any, *inputs: Tensor) -> Any:
        metric.update(*inputs)
        return metric.compute()

    def uncertainty(name: str, *inputs: Tensor, **options: Any) -> Any:
        return updated(peer("torch_uncertainty.metrics", name)(**options), *inputs)

    def aurc_of(order: Tensor) -> Any:
        metric = peer("torch_uncertainty.metrics", "AURC")()
        metric.scores, metric.errors = [levels[order]], [(~correct[order]).double()]
        return metric.compute()

    library = "torch-uncertainty"
    for key, name in (
        *(("nll", "CategoricalNLL"), ("aurc", "AURC"), ("augrc", "AUGRC")),
        *(("coverage_at_5_risk", "CovAt5Risk"), ("risk_at_80_coverage", "RiskAt80Cov")),
    ):
        yield key, found[key], library, lambda name=name: uncertainty(name, probs, targets)  # type: ignore[misc]
    brier = {"num_classes": 10}
    yield (
        "brier",
        found["brier"],
        library,
        lambda: uncertainty("BrierScore", probs, targets, **brier),
    )
    for key, name in (
        ("mutual_information", "MutualInformation"),
        ("disagreement", "Disagreement"),
    ):
        yield key, found[key], library, lambda name=name: uncertainty(name, by_member)  # type: ignore[misc]
    for key, norm in (("ece", "l1"), ("rms_calibration_error", "l2"), ("mce", "max")):
        yield (
            key,
            found[key],
            "torchmetrics",
            lambda norm=norm: updated(  # type: ignore[misc]
                peer("torchmetrics.classification", "MulticlassCalibrationError")(
                    num_classes=10, norm=norm
                ),
                probs.float(),
                targets,
            ),
        )
    numpy = probs.numpy(), targets.numpy()
    likelihood = found["nll"], "scikit-learn"
    yield "nll", *likelihood, lambda: peer("sklearn.metrics", "log_loss")(*reversed(numpy))
    yield "ece", found["ece"], "netcal", lambda: peer("netcal.metrics", "ECE")(15).measure(*numpy)
    adaptive = found["adaptive_calibration_error"]
    yield (
        "adaptive",
        adaptive,
        "netcal ACE",
        lambda: peer("netcal.metrics", "ACE")(15).measure(*numpy),
    )
    smooth = found["smooth_calibration_error"]
    pair = confidence.numpy(), correct.double().numpy()
    yield "smooth", smooth, "relplot", lambda: peer("relplot", "smECE")(*pair)
    ranked = {"auroc_entropy": "roc_auc_score", "aupr_out_entropy": "average_precision_score"}
    for key, name in ranked.items():
        yield (
            key,
            detected[key],
            "scikit-learn",
            lambda name=name: peer("sklearn.metrics", name)(is_ood.numpy(), entropy.numpy()),  # type: ignore[misc]
        )

    def ood(key: str) -> Any:
        return updated(peer("pytorch_ood.metrics", "OODMetrics")(), entropy, -is_ood.long())[key]

    trapezoids = average_precision(entropy, is_ood, area="trapezoids").item()
    yield "aupr_out_entropy, trapezoids", trapezoids, "pytorch-ood", lambda: ood("AUPR-OUT")
    yield "fpr95_entropy", detected["fpr95_entropy"], "pytorch-ood", lambda: ood("FPR95TPR")
    for factor in (1, 40):
        yield (
            f"auroc of {factor} x entropy",
            detected["auroc_entropy"],
            "torchmetrics",
            lambda factor=factor: updated(  # type: ignore[misc]
                peer("torchmetrics.classification", "BinaryAUROC")(),
                factor * entropy,
                is_ood.long(),
            ),
        )
    rounded = area_under_risk_coverage(levels, correct).item()
    places = torch.arange(len(levels))
    for name, order in (("as drawn", places), ("reversed", places.flip(0))):
        yield f"aurc of 20 levels, {name}", rounded, library, lambda order=order: aurc_of(order)  # type: ignore[misc]


def main() -> None:
    """Print all rows."""
    print(f"{'metric':32} {'deepens':>12} {'theirs':>12}")
    for name, ours, library, theirs in rows():
        try:
            value = f"{float(theirs()):12.8f}"
        except ImportError:
            value = f"{'-':>12}"
        print(f"{name:32} {ours:12.8f} {value}  {library}")


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main()
