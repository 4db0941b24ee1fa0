"""The latency of a cascade, relative to its first stage and to what its MACs predict.

``python -m deepens.experiments.benchmarks.cascade``: a deep ensemble of untrained networks on
CIFAR-10 images of DEEPENS_DATA, or else on scikit-learn's digits. A window around the median
confidence passes a fifth of the images on; the weights do not affect the cost. The first stage, the
cascade, the full window and the plain ensemble take turns: in batches, also with the queue that
gathers images across batches, and then image by image for the 95th percentile of the latency.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from ...datasets import load, normalize
from ...ensembles import DeepEnsemble
from ...ensembles.backbones.pointwise import to_channels_last
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
from . import harness
from .harness import MEAN, SIZE, STD

MOST_OVER_MACS, MOST_OF_FULL_WINDOW = 1.10, 1.05
FIRST, CASCADE, QUEUE = "first stage alone", "window cascade", "window cascade, queue"
FULL, ENSEMBLE = "full window", "plain ensemble"


@dataclass(frozen=True)
class Work(harness.DeviceOptions):
    """What is measured."""

    backbone: str = harness.option("resnet8")
    members: int = harness.option(2)
    images: int = harness.option(1024)
    batch_size: int = harness.option(256)
    rounds: int = harness.option(9)
    singles: int = harness.option(256, "images per round of the measurement image by image")


def main(arguments: Sequence[str] | None = None) -> harness.Outcome:
    """Measure and print."""
    given = Work.parse(__doc__, arguments)
    print(harness.setting())
    device = harness.compute_device(given.device)
    images, source = real_images(given.images)
    images = images.to(device)
    parts = images.split(given.batch_size)
    ensemble = DeepEnsemble(
        lambda: harness.network(given.backbone),
        seeds=range(given.members),
    )
    to_channels_last(ensemble.eval().to(device))
    with threads(given.threads):
        policy, reached = calibrated_policy(ensemble, parts)
        print(
            f"{given.members} x {given.backbone}, {given.images} images: {source}; batches of "
            f"{given.batch_size}; {device.type}; stages run on "
            f"{', '.join(f'{share:.1%}' for share in reached)}\n"
        )
        models = make_models(ensemble, policy)
        candidates = [
            harness.Candidate(name, harness.timed(work, units=len(images), device=device))
            for name, work in _works(models, policy, ensemble, parts)
        ]
        found = harness.compare(candidates, rounds=given.rounds)
        singly = _one_by_one(models, images[: given.singles], given.rounds)
    predicted = sum(reached)
    rows = [("", "ms an image", "images a second", "over the first stage alone", "by MACs")]
    shares = {FIRST: 1.0, CASCADE: predicted, QUEUE: predicted}
    for name, each in found.items():
        rate = harness.Spread.of([1 / seconds for seconds in each.seconds])
        macs = f"{shares.get(name, float(given.members)):.3f}"
        rows.append((name, str(each.milliseconds), str(rate), str(each.slowdown), macs))
    print(harness.table(rows))
    print(f"\n{_latency_table(singly)}")
    over = {name: _over(found[name], found[FIRST], predicted) for name in (CASCADE, QUEUE)}
    full = _over(found[FULL], found[ENSEMBLE], 1.0)
    print(f"\ncascade over what its MACs predict: {over[CASCADE]}; with the queue: {over[QUEUE]}")
    print(f"full window over the plain ensemble: {full}")
    return harness.conclude(
        [
            harness.verdict("cascade over its MACs", over[CASCADE].median, most=MOST_OVER_MACS),
            harness.verdict("full window over the ensemble", full.median, most=MOST_OF_FULL_WINDOW),
        ],
        given.out,
        list(found.values()),
        work=asdict(given) | {"reached": reached, "device": device.type},
        source=source,
        one_by_one_ms={name: [asdict(each) for each in rounds] for name, rounds in singly.items()},
    )


def real_images(count: int) -> tuple[Float[Tensor, "images channels height width"], str]:
    """Return normalised images of CIFAR-10's shape, not noise, since exits depend on them."""
    if harness.cifar_folder("train") is not None:
        split, source = harness.cifar_split(count)
        images = cast(Tensor, split.images)
        return normalize(images, mean=MEAN, std=STD, channels_last=True), source
    splits = load("digits")
    digits = cast(Tensor, splits["train"].images)
    small = normalize(digits, mean=splits.mean, std=splits.std, channels_last=False)
    large = F.interpolate(small[torch.arange(count) % len(small)], SIZE, mode="bilinear")
    images = large.expand(-1, 3, -1, -1).contiguous(memory_format=torch.channels_last)
    return images, f"scikit-learn's digits, enlarged to {SIZE[0]} pixels"


class _Answering(nn.Module):
    """One way to predict with an ensemble, as a model."""

    def __init__(self, ensemble: DeepEnsemble, answer: Callable[[Tensor], object]) -> None:
        super().__init__()
        self.ensemble, self.answer = ensemble, answer

    def forward(self, images: Tensor) -> object:
        return self.answer(images)


def make_models(ensemble: DeepEnsemble, policy: WindowPolicy) -> dict[str, nn.Module]:
    """The ensemble, its first member, the cascade and its full window, by name."""
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
    """Latencies in ms of each round; within a round the models take turns at each image."""
    shape = (images.shape[1], images.shape[2], images.shape[3])
    found: dict[str, list[Latency]] = {name: [] for name in models}
    for _ in range(rounds):
        measured = measure_latency(models, shape, repeats=len(images), images=images)
        for name, latency in measured.items():
            found[name].append(latency)
    return found


def _latency_table(found: Mapping[str, Sequence[Latency]]) -> str:
    rows = [("one image at a time", "median ms", "95th percentile", "over the first stage's", "")]
    firsts = found[FIRST]
    for name, rounds in found.items():
        medians, highs = [each.p50 for each in rounds], [each.p95 for each in rounds]
        over_median = harness.ratio(medians, [each.p50 for each in firsts])
        over_high = harness.ratio(highs, [each.p95 for each in firsts])
        spreads = (str(harness.Spread.of(medians)), str(harness.Spread.of(highs)))
        rows.append((name, *spreads, f"median {over_median}", f"95th {over_high}"))
    return harness.table(rows)


def calibrated_policy(
    ensemble: DeepEnsemble, parts: Sequence[Tensor]
) -> tuple[WindowPolicy, list[float]]:
    """A policy by which a fifth of each stage's images continue, around the median confidence."""
    with torch.inference_mode():
        logits = torch.cat([ensemble(part) for part in parts], dim=1)
    windows: list[tuple[float, float]] = []
    for stage in range(1, ensemble.num_members):
        policy = WindowPolicy([*windows, (1.0, 0.0)])
        answers = replay(policy, [logits[[i]] for i in range(stage + 1)])
        here = answers.confidence[answers.stage == stage]
        windows.append(window_around(here, here.median().item(), below=0.1, above=0.1))
    policy = WindowPolicy(windows)
    answers = replay(policy, [logits[[i]] for i in range(ensemble.num_members)])
    return policy, answers.reached(ensemble.num_members).tolist()


def _works(
    models: Mapping[str, nn.Module],
    policy: WindowPolicy,
    ensemble: DeepEnsemble,
    parts: Sequence[Tensor],
) -> Iterator[tuple[str, Callable[[], object]]]:
    """Every way to answer all batches: each model, and the queue after the cascade."""

    def in_batches(model: nn.Module) -> Callable[[], object]:
        @torch.inference_mode()
        def work() -> object:
            return [model(part) for part in parts]

        return work

    def by_queue() -> list[tuple[list[object], Answers]]:
        cascade = Cascade(ensemble_stages(ensemble), policy)
        queue = CascadeQueue(cascade, batch_size=len(parts[0]), deadline=float("inf"))
        done: list[tuple[list[object], Answers]] = []
        for number, part in enumerate(parts):
            done += queue.submit([(number, place) for place in range(len(part))], part)
        return done + queue.close()

    for name, model in models.items():
        yield name, in_batches(model)
        if name == CASCADE:
            yield QUEUE, by_queue


def _over(one: harness.Measurement, other: harness.Measurement, predicted: float) -> harness.Spread:
    return harness.ratio(one.seconds, [predicted * seconds for seconds in other.seconds])


if __name__ == "__main__":
    raise SystemExit(0 if main() else 1)
