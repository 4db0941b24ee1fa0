"""How numbers and outcomes are written, wherever a person reads them."""

import math
from collections.abc import Sequence

TOO_FEW = "too few replicates"
"""The outcome of a difference that rests on too few replicates, whatever its interval."""

CANNOT_TELL = "cannot tell on this data"
"""The outcome of an answer where the data cannot separate methods, whatever the differences."""

SIGNS = {
    **{"better": "✓", "worse": "✗", "not shown": "○", "undefined": "—"},
    **{TOO_FEW: "○", CANNOT_TELL: "○"},
}
"""Outcome after Holm's correction, in the word that stands for it -> its sign."""

PLAIN_SIGNS = {"better": "+", "worse": "-", "not shown": "o"}
"""The signs where the output cannot show others."""


def number(value: float) -> str:
    """Write a number with four decimals, or three significant digits if that would hide it.

    Example:
        >>> from deepens.experiments.comparison.formatting import number
        >>> number(0.93), number(0.00012), number(float("nan"))
        ('0.9300', '0.00012', 'undefined')
    """
    if not math.isfinite(value):
        return "undefined"
    # Zero is added so that there is no negative one.
    return f"{value + 0.0:.4f}" if _suits_decimals(value) else f"{value:.3g}"


def plus_minus(mean: float, sd: float) -> str:
    """Write ``± sd`` with the decimals of the mean beside it; nothing where it is not known."""
    if not math.isfinite(sd):
        return ""
    return f"± {sd:.4f}" if _suits_decimals(mean) and sd < 1000 else f"± {sd:.2g}"


def mean_and_sd(mean: float, sd: float) -> str:
    """Write a mean and its standard deviation, or the mean alone where that is unknown.

    Example:
        >>> from deepens.experiments.comparison.formatting import mean_and_sd
        >>> mean_and_sd(0.93, 0.004), mean_and_sd(0.93, float("nan"))
        ('0.9300 ± 0.0040', '0.9300')
    """
    return f"{number(mean)} {plus_minus(mean, sd) if math.isfinite(mean) else ''}".rstrip()


def signed(values: Sequence[float]) -> list[str]:
    """Write an estimate and its interval, all finite, with the decimals that separate its ends.

    With powers of ten where decimals would be too many or hide the size; zero has no sign.

    Example:
        >>> from deepens.experiments.comparison.formatting import signed
        >>> signed((0.02, 0.01, 0.03)), signed((2e-5, 1e-5, 3e-5))[0]
        (['+0.0200', '+0.0100', '+0.0300'], '+0.000020')
        >>> signed((-3e27, -4e27, -1e-9)), signed((1e-60, -1e-60, 0.0))
        (['-3e+27', '-4e+27', '-1e-09'], ['+1e-60', '-1e-60', '0'])
    """
    width, largest = max(values) - min(values), max(map(abs, values))
    decimals = 4 if width <= 0 else max(4, 1 - math.floor(math.log10(width)))
    fixed = largest == 0 or 1e-6 <= largest < 1e5
    written = [f"{value:+.{min(decimals, 8)}f}" if fixed else f"{value:+.3g}" for value in values]
    return [text if float(text) else text.lstrip("+-") for text in written]


def p_value_text(p_value: float) -> str:
    """Write a p-value with its relation: ``< 0.001``, or ``= 0.012``."""
    return "< 0.001" if p_value < 0.001 else f"= {p_value:.3f}"


def counted_text(count: int, noun: str) -> str:
    """Write a count and its noun, such as ``1 replicate`` and ``3 replicates``."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def listed(words: Sequence[str]) -> str:
    """Join words as a sentence does: ``a, b and c``."""
    return " and ".join(filter(None, (", ".join(words[:-1]), words[-1]))) if words else ""


def _suits_decimals(value: float) -> bool:
    return value == 0 or 1e-3 <= abs(value) < 1000
