"""The only registry: from names to ensembles, objectives and the methods that are compared."""

import dataclasses
import difflib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import nn

from ..datasets import Splits
from ..ensembles import (
    CrossEntropy,
    DeepEnsemble,
    Ensemble,
    LoRAEnsemble,
    Objective,
    PackedEnsemble,
)
from ..ensembles.backbones import Normalisation, architecture_only, build
from ..ensembles.backbones.attention import has_attention
from ..ensembles.backbones.files import load_network
from .configuration import CompareConfig, Recipe, TrainConfig
from .macs import count_macs
from .scaling import match_width


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


def build_ensemble(
    config: TrainConfig, form: ImageFormat, *, base: nn.Module | None = None
) -> Ensemble:
    """The ensemble of a run, freshly initialised from the run's seeds.

    Args:
        config: The run.
        form: The images.
        base: The frozen network of a family that has one; freshly built when absent.

    Raises:
        ValueError: An unknown family or backbone, or a network that does not fit the family.
    """
    choose("ensemble", config.ensemble, FAMILIES)
    return FAMILIES[config.ensemble].build(config, form, base)


def _deep(config: TrainConfig, form: ImageFormat, base: nn.Module | None) -> Ensemble:
    return DeepEnsemble(lambda: build_network(config, form), seeds=member_seeds(config))


def _packed(config: TrainConfig, form: ImageFormat, base: nn.Module | None) -> Ensemble:
    if "@" in config.backbone:
        raise ValueError(
            f"a packed ensemble is made of narrower networks, which the pre-trained weights of "
            f"{config.backbone} do not fit; drop {config.backbone[config.backbone.index('@') :]}, "
            "or use --ensemble deep or lora"
        )
    return PackedEnsemble(
        lambda: build_network(config, form),
        seeds=member_seeds(config),
        options=config.packed,
        image_shape=form.shape,
        num_members=config.members,
    )


def _lora(config: TrainConfig, form: ImageFormat, base: nn.Module | None) -> Ensemble:
    return LoRAEnsemble(
        base or build_base(config, form), seeds=member_seeds(config), options=config.lora
    )


@dataclass(frozen=True)
class Family:
    """A family of ensembles.

    Attributes:
        build: From a run, its images and a base to the ensemble.
        has_base: Whether the members share a frozen network.
    """

    build: Callable[[TrainConfig, ImageFormat, nn.Module | None], Ensemble]
    has_base: bool = False


FAMILIES: dict[str, Family] = {
    "deep": Family(_deep),
    "packed": Family(_packed),
    "lora": Family(_lora, has_base=True),
}

OBJECTIVES: dict[str, Callable[[Recipe], Objective]] = {
    "cross-entropy": lambda config: CrossEntropy(members_at_once=config.members_at_once),
}


def build_base(config: TrainConfig, form: ImageFormat) -> nn.Module:
    """The network that a family freezes, as it is before the run trains it, if it does.

    Raises:
        ValueError: ``base`` names a file that does not hold the backbone's weights.
    """
    seed = derive_seed(config.seed, "base")
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        if config.base is None:
            return build_network(config, form)
        with architecture_only():
            network = build_network(config, form)
    load_network(network, Path(config.base))
    return network


def base_run(config: TrainConfig) -> TrainConfig | None:
    """The run that trains a family's base; None where there is no base, or one from elsewhere."""
    choose("ensemble", config.ensemble, FAMILIES)
    given = "@" in config.backbone or config.base is not None
    if not FAMILIES[config.ensemble].has_base or given:
        return None
    return dataclasses.replace(
        config,
        ensemble="deep",
        members=1,
        member=None,
        seed=derive_seed(config.seed, "base"),
        epochs=config.base_epochs or config.epochs,
        members_at_once=None,
        out=str(config.directory() / "base"),
    )


def build_objective(config: Recipe) -> Objective:
    """The objective of a recipe.

    Raises:
        ValueError: An unknown objective.
    """
    choose("objective", config.objective, OBJECTIVES)
    return OBJECTIVES[config.objective](config)


Changes = tuple[dict[str, Any], str]
"""Options that make a method, and a note for the report."""


@dataclass(frozen=True)
class Method:
    """One method of a comparison.

    Attributes:
        name: As in ``--methods``.
        description: For people; ``{members}`` and ``{backbone}`` are filled in.
        changes: From the comparison and the image format to the options that make the method,
            and a note for the report.
        ensemble: Whether it is an ensemble, to be judged against the single model of its cost.
        matched: Of an ensemble, the method that makes a single model of its cost.
    """

    name: str
    description: str
    changes: Callable[[CompareConfig, ImageFormat], Changes]
    ensemble: bool = False
    matched: str = ""


def _trained(config: CompareConfig, changes: dict[str, Any]) -> TrainConfig:
    return training_config(config, "any", 0, changes)


def _wide_as(name: str, what: str) -> Callable[[CompareConfig, ImageFormat], Changes]:
    """Make a method of the network of another method, widened to that method's MACs."""

    def changes(config: CompareConfig, form: ImageFormat) -> Changes:
        method = METHODS[name].matched
        options, _ = METHODS[name].changes(config, form)
        ensemble = _trained(config, options)
        if ":" in ensemble.backbone:
            raise ValueError(
                f"the method {method} needs a backbone of ours, which can be widened, not "
                f"{ensemble.backbone}; leave {method} out of --methods"
            )
        if name == "deep":
            target = config.members * count_macs(build_network(ensemble, form), form.shape)
        else:
            target = count_macs(build_ensemble(ensemble, form), form.shape)
        match = match_width(
            lambda width: build_network(ensemble, form, config.width * width),
            target,
            form.shape,
            tolerance=COST_TOLERANCE,
        )
        width = config.width * match.width
        if not match.within_tolerance:
            raise ValueError(
                f"no width of {ensemble.backbone} comes within 2 % of {what}'s cost: the nearest, "
                f"{width:.4g}, is off by {match.relative_error:+.1%}; change --members or --width, "
                f"or leave {method} out of --methods"
            )
        note = (
            f"{method} is {ensemble.backbone} at width {width:.4g}: {match.macs / 1e6:.4g} M MACs "
            f"an image against {what}'s {target / 1e6:.4g} M ({match.relative_error:+.2%})"
        )
        single = {"members": 1, "width": width, "backbone": ensemble.backbone}
        return single, note

    return changes


def _packed_method(config: CompareConfig, form: ImageFormat) -> Changes:
    changes = {"ensemble": "packed", "members": config.members}
    ensemble = cast(PackedEnsemble, build_ensemble(_trained(config, changes), form))
    options = config.packed
    rounded = ", ".join(
        f"{w} to {new} ({exact:.4g})" for w, (exact, new) in ensemble.rounding.items()
    )
    note = f"packed: alpha = {options.alpha:g}, M = {config.members}, gamma = {options.gamma}; " + (
        f"widths that are no whole multiple were rounded up: {rounded}"
        if rounded
        else "no width had to be rounded"
    )
    return changes, note


def _lora_method(config: CompareConfig, form: ImageFormat) -> Changes:
    backbone, note = config.backbone, ""
    if (
        config.base is None
        and "@" not in backbone
        and not has_attention(build_network(config, form))
    ):
        patch = next((p for p in PATCHES if form.size[0] % p == 0 and form.size[0] <= 8 * p), None)
        if patch is None:
            raise ValueError(
                f"the method lora needs a vision transformer, and {backbone} is none; choose one "
                f"with --backbone, such as vit-tiny/16, or leave lora out of --methods"
            )
        backbone = f"vit-micro/{patch}"
        note = f"lora uses {backbone}, since {config.backbone} has no attention; "
    changes = {"ensemble": "lora", "members": config.members, "backbone": backbone}
    trained = base_run(_trained(config, changes))
    source = (
        f"is trained for {trained.epochs} epochs first, which its training time includes"
        if trained
        else "is pre-trained"
    )
    return changes, f"{note}lora: rank {config.lora.rank}; its base {source}"


METHODS: dict[str, Method] = {
    method.name: method
    for method in [
        Method("single", "one {backbone}", lambda config, form: ({"members": 1}, "")),
        Method(
            "wide",
            "one {backbone}, widened to the ensemble's inference MACs",
            _wide_as("deep", "the ensemble"),
        ),
        Method(
            "deep",
            "deep ensemble of {members} {backbone}",
            lambda config, form: ({"members": config.members}, ""),
            ensemble=True,
            matched="wide",
        ),
        Method(
            "packed",
            "packed ensemble of {members} slim {backbone}",
            _packed_method,
            ensemble=True,
            matched="wide-packed",
        ),
        Method(
            "wide-packed",
            "one {backbone}, widened to the packed ensemble's inference MACs",
            _wide_as("packed", "the packed ensemble"),
        ),
        Method(
            "lora",
            "LoRA-ensemble of {members} on one {backbone}",
            _lora_method,
            ensemble=True,
            matched="wide-lora",
        ),
        Method(
            "wide-lora",
            "one {backbone}, widened to the LoRA-ensemble's inference MACs",
            _wide_as("lora", "the LoRA-ensemble"),
        ),
    ]
}

PATCHES = (2, 4, 8, 14, 16, 32)
"""Patch sizes among which the base of ``lora`` takes the first that leaves at most 8x8 tokens."""

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
