"""What a cascade costs in real time, over its first stage and over what its MACs predict.

``python -m deepens.experiments.benchmarks.cascade``: a deep ensemble of untrained networks on
CIFAR-10 images of DEEPENS_DATA, or else on scikit-learn's digits. A window around the median
confidence passes a fifth of the images on (only time is measured, and the stages' costs do not
depend on their weights). The first stage, the cascade, the full window and the plain ensemble take
turns, all through the same code but the last: in batches, where the queue across batches gathers
survivors into full ones, and then image by image, where some images take one stage and some more,
so that the 95th percentile says as much as the median.
"""

import argparse
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from ...datasets import load, normalize
from ...ensembles import DeepEnsemble
from ...ensembles.backbones import build
from ...ensembles.policies import (
    Cascade,
    CascadeQueue,
    WindowPolicy,
    ensemble_stages,
    replay,
    window_around,
)
from ...ensembles.policy import Answers
from ...metrics.core.mixture import mixture_log_probs
from ..cost.measurement import Latency, measure_latency
from ..training.devices import threads
from .harness import Candidate, Measurement, Spread, compare, setting, table, verdict, write
from .loader import MEAN, SIZE, STD, cifar_split

MOST_OVER_MACS, MOST_OF_FULL_WINDOW = 1.10, 1.05
FIRST, CASCADE, QUEUE = "first stage alone", "window cascade", "window cascade, queue"
FULL, ENSEMBLE = "full window", "plain ensemble"


def main(arguments: Sequence[str] | None = None) -> bool:
    """Measure, print and judge.

    Args:
        arguments: Of the command line.

    Returns:
        Whether all bounds are kept.
    """
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backbone", default="resnet8")
    parser.add_argument("--members", type=int, default=2)
    parser.add_argument("--images", type=int, default=1024)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--singles", type=int, default=256, help="images of a round one by one")
    parser.add_argument("--threads", type=int, help="torch's own number when absent")
    parser.add_argument("--out", help="a JSON file for every round")
    given = parser.parse_args(arguments)
    print(setting())
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    images, source = real_images(given.images)
    images = images.to(device)
    parts = images.split(given.batch_size)
    ensemble = DeepEnsemble(
        lambda: build(given.backbone, num_classes=10, channels=3, image_size=SIZE[0]),
        seeds=range(given.members),
    )
    ensemble.eval().to(device).to(memory_format=torch.channels_last)
    with threads(given.threads):
        policy, reached = calibrated_policy(ensemble, parts)
        print(
            f"{given.members} x {given.backbone}, {given.images} images: {source}; batches of "
            f"{given.batch_size}; {device.type}; stages run on "
            f"{', '.join(f'{share:.1%}' for share in reached)}\n"
        )
        candidates = [
            Candidate(name, _timed(work, parts)) for name, work in _works(ensemble, policy, given)
        ]
        found = compare(candidates, rounds=given.rounds)
        singly = _one_by_one(make_models(ensemble, policy), images[: given.singles], given.rounds)
    predicted = sum(reached)
    rows = [("", "ms an image", "images a second", "over the first stage alone", "by MACs")]
    shares = {FIRST: 1.0, CASCADE: predicted, QUEUE: predicted}
    for name, each in found.items():
        milliseconds = Spread.of([1000 * seconds for seconds in each.seconds])
        rate = Spread.of([1 / seconds for seconds in each.seconds])
        macs = f"{shares.get(name, float(given.members)):.3f}"
        rows.append((name, str(milliseconds), str(rate), str(each.slowdown), macs))
    print(table(rows))
    print(f"\n{_singly_table(singly)}")
    over = {name: _over(found[name], found[FIRST], predicted) for name in (CASCADE, QUEUE)}
    full = _over(found[FULL], found[ENSEMBLE], 1.0)
    print(f"\ncascade over what its MACs predict: {over[CASCADE]}; with the queue: {over[QUEUE]}")
    print(f"full window over the plain ensemble: {full}")
    lines = [
        verdict("cascade over its MACs", over[CASCADE].median, most=MOST_OVER_MACS),
        verdict("full window over the ensemble", full.median, most=MOST_OF_FULL_WINDOW),
    ]
    print("\n".join(lines))
    work = vars(given) | {"reached": reached, "device": device.type}
    told = {name: [asdict(each) for each in rounds] for name, rounds in singly.items()}
    write(given.out, list(found.values()), work=work, source=source, one_by_one_ms=told)
    return not any(line.endswith("BROKEN") for line in lines)


def real_images(count: int) -> tuple[Float[Tensor, "images channels height width"], str]:
    """Normalised images of CIFAR-10's shape; stages go on by what they see, so noise will not do.

    Returns:
        The images, and where they are from.
    """
    root = os.environ.get("DEEPENS_DATA")
    if root is not None and (Path(root) / "cifar10" / "train").is_dir():
        split, source = cifar_split(count)
        return normalize(cast(Tensor, split.images), mean=MEAN, std=STD, channels_last=True), source
    splits = load("digits")
    digits = cast(Tensor, splits["train"].images)
    small = normalize(digits, mean=splits.mean, std=splits.std, channels_last=False)
    large = F.interpolate(small[torch.arange(count) % len(small)], SIZE, mode="bilinear")
    images = large.expand(-1, 3, -1, -1).contiguous(memory_format=torch.channels_last)
    return images, f"scikit-learn's digits, enlarged to {SIZE[0]} pixels"


class _Answering(nn.Module):
    """Some way to answer by an ensemble, as a model."""

    def __init__(self, ensemble: DeepEnsemble, answer: Callable[[Tensor], object]) -> None:
        super().__init__()
        self.ensemble, self.answer = ensemble, answer

    def forward(self, images: Tensor) -> object:
        return self.answer(images)


def make_models(ensemble: DeepEnsemble, policy: WindowPolicy) -> dict[str, nn.Module]:
    """The whole ensemble, its first member and the cascade over all of them, by name."""
    stages = ensemble_stages(ensemble)
    answers: dict[str, Callable[[Tensor], object]] = {
        FIRST: Cascade(stages[:1], WindowPolicy([])),
        CASCADE: Cascade(stages, policy),
        FULL: Cascade(stages, WindowPolicy.full(len(stages))),
        ENSEMBLE: lambda images: mixture_log_probs(ensemble(images).double()),
    }
    return {name: _Answering(ensemble, answer) for name, answer in answers.items()}


def _one_by_one(
    models: Mapping[str, nn.Module], images: Tensor, rounds: int
) -> dict[str, list[Latency]]:
    """Milliseconds an image of each round; within a round the models take turns at each image."""
    shape = (images.shape[1], images.shape[2], images.shape[3])
    found: dict[str, list[Latency]] = {name: [] for name in models}
    for _ in range(rounds):
        measured = measure_latency(models, shape, repeats=len(images), images=images)
        for name, latency in measured.items():
            found[name].append(latency)
    return found


def _singly_table(found: Mapping[str, Sequence[Latency]]) -> str:
    rows = [("one image at a time", "median ms", "95th percentile", "over the first stage's", "")]
    for name, rounds in found.items():
        over = [
            Spread.of([own / first for own, first in zip(mine, firsts, strict=True)])
            for mine, firsts in (
                ([each.p50 for each in rounds], [each.p50 for each in found[FIRST]]),
                ([each.p95 for each in rounds], [each.p95 for each in found[FIRST]]),
            )
        ]
        rows.append(
            (
                name,
                str(Spread.of([each.p50 for each in rounds])),
                str(Spread.of([each.p95 for each in rounds])),
                f"median {over[0]}",
                f"95th {over[1]}",
            )
        )
    return table(rows)


def calibrated_policy(
    ensemble: DeepEnsemble, parts: Sequence[Tensor]
) -> tuple[WindowPolicy, list[float]]:
    """A fifth of the images that reach a stage goes on, from the middle of their confidences."""
    with torch.inference_mode():
        logits = torch.cat([ensemble(part) for part in parts], dim=1)
    windows: list[tuple[float, float]] = []
    for stage in range(1, ensemble.num_members):
        policy = WindowPolicy([*windows, (1.0, 0.0)])
        answers = replay(policy, [logits[[i]] for i in range(stage + 1)])
        here = answers.confidence[answers.stage == stage]
        middle = here.median().item()
        windows.append(window_around(here, middle, below=0.1, above=0.1))
    policy = WindowPolicy(windows)
    answers = replay(policy, [logits[[i]] for i in range(ensemble.num_members)])
    return policy, answers.reached(ensemble.num_members).tolist()


def _works(
    ensemble: DeepEnsemble, policy: WindowPolicy, given: argparse.Namespace
) -> Iterator[tuple[str, Callable[[Sequence[Tensor]], object]]]:
    stages = ensemble_stages(ensemble)

    def in_batches(cascade: Cascade) -> Callable[[Sequence[Tensor]], object]:
        return lambda parts: [cascade(part) for part in parts]

    def by_queue(parts: Sequence[Tensor]) -> list[tuple[list[object], Answers]]:
        queue = CascadeQueue(
            Cascade(stages, policy), batch_size=given.batch_size, deadline=float("inf")
        )
        done: list[tuple[list[object], Answers]] = []
        for number, part in enumerate(parts):
            done += queue.submit([(number, place) for place in range(len(part))], part)
        return done + queue.close()

    def plain(parts: Sequence[Tensor]) -> object:
        with torch.inference_mode():
            return [mixture_log_probs(ensemble(part).double()) for part in parts]

    yield FIRST, in_batches(Cascade(stages[:1], WindowPolicy([])))
    yield CASCADE, in_batches(Cascade(stages, policy))
    yield QUEUE, by_queue
    yield FULL, in_batches(Cascade(stages, WindowPolicy.full(len(stages))))
    yield ENSEMBLE, plain


def _timed(
    work: Callable[[Sequence[Tensor]], object], parts: Sequence[Tensor]
) -> Callable[[], float]:
    images = sum(len(part) for part in parts)

    def measure() -> float:
        begin = time.perf_counter()
        work(parts)
        if parts[0].is_cuda:
            torch.cuda.synchronize()
        return (time.perf_counter() - begin) / images

    return measure


def _over(one: Measurement, other: Measurement, predicted: float) -> Spread:
    pairs = zip(one.seconds, other.seconds, strict=True)
    return Spread.of([first / second / predicted for first, second in pairs])


if __name__ == "__main__":
    raise SystemExit(0 if main() else 1)
