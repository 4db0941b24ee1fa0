"""The window policy: only images near the decision threshold continue."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from jaxtyping import Bool, Float
from torch import Tensor

from ..policy import Policy

Window = tuple[float, float]

EVERYTHING: Window = (-math.inf, math.inf)
NOTHING: Window = (math.inf, -math.inf)


class WindowPolicy(Policy):
    """An image continues after stage m iff ``low_m <= S(m) <= high_m``.

    An image far above the threshold is accepted and one far below rejected, whatever further
    members say; near it they decide. The window ``(-inf, inf)`` after each stage is the full
    ensemble, an empty one the first stage alone, and ``low = -inf`` the *single-threshold* policy,
    which also spends compute on images that are rejected anyway.

    Args:
        windows: ``(low, high)`` after each stage but the last, both ends included.
        confidence: ``"msp"``, ``"log_msp"`` or ``"energy"``.
        threshold: Least confidence of an accepted answer.

    Raises:
        ValueError: If an end is NaN, or as for `Policy`.

    Example:
        >>> import torch
        >>> from deepens.ensembles.policies import WindowPolicy, replay
        >>> policy = WindowPolicy([(0.6, 0.8)], threshold=0.7)
        >>> first = torch.tensor([[[0.9, 0.1], [0.7, 0.3], [0.5, 0.5]]]).log()
        >>> second = torch.tensor([[[0.9, 0.1], [0.9, 0.1], [0.9, 0.1]]]).log()
        >>> answers = replay(policy, [first, second])
        >>> answers.stage.tolist(), answers.accepted.tolist()
        ([1, 2, 1], [True, True, False])

    Reference: Xia & Bouganis (2023), arXiv:2303.08010
    """

    def __init__(
        self, windows: Sequence[Window], *, confidence: str = "msp", threshold: float = -math.inf
    ) -> None:
        super().__init__(len(windows) + 1, confidence=confidence, threshold=threshold)
        for low, high in windows:
            if math.isnan(low) or math.isnan(high):
                raise ValueError(f"windows must be pairs of numbers, got ({low}, {high})")
        self.windows = tuple((float(low), float(high)) for low, high in windows)

    @classmethod
    def full(cls, num_stages: int, **options: Any) -> "WindowPolicy":
        """All stages on every image; options as for the class."""
        return cls([EVERYTHING] * (num_stages - 1), **options)

    @classmethod
    def first(cls, num_stages: int, **options: Any) -> "WindowPolicy":
        """The first stage alone; options as for the class."""
        return cls([NOTHING] * (num_stages - 1), **options)

    @property
    def single_threshold(self) -> "WindowPolicy":
        """The policy with the same upper ends, and no lower ones."""
        windows = [(-math.inf, high) for _, high in self.windows]
        return WindowPolicy(windows, confidence=self.confidence, threshold=self.threshold)

    def should_continue(
        self, stage: int, confidence: Float[Tensor, "images"]
    ) -> Bool[Tensor, "images"]:
        """Return which confidences lie in the stage's window."""
        low, high = self.windows[stage - 1]
        return (confidence >= low) & (confidence <= high)

    def __repr__(self) -> str:
        words = {EVERYTHING: "everything", NOTHING: "nothing"}
        windows = [words.get(w, f"[{w[0]:.6g}, {w[1]:.6g}]") for w in self.windows]
        return (
            f"WindowPolicy({self.num_stages} stages by {self.confidence}, continue within "
            f"{', '.join(windows) or 'nothing'}, accept from {self.threshold:.6g})"
        )

    def to_dict(self) -> dict[str, Any]:
        """Return what JSON can hold; infinite ends are words."""
        return {
            "confidence": self.confidence,
            "windows": [[_word(low), _word(high)] for low, high in self.windows],
            "threshold": _word(self.threshold),
        }

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> "WindowPolicy":
        """Read what `to_dict` gave; a ValueError if it is something else."""
        try:
            return cls(
                [(float(low), float(high)) for low, high in content["windows"]],
                confidence=str(content["confidence"]),
                threshold=float(content["threshold"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"content must be of a window policy, got {error}") from None


def _word(value: float) -> float | str:
    return value if math.isfinite(value) else str(value)
