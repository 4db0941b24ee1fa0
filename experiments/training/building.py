"""Networks, ensembles and objectives of a run, made from its configuration."""

import copy
import dataclasses
import importlib.util
import os
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import torch
from torch import nn

from ... import ensembles
from ...datasets.image_format import ImageFormat
from ...datasets.options import GIB
from ...ensembles import DeepEnsemble, Ensemble, Likelihood, Network, Objective, RepulsionTerm
from ...ensembles.backbones import (
    Normalisation,
    architecture_only,
    build,
    check_name,
)
from ...ensembles.backbones.files import load_network
from ...ensembles.backbones.multi_exit import EXITS, MultiExitNetwork
from ...ensembles.backbones.published import loads_weights
from ...ensembles.families.multi_exit import MultiExitEnsemble
from ...ensembles.families.peft import load_peft
from ...ensembles.objectives.parvi import ParticleTerm
from ..config import CompareConfig, Recipe, TrainConfig
from ..store.progress import Display
from ..store.seeds import derive_seed
from .registry import family_of, member_seeds, objectives_of

_USUAL = 8
"""Multiples of width and depth, and numbers of members, whose size need not be checked."""


def build_network(
    config: Recipe, image_format: ImageFormat, width: float | None = None
) -> nn.Module:
    """A network initialised by torch's random generator; it needs square images."""
    height, side = image_format.size
    if height != side:
        raise ValueError(f"images must be square for {config.backbone}, got {height} x {side}")
    return build(
        config.backbone,
        num_classes=len(image_format.classes),
        channels=image_format.channels,
        image_size=side,
        width=config.width if width is None else width,
        depth=config.depth,
        normalisation=Normalisation(image_format.mean, image_format.std),
    )


def check_options(config: Recipe) -> None:
    """Refuse what needs no image to be seen wrong: unknown names, and files that are not there."""
    check_name(config.backbone, width=config.width, depth=config.depth)
    build_objective(config)
    family = family_of(config) if isinstance(config, TrainConfig) else None
    takes_base = family is None or family.has_base
    bases = [config.base]
    if config.base is not None and isinstance(config, CompareConfig):
        bases = [base_of_replicate(config.base, number) for number in range(config.replicates)]
    for base in filter(None, bases if takes_base else ()):
        if not Path(base).is_file():
            missing = Path(base).absolute()
            raise ValueError(f"base: {missing} does not exist; put it back, or name another file")
    if takes_base and config.adapters is not None and not Path(config.adapters).is_dir():
        raise ValueError(f"adapters must be a folder, got {config.adapters!r}: there is none")
    if config.tensorboard and importlib.util.find_spec("tensorboard") is None:
        raise ValueError("tensorboard is not installed: pip install 'deepens[tensorboard]'")


def base_of_replicate(base: str | None, replicate: int) -> str | None:
    """The file of a base, whose name may hold ``{replicate}``."""
    return base and base.replace("{replicate}", str(replicate))


def check_size(config: Recipe, image_format: ImageFormat, members: int) -> None:
    """Refuse networks whose weights alone do not fit into this machine's memory.

    Only those are counted that options have enlarged, before any memory is taken.
    """
    if max(config.width, config.depth) <= _USUAL and members <= _USUAL:
        return
    try:
        with torch.device("meta"), architecture_only():
            network = build_network(config, image_format)
        parameters = sum(parameter.numel() for parameter in network.parameters())
    except NotImplementedError:  # a network that cannot be counted so
        return
    except RuntimeError as error:
        if "overflow" not in str(error):
            raise
        parameters = 2**62
    needed, there = (
        members * parameters * 4,
        os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
    )
    if needed > there:
        raise ValueError(
            f"width, depth and members must be smaller: the weights of {members} networks with "
            f"{parameters:.3g} parameters take {needed / GIB:,.0f} GiB, and this machine has "
            f"{there / GIB:,.0f} GiB of memory"
        )


def build_ensemble(
    config: TrainConfig,
    image_format: ImageFormat,
    *,
    base: nn.Module | None = None,
    members: Sequence[int] | None = None,
) -> Ensemble:
    """The ensemble of a run, freshly initialised from the run's seeds.

    ``base`` is the base network of a family that has one, newly initialised by default. ``members``
    are indices, of all that the run trains by default. A ValueError names an unknown family or
    backbone, or a network that does not suit the family.
    """
    family = family_of(config)
    if config.base is not None and not family.has_base:
        raise ValueError(
            f"base must be left out with --ensemble {config.ensemble}, whose members do not start "
            "from a base network; those of lora and explicit do"
        )
    if config.adapters is not None and config.ensemble != "lora":
        raise ValueError(
            f"adapters must be left out with --ensemble {config.ensemble}; only lora takes them"
        )
    return family.build(config, image_format, base, member_seeds(config, members))


def build_deep(
    config: TrainConfig, image_format: ImageFormat, base: nn.Module | None, seeds: Sequence[int]
) -> Ensemble:
    """Networks that are trained independently from different initialisations."""
    return DeepEnsemble(lambda: build_network(config, image_format), seeds=seeds)


def build_packed(
    config: TrainConfig, image_format: ImageFormat, base: nn.Module | None, seeds: Sequence[int]
) -> Ensemble:
    """Members as groups of one packed network."""
    if "@" in config.backbone:
        raise ValueError(
            f"a packed ensemble is made of narrower networks, which the pre-trained weights of "
            f"{config.backbone} do not fit; drop {config.backbone[config.backbone.index('@') :]}, "
            "or use --ensemble deep or lora"
        )
    return ensembles.PackedEnsemble(
        lambda: build_network(config, image_format),
        seeds=seeds,
        options=config.packed,
        image_shape=image_format.shape,
        num_members=config.members,
    )


def build_lora(
    config: TrainConfig, image_format: ImageFormat, base: nn.Module | None, seeds: Sequence[int]
) -> Ensemble:
    """Low-rank adapters on one frozen network."""
    base = base or build_base(config, image_format)
    ensemble = ensembles.LoRAEnsemble(base, seeds=seeds, options=config.lora)
    if config.adapters is not None and loads_weights():
        load_peft(ensemble, Path(config.adapters))
    return ensemble


def build_explicit(
    config: TrainConfig, image_format: ImageFormat, base: nn.Module | None, seeds: Sequence[int]
) -> Ensemble:
    """Whole copies of one base network with heads of their own, all fine-tuned."""
    start = cast(Network, base or build_base(config, image_format))

    def factory() -> nn.Module:
        network = copy.deepcopy(start)
        cast(nn.Linear, network.head).reset_parameters()  # members differ by their heads first
        return network

    return DeepEnsemble(factory, seeds=seeds)


def build_multi_exit_ensemble(
    config: TrainConfig, image_format: ImageFormat, base: nn.Module | None, seeds: Sequence[int]
) -> Ensemble:
    """The exits of one network as members."""
    if len(seeds) != config.members:
        raise ValueError(
            "members of --ensemble multi-exit are exits of one network and share parameters, so "
            "that none can be trained alone; leave --member out"
        )

    def factory() -> MultiExitNetwork:
        network = build_network(config, image_format)
        places = getattr(network, "exit_places", None)
        if places is None:
            raise ValueError(
                f"backbone must have {EXITS}, with --ensemble multi-exit, got {config.backbone!r}"
            )
        if config.members > (most := len(places.ends)):
            raise ValueError(
                f"members must be from 1 to {most} with --ensemble multi-exit and "
                f"{config.backbone}, one exit after each stage of blocks, got {config.members}"
            )
        return MultiExitNetwork(cast(Network, network), config.members)

    return MultiExitEnsemble(factory, seeds=seeds)


def build_base(config: TrainConfig, image_format: ImageFormat) -> nn.Module:
    """The base network of a family, before the run trains it if it does; its file is checked."""
    seed = derive_seed(config.seed, "base")
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        if config.base is None or not loads_weights():
            return build_network(config, image_format)
        with architecture_only():
            network = build_network(config, image_format)
    load_network(network, Path(config.base))
    return network


def settle_batches(config: TrainConfig, display: Display | None = None) -> TrainConfig:
    """The run with ``batches: auto`` replaced by what its objective and its family need."""
    if config.batches != "auto":
        return config
    alone = config.members == 1 or config.member is not None
    by_objective = not alone and build_objective(config).shared_batch
    by_family = not alone and family_of(config).batches == "shared"
    if display is not None and (by_objective or by_family):
        who = f"objective {config.objective}" if by_objective else f"ensemble {config.ensemble}"
        display.say(f"all members share one batch, as the {who} needs")
    shared = by_objective or by_family
    return dataclasses.replace(config, batches="shared" if shared else "own")


def build_objective(config: Recipe) -> Objective:
    """The objective of a recipe: a likelihood, and the repulsion terms that are added to it.

    Unknown objectives and combinations that are not defined are a ValueError.
    """
    parts = {name: entry.make(config) for name, entry in objectives_of(config).items()}
    likelihoods = {n: part for n, part in parts.items() if isinstance(part, Likelihood)}
    terms = [part for part in parts.values() if isinstance(part, RepulsionTerm)]
    others = [n for n, p in parts.items() if not isinstance(p, Likelihood | RepulsionTerm)]
    written = f"objective {config.objective!r}"
    if len(likelihoods) > 1:
        both = " and ".join(likelihoods)
        raise ValueError(f"{written} combines two likelihoods, {both}: choose one of them")
    own = next((n for n in others if isinstance(parts[n], Objective)), None)
    if len(others) > 1 or (others and terms) or (own and likelihoods):
        first = own or others[0]
        whole = parts[first] if own else parts[first](ensembles.CrossEntropy())
        if len(whole.fits(2)) > 1 and terms:
            reason = (
                f"{first} trains members one after the other, so that no member can be repelled "
                "from those trained later"
            )
        else:
            other = next(name for name in parts if name != first)
            reason = (
                f"{first} is an objective of its own, to which {other} cannot be added (a "
                "Likelihood can be combined with repulsion terms)"
            )
        raise ValueError(f"{written} is not defined: {reason}; choose one of them")
    likelihood = next(iter(likelihoods.values()), None) or ensembles.CrossEntropy(
        smoothing=config.label_smoothing
    )
    if config.label_smoothing and not isinstance(likelihood, ensembles.CrossEntropy):
        raise ValueError(
            f"label_smoothing must be 0 with {written}, whose loss does not take it, got "
            f"{config.label_smoothing}"
        )
    if likelihood.members_at_once is None:  # it was made without
        likelihood.members_at_once = config.members_at_once
    if others:
        return parts[own] if own else parts[others[0]](likelihood)
    if not terms:
        return likelihood
    if config.repulsion.update == "svgd":
        if len(terms) > 1 or not isinstance(terms[0], ParticleTerm):
            raise ValueError(
                f"{written} cannot be combined with repulsion.update svgd, which moves members in "
                "one space, of weights or of functions; use kde-wgd"
            )
        return ensembles.SteinVariational(likelihood, terms[0])
    return ensembles.Repulsive(likelihood, terms)
