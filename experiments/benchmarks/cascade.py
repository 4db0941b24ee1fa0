"""What a cascade costs in real time, over its first stage and over what its MACs predict.

``python -m deepens.experiments.benchmarks.cascade``: a deep ensemble of untrained networks on
CIFAR-10 images, in batches. A window around the median confidence passes a fifth of the images on
(only time is measured, and the stages' costs do not depend on their weights). The first stage, the
cascade, the full window and the plain ensemble take turns, all through the same code but the last.
The queue across batches gathers survivors into full ones.
"""

import argparse
import time
from collections.abc import Callable, Iterator, Sequence
from typing import cast

import torch
from torch import Tensor

from ...datasets import normalize
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
from ...metrics.mixture import mixture_log_probs
from ..devices import threads
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
    parser.add_argument("--threads", type=int, help="torch's own number when absent")
    parser.add_argument("--out", help="a JSON file for every round")
    given = parser.parse_args(arguments)
    print(setting())
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    split, source = cifar_split(given.images)
    images = normalize(cast(Tensor, split.images), mean=MEAN, std=STD, channels_last=True)
    parts = images.to(device).split(given.batch_size)
    ensemble = DeepEnsemble(
        lambda: build(given.backbone, num_classes=10, channels=3, image_size=SIZE[0]),
        seeds=range(given.members),
    )
    ensemble.eval().to(device).to(memory_format=torch.channels_last)
    with threads(given.threads):
        policy, reached = _policy(ensemble, parts)
        print(
            f"{given.members} x {given.backbone}, {given.images} images: {source}; batches of "
            f"{given.batch_size}; {device.type}; stages run on "
            f"{', '.join(f'{share:.1%}' for share in reached)}\n"
        )
        candidates = [
            Candidate(name, _timed(work, parts)) for name, work in _works(ensemble, policy, given)
        ]
        found = compare(candidates, rounds=given.rounds)
    predicted = sum(reached)
    rows = [("", "ms an image", "over the first stage alone", "predicted by MACs")]
    shares = {FIRST: 1.0, CASCADE: predicted, QUEUE: predicted}
    for name, each in found.items():
        milliseconds = Spread.of([1000 * seconds for seconds in each.seconds])
        macs = f"{shares.get(name, float(given.members)):.3f}"
        rows.append((name, str(milliseconds), str(each.slowdown), macs))
    print(table(rows))
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
    write(given.out, list(found.values()), work=work)
    return not any(line.endswith("BROKEN") for line in lines)


def _policy(ensemble: DeepEnsemble, parts: Sequence[Tensor]) -> tuple[WindowPolicy, list[float]]:
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
