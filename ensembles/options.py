"""Optimiser and schedule options: plain data, quick to import, checked when made."""

import math
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Optimizer:
    """How parameters move.

    Args:
        name: sgd (with Nesterov momentum) or adamw.
        lr: Peak learning rate.
        momentum: Momentum of sgd; no meaning for adamw.
        weight_decay: Added to the gradient by sgd, decoupled in adamw.
        decay_all: Whether weight decay acts on normalisation parameters and biases too.
        clip: Largest norm of each member's gradient; none when absent. Each member is clipped by
            its own norm, since one norm over all members would couple them.
    """

    name: Literal["sgd", "adamw"] = "sgd"
    lr: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 5e-4
    decay_all: bool = True
    clip: float | None = None

    def __post_init__(self) -> None:
        if self.name not in ("sgd", "adamw"):
            raise ValueError(f"optimizer.name must be 'sgd' or 'adamw', got {self.name!r}")
        if not (math.isfinite(self.lr) and self.lr > 0):
            raise ValueError(f"optimizer.lr must be > 0 and finite, got {self.lr}")
        if self.name == "sgd" and not 0 < self.momentum < 1:
            raise ValueError(f"optimizer.momentum must be in (0, 1), got {self.momentum}")
        if not (math.isfinite(self.weight_decay) and self.weight_decay >= 0):
            raise ValueError(f"optimizer.weight_decay must be >= 0, got {self.weight_decay}")
        if self.clip is not None and not self.clip > 0:
            raise ValueError(f"optimizer.clip must be > 0, got {self.clip}")


@dataclass(frozen=True)
class Schedule:
    r"""How the learning rate changes over the steps.

    With :math:`t` the share of all steps after the warm-up, in [0, 1]:

    - constant: 1
    - cosine: :math:`f + (1-f)(1 + \cos \pi t)/2`, with f = ``final``
    - linear: 1 until ``hold``, then straight down to ``final`` at ``end``, and constant
    - step: times ``factor`` at each of ``milestones``

    Args:
        name: constant, cosine, linear or step.
        warmup: Steps over which the rate rises linearly from zero to its peak.
        final: The last rate as a share of the peak (cosine, linear).
        hold: Share of the steps before the straight descent begins (linear).
        end: Share of the steps at which it ends (linear).
        milestones: Shares of the steps at which the rate drops (step).
        factor: What it is multiplied with there (step).
    """

    name: Literal["constant", "cosine", "linear", "step"] = "cosine"
    warmup: int = 0
    final: float = 0.0
    hold: float = 0.5
    end: float = 0.9
    milestones: tuple[float, ...] = (0.3, 0.6, 0.8)
    factor: float = 0.2

    def __post_init__(self) -> None:
        if self.name not in ("constant", "cosine", "linear", "step"):
            raise ValueError(
                f"schedule.name must be 'constant', 'cosine', 'linear' or 'step', got {self.name!r}"
            )
        if self.warmup < 0:
            raise ValueError(f"schedule.warmup must be >= 0, got {self.warmup}")
        if not 0 <= self.final <= 1:
            raise ValueError(f"schedule.final must be in [0, 1], got {self.final}")
        if not 0 <= self.hold < self.end <= 1:
            raise ValueError(
                f"schedule.hold and schedule.end must satisfy 0 <= hold < end <= 1, "
                f"got {self.hold} and {self.end}"
            )
        if not all(0 < m < 1 for m in self.milestones):
            raise ValueError(f"schedule.milestones must be in (0, 1), got {self.milestones}")
        if not self.factor > 0:
            raise ValueError(f"schedule.factor must be > 0, got {self.factor}")

    def multiplier(self, step: int, total_steps: int) -> float:
        """The share of the peak rate at a step, counted from 0.

        Example:
            >>> from deepens.ensembles import Schedule
            >>> [Schedule("cosine").multiplier(step, 4) for step in (0, 2, 4)]
            [1.0, 0.5, 0.0]
        """
        if step < self.warmup:
            return (step + 1) / self.warmup
        t = min(1.0, (step - self.warmup) / max(1, total_steps - self.warmup))
        if self.name == "constant":
            return 1.0
        if self.name == "cosine":
            return self.final + (1 - self.final) * (1 + math.cos(math.pi * t)) / 2
        if self.name == "linear":
            descent = min(1.0, max(0.0, (t - self.hold) / (self.end - self.hold)))
            return 1 - (1 - self.final) * descent
        return self.factor ** sum(t >= milestone for milestone in self.milestones)
