"""Similarity of the members' input gradients: whether members rely on the same pixels."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from ...datasets import Pipeline, Split, batches
from ...ensembles import Ensemble
from ...metrics.core.mixture import pool_log_probs
from ...metrics.diversity.member_diversity import input_gradient_similarity
from ..cost.passes import evaluating

MOST_IMAGES = 512
MOST_SHIFTED = 128
"""Images of a shifted split, of which there may be a hundred."""

BATCH = 64


def split_similarity(
    ensemble: Ensemble,
    split: Split,
    logits: Float[Tensor, "members samples classes"] | None,
    *,
    most: int = MOST_IMAGES,
    batch_size: int = BATCH,
    pipeline: Pipeline,
    workers: int = 0,
) -> dict[str, int | float]:
    """Mean similarity of the members' input gradients on at most ``most`` images of a split.

    The images are evenly spaced. The gradient is of the label's logit or, without labels, of that
    of the ensemble's predicted class, for which ``logits`` are of all images. Several members are
    on the pipeline's device.

    Returns:
        ``input_gradient_similarity``, NaN where a gradient is not finite, and ``n_gradients``, the
        number of images.
    """
    loading: dict[str, Any] = {"batch_size": batch_size, "pipeline": pipeline, "workers": workers}
    count = ensemble.num_members
    return split_similarities(ensemble, split, logits, [count], most=most, **loading)[count]


def split_similarities(
    ensemble: Ensemble,
    split: Split,
    logits: Float[Tensor, "members samples classes"] | None,
    sizes: Sequence[int],
    *,
    most: int = MOST_IMAGES,
    batch_size: int = BATCH,
    pipeline: Pipeline,
    workers: int = 0,
) -> dict[int, dict[str, int | float]]:
    """Find the same as `split_similarity` of the first members too, from the same images.

    ``sizes`` are numbers of first members, each >= 2. Gradients are computed once where the
    ensembles of these sizes predict the same classes.
    """
    chosen = evenly_spaced(len(split), most)
    if split.targets is not None:
        classes = dict.fromkeys(sizes, split.targets[chosen])
    elif logits is None:
        raise ValueError("logits must be given of images without labels, got None")
    else:
        outputs = logits[:, chosen].log_softmax(-1)
        classes = {size: pool_log_probs(outputs[:size]).argmax(-1) for size in sizes}
    totals = dict.fromkeys(sizes, 0.0)
    some = split.select(chosen)
    loaded = batches(some, batch_size=batch_size, pipeline=pipeline, workers=workers)
    for number, (images, _) in enumerate(loaded):
        rows = slice(number * batch_size, (number + 1) * batch_size)
        held, of_classes = torch.empty(0), torch.empty(0)
        for size in sorted(sizes, reverse=True):
            own = classes[size][rows]
            if not torch.equal(own, of_classes):
                of_classes = own
                held = member_gradients(ensemble, images, own.to(images.device), range(size))
            gradients = held[:size]
            finite = bool(gradients.isfinite().all())
            totals[size] += (
                input_gradient_similarity(gradients).sum().item() if finite else math.nan
            )
    return {
        size: {"input_gradient_similarity": total / len(chosen), "n_gradients": len(chosen)}
        for size, total in totals.items()
    }


def member_gradients(
    ensemble: Ensemble,
    images: Float[Tensor, "batch channels height width"],
    classes: Int64[Tensor, " batch"],
    members: Sequence[int] | None = None,
) -> Float[Tensor, "members batch features"]:
    """Return the gradient of one logit per image with respect to the image, in evaluation mode.

    ``g_m = d z_m,c(x) / d x``, detached, in logits per normalised intensity, with one class c per
    image. Members, all when None, run one after the other; their parameters get no gradients.

    Example:
        >>> import torch
        >>> from deepens.ensembles import DeepEnsemble
        >>> from deepens.experiments.evaluation.input_gradients import member_gradients
        >>> plain = lambda: torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 2))
        >>> ensemble = DeepEnsemble(plain, seeds=[1, 2])
        >>> gradients = member_gradients(ensemble, torch.zeros(3, 1, 2, 2), torch.tensor([0, 1, 1]))
        >>> torch.equal(gradients[1, 2], ensemble.networks[1].body[1].weight[1])
        True
    """
    rows = []
    with evaluating([ensemble]), torch.inference_mode(False), torch.enable_grad():
        leaf = images.detach().clone().requires_grad_()
        for member in ensemble.chosen(members):
            logits = ensemble(leaf, members=[member])[0]
            # An image's logit depends on that image alone, so the sum's gradient is each one's own.
            total = logits.gather(-1, classes.unsqueeze(-1)).sum()
            (gradient,) = torch.autograd.grad(total, leaf)
            rows.append(gradient.flatten(1))
    return torch.stack(rows)


def evenly_spaced(count: int, most: int) -> Int64[Tensor, " chosen"]:
    """Evenly spaced, rising positions of at most ``most`` among ``count`` images; both are >= 1.

    Example:
        >>> from deepens.experiments.evaluation.input_gradients import evenly_spaced
        >>> evenly_spaced(10, 4).tolist(), evenly_spaced(3, 4).tolist()
        ([1, 3, 6, 8], [0, 1, 2])
    """
    if count < 1 or most < 1:
        raise ValueError(f"count and most must be >= 1, got {count} and {most}")
    chosen = min(count, most)
    return (2 * torch.arange(chosen) + 1) * count // (2 * chosen)
