"""What a LoRA-ensemble's training step costs, in time and in memory.

``python -m deepens.experiments.benchmarks.lora``: a vision transformer's members run together,
against a naive loop over them, and against as many explicit copies of the transformer. All members
see the same batch, and every candidate takes the same step: logits, summed cross-entropy,
gradients, AdamW. Memory is the largest sum of live tensors within one such step, beyond weights,
buffers, optimiser state and the batch, which were there before: activations, gradients and
temporaries. It is read from the allocator on a GPU, elsewhere by watching every operation.
"""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor, nn

from ...datasets import normalize
from ...ensembles import CrossEntropy, DeepEnsemble, Ensemble, LoRA, LoRAEnsemble, Objective
from ...ensembles.backbones import build
from ...ensembles.ensemble import Images
from ...ensembles.objective import ObjectiveValue, Targets
from ...ensembles.objectives.likelihood import member_losses
from ..cost.macs import count_macs, count_parameters
from ..training.devices import threads
from .harness import Candidate, Measurement, Spread, compare, setting, table, verdict, write
from .loader import MEAN, STD, cifar_split
from .step import Step, memory_of, timed

NAIVE, TOGETHER, LAST = "naive loop", "together", "together, last quarter of the blocks"
IN_TURN, COPIES, CHECKPOINTS = "in turn", "explicit copies", "together, checkpointing"
CLASSES = 10
SIZES = {"torchvision:vit_b_32": 224, "vit-tiny/4": 32}
MOST_TIME = {"cpu": 1.0, "cuda": 0.8}
MOST_MEMORY = 0.6
MOST_TIME_OF_LAST = 0.45
MOST_BYTES_OF_COPIES = 12e9


@dataclass(frozen=True)
class Work:
    """What is measured.

    Args:
        backbone: The transformer.
        members: M.
        batch_size: Images of a step.
        rounds: Rounds that count.
        rank: Of the adapters.
        copies: Whether explicit copies take their turn.
    """

    backbone: str
    members: int
    batch_size: int
    rounds: int = 5
    rank: int = 8
    copies: bool = True


def main(arguments: Sequence[str] | None = None) -> bool:
    """Measure, print and judge.

    Args:
        arguments: Of the command line.

    Returns:
        Whether all bounds are kept.
    """
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backbones", nargs="+", default=list(SIZES), choices=list(SIZES))
    parser.add_argument("--members", type=int, nargs="+", default=[4, 16])
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=Work.rounds)
    parser.add_argument("--rank", type=int, default=Work.rank)
    parser.add_argument("--threads", type=int, help="torch's own number when absent")
    parser.add_argument("--out", help="a JSON file for every round")
    given = parser.parse_args(arguments)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    print(setting())
    measurements, lines, sizes = [], [], {}
    with threads(given.threads):
        for backbone in given.backbones:
            for members in given.members:
                work = Work(backbone, members, given.batch_size, given.rounds, given.rank)
                title = f"{backbone} at {SIZES[backbone]} px, M = {members}"
                print(f"\n{title}, batch of {work.batch_size}, rank {work.rank}\n")
                size = SIZES[backbone]
                batch = first_batch(work.batch_size, size, device)
                steps, macs = {}, {}
                for name, ensemble, objective in candidates(work, device):
                    steps[name] = Step(ensemble, objective, *batch)
                    model = _OneByOne(ensemble) if name == NAIVE else ensemble
                    macs[name] = count_macs(model, (3, size, size))
                memory = {name: memory_of(step, device) for name, step in steps.items()}
                found = compare(
                    [Candidate(name, timed(step, device)) for name, step in steps.items()],
                    rounds=work.rounds,
                )
                rows = [("", "MACs an image", "ms a step", "over the naive loop", "memory, MB")]
                for name, each in found.items():
                    seconds = f"{1000 * Spread.of(each.seconds).median:.0f}"
                    megabytes = f"{memory[name] / 1e6:.0f}"
                    cost = f"{macs[name] / 1e9:.3f} G"
                    rows.append((name, cost, seconds, str(each.slowdown), megabytes))
                print(table(rows) + "\n")
                lines += _judged(title, found, memory, MOST_TIME[device.type])
                measurements += list(found.values())
                sizes[title] = memory
    print("\n".join(lines))
    write(given.out, measurements, memory=sizes)
    return not any(line.endswith("BROKEN") for line in lines)


def candidates(work: Work, device: torch.device) -> list[tuple[str, Ensemble, Objective]]:
    """Who takes part: a name, an ensemble in training mode, and what it minimises."""
    size = SIZES[work.backbone]
    torch.manual_seed(0)

    def transformer() -> nn.Module:
        return build(work.backbone, num_classes=CLASSES, channels=3, image_size=size)

    base = transformer()
    blocks = sum(name.endswith(("self_attention", "attn")) for name, _ in base.named_modules())

    def lora(options: LoRA) -> Ensemble:
        return LoRAEnsemble(base, seeds=range(work.members), options=options).to(device).train()

    whole = LoRA(rank=work.rank)
    together, joint = lora(whole), CrossEntropy()
    candidates = [
        (NAIVE, together, _NaiveLoop()),
        (TOGETHER, together, joint),
        (IN_TURN, together, CrossEntropy(members_at_once=1)),
        (CHECKPOINTS, lora(replace(whole, checkpointing=True)), joint),
        (LAST, lora(replace(whole, blocks=max(1, blocks // 4))), joint),
    ]
    # Weights, gradients and two moments of AdamW, four bytes each.
    needed = 16 * work.members * count_parameters(base)
    if work.copies and needed > MOST_BYTES_OF_COPIES:
        print(f"explicit copies take no part: they would need {needed / 1e9:.0f} GB\n")
    elif work.copies:
        copies = DeepEnsemble(transformer, seeds=range(work.members)).to(device).train()
        candidates.append((COPIES, copies, joint))
    return candidates


class _OneByOne(nn.Module):
    """One member's whole forward pass after the other's, nothing shared."""

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


def first_batch(count: int, size: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """The first images of CIFAR-10, or made ones, at a network's size, and their targets."""
    split, _ = cifar_split(count)
    images = normalize(cast(Tensor, split.images), mean=MEAN, std=STD)
    if size != images.shape[-1]:
        images = nn.functional.interpolate(images, size=(size, size), mode="bilinear")
    return images.to(device), cast(Tensor, split.targets).to(device)


def _judged(
    title: str, found: Mapping[str, Measurement], memory: Mapping[str, int], most: float
) -> list[str]:
    pairs = zip(found[LAST].seconds, found[TOGETHER].seconds, strict=True)
    last = Spread.of([last / whole for last, whole in pairs]).median
    together = found[TOGETHER].slowdown.median
    lines = [
        verdict(f"step together over the naive loop's, {title}", together, most=most),
        verdict(f"last quarter of the blocks over all, {title}", last, most=MOST_TIME_OF_LAST),
    ]
    if COPIES in memory:
        share = memory[IN_TURN] / memory[COPIES]
        claim = f"memory in turn over that of explicit copies, {title}"
        lines.append(verdict(claim, share, most=MOST_MEMORY))
    return lines


if __name__ == "__main__":
    raise SystemExit(0 if main() else 1)
