"""Selective prediction batch by batch: confidence and correctness are all that is kept."""

from abc import abstractmethod
from typing import TYPE_CHECKING

from jaxtyping import Float64
from torch import Tensor

from ..core.plots import plot_risk_coverage
from ..core.ranking import CumulativeCounts
from ..core.streaming import ConfidenceMetric, Shared
from .risk_coverage import (
    augrc_from_counts,
    aurc_from_counts,
    auroc_of_failures_from_counts,
    count_errors,
    coverage_from_counts,
    excess_from_counts,
    risk_from_counts,
    validate_coverage,
    validate_risk,
)

if TYPE_CHECKING:
    import matplotlib.axes

_count_errors = Shared(count_errors)
"""Ranks all confidences once; the metrics of a collection that hold them ask for it in turn."""


class SelectiveMetric(ConfidenceMetric):
    """A metric of the errors in the order of confidence; in a collection all of them sort once.

    A concrete metric implements `evaluate`.
    """

    @abstractmethod
    def evaluate(self, counts: CumulativeCounts) -> Float64[Tensor, ""]:
        """Return the metric of all samples."""

    def compute(self) -> Float64[Tensor, ""]:
        """Return the metric of all samples seen so far.

        Raises:
            ValueError: If no batch was added.
        """
        return self.evaluate(_count_errors(self.confidence, self.correct))

    def draw(self, axes: "matplotlib.axes.Axes") -> bool:
        """Draw the risk-coverage curve."""
        plot_risk_coverage(axes, _count_errors(self.confidence, self.correct))
        return True


class AreaUnderRiskCoverage(SelectiveMetric):
    """AURC of the mixture's confidence, as `area_under_risk_coverage`."""

    higher_is_better = False

    def evaluate(self, counts: CumulativeCounts) -> Float64[Tensor, ""]:
        """Return the AURC of all samples."""
        return aurc_from_counts(counts)


class AreaUnderGeneralizedRiskCoverage(SelectiveMetric):
    """AUGRC of the mixture's confidence, as `area_under_generalized_risk_coverage`."""

    higher_is_better = False

    def evaluate(self, counts: CumulativeCounts) -> Float64[Tensor, ""]:
        """Return the AUGRC of all samples."""
        return augrc_from_counts(counts)


class CoverageAtRisk(SelectiveMetric):
    """Largest coverage at a bounded error rate, as `coverage_at_risk`.

    Args:
        risk: Highest error rate allowed among the accepted.

    Raises:
        ValueError: If ``risk`` leaves ``[0, 1]``.

    Example:
        >>> import torch
        >>> from deepens.metrics import CoverageAtRisk
        >>> metric = CoverageAtRisk(risk=0.05)
        >>> metric.update(torch.tensor([[[3.0, 0.0], [1.0, 0.0]]]), torch.tensor([0, 1]))
        >>> metric.compute().item()
        0.5
    """

    higher_is_better = True

    def __init__(self, risk: float = 0.05) -> None:
        super().__init__()
        validate_risk(risk)
        self.risk = risk

    def evaluate(self, counts: CumulativeCounts) -> Float64[Tensor, ""]:
        """Return the coverage over all samples."""
        return coverage_from_counts(counts, self.risk)


class RiskAtCoverage(SelectiveMetric):
    """Error rate at a least coverage, as `risk_at_coverage`.

    Args:
        coverage: Least share of samples to accept.

    Raises:
        ValueError: If ``coverage`` leaves ``(0, 1]``.

    Example:
        >>> import torch
        >>> from deepens.metrics import RiskAtCoverage
        >>> metric = RiskAtCoverage(coverage=0.5)
        >>> metric.update(torch.tensor([[[3.0, 0.0], [1.0, 0.0]]]), torch.tensor([0, 1]))
        >>> metric.compute().item()
        0.0
    """

    higher_is_better = False

    def __init__(self, coverage: float = 0.8) -> None:
        super().__init__()
        validate_coverage(coverage)
        self.coverage = coverage

    def evaluate(self, counts: CumulativeCounts) -> Float64[Tensor, ""]:
        """Return the error rate among the accepted."""
        return risk_from_counts(counts, self.coverage)


class ExcessAreaUnderRiskCoverage(SelectiveMetric):
    """E-AURC of the mixture's confidence, as `excess_area_under_risk_coverage`."""

    higher_is_better = False

    def evaluate(self, counts: CumulativeCounts) -> Float64[Tensor, ""]:
        """Return the E-AURC of all samples."""
        return excess_from_counts(counts)


class AUROCOfFailures(SelectiveMetric):
    """AUROC of the mixture's confidence against correctness, as `auroc_of_failures`.

    Example:
        >>> import torch
        >>> from deepens.metrics import AUROCOfFailures
        >>> metric = AUROCOfFailures()
        >>> metric.update(torch.tensor([[[3.0, 0.0], [1.0, 0.0]]]), torch.tensor([0, 1]))
        >>> metric.compute().item()
        1.0
    """

    higher_is_better = True

    def evaluate(self, counts: CumulativeCounts) -> Float64[Tensor, ""]:
        """Return the AUROC of all samples."""
        return auroc_of_failures_from_counts(counts)
