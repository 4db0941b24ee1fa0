"""Low-rank adapters of all members, and how they are added to a frozen network's projections."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from ..backbones.attention import PROJECTIONS, AttentionPlace
from ..options import LoRA


class Adapter(nn.Module):
    r"""Every member's low-rank update :math:`B_m A_m` of one projection.

    ========  ======================  ============================================
    tensor    shape                   meaning
    ========  ======================  ============================================
    ``down``  ``[M, r, inputs]``      A: Xavier-uniform with a gain
    ``up``    ``[M, outputs, r]``     B: zero, so that members start at the base
    ========  ======================  ============================================

    Args:
        num_members: M.
        rank: r.
        inputs: Features that the projection reads.
        outputs: Features that it makes.
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
    for name in PROJECTIONS:
        if name not in options.projections:
            continue
        projection = place.projections.get(name)
        if projection is None:
            raise ValueError(
                f"lora.projections must be among {', '.join(place.projections)} of {place.path}, "
                f"got {name!r}: leave it out"
            )
        if options.rank > (bound := min(projection.inputs, projection.outputs)):
            raise ValueError(
                f"lora.rank must be <= {bound}, the size of the {name} projection of "
                f"{place.path}, got {options.rank}"
            )
        adapters[name] = Adapter(
            num_members, options.rank, inputs=projection.inputs, outputs=projection.outputs
        )
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

    :math:`h_m = W_0 x_m + s B_m A_m x_m`, in two batched products over the m chosen members; the
    product with :math:`W_0` came before, one for all of them.

    ==========  ===============================  ==========================================
    tensor      shape                            meaning
    ==========  ===============================  ==========================================
    frozen      ``[m B, ..., outputs]``          W0 x and its bias; ``[B, ..., outputs]``
                                                 where the members share x
    tokens      ``[m B, ..., inputs]``           x; ``[B, ..., inputs]`` where they share it
    result      ``[m B, ..., outputs]``          h, member after member
    ==========  ===============================  ==========================================

    Args:
        frozen: As in the table.
        tokens: As in the table.
        updates: One for the whole projection, or one for some of the three parts of a joint
            projection of queries, keys and values; none leaves ``frozen`` as it is.
        num_members: m.
        scaling: s.
        shared: Whether the members share x.
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

    The body itself stays as it is: what is added hangs on hooks, which go at the end. With
    ``shared``, the input of the block that runs inside is the same for all members, member after
    member: until the first projection has its updates everything still is, so that the norms
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
    handles: list[Any] = []
    uncalled: set[str] = set()
    common = shared and len(members) > 1
    pristine = [common]  # whether no update has been added yet

    def cut(module: nn.Module, arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        tokens = arguments[0]
        return (tokens[: len(tokens) // len(members)], *arguments[1:])

    def cut_norm(module: nn.Module, arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return cut(module, arguments) if pristine[0] else arguments

    def repeat_norm(module: nn.Module, arguments: tuple[Tensor, ...], result: Tensor) -> Tensor:
        if not pristine[0]:
            return result
        return result.expand(len(members), *result.shape).flatten(0, 1)

    def hook(path: str, updates: list[Update], first: bool) -> Any:
        def add(module: nn.Module, arguments: tuple[Tensor, ...], result: Tensor) -> Tensor:
            uncalled.discard(path)
            pristine[0] = False
            return add_updates(
                result,
                arguments[0],
                updates,
                num_members=len(members),
                scaling=scaling,
                shared=first,
            )

        return add

    for fitting in fittings:
        for path, names in _modules(fitting.place).items():
            updates = [
                _update(fitting, name, members) for name in names if name in fitting.adapters
            ]
            first = common and names[0] != "output"
            if not updates and not first:
                continue
            linear = body.get_submodule(path)
            if first:
                handles.append(linear.register_forward_pre_hook(cut))
            handles.append(linear.register_forward_hook(hook(path, updates, first)))
            uncalled.add(path)
    if common:
        for norm in norms:
            handles.append(norm.register_forward_pre_hook(cut_norm))
            handles.append(norm.register_forward_hook(repeat_norm))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
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
