"""The methods of a comparison, by name."""

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Literal

from ...datasets.image_format import ImageFormat
from ..config import CompareConfig
from ..cost.measurement import COST_TOLERANCE
from .ensemble_methods import by_objective, on_a_base, packed, training_config, wide_as
from .method_names import Method, read_name
from .scaled_methods import Changes, deeper, finer, longer, next_step, wider

__all__ = [
    "COST_TOLERANCE",
    "METHODS",
    "Changes",
    "Method",
    "find_method",
    "numbered",
    "training_config",
]


def find_method(name: str) -> Method:
    """Read the name of a method.

    ====================================  =====================================================
    name                                  method
    ====================================  =====================================================
    ``deep``, ``deep-4``, ``packed-2``    an ensemble, of so many members
    ``single``                            one network
    ``wide-K``, ``deeper-K``, ``finer-K``  it, scaled in width, depth or resolution to K times its
                                          MACs
    ``next-K``                            the network of its family nearest to K times its MACs
    ``long-K``                            it, trained for K times as many epochs
    ``wide-packed-4``                     it, widened to the MACs of packed-4
    ``multi-exit-3``                      one network with three exits
    ``cascade-deep-4``                    early exits from deep-4, by windows
    ``threshold-deep-4``                  likewise, by a single threshold
    ====================================  =====================================================

    Without a number, members and K are the comparison's number of members.

    Args:
        name: The name.

    Returns:
        The method.

    Raises:
        ValueError: An unknown name, or a number that is out of bounds or not written as shortly as
            it can be: two names of one method would be trained twice.

    Example:
        >>> from deepens.experiments.comparison.methods import find_method
        >>> method = find_method("packed-4")
        >>> method.count, method.family, method.matched
        (4, 'packed ensemble', 'wide-packed-4')
        >>> find_method("cascade-deep-2").over
        'deep-2'
    """
    return read_name(name, METHODS)


def numbered(name: str, members: int) -> str:
    """Write the number of members into a name that has none and depends on it.

    Args:
        name: A method's name.
        members: The comparison's number of members.

    Returns:
        The name under which the method is the same in a comparison of any number of members.

    Raises:
        ValueError: An unknown name.

    Example:
        >>> from deepens.experiments.comparison.methods import numbered
        >>> [numbered(name, 2) for name in ("deep", "wide", "cascade-deep", "single", "wide-1.2")]
        ['deep-2', 'wide-2', 'cascade-deep-2', 'single', 'wide-1.2']
    """
    method = find_method(name)
    last = find_method(method.over) if method.over else method
    return f"{name}-{members}" if last.takes and last.count is None else name


def _single_of(
    how: Callable[[str, int | float, CompareConfig, ImageFormat], Changes],
) -> Callable[[Method, CompareConfig, ImageFormat], Changes]:
    return lambda method, config, form: how(method.name, method.factor(config), config, form)


def _made(
    how: Callable[[str, CompareConfig, ImageFormat], Changes],
) -> Callable[[Method, CompareConfig, ImageFormat], Changes]:
    return lambda method, config, form: how(method.name, config, form)


def _by_objective(
    name: str,
    description: str,
    objective: str,
    *,
    family: str,
    groups: Mapping[str, Mapping[str, Any]] = MappingProxyType({}),
    takes: Literal["", "members"] = "members",
) -> Method:
    """A deep ensemble by another objective, with some options of its groups set."""

    def make(method: Method, config: CompareConfig, form: ImageFormat) -> Changes:
        return by_objective(objective, groups, config)

    what = f"{{members}} {{backbone}}, {description}"
    return Method(name, what, make, family, ensemble=True, matched="wide", takes=takes)


RATIOS = (0.5, 1.0, 2.0)
"""Pseudo-data of MixupMP in proportion to the data, for which there are methods."""

METHODS: dict[str, Method] = {
    method.name: method
    for method in [
        Method("single", "one {backbone}", lambda method, config, form: ({"members": 1}, "")),
        *(
            Method(
                name,
                f"one {{backbone}}, {description}",
                _single_of(how),
                scales=scales,
                takes="factor",
            )
            for name, how, scales, description in [
                ("wide", wider, "width", "widened to {members} times its inference MACs"),
                ("deeper", deeper, "depth", "deepened to {members} times its inference MACs"),
                (
                    "finer",
                    finer,
                    "resolution",
                    "on images at which it takes {members} times its inference MACs",
                ),
                (
                    "next",
                    next_step,
                    "family",
                    "of its family's networks the nearest to {members} times the inference MACs",
                ),
                ("long", longer, "epochs", "trained {members} times as long"),
            ]
        ),
        Method(
            "deep",
            "deep ensemble of {members} {backbone}",
            lambda method, config, form: ({"members": config.members}, ""),
            "deep ensemble",
            ensemble=True,
            matched="wide",
            takes="members",
        ),
        *(
            Method(
                name,
                f"{description}",
                make,
                family,
                ensemble=True,
                matched=f"wide-{name}",
                takes="members",
            )
            for name, make, family, description in [
                (
                    "packed",
                    _made(packed),
                    "packed ensemble",
                    "packed ensemble of {members} slim {backbone}",
                ),
                (
                    "lora",
                    _made(on_a_base("lora")),
                    "LoRA-ensemble",
                    "LoRA-ensemble of {members} on one {backbone}",
                ),
                (
                    "explicit",
                    _made(on_a_base("explicit")),
                    "explicit ensemble",
                    "{members} {backbone}, all fine-tuned from one base",
                ),
            ]
        ),
        *(
            Method(
                f"wide-{name}",
                f"one {{backbone}}, widened to the {family}'s inference MACs",
                _made(wide_as(make, f"the {family}'s")),
                scales="width",
                takes="members",
            )
            for name, make, family in [
                ("packed", packed, "packed ensemble"),
                ("lora", on_a_base("lora"), "LoRA-ensemble"),
                ("explicit", on_a_base("explicit"), "explicit ensemble"),
            ]
        ),
        Method(
            "multi-exit",
            "one {backbone} with {members} exits, whose answers are pooled",
            lambda method, config, form: (
                {"ensemble": "multi-exit", "members": config.members, "batches": "shared"},
                "",
            ),
            "multi-exit network",
            ensemble=True,
            takes="members",
        ),
        *(
            _by_objective(
                name,
                f"repelled by input gradients (FoRDE, {lengthscale})",
                "forde",
                family="repulsive ensemble",
                groups={"repulsion": {"lengthscale": lengthscale, "update": "kde-wgd"}},
            )
            for name, lengthscale in [
                ("forde", "identity"),
                ("forde-pca", "pca"),
                ("forde-tuned", "tuned"),
            ]
        ),
        *(
            _by_objective(
                name,
                f"repelled in {space} space ({flow})",
                f"{space}-repulsion",
                family="repulsive ensemble",
                groups={"repulsion": {"update": update}},
            )
            for name, space, flow, update in [
                ("weight-repulsion", "weight", "kde-WGD", "kde-wgd"),
                ("function-repulsion", "function", "kde-WGD", "kde-wgd"),
                ("weight-svgd", "weight", "SVGD", "svgd"),
                ("function-svgd", "function", "SVGD", "svgd"),
            ]
        ),
        _by_objective(
            "mixupmp",
            "each on pseudo-data of its own (MixupMP)",
            "mixupmp",
            family="MixupMP ensemble",
            takes="",
        ),
        *(
            _by_objective(
                f"mixupmp-{ratio:g}",
                f"each on pseudo-data of its own (MixupMP, r = {ratio:g})",
                "mixupmp",
                family="MixupMP ensemble",
                groups={"mixup": {"ratio": ratio}},
                takes="",
            )
            for ratio in RATIOS
        ),
        _by_objective(
            "mixup",
            "each trained with mixup alone",
            "mixupmp",
            family="mixup ensemble",
            groups={"mixup": {"ratio": math.inf, "weights": "ones"}},
        ),
        _by_objective(
            "greedy",
            "each trained to differ from those before it, on noise",
            "greedy",
            family="greedy ensemble",
        ),
    ]
}
