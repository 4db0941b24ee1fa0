"""Metrics that are a mean over samples; each names the pure function that its values come from."""

from collections.abc import Callable

from jaxtyping import Float64
from torch import Tensor

from ..conformal.prediction_sets import ConformalSets
from ..core.mixture import member_log_probs, mixture_log_probs, validate_choice
from ..core.shapes import PerSample
from ..detection.uncertainty_scores import SCORES
from ..diversity.member_diversity import brier_ambiguity, disagreement, jensen_gap, pairwise_kl
from ..diversity.pairwise import cosine_similarity
from ..scoring import proper_scores
from ..scoring.uncertainty import maximum_probability, mutual_information
from .base import Batch, Labels, SampleMean

Function = Callable[[Tensor, Tensor], Tensor]


def _of_mixture(function: Function) -> Function:
    return lambda logits, targets: function(mixture_log_probs(logits), targets)


def _of_members(function: Callable[..., Tensor], *, labelled: bool = False) -> Function:
    if labelled:
        return lambda logits, targets: function(member_log_probs(logits), targets)
    return lambda logits, targets: function(member_log_probs(logits))


class Accuracy(SampleMean):
    """Share of samples whose most probable class, under the mixture, is the label.

    Example:
        >>> import torch
        >>> from deepens.metrics import Accuracy
        >>> Accuracy()(torch.eye(3)[None], torch.tensor([0, 1, 1]))
        tensor(0.6667, dtype=torch.float64)
    """

    higher_is_better = True
    function = _of_mixture(proper_scores.correctness)


class TopKAccuracy(SampleMean):
    """Share of samples whose label is among the k most probable classes, as `top_k_correctness`.

    Example:
        >>> import torch
        >>> from deepens.metrics import TopKAccuracy
        >>> TopKAccuracy(k=2)(torch.tensor([[[3.0, 2.0, 1.0]]]), torch.tensor([1]))
        tensor(1., dtype=torch.float64)
    """

    higher_is_better = True

    def __init__(self, k: int = 5) -> None:
        super().__init__()
        proper_scores.validate_k(k)
        self.k = k
        self.keep_apart(f"of_{k}")

    def per_sample(self, logits: Tensor, targets: Tensor) -> PerSample:
        """Return 1 where the label is among them, else 0."""
        return proper_scores.top_k_correctness(
            mixture_log_probs(logits), targets, k=self.k
        ).double()


class NegativeLogLikelihood(SampleMean):
    """Mean negative log-likelihood of the mixture, in nats, as `negative_log_likelihood`.

    Example:
        >>> import torch
        >>> from deepens.metrics import NegativeLogLikelihood
        >>> NegativeLogLikelihood()(torch.zeros(4, 2, 10), torch.tensor([3, 7]))
        tensor(2.3026, dtype=torch.float64)
    """

    higher_is_better = False
    function = _of_mixture(proper_scores.negative_log_likelihood)


class BrierScore(SampleMean):
    """Mean Brier score of the mixture, summed over classes (0 to 2), as `brier_score`.

    Example:
        >>> import torch
        >>> from deepens.metrics import BrierScore
        >>> BrierScore()(torch.zeros(4, 2, 2), torch.tensor([0, 1]))
        tensor(0.5000, dtype=torch.float64)
    """

    higher_is_better = False
    function = _of_mixture(proper_scores.brier_score)


class ConfidenceGap(SampleMean):
    """Mean confidence less accuracy, as `confidence_gap`: above 0 is over-confident.

    Example:
        >>> import torch
        >>> from deepens.metrics import ConfidenceGap
        >>> ConfidenceGap()(torch.zeros(2, 2, 2), torch.tensor([1, 1]))
        tensor(0.5000, dtype=torch.float64)
    """

    function = _of_mixture(
        lambda log_probs, targets: (
            maximum_probability(log_probs) - proper_scores.correctness(log_probs, targets).double()
        )
    )


class MeanConfidence(SampleMean):
    """Mean over samples of the mixture's largest probability, as `maximum_probability`.

    Example:
        >>> import torch
        >>> from deepens.metrics import MeanConfidence
        >>> MeanConfidence()(torch.zeros(3, 2, 4), torch.tensor([0, 1]))
        tensor(0.2500, dtype=torch.float64)
    """

    function = _of_mixture(lambda log_probs, targets: maximum_probability(log_probs))


class MeanUncertainty(SampleMean):
    """Mean over samples of a score, one of `SCORES`, such as the predictive entropy in nats.

    Example:
        >>> import torch
        >>> from deepens.metrics import MeanUncertainty
        >>> MeanUncertainty("msp")(torch.zeros(3, 2, 4), torch.tensor([0, 1]))
        tensor(0.7500, dtype=torch.float64)
    """

    def __init__(self, score: str = "entropy") -> None:
        super().__init__()
        validate_choice(score, "score", SCORES)
        self.score = score
        self.keep_apart(f"of_{score}")

    def per_sample(self, logits: Tensor, targets: Tensor) -> PerSample:
        """Return the scores."""
        return SCORES[self.score](logits)


class MutualInformation(SampleMean):
    """Mean over samples of `mutual_information` of label and member, in nats.

    Example:
        >>> import torch
        >>> from deepens.metrics import MutualInformation
        >>> MutualInformation()(torch.randn(1, 5, 4), torch.zeros(5, dtype=torch.int64))
        tensor(0., dtype=torch.float64)
    """

    function = _of_members(mutual_information)


class Disagreement(SampleMean):
    """Mean share of member pairs that predict different classes, as `disagreement`.

    Example:
        >>> import torch
        >>> from deepens.metrics import Disagreement
        >>> Disagreement()(torch.eye(2).reshape(2, 1, 2), torch.tensor([0]))
        tensor(1., dtype=torch.float64)
    """

    function = lambda logits, targets: disagreement(logits)  # noqa: E731


class PairwiseKL(SampleMean):
    """Mean divergence between two members' predictions, in nats, as `pairwise_kl`.

    Example:
        >>> import torch
        >>> from deepens.metrics import PairwiseKL
        >>> PairwiseKL()(torch.randn(1, 5, 4), torch.zeros(5, dtype=torch.int64))
        tensor(0., dtype=torch.float64)
    """

    function = _of_members(pairwise_kl)


class CosineSimilarity(SampleMean):
    """Mean cosine between two members' probabilities, as `cosine_similarity`.

    Example:
        >>> import torch
        >>> from deepens.metrics import CosineSimilarity
        >>> CosineSimilarity()(torch.zeros(2, 3, 4), torch.zeros(3, dtype=torch.long))
        tensor(1., dtype=torch.float64)
    """

    function = _of_members(cosine_similarity)


class JensenGap(SampleMean):
    """Mean ensembling gain in NLL, as `jensen_gap`.

    Example:
        >>> import torch
        >>> from deepens.metrics import JensenGap
        >>> JensenGap()(torch.tensor([[[0.8, 0.2]], [[0.2, 0.8]]]).log(), torch.tensor([0]))
        tensor(0.2231, dtype=torch.float64)
    """

    function = _of_members(jensen_gap, labelled=True)


class BrierAmbiguity(SampleMean):
    """Mean ensembling gain in Brier score, as `brier_ambiguity`.

    Example:
        >>> import torch
        >>> from deepens.metrics import BrierAmbiguity
        >>> BrierAmbiguity()(torch.tensor([[[0.8, 0.2]], [[0.2, 0.8]]]).log(), torch.tensor([0]))
        tensor(0.1800, dtype=torch.float64)
    """

    function = _of_members(brier_ambiguity, labelled=True)


class ConformalMean(SampleMean):
    """A mean over samples of a property of their conformal sets.

    The sets must not draw u, which is a ``ValueError``: it depends on a sample's place, and a
    metric does not know the place of what another process holds.
    """

    def __init__(self, conformal: ConformalSets) -> None:
        super().__init__()
        if conformal.score != "lac" and conformal.randomized:
            raise ValueError(
                f"conformal must not be randomized, got {conformal.score} sets that are; fit them "
                "with randomized=False"
            )
        self.conformal = conformal
        numbers = (
            *(conformal.threshold, conformal.log_odds, conformal.log_rest),
            *(conformal.penalty, conformal.free),
        )
        self.keep_apart(f"of_{conformal.score}_{abs(hash(numbers))}")

    def per_sample(self, logits: Batch, targets: Labels) -> Float64[Tensor, "batch"]:
        """Return the property of each set; `function` takes sets and labels."""
        sets = self.conformal.sets(mixture_log_probs(logits))
        return type(self).function(sets, targets).double()


class ConformalCoverage(ConformalMean):
    """Share of samples whose conformal set holds the label, as `evaluate_sets`.

    Example:
        >>> import torch
        >>> from deepens.metrics import ConformalCoverage, ConformalSets
        >>> metric = ConformalCoverage(ConformalSets("lac", threshold=0.4, alpha=0.1))
        >>> metric(torch.tensor([[[1.0, 0.0], [1.0, 0.0]]]), torch.tensor([0, 1]))
        tensor(0.5000, dtype=torch.float64)
    """

    function = lambda sets, targets: sets.gather(1, targets.long()[:, None]).squeeze(1)  # noqa: E731


class ConformalSetSize(ConformalMean):
    """Mean number of classes in a conformal set, as `evaluate_sets`.

    Example:
        >>> import torch
        >>> from deepens.metrics import ConformalSets, ConformalSetSize
        >>> metric = ConformalSetSize(ConformalSets("lac", threshold=0.4, alpha=0.1))
        >>> metric(torch.tensor([[[1.0, 0.0], [0.0, 0.0]]]), torch.tensor([0, 1]))
        tensor(0.5000, dtype=torch.float64)
    """

    function = lambda sets, targets: sets.sum(-1)  # noqa: E731
