"""What narrowing a network and joining several have to know about its modules."""

import copy
import math
import traceback
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from torch import Tensor, nn
from torch.autograd.graph import Node

Part = TypeVar("Part", bound=nn.Module)

WIDTH_ATTRIBUTES = ("hidden_dim", "embed_dim", "hidden_size", "attn_dim", "all_head_size")
"""Numbers that modules keep beside their parameters and reshape by: a tensor's width."""

HEAD_SIZE_ATTRIBUTES = ("head_dim", "dim_head", "attention_head_size")
"""Likewise: the width of one attention head."""

HEAD_COUNT_ATTRIBUTES = ("num_heads", "num_attention_heads", "num_kv_heads", "num_key_value_heads")
"""Likewise: how many attention heads there are."""


def width_axis(parameter: nn.Parameter) -> int | None:
    """The axis of a raw parameter that runs over channels: the last one longer than 1.

    It is that of class tokens ``[1, 1, D]``, positions ``[1, L, D]`` and layer scales ``[C]`` and
    ``[C, 1, 1]``; of positions of square images ``[1, C, H, H]`` it is the second. None for a
    parameter of one entry.

    Example:
        >>> import torch
        >>> from deepens.ensembles.families.surgery import width_axis
        >>> [width_axis(torch.nn.Parameter(torch.zeros(s))) for s in [(1, 9, 4), (8, 1, 1), (1,)]]
        [2, 0, None]
    """
    leading, *places = parameter.shape if parameter.ndim == 4 else (0,)
    if leading == 1 and places[0] != places[1] == places[2] > 1 and places[0] > 1:
        return 1
    return max((axis for axis, size in enumerate(parameter.shape) if size > 1), default=None)


def raw_parameters(model: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Parameter]]:
    """Parameters that a module of the user's or a library's own holds directly.

    Those of torch's own layers are left out: each kind of layer has its rule.

    Yields:
        The module, the parameter's name in it, and the parameter.
    """
    for module in model.modules():
        if not isinstance(module, (*LAYERS, nn.Conv1d)):
            for key, parameter in module.named_parameters(recurse=False):
                yield module, key, parameter


def shapes_beside(module: nn.Module, width: int, entries: int) -> list[tuple[str, tuple[int, ...]]]:
    """Shapes by which a module views its raw parameter, such as ``(C, 1, 1)``, by their names."""
    return [
        (key, value)
        for key, value in vars(module).items()
        if type(value) is tuple
        and all(type(size) is int for size in value)
        and width in value
        and math.prod(value) == entries
    ]


def failing_module(network: nn.Module, error: BaseException) -> tuple[str, nn.Module]:
    """The innermost module of a network that an error came from, by its traceback; its name first.

    Where none is in the traceback, it is the network itself.
    """
    names = {id(part): name for name, part in network.named_modules()}
    found = "", network
    for frame, _ in traceback.walk_tb(error.__traceback__):
        part = frame.f_locals.get("self")
        if isinstance(part, nn.Module) and id(part) in names:
            found = names[id(part)], part
    return found


def copied(network: Part) -> Part:
    """A deep copy, without what modules keep of an earlier pass and its graph in plain attributes.

    A dictionary of such tensors is a cache, which the copy starts empty.
    """
    memo: dict[int, Any] = {}
    for part in network.modules():
        for value in _plain(part).values():
            if isinstance(value, Tensor) and not value.is_leaf:
                memo[id(value)] = value.detach().clone()
            elif type(value) is dict and any(not own.is_leaf for own in _tensors(value)):
                memo[id(value)] = {}
            elif isinstance(value, list | tuple):
                memo |= {id(own): own.detach() for own in _tensors(value) if not own.is_leaf}
    return copy.deepcopy(network, memo)


@contextmanager
def forgetting(network: nn.Module) -> Iterator[None]:
    """Undo on leaving what modules put into plain attributes to remember tensors of a pass."""
    before = [
        (part, {k: copy.copy(v) if type(v) in (dict, list) else v for k, v in _plain(part).items()})
        for part in network.modules()
    ]
    yield
    for part, attributes in before:
        for key, value in _plain(part).items():
            if _tensors(value) and value is not attributes.get(key):
                if key in attributes:
                    vars(part)[key] = attributes[key]
                else:
                    del vars(part)[key]


def _plain(part: nn.Module) -> dict[str, Any]:
    """The attributes of a module that torch does not manage."""
    return {key: value for key, value in vars(part).items() if key not in _MANAGED}


def _tensors(value: Any) -> list[Tensor]:
    """A tensor, or the tensors in a container, if it is one."""
    if isinstance(value, dict):
        value = list(value.values())
    parts = value if isinstance(value, list | tuple) else [value]
    return [part for part in parts if isinstance(part, Tensor)]


def graph_nodes(end: Tensor, border: Collection[Node] = ()) -> Iterator[Node]:
    """The nodes of a graph from its end, none behind those of a border."""
    waiting = [end.grad_fn]
    seen = set(waiting)
    while waiting:
        node = waiting.pop()
        if node is None:
            continue
        yield node
        for before, _ in () if node in border else node.next_functions:
            if before not in seen:
                seen.add(before)
                waiting.append(before)


_MANAGED = frozenset(vars(nn.Module()))

_NORMS = (nn.BatchNorm2d, nn.BatchNorm1d, nn.LayerNorm, nn.GroupNorm)
LAYERS = (nn.Conv2d, nn.Linear, *_NORMS, nn.PReLU, nn.MultiheadAttention)
"""The layers with parameters that both have rules for."""
