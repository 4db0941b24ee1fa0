"""The file of a trained ensemble: its weights, and all that is needed to use it on new images."""

import dataclasses
import hashlib
from pathlib import Path
from typing import Any

from ..ensembles import Ensemble
from ..ensembles.backbones import architecture_only
from .checkpoint import load_tensors, save_tensors
from .configuration import CIRCUMSTANCES, TrainConfig
from .methods import ImageFormat, build_ensemble
from .run import Run


def save_ensemble(run: Run, ensemble: Ensemble, form: ImageFormat, data: str) -> None:
    """Write a run's weights.

    Args:
        run: Where to.
        ensemble: The trained ensemble.
        form: The images that it takes.
        data: Fingerprint of the data that it was trained on.
    """
    options = run.config.to_dict()
    content = {
        # Not where or how it was made: the same training writes the same file anywhere.
        "config": {k: v for k, v in options.items() if k not in CIRCUMSTANCES},
        "format": dataclasses.asdict(form),
        "data": data,
    }
    save_tensors(run.weights, ensemble.state_dict(), content)


def load_ensemble(run: Run) -> tuple[Ensemble, ImageFormat]:
    """A run's trained ensemble, in evaluation mode, and the images that it takes.

    Raises:
        ValueError: The file is missing, damaged, or belongs to another run.
    """
    if not run.weights.exists():
        raise ValueError(
            f"{run.path} holds no trained ensemble yet ({run.weights} does not exist); "
            "run `deepens train` with the same options first"
        )
    tensors, content = load_tensors(run.weights)
    try:
        config = TrainConfig.from_dict(content["config"])
        held: dict[str, Any] = content["format"]
        held = {k: tuple(v) if isinstance(v, list) else v for k, v in held.items()}
        images = ImageFormat(**held)
    except (KeyError, TypeError) as error:
        raise ValueError(f"{run.weights} holds no ensemble of deepens: {error}") from None
    if differing := run.config.differences(config):
        raise ValueError(
            f"{run.weights} belongs to another run ({'; '.join(sorted(differing)[:4])})"
        )
    with architecture_only():
        ensemble = build_ensemble(config, images)
    expected = {name: tuple(t.shape) for name, t in ensemble.state_dict().items()}
    found = {name: tuple(t.shape) for name, t in tensors.items()}
    if wrong := sorted(name for name in expected | found if expected.get(name) != found.get(name)):
        raise ValueError(
            f"{run.weights} does not fit its ensemble: {len(wrong)} tensors differ, such as "
            f"{wrong[0]} ({found.get(wrong[0])} in the file, {expected.get(wrong[0])} expected)"
        )
    ensemble.load_state_dict(tensors)
    return ensemble.eval(), images


def hash_file(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
