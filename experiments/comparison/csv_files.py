"""The files ``results.csv`` and ``verdicts.csv`` of a comparison."""

from pathlib import Path

from ...datasets.files import whole_file
from .verdicts import RESULT_COLUMNS, Comparison


def write_tables(comparison: Comparison, path: Path) -> None:
    """Write ``results.csv`` and ``verdicts.csv``, each whole or not at all.

    Args:
        comparison: What was measured and concluded.
        path: The comparison's directory.
    """
    import pandas

    # As objects, so that counts stay integers beside numbers that are none.
    results = pandas.DataFrame(comparison.rows(), columns=list(RESULT_COLUMNS), dtype=object)
    for name, frame in (("results", results), ("verdicts", comparison.verdicts)):
        with whole_file(path / f"{name}.csv") as aside:
            frame.to_csv(aside, index=False, na_rep="nan", lineterminator="\n")
