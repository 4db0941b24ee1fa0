"""Ensembles of a comparison, and single models that are widened to their cost."""

import dataclasses
from collections.abc import Mapping
from typing import Any, cast

from ...datasets.image_format import ImageFormat
from ...ensembles import Optimizer, PackedEnsemble
from ...ensembles.backbones.attention import has_attention
from ...ensembles.options import BUILT_IN_GROUPS
from ..config import ONE_PROCESS, CompareConfig, Recipe, TrainConfig
from ..cost.macs import count_macs
from ..store.seeds import derive_seed
from ..training.building import (
    base_of_replicate,
    build_ensemble,
    build_network,
    build_objective,
)
from ..training.independence import are_independent
from ..training.registry import (
    FAMILIES,
    OBJECTIVES,
    Family,
    ObjectiveEntry,
    base_run,
    family_of,
    objectives_of,
)
from .method_names import Changes, Method
from .scaled_methods import needs_own, scale_width

TRANSFORMERS = Optimizer("adamw", lr=1e-3, weight_decay=0.05)
"""Optimizer of a small transformer in place of a convolutional backbone."""

PATCHES = (2, 4, 8, 14, 16, 32)
"""Its patch sizes: the first that makes at most 8x8 tokens is taken."""


def of_family(
    name: str, method: Method, config: CompareConfig, image_format: ImageFormat
) -> Changes:
    """An ensemble of a registered family."""
    changes: dict[str, Any] = {"ensemble": name, "members": config.members}
    if FAMILIES[name].batches == "shared":
        changes["batches"] = "shared"
    if name == "packed":
        return changes, _packed_note(method.name, config, _trained(config, changes), image_format)
    if name in ("lora", "explicit"):
        return _on_transformer(method.name, changes, config, image_format)
    return changes, ""


def wide_as(name: str, method: Method, config: CompareConfig, image_format: ImageFormat) -> Changes:
    """The network of a family's ensemble, widened to the MACs of that ensemble."""
    options, _ = of_family(name, method, config, image_format)
    ensemble = _trained(config, options)
    needs_own(method.name, "widened", ensemble.backbone)
    target = count_macs(build_ensemble(ensemble, image_format), image_format.shape)
    whose = f"the {FAMILIES[name].label}'s"
    tolerance = config.cost_tolerance
    changes, note = scale_width(
        method.name, ensemble, image_format, target, whose, tolerance=tolerance
    )
    if base := base_run(ensemble):
        # As many epochs as the members and what they start from have seen together.
        changes["epochs"] = base.epochs + ensemble.epochs
    return changes, note


def by_objective(
    objective: str,
    groups: Mapping[str, Mapping[str, Any]],
    method: Method,
    config: CompareConfig,
    image_format: ImageFormat,
) -> Changes:
    """A deep ensemble by another objective, with some options of its groups set."""
    options: dict[str, Any] = {"members": config.members, "objective": objective}
    for group, values in groups.items():
        options[group] = dataclasses.replace(getattr(config, group), **values)
    if build_objective(dataclasses.replace(config, **options)).shared_batch:
        options["batches"] = "shared"
    return options, ""


def _packed_note(
    name: str, config: CompareConfig, run: TrainConfig, image_format: ImageFormat
) -> str:
    """State the hyper-parameters of a packed ensemble and the widths that were rounded."""
    ensemble = cast(PackedEnsemble, build_ensemble(run, image_format))
    options = config.packed
    rounded = ", ".join(
        f"{w} to {new} ({exact:.4g})" for w, (exact, new) in ensemble.rounding.items()
    )
    about = f"{name}: alpha = {options.alpha:g}, M = {config.members}, gamma = {options.gamma}; "
    if not rounded:
        return about + "no width had to be rounded"
    return f"{about}widths that are not whole multiples were rounded up: {rounded}"


def _on_transformer(
    name: str, changes: dict[str, Any], config: CompareConfig, image_format: ImageFormat
) -> Changes:
    """A family whose base network is a transformer: a small one if the backbone is not one."""
    note = ""
    if "@" not in config.backbone and not has_attention(build_network(config, image_format)):
        side = image_format.size[0]
        patch = next((p for p in PATCHES if side % p == 0 and side <= 8 * p), None)
        if patch is None:
            raise ValueError(
                f"the method {name} needs a vision transformer, and {config.backbone} is not one; "
                f"choose one with --backbone, such as vit-tiny/16, or leave {name} out of --methods"
            )
        changes = changes | {"backbone": f"vit-micro/{patch}", "optimizer": TRANSFORMERS}
        note = (
            f"{name} uses {changes['backbone']}, since {config.backbone} has no attention, and "
            f"{TRANSFORMERS.name} for it; "
        )
    else:
        changes = changes | {"backbone": config.backbone, "optimizer": config.optimizer}
    trained = base_run(_trained(config, changes))
    source = (
        f"is trained for {trained.epochs} epochs first, which its training time includes"
        if trained
        else "is pre-trained"
    )
    rank = f"rank {config.lora.rank}; " if changes["ensemble"] == "lora" else ""
    return changes, f"{note}{name}: {rank}its base {source}"


def _trained(config: CompareConfig, changes: dict[str, Any]) -> TrainConfig:
    return training_config(config, "any", 0, changes)


def training_config(
    config: CompareConfig, method: str, replicate: int, changes: dict[str, Any]
) -> TrainConfig:
    """The run of one replicate of a method.

    No two runs share a member's seed, unless the comparison shares members: then the seed of a run
    whose members are independent is that of its recipe, whatever its name and number of members.
    """
    run = _recipe(config, changes)
    seed = derive_seed(config.seed, method, replicate)
    if config.share_members and are_independent(run):
        seed = derive_seed(config.seed, "members", *_differences(config, run), replicate)
    out = str(config.directory() / f"{method}-{replicate}")
    return dataclasses.replace(run, seed=seed, out=out, base=base_of_replicate(run.base, replicate))


def _differences(config: CompareConfig, run: TrainConfig) -> list[str]:
    """The options, but for the number of members, in which a run differs from the comparison."""
    plain, own = _recipe(config, {}).substance(), run.substance()
    differing = {n: own.get(n) for n in plain.keys() | own.keys() if plain.get(n) != own.get(n)}
    return [f"{name}={value}" for name, value in sorted(differing.items()) if name != "members"]


def _recipe(config: CompareConfig, changes: dict[str, Any]) -> TrainConfig:
    """A comparison's recipe with the options of a method.

    Options of one family or objective do not concern the others: they are left out.
    """
    shared = {f.name: getattr(config, f.name) for f in dataclasses.fields(Recipe)}
    shared |= ONE_PROCESS  # they are the comparison's
    run = TrainConfig(**(shared | changes))
    family = family_of(run)
    registered: list[Family | ObjectiveEntry] = [*FAMILIES.values(), *OBJECTIVES.values()]
    own: list[Family | ObjectiveEntry] = [family, *objectives_of(run).values()]
    foreign = {name for each in registered for name in each.options}
    foreign -= {*BUILT_IN_GROUPS, *(name for each in own for name in each.options)}
    return dataclasses.replace(
        run,
        groups={name: group for name, group in run.groups.items() if name not in foreign},
        base=run.base if family.has_base else None,
        adapters=run.adapters if run.ensemble == "lora" else None,
    )
