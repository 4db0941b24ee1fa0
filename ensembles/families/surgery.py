"""What narrowing a network and joining several have to know about its modules."""

import traceback
from collections.abc import Iterator

from torch import nn

WIDTH_ATTRIBUTES = ("hidden_dim", "embed_dim", "hidden_size", "attn_dim", "all_head_size")
"""Numbers that modules keep beside their parameters and reshape by: a tensor's width."""

HEAD_SIZE_ATTRIBUTES = ("head_dim", "attention_head_size")
"""Likewise: the width of one attention head."""

HEAD_COUNT_ATTRIBUTES = ("num_heads", "num_attention_heads", "num_kv_heads", "num_key_value_heads")
"""Likewise: how many attention heads there are."""


def width_axis(parameter: nn.Parameter) -> int | None:
    """The axis of a raw parameter that runs over channels: the last one longer than 1.

    It is that of class tokens ``[1, 1, D]``, positions ``[1, L, D]`` and layer scales ``[C]`` and
    ``[C, 1, 1]``. None for a parameter of one entry.

    Example:
        >>> import torch
        >>> from deepens.ensembles.families.surgery import width_axis
        >>> [width_axis(torch.nn.Parameter(torch.zeros(s))) for s in [(1, 9, 4), (8, 1, 1), (1,)]]
        [2, 0, None]
    """
    return max((axis for axis, size in enumerate(parameter.shape) if size > 1), default=None)


def raw_parameters(model: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Parameter]]:
    """Parameters that a module of the user's or a library's own holds directly.

    Those of torch's own layers are left out: each kind of layer has its rule.

    Yields:
        The module, the parameter's name in it, and the parameter.
    """
    for module in model.modules():
        if not isinstance(module, LAYERS):
            for key, parameter in module.named_parameters(recurse=False):
                yield module, key, parameter


def failing_module(network: nn.Module, error: BaseException) -> tuple[str, nn.Module]:
    """The innermost module of a network that an error came from, by its traceback; its name first.

    Where none is in the traceback, it is the network itself.
    """
    names = {id(part): name for name, part in network.named_modules()}
    found = "", network
    for frame, _ in traceback.walk_tb(error.__traceback__):
        part = frame.f_locals.get("self")
        if isinstance(part, nn.Module) and id(part) in names:
            found = names[id(part)], part
    return found


_NORMS = (nn.BatchNorm2d, nn.BatchNorm1d, nn.LayerNorm, nn.GroupNorm)
LAYERS = (nn.Conv2d, nn.Linear, *_NORMS, nn.PReLU, nn.MultiheadAttention)
"""The layers with parameters that both have rules for."""
