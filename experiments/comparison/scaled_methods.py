"""Compute-matched single models: width, depth, resolution, family or training scaled to a cost."""

import dataclasses
from typing import Any

from torch import nn

from ...datasets.image_format import ImageFormat
from ...ensembles.backbones import architecture_only
from ...ensembles.backbones.attention import has_attention
from ...ensembles.backbones.family_steps import family_steps
from ..config import COST_TOLERANCE, CompareConfig, Recipe
from ..cost.cost_search import build_light
from ..cost.macs import count_macs
from ..cost.scaling import Match, match_depth, match_resolution, match_width, nearest_step
from ..training.building import build_network
from .method_names import Changes, Method


def scale_wide(method: Method, config: CompareConfig, image_format: ImageFormat) -> Changes:
    """One network whose width is scaled until it has K times its MACs, within the tolerance."""
    needs_own(method.name, "widened", config.backbone)
    target, whose = _target(method, config, image_format)
    tolerance = config.cost_tolerance
    return scale_width(method.name, config, image_format, target, whose, tolerance=tolerance)


def scale_width(
    name: str,
    config: Recipe,
    image_format: ImageFormat,
    target: int,
    whose: str,
    *,
    tolerance: float = COST_TOLERANCE,
) -> Changes:
    """One network of a recipe, at the width at which it has the MACs that are ``whose`` cost."""
    match = match_width(
        lambda width: build_network(config, image_format, config.width * width),
        target,
        image_format.shape,
        tolerance=_search(tolerance),
    )
    width = config.width * match.width
    if abs(match.relative_error) > tolerance:
        raise _missed(name, "width", config.backbone, f"{width:.4g}", match, tolerance)
    options = {"width": width, "backbone": config.backbone, "optimizer": config.optimizer}
    what = f"{config.backbone} at width {width:.4g}"
    note = _note(name, what, match, target, whose, tolerance)
    return {"members": 1} | options, note


def scale_deeper(method: Method, config: CompareConfig, image_format: ImageFormat) -> Changes:
    """One network of more or fewer blocks, its width corrected until it has K times its MACs."""
    needs_own(method.name, "deepened", config.backbone)
    target, whose = _target(method, config, image_format)

    def build(depth: float, width: float) -> nn.Module:
        scaled = dataclasses.replace(config, depth=config.depth * depth, width=config.width * width)
        return build_network(scaled, image_format)

    tolerance = config.cost_tolerance
    match = match_depth(build, target, image_format.shape, tolerance=_search(tolerance))
    depth, width = config.depth * match.depth, config.width * match.width
    if abs(match.relative_error) > tolerance:
        nearest = f"{depth:.4g} at width {width:.4g}"
        raise _missed(method.name, "depth", config.backbone, nearest, match, tolerance)
    what = f"{config.backbone} at depth {depth:.4g} and width {width:.4g}"
    if match.depth == 1 and match.width != 1:
        what += " (no other depth is nearer)"
    options = {"members": 1, "depth": depth, "width": width}
    return options, _note(method.name, what, match, target, whose, tolerance)


def scale_resolution(method: Method, config: CompareConfig, image_format: ImageFormat) -> Changes:
    """The network itself on larger or smaller images, at nearly K times its MACs."""
    if "@" in config.backbone:
        raise ValueError(
            f"the method {method.name} needs a network without pre-trained weights, which takes "
            f"images of any size; {config.backbone} resizes all images to one size; leave "
            f"{method.name} out of --methods"
        )
    target, whose = _target(method, config, image_format)
    own = build_light(lambda: build_network(config, image_format))
    stem = _stem(own)

    def build(side: int) -> nn.Module:
        resized = dataclasses.replace(image_format, size=(side, side))
        network = build_network(config, resized)
        if _stem(network) != stem:
            raise ValueError(f"{config.backbone} has another stem for images of {side} pixels")
        return network

    step = stem[1][0] if stem and has_attention(own) and stem[0] == stem[1] else 1  # of patches
    match = match_resolution(build, target, image_format.shape, step=step)
    side = match.image_size or image_format.size[0]
    options: dict[str, Any] = {"members": 1, "image_size": side}
    what = f"{config.backbone} on images of {side} x {side} pixels"
    for option in ("crop_padding", "cutout"):  # a fraction of the image, which stays the same
        pixels = round(getattr(config, option) * side / image_format.size[0])
        if pixels != getattr(config, option):
            options[option] = pixels
            what += f", with {option} {pixels}"
    return options, _note(method.name, what, match, target, whose, config.cost_tolerance)


def scale_family(method: Method, config: CompareConfig, image_format: ImageFormat) -> Changes:
    """The network of the same family whose MACs are nearest to K times those of the backbone."""
    try:
        names = family_steps(config.backbone)
    except ValueError:
        raise ValueError(
            f"the method {method.name} needs a backbone whose family comes in several sizes, which "
            f"{config.backbone} does not; choose one with --backbone, such as resnet20 or "
            f"vit-micro/4, or leave {method.name} out of --methods"
        ) from None
    target, _ = _target(method, config, image_format)
    with architecture_only():
        match = nearest_step(
            lambda step: build_network(dataclasses.replace(config, backbone=step), image_format),
            names,
            target,
            image_format.shape,
        )
    whose = f"{method.factor(config)} times {config.backbone}'s"
    note = _note(method.name, str(match.name), match, target, whose, config.cost_tolerance)
    return {"members": 1, "backbone": match.name}, note


def scale_epochs(method: Method, config: CompareConfig, image_format: ImageFormat) -> Changes:
    """The network itself, trained for K times the epochs: the training compute of K members."""
    factor = method.factor(config)
    exact, epochs = factor * config.epochs, round(factor * config.epochs)
    if epochs < 1 or abs(exact - epochs) > 1e-6:
        raise ValueError(
            f"the method {method.name} needs whole epochs, got {factor} times {config.epochs} = "
            f"{exact:g}; change --epochs, or leave {method.name} out of --methods"
        )
    trained = f"trained for {epochs} epochs: {factor} times those of single"
    return {"members": 1, "epochs": epochs}, f"{method.name} is {config.backbone}, {trained}"


def _target(method: Method, config: CompareConfig, image_format: ImageFormat) -> tuple[int, str]:
    """K times the MACs of the comparison's network, and how the note refers to them."""
    factor = method.factor(config)
    with architecture_only():
        network = build_light(lambda: build_network(config, image_format))
    target = max(1, round(factor * count_macs(network, image_format.shape)))
    return target, f"{factor} times its own"


def needs_own(name: str, what: str, backbone: str) -> None:
    """Refuse a published network where a method widens or deepens its own."""
    if ":" in backbone:
        raise ValueError(
            f"the method {name} needs a built-in backbone, which can be {what}, not {backbone}; "
            f"leave {name} out of --methods, or use the sizes of its family (family) or another "
            "resolution (resolution)"
        )


def _search(tolerance: float) -> float:
    """As precise as ever, so that a larger tolerance makes no other network of a finished run."""
    return min(tolerance, COST_TOLERANCE)


def _missed(
    name: str, what: str, backbone: str, nearest: str, match: Match, tolerance: float
) -> ValueError:
    return ValueError(
        f"no {what} of {backbone} comes within {100 * tolerance:g} % of {name}'s cost: the "
        f"nearest, {nearest}, is off by {match.relative_error:+.1%}; change --members, --width or "
        f"--cost-tolerance, or leave {name} out of --methods"
    )


def _note(name: str, what: str, match: Match, target: int, whose: str, tolerance: float) -> str:
    note = (
        f"{name} is {what}: {match.macs / 1e6:.4g} M MACs per image against {target / 1e6:.4g} M, "
        f"{whose} ({match.relative_error:+.2%})"
    )
    if abs(match.relative_error) > tolerance:
        note += f"; not within {100 * tolerance:g}%, so this is not a comparison at equal cost"
    return note


def _stem(network: nn.Module) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    """Kernel and stride of the first convolution."""
    convolutions = (part for part in network.modules() if isinstance(part, nn.Conv2d))
    return next(((part.kernel_size, part.stride) for part in convolutions), None)
