"""Several candidates measured in turns, so that what else the machine does meets them alike."""

import json
import os
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from ..store.environment import describe_environment


@dataclass(frozen=True)
class Candidate:
    """What is measured.

    Args:
        name: Its name in the table.
        measure: Does one round's work and returns the seconds that a unit of it took.
    """

    name: str
    measure: Callable[[], float]


@dataclass(frozen=True)
class Spread:
    """The middle of several numbers, and how far apart they are.

    Args:
        median: The middle one.
        least: The least.
        most: The largest.
    """

    median: float
    least: float
    most: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """Sum up numbers.

        Args:
            values: At least one.

        Returns:
            Their median, minimum and maximum.
        """
        return cls(statistics.median(values), min(values), max(values))

    def __str__(self) -> str:
        return f"{self.median:.3g} ({self.least:.3g} to {self.most:.3g})"


@dataclass(frozen=True)
class Measurement:
    """One candidate's rounds beside the baseline's.

    Args:
        name: Of the candidate.
        seconds: A unit's, in each round.
        baseline: The baseline's, in the same rounds.
    """

    name: str
    seconds: tuple[float, ...]
    baseline: tuple[float, ...]

    @property
    def slowdown(self) -> Spread:
        """The candidate's time over the baseline's of the same round."""
        pairs = zip(self.seconds, self.baseline, strict=True)
        return Spread.of([own / other for own, other in pairs])

    @property
    def speedup(self) -> Spread:
        """The baseline's time over the candidate's of the same round."""
        pairs = zip(self.seconds, self.baseline, strict=True)
        return Spread.of([other / own for own, other in pairs])


def compare(
    candidates: Sequence[Candidate], *, rounds: int, warmup: int = 1
) -> dict[str, Measurement]:
    """Measure candidates in turns: forwards in one round, backwards in the next.

    Args:
        candidates: The first is the baseline.
        rounds: Rounds that count.
        warmup: Rounds before them that do not.

    Returns:
        A measurement of each candidate, by name.

    Raises:
        ValueError: If there is no candidate, two share a name, or no round counts.

    Example:
        >>> from deepens.experiments.benchmarks.harness import Candidate, compare
        >>> slow, fast = Candidate("slow", lambda: 2.0), Candidate("fast", lambda: 0.5)
        >>> found = compare([slow, fast], rounds=3)
        >>> str(found["fast"].speedup)
        '4 (4 to 4)'
    """
    names = [candidate.name for candidate in candidates]
    if not names or len(set(names)) < len(names):
        raise ValueError(f"candidates must have one or more different names, got {names}")
    if rounds < 1 or warmup < 0:
        raise ValueError(f"rounds must be >= 1 and warmup >= 0, got {rounds} and {warmup}")
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for number in range(warmup + rounds):
        turn = candidates if number % 2 == 0 else tuple(reversed(candidates))
        for candidate in turn:
            found = candidate.measure()
            if number >= warmup:
                seconds[candidate.name].append(found)
    baseline = tuple(seconds[names[0]])
    return {name: Measurement(name, tuple(seconds[name]), baseline) for name in names}


def table(rows: Sequence[Sequence[str]]) -> str:
    """Lay out rows in columns.

    Args:
        rows: The first is the heading.

    Returns:
        Lines, the first column left-aligned and the others right-aligned.

    Example:
        >>> from deepens.experiments.benchmarks.harness import table
        >>> print(table([("what", "ms"), ("a", "10")]))
        what  ms
        a     10
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for first, *others in rows:
        cells = [cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True)]
        lines.append("  ".join([first.ljust(widths[0]), *cells]).rstrip())
    return "\n".join(lines)


def setting() -> str:
    """The hardware, the versions and what else the machine does, in one line."""
    found = describe_environment()
    versions = ", ".join(
        f"{name} {found['versions'][name]}"
        for name in ("python", "torch", "torchvision", "lightning")
        if name in found["versions"]
    )
    load = f"{os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "unknown"
    return (
        f"{found['processor']}, {os.cpu_count()} cores, "
        f"GPU {found['gpu'] or 'none'}, load {load} before; {versions}"
    )


def verdict(
    claim: str,
    found: int | float,
    *,
    least: int | float | None = None,
    most: int | float | None = None,
) -> str:
    """Say whether a bound is kept.

    Args:
        claim: What is bounded.
        found: The number.
        least: Lower bound, if any.
        most: Upper bound, if any.

    Returns:
        One line that ends with kept or BROKEN.

    Example:
        >>> from deepens.experiments.benchmarks.harness import verdict
        >>> verdict("memory in MB", 150.0, most=200)
        'memory in MB: 150, at most 200: kept'
    """
    bounds, kept = [], True
    if least is not None:
        bounds.append(f"at least {least:g}")
        kept &= found >= least
    if most is not None:
        bounds.append(f"at most {most:g}")
        kept &= found <= most
    return f"{claim}: {found:.4g}, {', '.join(bounds)}: {'kept' if kept else 'BROKEN'}"


def write(out: str | None, measurements: Sequence[Measurement], **others: object) -> None:
    """Write every round as JSON, if asked.

    Args:
        out: The file, or None.
        measurements: What was measured.
        others: What else belongs to it.
    """
    if out is not None:
        content = {
            "environment": describe_environment(),
            "measurements": [asdict(each) for each in measurements],
            **others,
        }
        Path(out).write_text(json.dumps(content, indent=2) + "\n")
