"""The grouped execution of several bodies of one architecture: proved at first use, then fast."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..ensemble import Features
from .grouped import GroupedNetwork, NotExactError
from .proof import first_random_module, prove_equal
from .surgery import copied

__all__ = ["GroupedExecution", "check_alike", "first_difference"]

NUM_PROVED = 4
"""The most members in a proof: all have one architecture, and no rule depends on their number."""


class GroupedExecution:
    """Evaluates bodies as one network with grouped layers, proved at first use to equal the loop.

    The proof is made once for each shape of the images, number of members and set of modules in
    training mode, and again when a module or one of its settings has changed in any member; all
    members are then also compared again. A copy starts without proofs.
    """

    def __init__(self) -> None:
        self._everyone: list[_Snapshot] = []
        self._proved: set[Any] = set()
        self._forms: dict[Any, GroupedNetwork] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        return GroupedExecution, ()

    def features(
        self, bodies: Sequence[nn.Module], images: Tensor, everyone: Sequence[nn.Module]
    ) -> Features:
        """The features of the chosen members' bodies, among everyone's.

        Raises:
            NotExactError: The grouped form does not equal the loop.
            ValueError: Something random in training, members in different modes or that are no
                longer alike, or hooks on their modules.
        """
        self._notice_changes(everyone)
        chosen = [next(known for known in self._everyone if known.body is own) for own in bodies]
        _refuse_hooks(chosen)
        modes = _modes(chosen)
        self._prove(modes, images, everyone[: min(len(bodies), NUM_PROVED)])
        form = self._form(bodies, images)
        form.follow(bodies[0])
        tensors = form.tensors(bodies)
        joint = form.evaluate(tensors, images)
        if any(modes):
            form.write_back(tensors, bodies)
        return list(joint.chunk(len(bodies), dim=1))

    def _notice_changes(self, everyone: Sequence[nn.Module]) -> None:
        """Forget proofs and forms if any module or setting has changed since they were made."""
        known = [snapshot.body for snapshot in self._everyone]
        if known == list(everyone) and all(snapshot.holds() for snapshot in self._everyone):
            return
        check_alike(everyone)
        self._everyone = [_Snapshot(body) for body in everyone]
        self._proved.clear()
        self._forms.clear()

    def _prove(
        self, modes: tuple[bool, ...], images: Tensor, examples: Sequence[nn.Module]
    ) -> None:
        key = (len(examples), images.ndim, tuple(images.shape[-3:]), modes)
        if key in self._proved:
            return
        in_mode = [copied(example) for example in examples]
        for example in in_mode:
            for part, mode in zip(example.modules(), modes, strict=True):
                part.training = mode
        with torch.autocast("cpu", enabled=False):  # where the proof is
            if any(modes) and (random := first_random_module(in_mode[0], images)):
                name, kind = random
                raise ValueError(
                    "execution 'grouped' cannot train members that draw random numbers, as module "
                    f"{name!r} ({kind}) does: each member draws from its own stream only in the "
                    "loop; use execution: loop"
                )
            with _with_remedy():
                prove_equal(in_mode, images)
        self._proved.add(key)

    def _form(self, bodies: Sequence[nn.Module], images: Tensor) -> GroupedNetwork:
        first = next(bodies[0].parameters(), images)
        key = (len(bodies), images.ndim, images.shape[-3], first.device, first.dtype)
        if key not in self._forms:
            form = GroupedNetwork(bodies[0], len(bodies), own_images=images.ndim == 5)
            with _with_remedy(), torch.inference_mode(False):
                form.settle(form.tensors(bodies), images)
            self._forms[key] = form
        return self._forms[key]


@contextmanager
def _with_remedy() -> Iterator[None]:
    """Say in an error what the user of an execution can do about it."""
    try:
        yield
    except NotExactError as error:
        error.args = (
            "execution 'grouped' must equal the loop over members, but differs first in "
            f"{error}; use execution: loop",
        )
        raise


class _Snapshot:
    """What the modules of a body are and how they are set, cheap to compare with what holds now.

    Weights and modes are left out: they are read at each forward.
    """

    def __init__(self, body: nn.Module) -> None:
        self.body = body
        self.parts = list(body.modules())
        self._seen = []
        for part in self.parts:
            pairs = vars(part).items()
            keys = [key for key, value in pairs if _is_setting(key, value) or callable(value)]
            self._seen.append((part, keys, _state(part, keys)))

    def holds(self) -> bool:
        """Whether all of it is as it was."""
        return all(_state(part, keys) == state for part, keys, state in self._seen)


def _state(part: nn.Module, keys: Sequence[str]) -> tuple[Any, ...]:
    """What a module is: its kind, its settings of these names, its children and parameters."""
    own = vars(part)
    settings = [list(v) if type(v) is list else v for v in map(own.get, keys)]
    children = list(own["_modules"].items())
    parameters = [(key, one is None) for key, one in own["_parameters"].items()]
    return type(part), len(own), settings, children, parameters


_HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")


def _refuse_hooks(chosen: Sequence[_Snapshot]) -> None:
    for snapshot in chosen:
        for part in snapshot.parts:
            own = vars(part)
            if any([own[kind] for kind in _HOOKS]):
                name = {each: name for name, each in snapshot.body.named_modules()}[part]
                raise ValueError(
                    f"execution 'grouped' calls no hooks of members' modules, but module {name!r} "
                    f"({type(part).__name__}) has one; remove it, or use execution: loop"
                )


def _modes(chosen: Sequence[_Snapshot]) -> tuple[bool, ...]:
    """Which modules train; the same ones in all members."""
    modes = [tuple([part.training for part in snapshot.parts]) for snapshot in chosen]
    if any(own != modes[0] for own in modes[1:]):
        raise ValueError(
            "execution 'grouped' needs all members in the same mode, but some train and some do "
            "not; use execution: loop, or members=[...] of one mode at a time"
        )
    return modes[0]


def check_alike(bodies: Sequence[nn.Module]) -> None:
    """Refuse members of different architectures or settings, which have no grouped form.

    Raises:
        ValueError: Two differ; the first module in which they do is named.
    """
    for index, body in enumerate(bodies):
        name = first_difference(bodies[0], body)
        if name is not None:
            raise ValueError(
                "execution 'grouped' needs members of one architecture, but members 0 and "
                f"{index} differ in module {name!r}; use execution: loop"
            )


def first_difference(first: nn.Module, other: nn.Module) -> str | None:
    """Name the first module in which two networks differ in anything but their weights.

    Compared are the kinds of modules, their sizes and settings, the shapes of parameters and
    buffers, and tables of constants.
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
    own = (*part.named_parameters(recurse=False), *part.named_buffers(recurse=False))
    settings = {key: value for key, value in vars(part).items() if _is_setting(key, value)}
    return settings | {"kind": type(part), "sizes": [(key, tensor.shape) for key, tensor in own]}


def _is_setting(key: str, value: Any) -> bool:
    """Whether an attribute of a module is a plain one by which members can be compared."""
    if key.startswith("_") or key == "training":
        return False
    # A list of tensors has no single truth value to compare by.
    if isinstance(value, tuple | list) and any(isinstance(own, Tensor) for own in value):
        return False
    return isinstance(value, int | float | str | bool | tuple | list | None)
