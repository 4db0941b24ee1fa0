"""Metrics of ensembles: calibration, selective prediction, OOD detection, diversity, statistics.

Every metric is a pure function of per-sample values and a `torchmetrics.Metric` of member logits
that gives the same number in one batch, in many and across processes. `evaluate` and
`evaluate_ood` compute them all. Logits are ``[members, samples, classes]``; a single model is one
member. Uncertainty scores are higher for more uncertain samples, and OOD is the positive class.
"""

from .calibration import (
    ExpectedCalibrationError,
    ReliabilityBins,
    expected_calibration_error,
    reliability_bins,
)
from .catalogue import METRICS, MetricInfo
from .diversity import (
    Disagreement,
    PairwiseKL,
    brier_ambiguity,
    disagreement,
    input_gradient_similarity,
    jensen_gap,
    pairwise_kl,
)
from .mixture import (
    member_log_probs,
    mixture_log_probs,
    pool_log_probs,
    validate_logits,
    validate_targets,
)
from .ood import (
    OODAreaUnderROC,
    OODAveragePrecision,
    OODFalsePositiveRate,
    OODMetric,
    area_under_roc,
    average_precision,
    false_positive_rate,
)
from .ranking import CumulativeCounts, Ranking, rank
from .risk_coverage import RiskCoverageCurve, risk_coverage_curve
from .samples import SampleValues, sample_values
from .scoring import (
    Accuracy,
    BrierScore,
    NegativeLogLikelihood,
    brier_score,
    correctness,
    negative_log_likelihood,
)
from .selective import (
    AreaUnderGeneralizedRiskCoverage,
    AreaUnderRiskCoverage,
    CoverageAtRisk,
    SelectiveMetric,
    area_under_generalized_risk_coverage,
    area_under_risk_coverage,
    coverage_at_risk,
    excess_area_under_risk_coverage,
    risk_at_coverage,
)
from .statistics import (
    Evaluation,
    Interval,
    ReplicateSummary,
    paired_bootstrap,
    resampling_weights,
    summarize_replicates,
)
from .streaming import EnsembleMetric, SampleMean
from .suite import (
    MeanEvaluation,
    OODEvaluation,
    SplitEvaluation,
    evaluate,
    evaluate_ood,
    evaluate_ood_values,
    evaluate_values,
)
from .temperature import Temperature, fit_temperature
from .uncertainty import (
    SCORES,
    MeanConfidence,
    MutualInformation,
    expected_entropy,
    maximum_probability,
    maximum_softmax_score,
    mutual_information,
    predictive_entropy,
)

__all__ = [
    "METRICS",
    "SCORES",
    "Accuracy",
    "AreaUnderGeneralizedRiskCoverage",
    "AreaUnderRiskCoverage",
    "BrierScore",
    "CoverageAtRisk",
    "CumulativeCounts",
    "Disagreement",
    "EnsembleMetric",
    "Evaluation",
    "ExpectedCalibrationError",
    "Interval",
    "MeanConfidence",
    "MeanEvaluation",
    "MetricInfo",
    "MutualInformation",
    "NegativeLogLikelihood",
    "OODAreaUnderROC",
    "OODAveragePrecision",
    "OODEvaluation",
    "OODFalsePositiveRate",
    "OODMetric",
    "PairwiseKL",
    "Ranking",
    "ReliabilityBins",
    "ReplicateSummary",
    "RiskCoverageCurve",
    "SampleMean",
    "SampleValues",
    "SelectiveMetric",
    "SplitEvaluation",
    "Temperature",
    "area_under_generalized_risk_coverage",
    "area_under_risk_coverage",
    "area_under_roc",
    "average_precision",
    "brier_ambiguity",
    "brier_score",
    "correctness",
    "coverage_at_risk",
    "disagreement",
    "evaluate",
    "evaluate_ood",
    "evaluate_ood_values",
    "evaluate_values",
    "excess_area_under_risk_coverage",
    "expected_calibration_error",
    "expected_entropy",
    "false_positive_rate",
    "fit_temperature",
    "input_gradient_similarity",
    "jensen_gap",
    "maximum_probability",
    "maximum_softmax_score",
    "member_log_probs",
    "mixture_log_probs",
    "mutual_information",
    "negative_log_likelihood",
    "paired_bootstrap",
    "pairwise_kl",
    "pool_log_probs",
    "predictive_entropy",
    "rank",
    "reliability_bins",
    "resampling_weights",
    "risk_at_coverage",
    "risk_coverage_curve",
    "sample_values",
    "summarize_replicates",
    "validate_logits",
    "validate_targets",
]
