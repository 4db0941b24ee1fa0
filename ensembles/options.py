"""Options of optimisers, schedules and families: plain data, quick to import, checked when made."""

import dataclasses
import math
from dataclasses import dataclass
from typing import Literal, get_args, get_origin, get_type_hints

FLOAT32 = 3.4028e38
"""The largest number in single precision, in which networks compute."""

Execution = Literal["loop", "grouped"]
"""How members that are separate networks are evaluated: one after the other (loop), or as one
network with grouped layers, from the members' weights side by side (grouped)."""


def check_execution(name: str, execution: str) -> None:
    """Refuse an execution other than loop and grouped, by the option's name."""
    if execution not in get_args(Execution):
        gone = execution in ("vmap", "compiled")
        removed = "; vmap and compiled were removed, both slower than these" if gone else ""
        raise ValueError(f"{name} must be 'loop' or 'grouped', got {execution!r}{removed}")


def _check_values(group: str, options: object) -> None:
    """Refuse a value that is none of its field's literals, or a number that float32 cannot hold."""
    for name, kind in get_type_hints(type(options)).items():
        value = getattr(options, name)
        if get_origin(kind) is Literal and value not in get_args(kind):
            *others, last = map(repr, get_args(kind))
            known = f"{', '.join(others)} or {last}"
            raise ValueError(f"{group}.{name} must be {known}, got {value!r}")
        number = kind in (float, float | None) and isinstance(value, int | float)
        if number and FLOAT32 < abs(value) < math.inf:
            raise ValueError(f"{group}.{name} must be at most {FLOAT32:.3g}, got {value:.3g}")


@dataclass(frozen=True)
class Optimizer:
    """Optimizer.

    Args:
        name: sgd (with Nesterov momentum) or adamw.
        lr: Peak learning rate.
        momentum: Momentum of sgd; ignored by adamw.
        weight_decay: Weight decay: L2 regularisation in sgd, decoupled in adamw.
        decay_all: Apply weight decay to normalisation parameters and biases, too.
        clip: Maximum gradient norm of each member, separately; no clipping by default.
        per_examples: Give lr and weight_decay of sgd per so many examples, whatever the batch size
            and the momentum: a step's rate is lr B / n (1 - m) / (2 - m), its decay of the weights
            weight_decay B / n (1 - m) / (2 - m). By default they are per step, as in torch.
        norm_bias: Multiplier on the learning rate of the biases of normalisation layers, whose
            weight decay per step stays.
    """

    name: Literal["sgd", "adamw"] = "sgd"
    lr: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 5e-4
    decay_all: bool = True
    clip: float | None = None
    per_examples: int | None = None
    norm_bias: float = 1.0

    def __post_init__(self) -> None:
        _check_values("optimizer", self)
        if not (math.isfinite(self.norm_bias) and self.norm_bias > 0):
            raise ValueError(f"optimizer.norm_bias must be > 0 and finite, got {self.norm_bias}")
        if self.per_examples is not None and (self.per_examples < 1 or self.name != "sgd"):
            raise ValueError(
                f"optimizer.per_examples must be >= 1 and with optimizer.name sgd, got "
                f"{self.per_examples} with {self.name}"
            )
        if not (math.isfinite(self.lr) and self.lr > 0):
            raise ValueError(f"optimizer.lr must be > 0 and finite, got {self.lr}")
        if self.name == "sgd" and not 0 < self.momentum < 1:
            raise ValueError(f"optimizer.momentum must be in (0, 1), got {self.momentum}")
        if not (math.isfinite(self.weight_decay) and self.weight_decay >= 0):
            raise ValueError(f"optimizer.weight_decay must be >= 0, got {self.weight_decay}")
        if self.clip is not None and not self.clip > 0:
            raise ValueError(f"optimizer.clip must be > 0, got {self.clip}")

    def per_step(self, batch_size: int) -> "Optimizer":
        """The same optimizer with learning rate and weight decay per step, as torch takes them.

        Example:
            >>> from deepens.ensembles import Optimizer
            >>> options = Optimizer(lr=3, momentum=0.5, weight_decay=0.3, per_examples=100)
            >>> found = options.per_step(batch_size=200)
            >>> round(found.lr, 3), round(found.weight_decay, 3), found.per_examples
            (2.0, 0.1, None)
        """
        if self.per_examples is None:
            return self
        share = batch_size / self.per_examples / (1 + 1 / (1 - self.momentum))
        decay = self.weight_decay / self.lr
        return dataclasses.replace(self, per_examples=None, lr=self.lr * share, weight_decay=decay)


@dataclass(frozen=True)
class Schedule:
    r"""Learning-rate schedule.

    With :math:`t` the share of all steps after the warm-up, in [0, 1]:

    - constant: 1
    - cosine: :math:`f + (1-f)(1 + \cos \pi t)/2`, with f = ``final``
    - linear: 1 until ``hold``, then straight down to ``final`` at ``end``, and constant
    - step: times ``factor`` at each of ``milestones``
    - triangular: from ``initial`` straight up to 1 at ``peak``, and straight down to f at the end

    Args:
        name: constant, cosine, linear, step or triangular.
        warmup: Number of steps of linear warm-up from zero to the peak learning rate.
        final: Final learning rate as a fraction of the peak (cosine, linear, triangular).
        hold: Fraction of the steps after which the linear decay begins (linear).
        end: Fraction of the steps after which the linear decay ends (linear).
        milestones: Fractions of the steps at which the learning rate is reduced (step).
        factor: Factor by which it is multiplied there (step).
        initial: Initial learning rate as a fraction of the peak (triangular).
        peak: Fraction of the steps at which the learning rate is highest (triangular).
    """

    name: Literal["constant", "cosine", "linear", "step", "triangular"] = "cosine"
    warmup: int = 0
    final: float = 0.0
    hold: float = 0.5
    end: float = 0.9
    milestones: tuple[float, ...] = (0.3, 0.6, 0.8)
    factor: float = 0.2
    initial: float = 0.2
    peak: float = 0.23

    def __post_init__(self) -> None:
        _check_values("schedule", self)
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
        if not 0 <= self.initial <= 1:
            raise ValueError(f"schedule.initial must be in [0, 1], got {self.initial}")
        if not 0 < self.peak < 1:
            raise ValueError(f"schedule.peak must be in (0, 1), got {self.peak}")

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
        if self.name == "triangular":
            if t < self.peak:
                return self.initial + (1 - self.initial) * t / self.peak
            return self.final + (1 - self.final) * (1 - t) / (1 - self.peak)
        return self.factor ** sum(t >= milestone for milestone in self.milestones)


@dataclass(frozen=True)
class Averaging:
    """Averages of the weights over training.

    Args:
        decay: Largest decay of the exponential moving average per step (ema).
        start: Fraction of the epochs after which weights are averaged (swa).
        every: Steps between averages (lookahead).
        lookahead: Decay per step at the end of training, to which it rises (lookahead).
    """

    decay: float = 0.999
    start: float = 0.75
    every: int = 5
    lookahead: float = 0.95

    def __post_init__(self) -> None:
        for name in ("decay", "start", "lookahead"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"averaging.{name} must be in [0, 1), got {getattr(self, name)}")
        if self.every < 1:
            raise ValueError(f"averaging.every must be >= 1, got {self.every}")


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
        check_execution("packed.execution", self.execution)
        _check_values("packed", self)
        if not 0.01 <= self.alpha < math.inf:
            raise ValueError(f"packed.alpha must be >= 0.01 and finite, got {self.alpha}")
        if self.gamma < 1 or self.gamma != int(self.gamma):
            raise ValueError(f"packed.gamma must be a whole number >= 1, got {self.gamma}")


@dataclass(frozen=True)
class LoRA:
    """Low-rank adapters on the attention of a frozen vision transformer.

    Args:
        rank: Rank r of the adapters.
        projections: Attention projections with adapters: query, key, value, output.
        blocks: Adapters only in the last so many blocks; the blocks before them run once for all
            members. In all blocks when absent.
        scaling: Factor of B A x.
        gain: Xavier gain of A's initial values.
        head_norm: Add a layer norm before the linear head of each member.
        head: Initialise the head of each member at random (fresh) or as that of the base (base).
        execution: All members in one batch (vectorised), or one after another (loop), which needs
            less memory without gradients; in training ``CrossEntropy(members_at_once=1)`` does.
        checkpointing: Recompute the adapted blocks in the backward pass instead of storing their
            activations.
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
        sizes = {"rank": self.rank} | ({} if self.blocks is None else {"blocks": self.blocks})
        for name, size in sizes.items():
            if not isinstance(size, int) or isinstance(size, bool):
                raise ValueError(f"lora.{name} must be an integer >= 1, got {size!r}")
            if size < 1:
                raise ValueError(f"lora.{name} must be >= 1, got {size}")
        for name, factor in (("scaling", self.scaling), ("gain", self.gain)):
            number = isinstance(factor, int | float) and not isinstance(factor, bool)
            if not (number and math.isfinite(factor) and factor > 0):
                raise ValueError(f"lora.{name} must be > 0 and finite, got {factor!r}")
        for name, flag in (("head_norm", self.head_norm), ("checkpointing", self.checkpointing)):
            if not isinstance(flag, bool):
                raise ValueError(f"lora.{name} must be True or False, got {flag!r}")
        known, chosen = LoRA.projections, self.projections
        listed = isinstance(chosen, tuple | list)
        named = listed and all(name in known for name in chosen)
        if not named or not chosen or len(set(chosen)) < len(chosen):
            shown = list(chosen) if listed else repr(chosen)
            raise ValueError(
                f"lora.projections must name some of {', '.join(known)}, each once, got {shown}"
            )
        _check_values("lora", self)


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
        _check_values("repulsion", self)

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
        divisor: What the sum of the losses of B images and B pseudo-images is divided by: their
            weights, B (1 + r), or their number, 2 B, as in the authors' code (rows).
    """

    ratio: float = 1.0
    beta: float = 1.0
    weights: Literal["ones", "dirichlet"] = "ones"
    statistics: Literal["joint", "separate"] = "joint"
    divisor: Literal["weights", "rows"] = "weights"

    def __post_init__(self) -> None:
        if not self.ratio >= 0:
            raise ValueError(f"mixup.ratio must be >= 0, got {self.ratio}")
        if not (math.isfinite(self.beta) and self.beta > 0):
            raise ValueError(f"mixup.beta must be > 0 and finite, got {self.beta}")
        _check_values("mixup", self)
        if self.weights == "dirichlet" and self.ratio == math.inf:
            raise ValueError("mixup.ratio must be finite with mixup.weights 'dirichlet', got inf")


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
        _check_values("noise", self)
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
"""The options of single families and objectives, by the name of the group."""

BUILT_IN_GROUPS = tuple(OPTION_GROUPS)
"""Names of the groups of the product, without plugins."""


def register_options(name: str, group: type) -> None:
    """Add a group of options to every configuration and command.

    Use it through ``register_family`` or ``register_objective``.

    Args:
        name: The group's name: a Python identifier, as in ``--packed.alpha``.
        group: A frozen dataclass with a default for every field and a docstring that describes
            each, in Google style.

    Raises:
        ValueError: The name is taken or not an identifier, or an option has no default.

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
