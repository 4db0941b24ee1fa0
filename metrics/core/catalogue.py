"""The identity of every metric: its label, unit, range and direction, what it measures and where.

A metric's key is parsed once, here: code that wants to know whether a metric is an AUROC, which
score it rests on, or whether it needs several members asks `metric_info` or `metrics_with`.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from functools import partial
from types import MappingProxyType
from typing import Any, Literal

Scope = Literal["split", "gradients", "temperature", "conformal", "detection"]
"""What a metric rests on: a split's logits, gradients by its images, its logits at a fitted
temperature, its conformal sets, or an OOD set beside the in-distribution test set."""

Role = Literal["primary", "secondary", "diversity", "count"]
"""How a metric is used. Primary metrics are resampled, and methods are compared by those that have
a direction; secondary metrics and measures of diversity are reported in tables of their own."""


@dataclass(frozen=True)
class MetricInfo:
    """The identity of one metric, and how to present it.

    Attributes:
        name: Its key in the results.
        label: Its heading in tables and plots.
        higher_is_better: Its direction; None if it has none.
        unit: ``"share"`` (0 to 1), ``"nats"``, ``"score"`` or ``"images"``.
        bounds: Least and largest possible value.
        description: One sentence on its meaning.
        scope: What it rests on.
        role: How it is used.
        measure: What is measured, such as ``"auroc"``, ``"nll"`` or ``"coverage"``; the name itself
            unless it is measured of several scores or at several temperatures.
        score: The OOD score, detector or conformal score it is measured of, or empty.
        way: The kind of temperature it is measured at (``"pooled"``, ``"joint"``, ``"member"``), or
            empty.
        by_member: Whether it is measured for each member's own score and then averaged.
        needs_members: Whether it is constant, redundant or undefined for a single member.
        topic: ``"calibration"`` or ``"selection"`` where it belongs to one of these tables.
        measure_label: Label of the measure alone.
        score_label: Label of the score alone.
        undefined_if: When data leave it undefined, in words that follow "since"; empty if never.
    """

    name: str
    label: str
    higher_is_better: bool | None
    unit: str
    bounds: tuple[float, float]
    description: str
    scope: Scope = "split"
    role: Role = "primary"
    measure: str = ""
    score: str = ""
    way: str = ""
    by_member: bool = False
    needs_members: bool = False
    topic: str = ""
    measure_label: str = ""
    score_label: str = ""
    undefined_if: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "measure", self.measure or self.name)
        object.__setattr__(self, "measure_label", self.measure_label or self.label)


_SHARE, _UNBOUNDED, _SIGNED = (0.0, 1.0), (0.0, math.inf), (-1.0, 1.0)

_DESCRIPTIONS = {
    "n": "Number of images.",
    "accuracy": "Share of images whose most probable class is the label.",
    "nll": "Mean negative log-likelihood of the label.",
    "brier": "Mean squared distance of the probabilities from the label, summed over classes.",
    "ece": "Mean gap between confidence and accuracy over 15 equal-width bins; biased upwards.",
    "confidence_gap": "Mean confidence minus accuracy: above 0 is over-confident.",
    "mce": "Largest gap between confidence and accuracy of a bin, however few images it holds.",
    "rms_calibration_error": (
        "Root mean square gap between confidence and accuracy over 15 equal-width bins."
    ),
    "debiased_calibration_error": (
        "Mean squared gap over 15 equal-width bins less what chance adds to it; may be negative."
    ),
    "adaptive_calibration_error": (
        "Mean gap between confidence and accuracy over 15 bins of equally many images."
    ),
    "classwise_calibration_error": (
        "ECE of each class's probability, averaged over classes; shrinks with their number."
    ),
    "top_label_calibration_error": "ECE within each predicted class; at least the ECE.",
    "smooth_calibration_error": (
        "Calibration error without bins, at a bandwidth that the data choose."
    ),
    "top_5_accuracy": "Share of images whose label is among the five most probable classes.",
    "aurc": "Area under the risk-coverage curve: mean error rate over all coverages.",
    "augrc": "Area under the generalized risk-coverage curve: mean risk of an undetected error.",
    "coverage_at_5_risk": (
        "Largest share of images that can be accepted at an error rate of at most 5 %."
    ),
    "e_aurc": "AURC less that of a ranking with every error last: excess over the oracle ranking.",
    "risk_at_80_coverage": "Error rate when at least the 80 % most confident images are accepted.",
    "auroc_of_failures": (
        "Chance that a right prediction is more confident than a wrong one, ties counting half."
    ),
    "confidence": "Mean probability of the predicted class; for OOD detection, on the OOD images.",
    "disagreement": (
        "Mean share of member pairs that predict different classes; 0 for a single model."
    ),
    "mutual_information": "Mean mutual information of label and member; 0 for a single model.",
    "pairwise_kl": (
        "Mean KL divergence of one member's prediction from another's; 0 for a single model."
    ),
    "cosine_similarity": "Mean cosine between two members' probabilities; 1 where all agree.",
    "normalized_disagreement": "Disagreement over the members' mean error rate.",
    "ensemble_improvement_rate": (
        "Share of the members' mean error rate that majority voting saves (EIR); it rises with the "
        "normalized disagreement."
    ),
    "double_fault": "Share of images that both of two members get wrong, averaged over pairs.",
    "q_statistic": (
        "Yule's Q of two members' being right, averaged over pairs; 0 for independent errors."
    ),
    "error_correlation": (
        "Correlation of two members' being right, averaged over pairs; 0 for independent errors."
    ),
    "input_gradient_similarity": (
        "Mean cosine between two members' gradients, by the input image, of the logit of the label "
        "(without labels, of the ensemble's class); 1 is the same direction, 0 an unrelated one."
    ),
    "mean_member_nll": "Mean NLL of the members, each by itself.",
    "jensen_gap": (
        "Ensembling gain in NLL (Jensen gap): mean member NLL minus the ensemble's; 0 for a single "
        "model."
    ),
    "mean_member_brier": "Mean Brier score of the members, each by itself.",
    "brier_ambiguity": (
        "Ensembling gain in Brier score: the variance of the members' probabilities, summed "
        "over classes; 0 for a single model."
    ),
    "n_gradients": "Number of images behind the input-gradient similarity.",
    "n_id": "Number of ID images.",
    "n_ood": "Number of OOD images.",
}


_UNDEFINED_IF = {
    "auroc_of_failures": "all predictions are right, or all wrong",
    "normalized_disagreement": "no member makes an error",
    "ensemble_improvement_rate": "no member makes an error",
    "q_statistic": "a pair of members has no error, or nothing else",
    "error_correlation": "a member is always right, or always wrong",
}


def _info(
    name: str,
    label: str,
    better: bool | None,
    unit: str = "share",
    bounds: tuple[float, float] = _SHARE,
    **more: Any,
) -> MetricInfo:
    about = {"undefined_if": _UNDEFINED_IF.get(name, "")} | more
    return MetricInfo(name, label, better, unit, bounds, _DESCRIPTIONS[name], **about)


_calibration = partial(_info, role="secondary", topic="calibration")
_ranked = partial(_info, topic="selection")
_selection = partial(_info, role="secondary", topic="selection")
_diversity = partial(_info, role="diversity", needs_members=True)
_count = partial(_info, better=None, unit="images", bounds=_UNBOUNDED, role="count")

_SPLIT = (
    _count("n", "N"),
    _info("accuracy", "Accuracy", True),
    _info("nll", "NLL", False, "nats", _UNBOUNDED),
    _info("brier", "Brier score", False, "score", (0.0, 2.0)),
    _info("ece", "ECE", False, topic="calibration"),
    _calibration("confidence_gap", "Confidence - accuracy", None, bounds=_SIGNED),
    _calibration("mce", "MCE", False),
    _calibration("rms_calibration_error", "RMS calibration error", False),
    _calibration(
        "debiased_calibration_error", "Debiased squared calibration error", False, "score", _SIGNED
    ),
    _calibration("adaptive_calibration_error", "Adaptive ECE", False),
    _calibration("classwise_calibration_error", "Classwise ECE", False),
    _calibration("top_label_calibration_error", "Top-label ECE", False),
    _calibration("smooth_calibration_error", "Smooth ECE", False),
    _selection("top_5_accuracy", "Top-5 accuracy", True),
    _ranked("aurc", "AURC", False),
    _ranked("augrc", "AUGRC", False, bounds=(0.0, 0.5)),
    _ranked("coverage_at_5_risk", "Coverage at 5 % risk", True),
    _selection("e_aurc", "E-AURC", False),
    _selection("risk_at_80_coverage", "Risk at 80 % coverage", False),
    _selection("auroc_of_failures", "AUROC of failures", True),
    _info("confidence", "Mean confidence", None),
    _info("disagreement", "Disagreement", None, needs_members=True),
    _info("mutual_information", "Mutual information", None, "nats", _UNBOUNDED, needs_members=True),
    _diversity("pairwise_kl", "Pairwise KL", None, "nats", _UNBOUNDED),
    _diversity("cosine_similarity", "Cosine of predictions", None),
    _diversity("normalized_disagreement", "Normalized disagreement", None, "score", _UNBOUNDED),
    _diversity("ensemble_improvement_rate", "Improvement rate", None, "score", (-math.inf, 1.0)),
    _diversity("double_fault", "Double fault", None),
    _diversity("q_statistic", "Q-statistic", None, "score", _SIGNED),
    _diversity("error_correlation", "Error correlation", None, "score", _SIGNED),
    _diversity(
        "input_gradient_similarity",
        "Input-gradient similarity",
        None,
        "score",
        _SIGNED,
        scope="gradients",
    ),
    _diversity("mean_member_nll", "Mean member NLL", None, "nats", _UNBOUNDED),
    _diversity("jensen_gap", "Jensen gap", None, "nats", _UNBOUNDED),
    _diversity("mean_member_brier", "Mean member Brier score", None, "score", (0.0, 2.0)),
    _diversity("brier_ambiguity", "Brier ambiguity", None, "score"),
    _count("n_gradients", "N gradients", scope="gradients"),
    _count("n_id", "N in-distribution", scope="detection"),
    _count("n_ood", "N OOD", scope="detection"),
)

_SCORES = {
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
_COMPARED = ("msp", "entropy", "mutual_information")
"""OOD scores that are resampled, and by which methods are compared."""
_OF_MEMBERS = (
    *("mutual_information", "reverse_mutual_information", "pairwise_kl"),
    *("variance", "variation_ratio"),
)
"""Scores that compare members: of one member they are 0 everywhere and detect nothing."""

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

_DETECTION = (
    (
        "auroc",
        "AUROC",
        "Chance that an OOD image scores higher than an ID image, ties counting half",
    ),
    ("aupr_out", "AUPR-out", "Average precision of detection with OOD positive"),
    ("aupr_in", "AUPR-in", "Average precision of detection with ID positive"),
    ("fpr95", "FPR95", "Share of ID images flagged when 95 % of the OOD images are"),
)
DETECTION_MEASURES = tuple(measure for measure, *_ in _DETECTION)
"""Measures of OOD detection, each of which every OOD score and detector has."""


def detection_key(measure: str, score: str, *, by_member: bool = False) -> str:
    """Return the key of a measure of OOD detection by a score or detector."""
    return f"{measure}_{score}{'_member' if by_member else ''}"


def _detection_scores() -> Iterator[tuple[str, str, str, bool]]:
    """Each score's name, its label, what it is, and whether it is measured by member."""
    for score, label in _SCORES.items():
        yield score, label, label, False
    for score, label in DETECTORS.items():
        yield score, label, f"{label}, mean over members", False
        own = f"{label}, each member's own, and the mean over members of what that gives"
        yield score, f"{label}, by member", own, True


def _detection_infos() -> Iterator[MetricInfo]:
    for measure, measure_label, description in _DETECTION:
        for score, score_label, meaning, by_member in _detection_scores():
            yield MetricInfo(
                name=detection_key(measure, score, by_member=by_member),
                label=f"{measure_label} ({score_label})",
                higher_is_better=measure != "fpr95",
                unit="share",
                bounds=_SHARE,
                description=f"{description}; score: {meaning}.",
                scope="detection",
                role="primary" if score in _COMPARED else "secondary",
                measure=measure,
                score=score,
                by_member=by_member,
                needs_members=by_member or score in _OF_MEMBERS,
                measure_label=measure_label,
                score_label=score_label,
            )


_WAYS = {
    "pooled": "one temperature of the pooled prediction",
    "joint": "one temperature of all members, before pooling",
    "member": "a temperature of each member's own, before pooling",
}


def _temperature_infos() -> Iterator[MetricInfo]:
    scaled = [info for info in _SPLIT if info.name in ("nll", "brier", "ece", "confidence")]
    lacking = "the calibration images do not identify its temperature"
    of_temperature = partial(
        MetricInfo, scope="temperature", role="secondary", undefined_if=lacking
    )
    for way, meaning in _WAYS.items():
        for raw in scaled:
            yield of_temperature(
                f"{raw.name}_{way}",
                f"{raw.label}, T {way}",
                raw.higher_is_better,
                raw.unit,
                raw.bounds,
                f"{raw.label} after {meaning}, fitted on val/calibrate.",
                measure=raw.name,
                measure_label=raw.label,
                way=way,
            )
        if way != "member":
            yield of_temperature(
                f"temperature_{way}",
                f"T {way}",
                None,
                "score",
                _UNBOUNDED,
                f"The temperature itself, {meaning}: above 1 makes less confident.",
                measure="temperature",
                measure_label="T",
                way=way,
            )


_CONFORMAL = {"lac": "LAC", "aps": "APS", "raps": "RAPS"}
_OF_SETS = (
    ("coverage", "Coverage", None, "Share of sets that contain the label; target 0.9"),
    ("set_size", "Set size", None, "Mean number of classes in a set"),
    ("empty_sets", "Empty sets", None, "Share of sets without any class"),
    (
        "worst_size_coverage",
        "Worst coverage by size",
        True,
        "Lowest coverage among the sets of one size, of sizes that one in twenty sets has",
    ),
    (
        "worst_class_coverage",
        "Worst coverage by class",
        True,
        "Lowest coverage among the images of one class",
    ),
)


def _conformal_infos() -> Iterator[MetricInfo]:
    for score, score_label in _CONFORMAL.items():
        for measure, label, higher_is_better, description in _OF_SETS:
            of_size = measure == "set_size"
            yield MetricInfo(
                f"{measure}_{score}",
                f"{label}, {score_label}",
                higher_is_better,
                "score" if of_size else "share",
                _UNBOUNDED if of_size else _SHARE,
                f"{description}; conformal sets by {score_label}, fitted on val/conform.",
                scope="conformal",
                role="secondary",
                measure=measure,
                score=score,
                measure_label=label,
                score_label=score_label,
                undefined_if="the images of val/conform are too few, or training images",
            )


_KNOWN: dict[str, MetricInfo] = {
    info.name: info
    for info in (*_SPLIT, *_temperature_infos(), *_conformal_infos(), *_detection_infos())
}

METRICS: Mapping[str, MetricInfo] = MappingProxyType(_KNOWN)
"""Every key that `evaluate` and `evaluate_ood` give, and those of temperatures, conformal sets,
input gradients and detectors -> its identity. Registered metrics stand at its end."""


def list_metric(info: MetricInfo) -> None:
    """Add a metric to the end of `METRICS`; `deepens.metrics.register_metric` calls it."""
    _KNOWN[info.name] = info


def forget_metric(name: str) -> None:
    """Take a registered metric out of `METRICS`."""
    del _KNOWN[name]


def metric_info(name: str) -> MetricInfo:
    """Return a metric's identity, also of one that is not known here, labelled by its key.

    Use it for results of a version or a plug-in that may know more metrics; elsewhere ask
    `METRICS`.

    Example:
        >>> from deepens.metrics.core.catalogue import metric_info
        >>> info = metric_info("auroc_knn_member")
        >>> info.measure, info.score, info.by_member
        ('auroc', 'knn', True)
        >>> metric_info("of another version").label
        'of another version'
    """
    known = METRICS.get(name)
    return known or MetricInfo(name, name, None, "score", (-math.inf, math.inf), "")


def metrics_with(**wanted: object) -> tuple[str, ...]:
    """Return the keys of all metrics whose fields have these values, in the order of `METRICS`.

    ``wanted`` are fields of `MetricInfo`; another is a ``TypeError``.

    Example:
        >>> from deepens.metrics.core.catalogue import metrics_with
        >>> metrics_with(scope="conformal", score="lac")[:3]
        ('coverage_lac', 'set_size_lac', 'empty_sets_lac')
    """
    known = {each.name for each in fields(MetricInfo)}
    for field in wanted:
        if field not in known:
            raise TypeError(f"field must be one of {', '.join(sorted(known))}, got {field!r}")
    return tuple(
        name
        for name, info in METRICS.items()
        if all(getattr(info, field) == value for field, value in wanted.items())
    )
