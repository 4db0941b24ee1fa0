"""The detectors of pytorch-ood, each fitted on one member's features."""

import importlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor, nn

from ...metrics.core.mixture import log_doubt

NEIGHBOURS = 50
GUIDES = 10
_GAMMA, _LARGEST = 0.1, 100  # of GEN, as its authors recommend
"""Nearest training images of ``knn`` and of ``nnguide``; all of them where there are fewer."""

Scores = Callable[[Tensor, Tensor], Tensor]
"""From a member's features ``[B, D]`` and logits ``[B, C]`` to scores ``[B]``."""


@dataclass(frozen=True)
class TrainingFeatures:
    """What detectors learn from: a member's training features, their classes, and its head.

    Features are the inputs of the head, on the CPU.
    """

    features: Float[Tensor, "samples features"]
    targets: Int64[Tensor, " samples"]
    head: nn.Module


def _detector(name: str, *arguments: Any, **options: Any) -> Any:
    """A detector of pytorch-ood; the package is an extra, so it is imported when it is needed."""
    return getattr(importlib.import_module("pytorch_ood.detector"), name)(*arguments, **options)


def _knn(training: TrainingFeatures) -> Scores:
    neighbours = min(NEIGHBOURS, len(training.features))
    detector = _detector("KNN", None, k=neighbours, algorithm="brute")
    detector.fit_features(training.features, training.targets)
    return lambda features, _: detector.predict_features(features).square()


def _by_covariance(name: str, training: TrainingFeatures, factor: float) -> Scores:
    """Fit on features of unit pooled covariance, which changes no distance.

    The detector inverts a sum of squares with 1e-6 on its diagonal: a direction in which training
    images do not differ would outweigh all others.
    """
    # Classes of which no image was drawn have no mean.
    _, labels = training.targets.unique(return_inverse=True)
    detector, whiten = _detector(name, None), _whitening(training.features, labels)
    with _double_precision():
        detector.fit_features(whiten(training.features), labels)
    factor *= len(labels)  # the detector sums squares instead of averaging them
    return lambda features, _: factor * detector.predict_features(whiten(features))


def _whitening(
    features: Float[Tensor, "samples features"], labels: Int64[Tensor, " samples"]
) -> Callable[[Tensor], Float64[Tensor, "samples _"]]:
    """The linear map after which the pooled covariance is 1, in float64.

    Directions in which it is zero to rounding are left out, as its pseudo-inverse does.
    """
    values = features.double()
    centre = values.mean(0)
    counts = labels.bincount().double()
    sums = values.new_zeros(len(counts), values.shape[1]).index_add_(0, labels, values)
    within = values - (sums / counts[:, None])[labels]
    variances, directions = torch.linalg.eigh(within.T @ within / len(values))
    least = variances.max() * len(variances) * torch.finfo(torch.float64).eps
    kept = variances > least.clamp(min=torch.finfo(torch.float64).tiny)
    matrix = directions[:, kept] / variances[kept].sqrt()
    if not kept.any():  # no class has two images that differ: every distance is zero
        matrix = torch.zeros_like(directions[:, :1])
    return lambda given: (given.double() - centre) @ matrix


@contextmanager
def _double_precision() -> Iterator[None]:
    """Make float64 the default type, for detectors that do not let it be chosen."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def _vim(training: TrainingFeatures) -> Scores:
    before, linear = _linear_end(training.head)
    bias = linear.weight.new_zeros(linear.out_features) if linear.bias is None else linear.bias
    dimension = principal_dimension(linear.in_features)
    detector = _detector("ViM", None, d=dimension, w=linear.weight, b=bias)
    detector.fit_features(before(training.features), training.targets)
    if not torch.isfinite(torch.tensor(detector.alpha)):
        detector.alpha = 0.0  # training images leave no residual to scale by: the energy is left
    return lambda features, _: detector.predict_features(before(features))


def principal_dimension(features: int) -> int:
    """Dimension of ViM's principal space: the authors' 1000 and 512, or half of small features."""
    return 1000 if features >= 2048 else 512 if features >= 768 else features // 2


def _linear_end(head: nn.Module) -> tuple[Callable[[Tensor], Tensor], nn.Linear]:
    """What a head does before its last linear map, and that map."""
    if isinstance(head, nn.Linear):
        return lambda features: features, head
    if isinstance(head, nn.Sequential) and len(head) and isinstance(head[-1], nn.Linear):
        return head[:-1], head[-1]
    raise ValueError(
        f"detector vim needs a head that ends in a linear map, got {type(head).__name__}; leave it "
        "out of --detectors"
    )


def _react(training: TrainingFeatures) -> Scores:
    detector = _detector("ReAct", nn.Identity(), _wide_head(training.head), percentile=0.9)
    detector.fit_feature_maps(training.features, training.targets)
    return lambda features, _: detector.predict_feature_maps(features)


def _by_shaping(name: str, training: TrainingFeatures) -> Scores:
    """Hand features over as maps of one pixel, all-zero ones as tiny, whose factor is not 0 / 0."""
    detector = _detector(name, nn.Identity(), _wide_head(training.head))

    def scores(features: Tensor, _: Tensor) -> Tensor:
        silent = (features == 0).all(dim=1, keepdim=True)
        features = features.masked_fill(silent, torch.finfo(torch.float32).tiny)
        return detector.predict_feature_maps(features[:, :, None, None])

    return scores


def _nnguide(training: TrainingFeatures) -> Scores:
    guides = min(GUIDES, len(training.features))
    detector = _detector("NNGuide", nn.Identity(), training.head, k=guides)
    detector.fit_features(training.features, training.targets)
    return lambda features, _: detector.predict_features(features)


def _gen(_: TrainingFeatures) -> Scores:
    """Without pytorch-ood's bounds of 1e-7 on p, at which networks that are sure all tie."""

    def scores(_: Tensor, logits: Tensor) -> Tensor:
        logs = logits.double().log_softmax(1)
        rest = (-logs.exp()).log1p()
        largest = logs.argmax(1, keepdim=True)
        rest = rest.scatter(1, largest, log_doubt(logs)[:, None])
        powers = (_GAMMA * (logs + rest)).exp()
        return powers.gather(1, logs.topk(min(_LARGEST, logs.shape[1]), dim=1).indices).mean(1)

    return scores


def _wide_head(head: nn.Module) -> Callable[[Tensor], Tensor]:
    """The head on features or maps of one pixel; its logits in float64, against ties."""
    return lambda features: head(features.flatten(1)).double()


FITS: Mapping[str, Callable[[TrainingFeatures], Scores]] = {
    "knn": _knn,
    "mahalanobis": lambda training: _by_covariance("Mahalanobis", training, 2.0),  # which halves it
    "relative_mahalanobis": lambda training: _by_covariance("RMD", training, 1.0),
    "vim": _vim,
    "react": _react,
    "ash": lambda training: _by_shaping("ASH", training),
    "scale": lambda training: _by_shaping("SCALE", training),
    "nnguide": _nnguide,
    "gen": _gen,
}
"""Name of a detector -> the function that fits it on one member's training features."""
