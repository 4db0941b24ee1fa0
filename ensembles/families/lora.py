"""LoRA-ensembles: one frozen vision transformer, a low-rank update and a head for each member."""

import hashlib
from collections.abc import Sequence
from functools import partial
from itertools import repeat
from typing import Any, cast

import torch
from jaxtyping import Float, Shaped, UInt8
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..backbones.attention import open_attention, restore_attention
from ..backbones.network import Network
from ..backbones.transformers import (
    anatomy,
    as_network,
    choose_attention,
    embed,
    finish,
    require_attention,
    run_block,
)
from ..ensemble import Ensemble, Features, Images, Logits
from ..options import LoRA
from .adapters import Adapter, Fitting, adapted, adapters_for
from .member_heads import MemberHeads
from .surgery import copied

FROZEN = (
    "base must stay frozen, but gradients are asked of its weights: train adapters and heads "
    "(member_parameters), or whole networks with a DeepEnsemble"
)


class LoRAEnsemble(Ensemble):
    r"""M members that share one frozen vision transformer and differ by low-rank updates.

    In the attention projections of the adapted blocks, member m computes

    :math:`h_m = W_0 x_m + s\, B_m A_m x_m,`

    and its features go into its own linear head (:class:`~.member_heads.MemberHeads`). All else is
    the base's, stored once and frozen; the base stays in evaluation mode, without dropout, in
    training too. A (``adapters.*.down``, ``[M, r, inputs]``) is drawn from a Xavier-uniform
    distribution, B (``adapters.*.up``, ``[M, outputs, r]``) is zero, so that members begin as the
    base and move apart by their A's and heads.

    Run together, members are folded into the batch. The embedding, the blocks before the first
    adapted one, and that block's norm and frozen products of queries, keys and values are
    computed once for all members. Of a transformer of unknown structure only the attention is
    known: it runs whole, each member's images in the batch.

    Args:
        base: ``Network(body, head)`` whose body is a vision transformer, alone or behind a
            preprocessing; or one that :func:`~..backbones.transformers.as_network` takes apart.
            It is copied.
        seeds: One seed per member.
        options: Rank, places and the rest.

    Raises:
        ValueError: Bad seeds; a base without attention or without a linear head; a rank above a
            projection's size; more blocks than there are; a projection that is not there.

    Example:
        >>> import torch
        >>> from deepens.ensembles import LoRA, LoRAEnsemble
        >>> from deepens.ensembles.backbones import build
        >>> base = build("vit-micro/4", num_classes=10, channels=1, image_size=8)
        >>> ensemble = LoRAEnsemble(base, seeds=[1, 2, 3], options=LoRA(rank=2, blocks=1))
        >>> ensemble(torch.zeros(5, 1, 8, 8)).shape
        torch.Size([3, 5, 10])
        >>> sum(p.numel() for p in ensemble.parameters() if p.requires_grad)
        7518

    Reference:
        Mühlematter et al. (2024), arXiv:2405.14438. The defaults are theirs for a ViT: rank 8,
        all four projections of every block, no scaling by alpha / r, gain 10. Deviations: their
        base drops out in training if it was made to, ours does not; they average logits for
        accuracy and calibration, we average probabilities everywhere.
    """

    def __init__(
        self, base: nn.Module, *, seeds: Sequence[int], options: LoRA | None = None
    ) -> None:
        super().__init__(seeds)
        self.options = options or LoRA()
        require_attention(base)
        network = copied(as_network(base))
        if not isinstance(network.head, nn.Linear):
            raise ValueError(
                "base must end in a linear head, whose shape the members' heads take, got "
                f"{type(network.head).__name__}"
            )
        # A buffer of the base, so that a file with the base holds what it was made from.
        network.register_buffer("fingerprint", _fingerprint(network.body))
        open_attention(network.body)
        self._anatomy = anatomy(network.body)
        chosen = choose_attention(network.body, self._anatomy, self.options.blocks)
        self._first, self._places = chosen
        self.adapters = nn.ModuleDict(
            {str(n): adapters_for(place, len(seeds), self.options) for n, place in self._places}
        )
        features, classes = network.head.in_features, network.head.out_features
        self.heads = MemberHeads(len(seeds), features, classes, norm=self.options.head_norm)
        for index, seed in enumerate(self.seeds):
            generator = torch.Generator().manual_seed(seed)
            for fitting in self.fittings:
                for adapter in fitting.adapters.values():
                    cast(Adapter, adapter).draw(index, generator, self.options.gain)
            if self.options.head == "base":
                self.heads.copy(index, network.head)
            else:
                self.heads.draw(index, generator)
        network.requires_grad_(False)
        if self.options.base_precision == "bf16":
            network.body.get_submodule(self._anatomy.core).to(torch.bfloat16)
        self._modules["base"] = network.eval()
        self.register_load_state_dict_pre_hook(_refuse_another_base)

    def base_hash(self) -> str:
        """SHA-256 of the base's body as it was given: names, types, shapes and values.

        It is computed once, and does not see weights that are changed in place afterwards. A state
        that is loaded brings its own hash along with the weights.

        Raises:
            ValueError: The base had no values, on the meta device.
        """
        fingerprint = cast(Tensor, self._network.fingerprint)
        if fingerprint.is_meta:
            raise ValueError("base must have weights to be hashed, got one on the meta device")
        return bytes(fingerprint.tolist()).hex()

    def train(self, mode: bool = True) -> "LoRAEnsemble":
        """Set the mode of adapters and heads; the base stays in evaluation mode."""
        super().train(mode)
        self._network.eval()
        return self

    def not_twice_differentiable(self) -> str | None:
        """Checkpoints compute blocks again in a backward pass that keeps no graph."""
        reason = (
            "its blocks are checkpointed; set --lora.checkpointing false (--members-at-once 1 "
            "saves memory too)"
        )
        return reason if self.options.checkpointing else None

    def requires_grad_(self, requires_grad: bool = True) -> "LoRAEnsemble":
        """Freeze all; ask no gradients of all, since the base is frozen.

        Raises:
            ValueError: ``requires_grad`` is True.
        """
        if requires_grad:
            raise ValueError(FROZEN)
        super().requires_grad_(False)
        return self

    def prefix(self, images: Images) -> Shaped[Tensor, "..."]:
        """Tokens ``[B, L, D]`` or ``[m, B, L, D]`` before the first adapted block, once for all.

        Of a transformer of unknown structure the images as it expects them.

        Raises:
            ValueError: In training mode or with gradients enabled, when a weight of the base asks
                for gradients.
        """
        learning = self.training or torch.is_grad_enabled()
        if learning and any(p.requires_grad for p in self._network.parameters()):
            raise ValueError(FROZEN)
        body, parts = self._network.body, self._anatomy
        tokens = images.flatten(0, 1) if images.ndim == 5 else images
        if parts.front is not None:
            tokens = body.get_submodule(parts.front)(tokens)
        core = body.get_submodule(parts.core)
        if self.options.base_precision == "bf16":
            tokens = tokens.to(next(core.parameters()).dtype)
        tokens = embed(parts.kind, core, tokens)
        for name in parts.blocks[: self._first]:
            tokens = run_block(body.get_submodule(name), tokens)
        return tokens.unflatten(0, images.shape[:2]) if images.ndim == 5 else tokens

    def features(self, images: Shaped[Tensor, "..."], members: Sequence[int]) -> Features:
        """Each chosen member's features of what :meth:`prefix` returns, as precise as the heads."""
        own = images.ndim == (5 if self._anatomy.kind == "other" else 4)
        if self.options.execution == "loop":
            pairs = zip(images if own else repeat(images), members, strict=False)
            return [self._features(each, [index], shared=True)[0] for each, index in pairs]
        folded = images.flatten(0, 1) if own else images
        return list(self._features(folded, list(members), shared=not own))

    def head(self, features: Features, members: Sequence[int]) -> Logits:
        """Logits of the chosen members, in one batched product."""
        return self.heads(torch.stack(features), list(members))

    def member(self, index: int) -> nn.Module:
        """A standalone plain network with W0 + s B A in the places of W0, and the member's head.

        It is in the precision of the heads, whatever the base's; all of it can be trained.
        """
        index = self.chosen([index])[0]
        network = copied(self._network).to(self.heads.weight.dtype)
        with torch.no_grad():
            for place, adapters in self.fittings:
                for name, adapter in adapters.items():
                    projection = place.projections[name]
                    linear = cast(nn.Linear, network.body.get_submodule(projection.path))
                    update = cast(Adapter, adapter).product(index)
                    linear.weight[projection.rows()] += self.options.scaling * update
        restore_attention(network.body)
        plain = Network(network.body, self.heads.plain(index))
        return plain.requires_grad_(True).train(self.training)

    def member_parameters(self, index: int) -> list[tuple[nn.Parameter, int | None]]:
        """The member's adapters and head, each a place on a stacked parameter's leading axis."""
        index = self.chosen([index])[0]
        return [(parameter, index) for _, parameter in self._own_parameters()]

    def member_state(self, index: int) -> dict[str, Tensor]:
        """The member's adapters and head, by their names in this ensemble; the base is shared."""
        index = self.chosen([index])[0]
        return {name: parameter.detach()[index] for name, parameter in self._own_parameters()}

    @property
    def fittings(self) -> list[Fitting]:
        """Every adapted attention and its adapters, in order; names are relative to the body."""
        return [
            Fitting(place, cast(nn.ModuleDict, self.adapters[str(number)]))
            for number, place in self._places
        ]

    @property
    def core_name(self) -> str:
        """How names in the body begin before those in the transformer itself."""
        core, inner = self._anatomy.core, "model." if self._anatomy.kind == "huggingface" else ""
        return f"{core}.{inner}" if core else inner

    @property
    def _network(self) -> Network:
        return cast(Network, self._modules["base"])

    def _own_parameters(self) -> list[tuple[str, nn.Parameter]]:
        return [pair for pair in self.named_parameters() if not pair[0].startswith("base.")]

    def _features(
        self, tokens: Shaped[Tensor, "..."], members: list[int], *, shared: bool
    ) -> Float[Tensor, "members batch _"]:
        """Run the adapted blocks once, members in the batch; ``shared``: tokens of one batch."""
        if shared:
            tokens = tokens.expand(len(members), *tokens.shape).flatten(0, 1)
        for position, name in enumerate(self._anatomy.blocks[self._first :]):
            step = partial(self._block, name, members=members, shared=shared and position == 0)
            if self.options.checkpointing and torch.is_grad_enabled():
                # Nothing random is inside: the base is in evaluation mode.
                tokens = checkpoint(step, tokens, use_reentrant=False, preserve_rng_state=False)
            else:
                tokens = step(tokens)
        core = self._network.body.get_submodule(self._anatomy.core)
        features = finish(self._anatomy.kind, core, tokens)
        dtype = torch.promote_types(features.dtype, self.heads.weight.dtype)
        return features.unflatten(0, (len(members), -1)).to(dtype)

    def _block(
        self, name: str, tokens: Shaped[Tensor, "..."], *, members: list[int], shared: bool
    ) -> Shaped[Tensor, "..."]:
        body = self._network.body
        block = body.get_submodule(name)
        fittings = [fitting for fitting in self.fittings if fitting.place.within(name)]
        # Two attentions may follow one another, and of unknown structures anything may be true.
        shared = shared and len(fittings) == 1 and self._anatomy.kind != "other"
        norms = [part for part in block.children() if isinstance(part, nn.LayerNorm)]
        scaling = self.options.scaling
        with adapted(body, fittings, norms, members=members, scaling=scaling, shared=shared):
            return run_block(block, tokens)


def _refuse_another_base(ensemble: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Before a state is loaded: refuse members of another base, unless it comes with them."""
    names = [prefix + name for name in ensemble.state_dict() if name.startswith("base.")]
    given: Tensor | None = state.get(f"{prefix}base.fingerprint")
    own = ensemble.get_buffer("base.fingerprint")
    if given is None or given.is_meta or own.is_meta or all(name in state for name in names):
        return
    expected, found = (bytes(each.tolist()).hex() for each in (own, given))
    if found != expected:
        raise ValueError(
            f"state_dict must be of members on this base, whose hash is {expected}, got {found} "
            "without all of that base's weights: build the ensemble on that base, or load a state "
            "that holds it whole"
        )


def _fingerprint(body: nn.Module) -> UInt8[Tensor, "32"]:
    """SHA-256 over the sorted state dict; on the meta device where the tensors have no values."""
    digest = hashlib.sha256()
    for name, tensor in sorted(body.state_dict().items()):
        if tensor.is_meta:
            return torch.empty(32, dtype=torch.uint8, device="meta")
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        flat: Any = tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
        digest.update(flat)
    return torch.tensor(list(digest.digest()), dtype=torch.uint8)
