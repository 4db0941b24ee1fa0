"""Different models as the stages of one cascade, on images that all of them take alike."""

from collections.abc import Sequence
from dataclasses import dataclass, fields

from torch import Tensor, nn

__all__ = ["DescribedStage", "ExpectedImages", "check_expected", "model_stages"]


@dataclass(frozen=True)
class ExpectedImages:
    """How the images are preprocessed that a model expects; None for what is not known.

    Args:
        mean: Of each channel, by which images in [0, 1] are normalised.
        std: Likewise.
        size: H and W in pixels.
    """

    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    size: tuple[int, int] | None = None


class DescribedStage:
    """A model on images, as a stage that hands the images on and says how it expects them.

    Args:
        model: From images ``[B, K, H, W]`` to logits ``[B, C]``, or ``[M, B, C]`` of an ensemble.
        expected: Its preprocessing.
    """

    def __init__(self, model: nn.Module, expected: ExpectedImages | None = None) -> None:
        self.model = model
        self.expected = expected or ExpectedImages()

    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """The images, for the next model, and this one's logits with its members first."""
        logits = self.model(images)
        return images, logits if logits.ndim == 3 else logits[None]


def model_stages(
    models: Sequence[nn.Module], expected: Sequence[ExpectedImages | None] | None = None
) -> list[DescribedStage]:
    """Return one stage per model, such as networks of growing size, on the same images.

    A model that wants other images than the others goes behind a
    :class:`~deepens.ensembles.backbones.Preprocessing`, and is then described as they are.

    Args:
        models: Networks and ensembles of the same classes, in evaluation mode.
        expected: How each expects its images; what both of two models say is compared.

    Raises:
        ValueError: If there is not one description per model, or two differ.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from deepens.ensembles.policies import Cascade, WindowPolicy, model_stages
        >>> small, large = (nn.Sequential(nn.Flatten(), nn.Linear(4, 3)) for _ in range(2))
        >>> cascade = Cascade(model_stages([small, large]), WindowPolicy([(0.0, 1.0)]), pool="last")
        >>> cascade(torch.zeros(2, 1, 2, 2)).stage.tolist()
        [2, 2]
    """
    given = [None] * len(models) if expected is None else list(expected)
    if len(given) != len(models):
        raise ValueError(
            f"expected must be one description for each of the {len(models)} models, got "
            f"{len(given)}"
        )
    stages = [DescribedStage(model, each) for model, each in zip(models, given, strict=True)]
    check_expected(stages)
    return stages


def check_expected(stages: Sequence[object]) -> None:
    """Refuse stages that say that they expect images of different preprocessing.

    Args:
        stages: Any; only those that are described are compared.

    Raises:
        ValueError: If two differ in what both say.
    """
    described = [
        (number, stage.expected)
        for number, stage in enumerate(stages, start=1)
        if isinstance(stage, DescribedStage)
    ]
    for name in (field.name for field in fields(ExpectedImages)):
        said = [(number, getattr(expected, name)) for number, expected in described]
        said = [(number, value) for number, value in said if value is not None]
        for number, value in said[1:]:
            if value != said[0][1]:
                raise ValueError(
                    f"stages must expect the same images, but stage {said[0][0]} expects {name} "
                    f"{said[0][1]}, and stage {number} {value}: put a Preprocessing before one"
                )
