"""Test images worth looking at: the hardest of all, and each method's most confident errors.

They are chosen while the data is available and kept beside the runs, so that a report can be
written without the data.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from jaxtyping import Float, Float64, Int64, UInt8
from torch import Tensor
from torch.nn import functional as F

from ...datasets import Splits
from ...datasets.files import printable
from ...metrics.core.mixture import member_log_probs, pool_log_probs
from ..evaluation.predictions import Predictions
from ..store.checkpoint import load_tensors, save_tensors
from ..store.progress import Display
from ..training.devices import threads

HARDEST = 24
OVERCONFIDENT = 12
SIDE = 96
"""Pixels a side at most: a report holds about a hundred pictures."""

CHUNK = 2**18  # probabilities worked on at a time
_TENSORS = ("images", "index", "targets", "nll", "predicted", "confidence")
_LISTS = ("runs", "methods", "classes", "hardest")


@dataclass(frozen=True, eq=False)
class Examples:
    """Test images worth looking at, and what each method says about them.

    Attributes:
        runs: Directories of the runs that were asked, method by method.
        methods: Names of the methods, in the order of the rows.
        classes: Names of the classes, in the order of the targets.
        images: The pictures, uint8 from 0 to 255.
        index: Their places in the test split; ``targets`` are their classes.
        nll: How hard they are, in nats: the mean over all methods and replicates.
        predicted: The class that each method gives most probability, by its mixture averaged over
            replicates; ``confidence`` is that probability.
        hardest: Which of the shown are the hardest, the hardest first.
        overconfident: Which of the shown are a method's most confident errors, by its name.
        files: The files of the shown; none where images came from elsewhere.
    """

    runs: tuple[str, ...]
    methods: tuple[str, ...]
    classes: tuple[str, ...]
    images: UInt8[Tensor, "shown channels height width"]
    index: Int64[Tensor, " shown"]
    targets: Int64[Tensor, " shown"]
    nll: Float64[Tensor, " shown"]
    predicted: Int64[Tensor, "methods shown"]
    confidence: Float64[Tensor, "methods shown"]
    hardest: tuple[int, ...]
    overconfident: Mapping[str, tuple[int, ...]]
    files: tuple[str, ...] = ()


def choose_examples(
    images: Any,
    targets: Int64[Tensor, " samples"],
    *,
    classes: Sequence[str],
    runs: Sequence[str],
    predictions: Iterable[tuple[str, Sequence[Float[Tensor, "_ _ classes"]]]],
    files: Sequence[Path] | None = None,
) -> Examples:
    """Choose the hardest test images, and each method's most confident errors.

    With ``p_r`` the mixture of a method's replicate r, the method says ``argmax_c mean_r p_r(c)``
    with that mean as its confidence. Errors are sorted by it. An image is hard
    by ``-log p_r(target)``, averaged over all replicates of all methods. Of equals, the image that
    comes first is taken.

    Args:
        images: The test split's, ``[samples, channels, height, width]`` in uint8: a tensor, or
            what gives images that have still to be loaded when it is indexed.
        targets: Their classes.
        classes: Names of the classes.
        runs: Directories of the runs, method by method.
        predictions: Each method with the logits of its replicates, read one method at a time.
        files: The file of each image, where there are some.

    Raises:
        ValueError: If there is no prediction, or one is not of these images.
    """
    names, predicted, confidence, count = [], [], [], 0
    hardness = torch.zeros(len(targets), dtype=torch.float64)
    for name, replicates in predictions:
        for logits in replicates:
            if logits.shape[1] != len(targets):
                raise ValueError(
                    f"logits of {name!r} must be of {len(targets)} images, got {logits.shape[1]}"
                )
        said, sure, nll = _opinion(replicates, targets)
        names.append(name)
        predicted.append(said)
        confidence.append(sure)
        hardness += nll
        count += len(replicates)
    if not count:
        raise ValueError("predictions must hold >= 1 run, got 0")
    hardest = _highest(hardness, HARDEST)
    overconfident = {
        name: _highest(sure.masked_fill(said == targets, -1.0), OVERCONFIDENT, above=0.0)
        for name, said, sure in zip(names, predicted, confidence, strict=True)
    }
    index = list(dict.fromkeys([*hardest, *(i for c in overconfident.values() for i in c)]))
    place = {image: position for position, image in enumerate(index)}
    shown = torch.tensor(index)
    chosen = images[shown]
    return Examples(
        runs=tuple(runs),
        methods=tuple(names),
        classes=tuple(classes),
        images=_shrunk(chosen if isinstance(chosen, Tensor) else chosen.load()),
        index=shown,
        targets=targets[shown],
        nll=hardness[shown] / count,
        predicted=torch.stack(predicted)[:, shown],
        confidence=torch.stack(confidence)[:, shown],
        hardest=tuple(place[i] for i in hardest),
        overconfident={k: tuple(place[i] for i in chosen) for k, chosen in overconfident.items()},
        files=() if files is None else tuple(printable(files[i]) for i in index),
    )


def examples_of_runs(
    runs: Mapping[str, Sequence[Predictions]],
    splits: Splits,
    *,
    data: str,
    display: Display | None = None,
) -> Examples:
    """Choose the pictures of a comparison from what its runs predict for the test images.

    The tensors of the predictions are let go of; ``data`` is the name of the data in a refusal.
    Progress is shown on the ``display``, or nowhere.

    Raises:
        ValueError: A run was evaluated on other test images.
    """
    test = splits["test"]
    labels = cast(Tensor, test.targets)  # `Splits` has checked that there are some

    def logits(predictions: Predictions) -> Tensor:
        path, targets = predictions.run.path, predictions.targets("test")
        if targets is None or not torch.equal(targets, labels):
            raise ValueError(
                f"{path} was evaluated on other test images than {data} holds now; run "
                f"`deepens evaluate {path} --predict`"
            )
        found = predictions.logits("test")
        predictions.release()
        return found

    display = display or Display(quiet=True)
    # A few numbers per image: more threads would wait for each other.
    with threads(1), display.task("choose example pictures", len(runs)) as task:

        def methods() -> Iterator[tuple[str, list[Tensor]]]:
            for name, each in runs.items():
                yield name, [logits(run) for run in each]
                task.advance(name)

        return choose_examples(
            test.images,
            labels,
            classes=splits.classes,
            runs=[f"{name}-{r}" for name, each in runs.items() for r in range(len(each))],
            predictions=methods(),
            files=test.paths,
        )


def _opinion(replicates: Sequence[Tensor], targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Class and confidence of a method, and its replicates' NLL added up, for each image."""
    members, samples, classes = replicates[0].shape
    size = max(1, CHUNK // (members * classes))
    parts: list[tuple[Tensor, ...]] = []
    for start in range(0, samples, size):
        here = targets[start : start + size]
        nll, probs = torch.zeros(len(here)).double(), torch.zeros(len(here), classes).double()
        for logits in replicates:
            chunk = logits[:, start : start + size].double()
            log_probs = pool_log_probs(member_log_probs(chunk))
            nll -= log_probs.gather(-1, here[:, None]).squeeze(-1)
            probs += log_probs.exp() / len(replicates)
        confidence, predicted = probs.max(-1)
        parts.append((predicted, confidence, nll))
    predicted, confidence, nll = (torch.cat(column) for column in zip(*parts, strict=True))
    return predicted, confidence, nll


def _highest(values: Tensor, count: int, *, above: float = float("-inf")) -> list[int]:
    order = values.argsort(descending=True, stable=True)[:count]
    return order[values[order] > above].tolist()


def _shrunk(images: Tensor) -> UInt8[Tensor, "shown channels height width"]:
    """Shrink images to at most 96 pixels a side; small ones stay as they are."""
    height, width = images.shape[-2:]
    scale = SIDE / max(height, width)
    if scale >= 1:
        return images
    size = (max(1, round(height * scale)), max(1, round(width * scale)))
    small = F.interpolate(images.float(), size, mode="bilinear", antialias=True)
    return small.round().clamp(0, 255).to(torch.uint8)


def save_examples(path: Path, examples: Examples) -> None:
    """Write examples to one file, whole or not at all."""
    content = {name: getattr(examples, name) for name in (*_LISTS, "overconfident", "files")}
    save_tensors(path, {name: getattr(examples, name) for name in _TENSORS}, content)


def load_examples(path: Path) -> Examples:
    """Read what `save_examples` wrote.

    Raises:
        ValueError: The file is missing, damaged, or another one.
    """
    tensors, content = load_tensors(path)
    try:
        fields: dict[str, Any] = {name: tuple(content[name]) for name in _LISTS}
        fields |= {name: tensors[name] for name in _TENSORS}
        chosen = {name: tuple(each) for name, each in content["overconfident"].items()}
        files = tuple(content.get("files", ()))  # those of earlier versions have none
        examples = Examples(**fields, overconfident=chosen, files=files)
        _check(examples)
    except (KeyError, TypeError, AttributeError, ValueError):
        raise ValueError(f"{path} holds no examples; run `deepens compare` again") from None
    return examples


def _check(examples: Examples) -> None:
    """Refuse a place, a class or a length that does not fit the others."""
    shown = len(examples.images)
    chosen = {*examples.hardest, *(i for c in examples.overconfident.values() for i in c)}
    labels = {*examples.targets.tolist(), *examples.predicted.flatten().tolist()}
    fits = (
        chosen <= set(range(shown))
        and labels <= set(range(len(examples.classes)))
        and set(examples.overconfident) <= set(examples.methods)
        and examples.targets.shape == examples.index.shape == examples.nll.shape == (shown,)
        and examples.predicted.shape == (len(examples.methods), shown)
        and examples.confidence.shape == examples.predicted.shape
        and len(examples.files) in (0, shown)
        and all(isinstance(file, str) for file in examples.files)
    )
    if not fits:
        raise ValueError
