"""A network's weights from a file on this machine."""

from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor, nn

PREFIXES = ("networks.0.", "model.", "module.")
"""What stands before a network's own names in files of single runs and of other trainers."""


def load_network(network: nn.Module, file: Path) -> None:
    """Read a ``Network``'s weights from a safetensors file, in place.

    The names in the file are those of ``network.state_dict()``, those of its library (torchvision,
    timm), or those of a single network that deepens trained. The network keeps its own head where
    the file has none or one of another number of classes.

    Raises:
        ValueError: The file is missing or damaged, or lacks a weight, or has one of another shape;
            the first is named. The network is then unchanged.
    """
    if not file.is_file():
        raise ValueError(
            f"base: {file.absolute()} does not exist; put it back, or name another file"
        )
    try:
        found = load(file.read_bytes())
    except (SafetensorError, KeyError) as error:  # a type that torch does not have is a KeyError
        raise ValueError(f"base: {file} is no safetensors file ({error})") from None
    wanted = network.state_dict()
    found = _renamed(found, wanted)
    wrong = [
        name for name in wanted if name not in found or found[name].shape != wanted[name].shape
    ]
    own = ("head.", "body.0.scale", "body.0.shift")  # a head and a preprocessing may be missing
    body = [name for name in wrong if not name.startswith(own)]
    if body:
        there = list(found[body[0]].shape) if body[0] in found else "nothing"
        raise ValueError(
            f"base: {file} does not hold this backbone's weights: {len(body)} of {len(wanted)} "
            f"differ, such as {body[0]} ({there} in the file, {list(wanted[body[0]].shape)} wanted)"
        )
    fitting = {name: found[name] for name in wanted if name not in wrong}
    network.load_state_dict(wanted | fitting)


def _renamed(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The file's tensors under the network's names, by whichever prefix fits most of them."""
    candidates = [
        {add + name.removeprefix(cut): value for name, value in found.items()}
        for cut in ("", *PREFIXES)
        for add in ("", "body.", "body.1.")
    ]
    return max(candidates, key=lambda named: len(named.keys() & wanted.keys()))
