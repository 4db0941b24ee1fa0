"""Metrics of a run from its stored member logits, without running the network again."""

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal

from ...datasets import SplitName, Splits
from ...metrics.detection.ood import evaluate_members
from ...metrics.suite import evaluate_ood_values, evaluate_values
from ..store.progress import Display
from ..store.run import CALIBRATION, Run
from ..training.devices import threads
from .predict_splits import predict_splits
from .predictions import Metrics, Predictions, extent_of, save_metrics
from .temperatures import save_temperatures
from .validation_fit import ValidationFit


def evaluate(
    run: Run,
    *,
    predict: bool = False,
    extent: Literal["quick", "full"] | None = None,
    detectors: Sequence[str] = (),
    splits: Splits | None = None,
    display: Display | None = None,
    parts: Sequence[Run] = (),
    known: Predictions | None = None,
) -> Metrics:
    """Compute a run's metrics by split and write ``metrics.json``.

    Args:
        run: A trained run.
        predict: Run the network again, instead of reading the stored logits.
        extent: How much is measured: quick, or full also corrupted copies and input gradients. The
            network predicts what is missing of it; when absent, what is there is measured.
        detectors: Detectors to add to those that the run has; only for predicting.
        splits: The run's data, where it is loaded already; read only for predicting.
        display: Where progress is shown; nowhere by default.
        parts: Runs of this run's first members, which are predicted and evaluated with it; only for
            predicting.
        known: Predictions of a run whose first members are this run's, which are not computed
            again; only for predicting.

    Returns:
        ``{split: {metric: value}}``, with n; undefined metrics are NaN.

    Raises:
        ValueError: Predictions that are missing, damaged, or another network's; unknown detectors,
            or some without predicting; the directory of a comparison's cascade.
    """
    if (run.path / CALIBRATION).exists():
        why = "whose metrics follow from its ensemble: run `deepens compare` again"
        raise ValueError(f"{run.path} is a cascade, {why}")
    if detectors and not predict:
        remedy = f"`deepens evaluate {run.path} --predict --detectors {','.join(detectors)}`"
        raise ValueError(f"detectors read features, which are not stored; run {remedy}")
    before = extent_of(run) if predict or extent is not None else None
    missing = extent is not None and before != "full" and extent != before
    if predict or missing:
        display = display or Display(quiet=True)
        if not predict and before is not None:
            known = Predictions(run)
            known.check()
        config = dataclasses.replace(run.config, evaluate=extent or before or run.config.evaluate)
        aimed = dataclasses.replace(run, config=config)
        more: dict[str, Any] = {"parts": parts, "known": known, "display": display}
        predict_splits(aimed, detectors=detectors, splits=splits, **more)
    metrics: Metrics = {}
    for each in (*parts, run):
        with threads(1):  # a few numbers per image: more threads would wait for each other
            metrics, fit = evaluate_predictions(Predictions(each))
        save_temperatures(each, fit.temperatures, conformal=fit.sets_unidentified)
        save_metrics(each, metrics)
    return metrics


def evaluate_predictions(predictions: Predictions) -> tuple[Metrics, ValidationFit]:
    """Metrics of stored predictions by split, and the fits they rest on; nothing is written."""
    metrics: Metrics = {}
    fit = ValidationFit(copied=predictions.copied)
    stored = [name for name in predictions.splits if not SplitName.parse(name).is_shift]
    for name in stored:
        fit.fit(name, predictions.logits(name), predictions.targets(name))
    for name in stored:
        if (targets := predictions.targets(name)) is not None:
            metrics[name] = evaluate_values(predictions.values(name))
            metrics[name] |= fit.metrics(name, predictions.logits(name), targets)
    metrics |= predictions.shift
    for name in stored:
        if predictions.targets(name) is None:
            test = predictions.values("test")
            metrics[name] = evaluate_ood_values(test, predictions.values(name))
            scores = predictions.scores(name)
            if scores and predictions.num_members > 1:
                metrics[name] |= evaluate_members(predictions.scores("test"), scores)
    for name, more in predictions.gradients.items():
        metrics.setdefault(name, {}).update(more)
    return metrics, fit
