"""MixupMP: every member trains on its own simulation of future data, made with mixup."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor
from torch.distributions import Gamma

from ..ensemble import Ensemble, Images
from ..objective import Targets, TrainingImages
from ..options import Mixup
from ..parts import Part
from .cross_entropy import CrossEntropy
from .likelihood import Examples


class MixupMP(CrossEntropy):
    r"""A martingale posterior: members fit the data and pseudo-data of their own.

    .. math::
        \tilde x = \lambda x + (1 - \lambda) x_\pi, \quad
        \tilde y = \lambda y + (1 - \lambda) y_\pi, \quad
        \lambda \sim \mathrm{Beta}(a, a) \text{ for each image},

        \ell_m = \frac{\sum_b \mathrm{CE}(x_b, y_b) + r \sum_b \mathrm{CE}(\tilde x_b, \tilde y_b)}
            {B (1 + r)}

    with coefficients and permutation from the member's own stream. r = 0 is a deep ensemble
    without pseudo-data; r = inf is a mixup ensemble, on pseudo-data alone; a -> 0 draws the images
    again. x and x~ go through the network together, unless their normalisation statistics are to be
    separate. With ``divisor="rows"`` the sum is divided by the number of rows, 2 B for 0 < r < inf,
    which is (1 + r) / 2 of the weights' sum.

    With ``weights="dirichlet"`` each training image has one weight in member m for the whole
    training: N times a Dirichlet(1, ..., 1) draw, from the member's seed; and each pseudo-image a
    weight from Gamma(r, 1) in place of the factor r. The weights of all are a Dirichlet draw up to
    their sum, which is taken at its expectation for the pseudo-data. That needs N (``prepare``) and
    the images' indices (``set_step``).

    Args:
        options: r, a, the weights, the statistics and the divisor.
        members_at_once: As in :class:`~.likelihood.Likelihood`.
        smoothing: Label smoothing, as in :class:`~.cross_entropy.CrossEntropy`; it is linear in
            the label, so that a mixed label is still two.

    Raises:
        ValueError: ``members_at_once`` below 1. When called, with Dirichlet weights: N or the
            images' indices are missing.

    Example:
        >>> import torch
        >>> from deepens.ensembles import DeepEnsemble, Mixup, MixupMP
        >>> network = lambda: torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 2))
        >>> ensemble = DeepEnsemble(network, seeds=[1, 2])
        >>> images, targets = torch.randn(3, 1, 2, 2), torch.tensor([0, 1, 1])
        >>> MixupMP(Mixup(ratio=0.5)).examples(ensemble, images, targets).images.shape
        torch.Size([2, 6, 1, 2, 2])

    Reference:
        Wu & Williamson (2024), arXiv:2403.12729. Their code has weights of one, and draws
        coefficients and permutations for each member. Deviation: it averages over the 2 B rows
        (``divisor="rows"``), we over their weights, so that a loss and its gradients keep their
        size whatever r: they are 2 / (1 + r) of theirs, 1.33 at r = 0.5 and 0.67 at r = 2, as is a
        learning rate; at r = 1 they are the same.
    """

    def __init__(
        self,
        options: Mixup | None = None,
        *,
        members_at_once: int | None = None,
        smoothing: float = 0.0,
    ) -> None:
        super().__init__(members_at_once=members_at_once, smoothing=smoothing)
        self.options = options or Mixup()
        self.shows_batch = self.options.ratio < math.inf
        self.shows_pseudo_data = self.options.ratio > 0
        self._num_images: int | None = None
        self._kept: dict[int, Tensor] = {}

    def prepare(self, images: TrainingImages, context: Sequence[Ensemble] = ()) -> None:
        """Keep N, for Dirichlet weights."""
        self._num_images = len(images)

    def examples(self, ensemble: Ensemble, images: Images, targets: Targets) -> Examples:
        """The batch, and behind it each member's pseudo-data; one batch per member."""
        ratio, batch, members = self.options.ratio, images.shape[-4], ensemble.num_members
        divisor = self._divisor(batch)
        kept = self._kept_weights(ensemble, images, members) / divisor
        if ratio == 0:
            plain = self.options.weights == "ones"
            return Examples(images, [(targets, None if plain else kept)], originals=batch)
        part = Part() if self.step is None else self.step.part
        here, total = part.rows(batch), batch * part.count
        drawn = [self.draw(ensemble, index, total, images) for index in range(members)]
        shares, partners, weights = (
            torch.stack(parts)[:, here] for parts in zip(*drawn, strict=True)
        )
        own = images if images.ndim == 5 else images.expand(members, *images.shape)
        one = targets.ndim == (2 if targets.is_floating_point() else 1)
        labels = targets.expand(members, *targets.shape) if one else targets
        everyone = part.gathered(images, -4).expand(members, total, *images.shape[-3:])
        everyones = part.gathered(targets, 0 if one else 1).expand(
            members, total, *labels.shape[2:]
        )
        others = torch.stack([y[partner] for y, partner in zip(everyones, partners, strict=True)])
        # One flat batch first: its memory order is then that of the images, member by member.
        shown = []
        for x, whole, partner, share in zip(own, everyone, partners, shares, strict=True):
            mixing = share[:, None, None, None]
            mixed = mixing * x + (1 - mixing) * whole[partner]
            shown += [mixed] if ratio == math.inf else [x, mixed]
        flat = torch.cat(shown).unflatten(0, (members, -1))
        if ratio == math.inf:
            first, second = shares / batch, (1 - shares) / batch
            return Examples(flat, [(labels, first), (others, second)], originals=0)
        weights = weights / divisor
        first = torch.cat([kept, weights * shares], 1)
        second = torch.cat([torch.zeros_like(kept), weights * (1 - shares)], 1)
        pairs = [(torch.cat([labels, labels], 1), first), (torch.cat([labels, others], 1), second)]
        return Examples(flat, pairs, batch, apart=self.options.statistics == "separate")

    def draw(
        self, ensemble: Ensemble, index: int, batch: int, images: Tensor
    ) -> tuple[Float[Tensor, "batch"], Int64[Tensor, "batch"], Float[Tensor, "batch"]]:
        """A member's mixing coefficients, partners and weights of its pseudo-images.

        ``batch`` is the whole one, of all processes, each of which uses a part of the draws.
        """
        options, device = self.options, images.device
        wide = torch.zeros((), dtype=torch.float64, device=device)
        # Checked by the options; the distributions' own checks would wait for the host.
        with ensemble.member_stream(index, "mixup", device, whole=True):
            shares = _beta(wide + options.beta, batch)
            partners = torch.randperm(batch, device=device)
            weights = (wide + options.ratio).expand(batch)
            if options.weights == "dirichlet":
                weights = Gamma(weights, wide + 1, validate_args=False).sample()
        return shares.to(images.dtype), partners, weights.to(images.dtype)

    def _divisor(self, batch: int) -> float:
        """What the sum over a batch and its pseudo-data, if any, is divided by."""
        ratio = self.options.ratio
        both = self.shows_batch and self.shows_pseudo_data
        return float(batch * (2 if both and self.options.divisor == "rows" else 1 + ratio))

    def _kept_weights(
        self, ensemble: Ensemble, images: Images, members: int
    ) -> Float[Tensor, "members batch"]:
        """Weights of the batch's own images, of mean one over the training images."""
        if self.options.weights == "ones":
            return torch.ones((members, images.shape[-4]), dtype=images.dtype, device=images.device)
        indices = None if self.step is None else self.step.indices
        if indices is None or self._num_images is None:
            raise ValueError(
                "mixup.weights 'dirichlet' keeps a weight for each training image: call prepare "
                "with them first, and set_step with the indices of each batch's images"
            )
        pairs = zip(ensemble.seeds, indices.expand(members, -1), strict=True)
        number = self._num_images
        return torch.stack([self.member_weights(seed, number, images)[own] for seed, own in pairs])

    def member_weights(self, seed: int, samples: int, images: Tensor) -> Float[Tensor, "samples"]:
        """N Dirichlet(1, ..., 1) weights, as normalised exponentials, from a member's seed."""
        if seed not in self._kept:
            key = np.random.SeedSequence((seed, *b"dirichlet")).generate_state(1, np.uint64)[0]
            generator = torch.Generator().manual_seed(int(key >> np.uint64(1)))
            drawn = torch.empty(samples, dtype=torch.float64).exponential_(generator=generator)
            self._kept[seed] = drawn / drawn.mean()
        self._kept[seed] = self._kept[seed].to(images.device, images.dtype)
        return self._kept[seed]


def _beta(shape: Float64[Tensor, ""], count: int) -> Float64[Tensor, "batch"]:
    """Draws from Beta(a, a) by the logarithms of two gamma variates, which for a small a underflow.

    A Gamma(a) variate is a Gamma(a + 1) variate times U to the power of 1 / a, U uniform.
    """
    drawn = Gamma(shape + 1, torch.ones_like(shape), validate_args=False).sample((2, count))
    uniform = 1 - torch.rand_like(drawn)  # in (0, 1]
    first, second = drawn.log() + uniform.log() / shape
    return (first - second).sigmoid()
