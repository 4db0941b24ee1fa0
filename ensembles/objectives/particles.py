r"""Particle-based variational inference: members as particles that a kernel holds apart.

With the kernel :math:`k_{ij} = \exp(-\lVert x_i - x_j \rVert^2 / h)` and the median bandwidth
:math:`h`, two flows move particles towards samples of a posterior whose negative logarithm is the
loss: kde-WGD (`kde_energies`, added to the loss) and SVGD (`svgd_direction`, in its place).

A posterior's loss is a *sum* over the training images. Where the loss is their mean, what the
kernel adds is divided by their number. Everything is computed in float32 at least, and in blocks of
features, so that the differences of all pairs are never stored.
"""

import math
from collections.abc import Iterator
from functools import reduce

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

__all__ = ["kde_energies", "median_bandwidth", "squared_distances", "svgd_direction"]

BLOCK = 2**22
"""Elements of the differences of all pairs that are kept at the same time."""


def squared_distances(
    particles: Float[Tensor, "members *batch features"],
    others: Float[Tensor, "members *batch features"] | None = None,
) -> Float[Tensor, "members members *batch"]:
    r"""Return the squared Euclidean distances of all pairs, at each image where there are some.

    :math:`d_{ij} = \lVert x_i - y_j \rVert^2 = \sum_f (x_{if} - y_{jf})^2`

    By differences, since :math:`x_i^2 + y_j^2 - 2 x_i y_j` cancels where particles are near each
    other. Differentiable once; the gradient of a pair that coincides is 0.

    Args:
        particles: x, ``[M, D]``, or ``[M, B, D]`` with one row per image.
        others: y likewise; the particles themselves when None.

    Returns:
        ``[M, M]`` or ``[M, M, B]``, float64 where an argument is, else float32. Without ``others``
        it is symmetric and its diagonal 0, exactly.

    Raises:
        ValueError: If there is no particle or feature, or the shapes differ.

    Example:
        >>> import torch
        >>> from deepens.ensembles.objectives.particles import squared_distances
        >>> squared_distances(torch.tensor([[0.0, 0.0], [3.0, 4.0]]))
        tensor([[ 0., 25.],
                [25.,  0.]])
    """
    if particles.ndim not in (2, 3) or particles.numel() == 0:
        raise ValueError(
            "particles must be [members, features] or [members, images, features] and not empty, "
            f"got {tuple(particles.shape)}"
        )
    if others is None:
        others = particles
    _validate_like(particles, others, "others")
    return _SquaredDistances.apply(particles, others)


def median_bandwidth(distances: Float[Tensor, "members members"]) -> Float[Tensor, ""]:
    r"""Return the bandwidth by the median heuristic, a constant.

    :math:`h = \mathrm{median}_{ij}(d_{ij}) / \ln(M + 1)`

    The median of *squared* distances is over the whole matrix, its diagonal included, and lies
    midway between the two middle values of an even number of them. Where it is 0, which the paper
    leaves open, the mean of the matrix takes its place, and where that is 0 too, h is 1. What is so
    near 0 that 1/h might overflow counts as 0. NaN stays NaN.

    Raises:
        ValueError: If the matrix is empty or not square.

    Example:
        >>> import torch
        >>> from deepens.ensembles.objectives.particles import median_bandwidth
        >>> median_bandwidth(torch.tensor([[0.0, 25.0], [25.0, 0.0]]))  # 12.5 / ln 3
        tensor(11.3780)
    """
    shape = tuple(distances.shape)
    if len(shape) != 2 or shape[0] != shape[1] or shape[0] == 0:
        raise ValueError(f"distances must be square and not empty, got shape {shape}")
    distances = distances.detach().to(_wide(distances))
    precision = torch.finfo(distances.dtype)
    floor = precision.tiny / precision.eps
    scale = torch.quantile(distances, 0.5)
    scale = torch.where(scale <= floor, distances.mean(), scale)
    bandwidth = scale / math.log(len(distances) + 1)
    return torch.where(bandwidth <= floor, 1.0, bandwidth)


def kde_energies(particles: Float[Tensor, "members features"]) -> Float[Tensor, "members"]:
    r"""Return the particles' log-densities under a kernel estimate; their gradient is kde-WGD's.

    :math:`R_i = \ln \sum_j k(x_i, \mathrm{sg}(x_j))`, where sg stops the gradient.

    M identical particles have the energy ln M and the gradient 0. Particles that almost coincide
    are pushed apart by about :math:`2 \ln(M + 1) / \lVert x_i - x_j \rVert`, without a bound: clip,
    or start them apart.

    Returns:
        ``[M]``, in nats, in ``[0, ln M]``; float64 where the particles are, else float32.

    Raises:
        ValueError: If there is no particle or feature.

    Example:
        >>> import torch
        >>> from deepens.ensembles.objectives.particles import kde_energies
        >>> kde_energies(torch.tensor([[0.0], [2.0]])).exp()  # k = exp(-2 ln 3) = 1/9
        tensor([1.1111, 1.1111])

    Reference:
        D'Angelo & Fortuin (2021), arXiv:2106.11642.
    """
    _validate(particles)
    distances = squared_distances(particles, particles.detach())
    return torch.logsumexp(-distances / median_bandwidth(distances), dim=1)


def svgd_direction(
    particles: Float[Tensor, "members features"],
    gradients: Float[Tensor, "members features"],
    repulsion: float | Float[Tensor, ""] = 1.0,
) -> Float[Tensor, "members features"]:
    r"""Return what each particle descends by in Stein variational gradient descent.

    :math:`v_i = \sum_j k_{ij} g_j - r \sum_j \nabla_{x_j} k(x_j, x_i)`, with :math:`g_j` the
    gradient of particle j's loss.

    With r = 1 this is :math:`-M \phi(x_i)` of the paper: minus, since optimisers descend, and M
    times, so that a member's own gradient has the weight :math:`k_{ii} = 1` and a learning rate
    keeps its meaning whatever M is. One particle descends its own gradient, exactly.

    Args:
        particles: x.
        gradients: g, of a loss that is minus the log-posterior.
        repulsion: The repulsion's weight r: 1 is SVGD; one over the number of training images
            where ``gradients`` are of a mean over them. Not checked where it is a tensor.

    Returns:
        ``[M, D]``, a constant; float64 where an argument is, else float32.

    Raises:
        ValueError: If there is no particle or feature, the shapes differ, or ``repulsion`` is
            negative or not finite.

    Example:
        >>> import torch
        >>> from deepens.ensembles.objectives.particles import svgd_direction
        >>> particles, gradients = torch.tensor([[0.0], [2.0]]), torch.tensor([[9.0], [0.0]])
        >>> svgd_direction(particles, gradients)
        tensor([[9.2441],
                [0.7559]])

    Reference:
        Liu & Wang (2016), arXiv:1608.04471, algorithm 1.
    """
    _validate(particles)
    _validate_like(particles, gradients, "gradients")
    if not isinstance(repulsion, Tensor) and not 0 <= repulsion < math.inf:
        raise ValueError(f"repulsion must be finite and >= 0, got {repulsion}")
    particles, gradients = particles.detach(), gradients.detach()
    distances = squared_distances(particles)
    bandwidth = median_bandwidth(distances)
    kernel = torch.exp(-distances / bandwidth)
    push = repulsion * 2 * kernel / bandwidth
    direction = torch.empty_like(particles, dtype=_wide(particles, gradients))
    # No matrix product: autocast or TF32 would round it.
    for v, x, g in _blocks(direction, particles, gradients):
        pull = kernel[:, :, None] * g
        v.copy_((pull - push[:, :, None] * _differences(x, x)).sum(1))
    return direction


class _SquaredDistances(torch.autograd.Function):
    """Squared distances whose graph does not hold the differences of all pairs."""

    @staticmethod
    def forward(ctx, particles: Tensor, others: Tensor) -> Tensor:
        ctx.save_for_backward(particles, others)
        parts = [_differences(x, y).square_().sum(-1) for x, y in _blocks(particles, others)]
        return torch.stack(parts).sum(0)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, y = ctx.saved_tensors
        by_x, by_y = ctx.needs_input_grad
        return (
            _weighted_differences(2 * gradient, x, y).to(x) if by_x else None,
            _weighted_differences(2 * gradient.transpose(0, 1), y, x).to(y) if by_y else None,
        )


def _weighted_differences(weights: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """``sum_j w_ij (x_i - y_j)``, by differences for the same reason as the distances."""
    total = torch.empty_like(x, dtype=weights.dtype)
    for out, own, other in _blocks(total, x, y):
        out.copy_(_differences(own, other).mul_(weights[..., None]).sum(1))
    return total


def _differences(x: Tensor, y: Tensor) -> Tensor:
    dtype = _wide(x, y)
    return x.to(dtype)[:, None] - y.to(dtype)[None]


def _blocks(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Views on the same features of all, so many that the differences of all pairs are few."""
    members, *images, _ = tensors[0].shape
    size = max(1, BLOCK // (members**2 * math.prod(images)))
    return zip(*(tensor.split(size, dim=-1) for tensor in tensors), strict=True)


def _wide(*tensors: Tensor) -> torch.dtype:
    return reduce(torch.promote_types, (tensor.dtype for tensor in tensors), torch.float32)


def _validate(particles: Tensor) -> None:
    if particles.ndim != 2 or particles.numel() == 0:
        raise ValueError(
            f"particles must be [members, features] and not empty, got {tuple(particles.shape)}"
        )


def _validate_like(particles: Tensor, other: Tensor, name: str) -> None:
    if other.shape != particles.shape:
        raise ValueError(
            f"{name} must have the particles' shape {tuple(particles.shape)}, "
            f"got {tuple(other.shape)}"
        )
