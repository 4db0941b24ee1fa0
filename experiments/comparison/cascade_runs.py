"""Cascades as methods of a comparison: answers of a run's members, evaluated like any other run."""

import dataclasses
import json
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ...datasets import SplitName
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
from ..evaluation.evaluate import evaluate
from ..evaluation.predictions import Predictions, save_index, save_logits
from ..evaluation.temperatures import CALIBRATE
from ..evaluation.validation_fit import ValidationFit
from ..store.run import Run, read_json, write_json, write_whole_text
from ..training.devices import threads
from ..training.weights import hash_file, load_ensemble

CALIBRATION = "calibration.json"
"""The file in a cascade's directory that says how it decides; what `deepens cascade` writes has
another task, and stands with the run itself."""


@dataclasses.dataclass(frozen=True)
class CascadeRun:
    """A cascade over a run's members, and what it does.

    Attributes:
        run: Its directory, with predictions and metrics as every run has them.
        policy: Calibrated on ``val/calibrate``.
        reached: Share of each split's images that each stage ran on.
        macs: Of each stage alone.
        notes: What its user must know.
    """

    run: Run
    policy: WindowPolicy
    reached: Mapping[str, tuple[float, ...]]
    macs: tuple[int, ...]
    notes: tuple[str, ...]

    @property
    def average_macs(self) -> float:
        """Multiply-accumulates of a test image, on average."""
        return self.times("test") * self.macs[0]

    def times(self, kind: str) -> float:
        """Average multiply-accumulates over the first stage's, mean over a kind's splits.

        Args:
            kind: ``test``, ``near_ood`` and so on; encoded copies of OOD sets are left out.

        Returns:
            The ratio, NaN without such a split.
        """
        shares = [
            each
            for split, each in self.reached.items()
            if SplitName.parse(split).kind == kind and not SplitName.parse(split).encoded
        ]
        costs = [
            sum(share * cost for share, cost in zip(each, self.macs, strict=True))
            for each in shares
        ]
        return statistics.fmean(costs) / self.macs[0] if costs else math.nan


def cascade_run(source: Run, path: Path, options: CascadePolicy, *, policy: str) -> CascadeRun:
    """Calibrate a cascade over a run's members and evaluate its answers, unless that was done.

    The answers are kept as the logits of one network: of an image that left after stage m,

    ``z_c = log p̄(m)_c + (1/m) sum_{i <= m} logsumexp_c z_ic``,

    whose softmax is the mixture ``p̄(m)`` of the members that ran and whose energy is theirs. For an
    image that left after the first stage they are the first member's own. So everything is computed
    by the code that evaluates any other run.

    Args:
        source: A trained and evaluated run of an ensemble.
        path: The cascade's directory.
        options: Its task and windows.
        policy: ``"window"``, or ``"single"`` for the single-threshold policy of equal pass-through.

    Returns:
        The cascade.

    Raises:
        ValueError: If the run has one member or no calibration split, or as `calibrate`.
    """
    config = dataclasses.replace(source.config, members=1, member=None, out=str(path))
    run = Run(path, config)
    wanted = {
        "weights": hash_file(source.weights),
        "data": Predictions(source).data,
        "options": dataclasses.asdict(options),
        "policy_kind": policy,
    }
    file = path / CALIBRATION
    if not (file.exists() and _same(read_json(file), wanted) and _whole(run)):
        path.mkdir(parents=True, exist_ok=True)
        file.unlink(missing_ok=True)  # written last: what it stands for is there
        note = (
            f"# The answers of a {policy} cascade over {source.path.name}; nothing was trained.\n"
        )
        write_whole_text(path / "config.yaml", note + config.to_yaml())
        with threads(1):  # a few numbers an image: more threads would wait for each other
            found = _derive(source, run, options, policy)
            _keep_what_cascades_have(run, evaluate(run))
        write_json(file, wanted | found)
    held = read_json(file)
    return CascadeRun(
        run,
        WindowPolicy.from_dict(held["policy"]),
        {split: tuple(shares) for split, shares in held["reached"].items()},
        tuple(held["macs"]),
        tuple(held["notes"]),
    )


def _whole(run: Run) -> bool:
    """Tell whether everything that belongs to a cascade is there, undamaged."""
    try:
        Predictions(run).check()
    except ValueError:
        return False
    return True


def _keep_what_cascades_have(run: Run, metrics: Mapping[str, Mapping[str, int | float]]) -> None:
    """Mark as undefined what the logits of one network cannot tell of a cascade.

    Scores that compare members, the maximum logit (of a mixture it is another than the members'
    mean), and temperatures of single members: images have different numbers of members.
    """

    def is_lost(name: str) -> bool:
        info = metric_info(name)
        of_members = info.score in ("max_logit", "expected_entropy") or info.by_member
        return info.needs_members or of_members or info.way in ("joint", "member")

    write_json(
        run.metrics,
        {
            split: {name: math.nan if is_lost(name) else v for name, v in held.items()}
            for split, held in metrics.items()
        },
    )


def _same(held: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    return all(held.get(name) == value for name, value in json.loads(json.dumps(wanted)).items())


def cascade_logits(
    policy: WindowPolicy, logits: Sequence[Float[Tensor, "1 images classes"]]
) -> tuple[Float[Tensor, "1 images classes"], Float[Tensor, "stages"]]:
    """Return the logits of one network that answers as a cascade does, and how far images go.

    Args:
        policy: Windows of as many stages.
        logits: Of each stage, one member each.

    Returns:
        Logits as in `cascade_run`, and the share of images that reach each stage.

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


def _derive(source: Run, run: Run, options: CascadePolicy, policy: str) -> dict[str, Any]:
    """Write the predictions of a cascade, and return what is to be kept of it."""
    ensemble, form = load_ensemble(source)
    if ensemble.num_members < 2:
        raise ValueError(
            f"a cascade needs >= 2 stages, and {source.path} has {ensemble.num_members} member"
        )
    members = range(ensemble.num_members)
    predictions = Predictions(source)
    splits = {
        name: ([predictions.logits(name)[[i]] for i in members], predictions.targets(name))
        for name in predictions.splits
    }
    if CALIBRATE not in splits:
        raise ValueError(f"{source.path} has no predictions of {CALIBRATE}, on which to calibrate")
    logits, targets = splits[CALIBRATE]
    assert targets is not None  # validation images have labels
    task = Task("selective", options.target_risk, options.coverage)
    found = calibrate(logits, targets, task, width=options.width, confidence=options.confidence)
    if policy == "single":
        found = calibrate_passing(
            logits, targets, task, passing=found.passing, confidence=options.confidence
        )
    macs = stage_macs(ensemble, form, members)
    answers = {name: cascade_logits(found.policy, each) for name, (each, _) in splits.items()}
    shift = _write(run, answers, {name: each for name, (_, each) in splits.items()})
    save_index(run, list(answers), shift=shift, gradients={}, data=predictions.data)
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
) -> dict[str, dict[str, int | float]]:
    """Write a file of logits a split, and return the metrics of the shifted ones."""
    fit = ValidationFit()
    for name, (logits, _) in answers.items():
        fit.fit(name, logits, labels[name])
    shift = {}
    for name, (logits, _) in answers.items():
        targets = labels[name]
        if targets is not None and SplitName.parse(name).is_shift:
            shift[name] = fit.all_metrics(name, logits, targets)
        save_logits(run, name, logits, targets, content={"weights": None})
    return shift


class CascadeModel(nn.Module):
    """A cascade over an ensemble as one module, to be timed like any other network.

    Args:
        ensemble: In evaluation mode when it runs.
        policy: One stage a member.
    """

    def __init__(self, ensemble: Ensemble, policy: WindowPolicy) -> None:
        super().__init__()
        self.ensemble = ensemble
        self.cascade = Cascade(ensemble_stages(ensemble), policy)

    def forward(self, images: Tensor) -> Float[Tensor, "images classes"]:
        """Return the log-probabilities of the answers."""
        return self.cascade(images).log_probs
