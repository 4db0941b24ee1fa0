"""The cascade that is stored with a run: read, checked, and what each of its stages costs."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ...datasets.image_format import ImageFormat
from ...ensembles import Ensemble
from ...ensembles.policies import WindowPolicy, ensemble_stages
from ..cost.macs import count_macs
from ..store.run import Run
from ..training.weights import hash_file

_AGAIN = "run `deepens cascade RUN` again"
_STORED = ("policy", "pool", "ood_threshold", "order", "weights", "data", "images", "reached")


@dataclass(frozen=True)
class StoredCascade:
    """A calibrated cascade of a run's members.

    Attributes:
        policy: Windows and threshold.
        order: Members in the order in which they run.
        reached: Expected share of in-distribution images that each stage runs on.
        images: Number of images that it was calibrated on.
        ood_threshold: Confidence below which an image is flagged as OOD.
        pool: ``"mean"`` of the members that ran, or the ``"last"`` one alone.
    """

    policy: WindowPolicy
    order: tuple[int, ...]
    reached: tuple[float, ...]
    images: int
    ood_threshold: float
    pool: str = "mean"


def checksum(content: Mapping[str, Any]) -> str:
    """SHA-256 of what decides a cascade's answers; a KeyError where some of it is missing."""
    # Files of earlier versions name no pool: they always answered by the mean.
    names = [name for name in _STORED if name != "pool" or name in content]
    stored = {name: content[name] for name in names}
    return hashlib.sha256(json.dumps(stored, sort_keys=True).encode()).hexdigest()


def check_overwrite(file: Path) -> None:
    """Refuse to overwrite a file that is not a cascade."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return
    except (UnicodeDecodeError, json.JSONDecodeError):
        content = None
    if not isinstance(content, dict) or "checksum" not in content:
        raise ValueError(f"{file} exists and is not a cascade; choose another --out")


def load_cascade(run: Run, file: Path) -> StoredCascade:
    """Read a cascade of a run.

    Raises:
        ValueError: It is missing, damaged, or of other members or another order of them.
    """
    if not file.exists():
        raise ValueError(f"{file} does not exist; run `deepens cascade {run.path}` first")
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        if content["checksum"] != checksum(content):
            raise ValueError("changed")
        stored = StoredCascade(
            WindowPolicy.from_dict(content["policy"]),
            tuple(content["order"]),
            tuple(content["reached"]),
            content["images"],
            float(content["ood_threshold"]),
            content.get("pool", "mean"),
        )
    except (KeyError, TypeError, ValueError):
        raise ValueError(
            f"{file} is not a cascade, or was changed since it was written; {_AGAIN}"
        ) from None
    if content["weights"] != hash_file(run.weights):
        raise ValueError(
            f"{file} was calibrated on other members, or another order of them, than {run.path} "
            f"holds now; {_AGAIN}"
        )
    return stored


def stage_macs(ensemble: Ensemble, image_format: ImageFormat, members: Sequence[int]) -> list[int]:
    """MACs that each stage adds; what members share counts where it is first done.

    A ValueError refuses members that cannot run in the given order.
    """
    counts = range(1, len(members) + 1)
    so_far = [count_macs(_InTurn(ensemble, members[:n]), image_format.shape) for n in counts]
    return [after - before for before, after in zip([0, *so_far], so_far, strict=False)]


class _InTurn(nn.Module):
    """The stages of some members on the same images, the very functions that a cascade runs."""

    def __init__(self, ensemble: Ensemble, members: Sequence[int]) -> None:
        super().__init__()
        self.ensemble, self.members = ensemble, list(members)

    def forward(self, images: Tensor) -> Tensor:
        state, logits = images, images
        for stage in ensemble_stages(self.ensemble, self.members):
            state, logits = stage(state)
        return logits
