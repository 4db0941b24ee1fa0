"""Image sets by name."""

import difflib
from collections.abc import Callable

from .digits import digits
from .splits import Splits

# A new image set is one line here.
_BUILDERS: dict[str, Callable[[], Splits]] = {"digits": digits}


def known() -> tuple[str, ...]:
    """Name the image sets that :func:`load` knows.

    Returns:
        Their names, in alphabetical order.

    Example:
        >>> from deepens.datasets import known
        >>> "digits" in known()
        True
    """
    return tuple(sorted(_BUILDERS))


def load(name: str) -> Splits:
    """Load an image set.

    Args:
        name: One of :func:`known`.

    Returns:
        Its splits.

    Raises:
        ValueError: If the name is unknown; the nearest known one is named.

    Example:
        >>> from deepens.datasets import load
        >>> load("digits").names("val/")
        ('val/select', 'val/calibrate', 'val/conform')
    """
    if name not in _BUILDERS:
        nearest = difflib.get_close_matches(name, known(), n=1, cutoff=0.0)[0]
        raise ValueError(
            f"name must be one of {', '.join(known())}, got {name!r}; the nearest is {nearest!r}"
        )
    return _BUILDERS[name]()
