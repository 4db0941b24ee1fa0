"""Options of optimisers, schedules and families: plain data, quick to import, checked when made."""

import math
from dataclasses import dataclass
from typing import Literal, get_args

Execution = Literal["loop", "grouped"]
"""How members that are separate networks are evaluated; their parameters stay where they are.

- loop: one network after the other.
- grouped: one network with grouped layers, from the members' weights side by side.
"""


def check_execution(name: str, execution: str) -> None:
    """Refuse an execution that does not exist, or no longer does.

    Args:
        name: What the option is called, for the message.
        execution: What was asked for.

    Raises:
        ValueError: It is neither ``"loop"`` nor ``"grouped"``.
    """
    if execution not in get_args(Execution):
        removed = "; vmap and compiled were removed, both slower than these"
        raise ValueError(
            f"{name} must be 'loop' or 'grouped', got {execution!r}"
            + (removed if execution in ("vmap", "compiled") else "")
        )


@dataclass(frozen=True)
class Optimizer:
    """Optimizer.

    Args:
        name: sgd (with Nesterov momentum) or adamw.
        lr: Peak learning rate.
        momentum: Momentum of sgd; ignored by adamw.
        weight_decay: Weight decay: L2 regularisation in sgd, decoupled in adamw.
        decay_all: Apply weight decay to normalisation parameters and biases, too.
        clip: Maximum gradient norm, for each member separately, since a common norm would couple
            the members; no clipping by default.
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
    r"""Learning-rate schedule.

    With :math:`t` the share of all steps after the warm-up, in [0, 1]:

    - constant: 1
    - cosine: :math:`f + (1-f)(1 + \cos \pi t)/2`, with f = ``final``
    - linear: 1 until ``hold``, then straight down to ``final`` at ``end``, and constant
    - step: times ``factor`` at each of ``milestones``

    Args:
        name: constant, cosine, linear or step.
        warmup: Number of steps of linear warm-up from zero to the peak learning rate.
        final: Final learning rate as a fraction of the peak (cosine, linear).
        hold: Fraction of the steps after which the linear decay begins (linear).
        end: Fraction of the steps after which the linear decay ends (linear).
        milestones: Fractions of the steps at which the learning rate is reduced (step).
        factor: Factor by which it is multiplied there (step).
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


@dataclass(frozen=True)
class Packed:
    """Packed ensembles.

    Args:
        alpha: Width of all members together relative to the network: each member has alpha/M of it.
        gamma: Number of groups of the interior convolutions of each member.
        execution: Evaluate members one after the other (loop, the fastest on a CPU) or as one
            network with grouped layers (grouped).
    """

    alpha: float = 2.0
    gamma: int = 1
    execution: Execution = "loop"

    def __post_init__(self) -> None:
        if not 0.01 <= self.alpha < math.inf:
            raise ValueError(f"packed.alpha must be >= 0.01 and finite, got {self.alpha}")
        if self.gamma < 1 or self.gamma != int(self.gamma):
            raise ValueError(f"packed.gamma must be a whole number >= 1, got {self.gamma}")
        check_execution("packed.execution", self.execution)


@dataclass(frozen=True)
class LoRA:
    """Low-rank adapters on the attention of a frozen vision transformer.

    Args:
        rank: Rank r of the adapters.
        projections: Attention projections with adapters: query, key, value, output.
        blocks: Adapters only in the last so many blocks; the blocks before them run once for all
            members. In all blocks when absent.
        scaling: What B A x is multiplied with.
        gain: Xavier gain of A's initial values.
        head_norm: Add a layer norm before the linear head of each member.
        head: Initialise the head of each member at random (fresh) or as that of the base (base).
        execution: All members in one batch, or one after another, which needs less memory at a
            time where no gradients are asked. In training it does not by itself, since the
            members' graphs are kept together: that takes an objective of one member at a time,
            ``CrossEntropy(members_at_once=1)``.
        checkpointing: Whether the adapted blocks are computed again in the backward pass instead
            of keeping what is inside them.
        base_precision: Precision of the frozen network; adapters and heads are float32.
    """

    rank: int = 8
    projections: tuple[str, ...] = ("query", "key", "value", "output")
    blocks: int | None = None
    scaling: float = 1.0
    gain: float = 10.0
    head_norm: bool = False
    head: Literal["fresh", "base"] = "fresh"
    execution: Literal["vectorised", "loop"] = "vectorised"
    checkpointing: bool = False
    base_precision: Literal["32", "bf16"] = "32"

    def __post_init__(self) -> None:
        for name in ("rank", "blocks"):
            size = getattr(self, name)
            if name == "blocks" and size is None:
                continue
            if not isinstance(size, int) or isinstance(size, bool):
                raise ValueError(f"lora.{name} must be an integer >= 1, got {size!r}")
            if size < 1:
                raise ValueError(f"lora.{name} must be >= 1, got {size}")
        for name in ("scaling", "gain"):
            factor = getattr(self, name)
            number = isinstance(factor, int | float) and not isinstance(factor, bool)
            if not (number and math.isfinite(factor) and factor > 0):
                raise ValueError(f"lora.{name} must be > 0 and finite, got {factor!r}")
        for name in ("head_norm", "checkpointing"):
            if not isinstance(flag := getattr(self, name), bool):
                raise ValueError(f"lora.{name} must be True or False, got {flag!r}")
        known = ("query", "key", "value", "output")
        chosen = self.projections
        named = isinstance(chosen, tuple | list) and all(name in known for name in chosen)
        if not named or not chosen or len(set(chosen)) < len(chosen):
            shown = list(chosen) if isinstance(chosen, tuple | list) else repr(chosen)
            raise ValueError(
                f"lora.projections must name some of {', '.join(known)}, each once, got {shown}"
            )
        if self.head not in ("fresh", "base"):
            raise ValueError(f"lora.head must be 'fresh' or 'base', got {self.head!r}")
        if self.execution not in ("vectorised", "loop"):
            raise ValueError(
                f"lora.execution must be 'vectorised' or 'loop', got {self.execution!r}"
            )
        if self.base_precision not in ("32", "bf16"):
            raise ValueError(
                f"lora.base_precision must be '32' or 'bf16', got {self.base_precision!r}"
            )


@dataclass(frozen=True)
class Repulsion:
    """Repulsion between members.

    Args:
        scale: Weight of the repulsion term; 0 disables it, including the attraction of SVGD.
        annealing: Weight over the course of training: constant, or linear from 0 (rise) or to 0
            (fall).
        annealing_share: Fraction of the steps after which the rise or fall is complete.
        lengthscale: Lengthscales of the kernel on input gradients: identical (identity), by the
            variance of the training images along each principal component (pca), or an
            interpolation of both (tuned).
        blend: Interpolation weight of tuned: 0 is identity, 1 is pca.
        update: Particle update in weight and function space: kde-wgd or svgd.
    """

    scale: float = 1.0
    annealing: Literal["constant", "rise", "fall"] = "constant"
    annealing_share: float = 1.0
    lengthscale: Literal["identity", "pca", "tuned"] = "identity"
    blend: float = 0.2
    update: Literal["kde-wgd", "svgd"] = "kde-wgd"

    def __post_init__(self) -> None:
        if not (math.isfinite(self.scale) and self.scale >= 0):
            raise ValueError(f"repulsion.scale must be >= 0 and finite, got {self.scale}")
        if not 0 < self.annealing_share <= 1:
            raise ValueError(
                f"repulsion.annealing_share must be in (0, 1], got {self.annealing_share}"
            )
        if not 0 <= self.blend <= 1:
            raise ValueError(f"repulsion.blend must be in [0, 1], got {self.blend}")
        for name, known in [
            ("annealing", ("constant", "rise", "fall")),
            ("lengthscale", ("identity", "pca", "tuned")),
            ("update", ("kde-wgd", "svgd")),
        ]:
            if (given := getattr(self, name)) not in known:
                raise ValueError(
                    f"repulsion.{name} must be one of {', '.join(known)}, got {given!r}"
                )

    def weight(self, step: int, total_steps: int) -> float:
        """The scale at a step, counted from 0.

        Example:
            >>> from deepens.ensembles import Repulsion
            >>> [Repulsion(2.0, annealing="rise").weight(step, 4) for step in (0, 2, 4)]
            [0.0, 1.0, 2.0]
        """
        if self.annealing == "constant":
            return self.scale
        done = min(1.0, step / max(1, total_steps) / self.annealing_share)
        return self.scale * (done if self.annealing == "rise" else 1 - done)


@dataclass(frozen=True)
class Mixup:
    """Pseudo-data for MixupMP.

    Args:
        ratio: Ratio r of pseudo-data to data: 0 is a deep ensemble, inf a mixup ensemble.
        beta: Parameter a of the Beta(a, a) distribution of mixing coefficients.
        weights: Weight of each example: equal (ones), or a Dirichlet sample for each member, with
            one weight per training image for the whole training and one per pseudo-image.
        statistics: Batch normalisation of images and pseudo-images together (joint), or of
            pseudo-images separately and without effect on the running statistics (separate).
    """

    ratio: float = 1.0
    beta: float = 1.0
    weights: Literal["ones", "dirichlet"] = "ones"
    statistics: Literal["joint", "separate"] = "joint"

    def __post_init__(self) -> None:
        if not self.ratio >= 0:
            raise ValueError(f"mixup.ratio must be >= 0, got {self.ratio}")
        if not (math.isfinite(self.beta) and self.beta > 0):
            raise ValueError(f"mixup.beta must be > 0 and finite, got {self.beta}")
        if self.weights not in ("ones", "dirichlet"):
            raise ValueError(f"mixup.weights must be 'ones' or 'dirichlet', got {self.weights!r}")
        if self.weights == "dirichlet" and self.ratio == math.inf:
            raise ValueError("mixup.ratio must be finite with mixup.weights 'dirichlet', got inf")
        if self.statistics not in ("joint", "separate"):
            raise ValueError(
                f"mixup.statistics must be 'joint' or 'separate', got {self.statistics!r}"
            )


@dataclass(frozen=True)
class Noise:
    """Noise images on which each member of a greedy ensemble is trained to differ from the others.

    Args:
        scale: Weight of the diversity term.
        images: Number of noise images, which are the same for all members and throughout training.
        deviation: Their standard deviation, relative to that of the training images.
    """

    scale: float = 1.0
    images: int = 1024
    deviation: float = 5.0

    def __post_init__(self) -> None:
        for name in ("scale", "deviation"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) >= 0):
                raise ValueError(f"noise.{name} must be >= 0 and finite, got {getattr(self, name)}")
        if self.images < 1:
            raise ValueError(f"noise.images must be >= 1, got {self.images}")


OPTION_GROUPS: dict[str, type] = {
    "repulsion": Repulsion,
    "mixup": Mixup,
    "noise": Noise,
    "packed": Packed,
    "lora": LoRA,
}
"""The options that belong to single families and objectives, by the name of the group."""

BUILT_IN_GROUPS = tuple(OPTION_GROUPS)
"""Names of the groups that exist without any plugin."""


def register_options(name: str, group: type) -> None:
    """Add a group of options, which every configuration and command then takes by its name.

    Use it through ``register_family`` or ``register_objective``, whose options it adds.

    Args:
        name: The group's name: a Python identifier, as in ``--packed.alpha``.
        group: A frozen dataclass with a default for every field and a docstring that describes
            each, in Google style.

    Raises:
        ValueError: The name is taken or not an identifier, or the group cannot be made without
            arguments.

    Example:
        >>> from deepens.ensembles.options import OPTION_GROUPS, Packed, register_options
        >>> register_options("packed", Packed)  # the same group again changes nothing
        >>> OPTION_GROUPS["packed"].__name__
        'Packed'
    """
    if not name.isidentifier():
        raise ValueError(f"the name of an option group must be an identifier, got {name!r}")
    known = OPTION_GROUPS.setdefault(name, group)
    if (known.__module__, known.__qualname__) != (group.__module__, group.__qualname__):
        raise ValueError(f"the option group {name!r} is already {known.__qualname__}")
    try:
        group()
    except TypeError:
        del OPTION_GROUPS[name]
        raise ValueError(f"every option of the group {name!r} must have a default") from None
