"""What a method of a comparison is, and how its name is read."""

import dataclasses
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Literal

from ...datasets.image_format import ImageFormat
from ..config import CompareConfig
from ..store.errors import unknown
from .scaled_methods import Changes

__all__ = ["CASCADES", "Method", "read_name"]

NUMBER = r"(?:[0-9]+\.?[0-9]*|\.[0-9]+)"

CASCADES = {
    "cascade": ("window", "cascade", "by windows"),
    "threshold": ("single", "single-threshold cascade", "by a single threshold"),
}
"""Policy, family and description of what exits early, by the prefix of its name."""


@dataclass(frozen=True)
class Method:
    """One method of a comparison.

    Attributes:
        name: As in ``--methods``.
        description: For people; ``{members}``, which is ``count`` or else the comparison's number
            of members, and ``{backbone}`` are filled in.
        make: From the method, the comparison and the image format to the options that make it,
            and a note for the report.
        family: What kind of model it is, for people.
        ensemble: Whether it has members, and is judged against the single model of its cost.
        matched: Of an ensemble, the method that makes a single model of its cost.
        scales: Of a scaled single model, what is scaled: width, depth, resolution, family or
            epochs.
        takes: What a number behind the name says: how many members, or by what factor a single
            model is scaled; nothing where no number may stand there.
        count: That number, where the name has one.
        over: Of a cascade, the ensemble whose members it runs.
        policy: Of a cascade, by what it decides: window or single; it trains nothing.
    """

    name: str
    description: str
    make: Callable[["Method", CompareConfig, ImageFormat], Changes]
    family: str = "single model"
    ensemble: bool = False
    matched: str = ""
    scales: str = ""
    takes: Literal["", "members", "factor"] = ""
    count: int | float | None = None
    over: str = ""
    policy: str = ""

    def changes(self, config: CompareConfig, form: ImageFormat) -> Changes:
        """The options that make the method, and a note for the report.

        Raises:
            ValueError: The comparison's network does not suit the method.
        """
        if self.takes == "members" and self.count is not None:
            config = dataclasses.replace(config, members=int(self.count))
        return self.make(self, config, form)

    def factor(self, config: CompareConfig) -> int | float:
        """By what a single model is scaled: its number, or else the number of members."""
        return config.members if self.count is None else self.count


def read_name(name: str, methods: Mapping[str, Method]) -> Method:
    """Find a method by its name: one of those known, with a number, or a cascade over one.

    Args:
        name: The name.
        methods: The known methods, by their names without numbers.

    Returns:
        The method.

    Raises:
        ValueError: An unknown name, or a number that is out of bounds or not written as shortly as
            it can be.
    """
    for prefix in CASCADES:
        if name.startswith(f"{prefix}-"):
            return _cascade(prefix, read_name(name.removeprefix(f"{prefix}-"), methods))
    if name in methods:
        return methods[name]
    stem, _, number = name.rpartition("-")
    if stem in methods and re.fullmatch(NUMBER, number):
        return _with_number(methods[stem], number, methods)
    cascades = (f"{prefix}-deep" for prefix in CASCADES)
    refusal = unknown("method", name, sorted([*methods, *cascades]))
    raise ValueError(f"{refusal}; a number may follow, as in deep-4, wide-1.2 or cascade-deep-4")


def _with_number(method: Method, text: str, methods: Mapping[str, Method]) -> Method:
    name = f"{method.name}-{text}"
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
            f"numbers of methods must be written as shortly as they can be, got {name!r}; write "
            f"{method.name}-{shortest}"
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
    if not ensemble.ensemble or ensemble.policy:
        raise ValueError(
            f"a cascade runs over the members of an ensemble, and {over} is none, got "
            f"'{prefix}-{over}'; write {prefix}-deep-4, for example"
        )
    policy, family, how = CASCADES[prefix]
    return Method(
        f"{prefix}-{over}",
        f"early exits from the {{members}} members of {over}, {how}",
        lambda method, config, form: ({}, ""),
        family=family,
        ensemble=True,
        count=ensemble.count,
        over=over,
        policy=policy,
    )
