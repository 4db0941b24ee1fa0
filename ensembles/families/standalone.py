"""All members as one plain module with weights of its own, to export."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..ensemble import Logits, stacked_logits
from .executions import NUM_PROVED, first_difference
from .grouped import GroupedNetwork, NotExactError
from .proof import prove_equal
from .surgery import copied

__all__ = ["GroupedMembers", "LoopedMembers", "grouped_members"]


class GroupedMembers(nn.Module):
    """Members as one network with grouped layers and weights of its own: the form to export."""

    def __init__(self, network: GroupedNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Float[Tensor, "batch channels height width"]) -> Logits:
        """Logits of all members."""
        joint = self.network(images)
        return joint.unflatten(1, (self.network.num_members, -1)).transpose(0, 1)


class LoopedMembers(nn.Module):
    """Members one after the other, for networks that have no grouped form."""

    def __init__(self, networks: Sequence[nn.Module]) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)

    def forward(self, images: Float[Tensor, "batch channels height width"]) -> Logits:
        """Logits of all members."""
        logits = [network(images) for network in self.networks]
        return stacked_logits(logits, images.shape[0], range(len(logits)))


def grouped_members(
    networks: Sequence[nn.Module], image_shape: tuple[int, int, int]
) -> GroupedMembers | LoopedMembers:
    """Join copies of whole networks, heads included, where that is exact; loop otherwise.

    Returns:
        A module in eval mode from images ``[B, K, H, W]`` to logits ``[M, B, C]``.
    """
    copies = [copied(network).eval() for network in networks]
    first = next(copies[0].parameters())
    images = torch.zeros(2, *image_shape, dtype=first.dtype, device=first.device)
    try:
        if any(first_difference(copies[0], other) is not None for other in copies):
            raise NotExactError("", copies[0], "members differ")
        prove_equal(copies[:NUM_PROVED], images)
        form = GroupedNetwork(copies[0], len(copies), own_images=False)
        tensors = form.tensors(copies)
        form.settle(tensors, images)
    except NotExactError:
        return LoopedMembers(copies).eval()
    form.keep(tensors)
    return GroupedMembers(form).eval()
