"""What is refused or said where several processes have a part of each batch."""

import torch
from torch import nn

from ...ensembles import Ensemble, Objective
from ..config import TrainConfig
from ..store.progress import Display
from .devices import compute_device
from .places import Place, place_of


def check_processes(config: TrainConfig) -> Place:
    """Refuse processes that this machine or the options cannot have; return this one's place."""
    place = place_of(config)
    if place.count == 1:
        return place
    if config.in_processes:
        raise ValueError(
            f"jobs and executor place trainings side by side, and --devices lets {place.count} "
            "processes share each batch of one: choose one of the two"
        )
    if config.precision == "auto" and (place.launched or config.num_nodes > 1):
        raise ValueError(
            "precision auto is measured by the process that starts the others, and here a launcher "
            "starts them: set --precision 32 or bf16-mixed"
        )
    device = compute_device(config)
    if device.type == "cuda" and config.devices > (there := torch.cuda.device_count()):
        raise ValueError(
            f"devices must be <= {there}, the GPUs that torch sees here, got {config.devices}"
        )
    if config.strategy == "fsdp":
        raise ValueError(
            "strategy fsdp is not supported here: Lightning's FSDP needs GPUs, and reads no "
            "checkpoints of ours; use --strategy ddp"
        )
    if config.batch_size % place.count:
        raise ValueError(
            f"batch_size must be a multiple of {place.count}, the number of processes that share a "
            f"batch (--devices times --num-nodes), got {config.batch_size}"
        )
    return place


def check_parts(config: TrainConfig, objective: Objective) -> None:
    """Refuse an objective that compares members on a whole batch, of which processes see parts."""
    count = place_of(config).count
    if count > 1 and not objective.averages_parts:
        raise ValueError(
            f"objective {config.objective} compares members on one batch, and the mean over the "
            f"parts of it that {count} processes have is something else; use --devices 1"
        )


def say_norms(place: Place, ensemble: Ensemble, batch_size: int, display: Display) -> None:
    """Say that batch normalisation is not synchronised, where there is any."""
    norms = nn.modules.batchnorm._BatchNorm
    if place.count > 1 and any(isinstance(each, norms) for each in ensemble.modules()):
        display.say(
            f"batch normalisation is not synchronised: each of the {place.count} processes "
            f"normalises by its own {batch_size // place.count} of {batch_size} images, and the "
            "running statistics are those of the first"
        )
