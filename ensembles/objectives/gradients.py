"""Gradients that an objective takes itself, handed to the optimiser as those of one scalar."""

import torch
from jaxtyping import Float
from torch import Tensor


class GradientSum:
    r"""A sum of gradients :math:`g`, whose graphs are let go as they are added.

    The linear scalar :math:`\sum \theta\, \mathrm{sg}(g) - \mathrm{sg}(\sum \theta\,
    \mathrm{sg}(g))` has the value zero and the gradient :math:`g`, so that an objective which takes
    its gradients itself is followed like any other. It cannot be differentiated twice, and its
    gradients are taken before any scaling of the loss (float16 may underflow).

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
        self._variables = variables
        self._border = border if border is not None and border[1].requires_grad else None
        self._gradients: list[Tensor | None] = [None] * len(variables)
        self._at_border: Tensor | None = None

    def add(self, output: Tensor, weights: Tensor | None = None) -> None:
        """Add an output's gradient, weighted where it is no scalar, and let its graph go."""
        if not output.requires_grad:
            return
        sources = self._variables
        if self._border is not None:
            sources = [*sources, self._border[1]]
        found = torch.autograd.grad(output, sources, weights, allow_unused=True)
        for index, gradient in enumerate(found[: len(self._variables)]):
            self._gradients[index] = _plus(self._gradients[index], gradient)
        if self._border is not None:
            self._at_border = _plus(self._at_border, found[-1])

    def by_variable(self) -> dict[Tensor, Tensor]:
        """The sum by each variable that has one."""
        if self._border is not None and self._at_border is not None:
            output, weights = self._border[0], self._at_border
            self._border = None
            self.add(output, weights)
        pairs = zip(self._variables, self._gradients, strict=True)
        return {variable: gradient for variable, gradient in pairs if gradient is not None}

    def linear(self) -> Float[Tensor, ""]:
        """The scalar of value zero whose gradient is the sum."""
        return linear_scalar(list(self.by_variable().items()))


def linear_scalar(pairs: list[tuple[Tensor, Tensor]]) -> Float[Tensor, ""]:
    """A scalar of value zero whose gradient by each first tensor is the second.

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


def _plus(first: Tensor | None, second: Tensor | None) -> Tensor | None:
    if first is None or second is None:
        return second if first is None else first
    return first + second
