"""From options to torch's optimisers, and the clipping of each member by its own norm."""

from typing import Any

import torch
from torch.optim import SGD, AdamW
from torch.optim import Optimizer as TorchOptimizer
from torch.optim.lr_scheduler import LambdaLR

from .ensemble import Ensemble
from .options import Optimizer, Schedule


def build_optimizer(ensemble: Ensemble, options: Optimizer) -> TorchOptimizer:
    """Torch's optimiser over the parameters that require gradients.

    With ``decay_all=False``, normalisation parameters and biases (at most one axis in a member)
    form a second group without weight decay.
    """
    trained = [p for p in ensemble.parameters() if p.requires_grad]
    if not trained:
        raise ValueError("the ensemble has no parameter to train: all of them are frozen")
    stacked = {
        id(p)
        for index in range(ensemble.num_members)
        for p, position in ensemble.member_parameters(index)
        if position is not None
    }
    small = {id(p) for p in trained if p.ndim - (id(p) in stacked) <= 1}
    decayed = [p for p in trained if options.decay_all or id(p) not in small]
    spared = [p for p in trained if not options.decay_all and id(p) in small]
    groups: list[dict[str, Any]] = [{"params": decayed}, {"params": spared, "weight_decay": 0.0}]
    groups = [group for group in groups if group["params"]]
    rates: dict[str, Any] = {"lr": options.lr, "weight_decay": options.weight_decay}
    if options.name == "sgd":
        return SGD(groups, momentum=options.momentum, nesterov=True, **rates)
    return AdamW(groups, **rates)


def build_schedule(optimizer: TorchOptimizer, options: Schedule, total_steps: int) -> LambdaLR:
    """Torch's scheduler, to be stepped once a training step."""
    return LambdaLR(optimizer, lambda step: options.multiplier(step, total_steps))


def clip_members(ensemble: Ensemble, max_norm: float) -> None:
    r"""Scale each member's gradient by :math:`\min(1, c / \lVert g_m \rVert_2)`, in place.

    One norm over all members would let a member's large gradient shrink the others'. Parameters
    of no single member are not clipped. Members that share parameters have one gradient,
    whose norm is over all parameters. The host does not wait for the device.

    Args:
        ensemble: After ``backward``.
        max_norm: c.
    """
    pairs = [ensemble.member_parameters(index) for index in range(ensemble.num_members)]
    if ensemble.shares_parameters:
        pairs = [list(dict.fromkeys(pair for own in pairs for pair in own))]
    for own in pairs:
        gradients = [
            parameter.grad if position is None else parameter.grad[position]
            for parameter, position in own
            if parameter.grad is not None
        ]
        if gradients:
            norm = torch.nn.utils.get_total_norm(gradients)
            factor = torch.clamp(max_norm / (norm + 1e-6), max=1.0)
            for gradient in gradients:
                gradient.mul_(factor)
