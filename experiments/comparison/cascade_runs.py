"""Cascades of a comparison: the answers of a run's members, evaluated as any run is."""

import dataclasses
import json
import math
import statistics
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ...datasets import SplitName
from ...datasets.plain_data import construct
from ...ensembles import Ensemble
from ...ensembles.policies import (
    Cascade,
    Task,
    WindowPolicy,
    calibrate,
    calibrate_passing,
    ensemble_stages,
    replay,
)
from ...metrics.core.catalogue import metric_info
from ..config import CascadePolicy
from ..evaluation.cascade import stage_macs
from ..evaluation.evaluate import evaluate_predictions
from ..evaluation.predictions import Metrics, Predictions, save_index, save_logits, save_metrics
from ..evaluation.temperatures import CALIBRATE, save_temperatures
from ..evaluation.validation_fit import ValidationFit
from ..store.errors import damaged
from ..store.run import CALIBRATION, Run, read_json, write_json
from ..training.devices import threads
from ..training.weights import load_ensemble
from .verdicts import shown_copies


@dataclasses.dataclass(frozen=True)
class CascadeRecord:
    """A cascade over the members of a run, its ``source``, as a comparison keeps it.

    Its directory holds ``calibration.json`` and, as that of a run does, ``predictions/``,
    ``metrics.json`` and ``temperature.json``; nothing was trained for it.

    Attributes:
        policy: Calibrated on ``val/calibrate``.
        reached: Share of each split's images that each stage ran on.
        macs: Of each stage alone.
        notes: What its user must know.
    """

    path: Path
    source: Run
    policy: WindowPolicy
    reached: Mapping[str, tuple[float, ...]]
    macs: tuple[int, ...]
    notes: tuple[str, ...]

    @classmethod
    def open(cls, path: Path, source: Run) -> "CascadeRecord":
        """Read a cascade's directory, also of earlier versions, without its predictions.

        Raises:
            ValueError: The file is missing or damaged.
        """
        content = read_json(path / CALIBRATION)
        try:
            policy = WindowPolicy.from_dict(content["policy"])
            own = {"path": path, "source": source, "policy": policy}
            return construct(cls, content | own, CALIBRATION, more=True)
        except (KeyError, TypeError, ValueError):
            raise damaged(path / CALIBRATION, "run `deepens compare` again") from None

    @property
    def run(self) -> Run:
        """Its directory as a run of one network: each image has one answer."""
        return _answers_of(self.path, self.source)

    @cached_property
    def predictions(self) -> Predictions:
        """The answers, as the logits of one network."""
        return Predictions(self.run)

    @property
    def average_macs(self) -> float:
        """Multiply-accumulates of a test image, on average."""
        return self.times("test") * self.macs[0]

    def times(self, kind: str) -> float:
        """Average multiply-accumulates over the first stage's, mean over the splits of a kind.

        Of OOD sets the copy that counts is taken; NaN without any split.
        """
        costs = [
            sum(share * cost for share, cost in zip(self.reached[split], self.macs, strict=True))
            for split in shown_copies(self.reached)
            if SplitName.parse(split).kind == kind
        ]
        return statistics.fmean(costs) / self.macs[0] if costs else math.nan


def _answers_of(path: Path, source: Run) -> Run:
    """Return a cascade's directory as a run of one network, for the code that evaluates runs."""
    config = dataclasses.replace(source.config, members=1, member=None, out=str(path))
    return Run(path, config)


def make_cascade(
    source: Predictions, path: Path, options: CascadePolicy, *, policy: str
) -> CascadeRecord:
    """Calibrate a cascade over a run's members and evaluate its answers, unless that was done.

    The answers are stored as the logits of one network: of an image that left after stage m,

    ``z_c = log p̄(m)_c + (1/m) sum_{i <= m} logsumexp_c z_ic``,

    whose softmax is the mixture ``p̄(m)`` of the members that ran and whose energy is theirs; for an
    image that left after the first stage they are the first member's own.

    ``policy`` is ``"window"``, or ``"single"`` for the single-threshold policy of equal
    pass-through. The tensors of the source are let go of.

    Raises:
        ValueError: If the run has one member or no calibration split, or as `calibrate`.
    """
    wanted = {
        "weights": source.weights,
        "data": source.data,
        "options": dataclasses.asdict(options),
        "policy_kind": policy,
    }
    if (finished := _finished(path, source.run, wanted)) is not None:
        return finished
    path.mkdir(parents=True, exist_ok=True)
    file = path / CALIBRATION
    file.unlink(missing_ok=True)  # written last: what it stands for is there
    with threads(1):  # a few numbers per image: more threads would wait for each other
        content = _derive(source, _answers_of(path, source.run), options, policy)
    source.release()
    write_json(file, wanted | content)
    return CascadeRecord.open(path, source.run)


def _finished(path: Path, source: Run, wanted: Mapping[str, Any]) -> CascadeRecord | None:
    """This very cascade, if it is stored whole and undamaged."""
    if not (path / CALIBRATION).exists():
        return None
    content = read_json(path / CALIBRATION)
    if any(content.get(name) != value for name, value in json.loads(json.dumps(wanted)).items()):
        return None
    try:
        record = CascadeRecord.open(path, source)
        record.predictions.check()
    except ValueError:
        return None
    record.predictions.release()
    return record


def _has_value(metric: str) -> bool:
    """Tell whether a cascade has a metric: images have different numbers of members.

    It has none that compares or scales single members, and not the maximum logit, which of a
    mixture is another than the members' mean.
    """
    info = metric_info(metric)
    of_members = info.score in ("max_logit", "expected_entropy") or info.by_member
    return not (info.needs_members or of_members or info.way in ("joint", "member"))


def _evaluate(run: Run) -> None:
    """Compute the metrics of the answers; those that a cascade does not have are undefined."""
    computed, fit = evaluate_predictions(Predictions(run))
    metrics: Metrics = {
        split: {name: value if _has_value(name) else math.nan for name, value in values.items()}
        for split, values in computed.items()
    }
    save_temperatures(run, fit.temperatures, conformal=fit.sets_unidentified)
    save_metrics(run, metrics)


def cascade_logits(
    policy: WindowPolicy, logits: Sequence[Float[Tensor, "1 images classes"]]
) -> tuple[Float[Tensor, "1 images classes"], Float[Tensor, " stages"]]:
    """Return the logits of one network that answers as a cascade does, and how far images go.

    From the logits of each stage, one member each: logits as in `make_cascade`, and the share of
    images that reach each stage.

    Example:
        >>> import torch
        >>> from deepens.ensembles.policies import WindowPolicy
        >>> from deepens.experiments.comparison.cascade_runs import cascade_logits
        >>> stages = [torch.tensor([[[3.0, 0.0], [0.2, 0.0]]]), torch.tensor([[[1.0, 0.0]] * 2])]
        >>> answers, reached = cascade_logits(WindowPolicy([(0.0, 0.9)]), stages)
        >>> reached.tolist()
        [1.0, 0.5]
        >>> torch.allclose(answers[0, 0], stages[0][0, 0].double())
        True
    """
    answers = replay(policy, logits)
    exact = torch.cat([each.double() for each in logits])
    counts = torch.arange(1, len(logits) + 1, dtype=torch.float64, device=exact.device)
    means = exact.logsumexp(-1).cumsum(0) / counts[:, None]
    energy = means.gather(0, answers.stage[None] - 1)[0]
    return (answers.log_probs + energy[:, None])[None], answers.reached(len(logits))


def _derive(source: Predictions, run: Run, options: CascadePolicy, policy: str) -> dict[str, Any]:
    """Write the predictions and metrics of a cascade, and return the content of its record."""
    ensemble, image_format = load_ensemble(source.run)
    path, members = source.run.path, range(ensemble.num_members)
    if len(members) < 2:
        raise ValueError(f"a cascade needs >= 2 stages, and {path} has {len(members)} member")
    splits = {
        name: ([source.logits(name)[[i]] for i in members], source.targets(name))
        for name in source.splits
    }
    if CALIBRATE not in splits:
        raise ValueError(f"{path} has no predictions of {CALIBRATE}, on which to calibrate")
    logits, targets = splits[CALIBRATE]
    assert targets is not None  # validation images have labels
    task = Task("selective", options.target_risk, options.coverage)
    found = calibrate(logits, targets, task, width=options.width, confidence=options.confidence)
    if policy == "single":
        found = calibrate_passing(
            logits, targets, task, passing=found.passing, confidence=options.confidence
        )
    macs = stage_macs(ensemble, image_format, members)
    answers = {name: cascade_logits(found.policy, each) for name, (each, _) in splits.items()}
    labels = {name: each for name, (_, each) in splits.items()}
    checksums, shift = _write(run, answers, labels, source.copied)
    save_index(run, checksums, shift=shift, gradients={}, data=source.data, copied=source.copied)
    _evaluate(run)
    return {
        "policy": found.policy.to_dict(),
        "task": dataclasses.asdict(task),
        "calibrated_on": CALIBRATE,
        "images": found.images,
        "reached": {name: share.tolist() for name, (_, share) in answers.items()},
        "macs": macs,
        "notes": list(found.notes),
    }


def _write(
    run: Run,
    answers: Mapping[str, tuple[Tensor, Tensor]],
    labels: Mapping[str, Tensor | None],
    copied: Mapping[str, int],
) -> tuple[dict[str, str], Metrics]:
    """Write a file of logits per split; return their checksums, and metrics of shifted ones."""
    fit = ValidationFit(copied=copied)
    for name, (logits, _) in answers.items():
        fit.fit(name, logits, labels[name])
    checksums: dict[str, str] = {}
    shift: Metrics = {}
    for name, (logits, _) in answers.items():
        targets = labels[name]
        if targets is not None and SplitName.parse(name).is_shift:
            shift[name] = fit.all_metrics(name, logits, targets)
        checksums[name] = save_logits(run, name, logits, targets, content={"weights": None})
    return checksums, shift


class CascadeModel(nn.Module):
    """A cascade over an ensemble, in evaluation mode, as one module to be timed like any other."""

    def __init__(self, ensemble: Ensemble, policy: WindowPolicy) -> None:
        super().__init__()
        self.ensemble = ensemble
        self.cascade = Cascade(ensemble_stages(ensemble), policy)

    def forward(self, images: Tensor) -> Float[Tensor, "images classes"]:
        """Return the log-probabilities of the answers."""
        return self.cascade(images).log_probs
