"""A packed ensemble's training step and inference pass, relative to one plain network's.

``python -m deepens.experiments.benchmarks.packed``: the CIFAR ResNet-18, packed, in every execution
and memory layout, in turns with the plain network in both layouts; ratios are to the plain
network's faster layout. All members see the same batch. With torch-uncertainty installed
(``pip install 'deepens[bench]'``) its packed ResNet-18 of the same widths takes its turns too.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...ensembles import DeepEnsemble, Packed, PackedEnsemble
from ...ensembles.objectives.likelihood import member_losses
from ...ensembles.options import Execution
from ..cost.macs import count_macs, count_parameters
from ..training.devices import threads
from . import harness

MOST = {"training step": 1.20, "inference": 1.20}
MOST_ON_A_GPU = {"training step": 1.50, "inference": 1.50}
PLAIN, THEIRS = "plain network", "torch-uncertainty, packed"
SHAPE = (3, *harness.SIZE)
Act = Callable[[], object]


@dataclass(frozen=True)
class Work(harness.DeviceOptions):
    """What is measured."""

    backbone: str = harness.option("resnet18")
    members: int = harness.option(4)
    alpha: float = harness.option(2.0)
    gamma: int = harness.option(1)
    batch_size: int = harness.option(64)
    rounds: int = harness.option(7)
    steps: int = harness.option(2, "steps per round")
    bf16: bool = harness.option(False, "autocast to bfloat16")
    executions: tuple[str, ...] = harness.option(get_args(Execution), "of the packed ensemble")
    deep: bool = harness.option(False, "measure a deep ensemble as well")


def main(arguments: Sequence[str] | None = None) -> harness.Outcome:
    """Measure and print."""
    work = Work.parse(__doc__, arguments)
    device = harness.compute_device(work.device)
    images, targets, source = harness.cifar_batch(work.batch_size, device)
    print(harness.setting())
    print(
        f"{work.backbone}, (M, alpha, gamma) = ({work.members}, {work.alpha:g}, {work.gamma}); "
        f"batches of {work.batch_size} images: {source}; {'bf16' if work.bf16 else 'fp32'}; "
        f"{work.threads or torch.get_num_threads()} threads; {work.rounds} rounds of {work.steps}\n"
    )
    measurements, lines = [], []
    with threads(work.threads):
        models = _models(work, device)
        print(harness.table(_sizes(models)) + "\n")
        bounds = MOST_ON_A_GPU if device.type == "cuda" else MOST
        for what, act in (("training step", _training), ("inference", _inference)):
            candidates = [
                harness.Candidate(
                    name,
                    harness.timed(act(model, *batch, work), repeats=work.steps, device=device),
                )
                for name, model, batch in _laid_out(models, images, targets)
            ]
            rows, fastest = judged(harness.compare(candidates, rounds=work.rounds, warmup=2))
            measurements += [
                replace(row, name=f"{what}, {row.name}", over=f"{what}, {row.over}") for row in rows
            ]
            cells = [(r.name, f"{r.milliseconds.median:.1f}", str(r.slowdown)) for r in rows]
            heading = (what, "ms", "over the plain network (spread)")
            print(harness.table([heading, *cells]) + "\n")
            claim = f"{what} of the fastest execution ({fastest.name}) over the plain network's"
            lines.append(harness.verdict(claim, fastest.slowdown.median, most=bounds[what]))
    return harness.conclude(lines, work.out, measurements, source=source, work=str(work))


def _models(work: Work, device: torch.device) -> dict[str, nn.Module]:
    def plain() -> nn.Module:
        return harness.network(work.backbone)

    models: dict[str, nn.Module] = {PLAIN: DeepEnsemble(plain, seeds=[0])}
    for execution in work.executions:
        models[f"packed, {execution}"] = PackedEnsemble(
            plain,
            seeds=range(work.members),
            options=Packed(work.alpha, work.gamma, execution),  # type: ignore[arg-type]
            image_shape=SHAPE,
        )
    if work.deep:
        models[f"deep ensemble of {work.members}"] = DeepEnsemble(plain, seeds=range(work.members))
    if (theirs := _theirs(work)) is not None:
        models[THEIRS] = theirs
    return {name: model.to(device) for name, model in models.items()}


class _MembersFirst(nn.Module):
    """torch-uncertainty's logits ``[M B, C]`` as ours, ``[M, B, C]``."""

    def __init__(self, network: nn.Module, members: int) -> None:
        super().__init__()
        self.network, self.members = network, members

    def forward(self, images: Tensor) -> Tensor:
        return self.network(images).unflatten(0, (self.members, -1))


def _theirs(work: Work) -> nn.Module | None:
    try:
        from torch_uncertainty.models.classification.resnet import packed_resnet
    except ImportError as error:
        print(f"torch-uncertainty takes no part: {error}\n")
        return None
    if work.backbone != "resnet18":
        return None
    network = packed_resnet(
        in_channels=3,
        num_classes=harness.CLASSES,
        arch=18,
        num_estimators=work.members,
        alpha=work.alpha,
        gamma=work.gamma,
        style="cifar",
    )
    return _MembersFirst(network, work.members)


def _sizes(models: dict[str, nn.Module]) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = [("", "parameters", "MACs an image")]
    for name, model in models.items():
        if name == PLAIN or name.endswith("loop") or not name.startswith("packed, "):
            macs = count_macs(model, SHAPE)
            rows.append((name, f"{count_parameters(model) / 1e6:.2f} M", f"{macs / 1e9:.4f} G"))
    return rows


def _laid_out(
    models: dict[str, nn.Module], images: Tensor, targets: Tensor
) -> list[tuple[str, nn.Module, tuple[Tensor, Tensor]]]:
    """Every model in both memory layouts, each with a batch in the same layout."""
    found = []
    layouts = {"contiguous": torch.contiguous_format, "channels last": torch.channels_last}
    for layout, order in layouts.items():
        for name, model in models.items():
            own = copy.deepcopy(model).to(memory_format=order)  # type: ignore[call-overload]
            batch = (images.contiguous(memory_format=order), targets)
            found.append((f"{name}, {layout}", own, batch))
    return found


def _training(model: nn.Module, images: Tensor, targets: Tensor, work: Work) -> Act:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, nesterov=True)

    def step() -> None:
        model.train()
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(images.device.type, torch.bfloat16, enabled=work.bf16):
            logits = model(images)
        member_losses(logits, targets).sum().backward()
        optimizer.step()

    return step


def _inference(model: nn.Module, images: Tensor, targets: Tensor, work: Work) -> Act:
    @torch.inference_mode()
    def run() -> Tensor:
        model.eval()
        with torch.autocast(images.device.type, torch.bfloat16, enabled=work.bf16):
            return F.log_softmax(model(images).float(), dim=-1)

    return run


def judged(
    found: dict[str, harness.Measurement],
) -> tuple[list[harness.Measurement], harness.Measurement]:
    """All candidates relative to the plain network's faster layout, and the fastest packed one."""
    plain = max(
        (each for name, each in found.items() if name.startswith(PLAIN)), key=lambda each: each.rate
    )
    rows = [
        replace(each, baseline=plain.seconds, over=f"{PLAIN}, its faster layout")
        for each in found.values()
    ]
    ours = [each for each in rows if each.name.startswith("packed")]
    return rows, min(ours, key=lambda each: each.slowdown.median)


if __name__ == "__main__":
    raise SystemExit(0 if main() else 1)
