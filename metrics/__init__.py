"""Metrics of ensembles: calibration, selective prediction, OOD detection, diversity, statistics.

Every metric is a pure function of per-sample values and a `torchmetrics.Metric` of member logits
that gives the same number in one batch, in many and across processes. `evaluate` and
`evaluate_ood` compute them all. Logits are ``[members, samples, classes]``; a single model is one
member. Uncertainty scores are higher for more uncertain samples, and OOD is the positive class.

Names load when they are first used: ``import deepens.metrics`` imports neither torch nor
torchmetrics. ``__all__`` has what users of the suite need; the rest is for those who build on it.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .calibration.adaptive import adaptive_calibration_error
    from .calibration.classwise import classwise_calibration_error, top_label_calibration_error
    from .calibration.confidence_gap import confidence_gap
    from .calibration.reliability import (
        ReliabilityBins,
        debiased_squared_calibration_error,
        expected_calibration_error,
        maximum_calibration_error,
        reliability_bins,
        root_mean_square_calibration_error,
    )
    from .calibration.smooth import smooth_calibration_error
    from .calibration.temperature import WAYS, Temperature, fit_temperature
    from .conformal.prediction_sets import ConformalSets, SetQuality, evaluate_sets, fit_conformal
    from .core.catalogue import MetricInfo
    from .core.mixture import (
        member_log_probs,
        mixture_log_probs,
        pool_log_probs,
        validate_logits,
        validate_targets,
    )
    from .core.plots import (
        plot_rejection,
        plot_reliability,
        plot_risk_coverage,
        plot_roc,
        plot_scores,
    )
    from .core.ranking import CumulativeCounts, Ranking, rank
    from .core.reliability_bands import ReliabilityBands, reliability_bands, wilson_interval
    from .detection.ood import area_under_roc, average_precision, false_positive_rate
    from .detection.uncertainty_scores import SCORES
    from .diversity.member_diversity import (
        brier_ambiguity,
        disagreement,
        input_gradient_similarity,
        jensen_gap,
        pairwise_kl,
    )
    from .diversity.pairwise import (
        cosine_similarity,
        double_fault,
        error_correlation,
        joint_counts,
        normalized_disagreement,
        q_statistic,
    )
    from .io.arrays import open_logits, read_labels, score_split
    from .io.logit_source import LogitSource
    from .registry import register_metric, registered_metric, unregister_metric
    from .samples import SampleValues, sample_values
    from .scoring.proper_scores import (
        brier_score,
        correctness,
        negative_log_likelihood,
        top_k_correctness,
    )
    from .scoring.uncertainty import (
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
    from .selective.areas import (
        area_under_generalized_risk_coverage,
        area_under_risk_coverage,
        auroc_of_failures,
        coverage_at_risk,
        excess_area_under_risk_coverage,
        risk_at_coverage,
    )
    from .selective.risk_coverage import RiskCoverageCurve, risk_coverage_curve
    from .selective.scod import ScodCurve, scod_curve, scod_risk
    from .statistics.bootstrap import (
        Draws,
        Evaluation,
        Interval,
        ReplicateSummary,
        bootstrap_draws,
        paired_bootstrap,
        paired_intervals,
        resampling_weights,
        summarize_replicates,
    )
    from .statistics.effective_robustness import (
        RobustnessLine,
        effective_robustness,
        fit_robustness_line,
    )
    from .statistics.gain_correlation import Gains, gain_correlation, gain_correlations
    from .statistics.hypothesis_tests import DeLong, delong_test, holm_adjusted, mcnemar_test
    from .statistics.iso_compute import IsoComputeGaps, iso_compute_gap, iso_compute_gaps
    from .streaming.base import EnsembleMetric, SampleMean
    from .streaming.binned import (
        ClasswiseCalibrationError,
        DebiasedSquaredCalibrationError,
        ExpectedCalibrationError,
        MaximumCalibrationError,
        RootMeanSquareCalibrationError,
        SmoothCalibrationError,
        TopLabelCalibrationError,
    )
    from .streaming.means import (
        Accuracy,
        BrierAmbiguity,
        BrierScore,
        ConfidenceGap,
        ConformalCoverage,
        ConformalSetSize,
        CosineSimilarity,
        Disagreement,
        JensenGap,
        MeanConfidence,
        MeanUncertainty,
        MutualInformation,
        NegativeLogLikelihood,
        PairwiseKL,
        TopKAccuracy,
    )
    from .streaming.pairs import DoubleFault, ErrorCorrelation, NormalizedDisagreement, QStatistic
    from .streaming.ranked import (
        AdaptiveCalibrationError,
        AreaUnderGeneralizedRiskCoverage,
        AreaUnderRiskCoverage,
        AUROCOfFailures,
        CoverageAtRisk,
        ExcessAreaUnderRiskCoverage,
        OODAreaUnderROC,
        OODAveragePrecision,
        OODFalsePositiveRate,
        OODMetric,
        RiskAtCoverage,
        SCODRisk,
        SelectiveMetric,
    )
    from .suite import (
        METRICS,
        MeanEvaluation,
        OODEvaluation,
        SplitEvaluation,
        evaluate,
        evaluate_ood,
        evaluate_ood_values,
        evaluate_values,
    )

_PUBLIC = {
    "calibration.adaptive": "adaptive_calibration_error",
    "calibration.classwise": "classwise_calibration_error top_label_calibration_error",
    "calibration.confidence_gap": "confidence_gap",
    "calibration.reliability": (
        "debiased_squared_calibration_error expected_calibration_error "
        "maximum_calibration_error root_mean_square_calibration_error"
    ),
    "calibration.smooth": "smooth_calibration_error",
    "calibration.temperature": "fit_temperature",
    "conformal.prediction_sets": "ConformalSets evaluate_sets fit_conformal",
    "core.catalogue": "MetricInfo",
    "core.mixture": "member_log_probs mixture_log_probs",
    "detection.ood": "area_under_roc average_precision false_positive_rate",
    "detection.uncertainty_scores": "SCORES",
    "diversity.member_diversity": (
        "brier_ambiguity disagreement input_gradient_similarity jensen_gap pairwise_kl"
    ),
    "diversity.pairwise": (
        "cosine_similarity double_fault error_correlation normalized_disagreement q_statistic"
    ),
    "registry": "register_metric unregister_metric",
    "samples": "SampleValues sample_values",
    "scoring.proper_scores": "brier_score negative_log_likelihood",
    "scoring.uncertainty": (
        "energy_score expected_entropy maximum_logit_score maximum_softmax_score "
        "mutual_information predictive_entropy probability_variance reverse_mutual_information "
        "variation_ratio"
    ),
    "selective.areas": (
        "area_under_generalized_risk_coverage area_under_risk_coverage auroc_of_failures "
        "coverage_at_risk excess_area_under_risk_coverage risk_at_coverage"
    ),
    "selective.risk_coverage": "risk_coverage_curve",
    "selective.scod": "scod_curve scod_risk",
    "statistics.bootstrap": "paired_bootstrap summarize_replicates",
    "statistics.effective_robustness": "effective_robustness fit_robustness_line",
    "statistics.gain_correlation": "gain_correlations",
    "statistics.hypothesis_tests": "delong_test holm_adjusted mcnemar_test",
    "statistics.iso_compute": "iso_compute_gaps",
    "streaming.binned": (
        "ClasswiseCalibrationError DebiasedSquaredCalibrationError ExpectedCalibrationError "
        "MaximumCalibrationError RootMeanSquareCalibrationError SmoothCalibrationError "
        "TopLabelCalibrationError"
    ),
    "streaming.means": (
        "Accuracy BrierAmbiguity BrierScore ConfidenceGap ConformalCoverage ConformalSetSize "
        "CosineSimilarity Disagreement JensenGap MeanConfidence MeanUncertainty "
        "MutualInformation NegativeLogLikelihood PairwiseKL TopKAccuracy"
    ),
    "streaming.pairs": "DoubleFault ErrorCorrelation NormalizedDisagreement QStatistic",
    "streaming.ranked": (
        "AUROCOfFailures AdaptiveCalibrationError AreaUnderGeneralizedRiskCoverage "
        "AreaUnderRiskCoverage CoverageAtRisk ExcessAreaUnderRiskCoverage OODAreaUnderROC "
        "OODAveragePrecision OODFalsePositiveRate RiskAtCoverage SCODRisk"
    ),
    "suite": "METRICS evaluate evaluate_ood",  # all of METRICS: importing the suite registers some
}
"""Module -> the names of it that the suite offers."""

_INTERNAL = {
    "calibration.reliability": "ReliabilityBins reliability_bins",
    "calibration.temperature": "WAYS Temperature",
    "conformal.prediction_sets": "SetQuality",
    "core.mixture": "pool_log_probs validate_logits validate_targets",
    "core.plots": "plot_rejection plot_reliability plot_risk_coverage plot_roc plot_scores",
    "core.ranking": "CumulativeCounts Ranking rank",
    "core.reliability_bands": "ReliabilityBands reliability_bands wilson_interval",
    "diversity.pairwise": "joint_counts",
    "io.arrays": "open_logits read_labels score_split",
    "io.logit_source": "LogitSource",
    "registry": "registered_metric",
    "scoring.proper_scores": "correctness top_k_correctness",
    "scoring.uncertainty": "maximum_probability",
    "selective.risk_coverage": "RiskCoverageCurve",
    "selective.scod": "ScodCurve",
    "statistics.bootstrap": (
        "Draws Evaluation Interval ReplicateSummary bootstrap_draws paired_intervals "
        "resampling_weights"
    ),
    "statistics.effective_robustness": "RobustnessLine",
    "statistics.gain_correlation": "Gains gain_correlation",
    "statistics.hypothesis_tests": "DeLong",
    "statistics.iso_compute": "IsoComputeGaps iso_compute_gap",
    "streaming.base": "EnsembleMetric SampleMean",
    "streaming.ranked": "OODMetric SelectiveMetric",
    "suite": "MeanEvaluation OODEvaluation SplitEvaluation evaluate_ood_values evaluate_values",
}
"""Module -> further names that are importable from here."""

_HOME = {
    name: module
    for table in (_PUBLIC, _INTERNAL)
    for module, names in table.items()
    for name in names.split()
}
__all__ = sorted(name for names in _PUBLIC.values() for name in names.split())


def __getattr__(name: str) -> object:
    """Import the module that holds ``name`` when it is first asked for."""
    if name in _HOME:
        return getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(_HOME)
