"""Ensembles of a comparison, and single models widened to their cost."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, cast

from ...datasets.image_format import ImageFormat
from ...ensembles import Optimizer, PackedEnsemble
from ...ensembles.backbones.attention import has_attention
from ..config import CompareConfig, Recipe, TrainConfig
from ..cost.macs import count_macs
from ..store.seeds import derive_seed
from ..training.building import build_ensemble, build_network, build_objective
from ..training.registry import FAMILIES, base_run
from .scaled_methods import Changes, width_of_cost

Make = Callable[[str, CompareConfig, ImageFormat], Changes]
"""From a method's name, as it is called in messages, the comparison and its images to the options
that make it."""

TRANSFORMERS = Optimizer("adamw", lr=1e-3, weight_decay=0.05)
"""How a small transformer is trained where the comparison's own backbone is none: by a rate that
suits convolutions it would hardly learn."""

PATCHES = (2, 4, 8, 14, 16, 32)
"""Patch sizes of which the base of lora and explicit takes the first with at most 8x8 tokens."""


def wide_as(ensemble_of: Make, whose: str) -> Make:
    """Make a method of the network of an ensemble, widened to that ensemble's MACs."""

    def make(name: str, config: CompareConfig, form: ImageFormat) -> Changes:
        options, _ = ensemble_of(name, config, form)
        ensemble = _trained(config, options)
        if ":" not in ensemble.backbone:
            target = count_macs(build_ensemble(ensemble, form), form.shape)
        else:
            target = 1  # which no published network is widened to
        width, note = width_of_cost(name, ensemble, form, target, whose)
        single = {
            "members": 1,
            "width": width,
            "backbone": ensemble.backbone,
            "optimizer": ensemble.optimizer,
        }
        if base := base_run(ensemble):
            # As many epochs as the members and what they start from have seen together.
            single["epochs"] = base.epochs + ensemble.epochs
        return single, note

    return make


def packed(name: str, config: CompareConfig, form: ImageFormat) -> Changes:
    """A packed ensemble; the note tells its hyper-parameters, and which widths were rounded."""
    changes = {"ensemble": "packed", "members": config.members}
    ensemble = cast(PackedEnsemble, build_ensemble(_trained(config, changes), form))
    options = config.packed
    rounded = ", ".join(
        f"{w} to {new} ({exact:.4g})" for w, (exact, new) in ensemble.rounding.items()
    )
    about = f"alpha = {options.alpha:g}, M = {config.members}, gamma = {options.gamma}"
    note = f"{name}: {about}; " + (
        f"widths that are no whole multiple were rounded up: {rounded}"
        if rounded
        else "no width had to be rounded"
    )
    return changes, note


def on_a_base(family: str) -> Make:
    """Make a method of a family whose members start from one base, a transformer."""
    return lambda name, config, form: _with_base(family, name, config, form)


def _with_base(family: str, name: str, config: CompareConfig, form: ImageFormat) -> Changes:
    backbone, optimizer, note = config.backbone, config.optimizer, ""
    if "@" not in backbone and not has_attention(build_network(config, form)):
        patch = next((p for p in PATCHES if form.size[0] % p == 0 and form.size[0] <= 8 * p), None)
        if patch is None:
            raise ValueError(
                f"the method {name} needs a vision transformer, and {backbone} is none; choose one "
                f"with --backbone, such as vit-tiny/16, or leave {name} out of --methods"
            )
        backbone = f"vit-micro/{patch}"
        optimizer = TRANSFORMERS
        note = (
            f"{name} uses {backbone}, since {config.backbone} has no attention, and "
            f"{optimizer.name} for it; "
        )
    changes = {
        "ensemble": family,
        "members": config.members,
        "backbone": backbone,
        "optimizer": optimizer,
    }
    trained = base_run(_trained(config, changes))
    source = (
        f"is trained for {trained.epochs} epochs first, which its training time includes"
        if trained
        else "is pre-trained"
    )
    what = f"rank {config.lora.rank}; " if family == "lora" else ""
    return changes, f"{note}{name}: {what}its base {source}"


def by_objective(
    objective: str, groups: Mapping[str, Mapping[str, Any]], config: CompareConfig
) -> Changes:
    """A deep ensemble by another objective, with some options of its groups set."""
    options: dict[str, Any] = {"members": config.members, "objective": objective}
    for group, set_to in groups.items():
        options[group] = dataclasses.replace(getattr(config, group), **set_to)
    if build_objective(dataclasses.replace(config, **options)).shared_batch:
        options["batches"] = "shared"
    return options, ""


def _trained(config: CompareConfig, changes: dict[str, Any]) -> TrainConfig:
    return training_config(config, "any", 0, changes)


def training_config(
    config: CompareConfig, method: str, replicate: int, changes: dict[str, Any]
) -> TrainConfig:
    """The run of one method's replicate; no two share a member's seed."""
    shared = {f.name: getattr(config, f.name) for f in dataclasses.fields(Recipe)}
    shared["seed"] = derive_seed(config.seed, method, replicate)
    shared["out"] = str(config.directory() / f"{method}-{replicate}")
    family = changes.get("ensemble", TrainConfig.ensemble)
    # Options of one family are no matter of the others.
    if not FAMILIES[family].has_base:
        shared["base"] = None
    if family != "lora":
        shared["adapters"] = None
    return TrainConfig(**(shared | changes))
