"""The names of splits, parsed once: what kind of images a split holds, and which."""

import re
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, cast, get_args

SplitKind = Literal["train", "val", "test", "shift", "near_ood", "far_ood"]

_KINDS: tuple[SplitKind, ...] = get_args(SplitKind)
_VALIDATION = ("select", "calibrate", "conform")
_ENCODED = ".encoded"
_CORRUPTION = re.compile(r"[\w-]+")
_OOD_SET = re.compile(r"[\w.-]+")


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

    Args:
        kind: What the images are, relative to the training images.
        name: The part of the validation images, the corruption, or the OOD set.
        severity: Of the corruption, 1 to 5.
        encoded: Whether an OOD set went through the lossy encoder of the training images.

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
        if not self._is_valid():
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
        return "/".join(part for part in parts if part) + (_ENCODED if self.encoded else "")

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

    def _is_valid(self) -> bool:
        if self.kind not in _KINDS or (self.encoded and not self.is_ood):
            return False
        if self.is_shift and self.name:
            return bool(_CORRUPTION.fullmatch(self.name)) and self.severity in range(1, 6)
        if self.is_ood:
            fits = bool(_OOD_SET.fullmatch(self.name)) and not self.name.endswith(_ENCODED)
        else:
            fits = self.name in _VALIDATION if self.is_validation else not self.name
        return fits and self.severity is None


@lru_cache(maxsize=4096)
def _parse(text: str) -> SplitName:
    kind, _, rest = text.partition("/")
    name, severity, encoded = rest, None, False
    if kind == "shift" and rest:
        name, _, digit = rest.rpartition("/")
        severity = int(digit) if re.fullmatch("[0-9]", digit) else None
    elif kind in ("near_ood", "far_ood"):
        name, encoded = rest.removesuffix(_ENCODED), rest.endswith(_ENCODED)
    if kind in _KINDS:
        with suppress(ValueError):  # its message would show the fields, not the text
            made = SplitName(cast(SplitKind, kind), name, severity, encoded)
            if str(made) == text:
                return made
    raise _not_a_split(text)


def _not_a_split(text: str) -> ValueError:
    return ValueError(
        "a split must be train, test, val/select, val/calibrate, val/conform, "
        f"shift/<corruption>/<1 to 5>, near_ood/<name> or far_ood/<name>, got {text!r}"
    )
