"""Random draws for corruptions, and noise: every value of an image is changed by itself."""

import dataclasses
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor

Images = Float64[Tensor, "batch channels height width"]


@dataclass(frozen=True)
class Draws:
    """Random draws of some images, each image's own whatever batch it is in.

    The stream of an image is keyed on (seed, corruption, severity, index, part), and begins anew
    with every call: a corruption which draws twice takes the second from another stage.

    Args:
        seed: Seed of the whole shifted set.
        corruption: Name of the corruption.
        severity: 1 to 5.
        indices: Index of each image in its split.
        part: Part of the corruption that draws.

    Example:
        >>> from deepens.datasets import Draws
        >>> three = Draws(0, "gaussian_noise", 1, (7, 8, 9)).normal((2,))
        >>> one = Draws(0, "gaussian_noise", 1, (8,)).normal((2,))
        >>> (three[1] == one[0]).all().item()
        True
    """

    seed: int
    corruption: str
    severity: int
    indices: tuple[int, ...]
    part: int = 0

    def normal(self, shape: tuple[int, ...]) -> Float64[Tensor, "batch ..."]:
        """Standard normal values [batch, *shape], for one image's ``shape``."""
        return self._stack(lambda stream: stream.standard_normal(shape))

    def uniform(self, shape: tuple[int, ...]) -> Float64[Tensor, "batch ..."]:
        """Values [batch, *shape] uniform in [0, 1), for one image's ``shape``."""
        return self._stack(lambda stream: stream.random(shape))

    def poisson(self, rates: Float64[Tensor, "batch *image"]) -> Float64[Tensor, "batch *image"]:
        """Counts of the given means."""
        means = iter(rates.cpu().numpy())
        return self._stack(lambda stream: stream.poisson(next(means))).double()

    def stage(self, number: int) -> "Draws":
        """The draws of another part of the same corruption, numbered from 1."""
        return dataclasses.replace(self, part=number)

    def _stack(self, draw: Callable[[np.random.Generator], np.ndarray]) -> Tensor:
        return torch.from_numpy(np.stack([draw(stream) for stream in self._streams()]))

    def _streams(self) -> Iterator[np.random.Generator]:
        kind = zlib.crc32(self.corruption.encode())
        part = (self.part,) if self.part else ()
        for index in self.indices:
            yield np.random.default_rng((self.seed, kind, self.severity, index, *part))


def gaussian_noise(images: Images, level: float, draws: Draws) -> Images:
    """Add normal noise of standard deviation ``level``, independent for every value."""
    return images + level * draws.normal(tuple(images.shape[1:])).to(images.device)


def impulse_noise(images: Images, level: float, draws: Draws) -> Images:
    """Set a fraction ``level`` of the values to 0 or 1, each equally often, channels apart."""
    # One uniform decides both: below level / 2 is pepper, from there to level is salt.
    chance = draws.uniform(tuple(images.shape[1:])).to(images.device)
    salted = torch.where(chance < level, 1.0, images)
    return torch.where(chance < level / 2, 0.0, salted)


def shot_noise(images: Images, level: float, draws: Draws) -> Images:
    """Count photons: Poisson numbers of mean ``x level``, over ``level``."""
    return (draws.poisson(images * level) / level).to(images.device)


def speckle_noise(images: Images, level: float, draws: Draws) -> Images:
    """Add to every value normal noise of ``level`` times the value."""
    return images + images * level * draws.normal(tuple(images.shape[1:])).to(images.device)
