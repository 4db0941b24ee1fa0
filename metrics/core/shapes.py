"""Shapes that many functions take or give, by name."""

from jaxtyping import Bool, Float, Float64, Integer
from torch import Tensor

Logits = Float[Tensor, "members samples classes"]  # raw outputs
MemberProbs = Float[Tensor, "members samples classes"]  # each member's, or their logarithms
LogProbs = Float[Tensor, "samples classes"]  # the mixture's
Targets = Integer[Tensor, "samples"]  # class indices
Scores = Float[Tensor, "samples"]
Flags = Bool[Tensor, "samples"]
Weights = Integer[Tensor, "*draws samples"]  # how often each sample counts, a row per draw
PerSample = Float64[Tensor, "samples"]
PerDraw = Float64[Tensor, "*draws"]
Scalar = Float64[Tensor, ""]
