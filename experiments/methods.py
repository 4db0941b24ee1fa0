"""The methods of a comparison, by name."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, cast

from ..ensembles import (
    Optimizer,
    PackedEnsemble,
)
from ..ensembles.backbones.attention import has_attention
from .configuration import CompareConfig, Recipe, TrainConfig
from .families import (
    FAMILIES,
    ImageFormat,
    base_run,
    build_ensemble,
    build_network,
    build_objective,
    derive_seed,
)
from .macs import count_macs
from .scaling import match_width

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


def _on_a_base(name: str) -> Callable[[CompareConfig, ImageFormat], Changes]:
    return lambda config, form: _with_base(name, config, form)


def _with_base(name: str, config: CompareConfig, form: ImageFormat) -> Changes:
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
        "ensemble": name,
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
    what = f"rank {config.lora.rank}; " if name == "lora" else ""
    return changes, f"{note}{name}: {what}its base {source}"


def _by_objective(
    name: str,
    description: str,
    objective: str,
    groups: Mapping[str, Mapping[str, Any]] = MappingProxyType({}),
) -> Method:
    """A deep ensemble by another objective, with some options of its groups set."""

    def changes(config: CompareConfig, form: ImageFormat) -> Changes:
        options: dict[str, Any] = {"members": config.members, "objective": objective}
        for group, set_to in groups.items():
            options[group] = dataclasses.replace(getattr(config, group), **set_to)
        if build_objective(dataclasses.replace(config, **options)).shared_batch:
            options["batches"] = "shared"
        return options, ""

    what = f"{{members}} {{backbone}}, {description}"
    return Method(name, what, changes, ensemble=True, matched="wide")


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
            _on_a_base("lora"),
            ensemble=True,
            matched="wide-lora",
        ),
        Method(
            "explicit",
            "{members} {backbone}, all fine-tuned from one base",
            _on_a_base("explicit"),
            ensemble=True,
            matched="wide-explicit",
        ),
        Method(
            "wide-explicit",
            "one {backbone}, widened to the explicit ensemble's inference MACs",
            _wide_as("explicit", "the explicit ensemble"),
        ),
        Method(
            "wide-lora",
            "one {backbone}, widened to the LoRA-ensemble's inference MACs",
            _wide_as("lora", "the LoRA-ensemble"),
        ),
        *(
            _by_objective(
                name,
                f"repelled by input gradients (FoRDE, {lengthscale})",
                "forde",
                {"repulsion": {"lengthscale": lengthscale, "update": "kde-wgd"}},
            )
            for name, lengthscale in [
                ("forde", "identity"),
                ("forde-pca", "pca"),
                ("forde-tuned", "tuned"),
            ]
        ),
        *(
            _by_objective(
                name,
                f"repelled in {space} space ({flow})",
                f"{space}-repulsion",
                {"repulsion": {"update": update}},
            )
            for name, space, flow, update in [
                ("weight-repulsion", "weight", "kde-WGD", "kde-wgd"),
                ("function-repulsion", "function", "kde-WGD", "kde-wgd"),
                ("weight-svgd", "weight", "SVGD", "svgd"),
                ("function-svgd", "function", "SVGD", "svgd"),
            ]
        ),
        _by_objective("mixupmp", "each on pseudo-data of its own (MixupMP)", "mixupmp"),
        *(
            _by_objective(
                f"mixupmp-{ratio:g}",
                f"each on pseudo-data of its own (MixupMP, r = {ratio:g})",
                "mixupmp",
                {"mixup": {"ratio": ratio}},
            )
            for ratio in (0.5, 1.0, 2.0)
        ),
        _by_objective(
            "mixup",
            "each trained with mixup alone",
            "mixupmp",
            {"mixup": {"ratio": math.inf, "weights": "ones"}},
        ),
        _by_objective("greedy", "each trained to differ from those before it, on noise", "greedy"),
    ]
}

TRANSFORMERS = Optimizer("adamw", lr=1e-3, weight_decay=0.05)
"""How a small transformer is trained where the comparison's own backbone is none: by a rate that
suits convolutions it would hardly learn."""

PATCHES = (2, 4, 8, 14, 16, 32)
"""Patch sizes of which the base of lora and explicit takes the first with at most 8x8 tokens."""

COST_TOLERANCE = 0.02
"""Largest relative difference in inference MACs between models that count as of equal cost."""


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
