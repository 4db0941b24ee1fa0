"""Functions that join, split or reorder channels, made to act within each member."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

__all__ = ["MemberFunctions"]


class MemberFunctions(TorchFunctionMode):
    """While it is active, channel operations keep channels member after member.

    ``cat([a, b])`` of ``[a1 a2]`` and ``[b1 b2]`` is ``[a1 a2 b1 b2]`` in plain torch; here it is
    ``[a1 b1 a2 b2]``, and ``split``, ``chunk`` and channel shuffles likewise. Which axis has the
    channels is read off the number of axes: axis 1 of images, the last of tokens. That is a guess,
    so whoever uses this proves the result.

    Example:
        >>> import torch
        >>> from deepens.ensembles.families.member_functions import MemberFunctions
        >>> first, second = torch.tensor([[1, 2]]), torch.tensor([[10, 20]])
        >>> with MemberFunctions(2):
        ...     torch.cat([first, second], dim=1)
        tensor([[ 1, 10,  2, 20]])
    """

    def __init__(self, num_members: int) -> None:
        super().__init__()
        self.num_members = num_members

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Replace the functions that have a rule; the mode is inactive inside of it."""
        rule = _RULES.get(func)
        if rule is None or self.num_members == 1:
            return func(*args, **(kwargs or {}))
        return rule(self.num_members, func, *args, **(kwargs or {}))


def _channel_axis(values: Tensor, axis: int) -> int | None:
    """The axis, counted from 0, if it is one of channels."""
    axis %= values.ndim
    channels = {2: (1,), 3: (2,), 4: (1, 3)}.get(values.ndim, ())
    return axis if axis in channels else None


def _own(m: int, values: Tensor, axis: int) -> Tensor:
    """Give members an axis of their own, or fail: so a wrong rule fails for any number of them."""
    if values.shape[axis] % m:
        raise ValueError(f"an axis of {values.shape[axis]} has no equal parts for {m} members")
    return values.unflatten(axis, (m, -1))


def _joined(parts: Sequence[Tensor], axis: int) -> tuple[Tensor, ...]:
    return tuple(part.flatten(axis, axis + 1) for part in parts)


def _cat(m: int, func: Any, tensors: Any, dim: int = 0) -> Tensor:
    axis = _channel_axis(tensors[0], dim)
    if axis is None:
        return func(tensors, dim)
    return torch.cat([_own(m, part, axis) for part in tensors], axis + 1).flatten(axis, axis + 1)


def _chunk(m: int, func: Any, input: Tensor, chunks: int, dim: int = 0) -> Any:
    axis = _channel_axis(input, dim)
    if axis is None:
        return func(input, chunks, dim)
    return _joined(_own(m, input, axis).chunk(chunks, axis + 1), axis)


def _split(m: int, func: Any, tensor: Tensor, split_size: Any, dim: int = 0) -> Any:
    axis = _channel_axis(tensor, dim)
    if axis is None:
        return func(tensor, split_size, dim)
    width = tensor.shape[axis] // m
    # Sizes are one member's where a module keeps them, and all members' where they come from
    # the tensor's own shape.
    if isinstance(split_size, int):
        sizes: Any = split_size if split_size <= width else split_size // m
    else:
        whole = sum(split_size) != width
        sizes = [size // m if whole else size for size in split_size]
    return _joined(_own(m, tensor, axis).split(sizes, axis + 1), axis)


def _channel_shuffle(m: int, func: Any, input: Tensor, groups: int) -> Tensor:
    # One member's shuffle is [g, k] -> [k, g]; a leading axis of members stays.
    own = _own(m, input, 1).unflatten(2, (groups, -1))
    return own.transpose(2, 3).flatten(1, 3)


def _view(m: int, func: Any, input: Tensor, *shape: Any, **named: Any) -> Tensor:
    """Reading channels as ``[groups, k]``, the first step of a hand-written shuffle.

    ``[B, m*C, H, W] -> [B, g, m*k, H, W]`` with axis 2 member after member: when the axes are
    exchanged and joined again, the members are outermost, as they have to be.
    """
    sizes = named.get("shape", named.get("size", shape))
    if len(sizes) == 1 and not isinstance(sizes[0], int):
        sizes = sizes[0]
    if isinstance(sizes, torch.Size | tuple | list) and input.ndim == 4 and len(sizes) == 5:
        batch, groups, _, height, width = sizes
        kept = (batch in (input.shape[0], -1)) and (height, width) == tuple(input.shape[2:])
        if kept and groups > 0:
            own = _own(m, input, 1).unflatten(2, (groups, -1))
            return own.transpose(1, 2).flatten(2, 3)
    return func(input, *shape, **named)


_RULES: dict[Any, Callable[..., Any]] = {
    **dict.fromkeys((torch.cat, torch.concat, torch.concatenate), _cat),
    **dict.fromkeys((torch.chunk, Tensor.chunk), _chunk),
    **dict.fromkeys((torch.split, Tensor.split), _split),
    torch.channel_shuffle: _channel_shuffle,
    **dict.fromkeys((Tensor.view, Tensor.reshape, torch.reshape), _view),
}
