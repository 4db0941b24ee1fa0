"""Several networks of one architecture under ``torch.vmap``, their weights stacked."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

__all__ = ["own_tensors", "vmapped"]


def own_tensors(network: nn.Module) -> dict[str, Tensor]:
    """All parameters and buffers, by name; those of a module in several places once.

    Not ``named_parameters``, which leaves out a parameter that two modules share: replacing it by
    its first name alone would be no replacement in the second module.

    Args:
        network: A network.

    Returns:
        The tensors themselves, in a fixed order.

    Example:
        >>> from torch import nn
        >>> from deepens.ensembles.families.vmapped import own_tensors
        >>> layer = nn.Linear(2, 2, bias=False)
        >>> list(own_tensors(nn.Sequential(layer, layer)))
        ['0.weight']
    """
    found = {}
    for name, part in network.named_modules():
        prefix = f"{name}." if name else ""
        for key, tensor in (*part._parameters.items(), *part._buffers.items()):
            if tensor is not None:
                found[prefix + key] = tensor
    return found


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
    named = [own_tensors(network) for network in networks]
    stacked = {
        name: torch.stack([own[name] for own in named])
        for name, first in named[0].items()
        # Tables of indices are the same for all members, and a batched index is slow.
        if first.ndim == 0 or first.is_floating_point()
    }

    def run(tensors: dict[str, Tensor], own_images: Tensor) -> Tensor:
        # Ties are kept by the names; torch's own handling leaves its tensors in shared modules.
        return functional_call(networks[0], tensors, (own_images,), tie_weights=False)

    own_axis = 0 if images.ndim == 5 else None
    with _plain_attention(images.device):
        results = torch.vmap(run, in_dims=(0, own_axis))(stacked, images)
    if any(part.training for part in networks[0].modules()):
        with torch.no_grad():
            for name in stacked:
                for index, own in enumerate(named):
                    if not isinstance(own[name], nn.Parameter):
                        own[name].copy_(stacked[name][index])
    return list(results.unbind(0))


@contextmanager
def _plain_attention(device: torch.device) -> Iterator[None]:
    """Keep attention from fast paths that vmap cannot see through.

    ``nn.MultiheadAttention`` has one without a gradient, and takes it as its weights do not seem
    to need one under vmap; the fused kernel for CPUs would run once for each member.
    """
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH) if device.type == "cpu" else nullcontext():
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)
