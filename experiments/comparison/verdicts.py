"""The data of a comparison: its methods, their costs, and a verdict for each metric."""

import dataclasses
import math
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from ...datasets import SplitName
from ...metrics.core.catalogue import METRICS, metric_info
from ...metrics.samples import SampleValues
from ...metrics.statistics.hypothesis_tests import least_detectable
from ..config import COST_TOLERANCE
from ..cost.measurement import Cost
from .examples import Examples

if TYPE_CHECKING:
    from pandas import DataFrame

LEVEL = 0.05
"""Of the intervals and tests."""

FEWEST_REPLICATES = 3
"""With fewer replicates than these, how much training itself varies is hardly known."""

SHIFT = "shift"
"""All shifted copies of the test split as one, by which methods are judged."""


def shown_copies(splits: Iterable[str]) -> list[str]:
    """Leave out OOD sets that also went through the training images' encoder.

    Both copies show the same images, and only the encoded one hides their file format: it alone
    counts wherever results are summarized.

    Example:
        >>> from deepens.experiments.comparison.verdicts import shown_copies
        >>> shown_copies(["test", "far_ood/a", "far_ood/a.encoded", "far_ood/b"])
        ['test', 'far_ood/a.encoded', 'far_ood/b']
    """
    held = list(splits)
    names = {split: SplitName.parse(split) for split in held}
    encoded = {dataclasses.replace(name, encoded=False) for name in names.values() if name.encoded}
    return [split for split in held if names[split] not in encoded]


def oriented(metric: str, estimate: float, low: float, high: float) -> tuple[float, float, float]:
    """Turn a difference and its interval so that it is positive where the first method is better.

    Example:
        >>> from deepens.experiments.comparison.verdicts import oriented
        >>> oriented("accuracy", 0.02, 0.01, 0.03), oriented("nll", 0.02, 0.01, 0.03)
        ((0.02, 0.01, 0.03), (-0.02, -0.03, -0.01))
    """
    if METRICS[metric].higher_is_better is False:
        return 0.0 - estimate, 0.0 - high, 0.0 - low  # no negative zero
    return estimate, low, high


@dataclass(frozen=True)
class Replicate:
    """One run of a method, in ``directory`` below the comparison's.

    Attributes:
        metrics: ``{split: {metric: value}}``.
        values: Per-sample values of the splits by which methods are compared.
        log: Losses and validation metrics, a row per epoch; empty where there is no log.
        scaled: Per-sample values of the test split at the pooled temperature; None without one.
        unidentified: Why temperatures, by way, and ``"conformal"`` sets are not identified.
        networks: Names the networks that its members are the first of, the same in all replicates,
            of whatever method, that have some in common; empty where that is not known.
        unmeasured: What a quick evaluation left out: shift, gradients.
    """

    directory: str
    metrics: Mapping[str, Mapping[str, int | float]]
    values: Mapping[str, SampleValues]
    log: tuple[Mapping[str, int | float], ...] = ()
    scaled: SampleValues | None = None
    unidentified: Mapping[str, str] = dataclasses.field(default_factory=dict)
    networks: str = ""
    unmeasured: tuple[str, ...] = ()

    @property
    def shifted(self) -> list[str]:
        """The shift splits whose per-sample values are known."""
        names = {split: SplitName.parse(split) for split in self.values}
        return [split for split, name in names.items() if name.is_shift and not name.is_mean]

    def metric(self, split: str, name: str) -> float:
        """A metric on a split, or on ``shift`` its mean over the shifted copies; NaN if unknown."""
        return self.mean(self.shifted if split == SHIFT else [split], name)

    def mean(self, splits: Sequence[str], metric: str) -> float:
        """A metric's unweighted mean over splits, NaN if one of them lacks it or there is none."""
        values = [self.metrics.get(split, {}).get(metric, math.nan) for split in splits]
        return statistics.fmean(values) if values else math.nan


@dataclass(frozen=True)
class MethodSummary:
    """One method, the cost of its first replicate, and its runs.

    Attributes:
        family: The kind of method, such as ``deep ensemble``, or ``single model``.
        over: Of a cascade, the ensemble whose members it runs.
    """

    name: str
    description: str
    cost: Cost
    replicates: tuple[Replicate, ...]
    family: str = ""
    over: str = ""

    @property
    def networks(self) -> tuple[str, ...]:
        """Those of each replicate: what it has in common with replicates of other methods."""
        return tuple(replicate.networks for replicate in self.replicates)

    def values(self, splits: Sequence[str], metric: str) -> list[float]:
        """The mean over splits of each replicate that has them all, without undefined ones."""
        values = [replicate.mean(splits, metric) for replicate in self.replicates]
        return [value for value in values if math.isfinite(value)]


_COLUMNS = {
    **{name: name for name in ("challenger", "baseline", "split", "metric")},
    **{"difference": "estimate", "low": "low", "high": "high", "p_value": "raw_p_value"},
    **{"adjusted_p_value": "p_value", "compared": "compared", "interval_outcome": "outcome"},
    "outcome": "mark",
    **{name: name for name in ("survives", "n", "replicates", "agreeing", "least_detectable")},
}
"""Column of ``verdicts.csv`` -> attribute of a verdict."""


Between = tuple[tuple[str, float], ...]
"""The two single models between which a baseline is interpolated, and their relative MACs."""


@dataclass(frozen=True)
class Verdict:
    """Whether the challenger beats the baseline, by one metric on one split.

    Attributes:
        split: The split; ``shift`` for the mean over all shifted copies of the test split.
        metric: Its key in the suite.
        challenger: The ensemble.
        baseline: The single model that it is compared with, or the name of what it is compared
            with in place of one, such as ``single to wide-4, interpolated``.
        estimate: Challenger minus baseline, of replicate means; ``low`` and ``high`` are the ends
            of its 95 % interval, cut off at the largest difference that there can be.
        agreeing: Replicates, of ``replicates``, whose own difference has the estimate's sign.
        n: Number of images: of the split, or of the ID and the OOD split together.
        outcome: By the interval alone, uncorrected: better, worse, undecided (the interval holds
            zero), or undefined. What is shown to a reader is `mark`, and `advantage`.
        p_value: Of there being no difference, by Holm's method adjusted for all verdicts on the
            same two methods, the family of hypotheses everywhere; NaN where undefined.
        compared: How many verdicts these are.
        raw_p_value: The same, not adjusted.
        cost_ratio: The challenger's MACs over the baseline's; 1 where they count as equal.
        between: Where the baseline is interpolated at the challenger's cost, linearly in log MACs,
            the next cheaper and the next more expensive single model, each with its MACs over the
            challenger's; empty where it is a single model.
        error: Standard error of the estimate, and ``freedom`` its degrees of freedom.
        open: How many of these verdicts Holm's method leaves without a difference.
    """

    split: str
    metric: str
    challenger: str
    baseline: str
    estimate: float
    low: float
    high: float
    agreeing: int
    replicates: int
    n: int
    outcome: str
    p_value: float
    compared: int
    raw_p_value: float = math.nan
    cost_ratio: float = 1.0
    between: Between = ()
    error: float = math.nan
    freedom: float = math.inf
    open: int = 1

    @property
    def least_detectable(self) -> float:
        """The least difference that would have been shown with a probability of 80 %.

        Under the correction that the verdict is under: had its difference been shown beside those
        that are, its p-value would have been at most 5 % over the number of those that are not. NaN
        where the verdict is undefined or rests on too few replicates, which show nothing at all;
        infinite where no difference that the metric allows would have been enough.
        """
        if not self.mark or self.replicates < FEWEST_REPLICATES:
            return math.nan
        found = least_detectable(self.error, self.freedom, level=LEVEL / max(1, self.open))
        low, high = METRICS[self.metric].bounds
        return math.inf if found > high - low else found

    @property
    def advantage(self) -> tuple[float, float, float]:
        """The estimate and the ends of its interval, `oriented`: what is shown to a reader."""
        return oriented(self.metric, self.estimate, self.low, self.high)

    @property
    def survives(self) -> bool:
        """Whether the difference still shows, at 5 %, among all that were looked for."""
        return self.outcome in ("better", "worse") and self.p_value <= LEVEL

    @property
    def mark(self) -> str:
        """What may be claimed, by the one rule for all texts, tables and plots.

        ``better`` or ``worse`` if the difference holds after Holm's correction and rests on at
        least `FEWEST_REPLICATES` replicates, else ``not shown``; empty where it is undefined.
        """
        if self.outcome not in ("better", "worse", "undecided"):
            return ""
        shown = self.survives and self.replicates >= FEWEST_REPLICATES
        return self.outcome if shown else "not shown"

    def row(self) -> dict[str, Any]:
        """Return the fields under the names of the columns of ``verdicts.csv``."""
        row = {column: getattr(self, name) for column, name in _COLUMNS.items()}
        return row | {"outcome": self.mark or "undefined"}


RESULT_COLUMNS = ("method", "replicate", "split", "metric", "value")


@dataclass(frozen=True, eq=False)
class Comparison:
    """Everything that the report shows; two are equal only if they are the same object.

    Attributes:
        data: Name of the data set.
        caveat: What a reader of results on this data must know.
        methods: In the order asked for.
        judgements: The verdicts on each ensemble and its partner: the compute-matched single model,
            or the two that bracket its cost, interpolated.
        draws: Bootstrap draws behind each interval.
        notes: How far the methods' costs match, and the like.
        configuration: YAML.
        environment: Versions, hardware, git revision, wall time.
        command: What reproduces the comparison.
        conclusive: Whether the data can separate strong methods; the built-in digits cannot.
        cautions: What puts the results in doubt, such as test images that were trained on.
        data_notes: How the data were made: what was left out, cut or derived.
        verdict_notes: Why an ensemble has no verdict.
        picture_notes: Why there are no pictures.
        against_singles: Every ensemble against every single model, whatever the two cost, for the
            best affordable method within a budget.
        cost_tolerance: Relative difference in MACs up to which costs count as equal.
    """

    data: str
    caveat: str
    methods: tuple[MethodSummary, ...]
    judgements: tuple[Verdict, ...]
    draws: int
    notes: tuple[str, ...]
    configuration: str
    environment: Mapping[str, object]
    command: str
    examples: Examples | None = None
    conclusive: bool = True
    cautions: tuple[str, ...] = ()
    data_notes: tuple[str, ...] = ()
    verdict_notes: tuple[str, ...] = ()
    picture_notes: tuple[str, ...] = ()
    against_singles: tuple[Verdict, ...] = ()
    cost_tolerance: float = COST_TOLERANCE

    @property
    def names(self) -> list[str]:
        """The names of the methods."""
        return [method.name for method in self.methods]

    @property
    def replicates(self) -> Iterator[Replicate]:
        """The replicates of all methods."""
        return (replicate for method in self.methods for replicate in method.replicates)

    @property
    def unmeasured(self) -> tuple[str, ...]:
        """What a quick evaluation left out of some run: shift, gradients."""
        found = (name for replicate in self.replicates for name in replicate.unmeasured)
        return tuple(dict.fromkeys(found))

    @cached_property
    def splits(self) -> dict[str, SplitName]:
        """All splits with metrics, by the text of their names, in the order of the runs."""
        found = (split for replicate in self.replicates for split in replicate.metrics)
        return {split: SplitName.parse(split) for split in found}

    @cached_property
    def pairs(self) -> dict[tuple[str, str], list[Verdict]]:
        """The judgements on each ensemble and its partner, by the names of the two."""
        found: dict[tuple[str, str], list[Verdict]] = {}
        for each in self.judgements:
            found.setdefault((each.challenger, each.baseline), []).append(each)
        return found

    @property
    def results(self) -> "DataFrame":
        """Every number, in long form: method, replicate, split, metric, value."""
        import pandas

        frame = pandas.DataFrame(self.rows(), columns=list(RESULT_COLUMNS))
        return frame.astype({"replicate": int, "value": float})

    @property
    def verdicts(self) -> "DataFrame":
        """The judgements, a row each.

        Beside the fields of `Verdict`, ``p_value`` is by itself and ``adjusted_p_value`` after
        Holm's correction, ``interval_outcome`` by the uncorrected interval, and ``outcome`` the
        verdict's `mark`, or ``undefined``.
        """
        import pandas

        return pandas.DataFrame([v.row() for v in self.judgements], columns=list(_COLUMNS))

    def rows(self) -> Iterator[tuple[str, int, str, str, int | float]]:
        """Yield the rows of ``results``."""
        for method in self.methods:
            for number, replicate in enumerate(method.replicates):
                for split, metrics in replicate.metrics.items():
                    yield from ((method.name, number, split, *each) for each in metrics.items())


def compares_members(metric: str) -> bool:
    """Tell whether a metric of OOD detection rests on a score that compares members."""
    info = metric_info(metric)
    return info.scope == "detection" and info.needs_members
