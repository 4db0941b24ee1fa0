"""What a packed ensemble costs: a training step and an inference pass, over one plain network's.

``python -m deepens.experiments.benchmarks.packed``: the CIFAR ResNet-18, packed, in every execution
and memory layout, in turns with the plain network in both layouts; ratios are over the plain
network's faster layout. All members see the same batch. With torch-uncertainty installed
(``pip install 'deepens[bench]'``) its packed ResNet-18 of the same widths takes its turns too.
"""

import argparse
import copy
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...datasets import normalize
from ...ensembles import DeepEnsemble, Network, Packed, PackedEnsemble
from ...ensembles.backbones import build
from ...ensembles.objectives.likelihood import member_losses
from ...ensembles.options import Execution
from ..cost.macs import count_macs, count_parameters
from ..training.devices import threads
from .harness import Candidate, Measurement, Spread, compare, setting, table, verdict, write
from .loader import MEAN, SIZE, STD, cifar_split

MOST = {"training step": 1.20, "inference": 1.20}
MOST_ON_A_GPU = {"training step": 1.50, "inference": 1.50}
PLAIN, THEIRS = "plain network", "torch-uncertainty, packed"
SHAPE = (3, *SIZE)
CLASSES = 10


@dataclass(frozen=True)
class Work:
    """What is measured.

    Args:
        backbone: The network.
        members: M.
        alpha: Width of all members together.
        gamma: Groups of interior convolutions.
        batch_size: Images of a step.
        rounds: Rounds that count.
        steps: Steps of a round.
        bf16: Whether to compute in bfloat16 where autocast does.
        executions: Of the packed ensemble.
        deep: Whether a deep ensemble of as many members takes its turns too.
    """

    backbone: str = "resnet18"
    members: int = 4
    alpha: float = 2.0
    gamma: int = 1
    batch_size: int = 64
    rounds: int = 7
    steps: int = 2
    bf16: bool = False
    executions: tuple[str, ...] = get_args(Execution)
    deep: bool = False


def main(arguments: Sequence[str] | None = None) -> bool:
    """Measure, print and judge.

    Args:
        arguments: Of the command line.

    Returns:
        Whether the fastest execution keeps the bounds.
    """
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backbone", default=Work.backbone)
    for name in ("members", "gamma", "batch-size", "rounds", "steps"):
        parser.add_argument(f"--{name}", type=int, default=getattr(Work, name.replace("-", "_")))
    parser.add_argument("--alpha", type=float, default=Work.alpha)
    parser.add_argument("--bf16", action="store_true", help="autocast to bfloat16")
    parser.add_argument("--executions", nargs="*", default=list(Work.executions))
    parser.add_argument("--deep", action="store_true", help="measure a deep ensemble as well")
    parser.add_argument("--threads", type=int, help="torch's own number when absent")
    parser.add_argument("--out", help="a JSON file for every round")
    given = vars(parser.parse_args(arguments))
    out, count = given.pop("out"), given.pop("threads")
    work = Work(**given | {"executions": tuple(given["executions"])})
    images, targets, source = _batch(work)
    print(setting())
    print(
        f"{work.backbone}, (M, alpha, gamma) = ({work.members}, {work.alpha:g}, {work.gamma}); "
        f"batches of {work.batch_size} images: {source}; {'bf16' if work.bf16 else 'fp32'}; "
        f"{count or torch.get_num_threads()} threads; {work.rounds} rounds of {work.steps}\n"
    )
    measurements, lines = [], []
    with threads(count):
        models = _models(work, images.device)
        print(table(_sizes(models)) + "\n")
        bounds = MOST_ON_A_GPU if images.device.type == "cuda" else MOST
        for what, act in (("training step", _training), ("inference", _inference)):
            found = compare(
                [
                    Candidate(name, _timed(act(model, *batch, work), work.steps, images.device))
                    for name, model, batch in _laid_out(models, images, targets)
                ],
                rounds=work.rounds,
                warmup=2,
            )
            rows, fastest = judged(found)
            measurements += [
                Measurement(f"{what}, {each.name}", each.seconds, each.baseline) for each in rows
            ]
            cells = [
                (r.name, f"{1000 * Spread.of(r.seconds).median:.1f}", str(r.slowdown)) for r in rows
            ]
            print(table([(what, "ms", "over the plain network (spread)"), *cells]) + "\n")
            claim = f"{what} of the fastest execution ({fastest.name}) over the plain network's"
            lines.append(verdict(claim, fastest.slowdown.median, most=bounds[what]))
    print("\n".join(lines))
    write(out, measurements, source=source, work=str(work))
    return not any(line.endswith("BROKEN") for line in lines)


def _batch(work: Work) -> tuple[Tensor, Tensor, str]:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    split, source = cifar_split(work.batch_size)
    images = normalize(cast(Tensor, split.images), mean=MEAN, std=STD)
    return images.to(device), cast(Tensor, split.targets).to(device), source


def _models(work: Work, device: torch.device) -> dict[str, nn.Module]:
    def plain() -> Network:
        return build(work.backbone, num_classes=CLASSES, channels=3, image_size=SIZE[0])

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
    """Their logits, ``[M B, C]``, in our order."""

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
        num_classes=CLASSES,
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
    """Every model in both memory layouts, each with a batch in its own."""
    found = []
    for layout in (torch.contiguous_format, torch.channels_last):
        last = layout is torch.channels_last
        for name, model in models.items():
            own = copy.deepcopy(model).to(memory_format=layout)  # type: ignore[call-overload]
            batch = (images.contiguous(memory_format=layout), targets)
            found.append((f"{name}, {'channels last' if last else 'contiguous'}", own, batch))
    return found


def _training(
    model: nn.Module, images: Tensor, targets: Tensor, work: Work
) -> Callable[[], object]:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, nesterov=True)

    def step() -> None:
        model.train()
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(images.device.type, torch.bfloat16, enabled=work.bf16):
            logits = model(images)
        member_losses(logits, targets).sum().backward()
        optimizer.step()

    return step


def _inference(
    model: nn.Module, images: Tensor, targets: Tensor, work: Work
) -> Callable[[], object]:
    def run() -> Tensor:
        model.eval()
        with (
            torch.inference_mode(),
            torch.autocast(images.device.type, torch.bfloat16, enabled=work.bf16),
        ):
            return F.log_softmax(model(images).float(), dim=-1)

    return run


def _timed(act: Callable[[], object], steps: int, device: torch.device) -> Callable[[], float]:
    def measure() -> float:
        _wait(device)
        started = time.perf_counter()
        for _ in range(steps):
            act()
        _wait(device)
        return (time.perf_counter() - started) / steps

    return measure


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def judged(found: dict[str, Measurement]) -> tuple[list[Measurement], Measurement]:
    """All over the plain network's faster layout, and the fastest of the packed ones."""
    plain = min(
        (each for name, each in found.items() if name.startswith(PLAIN)),
        key=lambda each: statistics.median(each.seconds),
    )
    rows = [Measurement(n, each.seconds, plain.seconds) for n, each in found.items()]
    ours = [each for each in rows if each.name.startswith("packed")]
    return rows, min(ours, key=lambda each: each.slowdown.median)


if __name__ == "__main__":
    raise SystemExit(0 if main() else 1)
