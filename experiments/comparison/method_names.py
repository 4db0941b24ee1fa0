"""What a method of a comparison is, and how its name is read."""

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Literal

from ..config import CompareConfig, plugin_hint
from ..store.errors import unknown

SINGLE = "single model"
"""The family of every method that is one network."""

Changes = tuple[dict[str, Any], str]
"""Options that make a method, and a note for the report."""

NUMBER = r"(?:[0-9]+\.?[0-9]*|\.[0-9]+)"

ALIASES = {"finer": "resolution", "next": "family", "long": "epochs"}
"""Earlier names of methods: comparisons that were made with them keep them."""

CASCADES = {
    "cascade": ("window", "cascade", "by windows of confidence"),
    "threshold": ("single", "single-threshold cascade", "by a single threshold"),
}
"""Policy, family and description of early exits, by the prefix of the method's name."""


@dataclass(frozen=True)
class Method:
    """One method of a comparison.

    Attributes:
        name: As in ``--methods``.
        description: The method in words; ``{members}``, which is its number or else the
            comparison's number of members, and ``{backbone}`` are filled in.
        make: ``make(method, config, image_format)`` returns options of ``TrainConfig`` and a note
            for the report.
        family: The kind of model, in tables and sentences.
        matched: For an ensemble, the method that makes a compute-matched single model.
        takes: What a number behind the name means: the number of members, or the factor by which a
            single model is scaled; empty if no number may follow.
        count: That number, if the name has one.
        over: For a cascade, the ensemble whose members it runs.
        policy: For a cascade, how it decides: window or single; it trains nothing.
    """

    name: str
    description: str
    make: Callable[["Method", CompareConfig, Any], Changes]
    family: str = SINGLE
    matched: str = ""
    takes: Literal["", "members", "factor"] = ""
    count: int | float | None = None
    over: str = ""
    policy: str = ""

    @property
    def is_single(self) -> bool:
        """Whether it is one network: a single model, or an ensemble of one member."""
        return self.family == SINGLE

    def changes(self, config: CompareConfig, image_format: Any) -> Changes:
        """The options that make the method on such images, and a note for the report.

        Raises:
            ValueError: The comparison's network does not suit the method.
        """
        if self.takes == "members" and self.count is not None:
            config = dataclasses.replace(config, members=int(self.count))
        return self.make(self, config, image_format)

    def factor(self, config: CompareConfig) -> int | float:
        """The factor by which a single model is scaled: its number, or else that of members."""
        return config.members if self.count is None else self.count


def current_name(name: str) -> str:
    """The name of a method today, where it had another one in earlier versions.

    Example:
        >>> from deepens.experiments.comparison.method_names import current_name
        >>> [current_name(name) for name in ("finer-2", "long", "deep-4")]
        ['resolution-2', 'epochs', 'deep-4']
    """
    stem, dash, number = name.partition("-")
    return f"{ALIASES.get(stem, stem)}{dash}{number}"


def read_name(
    name: str,
    methods: Mapping[str, Method],
    members: int | None = None,
    plugins: Iterable[str] = (),
) -> Method:
    """Find a method by its name: one of ``methods``, with a number, or a cascade over one.

    Arguments and errors are those of :func:`~.methods.find_method`.
    """
    first, _, rest = name.partition("-")
    if rest and first in CASCADES:
        return _cascade(first, read_name(rest, methods, members, plugins))
    stem, _, number = (today := current_name(name)).rpartition("-")
    if today in methods:
        method = dataclasses.replace(methods[today], name=name)
    elif stem in methods and re.fullmatch(NUMBER, number):
        method = _with_number(methods[stem], name, number, methods)
    else:
        known = sorted([*methods, *(f"{prefix}-deep" for prefix in CASCADES)])
        raise ValueError(
            f"{unknown('method', name, known)}; a number may follow, as in deep-4, wide-1.2 or "
            f"cascade-deep-4{plugin_hint(plugins)}"
        )
    if method.takes == "members" and (method.count or members) == 1:
        method = dataclasses.replace(method, family=SINGLE, matched="")
    return method


def _with_number(method: Method, name: str, text: str, methods: Mapping[str, Method]) -> Method:
    if not method.takes:
        stem = method.name.partition("-")[0]
        exact = [each for each in methods if re.fullmatch(f"{stem}-{NUMBER}", each)]
        if not exact:
            raise ValueError(f"the method {method.name} takes no number, got {name!r}")
        raise ValueError(
            f"the number behind {stem} is its ratio of pseudo-data ({', '.join(exact)}), not of "
            f"members, got {name!r}; set the number of members with --members"
        )
    number = Decimal(repr(float(text)))  # so that digits beyond a float's make no other name
    shortest = f"{number.normalize():f}"
    if text != shortest:
        raise ValueError(
            f"numbers of methods must be written in their shortest form, got {name!r}; write "
            f"{name.removesuffix(text)}{shortest}"
        )
    whole = number == number.to_integral_value()
    if method.takes == "members" and (number < 1 or not whole):
        raise ValueError(f"the members of {method.name} must be whole and >= 1, got {name!r}")
    if number <= 0:
        raise ValueError(f"the factor of {method.name} must be > 0, got {name!r}")
    return dataclasses.replace(
        method,
        name=name,
        count=int(number) if whole else float(number),
        matched=f"{method.matched}-{text}" if method.matched else "",
    )


def _cascade(prefix: str, ensemble: Method) -> Method:
    over = ensemble.name
    if ensemble.is_single or ensemble.policy:
        raise ValueError(
            f"a cascade runs over an ensemble of >= 2 members, which {over} is not, got "
            f"'{prefix}-{over}'; write {prefix}-deep-4, for example"
        )
    policy, family, how = CASCADES[prefix]
    return Method(
        f"{prefix}-{over}",
        f"early exits from the {{members}} members of {over}, {how}",
        lambda method, config, image_format: ({}, ""),
        family=family,
        count=ensemble.count,
        over=over,
        policy=policy,
    )
