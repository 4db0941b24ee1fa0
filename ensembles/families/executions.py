"""How several bodies of one architecture are evaluated jointly: checked first, then fast."""

import copy
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..options import Execution
from .grouped import GroupedNetwork, NotExactError
from .proof import first_random_module, locate, prove_equal
from .vmapped import vmapped

__all__ = ["JointExecution", "first_difference"]

NUM_PROVED = 4
"""The most members in a proof: all have one architecture, and no rule depends on their number."""

Self = TypeVar("Self", bound="JointExecution")


class JointExecution:
    """Evaluates bodies jointly, after a proof at first use that the result equals the loop's.

    The proof is made once for each shape of the images, number of members and set of modules that
    train. A copy starts anew.

    Args:
        execution: ``"grouped"``, ``"vmap"`` or ``"compiled"``.
    """

    def __init__(self, execution: Execution) -> None:
        self.execution = execution
        self._proved: set[Any] = set()
        self._forms: dict[Any, GroupedNetwork] = {}
        self._compiled: dict[Any, Callable[..., Tensor]] = {}

    def __deepcopy__(self: Self, memo: dict[int, Any]) -> Self:
        return type(self)(self.execution)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.execution,)

    def features(
        self,
        bodies: Sequence[nn.Module],
        images: Float[Tensor, "..."],
        everyone: Sequence[nn.Module],
    ) -> list[Float[Tensor, "batch _"]]:
        """The features of the chosen bodies.

        Args:
            bodies: Those of the chosen members.
            images: ``[B, K, H, W]``, or ``[m, B, K, H, W]``.
            everyone: Those of all members, of which the first are used for the proof.

        Returns:
            One tensor a chosen member.

        Raises:
            NotExactError: The execution does not equal the loop.
            ValueError: Something random in training, or members in different modes.
        """
        modes = _modes(bodies, self.execution)
        self._prove(modes, images, everyone[: min(len(bodies), NUM_PROVED)])
        if self.execution == "vmap":
            return vmapped(bodies, images)
        form = self._form(bodies, images)
        form.follow(bodies[0])
        tensors = form.tensors(bodies)
        if self.execution == "compiled":
            joint = self._compiled_form(form)(tensors, images)
        else:
            joint = form.evaluate(tensors, images)
        if any(modes):
            form.write_back(tensors, bodies)
        return list(joint.chunk(len(bodies), dim=1))

    def _prove(
        self, modes: tuple[bool, ...], images: Tensor, examples: Sequence[nn.Module]
    ) -> None:
        key = (len(examples), images.ndim, tuple(images.shape[-3:]), modes)
        if key in self._proved:
            return
        in_mode = [copy.deepcopy(example) for example in examples]
        for example in in_mode:
            for part, mode in zip(example.modules(), modes, strict=True):
                part.training = mode
        with torch.autocast("cpu", enabled=False):  # where the proof is
            if any(modes) and (found := first_random_module(in_mode[0], images)):
                name, kind = found
                raise ValueError(
                    f"execution {self.execution!r} cannot train members that draw random numbers, "
                    f"as module {name!r} ({kind}) does: each member draws from its own stream only "
                    "in the loop; use execution: loop"
                )
            grouped = self.execution != "vmap"
            try:
                if grouped:
                    prove_equal(evaluate_grouped, in_mode, images, locate)
                else:
                    prove_equal(vmapped, in_mode, images)
            except NotExactError as error:
                raise error.of_execution(self.execution) from error
        self._proved.add(key)

    def _form(self, bodies: Sequence[nn.Module], images: Tensor) -> GroupedNetwork:
        first = next(bodies[0].parameters(), images)
        key = (len(bodies), images.ndim, images.shape[-3], first.device, first.dtype)
        if key not in self._forms:
            with torch.inference_mode(False):
                self._forms[key] = _settled(bodies, images)
        return self._forms[key]

    def _compiled_form(self, form: GroupedNetwork) -> Callable[..., Tensor]:
        key = id(form)
        if key not in self._compiled:

            def evaluate(tensors: dict[str, Tensor], own_images: Tensor) -> Tensor:
                return form.evaluate(tensors, own_images)

            # Torch limits recompilations for each piece of code, so every form gets its own; and
            # shapes are fixed, since the compiler for CPUs fails on some symbolic ones.
            evaluate.__code__ = evaluate.__code__.replace()
            self._compiled[key] = torch.compile(evaluate, dynamic=False)
        return self._compiled[key]


def evaluate_grouped(networks: Sequence[nn.Module], images: Float[Tensor, "..."]) -> list[Tensor]:
    """Evaluate all networks in their grouped form, made for this once.

    Args:
        networks: Networks of one architecture.
        images: ``[B, K, H, W]``, or ``[m, B, K, H, W]``.

    Returns:
        Each network's result.
    """
    form = GroupedNetwork(networks[0], len(networks), own_images=images.ndim == 5)
    form.follow(networks[0])
    tensors = form.tensors(networks)
    with form.settling():
        joint = form.evaluate(tensors, images)
    form.write_back(tensors, networks)
    return list(joint.chunk(len(networks), dim=1))


def _settled(networks: Sequence[nn.Module], images: Tensor) -> GroupedNetwork:
    form = GroupedNetwork(networks[0], len(networks), own_images=images.ndim == 5)
    form.settle(form.tensors(networks), images)
    return form


def _modes(bodies: Sequence[nn.Module], execution: Execution) -> tuple[bool, ...]:
    """Which modules train; the same ones in all members."""
    modes = [tuple(part.training for part in body.modules()) for body in bodies]
    for own in modes[1:]:
        if own != modes[0]:
            raise ValueError(
                f"execution {execution!r} needs all members in the same mode, but some train and "
                "some do not; use execution: loop, or members=[...] of one mode at a time"
            )
    return modes[0]


def first_difference(first: nn.Module, other: nn.Module) -> str | None:
    """Name the first module in which two networks differ in anything but their weights.

    Compared are the kinds of modules, their sizes and settings, the shapes of parameters and
    buffers, and tables of constants.

    Args:
        first: A network.
        other: Another one.

    Returns:
        The module's dotted name, or None.

    Example:
        >>> from torch import nn
        >>> from deepens.ensembles.families.executions import first_difference
        >>> make = lambda width: nn.Sequential(nn.Flatten(), nn.Linear(width, 2))
        >>> first_difference(make(4), make(5))
        '1'
    """
    mine, theirs = dict(first.named_modules()), dict(other.named_modules())
    for name, part in mine.items():
        if name not in theirs or _settings(part) != _settings(theirs[name]):
            return name
        constant = not isinstance(part, nn.modules.batchnorm._NormBase)
        for key, buffer in part.named_buffers(recurse=False):
            if constant and not torch.equal(buffer, theirs[name].get_buffer(key)):
                return name
    return next((name for name in theirs if name not in mine), None)


def _settings(part: nn.Module) -> dict[str, Any]:
    plain = int | float | str | bool | tuple | list | None
    settings: dict[str, Any] = {
        key: value
        for key, value in vars(part).items()
        if not key.startswith("_") and key != "training" and isinstance(value, plain)
        # A list of tensors has no single truth value to compare by.
        if not (isinstance(value, tuple | list) and any(isinstance(v, Tensor) for v in value))
    }
    settings["kind"] = type(part)
    settings["sizes"] = [
        (key, tuple(tensor.shape))
        for key, tensor in (
            *part.named_parameters(recurse=False),
            *part.named_buffers(recurse=False),
        )
    ]
    return settings
