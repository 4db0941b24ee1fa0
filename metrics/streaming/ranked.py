"""Metrics of a ranking batch by batch: one score per sample and a flag or two are kept."""

from collections.abc import Callable
from typing import Any, get_args

import torch
from jaxtyping import Float64
from torch import Tensor
from torchmetrics.utilities import dim_zero_cat

from ..calibration.reliability import adaptive_calibration_error
from ..core import mixture
from ..core.binning import DEFAULT_BINS, validate_bins
from ..core.plots import Axes, plot_risk_coverage, plot_roc
from ..core.ranking import CumulativeCounts, rank
from ..core.shapes import Scalar
from ..detection import ood
from ..detection.uncertainty_scores import RANKED, SCORES
from ..io.arrays import OF_LOGITS, read_flags, read_logits
from ..io.logit_source import Kind, Layout
from ..selective import risk_coverage
from ..selective.scod import scod_risk, validate_cost
from .base import Batch, EnsembleMetric, LabelledMetric, Labels, Shared

# Rank all scores once; the metrics of a collection that hold them ask for the counts in turn.
_count_errors = Shared(risk_coverage.count_errors)
_count_ood = Shared(lambda scores, is_ood: rank(scores).cumulate(is_ood))


class ConfidenceMetric(LabelledMetric):
    """A metric of the mixture's confidence and correctness; nine bytes per sample are kept.

    A concrete metric may keep something else of the mixture's log-probabilities, by `score`.
    """

    confidence: list[Tensor]
    correct: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        self.add_state("confidence", [], dist_reduce_fx="cat")
        self.add_state("correct", [], dist_reduce_fx="cat")

    def add(self, logits: Batch, targets: Labels) -> None:
        """Add confidences and correctness of a batch."""
        log_probs = mixture.mixture_log_probs(logits)
        self.confidence.append(self.score(log_probs))
        self.correct.append(mixture.first_largest(log_probs)[1] == targets)

    def score(self, log_probs: Float64[Tensor, "batch classes"]) -> Float64[Tensor, "batch"]:
        """Return what is kept of each sample: its confidence."""
        return mixture.confidence_of(log_probs)[0]


class AdaptiveCalibrationError(ConfidenceMetric):
    """Adaptive calibration error of the mixture, as `adaptive_calibration_error`.

    Example:
        >>> import torch
        >>> from deepens.metrics import AdaptiveCalibrationError
        >>> AdaptiveCalibrationError(bins=15)(torch.zeros(2, 2, 2), torch.tensor([0, 1]))
        tensor(0., dtype=torch.float64)
    """

    higher_is_better = False

    def __init__(self, bins: int = DEFAULT_BINS) -> None:
        super().__init__()
        validate_bins(bins)
        self.bins = bins

    def compute(self) -> Scalar:
        """Return the adaptive calibration error of all samples seen so far."""
        self.require_samples(len(self.correct))
        states = dim_zero_cat(self.confidence), dim_zero_cat(self.correct)
        return adaptive_calibration_error(*states, bins=self.bins)


class SelectiveMetric(ConfidenceMetric):
    """A metric of the errors in the order of confidence; in a collection all of them sort once.

    A concrete metric names a `function` of `CumulativeCounts` and of its options.
    """

    function: Callable[..., Tensor]

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.options = options
        self.keep_apart("ranked")

    def score(self, log_probs: Float64[Tensor, "batch classes"]) -> Float64[Tensor, "batch"]:
        """Return what samples are ranked by: ``-log(1 - confidence)``, as the suite."""
        return -mixture.log_doubt(log_probs)

    def compute(self) -> Scalar:
        """Return the metric of all samples seen so far."""
        self.require_samples(len(self.correct))
        return type(self).function(_count_errors(self.confidence, self.correct), **self.options)

    def draw(self, axes: Axes) -> bool:
        """Draw the risk-coverage curve."""
        self.require_samples(len(self.correct))
        plot_risk_coverage(axes, _count_errors(self.confidence, self.correct))
        return True


class AreaUnderRiskCoverage(SelectiveMetric):
    """AURC of the mixture's confidence, as `area_under_risk_coverage`.

    Example:
        >>> import torch
        >>> from deepens.metrics import AreaUnderRiskCoverage
        >>> AreaUnderRiskCoverage()(torch.tensor([[[3.0, 0.0], [1.0, 0.0]]]), torch.tensor([0, 1]))
        tensor(0.2500, dtype=torch.float64)
    """

    higher_is_better = False
    function = risk_coverage.aurc_from_counts


class AreaUnderGeneralizedRiskCoverage(SelectiveMetric):
    """AUGRC of the mixture's confidence, as `area_under_generalized_risk_coverage`.

    Example:
        >>> import torch
        >>> from deepens.metrics import AreaUnderGeneralizedRiskCoverage
        >>> metric = AreaUnderGeneralizedRiskCoverage()
        >>> metric(torch.tensor([[[3.0, 0.0], [1.0, 0.0]]]), torch.tensor([0, 1]))
        tensor(0.1250, dtype=torch.float64)
    """

    higher_is_better = False
    function = risk_coverage.augrc_from_counts


class ExcessAreaUnderRiskCoverage(SelectiveMetric):
    """E-AURC of the mixture's confidence, as `excess_area_under_risk_coverage`.

    Example:
        >>> import torch
        >>> from deepens.metrics import ExcessAreaUnderRiskCoverage
        >>> metric = ExcessAreaUnderRiskCoverage()
        >>> metric(torch.tensor([[[3.0, 0.0], [1.0, 0.0]]]), torch.tensor([1, 0]))
        tensor(0.5000, dtype=torch.float64)
    """

    higher_is_better = False
    function = risk_coverage.excess_from_counts


class AUROCOfFailures(SelectiveMetric):
    """AUROC of the mixture's confidence against correctness, as `auroc_of_failures`.

    Example:
        >>> import torch
        >>> from deepens.metrics import AUROCOfFailures
        >>> AUROCOfFailures()(torch.tensor([[[3.0, 0.0], [1.0, 0.0]]]), torch.tensor([0, 1]))
        tensor(1., dtype=torch.float64)
    """

    higher_is_better = True
    function = risk_coverage.auroc_of_failures_from_counts


class CoverageAtRisk(SelectiveMetric):
    """Largest coverage at an error rate of at most ``risk``, as `coverage_at_risk`.

    Example:
        >>> import torch
        >>> from deepens.metrics import CoverageAtRisk
        >>> metric = CoverageAtRisk(risk=0.05)
        >>> metric(torch.tensor([[[3.0, 0.0], [1.0, 0.0]]]), torch.tensor([0, 1]))
        tensor(0.5000, dtype=torch.float64)
    """

    higher_is_better = True
    function = risk_coverage.coverage_from_counts

    def __init__(self, risk: float = 0.05) -> None:
        mixture.validate_share(risk, "risk", "[0, 1]")
        super().__init__(risk=risk)


class RiskAtCoverage(SelectiveMetric):
    """Error rate when at least the share ``coverage`` is accepted, as `risk_at_coverage`.

    Example:
        >>> import torch
        >>> from deepens.metrics import RiskAtCoverage
        >>> metric = RiskAtCoverage(coverage=0.5)
        >>> metric(torch.tensor([[[3.0, 0.0], [1.0, 0.0]]]), torch.tensor([0, 1]))
        tensor(0., dtype=torch.float64)
    """

    higher_is_better = False
    function = risk_coverage.risk_from_counts

    def __init__(self, coverage: float = 0.8) -> None:
        mixture.validate_share(coverage, "coverage")
        super().__init__(coverage=coverage)


class OODMetric(EnsembleMetric):
    """A metric of OOD detection by one of `SCORES`; one score per sample is kept.

    A concrete metric names a `function` of `CumulativeCounts` and of its ``options``. In a
    collection those of one score sort once.
    """

    function: Callable[..., Tensor]
    scores: list[Tensor]
    is_ood: list[Tensor]

    def __init__(self, score: str = "msp", **options: Any) -> None:
        super().__init__()
        mixture.validate_choice(score, "score", SCORES)
        self.score, self.options = score, options
        self.add_state("scores", [], dist_reduce_fx="cat")
        self.add_state("is_ood", [], dist_reduce_fx="cat")
        self.keep_apart(f"of_{score}")

    def update(
        self, logits: Any, is_ood: Any, *, layout: Layout = "MNC", kind: Kind = "logits"
    ) -> None:
        """Add a batch, which may hold ID samples, OOD samples or both, as `evaluate` takes it.

        Raises:
            ValueError: If ``logits`` are not finite or empty, or ``is_ood`` does not fit them.
        """
        if kind != "logits" and self.score in OF_LOGITS:
            raise ValueError(f"score {self.score} needs raw outputs, got kind={kind!r}")
        logits = read_logits(logits, layout=layout, kind=kind)
        is_ood = read_flags(is_ood)
        mixture.validate_logits(logits)
        mixture.validate_flags(is_ood, name="is_ood", num_samples=logits.shape[1])
        self.scores.append(RANKED[self.score](logits))
        self.is_ood.append(is_ood)

    def compute(self) -> Scalar:
        """Return the metric of all samples seen so far; NaN, with a warning, without both kinds."""
        self.require_samples(len(self.is_ood))
        counts: CumulativeCounts = _count_ood(self.scores, self.is_ood)
        return type(self).function(counts, **self.options)

    def draw(self, axes: Axes) -> bool:
        """Draw the ROC curve."""
        self.require_samples(len(self.is_ood))
        plot_roc(axes, _count_ood(self.scores, self.is_ood))
        return True


class OODAreaUnderROC(OODMetric):
    """AUROC of OOD detection, as `area_under_roc`.

    Example:
        >>> import torch
        >>> from deepens.metrics import OODAreaUnderROC
        >>> metric = OODAreaUnderROC(score="entropy")
        >>> metric(torch.tensor([[[5.0, 0.0], [0.0, 0.0]]]), torch.tensor([False, True]))
        tensor(1., dtype=torch.float64)
    """

    higher_is_better = True
    function = ood.auroc_from_counts


class OODAveragePrecision(OODMetric):
    """Average precision of OOD detection, as `average_precision`.

    Example:
        >>> import torch
        >>> from deepens.metrics import OODAveragePrecision
        >>> metric = OODAveragePrecision(positive="id", area="steps")
        >>> metric(torch.tensor([[[5.0, 0.0], [0.0, 0.0]]]), torch.tensor([False, True]))
        tensor(1., dtype=torch.float64)
    """

    higher_is_better = True
    function = ood.average_precision_from_counts

    def __init__(
        self, score: str = "msp", positive: ood.Positive = "ood", area: ood.Area = "steps"
    ) -> None:
        mixture.validate_choice(positive, "positive", get_args(ood.Positive))
        mixture.validate_choice(area, "area", get_args(ood.Area))
        super().__init__(score, positive=positive, area=area)


class OODFalsePositiveRate(OODMetric):
    """False positive rate of OOD detection, as `false_positive_rate`.

    Example:
        >>> import torch
        >>> from deepens.metrics import OODFalsePositiveRate
        >>> metric = OODFalsePositiveRate(true_positive_rate=0.95)
        >>> metric(torch.tensor([[[5.0, 0.0], [0.0, 0.0]]]), torch.tensor([False, True]))
        tensor(0., dtype=torch.float64)
    """

    higher_is_better = False
    function = ood.false_positive_rate_from_counts

    def __init__(self, score: str = "msp", true_positive_rate: float = 0.95) -> None:
        mixture.validate_share(true_positive_rate, "true_positive_rate")
        super().__init__(score, true_positive_rate=true_positive_rate)


class SCODRisk(EnsembleMetric):
    """SCOD risk by the mixture's confidence, as `scod_risk`; ten bytes per sample are kept.

    Example:
        >>> import torch
        >>> from deepens.metrics import SCODRisk
        >>> logits = torch.tensor([[[1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [2.0, 0.0]]])
        >>> is_ood = torch.tensor([False, False, False, False, True])
        >>> SCODRisk(ood_cost=0.5)(logits, torch.tensor([0, 0, 0, 1, -1]), is_ood)
        tensor(0.3000, dtype=torch.float64)
    """

    confidence: list[Tensor]
    correct: list[Tensor]
    is_ood: list[Tensor]

    def __init__(self, coverage: float = 1.0, ood_cost: float = 1.0) -> None:
        super().__init__()
        mixture.validate_share(coverage, "coverage")
        validate_cost(ood_cost)
        self.coverage, self.ood_cost = coverage, ood_cost
        for name in ("confidence", "correct", "is_ood"):
            self.add_state(name, [], dist_reduce_fx="cat")

    def update(
        self,
        logits: Any,
        targets: Any,
        is_ood: Any,
        *,
        layout: Layout = "MNC",
        kind: Kind = "logits",
    ) -> None:
        """Add a batch, which may hold ID samples, OOD samples, whose targets are not read, or both.

        In whatever holds them, as for `evaluate`.

        Raises:
            ValueError: If ``logits`` are not finite or empty, or the others do not fit them.
        """
        logits = read_logits(logits, layout=layout, kind=kind)
        targets, is_ood = read_flags(targets), read_flags(is_ood)
        log_probs = mixture.mixture_log_probs(logits.double())
        predicted = mixture.first_largest(log_probs)[1]
        samples, classes = logits.shape[1:]
        mixture.validate_flags(is_ood, name="is_ood", num_samples=samples)
        if targets.ndim == 1 and len(targets) == samples:
            targets = targets.masked_fill(is_ood, 0)
        mixture.validate_targets(targets, num_samples=samples, num_classes=classes)
        self.confidence.append(-mixture.log_doubt(log_probs))
        self.correct.append(predicted == targets)
        self.is_ood.append(is_ood)

    def compute(self) -> Scalar:
        """Return the risk of all samples seen so far, of both kinds."""
        confidence, correct, is_ood = (
            dim_zero_cat(state) if len(state) else torch.zeros(0, dtype=torch.bool)
            for state in (self.confidence, self.correct, self.is_ood)
        )
        inside, outside = int((~is_ood).sum()), int(is_ood.sum())
        if not (inside and outside):
            raise ValueError(
                f"SCODRisk needs >= 1 ID and >= 1 OOD sample, got {inside} and {outside}"
            )
        options = {"coverage": self.coverage, "ood_cost": self.ood_cost}
        return scod_risk(confidence[~is_ood], correct[~is_ood], confidence[is_ood], **options)
