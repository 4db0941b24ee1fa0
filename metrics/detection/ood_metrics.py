"""OOD detection batch by batch: one score a sample, and whether it is OOD, are all that is kept."""

from abc import abstractmethod
from typing import TYPE_CHECKING, Literal

import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor

from ..core.mixture import validate_flags, validate_logits
from ..core.plots import plot_roc
from ..core.ranking import CumulativeCounts, rank
from ..core.streaming import EnsembleMetric, Shared
from .ood import (
    auroc_from_counts,
    average_precision_from_counts,
    false_positive_rate_from_counts,
    validate_area,
    validate_positive,
    validate_rate,
)
from .uncertainty_scores import SCORES

if TYPE_CHECKING:
    import matplotlib.axes


@Shared
def _count_ood(scores: Tensor, is_ood: Tensor) -> CumulativeCounts:
    """Rank all scores once; the metrics of a collection that hold them ask for it in turn."""
    return rank(scores).cumulate(is_ood)


class OODMetric(EnsembleMetric):
    """A metric of OOD detection by one of `SCORES`; per-sample scores are all that is kept.

    A concrete metric implements `evaluate`. In a collection those of one score sort once.

    Args:
        score: A key of `SCORES`, such as ``"msp"``, ``"entropy"`` or ``"energy"``.

    Raises:
        ValueError: If there is no such score.
    """

    scores: list[Tensor]
    is_ood: list[Tensor]

    def __init__(self, score: str = "msp") -> None:
        super().__init__()
        if score not in SCORES:
            raise ValueError(f"score must be one of {', '.join(SCORES)}, got {score!r}")
        self.score = score
        self.add_state("scores", [], dist_reduce_fx="cat")
        self.add_state("is_ood", [], dist_reduce_fx="cat")
        # Or two scores that are alike on a first batch would be taken for one by torchmetrics.
        self.add_state(f"of_{score}", torch.zeros((), dtype=torch.int8), dist_reduce_fx="sum")

    @abstractmethod
    def evaluate(self, counts: CumulativeCounts) -> Float64[Tensor, ""]:
        """Return the metric of all samples."""

    def update(
        self, logits: Float[Tensor, "members batch classes"], is_ood: Bool[Tensor, "batch"]
    ) -> None:
        """Add a batch, which may hold ID samples, OOD samples or both.

        Args:
            logits: Raw outputs, members first.
            is_ood: Which samples are OOD.

        Raises:
            ValueError: If ``logits`` are not finite or empty, or ``is_ood`` does not fit them.
        """
        validate_logits(logits)
        validate_flags(is_ood, name="is_ood", num_samples=logits.shape[1])
        self.scores.append(SCORES[self.score](logits))
        self.is_ood.append(is_ood)

    def compute(self) -> Float64[Tensor, ""]:
        """Return the metric of all samples seen so far; NaN, with a warning, without both classes.

        Raises:
            ValueError: If no batch was added.
        """
        return self.evaluate(_count_ood(self.scores, self.is_ood))

    def draw(self, axes: "matplotlib.axes.Axes") -> bool:
        """Draw the ROC curve."""
        plot_roc(axes, _count_ood(self.scores, self.is_ood))
        return True


class OODAreaUnderROC(OODMetric):
    """AUROC of OOD detection, as `area_under_roc`.

    Example:
        >>> import torch
        >>> from deepens.metrics import OODAreaUnderROC
        >>> metric = OODAreaUnderROC(score="entropy")
        >>> metric.update(torch.tensor([[[5.0, 0.0], [0.0, 0.0]]]), torch.tensor([False, True]))
        >>> metric.compute().item()
        1.0
    """

    higher_is_better = True

    def evaluate(self, counts: CumulativeCounts) -> Float64[Tensor, ""]:
        """Return the AUROC of all samples."""
        return auroc_from_counts(counts)


class OODAveragePrecision(OODMetric):
    """Average precision of OOD detection, as `average_precision`.

    Args:
        score: A key of `SCORES`, such as ``"msp"``, ``"entropy"`` or ``"energy"``.
        positive: The class to be found, ``"ood"`` or ``"id"``.
        area: How points are joined, ``"steps"`` or ``"trapezoids"``.

    Raises:
        ValueError: If there is no such score, class or area.
    """

    higher_is_better = True

    def __init__(
        self,
        score: str = "msp",
        positive: Literal["ood", "id"] = "ood",
        area: Literal["steps", "trapezoids"] = "steps",
    ) -> None:
        super().__init__(score)
        validate_positive(positive)
        validate_area(area)
        self.positive: Literal["ood", "id"] = positive
        self.area: Literal["steps", "trapezoids"] = area

    def evaluate(self, counts: CumulativeCounts) -> Float64[Tensor, ""]:
        """Return the average precision of all samples."""
        return average_precision_from_counts(counts, positive=self.positive, area=self.area)


class OODFalsePositiveRate(OODMetric):
    """False positive rate of OOD detection, as `false_positive_rate`.

    Args:
        score: A key of `SCORES`, such as ``"msp"``, ``"entropy"`` or ``"energy"``.
        true_positive_rate: Least share of OOD samples to find.

    Raises:
        ValueError: If there is no such score, or ``true_positive_rate`` leaves ``(0, 1]``.
    """

    higher_is_better = False

    def __init__(self, score: str = "msp", true_positive_rate: float = 0.95) -> None:
        super().__init__(score)
        validate_rate(true_positive_rate)
        self.true_positive_rate = true_positive_rate

    def evaluate(self, counts: CumulativeCounts) -> Float64[Tensor, ""]:
        """Return the false positive rate over all samples."""
        rate = self.true_positive_rate
        return false_positive_rate_from_counts(counts, true_positive_rate=rate)
