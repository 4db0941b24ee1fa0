"""Training steps with repulsion or pseudo-data, relative to those of a deep ensemble.

``python -m deepens.experiments.benchmarks.objectives``: members of CIFAR networks on one shared
batch of images. All candidates take the same step: logits, the objective, gradients, SGD. Each
memory layout of the images (contiguous, channels last) takes its turn; ratios are of the faster
layout to the deep ensemble's faster one, in the same rounds. Memory is the peak within a contiguous
step beyond what is stored before it, as in the benchmark of LoRA-ensembles.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch

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
from ..training.devices import threads
from . import harness
from .step import Step, memory_of

DEEP, JOINT, CHUNKED = "deep ensemble", "FoRDE, joint", "FoRDE, one member at a time"
LAYOUTS = {"contiguous": torch.contiguous_format, "channels last": torch.channels_last}
MOST_JOINT, MOST_CHUNKED, MOST_MEMORY = {16: 2.3, 32: 2.6}, 4.0, 0.4


@dataclass(frozen=True)
class Work(harness.DeviceOptions):
    """What is measured."""

    backbone: str = harness.option("resnet18")
    members: int = harness.option(4)
    batch_size: int = harness.option(32)
    memory_only: bool = harness.option(False, "measure no times")


def main(arguments: Sequence[str] | None = None) -> harness.Outcome:
    """Measure and print."""
    given = Work.parse(__doc__, arguments)
    device = harness.compute_device(given.device)
    print(harness.setting())
    title = f"{given.members} {given.backbone} at 32 px, batch of {given.batch_size}"
    images, targets, _ = harness.cifar_batch(given.batch_size, device)
    steps: dict[tuple[str, str], Step] = {}
    with threads(given.threads):
        for layout, order in LAYOUTS.items():
            for name, objective in _objectives():
                objective.prepare(images.split(1))  # the cost does not depend on the images
                ensemble = DeepEnsemble(
                    lambda: harness.network(given.backbone), seeds=range(given.members)
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
            megabytes = [(name, f"{size / 1e6:.0f}") for name, size in sizes.items()]
            print(f"{title}\n{harness.table([('', 'memory, MB'), *megabytes])}\n")
            return harness.conclude([_memory_verdict(sizes)], given.out, [], memory=sizes)
        found = harness.compare(
            [
                harness.Candidate(f"{name}, {layout}", harness.timed(step, device=device))
                for (name, layout), step in steps.items()
            ],
            rounds=given.rounds,
        )
    fastest = {
        name: max(((found[f"{name}, {layout}"], layout) for layout in LAYOUTS), key=_rate)
        for name in sizes
    }
    base = fastest[DEEP][0].seconds
    ratios = {name: harness.ratio(each.seconds, base) for name, (each, _) in fastest.items()}
    print(f"\n{title}\n")
    rows = [("", "faster layout", "ms a step", "deep-ensemble steps", "memory, MB")]
    for name, (each, layout) in fastest.items():
        milliseconds = f"{each.milliseconds.median:.0f}"
        rows.append((name, layout, milliseconds, str(ratios[name]), f"{sizes[name] / 1e6:.0f}"))
    print(harness.table(rows) + "\n")
    joint = MOST_JOINT.get(given.batch_size, max(MOST_JOINT.values()))
    claims = [
        ("FoRDE, joint, in deep-ensemble steps", JOINT, joint),
        ("FoRDE, chunked, likewise", CHUNKED, MOST_CHUNKED),
    ]
    lines = [harness.verdict(claim, ratios[name].median, most=most) for claim, name, most in claims]
    lines.append(_memory_verdict(sizes))
    over = f"{DEEP}, its faster layout"
    measured = [replace(each, baseline=base, over=over) for each in found.values()]
    return harness.conclude(lines, given.out, measured, memory=sizes)


def _rate(pair: tuple[harness.Measurement, str]) -> float:
    return pair[0].rate


def _memory_verdict(sizes: Mapping[str, int]) -> str:
    share = sizes[CHUNKED] / sizes[JOINT]
    return harness.verdict("memory of chunked over that of joint", share, most=MOST_MEMORY)


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


if __name__ == "__main__":
    raise SystemExit(0 if main() else 1)
