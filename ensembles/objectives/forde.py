"""FoRDE: members are repelled in the space of their input gradients."""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from ..ensemble import Ensemble
from ..objective import TrainingImages
from ..options import Repulsion
from .particles import squared_distances
from .repulsion import Evaluation, RepulsionTerm

LARGEST_BASIS = 12_288
"""Pixels times channels up to which a PCA basis is computed: 3 x 64 x 64, a matrix of 1.2 GB."""


def input_gradient_energies(
    gradients: Float[Tensor, "members batch features"],
    eigenvectors: Float[Tensor, "features features"] | None = None,
    squared_lengthscales: Float[Tensor, "features"] | None = None,
) -> Float[Tensor, "members"]:
    r"""The repulsive energy of each member, of its input gradients at each image.

    .. math::
        s_{ib} &= \Lambda^{1/2} U^T g_{ib} / \sqrt{|g_{ib}|^2 + 10^{-24}}

        d_{ijb} &= |s_{ib} - \mathrm{sg}(s_{jb})|^2

        h_{jb} &= \mathrm{median}_i\, \mathrm{sg}(d_{ijb}) / \ln M + 10^{-12}

        R_i &= \ln\Bigl[\frac1B \sum_b \sum_j \exp(-d_{ijb} / h_{jb})\Bigr]

    in float32 or wider, where sg stops the gradient. The median includes the zero distance to
    itself, and is the mean of the two middle values where there are two. Identical members have
    :math:`R_i = \ln M`.

    Args:
        gradients: g, in the order of the images' flattened channels, rows and columns.
        eigenvectors: U, in columns; the identity when None.
        squared_lengthscales: The diagonal of Lambda; ones when None.

    Raises:
        ValueError: One member, which has no bandwidth.

    Example:
        >>> import torch
        >>> from deepens.ensembles.objectives.forde import input_gradient_energies
        >>> input_gradient_energies(torch.eye(3)[:, None])  # ln(1 + 2/3): all at right angles
        tensor([0.5108, 0.5108, 0.5108])

    Reference:
        Trinh et al. (2024), arXiv:2306.02775.
    """
    members, batch, _ = gradients.shape
    if members < 2:
        raise ValueError(f"gradients must be of >= 2 members, got {members}")
    if gradients.dtype in (torch.float16, torch.bfloat16):
        gradients = gradients.float()
    points = gradients / (gradients.square().sum(-1, keepdim=True) + 1e-24).sqrt()
    if eigenvectors is not None:
        points = points @ eigenvectors
    if squared_lengthscales is not None:
        points = points * squared_lengthscales.sqrt()
    distances = squared_distances(points, points.detach())
    medians = distances.detach().quantile(0.5, dim=0)
    bandwidths = medians / math.log(members) + 1e-12
    return (-distances / bandwidths).logsumexp((1, 2)) - math.log(batch)


class FoRDE(RepulsionTerm):
    r"""First-order repulsion: members are to rest on different features of each image.

    A member's quantity is the gradient :math:`g_{ib}` of its true class's logit by image b
    (:math:`\sum_c y_{bc} z_c` for soft labels); the term in the loss is
    :math:`(\mathrm{scale} / B) \sum_i R_i`, see :func:`input_gradient_energies`.

    The lengthscales are the identity; ``pca``, the eigenvalues :math:`\lambda` of the covariance of
    the training images as the network sees them, along its eigenvectors; or ``tuned``,
    :math:`\lambda / (a + (1 - a) \lambda)` along the same, a = ``blend`` (the authors: 0.2 for
    CIFAR-10, 0.4 for CIFAR-100). It needs double backward.

    Args:
        options: Weight, annealing, lengthscale and blend.

    Raises:
        ValueError: By ``check_images``, a basis of more than 12,288 pixels and channels.

    Example:
        >>> from deepens.ensembles import CrossEntropy, FoRDE, Repulsion, Repulsive
        >>> objective = Repulsive(CrossEntropy(), [FoRDE(Repulsion(lengthscale="pca"))])
        >>> objective.shared_batch
        True

    Reference:
        Trinh et al. (2024), arXiv:2306.02775. Deviations: the covariance is centred (theirs is the
        second moment of the normalised images), and the median of an even number of members is
        the mean of the middle two, as in their code.
    """

    input_gradients = True
    eigenvectors: Tensor | None
    eigenvalues: Tensor | None

    def __init__(self, options: Repulsion | None = None) -> None:
        super().__init__(options)
        self.register_buffer("eigenvectors", None)
        self.register_buffer("eigenvalues", None)

    def check(self, ensemble: Ensemble) -> str | None:
        """Refuse what cannot be differentiated twice."""
        if reason := ensemble.not_twice_differentiable():
            raise ValueError(
                f"FoRDE differentiates the network twice, which it cannot be here: {reason}"
            )
        return None

    def check_images(self, shape: tuple[int, int, int]) -> None:
        """Refuse images too large for a basis, if one is asked."""
        if self.options.lengthscale != "identity":
            _check_size(shape)

    def prepare(self, images: TrainingImages) -> None:
        """Compute the images' basis, if one is asked."""
        if self.options.lengthscale != "identity" and self.eigenvalues is None:
            self.eigenvalues, self.eigenvectors = principal_components(images)

    def quantity(self, evaluation: Evaluation) -> Float[Tensor, "members batch features"]:
        """Each member's input gradients."""
        logits, targets, leaves = evaluation.logits, evaluation.targets, evaluation.leaves
        if leaves is None:
            raise ValueError("input gradients need the images as leaves")
        if targets.is_floating_point():
            chosen = (logits * targets).sum()
        else:
            chosen = logits.gather(-1, targets.long().expand(logits.shape[:2])[..., None]).sum()
        (found,) = torch.autograd.grad(chosen, leaves, create_graph=evaluation.differentiable)
        return found[:, : logits.shape[1]].flatten(2)

    def energies(
        self, quantity: Float[Tensor, "members batch features"]
    ) -> Float[Tensor, "members"]:
        """R of each member; see :func:`input_gradient_energies`."""
        scales, vectors = self._squared_lengthscales(), self.eigenvectors
        with torch.autocast(quantity.device.type, enabled=False):
            if scales is None or vectors is None:
                return input_gradient_energies(quantity)
            return input_gradient_energies(quantity, vectors.to(quantity), scales.to(quantity))

    def share(self, batch: int) -> float:
        """1 / B."""
        return 1 / batch

    def _squared_lengthscales(self) -> Tensor | None:
        if self.options.lengthscale == "identity":
            return None
        if self.eigenvalues is None:
            raise ValueError(
                f"repulsion.lengthscale {self.options.lengthscale!r} needs the training images: "
                "call prepare with them first"
            )
        if self.options.lengthscale == "pca":
            return self.eigenvalues
        blend = self.options.blend
        if blend == 0:  # the limit, where an eigenvalue may be zero
            return torch.ones_like(self.eigenvalues)
        return self.eigenvalues / (blend + (1 - blend) * self.eigenvalues)


def principal_components(
    images: TrainingImages,
) -> tuple[Float[Tensor, "features"], Float[Tensor, "features features"]]:
    r"""Eigenvalues, largest first, and eigenvectors, in columns, of images' covariance.

    :math:`\Sigma = N^{-1} \sum_n (x_n - \bar x)(x_n - \bar x)^T` of the flattened images, in
    float64 over batches that are seen once; in float32.

    Raises:
        ValueError: Fewer than two images, or more than 12,288 pixels and channels.
    """
    count, total, second = 0, None, None
    for batch in images:
        _check_size(batch.shape[1:])
        flat = batch.flatten(1).double()
        count += len(flat)
        total = flat.sum(0) if total is None else total + flat.sum(0)
        second = flat.T @ flat if second is None else second.add_(flat.T @ flat)
    if total is None or second is None or count < 2:
        raise ValueError(f"a PCA basis needs >= 2 training images, got {count}")
    mean = total / count
    covariance = (second / count).sub_(torch.outer(mean, mean))
    values, vectors = torch.linalg.eigh(covariance)
    return values.flip(0).clamp(min=0).float(), vectors.flip(1).float().contiguous()


def _check_size(shape: Sequence[int]) -> None:
    if math.prod(shape) > LARGEST_BASIS:
        raise ValueError(
            f"a PCA basis is computed for at most {LARGEST_BASIS} channels x pixels, got "
            f"{' x '.join(map(str, shape))} = {math.prod(shape)}; use "
            "--repulsion.lengthscale identity"
        )
