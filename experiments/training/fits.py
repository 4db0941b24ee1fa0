"""What each fit of a run is made of, and fits that follow one another."""

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import nn

from ... import datasets, ensembles
from ...datasets import Splits
from ...datasets.image_format import ImageFormat
from ...datasets.plain_data import construct
from ...ensembles import Ensemble
from ...ensembles.backbones.pointwise import to_channels_last
from ..config import TrainConfig
from ..cost.energy import total_joules
from ..store.checkpoint import load_tensors, save_tensors
from ..store.progress import Display
from ..store.run import Run, write_whole_text
from .building import build_ensemble, build_objective
from .devices import EVALUATION_BATCH, keep_threads, pipeline_for
from .members import side_by_side
from .places import place_of
from .registry import family_of, member_seeds
from .weights import of_base

if TYPE_CHECKING:
    from .fitting import Trained


def batches_of(
    config: TrainConfig, image_format: ImageFormat, splits: Splits, members: Sequence[int] | None
) -> "datasets.DataModule":
    """The batches of some members, or of all."""
    shared = config.batches == "shared"
    return datasets.DataModule(
        splits,
        batch_size=config.batch_size,
        # A shared order is the first member's, whoever is trained by it.
        seeds=member_seeds(config, None if shared else members),
        shared=shared,
        pipeline=pipeline_for(config, image_format),
        eval_batch_size=EVALUATION_BATCH,
        workers=config.workers,
    )


def module_of(
    config: TrainConfig,
    image_format: ImageFormat,
    *,
    base: nn.Module | None = None,
    members: Sequence[int] | None = None,
    display: Display | None = None,
) -> "ensembles.EnsembleModule":
    """What Lightning trains; a base comes from its own run, and is freshly built when absent."""
    ensemble = build_ensemble(config, image_format, base=base, members=members)
    if config.channels_last:
        rewritten = to_channels_last(ensemble)
        if display and rewritten:
            display.say(
                f"{rewritten} strided 1x1 convolutions read subsampled images: equal values"
            )
    alone = None if config.member is None else [config.member]
    optimizer = config.tuning if family_of(config).has_base else config.optimizer
    return ensembles.EnsembleModule(
        ensemble,
        build_objective(config),
        optimizer=optimizer.per_step(config.batch_size),
        schedule=config.schedule,
        labels=alone if members is None else members,
    )


def fit_in_turn(
    run: Run,
    ensemble: Ensemble,
    splits: Splits,
    display: Display,
    start: str | None,
    base: nn.Module | None,
) -> "Trained":
    """Fit after fit, each with those before it as its context; finished fits are kept."""
    from .fitting import Stage, Trained, fit, identity_of

    config, folder, image_format = run.config, run.path / "fits", ImageFormat.of(splits)
    first = place_of(config).first
    if first:
        folder.mkdir(exist_ok=True)
    context, fitted, logs = list[Ensemble](), list[Trained](), list[str]()
    for number, members in enumerate(build_objective(config).fits(config.members)):
        module = module_of(config, image_format, base=base, members=members)
        data = batches_of(config, image_format, splits, members)
        stage = Stage(
            f"train {run.path}, member {', '.join(map(str, members))}",
            folder / f"{number}.csv",
            folder / f"{number}-resume.safetensors",
            folder / f"{number}-best.safetensors",
            start,
            tuple(context),
        )
        identity = identity_of(run, data, start)
        done = folder / f"{number}.safetensors"
        part = module.ensemble
        if done.exists():
            tensors, content = load_tensors(done)
            if not isinstance(content, dict) or content.get("identity") != identity:
                raise ValueError(f"{done} belongs to another run; delete it and run again")
            part.load_state_dict(tensors, strict=part.base is None)
            trained = construct(Trained, content, str(done), more=True)
            keep_threads(config, trained.threads, display)
        else:
            trained = fit(run, module, data, display, stage)
            state = {k: v for k, v in part.state_dict().items() if not of_base(k)}
            if first:
                save_tensors(done, state, {"identity": identity} | dataclasses.asdict(trained))
        with torch.no_grad():
            for position, index in enumerate(members):
                target = ensemble.member_state(index)
                for name, value in part.member_state(position).items():
                    target[name].copy_(value)
        context.append(part.eval())
        fitted.append(trained)
        logs += [stage.log.read_text(encoding="utf-8")] if first else []
    if first:
        write_whole_text(run.path / "log.csv", side_by_side(logs))
    return Trained(
        sum(each.seconds for each in fitted),
        max(each.epochs for each in fitted),
        total_joules(each.joules for each in fitted),
    )
