"""What repulsion and pseudo-data cost: training steps over those of a deep ensemble.

``python -m deepens.experiments.benchmarks.objectives``: members of CIFAR networks on one shared
batch of images. Every candidate takes the same step: logits, the objective, gradients, SGD. In each
memory layout of the images (contiguous, channels last) it takes its turn; a ratio is that of its
faster layout to the deep ensemble's faster one, in the same rounds. Memory is the largest sum of
live tensors within one contiguous step beyond what was there before it, as in the benchmark of
LoRA-ensembles.
"""

import argparse
from collections.abc import Iterator, Mapping, Sequence
from typing import cast

import torch
from torch import Tensor

from ...datasets import normalize
from ...ensembles import (
    CrossEntropy,
    DeepEnsemble,
    FoRDE,
    FunctionSpace,
    MixupMP,
    Objective,
    Repulsion,
    Repulsive,
    SteinVariational,
    WeightSpace,
)
from ...ensembles.backbones import build
from ..training.devices import threads
from .harness import Candidate, Spread, compare, setting, table, verdict, write
from .loader import MEAN, STD, cifar_split
from .step import Step, memory_of, timed

DEEP, JOINT, CHUNKED = "deep ensemble", "FoRDE, joint", "FoRDE, one member at a time"
LAYOUTS = {"contiguous": torch.contiguous_format, "channels last": torch.channels_last}
MOST_JOINT, MOST_CHUNKED, MOST_MEMORY = 3.0, 4.0, 0.4


def main(arguments: Sequence[str] | None = None) -> bool:
    """Measure, print and judge.

    Args:
        arguments: Of the command line.

    Returns:
        Whether all bounds are kept.
    """
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--members", type=int, default=4)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, help="torch's own number when absent")
    parser.add_argument("--memory-only", action="store_true", help="take no times")
    parser.add_argument("--out", help="a JSON file for every round")
    given = parser.parse_args(arguments)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    print(setting())
    split, _ = cifar_split(given.batch_size)
    images = normalize(cast(Tensor, split.images), mean=MEAN, std=STD).to(device)
    targets = cast(Tensor, split.targets).to(device)
    steps: dict[tuple[str, str], Step] = {}
    with threads(given.threads):
        for layout, order in LAYOUTS.items():
            for name, objective in _objectives():
                objective.prepare(_Batch(images))
                ensemble = DeepEnsemble(
                    lambda: build(given.backbone, num_classes=10, channels=3, image_size=32),
                    seeds=range(given.members),
                )
                ensemble.to(device).to(memory_format=order).train()
                ordered = images.contiguous(memory_format=order)
                step = Step(ensemble, objective.to(device), ordered, targets)
                step.optimizer = torch.optim.SGD(
                    ensemble.parameters(), lr=1e-3, momentum=0.9, nesterov=True
                )
                steps[name, layout] = step
        sizes = {
            name: memory_of(step, device)
            for (name, layout), step in steps.items()
            if layout == "contiguous"
        }
        if given.memory_only:
            print(f"{given.members} {given.backbone} at 32 px, batch of {given.batch_size}")
            megabytes = [(name, f"{size / 1e6:.0f}") for name, size in sizes.items()]
            line = _memory_verdict(sizes)
            print(f"{table([('', 'memory, MB'), *megabytes])}\n\n{line}")
            write(given.out, [], memory=sizes)
            return not line.endswith("BROKEN")
        found = compare(
            [
                Candidate(f"{name}, {layout}", timed(step, device))
                for (name, layout), step in steps.items()
            ],
            rounds=given.rounds,
        )
    fastest = {
        name: min(
            ((layout, found[f"{name}, {layout}"].seconds) for layout in LAYOUTS),
            key=lambda each: Spread.of(each[1]).median,
        )
        for name in sizes
    }
    base = fastest[DEEP][1]
    ratios = {
        name: Spread.of([own / deep for own, deep in zip(seconds, base, strict=True)])
        for name, (_, seconds) in fastest.items()
    }
    print(f"\n{given.members} {given.backbone} at 32 px, batch of {given.batch_size}\n")
    rows = [("", "faster layout", "ms a step", "deep-ensemble steps", "memory, MB")]
    for name, (layout, seconds) in fastest.items():
        milliseconds = f"{1000 * Spread.of(seconds).median:.0f}"
        rows.append((name, layout, milliseconds, str(ratios[name]), f"{sizes[name] / 1e6:.0f}"))
    print(table(rows) + "\n")
    lines = [
        verdict("FoRDE, joint, in deep-ensemble steps", ratios[JOINT].median, most=MOST_JOINT),
        verdict("FoRDE, chunked, likewise", ratios[CHUNKED].median, most=MOST_CHUNKED),
        _memory_verdict(sizes),
    ]
    print("\n".join(lines))
    write(given.out, list(found.values()), memory=sizes)
    return not any(line.endswith("BROKEN") for line in lines)


def _memory_verdict(sizes: Mapping[str, int]) -> str:
    share = sizes[CHUNKED] / sizes[JOINT]
    return verdict("memory of chunked over that of joint", share, most=MOST_MEMORY)


def _objectives() -> Iterator[tuple[str, Objective]]:
    pca = Repulsion(lengthscale="pca")
    svgd = Repulsion(update="svgd")
    yield DEEP, CrossEntropy()
    yield JOINT, Repulsive(CrossEntropy(), [FoRDE()])
    yield CHUNKED, Repulsive(CrossEntropy(members_at_once=1), [FoRDE()])
    yield "FoRDE, PCA, joint", Repulsive(CrossEntropy(), [FoRDE(pca)])
    yield "weight space, kde-WGD", Repulsive(CrossEntropy(), [WeightSpace()])
    yield "weight space, SVGD", SteinVariational(CrossEntropy(), WeightSpace(svgd))
    yield "function space, kde-WGD", Repulsive(CrossEntropy(), [FunctionSpace()])
    yield "function space, SVGD", SteinVariational(CrossEntropy(), FunctionSpace(svgd))
    yield "MixupMP, r = 1", MixupMP()


class _Batch:
    """A batch that stands for the training images: what a step costs does not depend on them."""

    def __init__(self, images: Tensor) -> None:
        self._images = images

    def __len__(self) -> int:
        return len(self._images)

    def __iter__(self) -> Iterator[Tensor]:
        yield self._images


if __name__ == "__main__":
    raise SystemExit(0 if main() else 1)
