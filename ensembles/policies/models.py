"""Different models as the stages of one cascade, on images that all of them take alike."""

from collections.abc import Sequence
from dataclasses import dataclass, fields

from torch import Tensor, nn


@dataclass(frozen=True)
class ExpectedImages:
    """Mean and std per channel and (H, W) that a model expects; None for what is not known."""

    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    size: tuple[int, int] | None = None


class DescribedStage:
    """A model as a stage that passes its images on and states the preprocessing it expects.

    Its logits are ``[B, C]``, or ``[M, B, C]`` of an ensemble.
    """

    def __init__(self, model: nn.Module, expected: ExpectedImages | None = None) -> None:
        self.model = model
        self.expected = expected or ExpectedImages()

    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """The images, for the next model, and this one's logits ``[M, B, C]``."""
        logits = self.model(images)
        return images, logits if logits.ndim == 3 else logits[None]


def model_stages(
    models: Sequence[nn.Module], expected: Sequence[ExpectedImages | None] | None = None
) -> list[DescribedStage]:
    """Return one stage per model, such as networks of growing size, on the same images.

    A model that expects other images than the rest goes behind a
    :class:`~deepens.ensembles.backbones.Preprocessing`, and is then described like them.

    Args:
        models: Networks and ensembles of the same classes, in evaluation mode.
        expected: The preprocessing that each expects; what two models both state is compared.

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
    """Refuse described stages of which two state a different preprocessing."""
    for name in (field.name for field in fields(ExpectedImages)):
        said = [
            (number, value)
            for number, stage in enumerate(stages, start=1)
            if isinstance(stage, DescribedStage)
            and (value := getattr(stage.expected, name)) is not None
        ]
        for number, value in said[1:]:
            if value != said[0][1]:
                raise ValueError(
                    f"stages must expect the same images, but stage {said[0][0]} expects {name} "
                    f"{said[0][1]}, and stage {number} {value}: put a Preprocessing before one"
                )
