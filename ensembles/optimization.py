"""From options to torch's optimisers, and the clipping of each member by its own norm."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.optim import SGD, AdamW
from torch.optim import Optimizer as TorchOptimizer
from torch.optim.lr_scheduler import LambdaLR

from .ensemble import Ensemble
from .options import Optimizer, Schedule

NORMS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm)


def build_optimizer(ensemble: Ensemble, options: Optimizer) -> TorchOptimizer:
    """Torch's optimiser over the parameters that require gradients, per step.

    With ``decay_all=False``, normalisation parameters and biases (at most one axis in a member)
    form a group without weight decay. Biases of normalisation layers form one with ``norm_bias``
    times the rate and the same decay per step, and biases of a module with ``bias_epochs`` one that
    :func:`build_schedule` stops after so many epochs.
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
    modules = list(ensemble.modules())
    norm_biases = {id(m.bias) for m in modules if isinstance(m, NORMS) and m.bias is not None}
    epochs = {id(m.bias): m.bias_epochs for m in modules if hasattr(m, "bias_epochs")}
    groups: dict[tuple[bool, bool, float], dict[str, Any]] = {}
    for parameter in trained:
        small = parameter.ndim - (id(parameter) in stacked) <= 1
        decayed = options.decay_all or not small
        factor = options.norm_bias if id(parameter) in norm_biases else 1.0
        group = {
            "params": [],
            "lr": options.lr * factor,
            "weight_decay": options.weight_decay / factor if decayed else 0.0,
            "epochs": epochs.get(id(parameter)),
        }
        key = (group["epochs"] is not None, not decayed, factor)
        known = groups.setdefault(key, group)
        known["params"].append(parameter)
    ordered = [group for _, group in sorted(groups.items(), key=lambda item: item[0])]
    if options.name == "sgd":
        return SGD(ordered, lr=options.lr, momentum=options.momentum, nesterov=True)
    return AdamW(ordered, lr=options.lr)


def build_schedule(
    optimizer: TorchOptimizer, options: Schedule, total_steps: int, epochs: int
) -> LambdaLR:
    """Torch's scheduler, to be stepped once a training step."""

    def factor(until: int | None) -> Callable[[int], float]:
        end = math.inf if until is None else until * total_steps / epochs
        return lambda step: options.multiplier(step, total_steps) if step < end else 0.0

    return LambdaLR(optimizer, [factor(group["epochs"]) for group in optimizer.param_groups])


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
