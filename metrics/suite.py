"""The whole suite: every metric of a split, or of an OOD set against an ID set, in one call.

Logits are read once and become `SampleValues`, a few numbers per sample; everything else, bootstrap
included, works on these. `SplitEvaluation` and `OODEvaluation` sort once and then answer for the
data as they are or for any number of draws given as weights, so that they fit
`paired_bootstrap`.
"""

import math
import warnings
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float64, Integer
from torch import Tensor

from .calibration import reliability
from .calibration.classwise import top_label_calibration_error
from .calibration.smooth import smooth_calibration_error
from .core.binning import BinSums, bin_sums
from .core.catalogue import METRICS
from .core.doubts import overlap_doubts
from .core.mixture import validate_weights
from .core.ranking import rank
from .core.shapes import PerDraw, Weights
from .detection.ood import detect, detection_metrics
from .diversity.pairwise import improvement_of_counts, pair_measures
from .io.arrays import check_ood, open_logits
from .io.logit_source import Kind, Layout
from .registry import registered_values
from .samples import SampleValues, score_arrays, score_split
from .selective import risk_coverage


class SplitEvaluation:
    """All metrics of a labelled split, as a function of sample weights; sorts once.

    Values without labels are a ``ValueError``.

    Example:
        >>> import torch
        >>> from deepens.metrics import SplitEvaluation, sample_values
        >>> values = sample_values(torch.tensor([[[2.0, 0.0], [2.0, 0.0]]]), torch.tensor([0, 1]))
        >>> evaluation = SplitEvaluation(values)
        >>> evaluation(torch.tensor([[2, 0], [0, 2]]))["accuracy"]
        tensor([1., 0.], dtype=torch.float64)
    """

    def __init__(self, values: SampleValues) -> None:
        self.values = values
        self._means = _labelled_means(values)
        self._correct = self._means["accuracy"]
        self._ranking = rank(-values.ranked)

    @cached_property
    def bins(self) -> BinSums:
        """Sums over bins of confidence, of the data as they are."""
        confidence, precision = self.values.confidence, self.values.precision
        return bin_sums(confidence, self._correct, precision=precision)

    @cached_property
    def _columns(self) -> Float64[Tensor, "samples columns"]:
        means = torch.stack([column.double() for column in self._means.values()], dim=1)
        gaps = _gaps(self.values, self._correct)
        return torch.cat([means, gaps], dim=1)

    def __call__(self, weights: Weights | None = None) -> dict[str, PerDraw]:
        """Return every metric by name, for the data as they are or for each row of weights.

        Args:
            weights: How often each sample counts, one row per bootstrap draw; once each by default.

        Raises:
            ValueError: If ``weights`` are not whole numbers >= 0, one per sample, with a positive
                sum in every draw.
        """
        if weights is None:
            results = {name: column.double().mean() for name, column in self._means.items()}
            ece = reliability.error_of_sums(self.bins)
        else:
            weights = weights.to(self.values.confidence.device)
            sums = _weighted_means(weights, self._columns)
            results = dict(zip(self._means, sums.unbind(-1), strict=False))
            ece = sums[..., len(self._means) :].abs().sum(-1)
        counts = self._ranking.cumulate(~self._correct, weights)
        return results | {
            "ece": ece,
            "aurc": risk_coverage.aurc_from_counts(counts),
            "augrc": risk_coverage.augrc_from_counts(counts),
            "coverage_at_5_risk": risk_coverage.coverage_from_counts(counts, risk=0.05),
            **dict(registered_values(self.values, weights, "primary")),
        }


class MeanEvaluation:
    """Means and ECE of copies of one labelled split, each the unweighted mean over the copies.

    Copies are the same samples in the same order, such as one test split under several corruptions;
    none, or copies of several lengths or without labels, are a ``ValueError``. A sample has one
    weight in all of them: to draw copies of an image as if they were several images would make
    intervals too narrow. The metrics by rank are left out, which would sort every copy anew; the
    rest is one matrix product.

    Example:
        >>> import torch
        >>> from deepens.metrics import MeanEvaluation, sample_values
        >>> logits, targets = torch.tensor([[[2.0, 0.0], [2.0, 0.0]]]), torch.tensor([0, 1])
        >>> clean, shifted = sample_values(logits, targets), sample_values(-logits, targets * 0)
        >>> MeanEvaluation([clean, shifted])(torch.tensor([[2, 0]]))["accuracy"]
        tensor([0.5000], dtype=torch.float64)
    """

    def __init__(self, copies: Sequence[SampleValues]) -> None:
        lengths = sorted({len(copy) for copy in copies})
        if len(lengths) != 1:
            raise ValueError(f"copies must be of one length, and at least one, got {lengths}")
        means = [_labelled_means(copy) for copy in copies]
        self._names = list(means[0])
        self._copies = list(copies)
        averages = [
            torch.stack([each[name].double() for each in means]).mean(0) for name in self._names
        ]
        gaps = [_gaps(copy, each["accuracy"]) for copy, each in zip(copies, means, strict=True)]
        self._columns = torch.cat([torch.stack(averages, dim=1), *gaps], dim=1)

    def __call__(self, weights: Weights | None = None) -> dict[str, PerDraw]:
        """Return the mean of each metric; arguments and errors as for `SplitEvaluation`."""
        if weights is None:
            weights = torch.ones(len(self._columns), dtype=torch.int64)
        weights = weights.to(self._columns.device)
        sums = _weighted_means(weights, self._columns)
        gaps = sums[..., len(self._names) :].unflatten(-1, (len(self._copies), -1))
        results = dict(zip(self._names, sums.unbind(-1), strict=False))
        own = [dict(registered_values(copy, weights, "primary")) for copy in self._copies]
        means = {name: torch.stack([each[name] for each in own]).mean(0) for name in own[0]}
        return results | {"ece": gaps.abs().sum(-1).mean(-1)} | means


class OODEvaluation:
    """All metrics of OOD detection, as a function of the weights of both sets.

    With one member the mutual information is 0 everywhere: all samples tie, and its AUROC is
    exactly 0.5 (no detection), its average precisions the shares of the classes, its FPR 1.
    """

    def __init__(self, id_values: SampleValues, ood_values: SampleValues) -> None:
        self.id_values, self.ood_values = id_values, ood_values
        device = id_values.confidence.device
        number = len(id_values) + len(ood_values)
        self._is_ood = torch.arange(number, device=device) >= len(id_values)
        names = {"msp": "ranked", "entropy": "entropy", "mutual_information": "mutual_information"}
        scores = {
            score: torch.cat([getattr(id_values, name), getattr(ood_values, name)])
            for score, name in names.items()
        }
        self._rankings = {name: rank(score) for name, score in scores.items()}
        self._means = _unlabelled_means(ood_values)

    def __call__(
        self,
        id_weights: Integer[Tensor, "*draws id"] | None = None,
        ood_weights: Integer[Tensor, "*draws ood"] | None = None,
    ) -> dict[str, PerDraw]:
        """Return every metric by name, for the data as they are or for each row of both weights.

        Weights and errors as for `SplitEvaluation`; both are given, or neither. Means are over the
        OOD set.
        """
        if (id_weights is None) != (ood_weights is None):
            raise ValueError("id_weights and ood_weights must be given together, got one of them")
        if id_weights is None or ood_weights is None:
            weights = None
            results = {name: column.mean() for name, column in self._means.items()}
        else:
            weights = torch.cat([id_weights, ood_weights], dim=-1).to(self._is_ood.device)
            columns = torch.stack(list(self._means.values()), dim=1)
            means = _weighted_means(ood_weights.to(columns.device), columns)
            results = dict(zip(self._means, means.unbind(-1), strict=True))
        for score, ranking in self._rankings.items():
            results |= detection_metrics(score, ranking.cumulate(self._is_ood, weights))
        return results


def evaluate(
    logits: Any, targets: Any, *, layout: Layout = "MNC", kind: Kind = "logits"
) -> dict[str, int | float]:
    """Return every metric of a labelled split, of logits from any framework.

    Args:
        logits: Raw outputs, ``[members, samples, classes]``: a tensor, a NumPy array, whatever
            offers ``__array__`` or ``__dlpack__``, or a .npy, .npz, .safetensors, .parquet or .csv
            file; or a list of these, one ``[samples, classes]`` per member.
        targets: Class indices, as any of these.
        layout: Order of the axes of one array or file: ``"MNC"``, ``"NMC"``, or ``"NC"`` for a
            single model. It is never guessed.
        kind: ``"logits"``, ``"log_probs"`` or ``"probs"``. Nor is this.

    Returns:
        ``n`` and the keys of `SplitEvaluation`, which comparisons resample; and what is never
        resampled: further calibration errors, measures of selective prediction and of diversity,
        ambiguity decompositions. All are explained in `METRICS`. NaN, with a warning, for what
        these samples do not define.

    Raises:
        ValueError: If ``logits`` are not finite or empty, ``targets`` do not fit them, or they are
            of another layout or kind than stated.

    Example:
        >>> import torch
        >>> from deepens.metrics import evaluate
        >>> results = evaluate(torch.tensor([[[2.0, 0.0], [2.0, 0.0]]]), torch.tensor([0, 1]))
        >>> results["n"], results["accuracy"], results["disagreement"]
        (2, 0.5, 0.0)
        >>> softmaxes = [torch.tensor([[0.9, 0.1], [0.6, 0.4]])]  # of one member
        >>> evaluate(softmaxes, torch.tensor([0, 1]), kind="probs")["accuracy"]
        0.5
    """
    results = evaluate_values(score_arrays(logits, targets, layout=layout, kind=kind))
    for name, value in results.items():
        if math.isnan(value):
            reason = METRICS[name].undefined_if or "these samples do not define it"
            message = f"{name} is undefined, since {reason}: NaN is returned"
            warnings.warn(message, RuntimeWarning, stacklevel=2)
    return results


def evaluate_values(values: SampleValues) -> dict[str, int | float]:
    """Return every metric of a labelled split from its per-sample values, as `evaluate`.

    Without those whose values were left out; values without labels are a ``ValueError``.
    """
    evaluation = SplitEvaluation(values)
    results = evaluation() | dict(_secondary(values, evaluation.bins))
    results |= dict(_of_members(values)) | dict(registered_values(values, None, "secondary"))
    return {"n": len(values), **{name: value.item() for name, value in results.items()}}


def evaluate_ood(
    id_logits: Any, ood_logits: Any, *, layout: Layout = "MNC", kind: Kind = "logits"
) -> dict[str, int | float]:
    """Return every metric of telling an OOD set from an in-distribution set.

    Arguments and errors as for `evaluate`, the OOD set's of the same members and classes; energy
    and maximum logit need logits.

    Returns:
        ``n_id``, ``n_ood``, then ``auroc_*``, ``aupr_out_*``, ``aupr_in_*`` and ``fpr95_*`` for
        each of `SCORES`, and the OOD set's mean ``confidence``, ``disagreement``,
        ``mutual_information``, ``pairwise_kl`` and ``cosine_similarity``; explained in `METRICS`.

    Example:
        >>> import torch
        >>> from deepens.metrics import evaluate_ood
        >>> results = evaluate_ood(torch.tensor([[[5.0, 0.0]]]), torch.tensor([[[0.0, 0.0]]]))
        >>> results["auroc_msp"], results["auroc_mutual_information"]
        (1.0, 0.5)
    """
    with (
        open_logits(id_logits, layout=layout, kind=kind, name="id_logits") as source,
        open_logits(ood_logits, layout=layout, kind=kind, name="ood_logits") as ood,
    ):
        check_ood(source, ood)
        within, outside = score_split(source), score_split(ood)
    for line in overlap_doubts(within, outside):
        warnings.warn(line, RuntimeWarning, stacklevel=2)
    return evaluate_ood_values(within, outside)


def evaluate_ood_values(
    id_values: SampleValues, ood_values: SampleValues
) -> dict[str, int | float]:
    """Return every metric of OOD detection from per-sample values, as `evaluate_ood`.

    And the measures of detection of each detector that both sets have scores of; labels are not
    needed.
    """
    results = OODEvaluation(id_values, ood_values)() | dict(_of_members(ood_values))
    for name in id_values.detectors:
        if name in ood_values.detectors:
            results |= detect(name, id_values.detectors[name], ood_values.detectors[name])
    counts = {"n_id": len(id_values), "n_ood": len(ood_values)}
    return counts | {name: value.item() for name, value in results.items()}


def _gaps(values: SampleValues, correct: Tensor) -> Tensor:
    return reliability.calibration_gaps(values.confidence, correct, precision=values.precision)


def _labelled_means(values: SampleValues) -> dict[str, Tensor]:
    if values.nll is None or values.brier is None or values.correct is None:
        raise ValueError("values must come from labelled samples, got values without nll")
    labelled = {"accuracy": values.correct, "nll": values.nll, "brier": values.brier}
    return labelled | _unlabelled_means(values)


def _unlabelled_means(values: SampleValues) -> dict[str, Tensor]:
    return {
        "confidence": values.confidence,
        "disagreement": values.disagreement,
        "mutual_information": values.mutual_information,
    }


def _secondary(values: SampleValues, bins: BinSums) -> Iterator[tuple[str, Tensor]]:
    """Secondary metrics of a labelled split, which are not resampled."""
    more = values.more
    if more is None or values.nll is None or values.correct is None or values.brier is None:
        return
    confidence, correct = values.confidence, values.correct
    yield "confidence_gap", reliability.confidence_gap(confidence, correct)
    yield "mce", reliability.maximum_of_sums(bins)
    yield "rms_calibration_error", reliability.squared_of_sums(bins).sqrt()
    yield "debiased_calibration_error", reliability.debiased_of_sums(bins)
    yield "adaptive_calibration_error", reliability.adaptive_calibration_error(confidence, correct)
    yield "smooth_calibration_error", smooth_calibration_error(confidence, correct)
    if values.predicted is not None:
        by_label = top_label_calibration_error(
            confidence, correct, values.predicted, precision=values.precision
        )
        yield "top_label_calibration_error", by_label
    if more.sums is not None:
        yield "classwise_calibration_error", reliability.error_of_sums(more.sums.classes).mean()
    if more.among_five is not None:
        yield "top_5_accuracy", more.among_five.double().mean()
    counts = risk_coverage.count_errors(-values.ranked, correct)
    yield "e_aurc", risk_coverage.excess_from_counts(counts)
    yield "risk_at_80_coverage", risk_coverage.risk_from_counts(counts, coverage=0.8)
    both = 0 < counts.flagged[-1] < len(values)
    undefined = confidence.new_tensor(torch.nan)
    yield (
        "auroc_of_failures",
        risk_coverage.auroc_of_failures_from_counts(counts) if both else undefined,
    )
    # NLL = mean member NLL - Jensen gap, Brier score = mean member Brier score - ambiguity.
    for whole, members, mean, gain in (
        (values.nll, more.member_nll, "mean_member_nll", "jensen_gap"),
        (values.brier, more.member_brier, "mean_member_brier", "brier_ambiguity"),
    ):
        if members is not None:
            yield mean, members.mean()
            yield gain, (members.mean() - whole.mean()).clamp(min=0.0)  # but for rounding
    if more.sums is not None and more.sums.pairs.numel():
        yield from pair_measures(more.sums.pairs, values.disagreement.mean())
        errs = bool(more.sums.majority[1])
        rate = improvement_of_counts(more.sums.majority) if errs else undefined
        yield "ensemble_improvement_rate", rate


def _of_members(values: SampleValues) -> Iterator[tuple[str, Tensor]]:
    """How much members differ, on any split."""
    if values.more is not None:
        yield "pairwise_kl", values.more.pairwise_kl.mean()
        if values.more.cosine is not None:
            yield "cosine_similarity", values.more.cosine.mean()


def _weighted_means(weights: Tensor, columns: Tensor) -> Tensor:
    validate_weights(weights, num_samples=columns.shape[0])
    return weights.double() @ columns / weights.sum(-1, keepdim=True)
