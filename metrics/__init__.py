"""Metrics of ensembles: calibration, selective prediction, OOD detection, diversity, statistics.

Every metric is a pure function of per-sample values and a `torchmetrics.Metric` of member logits
that gives the same number in one batch, in many and across processes. `evaluate` and
`evaluate_ood` compute them all. Logits are ``[members, samples, classes]``; a single model is one
member. Uncertainty scores are higher for more uncertain samples, and OOD is the positive class.

Names load when they are first used: ``import deepens.metrics`` imports neither torch nor
torchmetrics. ``__all__`` has what users of the suite need; the rest is for those who build on it.
"""

import ast
import importlib
from pathlib import Path
from typing import TYPE_CHECKING

# Read twice: by type checkers, and as the table of what is loaded from where.
if TYPE_CHECKING:  # what users of the suite need: `__all__`
    from .calibration.classwise import classwise_calibration_error, top_label_calibration_error
    from .calibration.reliability import (
        adaptive_calibration_error,
        confidence_gap,
        debiased_squared_calibration_error,
        expected_calibration_error,
        maximum_calibration_error,
        root_mean_square_calibration_error,
    )
    from .calibration.smooth import smooth_calibration_error
    from .calibration.temperature import fit_temperature
    from .conformal.prediction_sets import ConformalSets, evaluate_sets, fit_conformal
    from .core.catalogue import MetricInfo
    from .core.mixture import member_log_probs, mixture_log_probs
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
        ensemble_improvement_rate,
        error_correlation,
        normalized_disagreement,
        q_statistic,
    )
    from .registry import register_metric, unregister_metric
    from .samples import SampleValues, sample_values, score_split
    from .scoring.proper_scores import brier_score, negative_log_likelihood
    from .scoring.uncertainty import (
        energy_score,
        expected_entropy,
        maximum_logit_score,
        maximum_softmax_score,
        mutual_information,
        predictive_entropy,
        probability_variance,
        reverse_mutual_information,
        variation_ratio,
    )
    from .selective.risk_coverage import (
        area_under_generalized_risk_coverage,
        area_under_risk_coverage,
        auroc_of_failures,
        coverage_at_risk,
        excess_area_under_risk_coverage,
        risk_at_coverage,
        risk_coverage_curve,
    )
    from .selective.scod import scod_curve, scod_risk
    from .statistics.bootstrap import paired_bootstrap, summarize_replicates
    from .statistics.effective_robustness import effective_robustness, fit_robustness_line
    from .statistics.ensemble_size import (
        deep_ensemble_equivalent,
        extrapolate_power_law,
        fit_power_law,
    )
    from .statistics.gain_correlation import gain_correlations
    from .statistics.hypothesis_tests import (
        delong_test,
        holm_adjusted,
        least_detectable,
        mcnemar_test,
    )
    from .statistics.iso_compute import iso_compute_gaps
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
    from .streaming.pairs import (
        DoubleFault,
        EnsembleImprovementRate,
        ErrorCorrelation,
        NormalizedDisagreement,
        QStatistic,
    )
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
        RiskAtCoverage,
        SCODRisk,
    )
    from .suite import METRICS, evaluate, evaluate_ood

if TYPE_CHECKING:  # for those who build on it
    from .calibration.reliability import ReliabilityBins, reliability_bins
    from .calibration.temperature import WAYS, Temperature
    from .conformal.prediction_sets import SetQuality
    from .core.mixture import pool_log_probs, validate_logits, validate_targets
    from .core.plots import (
        plot_rejection,
        plot_reliability,
        plot_risk_coverage,
        plot_roc,
        plot_scores,
    )
    from .core.ranking import CumulativeCounts, Ranking, rank
    from .core.reliability_bands import ReliabilityBands, reliability_bands, wilson_interval
    from .diversity.pairwise import joint_counts
    from .io.arrays import open_logits, read_labels
    from .io.logit_source import LogitSource
    from .registry import registered_metric
    from .scoring.proper_scores import correctness, top_k_correctness
    from .scoring.uncertainty import maximum_probability
    from .selective.risk_coverage import RiskCoverageCurve
    from .selective.scod import ScodCurve
    from .statistics.bootstrap import (
        Interval,
        ReplicateSummary,
        contrast_intervals,
        paired_intervals,
    )
    from .statistics.draws import Draws, Evaluation, bootstrap_draws, resampling_weights
    from .statistics.effective_robustness import RobustnessLine
    from .statistics.gain_correlation import Gains, gain_correlation
    from .statistics.hypothesis_tests import DeLong
    from .statistics.iso_compute import IsoComputeGaps, iso_compute_gap
    from .streaming.base import EnsembleMetric, SampleMean
    from .streaming.ranked import OODMetric, SelectiveMetric
    from .suite import (
        MeanEvaluation,
        OODEvaluation,
        SplitEvaluation,
        evaluate_ood_values,
        evaluate_values,
    )

_PUBLIC, _FURTHER = (
    {
        alias.name: f".{line.module}"
        for line in block.body
        if isinstance(line, ast.ImportFrom)
        for alias in line.names
    }
    for block in ast.parse(Path(__file__).read_text(encoding="utf-8")).body
    if isinstance(block, ast.If)
)
_HOMES = _PUBLIC | _FURTHER
__all__ = sorted(_PUBLIC)


def __getattr__(name: str) -> object:
    """Import the module that holds ``name`` when it is first asked for."""
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name], __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(_HOMES)
