"""Metrics of a run from its saved member logits, without running the network again."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..datasets import Splits, batches, load
from ..metrics.samples import SampleValues, sample_values
from ..metrics.suite import evaluate_ood_values, evaluate_values
from .checkpoint import load_tensors, save_tensors
from .devices import compute_device, pipeline_for, suitable_threads, threads
from .progress import Display
from .run import Run, read_json, write_json
from .weights import hash_file, load_ensemble

SHIFT = "shift/"
CHOSEN_ON = ("train", "val/select")
"""Splits on which nothing is reported, since weights are fitted or chosen on them."""

EVALUATION_BATCH = 256


def evaluate(
    run: Run,
    *,
    predict: bool = False,
    splits: Splits | None = None,
    display: Display | None = None,
) -> dict[str, dict[str, int | float]]:
    """Compute a run's metrics by split and write ``metrics.json``.

    Args:
        run: A trained run.
        predict: Run the network again, instead of reading the saved logits.
        splits: The run's data, where it is loaded already; read only for predicting.
        display: Where progress is shown.

    Returns:
        ``{split: {metric: value}}``, with n; undefined metrics are NaN.

    Raises:
        ValueError: Predictions that are missing, damaged, or another network's.
    """
    if predict or not _shift_file(run).exists():
        predict_splits(run, splits=splits, display=display or Display(quiet=run.config.quiet))
    with threads(1):  # a few numbers an image: more threads would wait for each other
        return _evaluate_saved(run)


def _evaluate_saved(run: Run) -> dict[str, dict[str, int | float]]:
    values = load_values(run)
    metrics: dict[str, dict[str, int | float]] = {}
    for name, each in values.items():
        if each.nll is not None:
            metrics[name] = evaluate_values(each)
    metrics |= {k: read_metrics(v) for k, v in read_json(_shift_file(run)).items()}
    for name, each in values.items():
        if each.nll is None:
            metrics[name] = evaluate_ood_values(values["test"], each)
    write_json(run.metrics, metrics)
    return metrics


def read_metrics(held: Mapping[str, int | float | None]) -> dict[str, int | float]:
    """Metrics as JSON holds them: null stands for an undefined value, NaN."""
    return {name: float("nan") if value is None else value for name, value in held.items()}


def load_metrics(run: Run) -> dict[str, dict[str, int | float]]:
    """A run's ``metrics.json``."""
    return {split: read_metrics(held) for split, held in read_json(run.metrics).items()}


def predict_splits(run: Run, *, splits: Splits | None, display: Display) -> None:
    """Write one file of float32 member logits a split, each split predicted once.

    Shift splits leave only their metrics behind, unless the run keeps their logits.

    Raises:
        ValueError: The run has no weights, or its data changed since the training.
    """
    ensemble, form = load_ensemble(run)
    splits = splits or load(run.config.data)
    device = compute_device(run.config)
    pipeline = pipeline_for(run.config, form)
    ensemble.to(device)
    if run.config.channels_last:
        ensemble.to(memory_format=torch.channels_last)
    weights = hash_file(run.weights)
    count = suitable_threads(ensemble.member(0), form, run.config.batch_size)
    shift: dict[str, dict[str, int | float]] = {}
    names = [name for name in splits.names() if name not in CHOSEN_ON]
    with threads(count), display.task(f"predict {run.path}", len(names)) as task:
        for name in names:
            split = splits[name]
            with torch.inference_mode():
                parts = [
                    ensemble(images).float().cpu()
                    for images, _ in batches(split, batch_size=EVALUATION_BATCH, pipeline=pipeline)
                ]
            logits = torch.cat(parts, dim=1)
            if name.startswith(SHIFT):
                shift[name] = evaluate_values(sample_values(logits, split.targets))
            if not name.startswith(SHIFT) or run.config.keep_logits:
                tensors = {"logits": logits}
                if split.targets is not None:
                    tensors["targets"] = split.targets
                content = {"split": name, "data": split.fingerprint(), "weights": weights}
                save_tensors(run.prediction(name), tensors, content)
            task.advance(name)
    write_json(_shift_file(run), shift)


def load_logits(run: Run) -> dict[str, tuple[Tensor, Tensor | None]]:
    """A run's saved member logits ``[M, N, C]`` and targets ``[N]`` (None for OOD), by split.

    Raises:
        ValueError: None there, damaged, or made by other weights than the run's.
    """
    weights = hash_file(run.weights) if run.weights.exists() else None
    folder = run.path / "predictions"
    loaded: dict[str, tuple[Tensor, Tensor | None]] = {}
    for file in sorted(folder.rglob("*.safetensors")):
        if file.name.startswith("."):
            continue
        name = file.relative_to(folder).with_suffix("").as_posix()
        tensors, content = load_tensors(file)
        _check(file, name, tensors, content, weights)
        loaded[name] = (tensors["logits"], tensors.get("targets"))
    if "test" not in loaded:
        raise ValueError(
            f"{run.path} holds no predictions of the test split; "
            f"run `deepens evaluate {run.path} --predict`"
        )
    return loaded


def load_values(run: Run) -> dict[str, SampleValues]:
    """Per-sample values of a run's saved logits, by split; shift splits have none here."""
    return {
        name: sample_values(logits, targets)
        for name, (logits, targets) in load_logits(run).items()
        if not name.startswith(SHIFT)
    }


def _check(
    file: Path, name: str, tensors: Mapping[str, Tensor], content: Any, weights: str | None
) -> None:
    remedy = "; delete it and run `deepens evaluate --predict`"
    if not isinstance(content, dict) or content.get("split") != name or "logits" not in tensors:
        raise ValueError(f"{file} holds no predictions of the split {name!r}{remedy}")
    if weights is not None and content.get("weights") != weights:
        raise ValueError(f"{file} holds predictions of other weights than the run's{remedy}")


def _shift_file(run: Run) -> Path:
    return run.path / "predictions" / "shift.json"
