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
from .input_gradients import BATCH, MOST_IMAGES, MOST_SHIFTED, split_similarity
from .progress import Display
from .run import Run, damaged, read_json, write_json
from .weights import hash_file, load_ensemble

SHIFT = "shift/"
CHOSEN_ON = ("train", "val/select")
"""Splits on which nothing is reported, since weights are fitted or chosen on them."""

EVALUATION_BATCH = 256
_AGAIN = "`deepens evaluate {} --predict`"


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
    if predict:
        predict_splits(run, splits=splits, display=display or Display(quiet=run.config.quiet))
    with threads(1):  # a few numbers an image: more threads would wait for each other
        values = load_values(run)
        metrics: dict[str, dict[str, int | float]] = {}
        for name, each in values.items():
            if each.nll is not None:
                metrics[name] = evaluate_values(each)
        index, remedy = _index(run), f"run {_AGAIN.format(run.path)}"
        metrics |= _read_metrics(index, "shift", remedy)
        for name, each in values.items():
            if each.nll is None:
                metrics[name] = evaluate_ood_values(values["test"], each)
        # What logits do not tell; predictions of earlier versions have none.
        for name, more in _read_metrics({"gradients": {}, **index}, "gradients", remedy).items():
            metrics.setdefault(name, {}).update(more)
    write_json(run.metrics, metrics)
    return metrics


def load_metrics(run: Run) -> dict[str, dict[str, int | float]]:
    """A run's ``metrics.json``; undefined values are NaN.

    Raises:
        ValueError: The file is missing or damaged.
    """
    remedy = f"run `deepens evaluate {run.path}`"
    return _read_metrics({"metrics": read_json(run.metrics)}, "metrics", remedy, run.metrics)


def predict_splits(run: Run, *, splits: Splits | None, display: Display) -> None:
    """Write one file of float32 member logits a split, each split predicted once.

    Shift splits leave only their metrics behind, unless the run keeps their logits. How alike the
    members' input gradients are is measured on all but the validation images.

    Raises:
        ValueError: The run has no weights, or its data changed since the training.
    """
    ensemble, form = load_ensemble(run)
    splits = splits or load(run.config, watcher=display)
    check_data(run, splits)
    device = compute_device(run.config)
    pipeline = pipeline_for(run.config, form)
    count = suitable_threads(ensemble.member(0), form, run.config.batch_size)
    ensemble.to(device)
    if run.config.channels_last:
        ensemble.to(memory_format=torch.channels_last)
    weights = hash_file(run.weights)
    kept: list[str] = []
    shift: dict[str, dict[str, int | float]] = {}
    gradients: dict[str, dict[str, int | float]] = {}
    names = [name for name in splits.names() if name not in CHOSEN_ON]
    with threads(count), display.task(f"predict {run.path}", len(names)) as task:
        for name in names:
            split = splits[name]
            loaded = batches(
                split,
                batch_size=EVALUATION_BATCH,
                pipeline=pipeline,
                workers=run.config.workers,
            )
            with torch.inference_mode():
                parts = [ensemble(images).float().cpu() for images, _ in loaded]
            logits = torch.cat(parts, dim=1)
            if name.startswith(SHIFT):
                shift[name] = evaluate_values(_values(logits, split.targets, f"split {name}"))
            if ensemble.num_members > 1 and not name.startswith("val/"):
                gradients[name] = split_similarity(
                    ensemble,
                    split,
                    logits,
                    most=MOST_SHIFTED if name.startswith(SHIFT) else MOST_IMAGES,
                    batch_size=min(BATCH, run.config.batch_size),  # which fits in memory
                    pipeline=pipeline,
                    workers=run.config.workers,
                )
            if not name.startswith(SHIFT) or run.config.keep_logits:
                tensors = {"logits": logits}
                if split.targets is not None:
                    tensors["targets"] = split.targets
                content = {"split": name, "data": split.fingerprint(), "weights": weights}
                save_tensors(run.prediction(name), tensors, content)
                kept.append(name)
            task.advance(name)
    # Written last: what it names is there.
    write_json(
        _index_file(run),
        {"splits": kept, "shift": shift, "gradients": gradients, "data": splits.fingerprint()},
    )


def check_data(run: Run, splits: Splits) -> None:
    """Refuse data on which a run was not trained.

    Raises:
        ValueError: The images that it learned from, or their classes, changed since.
    """
    if splits.training_fingerprint() != load_tensors(run.weights)[1]["data"]:
        raise ValueError(
            f"{run.path} was trained on other data than {run.config.data} holds now; train again "
            "into another --out"
        )


def predicted_data(run: Run) -> str | None:
    """Fingerprint of the splits that a run's predictions are of; None where there are none."""
    if not _index_file(run).exists():
        return None
    return read_json(_index_file(run)).get("data")


def load_logits(run: Run) -> dict[str, tuple[Tensor, Tensor | None]]:
    """A run's saved member logits ``[M, N, C]`` and targets ``[N]`` (None for OOD), by split.

    Raises:
        ValueError: One is missing, damaged, or made by other weights than the run's.
    """
    weights = None
    if run.weights.exists():
        load_tensors(run.weights)  # what is damaged is named before what was made with it
        weights = hash_file(run.weights)
    members = run.config.members if run.config.member is None else 1
    loaded: dict[str, tuple[Tensor, Tensor | None]] = {}
    for name in _index(run)["splits"]:
        file = run.prediction(name)
        if not file.exists():
            raise damaged(file, f"run {_AGAIN.format(run.path)}")
        tensors, content = load_tensors(file)
        _check(file, name, tensors, content, weights)
        logits = tensors["logits"]
        classes = loaded["test"][0].shape[-1] if "test" in loaded else logits.shape[-1]
        if logits.ndim != 3 or (len(logits), logits.shape[-1]) != (members, classes):
            raise ValueError(
                f"{file} holds logits of shape {list(logits.shape)}, not [{members}, samples, "
                f"{classes}]; run {_AGAIN.format(run.path)}"
            )
        loaded[name] = (logits, tensors.get("targets"))
    return loaded


def load_values(run: Run, *, shift: bool = False) -> dict[str, SampleValues]:
    """Per-sample values of a run's saved logits, by split.

    Args:
        run: A trained run.
        shift: Whether also of the shift splits, where their logits were kept.

    Raises:
        ValueError: As ``load_logits``, or logits that are not finite.
    """
    return {
        name: _values(logits, targets, str(run.prediction(name)))
        for name, (logits, targets) in load_logits(run).items()
        if shift or not name.startswith(SHIFT)
    }


def _values(logits: Tensor, targets: Tensor | None, where: str) -> SampleValues:
    try:
        return sample_values(logits, targets)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


def _check(
    file: Path, name: str, tensors: Mapping[str, Tensor], content: Any, weights: str | None
) -> None:
    remedy = "; run `deepens evaluate RUN --predict`"
    if not isinstance(content, dict) or content.get("split") != name or "logits" not in tensors:
        raise ValueError(f"{file} holds no predictions of the split {name!r}{remedy}")
    if weights is not None and content.get("weights") != weights:
        raise ValueError(f"{file} holds predictions of other weights than the run's{remedy}")


def _index_file(run: Run) -> Path:
    return run.path / "predictions" / "index.json"


def _index(run: Run) -> dict[str, Any]:
    """Names of the splits whose logits were kept, and what those do not tell."""
    remedy = f"run {_AGAIN.format(run.path)}"
    if not _index_file(run).exists():
        raise damaged(_index_file(run), remedy)
    index = read_json(_index_file(run))
    if not isinstance(index.get("splits"), list) or "test" not in index["splits"]:
        raise damaged(_index_file(run), remedy)
    return index


def _read_metrics(
    content: Mapping[str, Any], key: str, remedy: str, file: Path | None = None
) -> dict[str, dict[str, int | float]]:
    """Metrics as JSON holds them: null stands for an undefined value, NaN."""
    try:
        metrics = {
            split: {k: float("nan") if v is None else v for k, v in held.items()}
            for split, held in content[key].items()
        }
        if file is not None:
            metrics["test"]["accuracy"]
    except (KeyError, AttributeError):
        raise damaged(file or Path("predictions/index.json"), remedy) from None
    return metrics
