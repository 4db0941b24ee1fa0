"""Metrics of ensembles: calibration, selective prediction, OOD detection, diversity, statistics.

Every metric is a pure function of per-sample values and a `torchmetrics.Metric` of member logits
that gives the same number in one batch, in many and across processes. `evaluate` and
`evaluate_ood` compute them all. Logits are ``[members, samples, classes]``; a single model is one
member. Uncertainty scores are higher for more uncertain samples, and OOD is the positive class.
"""

from .adaptive_calibration import AdaptiveCalibrationError, adaptive_calibration_error
from .arrays import open_logits, read_labels, score_split
from .binned_calibration import (
    DebiasedSquaredCalibrationError,
    ExpectedCalibrationError,
    MaximumCalibrationError,
    RootMeanSquareCalibrationError,
)
from .calibration import (
    ReliabilityBins,
    debiased_squared_calibration_error,
    expected_calibration_error,
    maximum_calibration_error,
    reliability_bins,
    root_mean_square_calibration_error,
)
from .catalogue import METRICS, MetricInfo
from .classwise_calibration import (
    ClasswiseCalibrationError,
    TopLabelCalibrationError,
    classwise_calibration_error,
    top_label_calibration_error,
)
from .confidence_gap import ConfidenceGap, confidence_gap
from .conformal import (
    ConformalCoverage,
    ConformalSets,
    ConformalSetSize,
    SetQuality,
    evaluate_sets,
    fit_conformal,
)
from .diversity import (
    Disagreement,
    PairwiseKL,
    brier_ambiguity,
    disagreement,
    input_gradient_similarity,
    jensen_gap,
    pairwise_kl,
)
from .hypothesis_tests import DeLong, delong_test, holm_adjusted, mcnemar_test
from .logit_source import LogitSource
from .mixture import (
    member_log_probs,
    mixture_log_probs,
    pool_log_probs,
    validate_logits,
    validate_targets,
)
from .ood import area_under_roc, average_precision, false_positive_rate
from .ood_metrics import (
    OODAreaUnderROC,
    OODAveragePrecision,
    OODFalsePositiveRate,
    OODMetric,
)
from .pairwise_diversity import (
    DoubleFault,
    ErrorCorrelation,
    NormalizedDisagreement,
    QStatistic,
    cosine_similarity,
    double_fault,
    error_correlation,
    joint_counts,
    normalized_disagreement,
    q_statistic,
)
from .plots import plot_reliability, plot_risk_coverage, plot_roc, plot_scores
from .ranking import CumulativeCounts, Ranking, rank
from .reliability_bands import ReliabilityBands, reliability_bands, wilson_interval
from .risk_coverage import RiskCoverageCurve, risk_coverage_curve
from .samples import SampleValues, sample_values
from .scod import ScodCurve, SCODRisk, scod_curve, scod_risk
from .scores import SCORES, MeanConfidence, MutualInformation
from .scoring import (
    Accuracy,
    BrierScore,
    NegativeLogLikelihood,
    brier_score,
    correctness,
    negative_log_likelihood,
)
from .selective import (
    area_under_generalized_risk_coverage,
    area_under_risk_coverage,
    auroc_of_failures,
    coverage_at_risk,
    excess_area_under_risk_coverage,
    risk_at_coverage,
)
from .selective_metrics import (
    AreaUnderGeneralizedRiskCoverage,
    AreaUnderRiskCoverage,
    AUROCOfFailures,
    CoverageAtRisk,
    ExcessAreaUnderRiskCoverage,
    RiskAtCoverage,
    SelectiveMetric,
)
from .smooth_calibration import SmoothCalibrationError, smooth_calibration_error
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
from .temperature import WAYS, Temperature, fit_temperature
from .uncertainty import (
    energy_score,
    expected_entropy,
    maximum_logit_score,
    maximum_probability,
    maximum_softmax_score,
    mutual_information,
    predictive_entropy,
    probability_variance,
    reverse_mutual_information,
    variation_ratio,
)

__all__ = [
    "METRICS",
    "SCORES",
    "WAYS",
    "AUROCOfFailures",
    "Accuracy",
    "AdaptiveCalibrationError",
    "AreaUnderGeneralizedRiskCoverage",
    "AreaUnderRiskCoverage",
    "BrierScore",
    "ClasswiseCalibrationError",
    "ConfidenceGap",
    "ConformalCoverage",
    "ConformalSetSize",
    "ConformalSets",
    "CoverageAtRisk",
    "CumulativeCounts",
    "DeLong",
    "DebiasedSquaredCalibrationError",
    "Disagreement",
    "DoubleFault",
    "EnsembleMetric",
    "ErrorCorrelation",
    "Evaluation",
    "ExcessAreaUnderRiskCoverage",
    "ExpectedCalibrationError",
    "Interval",
    "LogitSource",
    "MaximumCalibrationError",
    "MeanConfidence",
    "MeanEvaluation",
    "MetricInfo",
    "MutualInformation",
    "NegativeLogLikelihood",
    "NormalizedDisagreement",
    "OODAreaUnderROC",
    "OODAveragePrecision",
    "OODEvaluation",
    "OODFalsePositiveRate",
    "OODMetric",
    "PairwiseKL",
    "QStatistic",
    "Ranking",
    "ReliabilityBands",
    "ReliabilityBins",
    "ReplicateSummary",
    "RiskAtCoverage",
    "RiskCoverageCurve",
    "RootMeanSquareCalibrationError",
    "SCODRisk",
    "SampleMean",
    "SampleValues",
    "ScodCurve",
    "SelectiveMetric",
    "SetQuality",
    "SmoothCalibrationError",
    "SplitEvaluation",
    "Temperature",
    "TopLabelCalibrationError",
    "adaptive_calibration_error",
    "area_under_generalized_risk_coverage",
    "area_under_risk_coverage",
    "area_under_roc",
    "auroc_of_failures",
    "average_precision",
    "brier_ambiguity",
    "brier_score",
    "classwise_calibration_error",
    "confidence_gap",
    "correctness",
    "cosine_similarity",
    "coverage_at_risk",
    "debiased_squared_calibration_error",
    "delong_test",
    "disagreement",
    "double_fault",
    "energy_score",
    "error_correlation",
    "evaluate",
    "evaluate_ood",
    "evaluate_ood_values",
    "evaluate_sets",
    "evaluate_values",
    "excess_area_under_risk_coverage",
    "expected_calibration_error",
    "expected_entropy",
    "false_positive_rate",
    "fit_conformal",
    "fit_temperature",
    "holm_adjusted",
    "input_gradient_similarity",
    "jensen_gap",
    "joint_counts",
    "maximum_calibration_error",
    "maximum_logit_score",
    "maximum_probability",
    "maximum_softmax_score",
    "mcnemar_test",
    "member_log_probs",
    "mixture_log_probs",
    "mutual_information",
    "negative_log_likelihood",
    "normalized_disagreement",
    "open_logits",
    "paired_bootstrap",
    "pairwise_kl",
    "plot_reliability",
    "plot_risk_coverage",
    "plot_roc",
    "plot_scores",
    "pool_log_probs",
    "predictive_entropy",
    "probability_variance",
    "q_statistic",
    "rank",
    "read_labels",
    "reliability_bands",
    "reliability_bins",
    "resampling_weights",
    "reverse_mutual_information",
    "risk_at_coverage",
    "risk_coverage_curve",
    "root_mean_square_calibration_error",
    "sample_values",
    "scod_curve",
    "scod_risk",
    "score_split",
    "smooth_calibration_error",
    "summarize_replicates",
    "top_label_calibration_error",
    "validate_logits",
    "validate_targets",
    "variation_ratio",
    "wilson_interval",
]
