"""The options of evaluate, score, cascade, predict and assemble: plain data, quick to import."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ..config import Device


@dataclass(frozen=True)
class EvaluateConfig:
    """Compute the metrics of a run from its stored member logits, and say what is measured.

    Args:
        run: Run directory.
        predict: Run the network again instead of reading the stored logits.
        detectors: Feature-based OOD detectors to add to those of the run; requires predict. knn,
            mahalanobis, relative_mahalanobis, vim, react, ash, scale, nnguide, gen, or all.
        evaluate: Predict what is missing of this: quick for validation, test and OOD images, full
            also for corrupted copies, and the similarity of the members' input gradients. By
            default, what is there is evaluated.
        device: Device; auto uses a GPU if one is available.
        quiet: Do not display progress.
    """

    run: str
    predict: bool = False
    detectors: tuple[str, ...] = ()
    evaluate: Literal["quick", "full"] | None = None
    device: Device = "auto"
    quiet: bool = False


@dataclass(frozen=True)
class ScoreConfig:
    """Compute all metrics from logits of any framework, stored in files.

    Args:
        logits: Member logits in .npy, .npz, .safetensors, .parquet or .csv format: one file with
            all members, or one file [N, C] per member.
        labels: File with the class index of each sample, in one of these formats.
        ood: Logits of the same members on OOD images, as FILE or NAME=FILE; may be repeated for
            several sets. Files of the same NAME contain one member each.
        layout: Order of the axes in a file: members M, samples N, classes C; two are one model.
        kind: Whether the files contain logits, log-probabilities or probabilities.
        key: Name of the logits in files that contain several arrays.
        label_key: Name of the labels in such a file.
        out: Write all metrics to this .json or .csv file.
        per_sample: Write the scores of every sample to this .csv or .parquet file.
        overwrite: Replace outputs that were made with other options.
        chunk: Number of samples read at a time; by default, about a million logits' worth.
        quiet: Do not display progress.
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
    overwrite: bool = False
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
        run: Run directory.
        task: Task: selective (classification with a reject option), ood (OOD detection), scod
            (selective classification in the presence of OOD images), or accuracy.
        target_risk: For selective: maximum error rate among the accepted images.
        target_coverage: For selective and scod: minimum fraction of images that are accepted.
        target_tpr: For ood: minimum fraction of in-distribution images that are accepted.
        policy: window, or single for the single-threshold baseline.
        width: Half the width of the window, as a fraction of the images that reach a stage.
        budget: Search for windows whose average MACs per image are at most this multiple of those
            of the first stage.
        confidence: Confidence score on which it decides: msp (maximum softmax probability) or
            energy.
        pool: Prediction of a stage: the mean over the members so far, or last, that of its own
            member alone, as is usual for the exits of one network.
        order: Order in which members run; all members in their own order by default.
        seed: Seed of the split of the calibration images into halves, with a budget.
        out: Output, a .json file; RUN/cascade.json by default. A .csv and an .svg file are written
            next to it.
        overwrite: Replace a cascade that was made with other options.
        quiet: Do not display progress.
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
    overwrite: bool = False
    quiet: bool = False

    def __post_init__(self) -> None:
        if self.budget is not None and self.policy == "single":
            raise ValueError("budget is searched for with policy window only, got policy single")
        if self.budget is not None and self.width != CascadeConfig.width:
            raise ValueError("width is chosen within a budget, got both: leave one of them out")
        if self.out is not None and Path(self.out).suffix != ".json":
            raise ValueError(f"out must end in .json, got {self.out!r}")

    def file(self) -> Path:
        """The file of the cascade."""
        return Path(self.out or Path(self.run) / "cascade.json")


@dataclass(frozen=True)
class PredictConfig:
    """Classify your own images with a trained run.

    Args:
        run: Run directory.
        images: The images: folders, files, or quoted patterns such as 'photos/*.jpg'.
        out: Output, a .csv or .parquet file; RUN/predicted.csv by default, with a cascade
            RUN/predicted-cascade.csv.
        skip_bad_images: Skip images that cannot be read, and list them.
        cascade: A cascade.json of the run, made by `deepens cascade`: predict with this cascade
            instead of all members, and report its decision and an OOD flag.
        overwrite: Replace an output that was made with other options.
        device: Device; auto uses a GPU if one is available.
        quiet: Do not display progress.
    """

    run: str
    images: tuple[str, ...]
    out: str | None = None
    skip_bad_images: bool = False
    cascade: str | None = None
    overwrite: bool = False
    device: Device = "auto"
    quiet: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.images, str):
            object.__setattr__(self, "images", (self.images,))
        if not self.images:
            raise ValueError("images must be >= 1 folder, file or pattern, got none")

    def file(self) -> Path:
        """The file of the predictions."""
        kind = "" if self.cascade is None else f"-{Path(self.cascade).stem}"
        return Path(self.out or Path(self.run) / f"predicted{kind}.csv")


@dataclass(frozen=True)
class AssembleConfig:
    """Assemble members that were trained separately into one ensemble.

    Args:
        runs: Run directories of the members.
        out: Output directory; derived from the options by default.
        quiet: Do not display progress.
    """

    runs: tuple[str, ...]
    out: str | None = None
    quiet: bool = False
