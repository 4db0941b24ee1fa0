"""What a reader of a comparison must know of how its methods were made."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from ..config import CompareConfig
from ..cost.training_compute import why_not_counted
from ..store.run import CALIBRATION, Run
from ..training.registry import base_run
from .cascade_runs import CascadeRecord
from .ensemble_methods import training_config
from .methods import Changes, Method


def comparison_notes(
    config: CompareConfig,
    changes: Mapping[str, Changes],
    runs: Mapping[str, Sequence[Run]],
    cascades: Mapping[str, Sequence[CascadeRecord]],
) -> list[str]:
    """Collect the notes of a comparison.

    How each method was sized, why a training is not counted, how cascades behave, and how long and
    on which images everything was trained.
    """
    notes = [note for _, note in changes.values() if note]
    reasons = {name: why_not_counted(runs[name][0].config) for name in changes}
    notes += [f"{name}: {reason}" for name, reason in reasons.items() if reason is not None]
    notes += [note for name, found in cascades.items() for note in _cascade_notes(name, found)]
    return [*notes, *_general_notes(config, changes)]


def describe_method(method: Method, config: CompareConfig, options: Mapping[str, Any]) -> str:
    """Describe a method with the numbers of this comparison, such as ``deep ensemble of 4 …``."""
    return method.description.format(
        members=f"{method.count or config.members:g}",
        backbone=options.get("backbone", config.backbone),
    )


def _cascade_notes(name: str, found: Sequence[CascadeRecord]) -> list[str]:
    """Say what a cascade does with the test images, and what its calibration warns of."""
    titles = {"test": "test image", "near_ood": "near OOD image", "far_ood": "far OOD image"}
    kinds = {title: [each.times(kind) for each in found] for kind, title in titles.items()}
    costs = "; ".join(
        f"{', '.join(f'{value:.3f}' for value in values)} per {title}"
        for title, values in kinds.items()
        if not any(map(math.isnan, values))
    )
    notes = [
        f"{name} costs, in multiples of its first stage's MACs, {costs}, on average over "
        "images, in each replicate; its costs here are those on test images, its latency with one "
        "image at a time the mean; its windows were chosen on val/calibrate"
    ]
    warned = [note for each in found for note in each.notes]
    more = f" ({len(warned) - 1} more such warnings in {name}-*/{CALIBRATION})"
    return notes + [f"{name}: {note}{more if len(warned) > 1 else ''}" for note in warned[:1]]


def other_backbones(config: CompareConfig, changes: Mapping[str, Changes]) -> list[str]:
    """Warn of methods that are made of another network than the comparison's."""
    others = {
        name: options["backbone"]
        for name, (options, _) in changes.items()
        if options.get("backbone", config.backbone) != config.backbone
    }
    if not others:
        return []
    listed = ", ".join(f"{name} of {backbone}" for name, backbone in others.items())
    return [
        f"the methods are made of different networks: {listed}, the others of {config.backbone}; "
        "across them, a difference is one of networks too"
    ]


def _general_notes(config: CompareConfig, changes: Mapping[str, Changes]) -> list[str]:
    runs = {name: training_config(config, name, 0, own) for name, (own, _) in changes.items()}
    more = [
        *(
            f"; {name} on top of the {base.epochs} epochs of its base"
            for name, run in runs.items()
            if (base := base_run(run))
        ),
        *(f"; {name} for {r.epochs}" for name, r in runs.items() if r.epochs != config.epochs),
    ]
    notes = [
        f"All methods are trained for the same {config.epochs} epochs{''.join(more)}; an "
        "ensemble's training time is that of all its members, and of a base that is trained for "
        "them."
    ]
    if sized := [name for name, run in runs.items() if run.image_size != config.image_size]:
        notes.insert(
            0,
            f"{' and '.join(sized)} see images of another size, which are corrupted after they "
            "were resized: the same images under other draws; and OOD images that were larger keep "
            "more of their detail than the training images, which were enlarged",
        )
    return notes
