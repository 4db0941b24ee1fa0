"""What every number of the suite is: its label, unit, range, direction and meaning."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True)
class MetricInfo:
    """How to present one number.

    Attributes:
        name: Its key in the suite's results.
        label: Its heading in tables and plots.
        higher_is_better: Its direction; None if it has none.
        unit: ``"share"`` (0 to 1), ``"nats"``, ``"score"`` or ``"images"``.
        bounds: Least and largest possible value.
        description: One sentence on what it says.
    """

    name: str
    label: str
    higher_is_better: bool | None
    unit: str
    bounds: tuple[float, float]
    description: str


_SHARE, _UNBOUNDED = (0.0, 1.0), (0.0, math.inf)

_SPLIT = (
    MetricInfo("n", "N", None, "images", _UNBOUNDED, "Number of images."),
    MetricInfo(
        "accuracy",
        "Accuracy",
        True,
        "share",
        _SHARE,
        "Share of images whose most probable class is the label.",
    ),
    MetricInfo(
        "nll",
        "NLL",
        False,
        "nats",
        _UNBOUNDED,
        "Mean negative log-likelihood of the label.",
    ),
    MetricInfo(
        "brier",
        "Brier score",
        False,
        "score",
        (0.0, 2.0),
        "Mean squared distance of the probabilities from the label, summed over classes.",
    ),
    MetricInfo(
        "ece",
        "ECE",
        False,
        "share",
        _SHARE,
        "Mean gap between confidence and accuracy over 15 equal-width bins; biased upwards.",
    ),
    MetricInfo(
        "aurc",
        "AURC",
        False,
        "share",
        _SHARE,
        "Area under the risk-coverage curve: mean error rate over all coverages.",
    ),
    MetricInfo(
        "augrc",
        "AUGRC",
        False,
        "share",
        (0.0, 0.5),
        "Area under the generalized risk-coverage curve: mean risk of an undetected error.",
    ),
    MetricInfo(
        "coverage_at_5_risk",
        "Coverage at 5 % risk",
        True,
        "share",
        _SHARE,
        "Largest share of images that can be accepted at an error rate of at most 5 %.",
    ),
    MetricInfo(
        "confidence",
        "Mean confidence",
        None,
        "share",
        _SHARE,
        "Mean probability of the predicted class; for OOD detection, on the OOD images.",
    ),
    MetricInfo(
        "disagreement",
        "Disagreement",
        None,
        "share",
        _SHARE,
        "Mean share of member pairs that predict different classes; 0 for a single model.",
    ),
    MetricInfo(
        "mutual_information",
        "Mutual information",
        None,
        "nats",
        _UNBOUNDED,
        "Mean mutual information of label and member; 0 for a single model.",
    ),
    MetricInfo(
        "pairwise_kl",
        "Pairwise KL",
        None,
        "nats",
        _UNBOUNDED,
        "Mean KL divergence of one member's prediction from another's; 0 for a single model.",
    ),
    MetricInfo(
        "input_gradient_similarity",
        "Input-gradient similarity",
        None,
        "score",
        (-1.0, 1.0),
        "Mean cosine between two members' gradients, by the input image, of the logit of the label "
        "(without labels, of the ensemble's class); 1 is the same direction, 0 an unrelated one.",
    ),
    MetricInfo(
        "mean_member_nll",
        "Mean member NLL",
        None,
        "nats",
        _UNBOUNDED,
        "Mean NLL of the members, each by itself.",
    ),
    MetricInfo(
        "jensen_gap",
        "Jensen gap",
        None,
        "nats",
        _UNBOUNDED,
        "What pooling gains in NLL: mean member NLL minus the ensemble's; 0 for a single model.",
    ),
    MetricInfo(
        "mean_member_brier",
        "Mean member Brier score",
        None,
        "score",
        (0.0, 2.0),
        "Mean Brier score of the members, each by itself.",
    ),
    MetricInfo(
        "brier_ambiguity",
        "Brier ambiguity",
        None,
        "score",
        (0.0, 1.0),
        "What pooling gains in Brier score: the variance of the members' probabilities, summed "
        "over classes; 0 for a single model.",
    ),
    MetricInfo(
        "n_gradients",
        "N gradients",
        None,
        "images",
        _UNBOUNDED,
        "Number of images behind the input-gradient similarity.",
    ),
    MetricInfo("n_id", "N in-distribution", None, "images", _UNBOUNDED, "Number of ID images."),
    MetricInfo("n_ood", "N OOD", None, "images", _UNBOUNDED, "Number of OOD images."),
)

_SCORE_LABELS = {
    "msp": "MSP",
    "entropy": "entropy",
    "mutual_information": "mutual information",
}

_DETECTION = (
    (
        "auroc",
        "AUROC",
        True,
        "Chance that an OOD image scores higher than an ID image, ties counting half",
    ),
    ("aupr_out", "AUPR-out", True, "Average precision of detection with OOD positive"),
    ("aupr_in", "AUPR-in", True, "Average precision of detection with ID positive"),
    ("fpr95", "FPR95", False, "Share of ID images flagged when 95 % of the OOD images are"),
)


def _detection_infos() -> Iterator[MetricInfo]:
    for measure, label, higher_is_better, description in _DETECTION:
        for score, score_label in _SCORE_LABELS.items():
            yield MetricInfo(
                name=f"{measure}_{score}",
                label=f"{label} ({score_label})",
                higher_is_better=higher_is_better,
                unit="share",
                bounds=_SHARE,
                description=f"{description}; score: {score_label}.",
            )


DIVERSITY = (
    "pairwise_kl",
    "input_gradient_similarity",
    "mean_member_nll",
    "jensen_gap",
    "mean_member_brier",
    "brier_ambiguity",
)
"""What says something of several members only: of one, it is 0, its own score, or undefined."""

METRICS: Mapping[str, MetricInfo] = MappingProxyType(
    {info.name: info for info in (*_SPLIT, *_detection_infos())}
)
"""Every key that `evaluate` and `evaluate_ood` give, and those of input gradients -> what it is."""
