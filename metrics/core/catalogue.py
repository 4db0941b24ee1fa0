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
        "confidence_gap",
        "Confidence - accuracy",
        None,
        "share",
        (-1.0, 1.0),
        "Mean confidence minus accuracy: above 0 is over-confident.",
    ),
    MetricInfo(
        "mce",
        "MCE",
        False,
        "share",
        _SHARE,
        "Largest gap between confidence and accuracy of a bin, however few images it holds.",
    ),
    MetricInfo(
        "rms_calibration_error",
        "RMS calibration error",
        False,
        "share",
        _SHARE,
        "Root mean square gap between confidence and accuracy over 15 equal-width bins.",
    ),
    MetricInfo(
        "debiased_calibration_error",
        "Debiased squared calibration error",
        False,
        "score",
        (-1.0, 1.0),
        "Mean squared gap over 15 equal-width bins less what chance adds to it; may be negative.",
    ),
    MetricInfo(
        "adaptive_calibration_error",
        "Adaptive ECE",
        False,
        "share",
        _SHARE,
        "Mean gap between confidence and accuracy over 15 bins of equally many images.",
    ),
    MetricInfo(
        "classwise_calibration_error",
        "Classwise ECE",
        False,
        "share",
        _SHARE,
        "ECE of each class's probability, averaged over classes; shrinks with their number.",
    ),
    MetricInfo(
        "top_label_calibration_error",
        "Top-label ECE",
        False,
        "share",
        _SHARE,
        "ECE within each predicted class; at least the ECE.",
    ),
    MetricInfo(
        "smooth_calibration_error",
        "Smooth ECE",
        False,
        "share",
        _SHARE,
        "Calibration error without bins, at a bandwidth that the data choose.",
    ),
    MetricInfo(
        "top_5_accuracy",
        "Top-5 accuracy",
        True,
        "share",
        _SHARE,
        "Share of images whose label is among the five most probable classes.",
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
        "e_aurc",
        "E-AURC",
        False,
        "share",
        _SHARE,
        "AURC less that of a ranking with every error last: what the ranking costs.",
    ),
    MetricInfo(
        "risk_at_80_coverage",
        "Risk at 80 % coverage",
        False,
        "share",
        _SHARE,
        "Error rate when at least the 80 % most confident images are accepted.",
    ),
    MetricInfo(
        "auroc_of_failures",
        "AUROC of failures",
        True,
        "share",
        _SHARE,
        "Chance that a right prediction is more confident than a wrong one, ties counting half.",
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
        "cosine_similarity",
        "Cosine of predictions",
        None,
        "share",
        _SHARE,
        "Mean cosine between two members' probabilities; 1 where all agree.",
    ),
    MetricInfo(
        "normalized_disagreement",
        "Normalized disagreement",
        None,
        "score",
        _UNBOUNDED,
        "Disagreement over the members' mean error rate.",
    ),
    MetricInfo(
        "double_fault",
        "Double fault",
        None,
        "share",
        _SHARE,
        "Share of images that both of two members get wrong, averaged over pairs.",
    ),
    MetricInfo(
        "q_statistic",
        "Q-statistic",
        None,
        "score",
        (-1.0, 1.0),
        "Yule's Q of two members' being right, averaged over pairs; 0 for independent errors.",
    ),
    MetricInfo(
        "error_correlation",
        "Error correlation",
        None,
        "score",
        (-1.0, 1.0),
        "Correlation of two members' being right, averaged over pairs; 0 for independent errors.",
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
    "max_logit": "maximum logit",
    "energy": "energy",
    "expected_entropy": "expected entropy",
    "reverse_mutual_information": "reverse mutual information",
    "pairwise_kl": "pairwise KL",
    "variance": "variance",
    "variation_ratio": "variation ratio",
}

OF_MEMBERS = (
    *("mutual_information", "reverse_mutual_information", "pairwise_kl"),
    *("variance", "variation_ratio"),
)
"""Scores that compare members: of one member they are 0 everywhere and tell nothing apart."""

DETECTORS: Mapping[str, str] = MappingProxyType(
    {
        "knn": "KNN",
        "mahalanobis": "Mahalanobis",
        "relative_mahalanobis": "relative Mahalanobis",
        "vim": "ViM",
        "react": "ReAct",
        "ash": "ASH",
        "scale": "SCALE",
        "nnguide": "NNGuide",
        "gen": "GEN",
    }
)
"""Detectors of OOD images on the features and logits of a member -> their labels."""

BY_MEMBER = "_member"
"""Ends the key of what is measured for each member's own score, and then averaged."""

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
    scores = {name: (label, label) for name, label in _SCORE_LABELS.items()}
    for name, label in DETECTORS.items():
        scores[name] = (label, f"{label}, mean over members")
        own = f"{label}, each member's own, and the mean over members of what that gives"
        scores[f"{name}{BY_MEMBER}"] = (f"{label}, by member", own)
    for measure, label, higher_is_better, description in _DETECTION:
        for score, (score_label, meaning) in scores.items():
            yield MetricInfo(
                name=f"{measure}_{score}",
                label=f"{label} ({score_label})",
                higher_is_better=higher_is_better,
                unit="share",
                bounds=_SHARE,
                description=f"{description}; score: {meaning}.",
            )


_WAYS = {
    "pooled": "one temperature of the pooled prediction",
    "joint": "one temperature of all members, before pooling",
    "member": "a temperature of each member's own, before pooling",
}
_SCALED = {
    "nll": "NLL",
    "brier": "Brier score",
    "ece": "ECE",
    "confidence": "Mean confidence",
}


def _temperature_infos() -> Iterator[MetricInfo]:
    known = {info.name: info for info in _SPLIT}
    for way, meaning in _WAYS.items():
        for name, label in _SCALED.items():
            raw = known[name]
            yield MetricInfo(
                name=f"{name}_{way}",
                label=f"{label}, T {way}",
                higher_is_better=raw.higher_is_better,
                unit=raw.unit,
                bounds=raw.bounds,
                description=f"{label} after {meaning}, fitted on val/calibrate.",
            )
        if way != "member":
            description = f"The temperature itself, {meaning}: above 1 makes less confident."
            label = f"T {way}"
            yield MetricInfo(f"temperature_{way}", label, None, "score", _UNBOUNDED, description)


_CONFORMAL = {
    "lac": "LAC",
    "aps": "APS",
    "raps": "RAPS",
}
_OF_SETS: tuple[tuple[str, str, bool | None, str, tuple[float, float], str], ...] = (
    ("coverage", "Coverage", None, "share", _SHARE, "Share of sets that hold the label; 0.9 asked"),
    ("set_size", "Set size", None, "score", (0.0, math.inf), "Mean number of classes in a set"),
    ("empty_sets", "Empty sets", None, "share", _SHARE, "Share of sets without any class"),
    (
        "worst_size_coverage",
        "Worst coverage by size",
        True,
        "share",
        _SHARE,
        "Lowest coverage among the sets of one size, of sizes that one in twenty sets has",
    ),
    (
        "worst_class_coverage",
        "Worst coverage by class",
        True,
        "share",
        _SHARE,
        "Lowest coverage among the images of one class",
    ),
)


def _conformal_infos() -> Iterator[MetricInfo]:
    for score, label in _CONFORMAL.items():
        for name, measure, higher_is_better, unit, bounds, description in _OF_SETS:
            yield MetricInfo(
                name=f"{name}_{score}",
                label=f"{measure}, {label}",
                higher_is_better=higher_is_better,
                unit=unit,
                bounds=bounds,
                description=f"{description}; conformal sets by {label}, fitted on val/conform.",
            )


TOLD_OF_SETS = tuple(info.name for info in _conformal_infos())
"""What conformal sets are worth on a split."""

TOLD_OF_CALIBRATION = (
    "confidence_gap",
    "mce",
    "rms_calibration_error",
    "debiased_calibration_error",
    "adaptive_calibration_error",
    "classwise_calibration_error",
    "top_label_calibration_error",
    "smooth_calibration_error",
)
"""Calibration errors that are told beside the ECE, by which methods are judged."""

UNDEFINED = {
    "auroc_of_failures": "all predictions are right, or all wrong",
    "normalized_disagreement": "no member makes an error",
    "q_statistic": "a pair of members has no error, or nothing else",
    "error_correlation": "a member is always right, or always wrong",
}
"""Metrics that data may leave undefined -> why."""

TOLD_OF_TEMPERATURE = tuple(info.name for info in _temperature_infos())
"""What temperatures make of a split, and they themselves."""

TOLD_OF_SELECTION = ("top_5_accuracy", "e_aurc", "risk_at_80_coverage", "auroc_of_failures")
"""What is told beside the measures of selective prediction by which methods are judged."""

DIVERSITY = (
    "pairwise_kl",
    "cosine_similarity",
    "normalized_disagreement",
    "double_fault",
    "q_statistic",
    "error_correlation",
    "input_gradient_similarity",
    "mean_member_nll",
    "jensen_gap",
    "mean_member_brier",
    "brier_ambiguity",
)
"""What says something of several members only: of one, it is 0, its own score, or undefined."""

METRICS: Mapping[str, MetricInfo] = MappingProxyType(
    {
        info.name: info
        for info in (*_SPLIT, *_temperature_infos(), *_conformal_infos(), *_detection_infos())
    }
)
"""Every key that `evaluate` and `evaluate_ood` give, and those of temperatures, conformal
sets, input gradients and detectors -> what it is."""
