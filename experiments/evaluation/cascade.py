"""A run's cascade: calibrated on ``val/calibrate``, measured on every split, stored and read."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ...datasets import SplitName
from ...datasets.image_format import ImageFormat
from ...datasets.plain_data import construct, parse_json
from ...ensembles import Ensemble, policies
from ...ensembles.policies import Calibration, Task, WindowPolicy, ensemble_stages
from ...ensembles.policies.calibration import FEWEST
from ..cost.macs import count_macs
from ..store.checkpoint import load_tensors
from ..store.progress import Display
from ..store.run import Run, csv_text, json_text, write_whole_text
from ..training.devices import threads
from ..training.weights import hash_file, load_ensemble
from .cascade_measures import CascadeMeasures, Logits, Point, Row
from .options import CascadeConfig
from .predictions import Predictions
from .temperatures import CALIBRATE

WIDTHS = (0.0, 0.025, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0)
"""Half widths of the windows whose cost and quality are drawn."""

FLAGGED = 0.95
"""Share of in-distribution images that are not flagged as OOD."""

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
        content = parse_json(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return
    except ValueError:
        content = None
    if not isinstance(content, dict) or "checksum" not in content:
        raise ValueError(f"{file} exists and is not a cascade; choose another --out")


def load_cascade(run: Run, file: Path) -> StoredCascade:
    """Read a run's cascade; refuse one that is missing, damaged, or of members in another order."""
    if not file.exists():
        raise ValueError(f"{file} does not exist; run `deepens cascade {run.path}` first")
    try:
        content = parse_json(file.read_text(encoding="utf-8"))
        if content["checksum"] != checksum(content):
            raise ValueError("changed")
        policy = WindowPolicy.from_dict(content["policy"])
        stored = construct(StoredCascade, {**content, "policy": policy}, str(file), more=True)
    except (KeyError, TypeError, ValueError):
        damage = "is not a cascade, or was changed since it was written"
        raise ValueError(f"{file} {damage}; {_AGAIN}") from None
    if content["weights"] != hash_file(run.weights):
        load_tensors(run.weights)  # damaged weights are named, not what was made of them
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


@dataclass(frozen=True)
class CalibratedCascade:
    """A calibrated cascade, as ``cascade.json`` stores it, with its measures and its curve.

    ``label`` is the measure of the curve's quality.
    """

    content: dict[str, Any]
    rows: list[Row]
    points: list[Point]
    label: str

    def save(self, file: Path) -> None:
        """Write ``cascade.json``, over no other kind of file, and the measures as CSV beside it."""
        check_overwrite(file)
        write_whole_text(file, json_text(self.content))
        write_whole_text(file.with_suffix(".csv"), csv_text(self.rows))


@threads(1)  # a few numbers per image: more threads would wait for each other
def calibrate_run(
    run: Run, config: CascadeConfig, *, display: Display | None = None
) -> CalibratedCascade:
    """Calibrate a run's cascade and measure it on every split, from the stored logits.

    Use it to run members only on the images that need them: most of the ensemble's quality at
    little more than the cost of one member.

    Raises:
        ValueError: If the run has one member or no calibration split, the order is not one of its
            members, an OOD task has no OOD images, or as `calibrate` and `search_windows`.
    """
    display = display or Display(quiet=True)
    ensemble, image_format = load_ensemble(run)
    members = _order(config, ensemble.num_members, run.path)
    predictions = Predictions(run)
    splits = {
        name: ([predictions.logits(name)[[i]] for i in members], predictions.targets(name))
        for name in predictions.splits
    }
    logits, targets = splits.get(CALIBRATE, ([], None))
    if targets is None:
        raise ValueError(f"{run.path} has no predictions of {CALIBRATE}, on which to calibrate")
    if config.task in ("ood", "scod") and not any(t is None for _, t in splits.values()):
        raise ValueError(
            f"the task {config.task} needs OOD images, and {run.path} has predictions of none; "
            "train with --near-ood or --far-ood, or evaluate again with data that has some"
        )
    task = Task(config.task, config.target_risk, config.target_coverage, config.target_tpr)
    macs = stage_macs(ensemble, image_format, members)
    measures = CascadeMeasures(splits, task, macs, config.confidence, config.pool)
    with display.task(f"cascade of {run.path}", 2 + len(WIDTHS)) as progress:
        cascade, held_out = _calibrate(logits, targets, task, macs, config)
        progress.advance()
        if held_out is not None:  # the baselines see the same images, and no others
            here, _ = policies.halves(len(targets), config.seed)
            logits, targets = [each[:, here] for each in logits], targets[here]
        rows: list[Row] = []
        for name, each in measures.policies(cascade, logits, targets).items():
            rows += measures.rows(name, each.policy)
        progress.advance()
        curve: list[Point] = []
        lacking: dict[str, list[str]] = {}
        for width in WIDTHS:
            try:
                curve += measures.points(width)
            except policies.TooFewImagesError:
                few = f"a later window would rest on fewer than {FEWEST} images"
                lacking.setdefault(few, []).append(f"{width:g}")
            except policies.OutOfReachError:
                lacking.setdefault("the target is out of reach", []).append(f"{width:g}")
            progress.advance()
    notes = [*cascade.notes]
    for reason, widths in lacking.items():
        notes.append(f"the curve lacks half widths {', '.join(widths)}: {reason}")
    if predictions.shift and not any(SplitName.parse(name).is_shift for name in splits):
        notes.append(
            "corrupted images are left out, since their logits were not kept: train with "
            "--keep-logits, or run `deepens evaluate RUN --predict` on such a run"
        )
    ood_threshold = cascade.policy.threshold
    if task.kind != "ood":
        confidence = policies.replay(cascade.policy, logits, pool=config.pool).confidence
        ood_threshold = policies.threshold_at_coverage(confidence, FLAGGED)
    reported = cascade if held_out is None else held_out
    stored = {
        "policy": cascade.policy.to_dict(),
        "pool": config.pool,
        "ood_threshold": ood_threshold,
        "order": members,
        "weights": hash_file(run.weights),
        "data": predictions.data,
        **_seen(reported),
    }
    content = {
        **stored,
        "checksum": checksum(stored),
        "task": asdict(task),
        "calibrated_on": CALIBRATE,
        "macs": macs,
        **_outcome(reported, macs),
        "held_out": None if held_out is None else _seen(held_out) | _outcome(held_out, macs),
        "notes": notes,
        "results": rows,
    }
    return CalibratedCascade(content, rows, curve, measures.label)


def _order(config: CascadeConfig, count: int, path: Path) -> list[int]:
    """The members in the order in which they run."""
    if count < 2:
        raise ValueError(f"a cascade needs >= 2 stages, and {path} has {count} member")
    members = list(config.order) or list(range(count))
    if not all(0 <= member < count for member in members):
        raise ValueError(f"order must name members in [0, {count}), got {members}")
    if len(set(members)) < len(members) or len(members) < 2:
        raise ValueError(f"order must name >= 2 members, each once, got {members}")
    return members


def _calibrate(
    logits: Logits, targets: Tensor, task: Task, macs: Sequence[int], config: CascadeConfig
) -> tuple[Calibration, Calibration | None]:
    """The calibration, and with a budget its outcome on the half on which nothing was chosen."""
    options: dict[str, Any] = {"confidence": config.confidence, "pool": config.pool}
    if config.budget is not None:
        options |= {"macs": macs, "budget": config.budget, "seed": config.seed}
        return policies.search_windows(logits, targets, task, **options)
    options |= {"width": config.width, "single_threshold": config.policy == "single"}
    return policies.calibrate(logits, targets, task, **options), None


def _seen(cascade: Calibration) -> dict[str, Any]:
    return {"images": cascade.images, "reached": list(cascade.reached)}


def _outcome(cascade: Calibration, macs: Sequence[int]) -> dict[str, Any]:
    average = cascade.average_macs(macs)
    return {"average_macs": average, "coverage": cascade.coverage, "risk": cascade.risk}
