"""The methods of a comparison: one table, from which help, documentation and README are made."""

import dataclasses
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ..config import CompareConfig
from ..store.run import read_config
from ..training.registry import FAMILIES, OBJECTIVES, Family, when_called
from .method_names import ALIASES, CASCADES, Changes, Method, current_name, read_name

RATIOS = (0.5, 1.0, 2.0)
"""Ratios of pseudo-data to data for which MixupMP has a method."""

_MEMBERS = "{members} {backbone}, "


def _plain(method: Method, config: CompareConfig, image_format: Any) -> Changes:
    return {"members": 1}, ""


def _scaled(name: str, description: str) -> Method:
    """A single model that is scaled to a factor of its cost."""
    make = when_called("comparison.scaled_methods", f"scale_{name}")
    return Method(name, f"one {{backbone}}, {description}", make, takes="factor")


def _by_objective(
    name: str, description: str, objective: str, family: str, **groups: dict[str, Any]
) -> Method:
    """A deep ensemble that is trained by another objective, with some options of its groups set."""
    make = when_called("comparison.ensemble_methods", "by_objective", objective, groups)
    return Method(name, description, make, family, matched="wide", takes="members")


def _of_family(family: Family) -> Iterable[Method]:
    """An ensemble of a family, and a single model that is widened to its cost."""
    home, label, matched = "comparison.ensemble_methods", family.label, family.matched
    make = when_called(home, "of_family", family.name)
    yield Method(family.name, family.description, make, label, matched=matched, takes="members")
    if matched == f"wide-{family.name}":
        description = f"one {{backbone}}, widened to the MACs of the {label}"
        make = when_called(home, "wide_as", family.name)
        yield Method(matched, description, make, takes="members")


def _repulsive(name: str, how: str, objective: str, **repulsion: str) -> Method:
    description = f"{_MEMBERS}repelled {how}"
    return _by_objective(name, description, objective, "repulsive ensemble", repulsion=repulsion)


def _mixupmp(suffix: str, ratio: str, **groups: dict[str, Any]) -> Method:
    description = f"{_MEMBERS}each on its own mixup pseudo-data (MixupMP{ratio})"
    made = _by_objective(f"mixupmp{suffix}", description, "mixupmp", "MixupMP ensemble", **groups)
    return dataclasses.replace(made, takes="")  # a number would be its ratio


_LENGTHSCALES = {"forde": "identity", "forde-pca": "pca", "forde-tuned": "tuned"}
SINGLE_MODELS = [
    Method("single", "one {backbone}", _plain),
    _scaled("wide", "its width scaled to {members} times the MACs"),
    _scaled("deeper", "its depth scaled to {members} times the MACs"),
    _scaled("resolution", "on images of a resolution at which it takes {members} times the MACs"),
    _scaled("family", "the size of the same architecture nearest to {members} times the MACs"),
    _scaled("epochs", "trained for {members} times the epochs"),
]
OBJECTIVE_METHODS = [
    *(
        _repulsive(
            name,
            f"by input gradients (FoRDE, {lengthscale} lengthscale)",
            "forde",
            lengthscale=lengthscale,
            update="kde-wgd",
        )
        for name, lengthscale in _LENGTHSCALES.items()
    ),
    *(
        _repulsive(
            f"{space}-{suffix}", f"in {space} space ({flow})", f"{space}-repulsion", update=update
        )
        for suffix, flow, update in (("repulsion", "kde-WGD", "kde-wgd"), ("svgd", "SVGD", "svgd"))
        for space in ("weight", "function")
    ),
    _mixupmp("", ""),
    *(_mixupmp(f"-{ratio:g}", f", ratio {ratio:g}", mixup={"ratio": ratio}) for ratio in RATIOS),
    _by_objective(
        "mixup",
        f"{_MEMBERS}each trained with mixup alone",
        "mixupmp",
        "mixup ensemble",
        mixup={"ratio": math.inf, "weights": "ones"},
    ),
    _by_objective(
        "greedy",
        f"{_MEMBERS}each trained to differ from the previous ones on noise images",
        "greedy",
        "greedy ensemble",
    ),
]
_REGISTERED: list[Method] = []


def register_method(method: Method) -> None:
    """Add a method with a name without a number; a family or objective makes one by itself.

    Raises:
        ValueError: The name is taken.

    Example:
        >>> from deepens.experiments.comparison.methods import Method, register_method
        >>> register_method(Method("deep", "another", lambda *given: ({}, "")))
        Traceback (most recent call last):
        ValueError: the method 'deep' is registered already; choose another name
    """
    if method.name in {*methods(), *ALIASES, *CASCADES}:
        raise ValueError(f"the method {method.name!r} is registered already; choose another name")
    _REGISTERED.append(method)


def methods() -> dict[str, Method]:
    """All methods, by their names without numbers: the built-in ones and those of plugins."""
    families = (method for family in FAMILIES.values() for method in _of_family(family))
    objectives = (
        _by_objective(entry.name, entry.description, entry.name, entry.label)
        for entry in OBJECTIVES.values()
        if entry.label
    )
    table = (*SINGLE_MODELS, *families, *OBJECTIVE_METHODS, *objectives, *_REGISTERED)
    return {method.name: method for method in table}


def methods_table() -> list[tuple[str, str]]:
    """The methods as documented: how a name is written, and what the method is.

    Example:
        >>> from deepens.experiments.comparison.methods import methods_table
        >>> methods_table()[1]
        ('wide-K', 'one network, its width scaled to K times the MACs')
    """
    rows = []
    for name, method in methods().items():
        number = {"": "", "members": "M", "factor": "K"}[method.takes]
        words = method.description.replace("one {backbone}", "one network")
        words = words.format(members=number or "M", backbone="networks")
        rows.append((f"{name}-{number}" if number else name, words))
    for prefix, (_, _, how) in CASCADES.items():
        rows.append((f"{prefix}-ENSEMBLE", f"early exits from the members of ENSEMBLE, {how}"))
    return rows


def find_method(name: str, members: int | None = None, plugins: Iterable[str] = ()) -> Method:
    """Find a method by its name; an ensemble of one member is a single model.

    {table}

    Without a number, M and K are ``members``, the comparison's number of members. Its ``plugins``
    are named where the method is unknown.

    Raises:
        ValueError: An unknown name, or a number that is out of bounds or not in its shortest form:
            two names of one method would be trained twice.

    Example:
        >>> from deepens.experiments.comparison.methods import find_method
        >>> method = find_method("packed-4")
        >>> method.count, method.family, method.matched
        (4, 'packed ensemble', 'wide-packed-4')
        >>> find_method("cascade-deep-2").over, find_method("deep-1").family
        ('deep-2', 'single model')
    """
    return read_name(name, methods(), members, plugins)


find_method.__doc__ = (find_method.__doc__ or "").replace(
    "{table}", "\n    ".join(f"- ``{pattern}``: {words}" for pattern, words in methods_table())
)


def numbered(name: str, members: int) -> str:
    """Write the number of members into a name that depends on it and does not have it.

    So that it names the same method in a comparison with any number of members.

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


def settle_names(config: CompareConfig) -> CompareConfig:
    """Give methods their current names, and add those that the comparison has already.

    The name of a method is that of its run directories and part of its seeds, so that a comparison
    that was begun with ``finer-2`` continues with it. A comparison only grows: methods whose runs
    are finished stay, in their order, unless ``drop`` names them, and so do replicates. One that
    was begun without sharing members goes on so.

    Raises:
        ValueError: ``drop`` names a method that the comparison does not have.
    """
    path, begun, replicates = config.directory(), tuple[str, ...](), config.replicates
    sharing = config.share_members
    whole = (path / "comparison.json").exists()
    if (path / "config.yaml").exists():
        known = read_config(path, CompareConfig)
        begun = known.methods
        sharing = sharing and known.share_members
        replicates = max(replicates, known.replicates) if whole else replicates
    stored = {current_name(name): name for name in begun}
    names, dropped = (
        [stored.get(current_name(n), current_name(n)) for n in given]
        for given in (config.methods, config.drop)
    )
    if unknown := [name for name in dropped if name not in begun]:
        has = f"{path} has {', '.join(begun)}" if begun else f"there is no comparison in {path}"
        raise ValueError(f"drop must name methods of the comparison, got {unknown[0]!r}: {has}")
    stay = [n for n in begun if n not in dropped and (n in names or (whole and _finished(path, n)))]
    added = [name for name in names if name not in stay]
    order = [*stay, *added] if set(stay) - set(names) else names
    return dataclasses.replace(
        config,
        methods=tuple(order),
        replicates=replicates,
        share_members=sharing,
        drop=(),
        dry_run=False,
    )


def _finished(path: Path, name: str) -> bool:
    return (path / f"{name}-0" / "metrics.json").exists()
