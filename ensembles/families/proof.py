"""Numerical proofs: that the grouped form of several networks equals the loop; what is random."""

import copy
import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import repeat
from typing import Any

import torch
from torch import Tensor, nn

from ..ensemble import check_result
from .grouped import GroupedNetwork, NotExactError, evaluate_grouped, first_line
from .surgery import copied, failing_module

__all__ = ["first_random_module", "locate", "prove_equal", "randomise"]

TOLERANCE = 1e-7
"""Of the largest value, in double precision: rounding stays far below, mixing far above."""

Joint = Callable[[Sequence[nn.Module], Tensor], list[Tensor]]
"""Evaluates several networks at once: each one's result, and its running statistics moved."""


@torch.no_grad()
def randomise(network: nn.Module, generator: torch.Generator) -> None:
    r"""Draw every parameter and running statistic anew, so that nothing is zero by design.

    In place, by a generator on the CPU: weights are normal with variance 1 / fan-in; vectors are
    uniform in [1/2, 3/2], which keeps units alive; running variances too, and running means normal.
    """
    for parameter in network.parameters():
        if parameter.ndim >= 2 and parameter.shape[0] > 0:
            fan_in = max(1, parameter[0].numel())
            drawn = torch.randn(parameter.shape, generator=generator) / math.sqrt(fan_in)
        else:
            drawn = 0.5 + torch.rand(parameter.shape, generator=generator)
        parameter.copy_(drawn)
    for part in network.modules():
        if isinstance(part, nn.modules.batchnorm._NormBase):
            mean, variance = part.running_mean, part.running_var
            if mean is not None and variance is not None:
                mean.copy_(0.3 * torch.randn(mean.shape, generator=generator))
                variance.copy_(0.5 + torch.rand(variance.shape, generator=generator))


@contextmanager
def listening(
    network: nn.Module, before: Callable[[str, Any], None], after: Callable[[str, Any], None]
) -> Iterator[None]:
    """Call functions with each module's name and inputs before it runs, and its result after."""
    with ExitStack() as stack:
        for name, part in network.named_modules():
            hook = part.register_forward_pre_hook(lambda _, given, name=name: before(name, given))
            stack.enter_context(hook)
            hook = part.register_forward_hook(lambda _, __, result, name=name: after(name, result))
            stack.enter_context(hook)
        yield


@contextmanager
def traced(network: nn.Module) -> Iterator[list[tuple[str, str, Tensor]]]:
    """A list that fills with ``("reads" or "gives", dotted name, first tensor)`` of modules."""
    events: list[tuple[str, str, Tensor]] = []

    def note(kind: str, name: str, values: Any) -> None:
        first = values[0] if isinstance(values, tuple | list) and values else values
        if isinstance(first, Tensor):
            events.append((kind, name, first.detach().clone()))

    with listening(network, partial(note, "reads"), partial(note, "gives")):
        yield events


def prove_equal(
    networks: Sequence[nn.Module], images: Tensor, joint: Joint = evaluate_grouped
) -> None:
    """Compare the grouped form with the loop over networks, with all weights drawn at random.

    On copies, on the CPU and in double precision, with each module in its mode. Results are
    compared, and running statistics where modules train.

    Args:
        networks: One per member.
        images: For their shape alone: ``[B, K, H, W]``, or ``[m, B, K, H, W]``.
        joint: What is compared with the loop.

    Raises:
        NotExactError: They differ; the first module where they do is named.
    """
    generator = torch.Generator().manual_seed(0)
    with torch.inference_mode(False), torch.no_grad():
        first = [_on_cpu(network) for network in networks]
        for network in first:
            randomise(network, generator)
        leading = (len(first), 3) if images.ndim == 5 else (3,)
        shape = (*leading, *images.shape[-3:])
        probe = torch.rand(shape, generator=generator, dtype=torch.float64)
        second = copy.deepcopy(first)
        expected = [network(own) for network, own in _with_images(first, probe)]
        for member, result in enumerate(expected):
            check_result(result, probe.shape[-4], member)
        try:
            results = joint(second, probe)
        except NotExactError:
            raise
        except Exception as error:
            raise _refusal(first, probe, first_line(error)) from error
        pairs = list(zip(results, expected, strict=True))
        for mine, other in zip(second, first, strict=True):
            pairs += zip(mine.buffers(), other.buffers(), strict=True)
        if not all(_close(result, wanted) for result, wanted in pairs):
            raise _refusal(first, probe, "its result is not each member's own")


def first_random_module(network: nn.Module, images: Tensor) -> tuple[str, str] | None:
    """Find the first module that draws random numbers in the mode in which it is.

    A module draws if it moves torch's generator on, or if two runs from different states of it
    differ. Images are read for their shape alone: ``[..., K, H, W]``.

    Returns:
        The module's dotted name and kind; None if nothing is random.
    """
    states: list[Tensor] = []
    found: list[str] = []

    def before(_: str, __: Any) -> None:
        states.append(torch.get_rng_state())

    def after(name: str, _: Any) -> None:
        if not torch.equal(states.pop(), torch.get_rng_state()):
            found.append(name)

    with torch.inference_mode(False), torch.no_grad(), torch.random.fork_rng(devices=[]):
        generator = torch.Generator().manual_seed(0)
        probe = torch.rand((3, *images.shape[-3:]), generator=generator, dtype=torch.float64)
        runs = []
        for seed in (1, 2):
            torch.default_generator.manual_seed(seed)
            copied = _on_cpu(network)
            with listening(copied, before, after):
                runs.append(copied(probe))
            if found:
                return found[0], type(copied.get_submodule(found[0])).__name__
        # What is no tensor is refused by the proof.
        tensors = [run for run in runs if isinstance(run, Tensor)]
        same = len(tensors) < 2 or torch.equal(*tensors)
        return None if same else ("", type(network).__name__)


def _on_cpu(network: nn.Module) -> nn.Module:
    return copied(network).to("cpu", torch.float64)


def _with_images(
    networks: Sequence[nn.Module], images: Tensor
) -> Iterator[tuple[nn.Module, Tensor]]:
    """Each network and the images that it reads."""
    return zip(networks, images if images.ndim == 5 else repeat(images), strict=False)


def _close(result: Tensor, expected: Tensor) -> bool:
    if result.shape != expected.shape:
        return False
    if expected.numel() == 0:
        return True
    difference = (result.double() - expected.double()).abs().max()
    return bool(difference <= TOLERANCE * (1 + expected.double().abs().max()))


def locate(networks: Sequence[nn.Module], images: Tensor) -> tuple[str, str] | None:
    """Find the first module where the grouped form of networks differs from the loop, and why.

    Args:
        networks: One of each member, with weights drawn at random.
        images: What they read.

    Returns:
        The module's dotted name and the reason, as the end of a sentence; None if all agree.
    """
    wanted: list[dict[tuple[str, str], list[Tensor]]] = []
    for network, own_images in _with_images(networks, images):
        with traced(network) as events:
            network(own_images)
        wanted.append(defaultdict(list))
        for kind, name, tensor in events:
            wanted[-1][kind, name].append(tensor)
    form = GroupedNetwork(networks[0], len(networks), own_images=images.ndim == 5)
    form.follow(networks[0])
    failure = None
    with traced(form.body) as events, form.settling():
        try:
            form.evaluate(form.tensors(networks), images)
        except Exception as error:
            failure = failing_module(form.body, error)[0], first_line(error)
    for kind, name, tensor in events:
        own = [calls[kind, name].pop(0) for calls in wanted if calls[kind, name]]
        if name in form.reordered or not own or _is_joined(tensor, own):
            continue
        if kind == "gives":
            return name, "its result is not each member's own, so that members would mix"
        owner, _, child = name.rpartition(".")
        handed = f"what it hands to {child!r} is not one member after the other"
        return owner, f"{handed}, so that members would mix"
    return failure


def _is_joined(tensor: Tensor, members: Sequence[Tensor]) -> bool:
    """Whether a tensor is the members' own ones along some axis, or one that all of them have."""
    if all(tensor.shape == own.shape for own in members):
        return all(_close(tensor, own) for own in members)
    for axis in range(min(tensor.ndim, members[0].ndim)):
        joined = torch.cat(list(members), axis)
        if joined.shape == tensor.shape:
            return _close(tensor, joined)
    return False


def _refusal(networks: Sequence[nn.Module], images: Tensor, reason: str) -> NotExactError:
    name, reason = locate(networks, images) or ("", reason)
    return NotExactError(name, networks[0].get_submodule(name), reason)
