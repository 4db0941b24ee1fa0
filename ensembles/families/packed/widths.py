"""How wide a tensor becomes in a slim network: one rule for all widths, or a refusal."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction

MOST_WIDENING = Fraction(5, 4)
"""Rounding may widen a tensor by a quarter; more would change the method silently."""


@dataclass(frozen=True)
class Widths:
    r"""From the widths of a network's tensors to those of its slim version.

    :math:`w' = g \lceil w \alpha / (M g) \rceil`, where g is the least common multiple of the
    group counts of all layers that touch a tensor of width w: groups of convolutions and of
    GroupNorm, heads of attention. Two tensors of equal width stay of equal width, so that they
    can still be added. A width of 1 stays: it is a map that broadcasts.

    Args:
        alpha: Width of all members together, in widths of the network.
        num_members: M.
        multiples: g by original width, 1 where absent.
        everywhere: A multiple of every width.

    Example:
        >>> from fractions import Fraction
        >>> from deepens.ensembles.families.packed.widths import Widths
        >>> widths = Widths(Fraction(2), 4, multiples={58: 4})
        >>> widths(64), widths(58), widths(1)
        (32, 32, 1)
    """

    alpha: Fraction
    num_members: int
    multiples: Mapping[int, int] = field(default_factory=dict)
    everywhere: int = 1

    def __call__(self, width: int) -> int:
        """The new width of a tensor."""
        if width == 1:
            return 1
        multiple = self.multiple(width)
        return math.ceil(self.exact(width) / multiple) * multiple

    def exact(self, width: int) -> Fraction:
        """The new width before it is rounded."""
        return width * self.alpha / self.num_members

    def multiple(self, width: int) -> int:
        """What the new width must be a multiple of."""
        return math.lcm(self.multiples.get(width, 1), self.everywhere)

    def widening(self, width: int) -> Fraction:
        """By how much rounding widens a tensor, as a factor."""
        return self(width) / self.exact(width) if width > 1 else Fraction(1)

    def smallest_alpha(self, widths: list[int]) -> Fraction:
        """The smallest alpha from the present one up at which no width is widened too much.

        A width becomes n g from ``n g / (5/4 w)`` on: only there a refusal can end.
        """
        start = self.alpha / self.num_members
        step = Fraction(1, 100)
        candidates = {start}
        for width in widths:
            unit = self.multiple(width) / (MOST_WIDENING * width)
            first = max(1, math.floor(start / unit))
            candidates |= {n * unit for n in range(first, first + 8) if n * unit >= start}
        for ratio in sorted(candidates):
            # Rounded up to a number that a person types.
            alpha = math.ceil(ratio * self.num_members / step) * step
            trial = Widths(alpha, self.num_members, self.multiples, self.everywhere)
            if all(trial.widening(width) <= MOST_WIDENING for width in widths):
                return alpha
        return self.num_members * self.everywhere * math.lcm(1, *self.multiples.values()) + step
