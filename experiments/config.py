"""The configurations of train and compare: plain data, whose fields are the commands' options."""

import dataclasses
import functools
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml

from ..datasets.options import NONE, DataOptions, data_name
from ..datasets.plain_data import LARGEST, conform, shown
from ..ensembles.options import BUILT_IN_GROUPS, OPTION_GROUPS, Averaging, Optimizer, Schedule

Config = TypeVar("Config")
Device = Literal["auto", "cpu", "cuda"]

COST_TOLERANCE = 0.02
"""Largest relative difference in inference MACs between models that count as of equal cost, unless
a comparison sets its own."""

CIRCUMSTANCES = (
    *("out", "quiet", "device", "checkpoint_seconds", "tensorboard", "plugins"),
    *("threads", "jobs", "executor", "address", "gpus_per_fit"),
    *("download", "data_root", "cache", "workers"),
    *("caveat", "verbose", "detectors", "drop", "dry_run", "evaluate"),
)
"""Options that describe how a run is carried out or what else is reported, not what is trained:
they may differ when a run is resumed. Device and threads decide the last bits of weights."""

ONE_PROCESS: Mapping[str, Any] = {
    "jobs": None,
    "executor": "local",
    "address": "auto",
    "gpus_per_fit": 0.0,
}
"""Options of what one process does, of its own."""

MOST = {
    **{"members": 10_000, "replicates": 10_000, "draws": 1_000_000},
    **{"workers": 1024, "threads": 1024, "jobs": 1024, "devices": 1024, "num_nodes": 10_000},
    **{"width": 1000, "depth": 1000, "crop_padding": 8192, "cutout": 8192, "rand_augment": 1000},
}
"""Upper bounds of options whose larger values can only be mistakes."""

SAME_RESULTS = ("packed.execution",)
"""Options whose values give the same results up to rounding: they are no reason to refuse a run."""


LATER = {
    **{"mixup.divisor": "weights", "share_members": False, "evaluate": "full", "ood_limit": 0},
    "severities": [],
    **{"devices": 1, "num_nodes": 1, "strategy": "ddp"},
}
"""Options that earlier versions lacked, with what they did: so set, they are no part of a run's
identity, so that its checkpoints are still its own. A stored configuration without them has them
so."""


def takes_option_groups(kind: type[Config]) -> type[Config]:
    """Let the constructor of a configuration take registered option groups by their names.

    ``TrainConfig(packed=Packed(alpha=3))`` sets ``groups["packed"]``: a family or an objective
    brings options of its own without a field here. :func:`dataclasses.replace` works likewise.
    """
    construct: Any = kind.__init__

    @functools.wraps(construct)
    def initialise(self: Any, *positional: Any, **options: Any) -> None:
        named = {name: options.pop(name) for name in OPTION_GROUPS if name in options}
        groups = {**options.pop("groups", {}), **named}
        construct(self, *positional, **options, groups=groups)

    kind.__init__ = initialise  # type: ignore[assignment]
    return kind


@takes_option_groups
@dataclass(frozen=True)
class Recipe(DataOptions):
    """How networks are trained and on which data, whatever ensemble they form.

    Options that belong to one family or objective form a group, such as ``packed``. The group is an
    attribute and an argument of the constructor, like a field; see
    :func:`~deepens.ensembles.options.register_options`.

    Args:
        backbone: Network architecture of each member, by name, or torchvision:NAME[@WEIGHTS] or
            timm:NAME.
        width: Multiplier on the number of channels of the backbone.
        depth: Multiplier on the number of blocks of the backbone.
        objective: Training objective, by name. A likelihood and repulsion terms can be combined
            with +, as in mixupmp+forde.
        members_at_once: Number of members whose computation graphs are kept in memory at the same
            time; all by default. The gradients do not depend on it.
        base: Weights of the network from which the members of lora and explicit start, a
            .safetensors file; {replicate} in its name stands for the number of a comparison's
            replicate, from 0. By default, the pre-trained weights of the backbone (NAME@WEIGHTS),
            or else a base network that is trained first.
        adapters: Folder with plain LoRA weights in peft's format, from which every member of a
            LoRA-ensemble starts; by default, members start at the base network.
        base_epochs: Epochs for which that base network is trained, with `optimizer`; as many as
            `epochs` by default.
        save_base: Store the frozen base network with the weights of a LoRA-ensemble.
        epochs: Number of passes over the training data.
        batch_size: Batch size of each member.
        batches: Whether each member draws its own batches or all members share one batch, which
            objectives that compare members on the same images and families whose members share
            parameters require. auto shares one where that is required.
        seed: Seed from which all randomness is derived.
        optimizer: Optimizer.
        tuning: Optimizer of everything that is trained on top of a base network: adapters and heads
            of a LoRA-ensemble, all weights of an explicit ensemble.
        schedule: Learning-rate schedule.
        average: Keep an average of the weights over training: an exponential moving one (ema), the
            mean over the last epochs (swa), or one from which training goes on (lookahead).
        averaging: Options of that average.
        precision: Floating-point precision of training. auto measures a step in 32 and in
            bf16-mixed before the first training, and takes bf16-mixed where it is faster by a
            tenth; the choice is kept, by all runs of a comparison alike.
        channels_last: Use the channels-last memory format, which is faster for convolutions.
        crop_padding: Pixels by which training images are padded before a random crop.
        crop_fill: Whether that padding is black or reflects the image.
        flip: Flip training images horizontally at random (true), or half of them in the first epoch
            and then each image in every second epoch (alternate).
        label_smoothing: Share of each label that is spread over all classes. It often raises
            accuracy, and distorts calibration and the ranking of confidences.
        resized_crop: Smallest fraction of the image area that a random resized crop keeps (0.08 is
            customary for ImageNet); by default, no such crop.
        rand_augment: Number of RandAugment operations applied to each training image.
        magnitude: Magnitude of these operations, from 0 to 10.
        cutout: Side length in pixels of the square that cutout masks; 0 disables it.
        early_stopping: Stop after this many epochs without improvement of the validation NLL (on
            val/select); disabled by default.
        keep: Keep the weights of the last epoch, or those with the best validation NLL (on
            val/select).
        evaluate: What is predicted after the training: quick for validation, test and OOD images,
            with corrupted copies only where they are asked for or keep_logits is set; full also
            for all corrupted copies, and the similarity of the members' input gradients. `deepens
            evaluate RUN --evaluate full` adds what a quick run lacks.
        keep_logits: Also store the logits on shifted test sets, which cascades under shift require;
            these files are large. Methods are compared there without them.
        detectors: Feature-based OOD detectors to fit on features of the training images: knn,
            mahalanobis, relative_mahalanobis, vim, react, ash, scale, nnguide, gen, or all. They
            require pytorch-ood. Detectors added to a finished run do not train it again.
        out: Output directory; derived from the other options by default.
        workers: Number of processes that decode images which do not fit in memory.
        device: Device; auto uses a GPU if one is available.
        threads: Number of processor threads that a training and its evaluation compute on; by
            default one for small networks or with --jobs, and the machine's number for others.
            Equal weights bit for bit need equal numbers; a training that was begun keeps its own.
        jobs: Number of processes that train at the same time on this machine, each on `threads`
            threads: the runs of a comparison, and the members of an ensemble that can be trained
            alone. The weights are those of one process. With ray, their greatest number; none by
            default.
        executor: Where these processes are: on this machine (local), or on those of a Ray cluster
            (ray), which reach the working directory, `out` and the data by the same paths.
        address: Address of the Ray cluster, HOST:PORT; auto for the one that runs on this machine.
        gpus_per_fit: With ray, the GPUs that a training takes; parts such as 0.25 share one.
        checkpoint_seconds: Minimum time in seconds between checkpoints, which are written at the
            end of an epoch.
        tensorboard: Also write TensorBoard logs.
        plugins: Python modules that register additional families, objectives, methods, backbones,
            data sets or metrics.
        quiet: Do not display progress.
        groups: Option groups by name, where they differ from their defaults.
    """

    backbone: str = "small-cnn"
    width: float = 1.0
    depth: float = 1.0
    objective: str = "cross-entropy"
    members_at_once: int | None = None
    base: str | None = None
    adapters: str | None = None
    base_epochs: int | None = None
    save_base: bool = False
    epochs: int = 20
    batch_size: int = 64
    batches: Literal["auto", "own", "shared"] = "auto"
    seed: int = 0
    optimizer: Optimizer = field(default_factory=Optimizer)
    tuning: Optimizer = field(default_factory=lambda: Optimizer("adamw", lr=1e-3, weight_decay=0.0))
    schedule: Schedule = field(default_factory=Schedule)
    average: Literal["none", "ema", "swa", "lookahead"] = "none"
    averaging: Averaging = field(default_factory=Averaging)
    precision: Literal["auto", "32", "bf16-mixed"] = "32"
    channels_last: bool = True
    crop_padding: int = 1
    crop_fill: Literal["black", "reflect"] = "black"
    flip: bool | Literal["alternate"] = False
    label_smoothing: float = 0.0
    resized_crop: float | None = None
    rand_augment: int = 0
    magnitude: int = 5
    cutout: int = 0
    early_stopping: int | None = None
    keep: Literal["last", "best"] = "last"
    evaluate: Literal["quick", "full"] = "full"
    keep_logits: bool = False
    detectors: tuple[str, ...] = ()
    out: str | None = None
    workers: int = 2
    device: Device = "auto"
    threads: int | None = None
    jobs: int | None = None
    executor: Literal["local", "ray"] = "local"
    address: str = "auto"
    gpus_per_fit: float = 0.0
    checkpoint_seconds: float = 30.0
    tensorboard: bool = False
    plugins: tuple[str, ...] = ()
    quiet: bool = False
    groups: Mapping[str, Any] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        positive = ("epochs", "batch_size", "members_at_once", "base_epochs", "early_stopping")
        natural = ("seed", "workers", "crop_padding", "rand_augment", "cutout")
        bounds = dict.fromkeys((*positive, "threads", "jobs"), 1) | dict.fromkeys(natural, 0)
        _check_bounds(
            self, bounds | {"gpus_per_fit": 0, "checkpoint_seconds": 0, "width": 0, "depth": 0}
        )
        if not 0 <= self.magnitude <= 10:
            raise ValueError(f"magnitude must be in [0, 10], got {self.magnitude}")
        if self.resized_crop is not None and not 0 < self.resized_crop <= 1:
            raise ValueError(f"resized_crop must be in (0, 1], got {self.resized_crop}")
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f"label_smoothing must be in [0, 1), got {self.label_smoothing}")
        for name in ("width", "depth"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be > 0, got {getattr(self, name)}")
        if self.executor == "local" and (self.gpus_per_fit or self.address != "auto"):
            option = "gpus_per_fit" if self.gpus_per_fit else "address"
            raise ValueError(f"{option} must be left out without --executor ray, which takes it")
        for name, group in self.groups.items():
            if name not in OPTION_GROUPS or not isinstance(group, OPTION_GROUPS[name]):
                raise ValueError(f"groups must hold registered option groups, got {name}: {group}")
        changed = {n: group for n, group in self.groups.items() if group != OPTION_GROUPS[n]()}
        object.__setattr__(self, "groups", changed)

    def __getattr__(self, name: str) -> Any:
        """A registered option group, as it was set or with its defaults."""
        if name not in OPTION_GROUPS:
            raise AttributeError(f"{type(self).__name__} has no option {name!r}")
        return self.groups.get(name) or OPTION_GROUPS[name]()

    @property
    def evaluates_fully(self) -> bool:
        """Whether all that there is to predict of a run is predicted."""
        return self.evaluate == "full"

    @property
    def predicts_corrupted(self) -> bool:
        """Whether corrupted copies of the test images are predicted too."""
        named = bool(self.corruptions or self.severities)
        asked = self.evaluates_fully or named or self.keep_logits
        return asked and self.corruptions != NONE

    @property
    def in_processes(self) -> bool:
        """Whether trainings are carried out by other processes."""
        return self.executor != "local" or (self.jobs or 1) > 1

    def to_dict(self, *, complete: bool = False) -> dict[str, Any]:
        """The options as nested plain data.

        Option groups of plugins with their default values are left out unless it is ``complete``,
        so that a run that uses none of their options can be read without the plugin.
        """
        names = [f.name for f in dataclasses.fields(self) if f.name != "groups"]
        groups = OPTION_GROUPS if complete else dict.fromkeys([*BUILT_IN_GROUPS, *self.groups])
        return {name: _plain(getattr(self, name)) for name in (*names, *groups)}

    @classmethod
    def from_dict(cls: type[Config], options: Mapping[str, Any], *, stored: bool = False) -> Config:
        """The inverse of ``to_dict``; missing options take their default values.

        Nothing is imported: options that are unknown, such as those of a plugin that the caller has
        not imported, are a ValueError. In ``stored`` options of a run, the executions vmap and
        compiled of packed ensembles, which earlier versions had, are read as loop.
        """
        kinds = option_types(cls)
        given: dict[str, Any] = {}
        if stored:
            options = {**{name: LATER[name] for name in LATER.keys() & kinds.keys()}, **options}
        for name, value in options.items():
            if name not in kinds:
                raise ValueError(f"unknown option {name!r}{plugin_hint(options.get('plugins'))}")
            kind: Any = kinds[name]
            if isinstance(value, Mapping) and dataclasses.is_dataclass(kind):
                if unknown := set(value) - {f.name for f in dataclasses.fields(kind)}:
                    raise ValueError(f"unknown option {name}.{min(unknown)}")
                if stored and name == "packed" and value.get("execution") in ("vmap", "compiled"):
                    value = {**value, "execution": "loop"}
            given[name] = conform(value, kind, name)
        return cls(**given)

    def to_yaml(self) -> str:
        """The options as YAML, which ``--config`` reads."""
        return yaml.safe_dump(self.to_dict(), sort_keys=False)

    def differences(self, other: "Recipe") -> list[str]:
        """The options by which two recipes compute something else: 'name: this, not that'."""
        ours, theirs = (recipe._flat(complete=True) for recipe in (self, other))
        if {self.batches, other.batches} == {"auto", "own"}:  # own, unless a method needs more
            ours["batches"] = theirs["batches"]
        if self.precision == "auto":  # whatever it was found to be
            ours["precision"] = theirs["precision"]
        if self.ood_limit == "auto":  # as in earlier sessions
            ours["ood_limit"] = theirs["ood_limit"]
        return [
            f"{name}: {ours.get(name)}, not {theirs.get(name)}"
            for name in (ours.keys() | theirs.keys()).difference(CIRCUMSTANCES, SAME_RESULTS)
            if ours.get(name) != theirs.get(name)
        ]

    def settled_as(self: Config, stored: "Recipe") -> Config:
        """This recipe, with what its options auto meant in an earlier session."""
        auto = [name for name in ("precision", "ood_limit") if getattr(self, name) == "auto"]
        kept = {name: getattr(stored, name) for name in auto}
        return dataclasses.replace(self, **kept)  # type: ignore[type-var]

    def _flat(self, *, complete: bool = False) -> dict[str, Any]:
        """The options on one level, defaults of the corruptions by name as earlier versions did."""
        corruptions = list(self.corrupted_by)
        return flatten(self.to_dict(complete=complete) | {"corruptions": corruptions})

    def substance(self) -> dict[str, Any]:
        """The options that determine what is computed, those of groups as ``group.option``."""
        return {
            name: value
            for name, value in self._flat().items()
            if name not in CIRCUMSTANCES and LATER.get(name, ...) != value
        }


@takes_option_groups
@dataclass(frozen=True)
class TrainConfig(Recipe):
    """Train one ensemble and evaluate it.

    Args:
        ensemble: Ensemble family, by name.
        members: Number of members.
        member: Train only this member (counting from 0), to be assembled with the others later; all
            members by default. Requires batches: own, keep: last and no early stopping, because
            those depend on all members.
        devices: Number of devices of a machine, each with a process of its own, that share every
            batch: GPUs, or processes on the CPU. The batch size must be a multiple of their number.
        num_nodes: Number of machines that do so together, on each of which the command is started,
            by torchrun or srun. The output directory must be one that all of them share.
        strategy: How they train together; ddp keeps a copy of all weights on each device.
    """

    ensemble: str = "deep"
    members: int = 4
    member: int | None = None
    evaluate: Literal["quick", "full"] = "quick"
    devices: int = 1
    num_nodes: int = 1
    strategy: Literal["ddp", "fsdp"] = "ddp"

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_bounds(self, {"members": 1, "devices": 1, "num_nodes": 1})
        if self.member is not None and not 0 <= self.member < self.members:
            raise ValueError(f"member must be in [0, {self.members}), got {self.member}")
        alone = [("batches", "own"), ("keep", "last"), ("early_stopping", None)]
        for name, needed in alone if self.member is not None else []:
            if getattr(self, name) not in (needed, "auto"):
                raise ValueError(
                    f"member trains one member alone, which needs {name}: {needed} to equal its "
                    f"training with the others, got {getattr(self, name)}"
                )

    def directory(self) -> Path:
        """The directory of the run."""
        alone = "" if self.member is None else f"-member{self.member}"
        name = f"{data_name(self.data)}-{self.ensemble}-{self.members}-seed{self.seed}{alone}"
        return Path(self.out or Path("runs") / name)


@dataclass(frozen=True)
class CascadePolicy:
    """How the cascades of a comparison decide: selective classification near one target.

    Args:
        target_coverage: Fraction of images that are answered; 0.8 unless a target risk is given.
        target_risk: Instead of a coverage, the maximum error rate among the answered images.
        width: Half the width of the window, as a fraction of the images that reach a stage.
        confidence: Confidence score on which it decides: msp (maximum softmax probability) or
            energy.
    """

    target_coverage: float | None = None
    target_risk: float | None = None
    width: float = 0.1
    confidence: Literal["msp", "energy"] = "msp"

    def __post_init__(self) -> None:
        if self.target_coverage is not None and self.target_risk is not None:
            raise ValueError("cascade takes target_coverage or target_risk, got both")
        for name, value in (("coverage", self.target_coverage), ("risk", self.target_risk)):
            if value is not None and not 0 < value <= 1:
                raise ValueError(f"cascade.target_{name} must lie in (0, 1], got {value}")
        if not 0 <= self.width <= 1:
            raise ValueError(f"cascade.width must lie in [0, 1], got {self.width}")

    @property
    def coverage(self) -> float | None:
        """The target coverage, unless there is a target risk."""
        return (self.target_coverage or 0.8) if self.target_risk is None else None


@takes_option_groups
@dataclass(frozen=True)
class CompareConfig(Recipe):
    """Train several methods with several replicates each and compare them at matched cost.

    Args:
        methods: Methods to compare, by name. Those of a finished comparison in the same directory
            stay in it.
        dry_run: Only print methods, costs, the time that training will take, and what would be
            missing from the results; nothing is trained or written.
        drop: Methods to leave out of the comparison in the directory; their runs are kept.
        members: Number of ensemble members.
        share_members: Train each network once: ensembles that differ in their number of members
            alone have the same first members (deep-2 is the first two of deep-4, single its first),
            and their differences are judged in pairs of such replicates. The networks of different
            replicates are never the same.
        replicates: Independent runs of each method, each with its own seed.
        draws: Number of bootstrap samples behind each confidence interval.
        cost_tolerance: Relative difference in inference MACs up to which models count as of equal
            cost. An ensemble without a single model of equal cost is judged against the two that
            bracket it, interpolated.
        cascade: How cascades among the methods decide.
        caveat: A limitation that readers of the results need to know; shown in the report.
        verbose: Print every verdict as a sentence, and all notes.
    """

    methods: tuple[str, ...] = ("single", "wide", "deep")
    drop: tuple[str, ...] = ()
    dry_run: bool = False
    share_members: bool = True
    members: int = 4
    replicates: int = 3
    draws: int = 1000
    cost_tolerance: float = COST_TOLERANCE
    cascade: CascadePolicy = field(default_factory=CascadePolicy)
    caveat: str = ""
    verbose: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_bounds(self, {"members": 1, "replicates": 1, "draws": 100})
        if not 0 < self.cost_tolerance < 1:
            raise ValueError(f"cost_tolerance must be in (0, 1), got {self.cost_tolerance}")
        if len(set(self.methods)) < len(self.methods) or not self.methods:
            raise ValueError(f"methods must be one or more different names, got {self.methods}")
        if both := sorted(set(self.methods) & set(self.drop)):
            raise ValueError(f"drop must not name what --methods names, got {', '.join(both)}")

    def directory(self) -> Path:
        """The directory of the comparison."""
        return Path(self.out or Path("runs") / data_name(self.data))


def option_types(kind: type) -> dict[str, Any]:
    """Types of a command's options by name; a recipe's registered groups are named as well."""
    hints = typing.get_type_hints(kind)
    names = (f.name for f in dataclasses.fields(kind))
    options = {name: hints[name] for name in names if name != "groups"}
    return options | OPTION_GROUPS if issubclass(kind, Recipe) else options


def plugin_hint(plugins: Iterable[str] | None) -> str:
    """What to add to the refusal of an unknown name where a configuration mentions plugins."""
    given = plugin_words(plugins)
    return f"; the configuration was made with plugins, give{given}" if given else ""


def plugin_words(plugins: Iterable[str] | None) -> str:
    """The words that load plugins on a command line, each after a space."""
    return "".join(f" --plugin {name}" for name in plugins or ())


def flatten(options: Mapping[Any, Any], prefix: str = "") -> dict[str, Any]:
    """Nested options on one level, those of groups as ``group.option``."""
    flat: dict[str, Any] = {}
    for name, value in options.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def _check_bounds(config: Any, bounds: Mapping[str, int]) -> None:
    """Refuse numbers below their bounds, or above those of ``MOST``."""
    for name, low in bounds.items():
        value, most = getattr(config, name), MOST.get(name, LARGEST)
        if value is not None and not value >= low:
            raise ValueError(f"{name} must be >= {low}, got {value}")
        if value is not None and value > most:
            raise ValueError(f"{name} must be <= {most}, got {shown(value)}")


def immutable(value: Any) -> Any:
    """A list as the tuple that it was before it was stored."""
    return tuple(value) if isinstance(value, list) else value


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {name: _plain(each) for name, each in value.items()}
    return list(value) if isinstance(value, tuple) else value
