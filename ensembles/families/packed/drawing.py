"""Fresh weights in the likeness of others, whatever scheme these were drawn by."""

import torch
from torch import Tensor, nn

_ENOUGH = 20_000
"""Entries that tell a distribution: of larger tensors, as many are looked at."""


def drawn_like(values: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Draw a tensor whose entries are distributed as those of another.

    Each entry is the linearly interpolated quantile of the given entries at a level drawn from
    U(0, 1), so that uniform, normal and truncated draws stay what they are, and constants stay
    constant. The levels come from torch's global generator.

    Args:
        values: At least one entry.
        shape: Of the new tensor.

    Example:
        >>> import torch
        >>> from deepens.ensembles.families.packed.drawing import drawn_like
        >>> drawn_like(torch.ones(8), (2, 2))
        tensor([[1., 1.],
                [1., 1.]])
    """
    flat = values.flatten()
    if not values.is_floating_point() or bool(flat.min() == flat.max()):
        return flat[:1].expand(shape).clone()
    ordered = flat[:: max(1, len(flat) // _ENOUGH)].sort().values
    levels = torch.rand(shape, dtype=values.dtype, device=values.device) * (len(ordered) - 1)
    below = levels.floor().long().clamp(max=len(ordered) - 2)
    return torch.lerp(ordered[below], ordered[below + 1], levels - below)


def redraw(model: nn.Module) -> nn.Module:
    """Draw every parameter of a network anew in its own likeness, in place.

    Args:
        model: A freshly initialised network: of trained weights only the distribution is left.

    Returns:
        The same network.
    """
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(drawn_like(parameter, tuple(parameter.shape)))
    return model
