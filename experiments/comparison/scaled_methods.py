"""Single models of a comparison, scaled until they cost what an ensemble costs."""

import dataclasses
from typing import Any

from torch import nn

from ...datasets.image_format import ImageFormat
from ...ensembles.backbones import architecture_only
from ...ensembles.backbones.attention import has_attention
from ...ensembles.backbones.family_steps import family_steps
from ..config import CompareConfig, Recipe
from ..cost.cost_search import build_light
from ..cost.macs import count_macs
from ..cost.measurement import COST_TOLERANCE
from ..cost.scaling import Match, match_depth, match_resolution, match_width, nearest_step
from ..training.building import build_network

Changes = tuple[dict[str, Any], str]
"""Options that make a method, and a note for the report."""


def wider(name: str, factor: int | float, config: CompareConfig, form: ImageFormat) -> Changes:
    """One network, its widths scaled until it costs ``factor`` times its MACs.

    Args:
        name: The method, as it is called in messages.
        factor: K.
        config: The comparison.
        form: The images.

    Raises:
        ValueError: A published network, or one that no width brings within 2 % of the cost.
    """
    target = scaled_macs(factor, config, form)
    width, note = width_of_cost(name, config, form, target, f"{factor} times its own")
    options = {"width": width, "backbone": config.backbone, "optimizer": config.optimizer}
    return {"members": 1} | options, note


def width_of_cost(
    name: str, config: Recipe, form: ImageFormat, target: int, whose: str
) -> tuple[float, str]:
    """The width at which a recipe's network costs so many MACs, and a note for the report.

    Raises:
        ValueError: A published network, or one that no width brings within 2 % of the cost.
    """
    _needs_own(name, "widened", config.backbone)
    match = match_width(
        lambda width: build_network(config, form, config.width * width),
        target,
        form.shape,
        tolerance=COST_TOLERANCE,
    )
    width = config.width * match.width
    if not match.within_tolerance:
        raise ValueError(
            f"no width of {config.backbone} comes within 2 % of {name}'s cost: the nearest, "
            f"{width:.4g}, is off by {match.relative_error:+.1%}; change --members or --width, "
            f"or leave {name} out of --methods"
        )
    return width, _note(name, f"{config.backbone} at width {width:.4g}", match, target, whose)


def deeper(name: str, factor: int | float, config: CompareConfig, form: ImageFormat) -> Changes:
    """One network, of more blocks or fewer, and its widths corrected to ``factor`` times its MACs.

    Args:
        name: The method, as it is called in messages.
        factor: K.
        config: The comparison.
        form: The images.

    Raises:
        ValueError: A published network, or one that comes within 2 % of the cost at no depth.
    """
    _needs_own(name, "deepened", config.backbone)
    target = scaled_macs(factor, config, form)

    def build(depth: float, width: float) -> nn.Module:
        scaled = dataclasses.replace(config, depth=config.depth * depth, width=config.width * width)
        return build_network(scaled, form)

    match = match_depth(build, target, form.shape, tolerance=COST_TOLERANCE)
    depth, width = config.depth * match.depth, config.width * match.width
    if not match.within_tolerance:
        raise ValueError(
            f"no depth of {config.backbone} comes within 2 % of {name}'s cost: the nearest, "
            f"{depth:.4g} at width {width:.4g}, is off by {match.relative_error:+.1%}; change "
            f"--members or --width, or leave {name} out of --methods"
        )
    what = f"{config.backbone} at depth {depth:.4g} and width {width:.4g}"
    if match.depth == 1 and match.width != 1:
        what += " (no other depth is nearer)"
    note = _note(name, what, match, target, f"{factor} times its own")
    return {"members": 1, "depth": depth, "width": width}, note


def finer(name: str, factor: int | float, config: CompareConfig, form: ImageFormat) -> Changes:
    """The network itself on larger or smaller images, at nearly ``factor`` times its MACs.

    Args:
        name: The method, as it is called in messages.
        factor: K.
        config: The comparison.
        form: The images as they are.

    Raises:
        ValueError: A pre-trained network, which brings all images to a size of its own.
    """
    if "@" in config.backbone:
        raise ValueError(
            f"the method {name} needs a network without weights, which takes images of any size; "
            f"{config.backbone} brings all to one size; leave {name} out of --methods"
        )
    target = scaled_macs(factor, config, form)
    own = build_light(lambda: build_network(config, form))
    stem = _first_convolution(own)

    def build(side: int) -> nn.Module:
        network = build_network(config, dataclasses.replace(form, size=(side, side)))
        if _stem_shape(_first_convolution(network)) != _stem_shape(stem):
            raise ValueError(f"{config.backbone} has another stem for images of {side} pixels")
        return network

    patches = has_attention(own) and stem is not None and stem.kernel_size == stem.stride
    match = match_resolution(
        build,
        target,
        form.shape,
        step=stem.stride[0] if patches and stem is not None else 1,
        tolerance=COST_TOLERANCE,
    )
    side = match.image_size or form.size[0]
    options: dict[str, Any] = {"members": 1, "image_size": side}
    what = f"{config.backbone} on images of {side} pixels a side"
    # Pixels of augmentation are a share of the image, which stays.
    for option in ("crop_padding", "cutout"):
        pixels = round(getattr(config, option) * side / form.size[0])
        if pixels != getattr(config, option):
            options[option] = pixels
            what += f", with {option} {pixels}"
    return options, _note(name, what, match, target, f"{factor} times its own")


def next_step(name: str, factor: int | float, config: CompareConfig, form: ImageFormat) -> Changes:
    """The network of the same family whose MACs are nearest to ``factor`` times the backbone's.

    Args:
        name: The method, as it is called in messages.
        factor: K.
        config: The comparison.
        form: The images.

    Raises:
        ValueError: A network whose family has no other size.
    """
    try:
        names = family_steps(config.backbone)
    except ValueError:
        raise ValueError(
            f"the method {name} needs a backbone whose family comes in several sizes, which "
            f"{config.backbone} does not; choose one with --backbone, such as resnet20 or "
            f"vit-micro/4, or leave {name} out of --methods"
        ) from None
    target = scaled_macs(factor, config, form)
    with architecture_only():
        match = nearest_step(
            lambda step: build_network(dataclasses.replace(config, backbone=step), form),
            names,
            target,
            form.shape,
            tolerance=COST_TOLERANCE,
        )
    whose = f"{factor} times {config.backbone}'s"
    note = _note(name, str(match.name), match, target, whose)
    return {"members": 1, "backbone": match.name}, note


def longer(name: str, factor: int | float, config: CompareConfig, form: ImageFormat) -> Changes:
    """The network itself, trained ``factor`` times as long: for what so many members are trained.

    Args:
        name: The method, as it is called in messages.
        factor: K; K times the epochs are whole.
        config: The comparison.
        form: The images, which do not matter.

    Raises:
        ValueError: K times the epochs are no whole number.
    """
    exact = factor * config.epochs
    epochs = round(exact)
    if epochs < 1 or abs(exact - epochs) > 1e-6:
        raise ValueError(
            f"the method {name} needs whole epochs, got {factor} times {config.epochs} = "
            f"{exact:g}; change --epochs, or leave {name} out of --methods"
        )
    note = f"{name} is {config.backbone}, trained for {epochs} epochs: {factor} times single's"
    return {"members": 1, "epochs": epochs}, note


def scaled_macs(factor: int | float, config: Recipe, form: ImageFormat) -> int:
    """So many times the MACs of a recipe's network."""
    with architecture_only():
        network = build_light(lambda: build_network(config, form))
    return max(1, round(factor * count_macs(network, form.shape)))


def _needs_own(name: str, what: str, backbone: str) -> None:
    if ":" in backbone:
        raise ValueError(
            f"the method {name} needs a backbone of ours, which can be {what}, not {backbone}; "
            f"leave {name} out of --methods, or take its family's steps (next) or larger images "
            "(finer)"
        )


def _note(name: str, what: str, match: Match, target: int, whose: str) -> str:
    note = (
        f"{name} is {what}: {match.macs / 1e6:.4g} M MACs an image against {target / 1e6:.4g} M, "
        f"{whose} ({match.relative_error:+.2%})"
    )
    if not match.within_tolerance:
        note += f"; it is not within {COST_TOLERANCE:.0%}: no comparison at equal cost"
    return note


def _first_convolution(network: nn.Module) -> nn.Conv2d | None:
    return next((part for part in network.modules() if isinstance(part, nn.Conv2d)), None)


def _stem_shape(stem: nn.Conv2d | None) -> object:
    return stem and (stem.kernel_size, stem.stride)
