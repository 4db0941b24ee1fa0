"""Several networks of one architecture under ``torch.vmap``, their weights stacked."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call

__all__ = ["vmapped"]


def vmapped(networks: Sequence[nn.Module], images: Float[Tensor, "..."]) -> list[Tensor]:
    """Evaluate all networks in one vectorised pass.

    Gradients flow back to the networks' parameters, and running statistics move in each network's
    own buffers, as they do in a loop.

    Args:
        networks: Networks of one architecture, with the same integer tables.
        images: ``[B, K, H, W]``, or ``[m, B, K, H, W]``, one batch a network.

    Returns:
        Each network's result.

    Example:
        >>> import torch
        >>> from deepens.ensembles.families.vmapped import vmapped
        >>> networks = [torch.nn.Linear(4, 2) for _ in range(3)]
        >>> inputs = torch.randn(5, 4)
        >>> torch.allclose(vmapped(networks, inputs)[1], networks[1](inputs), atol=1e-6)
        True
    """
    named = [{**dict(own.named_parameters()), **dict(own.named_buffers())} for own in networks]
    stacked = {
        name: torch.stack([own[name] for own in named])
        for name, first in named[0].items()
        # Tables of indices are the same for all members, and a batched index is slow.
        if first.ndim == 0 or first.is_floating_point()
    }

    def run(tensors: dict[str, Tensor], own_images: Tensor) -> Tensor:
        return functional_call(networks[0], tensors, (own_images,))

    own_axis = 0 if images.ndim == 5 else None
    with _plain_attention():
        results = torch.vmap(run, in_dims=(0, own_axis))(stacked, images)
    if any(part.training for part in networks[0].modules()):
        with torch.no_grad():
            for name, _ in networks[0].named_buffers():
                for index, own in enumerate(named):
                    if name in stacked:
                        own[name].copy_(stacked[name][index])
    return list(results.unbind(0))


@contextmanager
def _plain_attention() -> Iterator[None]:
    """Keep ``nn.MultiheadAttention`` from its fast path, which has no gradient.

    It chooses that path by asking whether its weights need a gradient, and cannot see through
    vmap that they do.
    """
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)
