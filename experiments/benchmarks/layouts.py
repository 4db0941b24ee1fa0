"""Convolutions of many shapes in channels-last memory, against their result in contiguous memory.

``python -m deepens.experiments.benchmarks.layouts``: every shape runs forward and backward twice
in a child process of its own, since a fault of the arithmetic library ends the process. Reported
are the shapes that crash, and those whose output or gradients differ by more than rounding.
"""

import argparse
import itertools
import multiprocessing
import os
import signal
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ...ensembles.backbones.pointwise import SubsampledConv2d
from .harness import setting, table

TOLERANCES = {torch.float32: 1e-4, torch.bfloat16: 3e-2}
LAYERS: dict[str, type[nn.Conv2d]] = {"Conv2d": nn.Conv2d, "SubsampledConv2d": SubsampledConv2d}
BATCH = 4


class Shape(NamedTuple):
    """One convolution and the images that it reads."""

    layer: str
    kernel: int
    stride: int
    inputs: int
    outputs: int
    groups: int
    size: int
    dtype: torch.dtype

    def __str__(self) -> str:
        return (
            f"{self.layer} {self.kernel}x{self.kernel}, stride {self.stride}, {self.inputs} to "
            f"{self.outputs} channels in {self.groups} groups, {self.size} px, "
            f"{str(self.dtype).removeprefix('torch.')}"
        )


def shapes(*, quick: bool = False) -> Iterator[Shape]:
    """The shapes that families and backbones make: few channels, groups, depthwise, odd sizes.

    Args:
        quick: A few of each kind only.
    """
    few = (1, 3, 8, 12, 16, 32)
    channels = few if quick else (1, 2, 3, 4, 5, 6, 8, 10, 12, 13, 15, 16, 17, 24, 31, 32, 48)
    sizes = (32, 62, 64, 65) if quick else (28, 32, 47, 48, 56, 62, 64, 65, 96, 128)
    for dtype in TOLERANCES:
        for stride, inputs, size in itertools.product((1, 2, 3, 4), channels, sizes):
            for layer in LAYERS:
                yield Shape(layer, 1, stride, inputs, 24, 1, size, dtype)
        for stride, inputs, size in itertools.product((1, 2, 3), channels, sizes):
            yield Shape("Conv2d", 3, stride, inputs, 24, 1, size, dtype)
        for kernel, stride in ((2, 2), (4, 4), (16, 16), (5, 1), (5, 2), (7, 1), (7, 2)):
            for inputs, size in itertools.product(few, (64, 96)):
                yield Shape("Conv2d", kernel, stride, inputs, 24, 1, size, dtype)
        for kernel, stride in itertools.product((1, 3, 5, 7), (1, 2)):
            for groups, each in itertools.product((2, 4, 16), (1, 2, 4, 8)):
                yield Shape(
                    "Conv2d", kernel, stride, groups * each, 2 * groups * each, groups, 64, dtype
                )


def difference(shape: Shape) -> float:
    """The largest relative difference of output and gradients between the two layouts."""
    found: list[list[Tensor]] = []
    for layout in (torch.contiguous_format, torch.channels_last):
        torch.manual_seed(0)
        layer = LAYERS[shape.layer](
            shape.inputs,
            shape.outputs,
            shape.kernel,
            stride=shape.stride,
            padding=shape.kernel // 2,
            groups=shape.groups,
        ).to(shape.dtype)
        layer.to(memory_format=layout)  # type: ignore[call-overload]
        images = torch.randn(BATCH, shape.inputs, shape.size, shape.size).to(shape.dtype)
        images = images.contiguous(memory_format=layout).requires_grad_()
        for _ in range(2):  # memory written outside its bounds often fails the second time
            layer.zero_grad()
            images.grad = None
            outputs = layer(images)
            outputs.float().square().sum().backward()
        found.append([t.detach().double() for t in (outputs, images.grad, layer.weight.grad)])  # type: ignore[union-attr]
    return max(
        float((b - a).abs().max() / a.abs().max().clamp(min=1e-12))
        for a, b in zip(*found, strict=True)
    )


def trial(shape: Shape) -> str:
    """What happens with a shape in a process of its own: nothing to report is empty."""
    here, there = multiprocessing.Pipe(duplex=False)
    child = multiprocessing.get_context("fork").Process(target=_try, args=(shape, there))
    child.start()
    there.close()
    try:
        worst = here.recv()
    except EOFError:
        worst = None
    child.join()
    if child.exitcode != 0:
        return f"crash ({signal.Signals(-child.exitcode).name})" if child.exitcode else "crash"
    if worst is None or not worst <= TOLERANCES[shape.dtype]:
        return f"differs by {worst:.2g}" if worst is not None else "no result"
    return ""


def _try(shape: Shape, there: Connection) -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # what glibc says of damaged memory
    torch.set_num_threads(1)
    there.send(difference(shape))


def main(arguments: Sequence[str] | None = None) -> bool:
    """Sweep, print what was found, and say whether the layers of our own are safe.

    Args:
        arguments: Of the command line.

    Returns:
        Whether no `SubsampledConv2d` crashes or differs.
    """
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer shapes")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    tried = list(shapes(quick=given.quick))
    found = {shape: outcome for shape in tried if (outcome := trial(shape))}
    print(setting())
    print(f"{len(tried)} shapes forward and backward, {len(found)} with a finding")
    if found:
        print(table([("shape", "finding"), *((str(s), outcome) for s, outcome in found.items())]))
    return not any(shape.layer == "SubsampledConv2d" for shape in found)


if __name__ == "__main__":
    raise SystemExit(0 if main() else 1)
