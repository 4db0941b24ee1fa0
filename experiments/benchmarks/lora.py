"""What a LoRA-ensemble's training step costs, in time and in memory.

``python -m deepens.experiments.benchmarks.lora``: a vision transformer's members run together,
against a naive loop over them, and against as many explicit copies of the transformer. All members
see the same batch, and every candidate takes the same step: logits, summed cross-entropy,
gradients, AdamW. Memory is the largest sum of live tensors within one such step, its weights and
optimiser state apart: on a GPU by the allocator, elsewhere by watching every operation.
"""

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from ...datasets import normalize
from ...ensembles import CrossEntropy, DeepEnsemble, Ensemble, LoRA, LoRAEnsemble, Objective
from ...ensembles.backbones import build
from ...ensembles.objectives.cross_entropy import member_cross_entropy
from ..devices import threads
from ..macs import count_macs
from ..memory import LiveStorages
from .harness import Candidate, Spread, compare, setting, table, verdict, write
from .loader import MEAN, STD, cifar_split

NAIVE, TOGETHER, LAST = "naive loop", "together", "together, last quarter of the blocks"
IN_TURN, COPIES, CHECKPOINTS = "in turn", "explicit copies", "together, checkpointing"
CLASSES = 10
SIZES = {"torchvision:vit_b_32": 224, "vit-tiny/4": 32}
MOST_TIME = {"cpu": 1.0, "cuda": 0.8}
MOST_MEMORY = 0.6
MOST_TIME_OF_LAST = 0.45


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
                steps, macs = _steps(work, device)
                memory = {name: _memory(step, device) for name, step in steps.items()}
                found = compare(
                    [Candidate(name, _timed(step, device)) for name, step in steps.items()],
                    rounds=work.rounds,
                )
                rows = [("", "MACs an image", "ms a step", "over the naive loop", "memory, MB")]
                for name, each in found.items():
                    seconds = f"{1000 * Spread.of(each.seconds).median:.0f}"
                    size = f"{memory[name] / 1e6:.0f}"
                    rows.append(
                        (name, f"{macs[name] / 1e9:.3f} G", seconds, str(each.slowdown), size)
                    )
                print(table(rows) + "\n")
                lines += _judged(title, found_ratio=found, memory=memory, device=device)
                measurements += list(found.values())
                sizes[title] = memory
    print("\n".join(lines))
    write(given.out, measurements, memory=sizes)
    return not any(line.endswith("BROKEN") for line in lines)


def _steps(
    work: Work, device: torch.device
) -> tuple[dict[str, Callable[[], None]], dict[str, int]]:
    """Each candidate's training step, and its multiply-accumulates of one image."""
    size = SIZES[work.backbone]
    images, targets = _batch(work.batch_size, size, device)
    torch.manual_seed(0)

    def transformer() -> nn.Module:
        return build(work.backbone, num_classes=CLASSES, channels=3, image_size=size)

    base = transformer()
    blocks = sum(name.endswith(("self_attention", "attn")) for name, _ in base.named_modules())

    def lora(**options: object) -> Ensemble:
        chosen = LoRA(rank=work.rank, **options)  # type: ignore[arg-type]
        return LoRAEnsemble(base, seeds=range(work.members), options=chosen).to(device)

    together, joint = lora(), CrossEntropy()
    candidates: dict[str, tuple[Ensemble, Objective]] = {
        NAIVE: (together, _NaiveLoop()),
        TOGETHER: (together, joint),
        IN_TURN: (together, CrossEntropy(members_at_once=1)),
        CHECKPOINTS: (lora(checkpointing=True), joint),
        LAST: (lora(blocks=max(1, blocks // 4)), joint),
    }
    if work.copies:
        copies = DeepEnsemble(transformer, seeds=range(work.members)).to(device)
        candidates[COPIES] = (copies, joint)
    shape = (3, size, size)
    macs = {name: count_macs(ensemble, shape) for name, (ensemble, _) in candidates.items()}
    steps = {
        name: _step(ensemble.train(), objective, images, targets)
        for name, (ensemble, objective) in candidates.items()
    }
    return steps, macs


class _NaiveLoop(CrossEntropy):
    """One member's whole forward pass after the other's, nothing shared."""

    def forward(self, ensemble: Ensemble, images: Tensor, targets: Tensor):  # type: ignore[no-untyped-def, override]
        logits = torch.cat([ensemble(images, members=[i]) for i in range(ensemble.num_members)])
        values = member_cross_entropy(logits, targets)
        return values.sum(), values.detach()


def _step(
    ensemble: Ensemble, objective: Objective, images: Tensor, targets: Tensor
) -> Callable[[], None]:
    trained = [p for p in ensemble.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4, weight_decay=0.0)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        loss, _ = objective(ensemble, images, targets)
        loss.backward()
        optimizer.step()

    return step


def _batch(count: int, size: int, device: torch.device) -> tuple[Tensor, Tensor]:
    split, _ = cifar_split(count)
    images = normalize(cast(Tensor, split.images), mean=MEAN, std=STD)
    if size != images.shape[-1]:
        images = nn.functional.interpolate(images, size=(size, size), mode="bilinear")
    return images.to(device), cast(Tensor, split.targets).to(device)


def _memory(step: Callable[[], None], device: torch.device) -> int:
    """Bytes live at the peak of a step, behind one that made the optimiser's state."""
    step()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        step()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    with LiveStorages(known=()) as watch:
        step()
    return watch.peak


def _timed(step: Callable[[], None], device: torch.device) -> Callable[[], float]:
    def measure() -> float:
        started = time.perf_counter()
        step()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - started

    return measure


def _judged(title, *, found_ratio, memory, device):  # type: ignore[no-untyped-def]
    lines = [
        verdict(
            f"step together over the naive loop's, {title}",
            found_ratio[TOGETHER].slowdown.median,
            most=MOST_TIME[device.type],
        )
    ]
    pairs = zip(found_ratio[LAST].seconds, found_ratio[TOGETHER].seconds, strict=True)
    lines.append(
        verdict(
            f"last quarter of the blocks over all of them, {title}",
            Spread.of([last / whole for last, whole in pairs]).median,
            most=MOST_TIME_OF_LAST,
        )
    )
    if COPIES in memory:
        lines.append(
            verdict(
                f"memory in turn over that of explicit copies, {title}",
                memory[IN_TURN] / memory[COPIES],
                most=MOST_MEMORY,
            )
        )
    return lines


if __name__ == "__main__":
    raise SystemExit(0 if main() else 1)
