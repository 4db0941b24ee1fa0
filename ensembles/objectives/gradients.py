"""Gradients that an objective takes itself, handed to the optimiser as those of one scalar."""

import torch
from jaxtyping import Float
from torch import Tensor


class GradientSum:
    r"""A sum of gradients g, whose graphs are let go as they are added.

    An objective that takes its gradients itself returns :meth:`linear`, which is followed like any
    other loss. It cannot be differentiated twice, and its gradients are taken before any scaling of
    the loss (float16 may underflow).

    Args:
        variables: By which gradients are taken.
        border: A tensor that several outputs share and its detached copy, which the outputs were
            computed from; its graph is gone through once, by what was collected at the copy.

    Example:
        >>> import torch
        >>> from deepens.ensembles.objectives.gradients import GradientSum
        >>> weight = torch.tensor([2.0], requires_grad=True)
        >>> total = GradientSum([weight])
        >>> total.add((weight**2).sum())
        >>> total.add((3 * weight).sum())
        >>> total.linear().backward()
        >>> weight.grad
        tensor([7.])
    """

    def __init__(
        self, variables: list[Tensor], border: tuple[Tensor, Tensor] | None = None
    ) -> None:
        self._border = border if border is not None and border[1].requires_grad else None
        self._sources = variables if self._border is None else [*variables, self._border[1]]
        self._sums: dict[Tensor, Tensor] = {}

    def add(self, output: Tensor, weights: Tensor | None = None) -> None:
        """Add an output's gradient, weighted where it is no scalar, and let its graph go."""
        if not output.requires_grad:
            return
        found = torch.autograd.grad(output, self._sources, weights, allow_unused=True)
        for source, gradient in zip(self._sources, found, strict=True):
            if gradient is not None:
                before = self._sums.get(source)
                self._sums[source] = gradient if before is None else before + gradient

    def by_variable(self) -> dict[Tensor, Tensor]:
        """The sum by each variable that has one."""
        if self._border is not None:
            (output, copy), self._border = self._border, None
            self._sources = self._sources[:-1]
            if (weights := self._sums.pop(copy, None)) is not None:
                self.add(output, weights)
        return self._sums

    def linear(self) -> Float[Tensor, ""]:
        """The scalar of value zero whose gradient is the sum."""
        return linear_scalar(list(self.by_variable().items()))


def linear_scalar(pairs: list[tuple[Tensor, Tensor]]) -> Float[Tensor, ""]:
    r"""A scalar of value zero whose gradient by each first tensor is the second.

    :math:`\sum \theta\, \mathrm{sg}(g) - \mathrm{sg}(\sum \theta\, \mathrm{sg}(g))`

    Example:
        >>> import torch
        >>> from deepens.ensembles.objectives.gradients import linear_scalar
        >>> weight = torch.tensor([2.0, 1.0], requires_grad=True)
        >>> scalar = linear_scalar([(weight, torch.tensor([5.0, -1.0]))])
        >>> scalar.item()
        0.0
        >>> torch.autograd.grad(scalar, weight)[0]
        tensor([ 5., -1.])
    """
    linear = sum(((v * g.detach()).sum() for v, g in pairs), start=torch.zeros(()))
    return linear - linear.detach()
