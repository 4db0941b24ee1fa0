"""Start a LoRA-ensemble from plain LoRA weights, in the format of the package peft."""

import json
import math
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from ..backbones.attention import Projection
from .adapters import Adapter
from .lora import LoRAEnsemble

_ROOT = "base_model.model."
_REFUSED = {
    "use_dora": "DoRA's magnitudes",
    "rank_pattern": "ranks of their own for some modules (rank_pattern)",
    "alpha_pattern": "scalings of their own for some modules (alpha_pattern)",
    "lora_bias": "biases on the adapters (lora_bias)",
    "fan_in_fan_out": "transposed weights (fan_in_fan_out)",
}

# How B A may have begun, with the base left as it was: tried with peft 0.21. PiSSA, OLoRA, CorDA,
# LoftQ and LoRA-GA change the base's weights, and the adapter fits the changed ones alone.
_BEGINNINGS = ("gaussian", "orthogonal", "eva")


@torch.no_grad()
def load_peft(ensemble: LoRAEnsemble, folder: Path | str) -> None:
    r"""Load one LoRA adapter into every member, in place.

    The file's :math:`\frac{\alpha}{r} B A` (:math:`\alpha / \sqrt r` with rank-stabilised LoRA)
    becomes each member's :math:`s B_m A_m`, with the scaling folded into B. A joint projection's A
    is copied to its queries, keys and values, and its B cut in three. What the file has no adapter
    for stays as it was. A linear head saved beside (``modules_to_save``) is loaded into every
    member's if its sizes are theirs; otherwise members keep their own heads.

    Args:
        ensemble: On the model that the adapter was trained on, with its rank.
        folder: With ``adapter_config.json`` and ``adapter_model.safetensors``, as written by
            peft's ``save_pretrained``. Tensors only: a pickle is never read.

    Raises:
        ValueError: A missing or unreadable file, another rank, a module that the ensemble has no
            adapter on, something other than plain LoRA, or an initialisation that changed the base
            (``init_lora_weights`` of PiSSA, OLoRA, CorDA, LoftQ, ...).

    Example:
        After ``peft_model.save_pretrained("my-lora")``: ``load_peft(ensemble, "my-lora")``.

    Reference:
        Hu et al. (2022), arXiv:2106.09685; Kalajdzievski (2023), arXiv:2312.03732, for the
        rank-stabilised scaling.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"adapters: the folder {folder.absolute()} does not exist")
    scaling = _scaling(ensemble, folder) / ensemble.options.scaling
    downs, ups, heads = _sorted(folder, _tensors(folder))
    adapters = _adapters(ensemble)
    loads: list[tuple[Tensor, Tensor]] = []
    for path, down in downs.items():
        matched = _match(path, adapters, folder)
        joint = {projection.part for projection, _ in matched} != {None}
        if joint and len(matched) < 3:
            raise ValueError(
                f"{folder} has an adapter on all of {path}, but the ensemble has one on "
                f"{len(matched)} of its three projections: lora.projections must name query, key "
                "and value"
            )
        for projection, adapter in matched:
            up = ups[path][projection.rows()] if joint else ups[path]
            for found, own in ((down, adapter.down), (up, adapter.up)):
                if found.shape != own.shape[1:]:
                    raise ValueError(
                        f"the adapter of {folder} on {path} must have shape {list(own.shape[1:])}, "
                        f"got {list(found.shape)}: rank or model are not the ensemble's"
                    )
            loads += [(adapter.down, down), (adapter.up, up * scaling)]
    loads += [
        (getattr(ensemble.heads, name), value)
        for name, value in _head(ensemble, heads, folder).items()
    ]
    for stacked, value in loads:
        stacked.copy_(value.expand_as(stacked))


def _scaling(ensemble: LoRAEnsemble, folder: Path) -> float:
    """What the file's B A is multiplied with, from its configuration."""
    path = folder / "adapter_config.json"
    try:
        if not path.is_file():
            raise FileNotFoundError("no such regular file")
        options: Any = json.loads(path.read_text(encoding="utf-8"))
        kind, rank, alpha = (options[key] for key in ("peft_type", "r", "lora_alpha"))
        rank, alpha = int(rank), float(alpha)
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(
            f"{path} must be peft's description of a LoRA adapter, but cannot be read as one "
            f"({type(error).__name__}: {error}); write it with save_pretrained"
        ) from None
    if kind != "LORA":
        raise ValueError(f"{path} must describe plain LoRA (peft_type LORA), got {kind!r}")
    for key, meaning in _REFUSED.items():
        if options.get(key):
            raise ValueError(f"{path} must describe plain LoRA, got one with {meaning}")
    if options.get("bias", "none") != "none":
        raise ValueError(
            f"{path} must leave the base's biases alone (bias 'none'), got {options['bias']!r}"
        )
    began = options.get("init_lora_weights", True)
    if not (began is None or isinstance(began, bool) or str(began).lower() in _BEGINNINGS):
        raise ValueError(
            f"{path} must leave the base as it is (init_lora_weights true, false, "
            f"{', '.join(_BEGINNINGS)}), got {began!r}, which may change the base's weights: "
            "convert it with save_pretrained's path_initial_model_for_weight_conversion, or train "
            "one that began otherwise"
        )
    if rank != ensemble.options.rank:
        raise ValueError(
            f"lora.rank must be that of {path}, {rank}, got {ensemble.options.rank}: build the "
            f"ensemble with rank {rank}"
        )
    return alpha / (math.sqrt(rank) if options.get("use_rslora") else rank)


def _tensors(folder: Path) -> dict[str, Tensor]:
    path = folder / "adapter_model.safetensors"
    if not path.exists():
        raise ValueError(
            f"{path} does not exist: write the adapter with save_pretrained and "
            "safe_serialization=True (adapter_model.bin is a pickle, which is never read)"
        )
    try:
        return load(path.read_bytes())
    except (SafetensorError, KeyError) as error:  # a type that torch does not have is a KeyError
        raise ValueError(f"{path} cannot be read as safetensors: {error}") from None


def _adapters(ensemble: LoRAEnsemble) -> dict[str, list[tuple[Projection, Adapter]]]:
    """The adapters on every linear module, by its name in the transformer itself."""
    start = ensemble.core_name
    modules: dict[str, list[tuple[Projection, Adapter]]] = {}
    for fitting in ensemble.fittings:
        for name, adapter in fitting.adapters.items():
            projection = fitting.place.projections[name]
            pair = (projection, cast(Adapter, adapter))
            modules.setdefault(projection.path.removeprefix(start), []).append(pair)
    return modules


def _sorted(
    folder: Path, tensors: dict[str, Tensor]
) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
    """A's and B's by their module's name, and what else is in the file."""
    others = {key.removeprefix(_ROOT): tensor for key, tensor in tensors.items()}
    downs, ups = (
        {name.removesuffix(end): others.pop(name) for name in list(others) if name.endswith(end)}
        for end in (".lora_A.weight", ".lora_B.weight")
    )
    if downs.keys() != ups.keys() or not downs:
        odd = sorted(downs.keys() ^ ups.keys())
        raise ValueError(
            f"{folder} must hold lora_A and lora_B of every module, got "
            f"{f'only one of them for {odd[0]}' if odd else 'none'}"
        )
    return downs, ups, others


def _match(
    path: str, adapters: dict[str, list[tuple[Projection, Adapter]]], folder: Path
) -> list[tuple[Projection, Adapter]]:
    """The adapters on the file's module: its name ends with that in the transformer itself."""
    # peft keeps a MultiheadAttention's joint projection under the module's own name.
    output = path.removesuffix(".base_layer.out_proj")
    candidates = [f"{output}.proj"] if output != path else [path, f"{path}.qkv"]
    for candidate in candidates:
        for name, found in adapters.items():
            if candidate == name or candidate.endswith(f".{name}"):
                return found
    raise ValueError(
        f"{folder} has an adapter on {path}, where the ensemble has none: choose lora.projections "
        f"and lora.blocks as it was trained, on the same model (adapters here: "
        f"{', '.join(list(adapters)[:3])}, ...)"
    )


def _head(ensemble: LoRAEnsemble, tensors: dict[str, Tensor], folder: Path) -> dict[str, Tensor]:
    """Weight and bias of a saved linear head, if it has the members' sizes."""
    found = {name.rpartition(".")[2]: value for name, value in tensors.items()}
    modules = {name.rpartition(".")[0] for name in tensors}
    if len(modules) > 1 or not found.keys() <= {"weight", "bias"}:
        raise ValueError(
            f"{folder} must hold nothing but LoRA weights and one linear head, got "
            f"{', '.join(sorted(tensors)[:3])}"
        )
    weight = found.get("weight")
    fits = weight is not None and weight.shape == ensemble.heads.weight.shape[1:]
    return found if fits else {}
