"""The names of splits, parsed once: what kind of images a split holds, and which."""

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, cast

SplitKind = Literal["train", "val", "test", "shift", "near_ood", "far_ood"]

_PATTERNS = tuple(
    re.compile(pattern)
    for pattern in (
        r"(?P<kind>train|test|shift)",
        r"(?P<kind>val)/(?P<name>select|calibrate|conform)",
        r"(?P<kind>shift)/(?P<name>[\w-]+)/(?P<severity>[1-5])",
        r"(?P<kind>near_ood|far_ood)/(?P<name>[\w.-]+?)(?<!\.encoded)(?P<encoded>\.encoded)?",
    )
)


@dataclass(frozen=True)
class SplitName:
    """The name of a split, as fields: for code that depends on what a split holds.

    ==================================  ====================================================
    text                                split
    ==================================  ====================================================
    ``train``, ``test``                 training and test images
    ``val/select`` (calibrate, conform) a part of the validation images
    ``shift/gaussian_noise/3``          the test images, corrupted with severity 1 to 5
    ``shift``                           no images: the mean over all shifted copies
    ``near_ood/letters``, ``far_ood/…`` an out-of-distribution set
    ``far_ood/mnist.encoded``           its copy that went through the training images' encoder
    ==================================  ====================================================

    Raises:
        ValueError: If the fields do not name a split.

    Example:
        >>> from deepens.datasets import SplitName
        >>> name = SplitName.parse("far_ood/mnist.encoded")
        >>> name.kind, name.name, name.encoded
        ('far_ood', 'mnist', True)
        >>> str(SplitName("shift", "gaussian_noise", 3)), SplitName.parse("shift").is_mean
        ('shift/gaussian_noise/3', True)
    """

    kind: SplitKind
    name: str = ""
    severity: int | None = None
    encoded: bool = False

    def __post_init__(self) -> None:
        if _fields(str(self)) != (self.kind, self.name, self.severity, self.encoded):
            raise _not_a_split(str(self))

    @classmethod
    def parse(cls, text: str) -> "SplitName":
        """Parse a name once; every later call with the same text returns the same object.

        Raises:
            ValueError: If the text names no split.
        """
        return _parse(text)

    def __str__(self) -> str:
        parts = [self.kind, self.name, "" if self.severity is None else str(self.severity)]
        return "/".join(part for part in parts if part) + ".encoded" * self.encoded

    @property
    def is_ood(self) -> bool:
        """Whether the images are out of distribution, and so have no targets."""
        return self.kind in ("near_ood", "far_ood")

    @property
    def is_shift(self) -> bool:
        """Whether it is a corrupted copy of the test images, or the mean over all of them."""
        return self.kind == "shift"

    @property
    def is_mean(self) -> bool:
        """Whether it stands for the mean over all corrupted copies, which has no images."""
        return self.is_shift and not self.name

    @property
    def is_validation(self) -> bool:
        """Whether it is a part of the validation images."""
        return self.kind == "val"


@lru_cache(maxsize=4096)
def _parse(text: str) -> SplitName:
    if (fields := _fields(text)) is None:
        raise _not_a_split(text)
    return SplitName(*fields)


def _fields(text: str) -> tuple[SplitKind, str, int | None, bool] | None:
    for found in filter(None, (pattern.fullmatch(text) for pattern in _PATTERNS)):
        groups = found.groupdict()
        severity = int(groups["severity"]) if "severity" in groups else None
        kind, encoded = cast(SplitKind, groups["kind"]), groups.get("encoded") is not None
        return kind, groups.get("name", ""), severity, encoded
    return None


def _not_a_split(text: str) -> ValueError:
    return ValueError(
        "a split must be train, test, val/select, val/calibrate, val/conform, "
        f"shift/<corruption>/<1 to 5>, near_ood/<name> or far_ood/<name>, got {text!r}"
    )
