"""Deep ensembles: independent networks."""

from collections.abc import Sequence
from typing import final

from ..options import Execution
from .networks import Factory, NetworkEnsemble, draw


@final
class DeepEnsemble(NetworkEnsemble):
    r"""M independent networks, each from its own initialisation and batch order.

    The members are combined as a uniform mixture,
    :math:`p(y \mid x) = M^{-1} \sum_m p_{\theta_m}(y \mid x)`.

    Each member is built by calling the factory under its own seed; weights that the factory loads
    are a shared starting point. A module that is no :class:`Network` counts as a body whose
    features are its logits.

    Args:
        factory: Builds one member; or one factory per member, for different architectures.
        seeds: One seed per member.
        execution: How the members are evaluated, see :class:`~.networks.NetworkEnsemble`.

    Raises:
        ValueError: Bad seeds, another number of factories than seeds, members that share a
            parameter, or an execution that they cannot have.

    Example:
        >>> import torch
        >>> from deepens.ensembles import DeepEnsemble
        >>> from deepens.ensembles.backbones import build
        >>> factory = lambda: build("small-cnn", num_classes=8, channels=1, image_size=8)
        >>> ensemble = DeepEnsemble(factory, seeds=[1, 2, 3])
        >>> ensemble(torch.zeros(5, 1, 8, 8)).shape
        torch.Size([3, 5, 8])
        >>> ensemble(torch.zeros(5, 1, 8, 8), members=[2]).shape
        torch.Size([1, 5, 8])

    Reference:
        Lakshminarayanan, Pritzel & Blundell (2017), arXiv:1612.01474. Deviation: the paper's
        adversarial training is left out, as nearly everybody leaves it out.
    """

    def __init__(
        self,
        factory: Factory | Sequence[Factory],
        *,
        seeds: Sequence[int],
        execution: Execution = "loop",
    ) -> None:
        factories = [factory] * len(seeds) if callable(factory) else list(factory)
        if len(factories) != len(seeds):
            raise ValueError(
                f"factory must be one factory or one for each of the {len(seeds)} seeds, "
                f"got {len(factories)}"
            )
        networks = [draw(build, seed) for build, seed in zip(factories, seeds, strict=True)]
        super().__init__(networks, seeds=seeds, execution=execution)
