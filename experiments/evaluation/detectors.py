"""Feature-based OOD detectors of ``pytorch-ood`` (the extra ``ood``), fitted on training images.

Each is fitted on each member's features; scores are higher for images less like those of training.
"""

import importlib.util
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from ...datasets import Split, batches
from ...ensembles import Ensemble, Network
from ...metrics.core.catalogue import DETECTORS
from ..store.errors import choose
from .detector_kinds import FITS, GUIDES, NEIGHBOURS, Scores, TrainingFeatures

EVERY = "all"
"""The name that stands for every detector."""

MOST_IMAGES = 10_000
"""Detectors are fitted on at most so many training images, drawn at random."""

Batches = Iterable[tuple[Tensor, Tensor | None]]


@dataclass(frozen=True)
class Detectors:
    """Detectors fitted on each member's own features: per member, their scores by name."""

    members: Sequence[Mapping[str, Scores]]

    @torch.no_grad()
    def __call__(
        self,
        features: Sequence[Float[Tensor, "batch _"]],
        logits: Float[Tensor, "members batch classes"],
    ) -> dict[str, Float64[Tensor, "members batch"]]:
        """Score a batch by every detector and member, from features on the CPU and logits.

        Features are a list, since members' widths may differ. A feature or score that is not finite
        is a ValueError, which names the member.
        """
        for index, own in enumerate(features):
            _check_finite(own, index, "images")
        results = {}
        for name in self.members[0]:
            rows = [
                member[name](own, outputs)
                for member, own, outputs in zip(self.members, features, logits, strict=True)
            ]
            results[name] = torch.stack([row.double() for row in rows])
            for index, row in enumerate(results[name]):
                if len(wrong := row[~row.isfinite()]):
                    got = f"got {wrong[0].item()} for member {index}"
                    raise ValueError(
                        f"detector {name} must give finite scores, {got}: it does not suit this "
                        "network's features; leave it out of --detectors"
                    )
        return results


def choose_detectors(names: Sequence[str]) -> tuple[str, ...]:
    """Each detector that is named once, in the catalogue's order; ``all`` stands for every one.

    An unknown name, or any where pytorch-ood is not installed, is a ValueError.

    Example:
        >>> from deepens.experiments.evaluation.detectors import choose_detectors
        >>> choose_detectors(["vim", "knn", "vim"]), len(choose_detectors(["all"]))
        (('knn', 'vim'), 9)
    """
    for name in names:
        choose("detector", name, (*DETECTORS, EVERY))
    if names and importlib.util.find_spec("pytorch_ood") is None:
        remedy = "pip install 'deepens[ood]'"
        raise ValueError(f"detectors need pytorch-ood, which is not installed: {remedy}")
    return tuple(name for name in DETECTORS if name in names or EVERY in names)


def fit_detectors(names: Sequence[str], training: Sequence[TrainingFeatures]) -> Detectors:
    """Fit detectors on the training features of each member.

    ========================  ====================================================================
    name                      score of features z with logits l, over training features z_i
    ========================  ====================================================================
    ``knn``                   squared distance to the 50th nearest z_i, all of unit length
    ``mahalanobis``           least (z - mu_c)' P (z - mu_c) over classes c; P: pseudo-inverse of
                              the pooled covariance within classes
    ``relative_mahalanobis``  the same minus (z - mu)' P_0 (z - mu), of all z_i as one class
    ``vim``                   alpha |part of z outside the principal space| - logsumexp l
    ``react``                 energy of the head on z clipped at the 90th percentile of all z_i
    ``ash``                   energy of the head on z with its lowest 65 % zeroed, the others
                              scaled by exp(sum before / sum after) (ASH-S)
    ``scale``                 energy of the head on z scaled by that factor, nothing zeroed
    ``nnguide``               -logsumexp l * mean of the 10 largest cosines to z_i, each
                              times its own logsumexp l_i
    ``gen``                   mean of p^0.1 (1 - p)^0.1 over the 100 largest probabilities p
    ========================  ====================================================================

    The energy is -logsumexp of the logits.

    Args:
        names: Of detectors, as `choose_detectors` gives them.
        training: Of each member.

    Returns:
        The fitted detectors.

    Raises:
        ValueError: Features are not finite, or a head that is not linear at its end for ``vim``.

    Reference:
        KNN: Sun et al. (2022), arXiv:2204.06507. Mahalanobis: Lee et al. (2018), arXiv:1807.03888.
        Relative Mahalanobis: Ren et al. (2021), arXiv:2106.09022. ViM: Wang et al. (2022),
        arXiv:2203.10807. ReAct: Sun et al. (2021), arXiv:2111.12797. ASH: Djurisic et al. (2023),
        arXiv:2209.09858. SCALE: Xu et al. (2024), arXiv:2310.00227. NNGuide: Park et al. (2023),
        arXiv:2309.14888. GEN: Liu et al. (2023), CVPR. Deviations: GEN does not bound p by 1e-7,
        as pytorch-ood does; the scores of KNN are squared,
        those of Mahalanobis neither perturb the input nor join layers. OpenOOD runs ASH and SCALE
        on the pooled features too, but takes ASH-B, and chooses its percentiles on validation
        images that hold OOD ones; here no detector sees any.
    """
    for index, member in enumerate(training):
        _check_finite(member.features, index, "training images")
    return Detectors([{name: FITS[name](member) for name in names} for member in training])


def notes(names: Sequence[str], count: int) -> list[str]:
    """A line per detector that has fewer neighbours, among ``count`` images, than it should."""
    wanted = {"knn": NEIGHBOURS, "nnguide": GUIDES}
    return [
        f"detector {name} looks at {count} neighbours, not {wanted[name]}: there are no more "
        "training images"
        for name in names
        if count < wanted.get(name, 0)
    ]


def _check_finite(features: Tensor, index: int, where: str) -> None:
    if len(wrong := features[~features.isfinite()]):
        got = f"got {wrong[0].item()} from member {index}"
        raise ValueError(f"features of {where} must be finite, {got}")


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
        >>> from deepens.experiments.evaluation.detectors import features_and_logits
        >>> make = lambda: build("small-cnn", num_classes=8, channels=1, image_size=8)
        >>> ensemble = DeepEnsemble(make, seeds=[1, 2]).eval()
        >>> features, logits = features_and_logits(ensemble, torch.ones(5, 1, 8, 8))
        >>> len(features), torch.equal(logits, ensemble(torch.ones(5, 1, 8, 8)))
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

    ``seed`` is of the draw, where there are more images; ``loading`` is what `batches` takes. The
    ensemble is on the device of the batches, in evaluation mode. Refusals are those of
    `fit_detectors`.
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
