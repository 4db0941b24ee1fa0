"""From names to networks, ensembles and objectives: one registry for each."""

import copy
import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from torch import nn

from ...datasets.image_format import ImageFormat
from ...ensembles import (
    CrossEntropy,
    DeepEnsemble,
    Ensemble,
    FoRDE,
    FunctionSpace,
    Greedy,
    Likelihood,
    LoRAEnsemble,
    MixupMP,
    Network,
    Objective,
    PackedEnsemble,
    RepulsionTerm,
    Repulsive,
    SteinVariational,
    WeightSpace,
)
from ...ensembles.backbones import Normalisation, architecture_only, build, build_multi_exit
from ...ensembles.backbones.files import load_network
from ...ensembles.backbones.multi_exit import MOST_EXITS
from ...ensembles.backbones.published import loads_weights
from ...ensembles.families.multi_exit import MultiExitEnsemble
from ...ensembles.families.peft import load_peft
from ...ensembles.objectives.parvi import ParticleTerm
from ..config import Recipe, TrainConfig
from ..store.errors import choose
from ..store.seeds import derive_seed


def member_seeds(config: TrainConfig, members: Sequence[int] | None = None) -> list[int]:
    """The seeds of some members, of all that a run trains when None."""
    if members is None:
        members = range(config.members) if config.member is None else [config.member]
    return [derive_seed(config.seed, "member", index) for index in members]


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
    config: TrainConfig,
    form: ImageFormat,
    *,
    base: nn.Module | None = None,
    members: Sequence[int] | None = None,
) -> Ensemble:
    """The ensemble of a run, freshly initialised from the run's seeds.

    Args:
        config: The run.
        form: The images.
        base: The frozen network of a family that has one; freshly built when absent.
        members: Only these; all that the run trains when None.

    Raises:
        ValueError: An unknown family or backbone, or a network that does not fit the family.
    """
    choose("ensemble", config.ensemble, FAMILIES)
    family = FAMILIES[config.ensemble]
    if config.base is not None and not family.has_base:
        raise ValueError(
            f"base must be left out with --ensemble {config.ensemble}, whose members start afresh; "
            "lora and explicit start from a base"
        )
    if config.adapters is not None and config.ensemble != "lora":
        raise ValueError(
            f"adapters must be left out with --ensemble {config.ensemble}; lora starts from some"
        )
    return family.build(config, form, base, member_seeds(config, members))


def _deep(
    config: TrainConfig, form: ImageFormat, base: nn.Module | None, seeds: Sequence[int]
) -> Ensemble:
    return DeepEnsemble(lambda: build_network(config, form), seeds=seeds)


def _packed(
    config: TrainConfig, form: ImageFormat, base: nn.Module | None, seeds: Sequence[int]
) -> Ensemble:
    if "@" in config.backbone:
        raise ValueError(
            f"a packed ensemble is made of narrower networks, which the pre-trained weights of "
            f"{config.backbone} do not fit; drop {config.backbone[config.backbone.index('@') :]}, "
            "or use --ensemble deep or lora"
        )
    return PackedEnsemble(
        lambda: build_network(config, form),
        seeds=seeds,
        options=config.packed,
        image_shape=form.shape,
        num_members=config.members,
    )


def _lora(
    config: TrainConfig, form: ImageFormat, base: nn.Module | None, seeds: Sequence[int]
) -> Ensemble:
    ensemble = LoRAEnsemble(base or build_base(config, form), seeds=seeds, options=config.lora)
    if config.adapters is not None and loads_weights():
        load_peft(ensemble, Path(config.adapters))
    return ensemble


def _explicit(
    config: TrainConfig, form: ImageFormat, base: nn.Module | None, seeds: Sequence[int]
) -> Ensemble:
    start = cast(Network, base or build_base(config, form))

    def factory() -> nn.Module:
        network = copy.deepcopy(start)
        cast(nn.Linear, network.head).reset_parameters()  # members differ by their heads first
        return network

    return DeepEnsemble(factory, seeds=seeds)


def _multi_exit(
    config: TrainConfig, form: ImageFormat, base: nn.Module | None, seeds: Sequence[int]
) -> Ensemble:
    if len(seeds) != config.members:
        raise ValueError(
            "members of --ensemble multi-exit are exits of one network and share parameters, so "
            "that none can be trained alone; leave --member out"
        )
    if config.members > MOST_EXITS:
        raise ValueError(
            f"members must be from 1 to {MOST_EXITS} with --ensemble multi-exit, one exit after "
            f"each stage of blocks, got {config.members}"
        )
    return MultiExitEnsemble(
        lambda: build_multi_exit(
            config.backbone,
            num_exits=config.members,
            num_classes=len(form.classes),
            channels=form.channels,
            width=config.width,
            depth=config.depth,
        ),
        seeds=seeds,
    )


@dataclass(frozen=True)
class Family:
    """A family of ensembles.

    Attributes:
        build: From a run, its images, a base and the members' seeds to the ensemble.
        has_base: Whether the members start from one network that is trained before them.
    """

    build: Callable[[TrainConfig, ImageFormat, nn.Module | None, Sequence[int]], Ensemble]
    has_base: bool = False


FAMILIES: dict[str, Family] = {
    "deep": Family(_deep),
    "packed": Family(_packed),
    "lora": Family(_lora, has_base=True),
    "explicit": Family(_explicit, has_base=True),
    "multi-exit": Family(_multi_exit),
}

Part = Likelihood | RepulsionTerm | Callable[[Likelihood], Objective]
"""What members are trained on; what pushes them apart; or what is made of a likelihood."""

OBJECTIVES: dict[str, Callable[[Recipe], Part]] = {
    "cross-entropy": lambda config: CrossEntropy(members_at_once=config.members_at_once),
    "mixupmp": lambda config: MixupMP(config.mixup, members_at_once=config.members_at_once),
    "forde": lambda config: FoRDE(config.repulsion),
    "weight-repulsion": lambda config: WeightSpace(config.repulsion),
    "function-repulsion": lambda config: FunctionSpace(config.repulsion),
    "greedy": lambda config: (
        lambda likelihood: Greedy(likelihood, config.noise, seed=derive_seed(config.seed, "noise"))
    ),
}


def build_base(config: TrainConfig, form: ImageFormat) -> nn.Module:
    """The network that a family starts from, as it is before the run trains it, if it does.

    Raises:
        ValueError: ``base`` names a file that does not hold the backbone's weights.
    """
    seed = derive_seed(config.seed, "base")
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        if config.base is None or not loads_weights():
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
        objective="cross-entropy",
        adapters=None,
        out=str(config.directory() / "base"),
    )


def build_objective(config: Recipe) -> Objective:
    """The objective of a recipe: a likelihood, and what is added to it.

    Raises:
        ValueError: An unknown objective, or a sum that makes no sense.
    """
    names = config.objective.split("+")
    for name in names:
        choose("objective", name, OBJECTIVES)
    parts = {name: OBJECTIVES[name](config) for name in names}
    likelihoods = {n: part for n, part in parts.items() if isinstance(part, Likelihood)}
    terms = {n: part for n, part in parts.items() if isinstance(part, RepulsionTerm)}
    others = {n: part for n, part in parts.items() if n not in likelihoods | terms}
    written = f"objective {config.objective!r}"
    if len(parts) < len(names):
        raise ValueError(f"{written} names one part twice")
    if len(likelihoods) > 1:
        raise ValueError(
            f"{written} trains members on two things, {' and '.join(likelihoods)}: name one"
        )
    if len(others) > 1 or (others and terms):
        raise ValueError(
            f"{written} makes no sense: {next(iter(others))} trains members one after the other, "
            "so that none can be pushed away from those to come; name one of them"
        )
    likelihood = next(iter(likelihoods.values()), None) or CrossEntropy(
        members_at_once=config.members_at_once
    )
    if others:
        return cast(Callable[[Likelihood], Objective], next(iter(others.values())))(likelihood)
    if not terms:
        return likelihood
    if config.repulsion.update == "svgd":
        space = next(iter(terms.values()))
        if len(terms) > 1 or not isinstance(space, ParticleTerm):
            raise ValueError(
                f"{written} does not go with repulsion.update svgd, which moves members in one "
                "space, of weights or of functions, and is no sum; use kde-wgd"
            )
        return SteinVariational(likelihood, space)
    return Repulsive(likelihood, list(terms.values()))
