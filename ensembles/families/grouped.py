"""Several networks of one architecture as a single network with grouped layers."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils import parametrize

from ..backbones.preprocessing import Preprocessing
from .grouped_layers import GroupedAttention, GroupedLayerNorm, GroupedLinear, GroupedPReLU
from .member_functions import MemberFunctions
from .surgery import (
    HEAD_COUNT_ATTRIBUTES,
    LAYERS,
    WIDTH_ATTRIBUTES,
    copied,
    failing_module,
    shapes_beside,
    width_axis,
)

__all__ = ["GroupedNetwork", "NotExactError", "evaluate_grouped", "first_line"]

SMALLEST_WIDTH = 4
"""A smaller number in an attribute called ``dim`` is taken for the number of an axis."""


class NotExactError(ValueError):
    """A network has no grouped form that equals the loop over the members.

    Args:
        name: The dotted name of the first module at which the form fails.
        part: That module.
        reason: Why it fails, as the end of a sentence.
    """

    def __init__(self, name: str, part: nn.Module, reason: str) -> None:
        super().__init__(f"module {name!r} ({type(part).__name__}): {reason}")


def first_line(error: Exception) -> str:
    """The first line of an error's message, or its kind."""
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def own_tensors(network: nn.Module) -> dict[str, Tensor]:
    """All parameters and buffers, by name; those of a module in several places once.

    A parameter that two modules share has both names, as it must be replaced in both.
    """
    return {
        f"{name}.{key}".lstrip("."): tensor
        for name, part in network.named_modules()
        for key, tensor in (*part._parameters.items(), *part._buffers.items())
        if tensor is not None
    }


class GroupedNetwork(nn.Module):
    r"""m networks of one architecture in one, their channels side by side.

    :math:`f(x) = [f_1(x), \ldots, f_m(x)]`, ``[B, m*F]``, of images ``[B, K, H, W]``, or
    ``[m, B, K, H, W]`` with ``own_images``.

    Layers are replaced by their grouped forms; parameters that a module holds itself are joined
    along their channels; numbers by which modules reshape (widths, heads) are multiplied by m. All
    else is the code of the network itself, under :class:`~.member_functions.MemberFunctions`. That
    the result is right is proved by :mod:`.proof`.

    The network has no weights of its own: :meth:`tensors` joins those of given members, and
    :meth:`evaluate` runs with them, after :meth:`settle` has once seen what the images look like.
    :meth:`keep` makes them its own.

    Raises:
        NotExactError: A layer for which there is no rule.

    Example:
        >>> import torch
        >>> from deepens.ensembles.families.grouped import GroupedNetwork
        >>> plain = [torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3), torch.nn.Flatten())] * 2
        >>> grouped = GroupedNetwork(plain[0], 2, own_images=False)
        >>> images = torch.randn(5, 1, 3, 3)
        >>> grouped.settle(grouped.tensors(plain), images)
        >>> joint = grouped.evaluate(grouped.tensors(plain), images)
        >>> torch.allclose(joint[:, 4:], plain[1](images), atol=1e-6)
        True
    """

    def __init__(self, template: nn.Module, num_members: int, *, own_images: bool) -> None:
        super().__init__()
        self.num_members, self.own_images = num_members, own_images
        self.reordered: set[str] = set()
        """Modules whose result is deliberately not member after member."""
        self.axes: dict[str, int | None] = {}
        """The axis along which each parameter or buffer is joined; None for one that is shared."""
        self.statistics: list[str] = []
        """The buffers that training changes."""
        self.body = self._grouped(copied(template))
        for name in own_tensors(self.body):
            self.axes.setdefault(name, None)
        self.body.to("meta")

    def forward(self, images: Float[Tensor, "..."]) -> Float[Tensor, "batch ..."]:
        """All members' results, with the weights at hand."""
        if self.own_images:
            images = images.transpose(0, 1).flatten(1, 2)
        with MemberFunctions(self.num_members):
            return self.body(images)

    def tensors(self, networks: Sequence[nn.Module]) -> dict[str, Tensor]:
        """The members' parameters and buffers, joined; gradients flow back to the members."""
        sources = [own_tensors(network) for network in networks]
        joined = {}
        for name, axis in self.axes.items():
            own = [source[name] for source in sources]
            if axis is None:
                joined[name] = own[0]
            else:
                joined[name] = torch.cat(own, axis) if own[0].ndim else torch.stack(own)
        return joined

    def evaluate(
        self, tensors: dict[str, Tensor], images: Float[Tensor, "..."]
    ) -> Float[Tensor, "batch ..."]:
        """All members' results with the joined tensors; running statistics change in place."""
        named = {f"body.{name}": tensor for name, tensor in tensors.items()}
        return functional_call(self, named, (images,), tie_weights=False)

    @torch.no_grad()
    def write_back(self, tensors: dict[str, Tensor], networks: Sequence[nn.Module]) -> None:
        """Give each member its part of the running statistics."""
        sources = [own_tensors(network) for network in networks]
        for name in self.statistics:
            parts = tensors[name].chunk(self.num_members)
            for source, part in zip(sources, parts, strict=True):
                source[name].copy_(part.view_as(source[name]))

    def follow(self, network: nn.Module) -> None:
        """Take over which modules train, in a network whose norms may be frozen."""
        modes = dict(network.named_modules(remove_duplicate=False))
        for name, part in self.body.named_modules(remove_duplicate=False):
            part.training = modes[name].training if name in modes else self.training

    @contextmanager
    def settling(self) -> Iterator[None]:
        """Find the convolutions that read the images themselves, as they run for the first time.

        A shared image has one member's channels. The filters of all members then read the same
        input, and the convolution keeps its own number of groups.
        """
        with ExitStack() as stack:
            for part in () if self.own_images else self.body.modules():
                if isinstance(part, nn.Conv2d):
                    stack.enter_context(part.register_forward_pre_hook(self._settle_convolution))
            yield

    @torch.no_grad()
    def settle(self, tensors: dict[str, Tensor], images: Float[Tensor, "..."]) -> None:
        """Run once to find them, which changes nothing else.

        Raises:
            NotExactError: The form fails; the module in which it does is named.
        """
        self.eval()
        unattached = {name: tensor.detach().clone() for name, tensor in tensors.items()}
        with self.settling():
            try:
                self.evaluate(unattached, images[:, :2] if self.own_images else images[:2])
            except Exception as error:
                raise NotExactError(*failing_module(self.body, error), first_line(error)) from error

    def keep(self, tensors: dict[str, Tensor]) -> None:
        """Make copies of the joined tensors this network's own parameters and buffers."""
        parameters = dict(self.body.named_parameters(remove_duplicate=False))
        for name, tensor in tensors.items():
            owner, _, key = name.rpartition(".")
            own = tensor.detach().clone()
            own = nn.Parameter(own) if name in parameters else own
            setattr(self.body.get_submodule(owner), key, own)

    def _settle_convolution(self, part: nn.Module, inputs: tuple[Any, ...]) -> Any:
        convolution = cast(nn.Conv2d, part)
        own = convolution.in_channels // self.num_members
        if self.num_members == 1 or inputs[0].shape[1] != own:
            return None
        if convolution.groups == self.num_members:
            convolution.in_channels, convolution.groups = own, 1
            return None
        repeat = partial(_repeat_channels, self.num_members)
        convolution.register_forward_pre_hook(repeat)
        return repeat(part, inputs)

    def _grouped(self, body: nn.Module) -> nn.Module:
        done: dict[int, nn.Module] = {}
        finished: list[str] = []
        for name, part in list(body.named_modules(remove_duplicate=False)):
            if any(name.startswith(f"{prefix}.") for prefix in finished):
                continue
            if parametrize.is_parametrized(part):
                raise NotExactError(name, part, "its weights are reparametrised")
            owner, _, key = name.rpartition(".")
            parent = body.get_submodule(owner) if name else None
            if id(part) not in done:  # a module may stand in several places
                if isinstance(part, LAYERS):
                    done[id(part)] = self._layer(name, part, parent)
                    buffers = [key for key, _ in part.named_buffers(name, remove_duplicate=False)]
                    parameters = part.named_parameters(name, remove_duplicate=False)
                    self.axes |= dict.fromkeys([*dict(parameters), *buffers], 0)
                    self.statistics += buffers
                else:
                    done[id(part)] = part
                    self._widen(name, part)
            if (replacement := done[id(part)]) is not part:
                finished.append(name)
                if parent is None:
                    return replacement
                setattr(parent, key, replacement)
        return body

    def _layer(self, name: str, part: nn.Module, parent: nn.Module | None) -> nn.Module:
        """The grouped form of one layer: the layer itself, with other numbers, or a new one."""
        m = self.num_members
        if isinstance(part, nn.Conv2d):
            part.in_channels *= m
            part.out_channels *= m
            part.groups *= m
        elif isinstance(part, nn.BatchNorm2d | nn.BatchNorm1d):
            part.num_features *= m
        elif isinstance(part, nn.GroupNorm):
            part.num_groups *= m
            part.num_channels *= m
        elif isinstance(part, nn.PReLU):
            return GroupedPReLU(part, m)
        elif isinstance(part, nn.LayerNorm) and len(part.normalized_shape) == 1:
            return GroupedLayerNorm(part, m)
        elif isinstance(part, nn.Linear):  # what a subclass does otherwise, the proof finds
            joint = name.rpartition(".")[2] == "qkv" and hasattr(parent, "num_heads")
            if joint and part.out_features % 3 == 0:
                self.reordered.add(name)
                return GroupedLinear(part, m, parts=3)
            return GroupedLinear(part, m)
        elif isinstance(part, nn.MultiheadAttention):
            try:
                return GroupedAttention(part, m)
            except ValueError as error:
                raise NotExactError(name, part, str(error)) from error
        else:
            raise NotExactError(name, part, "there is no rule for it")
        return part

    def _widen(self, name: str, part: nn.Module) -> None:
        """Multiply the numbers by which a module that is not torch's reshapes; join its own."""
        if type(part).__module__.startswith("torch.nn."):
            if [*part.parameters(recurse=False), *part.buffers(recurse=False)]:
                raise NotExactError(name, part, "there is no rule for it")
            return
        for key in (*WIDTH_ATTRIBUTES, *HEAD_COUNT_ATTRIBUTES):
            value = vars(part).get(key)
            smallest = 1 if key in HEAD_COUNT_ATTRIBUTES else SMALLEST_WIDTH
            if type(value) is int and value >= smallest:
                setattr(part, key, value * self.num_members)
        if isinstance(part, Preprocessing) and self.own_images:
            part.register_forward_pre_hook(partial(_fold, self.num_members))
            part.register_forward_hook(partial(_unfold, self.num_members))
            self.reordered.add(name)
        for key, parameter in part.named_parameters(prefix=name, recurse=False):
            axis = width_axis(parameter)
            if axis is None and self.num_members > 1:
                own = key.rpartition(".")[2]
                reason = f"its parameter {own!r} has one entry, and no channels to join"
                raise NotExactError(name, part, reason)
            self.axes[key] = axis or 0
            width = parameter.shape[axis] if axis is not None else 0
            for own, shape in shapes_beside(part, width, parameter.numel()):
                joint = tuple(s * self.num_members if s == width else s for s in shape)
                setattr(part, own, joint)


def evaluate_grouped(networks: Sequence[nn.Module], images: Float[Tensor, "..."]) -> list[Tensor]:
    """Evaluate networks of one architecture in their grouped form, made for this once."""
    form = GroupedNetwork(networks[0], len(networks), own_images=images.ndim == 5)
    form.follow(networks[0])
    tensors = form.tensors(networks)
    with form.settling():
        joint = form.evaluate(tensors, images)
    form.write_back(tensors, networks)
    return list(joint.chunk(len(networks), dim=1))


def _repeat_channels(num_members: int, _: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """Give every member its own copy of a shared image."""
    return (inputs[0].repeat(1, num_members, 1, 1), *inputs[1:])


def _fold(num_members: int, _: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """Members become part of the batch, for a module that treats all of them alike."""
    return (inputs[0].unflatten(1, (num_members, -1)).flatten(0, 1), *inputs[1:])


def _unfold(num_members: int, _: nn.Module, inputs: tuple[Any, ...], result: Tensor) -> Tensor:
    return result.unflatten(0, (-1, num_members)).flatten(1, 2)
