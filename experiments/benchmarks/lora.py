"""Time and memory of a LoRA-ensemble's training step.

``python -m deepens.experiments.benchmarks.lora``: a vision transformer's members run together,
against a naive loop over them, and against as many explicit copies of the transformer. All
candidates take the same step on the same batch: logits, summed cross-entropy, gradients, AdamW.
Memory is the peak of live tensors within a step beyond weights, buffers, optimiser state and the
batch: activations, gradients and temporaries. It is read from the allocator on a GPU, elsewhere by
watching every operation.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from ...ensembles import CrossEntropy, DeepEnsemble, Ensemble, LoRA, LoRAEnsemble, Objective
from ...ensembles.ensemble import Images
from ...ensembles.objective import ObjectiveValue, Targets
from ...ensembles.objectives.likelihood import member_losses
from ..cost.macs import count_macs, count_parameters
from ..training.devices import threads
from . import harness
from .step import Step, memory_of

NAIVE, TOGETHER, LAST = "naive loop", "together", "together, last quarter of the blocks"
IN_TURN, COPIES, CHECKPOINTS = "in turn", "explicit copies", "together, checkpointing"
SIZES = {"torchvision:vit_b_32": 224, "vit-tiny/4": 32}
MOST_TIME = {"cpu": 1.0, "cuda": 0.8}
MOST_MEMORY = 0.6
MOST_TIME_OF_LAST = 0.45
MOST_BYTES_OF_COPIES = 12e9


@dataclass(frozen=True)
class Work(harness.DeviceOptions):
    """What is measured."""

    backbones: tuple[str, ...] = harness.option(tuple(SIZES), choices=list(SIZES))
    members: tuple[int, ...] = harness.option((4, 16))
    batch_size: int = harness.option(4)
    rank: int = harness.option(8, "rank of the adapters")


def main(arguments: Sequence[str] | None = None) -> harness.Outcome:
    """Measure and print."""
    work = Work.parse(__doc__, arguments)
    device = harness.compute_device(work.device)
    print(harness.setting())
    measurements, lines, sizes = [], [], {}
    with threads(work.threads):
        for backbone in work.backbones:
            size = SIZES[backbone]
            images, targets, _ = harness.cifar_batch(work.batch_size, device, size)
            for members in work.members:
                title = f"{backbone} at {size} px, M = {members}"
                print(f"\n{title}, batch of {work.batch_size}, rank {work.rank}\n")
                steps, macs = {}, {}
                for name, ensemble, objective in candidates(backbone, members, device, work.rank):
                    steps[name] = Step(ensemble, objective, images, targets)
                    model = _OneByOne(ensemble) if name == NAIVE else ensemble
                    macs[name] = count_macs(model, (3, size, size))
                memory = {name: memory_of(step, device) for name, step in steps.items()}
                found = harness.compare(
                    [
                        harness.Candidate(name, harness.timed(step, device=device))
                        for name, step in steps.items()
                    ],
                    rounds=work.rounds,
                )
                rows = [("", "MACs an image", "ms a step", "over the naive loop", "memory, MB")]
                for name, each in found.items():
                    milliseconds = f"{each.milliseconds.median:.0f}"
                    megabytes = f"{memory[name] / 1e6:.0f}"
                    cost = f"{macs[name] / 1e9:.3f} G"
                    rows.append((name, cost, milliseconds, str(each.slowdown), megabytes))
                print(harness.table(rows) + "\n")
                lines += _judged(title, found, memory, MOST_TIME[device.type])
                measurements += [
                    replace(each, name=f"{each.name}, {title}", over=f"{each.over}, {title}")
                    for each in found.values()
                ]
                sizes[title] = memory
    return harness.conclude(lines, work.out, measurements, memory=sizes)


def candidates(
    backbone: str, members: int, device: torch.device, rank: int = 8, *, copies: bool = True
) -> list[tuple[str, Ensemble, Objective]]:
    """The candidates: name, ensemble in training mode and objective."""
    torch.manual_seed(0)
    base = harness.network(backbone, SIZES[backbone])
    blocks = sum(name.endswith(("self_attention", "attn")) for name, _ in base.named_modules())

    def lora(options: LoRA) -> Ensemble:
        return LoRAEnsemble(base, seeds=range(members), options=options).to(device).train()

    whole = LoRA(rank=rank)
    together, joint = lora(whole), CrossEntropy()
    candidates = [
        (NAIVE, together, _NaiveLoop()),
        (TOGETHER, together, joint),
        (IN_TURN, together, CrossEntropy(members_at_once=1)),
        (CHECKPOINTS, lora(replace(whole, checkpointing=True)), joint),
        (LAST, lora(replace(whole, blocks=max(1, blocks // 4))), joint),
    ]
    # Weights, gradients and two moments of AdamW, four bytes each.
    needed = 16 * members * count_parameters(base)
    if copies and needed > MOST_BYTES_OF_COPIES:
        print(f"explicit copies take no part: they would need {needed / 1e9:.0f} GB\n")
    elif copies:
        explicit = DeepEnsemble(
            lambda: harness.network(backbone, SIZES[backbone]), seeds=range(members)
        )
        candidates.append((COPIES, explicit.to(device).train(), joint))
    return candidates


class _OneByOne(nn.Module):
    """Complete forward passes of one member after the other, with nothing shared."""

    def __init__(self, ensemble: Ensemble) -> None:
        super().__init__()
        self.ensemble = ensemble

    def forward(self, images: Tensor) -> Tensor:
        members = range(self.ensemble.num_members)
        return torch.cat([self.ensemble(images, members=[index]) for index in members])


class _NaiveLoop(Objective):
    """The cross-entropy of members that share nothing."""

    def forward(self, ensemble: Ensemble, images: Images, targets: Targets) -> ObjectiveValue:
        """As the cross-entropy does."""
        values = member_losses(_OneByOne(ensemble)(images), targets)
        return ObjectiveValue(values.sum(), values.detach())


def _judged(
    title: str, found: Mapping[str, harness.Measurement], memory: Mapping[str, int], most: float
) -> list[str]:
    last = harness.ratio(found[LAST].seconds, found[TOGETHER].seconds).median
    together = found[TOGETHER].slowdown.median
    lines = [
        harness.verdict(f"step together over the naive loop's, {title}", together, most=most),
        harness.verdict(f"last quarter of blocks over all, {title}", last, most=MOST_TIME_OF_LAST),
    ]
    if COPIES in memory:
        share = memory[IN_TURN] / memory[COPIES]
        claim = f"memory in turn over that of explicit copies, {title}"
        lines.append(harness.verdict(claim, share, most=MOST_MEMORY))
    return lines


if __name__ == "__main__":
    raise SystemExit(0 if main() else 1)
