"""What a pre-trained network expects of its images: its own normalisation and size."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from .network import Images


@dataclass(frozen=True)
class Normalisation:
    """Mean and standard deviation of a normalisation, ``(image - mean) / std`` of [0, 1] images.

    Raises:
        ValueError: If the lengths differ or a deviation is not above 0.

    Example:
        >>> from deepens.ensembles.backbones import Normalisation
        >>> Normalisation(mean=(0.1307,), std=(0.3081,))
        Normalisation(mean=(0.1307,), std=(0.3081,))
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.std) != len(self.mean):
            raise ValueError(
                f"std must have as many entries as mean ({len(self.mean)}), got {len(self.std)}"
            )
        if not all(deviation > 0 for deviation in self.std):
            raise ValueError(f"std must be > 0 in every channel, got {self.std}")


class Preprocessing(nn.Module):
    """Resize images, and replace the data's normalisation by a network's.

    ``y = x * (std / std') + (mean - mean') / std'``

    where mean and std are the data's, the primed ones the network's; from
    ``[batch, channels, height, width]`` to ``[batch, 3, size, size]``. Grey images become three
    equal channels before the network's normalisation.

    Args:
        given: How the incoming images were normalised; None for images in [0, 1].
        expected: The network's normalisation.
        channels: Channels of the incoming images, 1 or as many as the network expects.
        size: Side of the outgoing images in pixels.
        interpolation: ``"bilinear"`` or ``"bicubic"``.

    Raises:
        ValueError: If ``given`` has another number of channels than ``channels``, or
            ``interpolation`` is unknown.

    Example:
        >>> import torch
        >>> from deepens.ensembles.backbones import Normalisation, Preprocessing
        >>> expected = Normalisation(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
        >>> preprocessing = Preprocessing(None, expected, channels=1, size=4)
        >>> preprocessing(torch.ones(2, 1, 8, 8)).shape
        torch.Size([2, 3, 4, 4])
    """

    scale: Tensor
    shift: Tensor

    def __init__(
        self,
        given: Normalisation | None,
        expected: Normalisation,
        *,
        channels: int,
        size: int,
        interpolation: str = "bilinear",
    ) -> None:
        super().__init__()
        if interpolation not in ("bilinear", "bicubic"):
            raise ValueError(
                f"interpolation must be 'bilinear' or 'bicubic', got {interpolation!r}"
            )
        if channels not in (1, len(expected.mean)):
            raise ValueError(f"channels must be 1 or {len(expected.mean)}, got {channels}")
        if given is None:
            given = Normalisation(mean=(0.0,) * channels, std=(1.0,) * channels)
        if len(given.mean) != channels:
            raise ValueError(
                f"normalisation must have one mean per channel ({channels}), got {len(given.mean)}"
            )
        # In double precision, so that the two normalisations cancel where they agree.
        mean, std, wanted_mean, wanted_std = (
            torch.tensor(values, dtype=torch.float64)
            for values in (given.mean, given.std, expected.mean, expected.std)
        )
        dtype = torch.get_default_dtype()
        self.size, self.interpolation = size, interpolation
        self.register_buffer("scale", (std / wanted_std).to(dtype)[:, None, None])
        self.register_buffer("shift", ((mean - wanted_mean) / wanted_std).to(dtype)[:, None, None])

    def forward(self, images: Images) -> Float[Tensor, "batch expected_channels size size"]:
        """Return the images as the network expects them."""
        if images.shape[-2:] != (self.size, self.size):
            # Antialiasing gives the weights that the networks' images were resized with; without
            # it torch's bicubic kernel differs even where images grow.
            images = F.interpolate(
                images, size=(self.size, self.size), mode=self.interpolation, antialias=True
            )
        return images * self.scale + self.shift
