"""What a run is asked to do: plain data, whose fields are the command line's options."""

import dataclasses
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml

from ..datasets.options import DataOptions, data_name
from ..ensembles.options import LoRA, Mixup, Noise, Optimizer, Packed, Repulsion, Schedule

Config = TypeVar("Config")
Device = Literal["auto", "cpu", "cuda"]

CIRCUMSTANCES = (
    *("out", "quiet", "device", "checkpoint_seconds", "tensorboard"),
    *("download", "data_root", "cache", "workers", "caveat", "verbose", "detectors"),
)
"""Options that say how a run is carried out, or what more is told of it, not what is trained: a
resumed run may differ."""


@dataclass(frozen=True)
class Recipe(DataOptions):
    """How networks are trained and on what data, whatever ensemble they form.

    Args:
        backbone: The network of each member, by name; or torchvision:NAME[@WEIGHTS], timm:NAME.
        width: Multiplier on the backbone's widths.
        depth: Multiplier on the backbone's depth.
        objective: What the members minimise: cross-entropy or mixupmp, and what pushes them apart:
            forde, weight-repulsion or function-repulsion; or greedy. A sum is written with +, such
            as mixupmp+forde.
        repulsion: How members are pushed apart.
        mixup: Pseudo-data for mixupmp.
        noise: Noise on which members of a greedy ensemble are to differ.
        members_at_once: Members whose training graphs are held in memory at a time; all when
            absent. The gradients are the same.
        packed: What members of a packed ensemble look like.
        lora: What members of a LoRA-ensemble add to their frozen base.
        base: Weights of the network that lora and explicit start from, a .safetensors file; when
            absent they are the backbone's own pre-trained ones (NAME@WEIGHTS), or else a base is
            trained first.
        adapters: A folder of peft's plain LoRA weights for the base, with which every member of a
            LoRA-ensemble starts; they start as the base itself when absent.
        base_epochs: Epochs of that training, by `optimizer`; as many as epochs when absent.
        save_base: Keep the frozen base in the file of a LoRA-ensemble's weights too.
        epochs: Passes over the training data.
        batch_size: Images of a training batch, for each member.
        batches: Whether each member has its own batch order or all share one, which forde,
            function-repulsion and multi-exit need.
        seed: Everything random is a function of it.
        optimizer: How parameters move.
        tuning: How what is trained on top of a base moves: adapters and heads, or the whole copies
            of an explicit ensemble.
        schedule: How the learning rate changes.
        precision: Arithmetic of the training; bf16-mixed halves a step where the processor has it.
        channels_last: Memory layout of the images; faster for convolutions.
        crop_padding: Pixels by which training images are padded before a random crop.
        flip: Whether training images are flipped left to right at random.
        resized_crop: Least share of a training image's area that a random crop of another aspect
            keeps before it is brought back to size, 0.08 for ImageNet; no such crop when absent.
        rand_augment: Random operations on colour and shape for each training image.
        magnitude: Their strength, 0 to 10.
        cutout: Side of a square blacked out in each training image, in pixels.
        early_stopping: Epochs without a better validation NLL (on val/select) before training
            stops; never when absent.
        keep: Keep the last weights, or those of the best validation NLL (on val/select).
        keep_logits: Also keep the logits of the shift splits, which verdicts on shift need; they
            are large.
        detectors: Feature-based OOD detectors to fit on the training images' features: knn,
            mahalanobis, relative_mahalanobis, vim, react, ash, scale, nnguide, gen, or all; they
            need pytorch-ood. Adding some to a finished run predicts again without training.
        out: Directory of the run; made from the other options when absent.
        workers: Processes that decode images which do not fit in memory.
        device: Where to compute; auto takes a GPU where there is one.
        checkpoint_seconds: Least time between two checkpoints to resume from, which are written at
            the ends of epochs.
        tensorboard: Also log for TensorBoard.
        quiet: No progress display.
    """

    backbone: str = "small-cnn"
    width: float = 1.0
    depth: float = 1.0
    objective: str = "cross-entropy"
    repulsion: Repulsion = field(default_factory=Repulsion)
    mixup: Mixup = field(default_factory=Mixup)
    noise: Noise = field(default_factory=Noise)
    members_at_once: int | None = None
    packed: Packed = field(default_factory=Packed)
    lora: LoRA = field(default_factory=LoRA)
    base: str | None = None
    adapters: str | None = None
    base_epochs: int | None = None
    save_base: bool = False
    epochs: int = 20
    batch_size: int = 64
    batches: Literal["own", "shared"] = "own"
    seed: int = 0
    optimizer: Optimizer = field(default_factory=Optimizer)
    tuning: Optimizer = field(default_factory=lambda: Optimizer("adamw", lr=1e-3, weight_decay=0.0))
    schedule: Schedule = field(default_factory=Schedule)
    precision: Literal["32", "bf16-mixed"] = "32"
    channels_last: bool = True
    crop_padding: int = 1
    flip: bool = False
    resized_crop: float | None = None
    rand_augment: int = 0
    magnitude: int = 5
    cutout: int = 0
    early_stopping: int | None = None
    keep: Literal["last", "best"] = "last"
    keep_logits: bool = False
    detectors: tuple[str, ...] = ()
    out: str | None = None
    workers: int = 2
    device: Device = "auto"
    checkpoint_seconds: float = 30.0
    tensorboard: bool = False
    quiet: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least = {"epochs": 1, "batch_size": 1, "seed": 0, "workers": 0}
        at_least |= {"crop_padding": 0, "rand_augment": 0, "cutout": 0}
        for name, low in at_least.items():
            if getattr(self, name) < low:
                raise ValueError(f"{name} must be >= {low}, got {getattr(self, name)}")
        for name in ("members_at_once", "base_epochs"):
            given = getattr(self, name)
            if given is not None and given < 1:
                raise ValueError(f"{name} must be >= 1, got {given}")
        if not 0 <= self.magnitude <= 10:
            raise ValueError(f"magnitude must be in [0, 10], got {self.magnitude}")
        if self.resized_crop is not None and not 0 < self.resized_crop <= 1:
            raise ValueError(f"resized_crop must be in (0, 1], got {self.resized_crop}")
        if self.early_stopping is not None and self.early_stopping < 1:
            raise ValueError(f"early_stopping must be >= 1, got {self.early_stopping}")
        if self.checkpoint_seconds < 0:
            raise ValueError(f"checkpoint_seconds must be >= 0, got {self.checkpoint_seconds}")
        for name in ("width", "depth"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ValueError(f"{name} must be > 0, got {getattr(self, name)}")

    def to_dict(self) -> dict[str, Any]:
        """The options as nested plain data."""
        return _plain(self)

    @classmethod
    def from_dict(cls: type[Config], options: Mapping[str, Any]) -> Config:
        """The inverse of ``to_dict``; missing options take their defaults.

        Raises:
            ValueError: An option that does not exist.
        """
        kinds = typing.get_type_hints(cls)
        given: dict[str, Any] = {}
        for name, value in options.items():
            if name not in kinds:
                raise ValueError(f"unknown option {name!r}")
            group: Any = kinds[name]
            if isinstance(value, Mapping) and isinstance(group, type) and _is_group(group):
                known = {f.name for f in dataclasses.fields(group)}
                if unknown := set(value) - known:
                    raise ValueError(f"unknown option {name}.{min(unknown)}")
                value = group(
                    **{k: tuple(v) if isinstance(v, list) else v for k, v in value.items()}
                )
            given[name] = tuple(value) if isinstance(value, list) else value
        return cls(**given)

    def to_yaml(self) -> str:
        """The options as YAML, as ``--config`` reads them."""
        return yaml.safe_dump(self.to_dict(), sort_keys=False)

    def differences(self, other: "Recipe") -> list[str]:
        """The options in which another recipe computes something else: 'name: this, not that'."""
        ours, theirs = self.substance(), other.substance()
        return [
            f"{name}: {ours.get(name)}, not {theirs.get(name)}"
            for name in ours.keys() | theirs.keys()
            if ours.get(name) != theirs.get(name)
        ]

    def substance(self) -> dict[str, Any]:
        """The options that say what is computed, those of groups as ``group.option``."""
        options = _flat(self.to_dict())
        return {name: value for name, value in options.items() if name not in CIRCUMSTANCES}


@dataclass(frozen=True)
class TrainConfig(Recipe):
    """Train one ensemble and predict every split with it.

    Args:
        ensemble: Family of the ensemble: deep, packed, lora, explicit, or multi-exit, whose members
            are the exits of one network.
        members: Number of members.
        member: Train this member alone, counted from 0, to be assembled later; all when absent. It
            needs own batches, the last weights and no early stopping, which look at all members.
    """

    ensemble: str = "deep"
    members: int = 4
    member: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.members < 1:
            raise ValueError(f"members must be >= 1, got {self.members}")
        if self.member is not None and not 0 <= self.member < self.members:
            raise ValueError(f"member must be in [0, {self.members}), got {self.member}")
        alone = [("batches", "own"), ("keep", "last"), ("early_stopping", None)]
        for name, needed in alone if self.member is not None else []:
            if getattr(self, name) != needed:
                raise ValueError(
                    f"member trains one member alone, which needs {name}: {needed} to equal its "
                    f"training with the others, got {getattr(self, name)}"
                )

    def directory(self) -> Path:
        """Where the run lives."""
        alone = "" if self.member is None else f"-member{self.member}"
        name = f"{data_name(self.data)}-{self.ensemble}-{self.members}-seed{self.seed}{alone}"
        return Path(self.out or Path("runs") / name)


@dataclass(frozen=True)
class CascadePolicy:
    """How the cascades of a comparison decide: selective classification near one target.

    Args:
        target_coverage: Share of images that are answered; 0.8 where no risk is given either.
        target_risk: Instead, share of errors among the answered at most.
        width: Half the window's width, as a share of the images that reach a stage.
        confidence: By what it decides: msp (highest probability) or energy.
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
        """The target coverage, where there is no target risk."""
        return (self.target_coverage or 0.8) if self.target_risk is None else None


@dataclass(frozen=True)
class CompareConfig(Recipe):
    """Train several methods, several times each, and compare them at the ensemble's cost.

    Args:
        methods: The methods, by name: single; deep, packed, lora and explicit ensembles; single
            models widened to the cost of each of these: wide, wide-packed, wide-lora,
            wide-explicit; and deep ensembles by other objectives: forde, forde-pca, forde-tuned,
            weight-repulsion, function-repulsion, weight-svgd, function-svgd, mixupmp, mixupmp-0.5,
            mixupmp-1, mixupmp-2, mixup, greedy. A number says how many members, as in deep-2 and
            wide-packed-2. Single models of K times the cost: wide-K, deeper-K, finer-K (larger
            images), next-K (another network of the family), and long-K (K times the epochs).
            One network with exits: multi-exit-3. Cascades over an ensemble's members:
            cascade-deep-2, and threshold-deep-2 by a single threshold.
        members: Number of members of the ensembles.
        replicates: Runs of each method, with seeds of their own.
        draws: Bootstrap draws behind each interval.
        cascade: How cascades among the methods decide.
        caveat: What a reader of the results must know; shown in the report.
        verbose: Print every verdict as a sentence, and every note.
    """

    methods: tuple[str, ...] = ("single", "wide", "deep")
    members: int = 4
    replicates: int = 3
    draws: int = 1000
    cascade: CascadePolicy = field(default_factory=CascadePolicy)
    caveat: str = ""
    verbose: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, low in [("members", 1), ("replicates", 1), ("draws", 100)]:
            if getattr(self, name) < low:
                raise ValueError(f"{name} must be >= {low}, got {getattr(self, name)}")
        if len(set(self.methods)) < len(self.methods) or not self.methods:
            raise ValueError(f"methods must be one or more different names, got {self.methods}")

    def directory(self) -> Path:
        """Where the comparison lives."""
        return Path(self.out or Path("runs") / data_name(self.data))


@dataclass(frozen=True)
class GridConfig:
    """Make many comparisons, one for each combination of data and backbone.

    Args:
        grid: A YAML file of compare's options; data, backbone and members may be lists there.
        out: Directory of the grid; runs/NAME of the file when absent.
        quiet: No progress display.
    """

    grid: str
    out: str | None = None
    quiet: bool = False


@dataclass(frozen=True)
class DataConfig(DataOptions):
    """Describe an image set and draw a sheet of its images.

    Args:
        out: The sheet, a .png file; NAME-sheet.png when absent.
        quiet: No progress display.
    """

    out: str | None = None
    quiet: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.file().suffix.lower() == ".png":
            raise ValueError(f"out must end in .png, got {self.out!r}")

    def file(self) -> Path:
        """Where the sheet goes."""
        return Path(self.out or f"{data_name(self.data)}-sheet.png")


@dataclass(frozen=True)
class EvaluateConfig:
    """Compute a run's metrics from its saved member logits.

    Args:
        run: Directory of a trained run.
        predict: Run the network again instead of reading the saved logits.
        detectors: Feature-based OOD detectors to add to those that the run has, with predict: knn,
            mahalanobis, relative_mahalanobis, vim, react, ash, scale, nnguide, gen, or all.
        device: Where to compute; auto takes a GPU where there is one.
        quiet: No progress display.
    """

    run: str
    predict: bool = False
    detectors: tuple[str, ...] = ()
    device: Device = "auto"
    quiet: bool = False


@dataclass(frozen=True)
class ScoreConfig:
    """Score anybody's logits, from files.

    Args:
        logits: Member logits, as .npy, .npz, .safetensors, .parquet or .csv: one file of all
            members, or several of one member [N, C] each.
        labels: Class indices, one a sample, in a file of these formats.
        ood: Logits of the same members on OOD images, FILE or NAME=FILE, as often as there are
            sets; files of one NAME hold one member each.
        layout: Order of the axes in a file: members M, samples N, classes C; NC is one model.
        kind: What the numbers are: raw outputs, or (logarithms of) probabilities.
        key: Name of the logits in files that hold several arrays.
        label_key: Name of the labels in such a file.
        out: All metrics, as a .json or .csv file.
        per_sample: Scores of every sample, as a .csv or .parquet file.
        chunk: Samples read at a time; about a million logits when absent.
        quiet: No progress display.
    """

    logits: tuple[str, ...]
    labels: str
    ood: tuple[str, ...] = ()
    layout: Literal["MNC", "NMC", "NC"] = "MNC"
    kind: Literal["logits", "log_probs", "probs"] = "logits"
    key: str | None = None
    label_key: str | None = None
    out: str | None = None
    per_sample: str | None = None
    chunk: int | None = None
    quiet: bool = False

    def __post_init__(self) -> None:
        if not self.logits:
            raise ValueError("logits must be >= 1 file, got none")
        if self.chunk is not None and self.chunk < 1:
            raise ValueError(f"chunk must be >= 1, got {self.chunk}")
        for name, suffixes in (("out", (".json", ".csv")), ("per_sample", (".csv", ".parquet"))):
            given = getattr(self, name)
            if given is not None and Path(given).suffix not in suffixes:
                raise ValueError(f"{name} must end in {' or '.join(suffixes)}, got {given!r}")


@dataclass(frozen=True)
class CascadeConfig:
    """Calibrate an early-exit cascade of a run's members.

    Args:
        run: Directory of a trained and evaluated run.
        task: What answers are for: selective (classification with a reject option), ood
            (detection), scod (selective classification with OOD images), or accuracy.
        target_risk: Of selective: share of errors among the accepted at most.
        target_coverage: Of selective and scod: share of images accepted at least.
        target_tpr: Of ood: share of in-distribution images accepted at least.
        policy: window, or single for the single-threshold baseline.
        width: Half the window's width, as a share of the images that reach a stage.
        budget: Average MACs an image at most, in multiples of the first stage's: windows are
            searched for within it.
        confidence: By what it decides: msp (highest probability) or energy.
        pool: What a stage answers: the mean of the members so far, or last, its own alone, as
            exits of one network mostly do.
        order: Members in the order in which they run; all, as they are, when absent.
        seed: Of the halves of the calibration images, with a budget.
        out: A .json file; RUN/cascade.json when absent. A .csv and a .svg file lie beside it.
        quiet: No progress display.
    """

    run: str
    task: Literal["selective", "ood", "scod", "accuracy"] = "selective"
    target_risk: float | None = None
    target_coverage: float | None = None
    target_tpr: float | None = None
    policy: Literal["window", "single"] = "window"
    width: float = 0.1
    budget: float | None = None
    confidence: Literal["msp", "energy"] = "msp"
    pool: Literal["mean", "last"] = "mean"
    order: tuple[int, ...] = ()
    seed: int = 0
    out: str | None = None
    quiet: bool = False

    def __post_init__(self) -> None:
        if self.budget is not None and self.policy == "single":
            raise ValueError("budget is searched for with policy window only, got policy single")
        if self.budget is not None and self.width != CascadeConfig.width:
            raise ValueError("width is chosen within a budget, got both: leave one of them out")
        if self.out is not None and Path(self.out).suffix != ".json":
            raise ValueError(f"out must end in .json, got {self.out!r}")

    def file(self) -> Path:
        """Where the cascade goes."""
        return Path(self.out or Path(self.run) / "cascade.json")


@dataclass(frozen=True)
class PredictConfig:
    """Classify a user's images with a trained run.

    Args:
        run: Directory of a trained run.
        images: The images, as folder:PATH.
        out: A .csv or .parquet file; RUN/predicted.csv when absent.
        skip_bad_images: Leave out images that cannot be read, and list them.
        cascade: A cascade.json of the run, made by `deepens cascade`, which answers in place of all
            members: with a decision and an OOD flag.
        device: Where to compute; auto takes a GPU where there is one.
        quiet: No progress display.
    """

    run: str
    images: str
    out: str | None = None
    skip_bad_images: bool = False
    cascade: str | None = None
    device: Device = "auto"
    quiet: bool = False

    def file(self) -> Path:
        """Where the answers go."""
        return Path(self.out or Path(self.run) / "predicted.csv")


@dataclass(frozen=True)
class AssembleConfig:
    """Put members that were trained one by one together.

    Args:
        runs: Directories of the members' runs.
        out: Directory of the whole; made from the options when absent.
        quiet: No progress display.
    """

    runs: tuple[str, ...]
    out: str | None = None
    quiet: bool = False


@dataclass(frozen=True)
class ReportConfig:
    """Rebuild the report of a comparison without training.

    Args:
        run: Directory of a comparison.
        pairs: Pairs of methods to print side by side, each FIRST:SECOND, whatever their costs.
        verbose: Print every verdict as a sentence, and every note.
        quiet: No progress display.
    """

    run: str
    pairs: tuple[str, ...] = ()
    verbose: bool = False
    quiet: bool = False


def _is_group(kind: type) -> bool:
    return dataclasses.is_dataclass(kind)


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    return list(value) if isinstance(value, tuple) else value


def _flat(options: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in options.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat
