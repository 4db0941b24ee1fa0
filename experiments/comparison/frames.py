"""Results and verdicts as data frames, and as the CSV files of a comparison."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ...datasets.files import whole_file
from .verdicts import Comparison, Verdict

if TYPE_CHECKING:
    from pandas import DataFrame

RESULTS = ("method", "replicate", "split", "metric", "value")


def results_frame(comparison: Comparison) -> "DataFrame":
    """Collect every number of a comparison, in long form.

    Args:
        comparison: What was measured.

    Returns:
        Columns ``method``, ``replicate``, ``split``, ``metric`` and ``value``.
    """
    return _exact_results(comparison).astype({"replicate": int, "value": float})


def verdicts_frame(verdicts: Sequence[Verdict]) -> "DataFrame":
    """Collect verdicts, a row each.

    Args:
        verdicts: Of a comparison: its ``judgements``, or ``against_singles``.

    Returns:
        Columns as in ``verdicts.csv``: which two methods, where and by which metric; the
        difference with its 95 % interval, its p-value by itself and after Holm's correction for
        ``compared`` verdicts; the outcome by the interval, and whether it survives the correction.
    """
    import pandas

    rows = [
        {
            "challenger": verdict.challenger,
            "baseline": verdict.baseline,
            "split": verdict.split,
            "metric": verdict.metric,
            "difference": verdict.estimate,
            "low": verdict.low,
            "high": verdict.high,
            "p_value": verdict.raw_p_value,
            "adjusted_p_value": verdict.p_value,
            "compared": verdict.compared,
            "outcome": verdict.outcome,
            "survives": verdict.survives,
            "n": verdict.n,
            "replicates": verdict.replicates,
            "agreeing": verdict.agreeing,
        }
        for verdict in verdicts
    ]
    return pandas.DataFrame(rows, columns=VERDICTS)


VERDICTS = [
    *("challenger", "baseline", "split", "metric", "difference", "low", "high", "p_value"),
    *("adjusted_p_value", "compared", "outcome", "survives", "n", "replicates", "agreeing"),
]


def write_tables(comparison: Comparison, path: Path) -> None:
    """Write ``results.csv`` and ``verdicts.csv``, each whole or not at all.

    Args:
        comparison: What was measured and concluded.
        path: The comparison's directory.
    """
    frames = {"results": _exact_results(comparison), "verdicts": comparison.verdicts}
    for name, frame in frames.items():
        with whole_file(path / f"{name}.csv") as aside:
            frame.to_csv(aside, index=False, na_rep="nan", lineterminator="\n")


def _exact_results(comparison: Comparison) -> "DataFrame":
    """The results with integers as integers, as files have them."""
    import pandas

    return pandas.DataFrame(_rows(comparison), columns=list(RESULTS), dtype=object)


def _rows(comparison: Comparison) -> Iterator[tuple[str, int, str, str, int | float]]:
    for method in comparison.methods:
        for number, replicate in enumerate(method.replicates):
            for split, metrics in replicate.metrics.items():
                for metric, value in metrics.items():
                    yield method.name, number, split, metric, value
