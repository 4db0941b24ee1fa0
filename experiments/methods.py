"""The only registry: from names to ensembles, objectives and the methods that are compared."""

import dataclasses
import difflib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import nn

from ..datasets import Splits
from ..ensembles import CrossEntropy, DeepEnsemble, Ensemble, Objective
from ..ensembles.backbones import Normalisation, build
from .configuration import CompareConfig, Recipe, TrainConfig
from .macs import count_macs
from .scaling import match_width

Factory = Callable[[], nn.Module]

ENSEMBLES: dict[str, Callable[[Factory, Sequence[int], TrainConfig], Ensemble]] = {
    "deep": lambda factory, seeds, config: DeepEnsemble(factory, seeds=seeds),
}

OBJECTIVES: dict[str, Callable[[Recipe], Objective]] = {
    "cross-entropy": lambda config: CrossEntropy(),
}


@dataclass(frozen=True)
class ImageFormat:
    """What networks are built for, and how images are handed to them.

    Attributes:
        classes: Names of the classes, in the order of the logits.
        channels: K, 1 or 3.
        size: H and W, in pixels.
        mean: Per channel, of the training images scaled to [0, 1].
        std: Likewise.
    """

    classes: tuple[str, ...]
    channels: int
    size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def of(cls, splits: Splits) -> "ImageFormat":
        """The format of a data set."""
        return cls(splits.classes, splits.channels, splits.image_size, splits.mean, splits.std)

    @property
    def shape(self) -> tuple[int, int, int]:
        """K, H, W."""
        return (self.channels, *self.size)


def choose(kind: str, name: str, known: Iterable[str]) -> None:
    """Refuse an unknown name with the nearest known one.

    Raises:
        ValueError: The name is not among the known.
    """
    known = sorted(known)
    if name not in known:
        raise ValueError(unknown(kind, name, known))


def unknown(kind: str, name: str, known: Sequence[str]) -> str:
    """The line that refuses an unknown name."""
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
    guess = f"did you mean {near[0]!r}? " if near else ""
    return f"unknown {kind} {name!r}; {guess}Known: {', '.join(known)}"


def derive_seed(*parts: int | str) -> int:
    """A seed in [0, 2**63) that depends on every part, the same on every machine."""
    words = [len(parts)]  # a seed sequence takes no notice of trailing zeros
    for part in parts:
        if isinstance(part, int):
            words += [part & 0xFFFFFFFF, part >> 32]
        else:
            words += [len(part), *part.encode()]
    return int(np.random.SeedSequence(words).generate_state(1, np.uint64)[0] >> np.uint64(1))


def member_seeds(config: TrainConfig) -> list[int]:
    """The seed of each member that a run trains."""
    chosen = range(config.members) if config.member is None else [config.member]
    return [derive_seed(config.seed, "member", index) for index in chosen]


def build_network(config: Recipe, form: ImageFormat, width: float | None = None) -> nn.Module:
    """One network of a recipe, from torch's generator as it stands.

    Raises:
        ValueError: An unknown backbone, or images that are not square.
    """
    height, side = form.size
    if height != side:
        raise ValueError(f"images must be square for {config.backbone}, got {height} x {side}")
    return build(
        config.backbone,
        num_classes=len(form.classes),
        channels=form.channels,
        image_size=side,
        width=config.width if width is None else width,
        depth=config.depth,
        normalisation=Normalisation(form.mean, form.std),
    )


def build_ensemble(config: TrainConfig, form: ImageFormat) -> Ensemble:
    """The ensemble of a run, freshly initialised from the run's seeds.

    Raises:
        ValueError: An unknown family, or an unknown backbone.
    """
    choose("ensemble", config.ensemble, ENSEMBLES)
    return ENSEMBLES[config.ensemble](
        lambda: build_network(config, form), member_seeds(config), config
    )


def build_objective(config: Recipe) -> Objective:
    """The objective of a recipe.

    Raises:
        ValueError: An unknown objective.
    """
    choose("objective", config.objective, OBJECTIVES)
    return OBJECTIVES[config.objective](config)


@dataclass(frozen=True)
class Method:
    """One method of a comparison.

    Attributes:
        name: As in ``--methods``.
        description: For people; ``{members}`` and ``{backbone}`` are filled in.
        changes: From the comparison and the image format to the options that make the method,
            and a note for the report.
        ensemble: Whether it is an ensemble, to be judged against the single model of its cost.
    """

    name: str
    description: str
    changes: Callable[[CompareConfig, ImageFormat], tuple[dict[str, Any], str]]
    ensemble: bool = False


def _wide(config: CompareConfig, form: ImageFormat) -> tuple[dict[str, Any], str]:
    if ":" in config.backbone:
        raise ValueError(
            f"the method wide needs a backbone of ours, which can be widened, not "
            f"{config.backbone}; use --methods single,deep"
        )
    target = config.members * count_macs(build_network(config, form), form.shape)
    match = match_width(
        lambda width: build_network(config, form, config.width * width),
        target,
        form.shape,
        tolerance=COST_TOLERANCE,
    )
    width = config.width * match.width
    if not match.within_tolerance:
        raise ValueError(
            f"no width of {config.backbone} comes within 2 % of the ensemble's cost: the nearest, "
            f"{width:.4g}, is off by {match.relative_error:+.1%}; change --members or --width, or "
            "leave wide out of --methods"
        )
    note = (
        f"wide is {config.backbone} at width {width:.4g}: {match.macs / 1e6:.4g} M MACs an image "
        f"against the ensemble's {target / 1e6:.4g} M ({match.relative_error:+.2%})"
    )
    return {"members": 1, "width": width}, note


METHODS: dict[str, Method] = {
    method.name: method
    for method in [
        Method("single", "one {backbone}", lambda config, form: ({"members": 1}, "")),
        Method("wide", "one {backbone}, widened to the ensemble's inference MACs", _wide),
        Method(
            "deep",
            "deep ensemble of {members} {backbone}",
            lambda config, form: ({"members": config.members}, ""),
            ensemble=True,
        ),
    ]
}

COST_TOLERANCE = 0.02
"""Largest relative difference in inference MACs between models that count as of equal cost."""


def training_config(
    config: CompareConfig, method: str, replicate: int, changes: dict[str, Any]
) -> TrainConfig:
    """The run of one method's replicate; no two share a member's seed."""
    shared = {f.name: getattr(config, f.name) for f in dataclasses.fields(Recipe)}
    shared["seed"] = derive_seed(config.seed, method, replicate)
    shared["out"] = str(config.directory() / f"{method}-{replicate}")
    return TrainConfig(**(shared | changes))
