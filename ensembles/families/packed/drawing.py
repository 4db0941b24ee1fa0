"""Fresh weights in the likeness of others, whatever scheme these were drawn by."""

from typing import Any, cast

import torch
from torch import Tensor, nn

_ENOUGH = 20_000
"""Entries that tell a distribution: of larger tensors, as many are looked at."""


def drawn_like(values: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Draw a tensor whose entries are distributed as those of another, which has at least one.

    Each entry is the linearly interpolated quantile of the given entries at a level drawn from
    U(0, 1) by torch's global generator, so that uniform, normal and truncated draws stay what they
    are, and constants stay constant.

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
    # On the CPU, so that a seed means the same on every device.
    levels = torch.rand(shape, dtype=values.dtype).to(values.device).flatten()
    levels.mul_(len(ordered) - 1)
    below = levels.int().clamp_(max=len(ordered) - 2)
    drawn, share = ordered.index_select(0, below), levels.sub_(below)
    return drawn.lerp_(ordered.index_select(0, below.add_(1)), share).view(shape)


def redraw(model: nn.Module) -> nn.Module:
    """Draw every trained parameter of a fresh network anew in its own likeness, in place.

    Frozen ones are constants, such as fixed positions, and stay; a layer with ``draws_itself``
    resets its own.
    """
    own: set[int] = set()
    with torch.no_grad():
        for module in model.modules():
            if draws_itself(module):
                module.reset_parameters()  # type: ignore[operator]
                own |= {id(parameter) for parameter in module.parameters()}
        for parameter in model.parameters():
            if parameter.requires_grad and id(parameter) not in own:
                parameter.copy_(drawn_like(parameter, tuple(parameter.shape)))
    return model


def draws_itself(module: Any) -> bool:
    """Whether a layer's initial weights have a structure, which ``reset_parameters`` restores."""
    return getattr(module, "draws_itself", False)


class Redrawing:
    """A model's parameters in new shapes, drawn in their likeness; shared ones stay shared.

    Without ``drawn`` they are zero: shapes alone are asked for.
    """

    def __init__(self, refusal: str, model: nn.Module, *, drawn: bool = True) -> None:
        self.refusal = refusal
        self._draw = drawn_like if drawn else torch.Tensor.new_zeros
        self._names = {id(p): name for name, p in model.named_parameters()}
        self._drawn: dict[int, tuple[Tensor, nn.Parameter]] = {}

    def layer(self, module: nn.Module, shape: tuple[int, ...], *, scale: float) -> None:
        """Weight and bias of a convolution or a linear layer, and others with one entry per output.

        Others are gains of standardised weights, which keep their scale.
        """
        if draws_itself(module):
            for key, size in (("weight", shape), ("bias", shape[:1])):
                if (old := getattr(module, key)) is not None:
                    new = nn.Parameter(old.new_zeros(size), requires_grad=old.requires_grad)
                    setattr(module, key, new)
            if self._draw is drawn_like:
                module.reset_parameters()  # type: ignore[operator]
            return
        outputs = len(cast(Tensor, module.weight))
        self.parameter(module, "weight", shape, scale)
        self.parameter(module, "bias", shape[:1], scale)
        for key, own in list(module.named_parameters(recurse=False)):
            if key not in ("weight", "bias") and own.ndim and len(own) == outputs == own.numel():
                self.parameter(module, key, (shape[0], *own.shape[1:]), 1.0)

    def norm(self, module: nn.Module, shape: tuple[int, ...]) -> None:
        """Parameters and buffers of a normalisation, one entry per channel."""
        for key, parameter in list(module.named_parameters(recurse=False)):
            if parameter.ndim:
                self.parameter(module, key, shape, 1.0)
        for key, buffer in list(module.named_buffers(recurse=False)):
            if buffer.ndim and tuple(buffer.shape) != shape:
                module.register_buffer(key, self._draw(buffer, shape))

    def parameter(self, module: nn.Module, key: str, shape: tuple[int, ...], scale: float) -> None:
        """One parameter, if there is such a one and its shape changes.

        Raises:
            ValueError: It is frozen and no constant, or modules that share it need other shapes.
        """
        old = getattr(module, key)
        if old is None or tuple(old.shape) == shape:
            return
        name = self._names.get(id(old), key)
        if not old.requires_grad and not bool((old == old.flatten()[0]).all()):
            raise ValueError(
                f"{self.refusal}: the parameter {name} is frozen, so that its values mean "
                f"something, and its shape {list(old.shape)} would become {list(shape)}; a deep "
                "ensemble takes any network"
            )
        if id(old) not in self._drawn:
            # The old one is kept alive: another object could get its place in memory.
            self._drawn[id(old)] = (old, self._scaled(old, shape, scale))
        new = self._drawn[id(old)][1]
        if tuple(new.shape) != shape:
            raise ValueError(
                f"{self.refusal}: the parameter {name} is shared by modules in which it would "
                f"have the shapes {list(new.shape)} and {list(shape)}; a deep ensemble takes any "
                "network"
            )
        setattr(module, key, new)

    def _scaled(self, old: nn.Parameter, shape: tuple[int, ...], scale: float) -> nn.Parameter:
        drawn = self._draw(old.detach(), shape)
        return nn.Parameter(drawn * scale if old.requires_grad else drawn, old.requires_grad)
