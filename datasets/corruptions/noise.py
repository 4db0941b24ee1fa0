"""Noise: every value of an image is changed by itself."""

import torch

from .draws import Draws, Images


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
