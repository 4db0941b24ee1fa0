"""A proof by gradients that members do not touch each other, and that each reads the image."""

import torch
from torch import Tensor, nn

from .networks import NetworkEnsemble
from .proof import randomise
from .surgery import copied, graph_nodes

__all__ = ["prove_independence"]

SMALLEST_DIFFERENCE = 1e-5
"""Of the largest logit, between two images: rounding stays below 1e-6, networks above 1e-3."""


def prove_independence(ensemble: NetworkEnsemble, image_shape: tuple[int, int, int]) -> None:
    r"""Check on gradients that each member's logits depend on its own parameters and no others.

    :math:`\partial z_i / \partial \theta_j = 0` exactly for :math:`j \ne i`, and for
    :math:`j = i` non-zero wherever it is in the network alone, and somewhere at all. Logits of two
    images, which differ in contrast too, must differ. It is done on a copy with all parameters
    drawn at random, in eval mode and the ensemble's own execution. Networks that run one by one, of
    which none is in another's graph, need no gradients of others.

    Raises:
        ValueError: A member depends on another's parameter, or not on one of its own, or not on
            the image, as where a norm of single channels precedes their average.
    """
    generator = torch.Generator().manual_seed(0)
    with torch.inference_mode(False), torch.enable_grad():
        probe = copied(ensemble).eval().requires_grad_()
        for network in probe.networks:
            randomise(network, generator)
        named = [dict(network.named_parameters()) for network in probe.networks]
        first = next(iter(named[0].values()))
        if torch.finfo(first.dtype).bits < 32:  # too coarse to tell images apart
            first = next(iter(probe.float().parameters()))
        images = torch.rand(2, *image_shape, generator=generator).to(first)
        images[1] = 4 * images[1] - 2
        if _runs_networks_one_by_one(probe):
            apart = [_stands_alone(probe(images, [i])[0], i, named) for i in range(len(named))]
            if all(apart):
                return
        logits = probe(images)
        for i, own in enumerate(logits):
            if (own[0] - own[1]).abs().max() <= SMALLEST_DIFFERENCE * own.abs().max():
                raise ValueError(
                    f"members must read the image, but the logits of member {i} do not depend on "
                    f"the image at {'x'.join(map(str, image_shape))}: look for a norm whose groups "
                    "have one channel before an average over all places"
                )
        weights = torch.randn(logits.shape[1:], generator=generator).to(logits)
        for i, network in enumerate(probe.networks):
            joint = _gradients((logits[i] * weights).sum(), named)
            (alone,) = _gradients((network(images) * weights).sum(), [named[i]])
            for j, gradients in enumerate(joint):
                for name, gradient in gradients.items():
                    if j != i and _reaches(gradient):
                        raise ValueError(
                            f"members must be independent, but the logits of member {i} depend on "
                            f"the parameter {name!r} of member {j}: give each its own modules"
                        )
                    if j == i and _reaches(alone[name]) and not _reaches(gradient):
                        raise ValueError(
                            f"members must use their own parameters, but the logits of member {i} "
                            f"do not depend on its {name!r}: evaluate each member with its own"
                        )
            if not any(map(_reaches, joint[i].values())):
                raise ValueError(
                    f"members must use their own parameters, but the logits of member {i} depend "
                    "on none of its own: look for a tensor that is detached"
                )


def _runs_networks_one_by_one(ensemble: NetworkEnsemble) -> bool:
    """Whether a member's logits are those of its network by definition."""
    kind = type(ensemble)
    return (
        ensemble.execution == "loop"
        and kind.forward is NetworkEnsemble.forward
        and kind.features is NetworkEnsemble.features
        and kind.head is NetworkEnsemble.head
    )


def _stands_alone(logits: Tensor, member: int, named: list[dict[str, nn.Parameter]]) -> bool:
    """Whether logits read the image and depend on the member's own parameters, no other's at all.

    Where they do not, the gradients of all say what is wrong.
    """
    if (logits[0] - logits[1]).abs().max() <= SMALLEST_DIFFERENCE * logits.abs().max():
        return False
    reached = {id(getattr(node, "variable", None)) for node in graph_nodes(logits)}
    others = (p for index, own in enumerate(named) if index != member for p in own.values())
    if any(id(parameter) in reached for parameter in others):
        return False
    weights = torch.randn(logits.shape, generator=torch.Generator().manual_seed(0)).to(logits)
    own = [parameter for parameter in named[member].values() if id(parameter) in reached]
    return any(
        _reaches(torch.autograd.grad((logits * weights).sum(), [last], retain_graph=True)[0])
        for last in reversed(own)  # one near the end is enough, and cheap
    )


def _gradients(
    value: Tensor, members: list[dict[str, nn.Parameter]]
) -> list[dict[str, Tensor | None]]:
    """The gradient for every parameter of every member, in one pass."""
    if not value.requires_grad:
        return [dict.fromkeys(named) for named in members]
    parameters = [parameter for named in members for parameter in named.values()]
    gradients = iter(torch.autograd.grad(value, parameters, retain_graph=True, allow_unused=True))
    return [{name: next(gradients) for name in named} for named in members]


def _reaches(gradient: Tensor | None) -> bool:
    return gradient is not None and bool((gradient != 0).any())
