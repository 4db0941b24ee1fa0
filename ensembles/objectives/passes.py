"""Passes through a network that leave no trace in it, or are made a second time alike."""

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn


@contextmanager
def setting(objects: Iterable[Any], name: str, value: bool) -> Iterator[None]:
    """Set an attribute of some objects while inside."""
    with ExitStack() as stack:
        for each in objects:
            stack.callback(setattr, each, name, getattr(each, name))
            setattr(each, name, value)
        yield


@contextmanager
def running_statistics_kept(module: nn.Module) -> Iterator[None]:
    """Normalise by the batch as usual inside, and leave the running statistics as they are."""
    norms = [m for m in module.modules() if isinstance(m, nn.modules.batchnorm._NormBase)]
    held = [dict(norm._buffers) for norm in norms]
    for norm in norms:  # copies: the graph may hold on to what a forward pass wrote to
        norm._buffers.update({k: v.clone() for k, v in norm._buffers.items() if v is not None})
    try:
        yield
    finally:
        for norm, buffers in zip(norms, held, strict=True):
            norm._buffers.update(buffers)


def random_state(device: torch.device) -> list[Tensor]:
    """Torch's global generators, of the CPU and of the device."""
    states = [torch.get_rng_state()]
    return [*states, torch.cuda.get_rng_state(device)] if device.type == "cuda" else states


def set_random_state(device: torch.device, states: list[Tensor]) -> None:
    """Set them back."""
    torch.set_rng_state(states[0])
    if device.type == "cuda":
        torch.cuda.set_rng_state(states[1], device)
