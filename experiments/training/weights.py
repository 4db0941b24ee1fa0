"""The file of a trained ensemble: its weights, and all that is needed to use it on new images."""

import dataclasses
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from ...datasets import Splits
from ...datasets.image_format import ImageFormat
from ...datasets.plain_data import construct
from ...datasets.tensor_files import tensor_digest
from ...ensembles import Ensemble
from ...ensembles.backbones import architecture_only
from ..config import CIRCUMSTANCES, TrainConfig
from ..store.checkpoint import load_content, load_tensors, save_tensors, stored_checksum
from ..store.run import Run
from .building import build_base, build_ensemble
from .registry import base_run, family_of


def save_ensemble(
    run: Run, ensemble: Ensemble, image_format: ImageFormat, data: str, *, start: str | None = None
) -> None:
    """Write a run's weights, with the format of its images and the fingerprint of its data.

    ``start`` is the hash of the network that its members started from, if there was one.
    """
    options = run.config.to_dict()
    content = {
        # Not where or how it was made: the same training writes the same file anywhere.
        "config": {k: v for k, v in options.items() if k not in CIRCUMSTANCES},
        "format": dataclasses.asdict(image_format),
        "data": data,
    }
    if start is not None:
        content["start"] = start
    state = ensemble.state_dict()
    if ensemble.base is not None:
        content["base"] = {"name": run.config.backbone, "hash": ensemble.base_hash()}
        if not run.config.save_base:
            state = {name: value for name, value in state.items() if not of_base(name)}
    save_tensors(run.weights, state, content)


@dataclasses.dataclass(frozen=True)
class _Header:
    """What a file of weights tells of them."""

    config: Mapping[str, Any]
    format: ImageFormat
    data: str
    start: str | None = None
    base: Mapping[str, Any] | None = None


def _header(run: Run, content: Any) -> _Header:
    try:
        return construct(_Header, content, "its header", more=True)
    except ValueError as error:
        raise ValueError(f"{run.weights} does not hold a deepens ensemble: {error}") from None


def load_ensemble(run: Run) -> tuple[Ensemble, ImageFormat]:
    """A run's trained ensemble, in evaluation mode, and the images that it takes.

    A file that is missing, damaged, or of another run is a ValueError.
    """
    if not run.weights.exists():
        missing = f"{run.path} has no trained ensemble yet ({run.weights} does not exist)"
        raise ValueError(f"{missing}; run `deepens train` with the same options first")
    tensors, content = load_tensors(run.weights)
    _check_unchecked(run)
    header = _header(run, content)
    try:
        config, images = TrainConfig.from_dict(header.config, stored=True), header.format
    except ValueError as error:
        raise ValueError(f"{run.weights}: {error}") from None
    if differing := run.config.differences(config):
        these = "; ".join(sorted(differing)[:4])
        raise ValueError(f"{run.weights} belongs to another run ({these})")
    base = base_of(run, images) if header.base is not None and not config.save_base else None
    with architecture_only():
        ensemble = build_ensemble(config, images, base=base)
    state = ensemble.state_dict()
    if base is not None:
        _check_base(run, ensemble, header.base)
        state = {name: value for name, value in state.items() if not of_base(name)}
    expected = {name: tuple(t.shape) for name, t in state.items()}
    found = {name: tuple(t.shape) for name, t in tensors.items()}
    if wrong := sorted(name for name in expected | found if expected.get(name) != found.get(name)):
        raise ValueError(
            f"{run.weights} does not fit its ensemble: {len(wrong)} tensors differ, such as "
            f"{wrong[0]} ({found.get(wrong[0])} in the file, {expected.get(wrong[0])} expected)"
        )
    ensemble.load_state_dict(tensors, strict=base is None)
    return ensemble.eval(), images


def _check_unchecked(run: Run) -> None:
    """Refuse weights without a checksum that are not those of the run's predictions."""
    file = run.prediction("test")
    if stored_checksum(run.weights) is not None or not file.exists():
        return
    made_with = load_content(file).get("weights")
    if made_with is not None and made_with != hash_file(run.weights):
        raise ValueError(
            f"{run.weights} is not the file that {file} was made with, and has no checksum, as "
            "those of earlier versions: it may be damaged; put back a copy of the weights, or "
            f"delete {file.parent} to use them as they are"
        )


def trained_base(base: TrainConfig, image_format: ImageFormat) -> nn.Module:
    """The network of a finished run that trained a base; refused if missing or of other images."""
    run = Run(base.directory(), base)
    if not run.weights.exists():
        raise ValueError(
            f"{run.path}, the base that this run's members start from, is missing: copy the folder "
            "base along with the run, run the same `deepens train` again, or train with --save-base"
        )
    ensemble, images = load_ensemble(run)
    if images != image_format:
        raise ValueError(f"{run.weights} was trained on images of another kind; delete {run.path}")
    return ensemble.member(0)


def base_of(run: Run, image_format: ImageFormat) -> nn.Module | None:
    """The frozen network of a run's family, None without one; refused as by `trained_base`."""
    if not family_of(run.config).has_base:
        return None
    trained = base_run(dataclasses.replace(run.config, out=str(run.path)))
    return trained_base(trained, image_format) if trained else build_base(run.config, image_format)


def _check_base(run: Run, ensemble: Ensemble, base: Any) -> None:
    name, expected = (base.get(key) if isinstance(base, dict) else None for key in ("name", "hash"))
    if (actual := ensemble.base_hash()) != expected:
        raise ValueError(
            f"{run.weights} belongs to another base: it was trained on {name} with weights "
            f"{str(expected)[:12]}, and those here are {actual[:12]}; restore the same base, or "
            "train again"
        )


def of_base(name: str) -> bool:
    """Whether a tensor of an ensemble belongs to the frozen base."""
    return name.startswith("base.")


def hash_network(network: nn.Module) -> str:
    """SHA-256 over the names, types, shapes and bytes of a network's weights, in hexadecimal."""
    return tensor_digest(network.state_dict()).hexdigest()


def hash_file(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_data(run: Run, splits: Splits) -> None:
    """Refuse data other than a run was trained on, by a ValueError."""
    if splits.training_fingerprint() != _header(run, load_content(run.weights)).data:
        other = f"other data than {run.config.data} holds now"
        raise ValueError(f"{run.path} was trained on {other}; train again into another --out")
