"""Greedy sequential training: each member is to differ from those before it, on noise."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..ensemble import Ensemble, Images
from ..objective import Objective, ObjectiveValue, Targets, TrainingImages
from ..options import Noise
from .likelihood import Likelihood
from .passes import setting
from .repulsion import ALONE

BATCH = 256
"""Noise images on which the members before are evaluated at a time."""


class Greedy(Objective):
    r"""Greedy Bayesian posterior approximation: a list of fits, member after member.

    Member k minimises its likelihood and

    .. math::
        \ln \sum_{j<k} \exp\Bigl(-\frac{\mathrm{scale}}{S} \sum_s |p_k(\tilde x_s) -
        p_j(\tilde x_s)|^2\Bigr),

    with the probabilities p of the members before it, which stay as they are, on noise images
    :math:`\tilde x_s`, normal with a deviation in units of the training images', drawn once from
    the seed; each step takes the next of them, as many as the batch holds. For the first member, or
    with a scale of 0, it is the likelihood, bit for bit. Noise goes through the network with its
    normalisation in evaluation mode, so that running statistics are those of images.

    Args:
        likelihood: What each member is trained on.
        options: Weight, number and deviation of the noise images.
        seed: Of the noise.

    Example:
        >>> from deepens.ensembles import CrossEntropy, Greedy
        >>> Greedy(CrossEntropy(), seed=0).fits(3)
        [[0], [1], [2]]

    Reference:
        Tiulpin & Blaschko (2022), arXiv:2105.14275. Deviations: one set of noise images for all,
        where theirs has one for each training image; the weight is not divided by a constant.
    """

    couples_members = True
    noise: Tensor | None
    before: Tensor | None

    def __init__(
        self, likelihood: Likelihood, options: Noise | None = None, *, seed: int = 0
    ) -> None:
        super().__init__()
        self.likelihood, self.options, self.seed = likelihood, options or Noise(), seed
        self.averages_parts = likelihood.averages_parts
        self.register_buffer("noise", None)
        self.register_buffer("before", None)

    def fits(self, num_members: int) -> list[list[int]]:
        """One member after the other."""
        return [[index] for index in range(num_members)]

    def check(self, ensemble: Ensemble) -> str | None:
        """Refuse members that share parameters; say that one member has none before it."""
        if ensemble.shares_parameters:
            raise ValueError(
                "greedy trains members one after the other, but those of a "
                f"{type(ensemble).__name__} share parameters; use cross-entropy"
            )
        said = self.likelihood.check(ensemble)
        return ALONE if ensemble.num_members == 1 and self.options.scale != 0 else said

    def prepare(self, images: TrainingImages, context: Sequence[Ensemble] = ()) -> None:
        """Draw the noise, and keep what the members before made of it."""
        self.likelihood.prepare(images, context)
        if self.options.scale == 0 or not context:
            return
        shape = next(iter(images)).shape[1:]
        generator = torch.Generator().manual_seed(self.seed)
        drawn = torch.randn((self.options.images, *shape), generator=generator)
        self.noise = drawn * self.options.deviation
        self.before = torch.cat([probabilities(ensemble, self.noise) for ensemble in context])

    def forward(self, ensemble: Ensemble, images: Images, targets: Targets) -> ObjectiveValue:
        """The likelihood, and how little each member differs from those before it."""
        value = self.likelihood(ensemble, images, targets)
        if self.before is None or self.noise is None:
            return value
        parts = 1 if self.step is None else self.step.part.count  # each takes the noise of all
        count = min(images.shape[-4] * parts, len(self.noise))
        start = 0 if self.step is None else self.step.number * count
        chosen = torch.arange(start, start + count, device=self.noise.device) % len(self.noise)
        norms = [m for m in ensemble.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
        with setting(norms, "training", False):
            logits = ensemble(self.noise[chosen].to(images))
        probs = logits.to(torch.promote_types(logits.dtype, torch.float32)).softmax(-1)
        energies = likeness(probs, self.before[:, chosen].to(probs), self.options.scale)
        return ObjectiveValue(
            value.loss + self.likelihood.reduce(energies), value.values + energies.detach()
        )


@torch.no_grad()
def probabilities(
    ensemble: Ensemble, images: Float[Tensor, "noise channels height width"]
) -> Float[Tensor, "members noise classes"]:
    """What an ensemble in evaluation mode makes of images, a batch at a time, on the CPU."""
    training, device = ensemble.training, next(ensemble.parameters()).device
    ensemble.eval()
    parts = [ensemble(part.to(device)).float().softmax(-1).cpu() for part in images.split(BATCH)]
    ensemble.train(training)
    return torch.cat(parts, dim=1)


def likeness(
    probs: Float[Tensor, "members noise classes"],
    before: Float[Tensor, "earlier noise classes"],
    scale: float,
) -> Float[Tensor, "members"]:
    r"""How like each member is to those before it, :math:`\ln \sum_j \exp(-\mathrm{scale}\, d_j)`.

    :math:`d_j` is the mean over the noise of the squared distance of the probabilities, in [0, 2].

    Example:
        >>> import torch
        >>> from deepens.ensembles.objectives.greedy import likeness
        >>> one = torch.tensor([[[1.0, 0.0]]])
        >>> other = torch.tensor([[[0.0, 1.0]]])
        >>> likeness(one, one, 3.0).item(), likeness(one, other, 3.0).item()
        (0.0, -6.0)
    """
    distances = (probs[:, None] - before[None]).square().sum(-1).mean(-1)
    return (-scale * distances).logsumexp(1)
