"""Particle-based variational inference: members repelled in weight space and in function space."""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from ..ensemble import Ensemble, Images, Logits
from ..objective import ObjectiveValue, Targets, TrainingImages
from ..options import Repulsion
from .gradients import linear_scalar
from .likelihood import Likelihood, Shown
from .particles import kde_energies, svgd_direction
from .passes import random_state, running_statistics_kept, set_random_state
from .repulsion import Evaluation, Repelled, RepulsionTerm

MIXED = (
    "function-space SVGD mixes members' gradients at the same images, but mixup shows each member "
    "its own; use repulsion.update kde-wgd, or weight-repulsion"
)


class ParticleTerm(RepulsionTerm):
    r"""kde-WGD: :math:`R_i = \ln \sum_j \exp(-|q_i - \mathrm{sg}(q_j)|^2 / h)`, weighted by 1 / N.

    The log-posterior is N times the mean log-likelihood, so that in a loss of batch means the
    kernel term has the factor 1 / N. The prior is the optimiser's weight decay, and is not counted
    again. See :func:`~.particles.kde_energies` for the kernel and its bandwidth.
    """

    def __init__(self, options: Repulsion | None = None) -> None:
        super().__init__(options)
        self._num_images: int | None = None

    def prepare(self, images: TrainingImages) -> None:
        """Keep N."""
        self._num_images = len(images)

    def energies(self, quantity: Float[Tensor, "members features"]) -> Float[Tensor, "members"]:
        """R of each member."""
        with torch.autocast(quantity.device.type, enabled=False):
            return kde_energies(quantity)

    def share(self, batch: int) -> float:
        """1 / N."""
        if self._num_images is None:
            raise ValueError(
                "the repulsion is weighed against N training images: call prepare with them first"
            )
        return 1 / self._num_images


class WeightSpace(ParticleTerm):
    """Members are compared by their own learned parameters, end to end.

    Running statistics are no parameters. ``options`` are the weight and annealing.

    Reference:
        D'Angelo & Fortuin (2021), arXiv:2106.11642. Deviation: weight decay in place of a prior in
        the log-posterior.
    """

    shared_batch = False
    averages_parts = True
    forward_pass = False

    def check(self, ensemble: Ensemble) -> str | None:
        """Refuse members of different sizes."""
        sizes = [sum(p.numel() for p in _learned(ensemble, m)) for m in ensemble.chosen(None)]
        if len(set(sizes)) > 1:
            raise ValueError(
                f"weight space compares members of one size, got {sizes} parameters; compare their "
                "functions instead (function-repulsion)"
            )
        return None

    def quantity(self, evaluation: Evaluation) -> Float[Tensor, "members features"]:
        """Each member's parameters."""
        return _rows(evaluation.ensemble, evaluation.members)


class FunctionSpace(ParticleTerm):
    """Members are compared by their logits on the batch, each image's centred over the classes.

    Logits that differ by a constant are the same function. ``options``: weight and annealing.

    Reference:
        D'Angelo & Fortuin (2021), arXiv:2106.11642. Deviations: centred logits; weight decay in
        place of a prior over functions.
    """

    def quantity(self, evaluation: Evaluation) -> Float[Tensor, "members features"]:
        """Each member's centred logits."""
        return centred(evaluation.logits)


class SteinVariational(Repelled):
    r"""SVGD: members follow each other's gradients as well as the repulsion.

    With particles :math:`q_i` (parameters, or centred logits on the batch) and the gradients
    :math:`G_j = \partial \ell_j / \partial q_j` of the batch-mean likelihood, each member's
    gradient by its particle is

    .. math:: \sum_j k_{ij} G_j - (\mathrm{scale} / N) \sum_j \nabla_{q_j} k(q_j, q_i);

    see :func:`~.particles.svgd_direction`. In function space it goes back to the parameters
    through the member's own Jacobian. A scale of 0, and one member, are the likelihood, bit for
    bit; that leaves out the attraction too.

    Args:
        likelihood: What members are trained on.
        space: The term whose quantity is the particle.

    Raises:
        ValueError: Function space, and a likelihood that shows each member images of its own.

    Example:
        >>> from deepens.ensembles import CrossEntropy
        >>> from deepens.ensembles.objectives.parvi import SteinVariational, WeightSpace
        >>> SteinVariational(CrossEntropy(), WeightSpace()).shared_batch
        False

    Reference:
        Liu & Wang (2016), arXiv:1608.04471; D'Angelo & Fortuin (2021), arXiv:2106.11642.
    """

    def __init__(self, likelihood: Likelihood, space: ParticleTerm) -> None:
        super().__init__(likelihood, [space])
        if space.forward_pass and likelihood.shows_pseudo_data:
            raise ValueError(MIXED)

    def pushed(
        self, shown: Shown, images: Images, targets: Targets, weights: dict[RepulsionTerm, float]
    ) -> ObjectiveValue:
        """The likelihood's value, with the gradients of SVGD."""
        ((space, weight),) = weights.items()
        follow = self._by_function if space.forward_pass else self._by_weight
        values, linear = follow(shown, weight)
        return ObjectiveValue(self.likelihood.reduce(values, linear), values)

    def _by_weight(
        self, shown: Shown, weight: float
    ) -> tuple[Float[Tensor, "members"], Float[Tensor, ""]]:
        total, values = shown.gradients(), []
        for rows in tuple(self.likelihood.chunks(shown.ensemble)) or (None,):
            found = shown.losses(shown.logits(rows), rows or slice(None))
            values.append(found.detach())
            total.add(found.sum())
        particles = _rows(shown.ensemble)
        slopes = _rows(shown.ensemble, of=total.by_variable())
        direction = svgd_direction(particles.detach(), slopes, weight)
        return torch.cat(values), linear_scalar([(particles, direction)])

    def _by_function(
        self, shown: Shown, weight: float
    ) -> tuple[Float[Tensor, "members"], Float[Tensor, ""]]:
        device, total = shown.examples.images.device, shown.gradients()
        states, found = [], []
        if chunks := self.likelihood.chunks(shown.ensemble):
            with running_statistics_kept(shown.ensemble), torch.no_grad():
                for rows in chunks:
                    states.append(random_state(device))
                    found.append(shown.logits(rows))
            logits = torch.cat(found)
        else:
            logits = shown.logits()
        leaf = _wide(logits.detach()).requires_grad_()
        values = shown.losses(leaf)
        (slopes,) = torch.autograd.grad(values.sum(), leaf)
        direction = svgd_direction(centred(leaf.detach()), slopes.flatten(1), weight)
        direction = direction.view_as(logits)
        if not chunks:
            return values.detach(), linear_scalar([(logits, direction)])
        for rows, state in zip(chunks, states, strict=True):
            set_random_state(device, state)  # the dropout of the first pass again
            total.add((shown.logits(rows) * direction[rows]).sum())
        return values.detach(), total.linear()


def centred(logits: Logits) -> Float[Tensor, "members features"]:
    """Each member's logits less their mean over the classes, in a row; float32 or wider."""
    logits = _wide(logits)
    return (logits - logits.mean(-1, keepdim=True)).flatten(1)


def _wide(values: Tensor) -> Tensor:
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values


def _rows(
    ensemble: Ensemble,
    members: Sequence[int] | None = None,
    of: Mapping[Tensor, Tensor] | None = None,
) -> Float[Tensor, "members features"]:
    """A row for each member of its learned parameters, or of what a table has for them."""
    rows = [_learned(ensemble, index, of) for index in ensemble.chosen(members)]
    return torch.stack([torch.cat([part.flatten() for part in row]) for row in rows])


def _learned(
    ensemble: Ensemble, index: int, of: Mapping[Tensor, Tensor] | None = None
) -> list[Tensor]:
    """A member's learned parameters, or what a table has for them, zero where it has nothing."""
    found = []
    for parameter, position in ensemble.member_parameters(index):
        if parameter.requires_grad:
            value = parameter if of is None else of.get(parameter, torch.zeros_like(parameter))
            found.append(value if position is None else value[position])
    return found
