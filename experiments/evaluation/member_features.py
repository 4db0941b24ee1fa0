"""Members' features and logits in one pass, and the detectors fitted on the features."""

from collections.abc import Iterable, Sequence
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor

from ...datasets import Split, batches
from ...ensembles import Ensemble, Network
from .detector_kinds import TrainingFeatures
from .detectors import Detectors, fit_detectors

MOST_IMAGES = 10_000
"""Detectors are fitted on at most so many training images, drawn at random."""

Batches = Iterable[tuple[Tensor, Tensor | None]]


def features_and_logits(
    ensemble: Ensemble, images: Float[Tensor, "batch channels height width"]
) -> tuple[list[Float[Tensor, "batch _"]], Float[Tensor, "members batch classes"]]:
    """Run every member once on normalised images, and return its features besides its logits.

    Features are the inputs of each member's head; logits equal ``ensemble(images)`` bit for bit.
    Both are float32 on the CPU.

    Example:
        >>> import torch
        >>> from deepens.ensembles import DeepEnsemble
        >>> from deepens.ensembles.backbones import build
        >>> from deepens.experiments.evaluation.member_features import features_and_logits
        >>> make = lambda: build("small-cnn", num_classes=8, channels=1, image_size=8)
        >>> ensemble = DeepEnsemble(make, seeds=[1, 2]).eval()
        >>> images = torch.randn(5, 1, 8, 8)
        >>> features, logits = features_and_logits(ensemble, images)
        >>> len(features), torch.equal(logits, ensemble(images))
        (2, True)
    """
    members = ensemble.chosen(None)
    with torch.inference_mode():
        features = ensemble.features(ensemble.prefix(images), members)
        logits = ensemble.head(features, members)
    return [own.float().cpu() for own in features], logits.float().cpu()


def predict_batches(
    ensemble: Ensemble, loaded: Batches, detectors: Detectors | None = None
) -> tuple[Float[Tensor, "members samples classes"], dict[str, Float[Tensor, "members samples"]]]:
    """Logits of batches of images, and the scores of detectors, if any, from the same pass."""
    logits, scores = [], []
    for images, _ in loaded:
        if detectors is None:
            with torch.inference_mode():
                logits.append(ensemble(images).float().cpu())
        else:
            features, own = features_and_logits(ensemble, images)
            logits.append(own)
            scores.append(detectors(features, own))
    names = scores[0] if scores else {}
    joined = {name: torch.cat([each[name] for each in scores], dim=1) for name in names}
    return torch.cat(logits, dim=1), joined


def fit_on(
    ensemble: Ensemble, split: Split, names: Sequence[str], *, seed: int, **loading: Any
) -> Detectors:
    """Fit detectors on at most 10,000 of the training images, without augmentation.

    Args:
        ensemble: On the device of the batches, in evaluation mode.
        split: The training images.
        names: The detectors.
        seed: Of the draw, where there are more images.
        loading: How images become batches, as `batches` takes it.

    Raises:
        ValueError: As `fit_detectors`.
    """
    if len(split) > MOST_IMAGES:
        order = torch.randperm(len(split), generator=torch.Generator().manual_seed(seed))
        split = split.select(order[:MOST_IMAGES].sort().values)
    loaded = batches(split, **loading)
    parts = [features_and_logits(ensemble, images)[0] for images, _ in loaded]
    training = []
    for index in range(ensemble.num_members):
        head = cast(Network, ensemble.member(index)).head.cpu().eval().requires_grad_(False)
        features = torch.cat([part[index] for part in parts])
        training.append(TrainingFeatures(features, split.labels, head))
    with torch.no_grad():
        return fit_detectors(names, training)
