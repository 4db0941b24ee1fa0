"""Packed ensembles: slim members, each a narrow version of the network, side by side."""

from collections.abc import Sequence
from fractions import Fraction

from torch import nn

from ...options import Execution, Packed
from ..independence import prove_independence
from ..networks import Factory, NetworkEnsemble, draw
from ..surgery import copied
from .drawing import redraw
from .slim import Plan


class PackedEnsemble(NetworkEnsemble):
    r"""M slim members, together about as expensive as :math:`\alpha^2 / (M \gamma)` networks.

    The paper widens a network by alpha and splits its convolutions into M gamma groups. Seen the
    other way, each member is the network at :math:`\alpha / M` of its widths with gamma groups in
    its interior convolutions. All members see the whole image, and share nothing, which is proved
    at construction (:func:`~..independence.prove_independence`).

    Narrowed is every width but the image's channels, the class scores and what a convolution with
    ``fixed_width`` returns, by one rule (:class:`~.widths.Widths`); depthwise convolutions stay
    depthwise, and attention keeps its number of heads. Convolutions take gamma groups, but those
    that read the image, depthwise ones, 1x1 convolutions of a shortcut and those of squeeze-and-
    excitation. Each member is drawn under its own seed in the likeness of the network's
    initialisation, scaled to the fan-in of a group.

    Args:
        model: Builds one plain network, of any kind; or is one, freshly initialised, of whose
            weights members take the distribution only: just M = alpha = gamma = 1 keeps them.
        seeds: One seed per member.
        options: alpha, gamma and the execution.
        image_shape: Channels, height and width of an image.
        num_members: M, where only some of the members are built here; as many as seeds otherwise.

    Attributes:
        rounding: From each original width that was rounded up to the exact and the new width.

    Raises:
        ValueError: Bad seeds; a module that cannot be narrowed, which is named; a width that
            rounding would widen by more than 25 %, with the smallest alpha that works; gamma > 1
            without an interior convolution.

    Example:
        >>> import torch
        >>> from deepens.ensembles import PackedEnsemble
        >>> from deepens.ensembles.backbones import build
        >>> factory = lambda: build("resnet8", num_classes=10, channels=3, image_size=32)
        >>> ensemble = PackedEnsemble(factory, seeds=[1, 2, 3, 4], image_shape=(3, 32, 32))
        >>> ensemble(torch.zeros(5, 3, 32, 32)).shape
        torch.Size([4, 5, 10])
        >>> ensemble.member(0).head.in_features, factory().head.in_features
        (32, 64)

    Reference:
        Laurent et al. (2023), arXiv:2210.09184. Deviations: 1x1 convolutions of shortcuts take no
        gamma; widths are rounded up, by at most 25 %, and reported; attention (Transformers are
        not in the paper) is narrowed head by head.
    """

    def __init__(
        self,
        model: nn.Module | Factory,
        *,
        seeds: Sequence[int],
        options: Packed | None = None,
        image_shape: tuple[int, int, int] = (3, 224, 224),
        num_members: int | None = None,
    ) -> None:
        options = options or Packed()
        members = len(seeds) if num_members is None else num_members
        if members < max(1, len(seeds)):
            raise ValueError(
                f"num_members must be >= {max(1, len(seeds))}, the number of seeds, got {members}"
            )
        sized = isinstance(image_shape, tuple | list) and len(image_shape) == 3
        if not sized or min(image_shape) < 1:
            raise ValueError(
                f"image_shape must be three sizes >= 1 (channels, height, width), got {image_shape}"
            )
        whole = members == 1 and options.alpha == 1 and options.gamma == 1
        plan: Plan | None = None
        built: set[nn.Module] = set()

        def slim() -> nn.Module:
            nonlocal plan
            network = copied(model) if isinstance(model, nn.Module) else model()
            if network in built:
                raise ValueError("model must build a new network at each call")
            built.add(network)
            alpha, gamma = Fraction(options.alpha).limit_denominator(1000), options.gamma
            plan = plan or Plan.of(
                network, num_members=members, alpha=alpha, gamma=gamma, image_shape=image_shape
            )
            narrowed = plan.narrow(network, image_shape)
            return redraw(narrowed) if isinstance(model, nn.Module) and not whole else narrowed

        networks = [draw(slim, seed) for seed in seeds]
        super().__init__(networks, seeds=seeds, execution=options.execution)
        self.image_shape = image_shape
        self.rounding = plan.rounding() if plan is not None else {}
        prove_independence(self, image_shape)


def pack(
    model: nn.Module | Factory,
    num_members: int = 4,
    *,
    alpha: float = 2.0,
    gamma: int = 1,
    image_shape: tuple[int, int, int] = (3, 224, 224),
    seed: int = 0,
    execution: Execution = "loop",
) -> PackedEnsemble:
    """Turn a network into a packed ensemble.

    Args:
        model: As of :class:`PackedEnsemble`; a network comes out unchanged.
        num_members: M, >= 1.
        alpha: Width of all members together, in widths of the network.
        gamma: Groups of the interior convolutions of each member.
        image_shape: Channels, height and width of an image.
        seed: Of the first member; the others follow.
        execution: How members are evaluated.

    Raises:
        ValueError: As :class:`PackedEnsemble` does.

    Example:
        >>> from torch import nn
        >>> from deepens.ensembles import pack
        >>> pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        >>> model = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), pool, nn.Linear(8, 5))
        >>> pack(model, 4, alpha=2.0, image_shape=(1, 8, 8)).member(0).body[0]
        Conv2d(1, 4, kernel_size=(3, 3), stride=(1, 1))
    """
    if not isinstance(num_members, int) or num_members < 1:
        raise ValueError(f"num_members must be a whole number >= 1, got {num_members!r}")
    if not callable(model):
        raise ValueError(f"model must be an nn.Module or a function that builds one, got {model!r}")
    return PackedEnsemble(
        model,
        seeds=range(seed, seed + num_members),
        options=Packed(alpha=alpha, gamma=gamma, execution=execution),
        image_shape=image_shape,
    )
