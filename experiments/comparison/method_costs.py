"""What each method of a comparison costs, measured side by side on the test images."""

import dataclasses
import statistics
from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor, nn

from ...datasets import Splits, batches
from ...datasets.image_format import ImageFormat
from ...ensembles.backbones.pointwise import to_channels_last
from ..config import CompareConfig, TrainConfig
from ..cost.measurement import BATCH, Cost, measure_costs
from ..cost.passes import ImageShape
from ..cost.training_compute import run_training_macs
from ..store.progress import Display
from ..store.run import Run, training_joules, training_seconds
from ..training.building import build_network
from ..training.devices import compute_device, pipeline_for
from ..training.registry import base_run
from ..training.weights import load_ensemble
from .cascade_runs import CascadeModel, CascadeRecord

IMAGES = 4 * BATCH
"""Test images on which latency is measured."""


def method_costs(
    config: CompareConfig,
    runs: Mapping[str, list[Run]],
    cascades: Mapping[str, list[CascadeRecord]],
    data: Callable[[TrainConfig], Splits],
    display: Display | None = None,
) -> dict[str, Cost]:
    """Measure the cost of each method's first replicate; training is the mean over replicates.

    All methods take turns on the same test images. A cascade's multiply-accumulates are those of a
    test image on average, over all replicates; its memory is that of all its members together,
    which it needs where every image reaches the last stage.

    Args:
        config: The comparison.
        runs: The replicates of each method; of a cascade those of the ensemble that it runs over.
        cascades: Of the methods that are cascades.
        data: The data of a run.
        display: Where progress is shown; nowhere by default.
    """
    device = compute_device(config)
    groups: dict[ImageShape, dict[str, nn.Module]] = {}
    images: dict[ImageShape, Tensor] = {}
    compute: dict[str, list[int | None]] = {}
    for name, replicates in runs.items():
        ensemble, image_format = load_ensemble(replicates[0])
        splits = data(replicates[0].config)
        size = len(splits["train"])
        base = _base(replicates[0].config, image_format)
        compute[name] = [
            run_training_macs(run, ensemble, image_format.shape, images=size, base=base)
            for run in replicates
        ]
        model: nn.Module = ensemble
        if name in cascades:
            model = CascadeModel(ensemble, cascades[name][0].policy)
        model.to(device)
        if config.channels_last:
            to_channels_last(model)
        groups.setdefault(image_format.shape, {})[name] = model
        if image_format.shape not in images:
            images[image_format.shape] = _test_images(replicates[0].config, splits, image_format)
    found: dict[str, Cost] = {}
    for shape, models in groups.items():
        found |= measure_costs(
            models,
            shape,
            images=images[shape],
            training_seconds={
                name: statistics.fmean(map(training_seconds, runs[name])) for name in models
            },
            training_joules={name: _mean(map(training_joules, runs[name])) for name in models},
            varying=cascades,
            display=display,
        )
    for name, cost in found.items():
        trained = _mean(compute[name])
        found[name] = dataclasses.replace(
            cost, training_macs=None if trained is None else round(trained)
        )
    for name, each in cascades.items():
        average = statistics.fmean(cascade.average_macs for cascade in each)
        whole = max(
            found[other].peak_memory_bytes
            for other in runs
            if other not in cascades and runs[other][0].path == runs[name][0].path
        )
        found[name] = dataclasses.replace(found[name], macs=round(average), peak_memory_bytes=whole)
    return {name: found[name] for name in runs}


def _base(config: TrainConfig, image_format: ImageFormat) -> nn.Module | None:
    """The network that a family trains before its members, untrained; None without one."""
    base = base_run(config)
    if base is None:
        return None
    with torch.random.fork_rng(devices=[]):
        return build_network(base, image_format)


def _test_images(config: TrainConfig, splits: Splits, image_format: ImageFormat) -> Tensor:
    """Test images as networks take them, drawn from all: folders are sorted by class."""
    test = splits["test"]
    drawn = torch.randperm(len(test), generator=torch.Generator().manual_seed(0))[:IMAGES]
    loaded = batches(
        test.select(drawn),
        batch_size=BATCH,
        pipeline=pipeline_for(config, image_format),
        workers=config.workers,
    )
    return torch.cat([images for images, *_ in loaded])


def _mean(values: Iterable[int | float | None]) -> float | None:
    """The mean over replicates; None unless all are known."""
    parts = list(values)
    known = [each for each in parts if each is not None]
    return statistics.fmean(known) if len(known) == len(parts) else None
