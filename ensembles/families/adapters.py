"""Low-rank adapters of all members, and how they are added to a frozen network's projections."""

import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from ..backbones.attention import PROJECTIONS, AttentionPlace
from ..options import LoRA


class Adapter(nn.Module):
    r"""Every member's low-rank update :math:`B_m A_m` of one projection.

    A is ``down`` ``[M, r, inputs]``, Xavier-uniform with a gain; B is ``up`` ``[M, outputs, r]``,
    zero, so that members start at the base.
    """

    def __init__(self, num_members: int, rank: int, *, inputs: int, outputs: int) -> None:
        super().__init__()
        self.down = nn.Parameter(torch.empty(num_members, rank, inputs))
        self.up = nn.Parameter(torch.zeros(num_members, outputs, rank))

    @torch.no_grad()
    def draw(self, index: int, generator: torch.Generator, gain: float) -> None:
        """Draw one member's A from U(-a, a), a = gain sqrt(6 / (r + inputs))."""
        _, rank, inputs = self.down.shape
        bound = gain * math.sqrt(6.0 / (rank + inputs))
        drawn = torch.empty(rank, inputs).uniform_(-bound, bound, generator=generator)
        self.down[index].copy_(drawn)

    @torch.no_grad()
    def product(self, index: int) -> Float[Tensor, "outputs inputs"]:
        """One member's B A."""
        return self.up[index] @ self.down[index]


def adapters_for(place: AttentionPlace, num_members: int, options: LoRA) -> nn.ModuleDict:
    """The adapters on one attention, by projection, A not drawn yet.

    Raises:
        ValueError: A projection that is not there, or a rank above its size; some of queries, keys
            and values where one module makes all in an order that is not known.
    """
    joint = [name for name in options.projections if name in PROJECTIONS[:3]]
    if not place.in_thirds and 0 < len(joint) < 3:
        raise ValueError(
            f"lora.projections must name all of query, key and value or none, since "
            f"{place.projections['query'].path} makes them together in an order that is not known, "
            f"got {', '.join(joint)}: choose all three"
        )
    adapters = nn.ModuleDict()
    for name in (each for each in PROJECTIONS if each in options.projections):
        projection = place.projections.get(name)
        if projection is None:
            raise ValueError(
                f"lora.projections must be among {', '.join(place.projections)} of {place.path}, "
                f"got {name!r}: leave it out"
            )
        inputs, outputs = projection.inputs, projection.outputs
        if options.rank > (bound := min(inputs, outputs)):
            raise ValueError(
                f"lora.rank must be <= {bound}, the size of the {name} projection of "
                f"{place.path}, got {options.rank}"
            )
        adapters[name] = Adapter(num_members, options.rank, inputs=inputs, outputs=outputs)
    return adapters


class Update(NamedTuple):
    """The chosen members' update of one projection, or of one third of a joint one."""

    part: int | None
    down: Float[Tensor, "members rank inputs"]
    up: Float[Tensor, "members outputs rank"]


def add_updates(
    frozen: Float[Tensor, "rows ..."],
    tokens: Float[Tensor, "rows ..."],
    updates: Sequence[Update],
    *,
    num_members: int,
    scaling: float,
    shared: bool,
) -> Float[Tensor, "member_rows ..."]:
    r"""A projection's outputs with every member's low-rank update.

    :math:`h_m = W_0 x_m + s B_m A_m x_m`, in two batched products over the m chosen members.

    Args:
        frozen: :math:`W_0 x` and its bias, ``[m B, ..., outputs]``, or ``[B, ..., outputs]`` where
            the members share x.
        tokens: x, ``[m B, ..., inputs]``, or ``[B, ..., inputs]`` where they share it.
        updates: One for the whole projection, or one for some of the three parts of a joint
            projection of queries, keys and values; none leaves ``frozen`` as it is.
        num_members: m.
        scaling: s.
        shared: Whether the members share x.

    Returns:
        h, ``[m B, ..., outputs]``, member after member.
    """
    flat = frozen.flatten(0, -2)
    base = flat[None] if shared else flat.unflatten(0, (num_members, -1))
    shape = (num_members * len(frozen) if shared else len(frozen), *frozen.shape[1:])
    if not updates:
        return base.expand(num_members, -1, -1).reshape(shape)
    down = torch.cat([update.down for update in updates], dim=1).to(tokens.dtype)
    rows = tokens.flatten(0, -2)
    if shared:  # all members' A are one matrix
        low = F.linear(rows, down.flatten(0, 1)).unflatten(-1, (num_members, -1)).transpose(0, 1)
    else:
        low = torch.bmm(rows.unflatten(0, (num_members, -1)), down.mT)
    if updates[0].part is None:
        up = updates[0].up.to(tokens.dtype)
        return torch.baddbmm(base, low, up.mT, alpha=scaling).reshape(shape)
    # The parts' B are batched like members: [m, parts] products of one size.
    up = torch.stack([update.up for update in updates], dim=1).flatten(0, 1).to(tokens.dtype)
    low = low.unflatten(-1, (len(updates), -1)).transpose(1, 2).flatten(0, 1)
    high = torch.bmm(low, up.mT).unflatten(0, (num_members, -1)).transpose(1, 2)
    thirds = base.unflatten(-1, (3, -1))
    chosen = [update.part for update in updates]
    if chosen == [0, 1, 2]:
        return torch.add(thirds, high, alpha=scaling).reshape(shape)
    parts = [part.expand(num_members, -1, -1) for part in thirds.unbind(2)]
    for part, update in zip(chosen, high.unbind(2), strict=True):
        if part is not None:
            parts[part] = torch.add(parts[part], update, alpha=scaling)
    return torch.cat(parts, dim=-1).reshape(shape)


class Fitting(NamedTuple):
    """One attention and the adapters on it, by projection."""

    place: AttentionPlace
    adapters: nn.ModuleDict


@contextmanager
def adapted(
    body: nn.Module,
    fittings: Sequence[Fitting],
    norms: Sequence[nn.Module],
    *,
    members: Sequence[int],
    scaling: float,
    shared: bool,
) -> Iterator[None]:
    """Add the chosen members' updates to a body's projections while inside.

    With ``shared``, the input of the block that runs inside is the same for all members, member
    after member: until the first projection has its updates everything still is, so that the norms
    before it and the frozen products of queries, keys and values take one member's rows.

    Args:
        body: The frozen network, of which a part is run inside.
        fittings: The attentions of that part, and the adapters on them.
        norms: The norms of that part, each of which treats every row by itself.
        members: The chosen members.
        scaling: s.
        shared: Whether the members share the input; only for a part with one attention.

    Raises:
        ValueError: On leaving, if a projection was not called: its adapters would do nothing.
    """
    uncalled: set[str] = set()
    count = len(members)
    common = shared and count > 1
    pristine = common  # whether no update has been added yet

    def cut(_: nn.Module, arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (arguments[0][: len(arguments[0]) // count], *arguments[1:])

    def cut_norm(norm: nn.Module, arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        return cut(norm, arguments) if pristine else None

    def repeat_norm(_: nn.Module, __: Any, result: Tensor) -> Tensor | None:
        return result.expand(count, *result.shape).flatten(0, 1) if pristine else None

    def add(
        path: str, updates: list[Update], first: bool, _: nn.Module, arguments: Any, result: Tensor
    ) -> Tensor:
        nonlocal pristine
        pristine = False
        uncalled.discard(path)
        return add_updates(
            result, arguments[0], updates, num_members=count, scaling=scaling, shared=first
        )

    with ExitStack() as stack:
        for fitting in fittings:
            for path, names in _modules(fitting.place).items():
                updates = [_update(fitting, n, members) for n in names if n in fitting.adapters]
                first = common and names[0] != "output"
                if updates or first:
                    linear = body.get_submodule(path)
                    if first:
                        stack.enter_context(linear.register_forward_pre_hook(cut))
                    hook = partial(add, path, updates, first)
                    stack.enter_context(linear.register_forward_hook(hook))
                    uncalled.add(path)
        for norm in norms if common else ():
            stack.enter_context(norm.register_forward_pre_hook(cut_norm))
            stack.enter_context(norm.register_forward_hook(repeat_norm))
        yield
    if uncalled:
        raise ValueError(
            f"base must call its projections, but {min(uncalled)} is used through its weight alone "
            "and cannot carry adapters: choose another vision transformer, or leave the "
            "projection out of lora.projections"
        )


def _modules(place: AttentionPlace) -> dict[str, list[str]]:
    """The linear modules of an attention, and the projections that each of them makes."""
    modules: dict[str, list[str]] = {}
    for name in PROJECTIONS:
        if name in place.projections:
            modules.setdefault(place.projections[name].path, []).append(name)
    return modules


def _update(fitting: Fitting, name: str, members: Sequence[int]) -> Update:
    adapter: Any = fitting.adapters[name]
    projection = fitting.place.projections[name]
    return Update(projection.part, _choose(adapter.down, members), _choose(adapter.up, members))


def _choose(stacked: Tensor, members: Sequence[int]) -> Tensor:
    """Rows of the leading axis; without a copy where they lie together."""
    first = members[0]
    if list(members) == list(range(first, first + len(members))):
        return stacked[first : first + len(members)]
    return stacked[list(members)]
