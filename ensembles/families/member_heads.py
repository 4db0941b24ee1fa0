"""Linear heads of all members, stacked."""

import math
from contextlib import nullcontext
from typing import cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from ..ensemble import Logits


class MemberHeads(nn.Module):
    r"""One linear head per member, with a layer norm before it or without.

    :math:`z_m = W_m\, \mathrm{norm}_m(f_m) + b_m`, in float32 or wider whatever surrounds it, with
    ``weight`` ``[M, C, D]``, ``bias`` ``[M, C]``, and ``norm_weight`` and ``norm_bias`` ``[M, D]``
    or None.
    """

    def __init__(self, num_members: int, features: int, classes: int, *, norm: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(num_members, classes, features))
        self.bias = nn.Parameter(torch.zeros(num_members, classes))
        self.norm_weight = nn.Parameter(torch.ones(num_members, features)) if norm else None
        self.norm_bias = nn.Parameter(torch.zeros(num_members, features)) if norm else None

    def forward(
        self, features: Float[Tensor, "members batch features"], members: list[int]
    ) -> Logits:
        """Logits of the chosen members."""
        device = features.device.type
        autocast = torch.amp.is_autocast_available(device)  # not on the meta device
        with torch.autocast(device, enabled=False) if autocast else nullcontext():
            features = features.to(torch.promote_types(features.dtype, self.weight.dtype))
            if self.norm_weight is not None and self.norm_bias is not None:
                features = F.layer_norm(features, features.shape[-1:])
                features = features * self.norm_weight[members][:, None]
                features = features + self.norm_bias[members][:, None]
            return torch.baddbmm(self.bias[members][:, None], features, self.weight[members].mT)

    @torch.no_grad()
    def draw(self, index: int, generator: torch.Generator) -> None:
        """Draw one member's head as ``nn.Linear`` does, from U(-1/sqrt(D), 1/sqrt(D))."""
        bound = 1 / math.sqrt(self.weight.shape[-1])
        for own in (self.weight[index], self.bias[index]):
            own.copy_(torch.empty(own.shape).uniform_(-bound, bound, generator=generator))

    @torch.no_grad()
    def copy(self, index: int, head: nn.Linear) -> None:
        """Start one member from a given head; a missing bias counts as zero."""
        self.weight[index].copy_(head.weight)
        if head.bias is not None:
            self.bias[index].copy_(head.bias)

    @torch.no_grad()
    def plain(self, index: int) -> nn.Module:
        """One member's head as a module of its own."""
        _, classes, features = self.weight.shape
        # Not drawn first: torch's global generator is the caller's.
        linear = nn.utils.skip_init(nn.Linear, features, classes).to(self.weight)
        linear.weight.copy_(self.weight[index])
        linear.bias.copy_(self.bias[index])
        if self.norm_weight is None:
            return linear
        norm = nn.LayerNorm(features).to(self.weight)
        norm.weight.copy_(self.norm_weight[index])
        norm.bias.copy_(cast(Tensor, self.norm_bias)[index])
        return nn.Sequential(norm, linear)
