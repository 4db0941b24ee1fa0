"""A method's metrics on bootstrap draws of the images of a split by which it is judged."""

from torch import Tensor

from ...datasets import SplitName
from ...metrics.core.catalogue import METRICS, metrics_with
from ...metrics.statistics.draws import Draws, Evaluation, bootstrap_draws
from ...metrics.suite import MeanEvaluation, OODEvaluation, SplitEvaluation
from ..evaluation.temperatures import JUDGED
from .verdicts import SHIFT, MethodSummary, Replicate

AT_TEMPERATURE = {
    METRICS[name].measure: name
    for name in metrics_with(scope="temperature", way=JUDGED)
    if METRICS[name].measure != "temperature"
}
"""Metric -> the same at the temperature by which methods are compared."""


def judged_splits(method: MethodSummary) -> list[str]:
    """List the splits that a method is judged on, in `splitsplit_order`."""
    replicate = method.replicates[0]
    names = {split: SplitName.parse(split) for split in replicate.values}
    splits = {s for s, name in names.items() if not (name.is_validation or name.is_shift)}
    lengths = {len(replicate.values[split]) for split in ("test", *replicate.shifted)}
    alike = all(set(each.shifted) == set(replicate.shifted) for each in method.replicates)
    if replicate.shifted and alike and len(lengths) == 1:
        splits.add(SHIFT)
    return sorted(splits, key=split_order)


def split_order(split: str) -> tuple[int, str]:
    """The test split first, then its shifted copies, then near and far OOD."""
    return ["test", SHIFT, "near_ood", "far_ood"].index(SplitName.parse(split).kind), split


def draws_of(method: MethodSummary, split: str, draws: int, seed: int) -> Draws:
    """Resample a method on a split, by the metrics that have a direction."""
    scaled = all(each.scaled is not None for each in method.replicates)
    evaluations = [evaluation_of(replicate, split, scaled) for replicate in method.replicates]
    values = method.replicates[0].values
    sizes = [len(values[each]) for each in dict.fromkeys(["test", split]) if each != SHIFT]
    found = bootstrap_draws(
        evaluations, sizes=sizes, draws=draws, seed=seed, networks=method.networks
    )
    return found.only([n for n in found.observed if METRICS[n].higher_is_better is not None])


def evaluation_of(replicate: Replicate, split: str, scaled: bool) -> Evaluation:
    """All metrics of a split; of the test split, where wanted, also those at the temperature."""
    if split == SHIFT:
        return MeanEvaluation([replicate.values[each] for each in replicate.shifted])
    if split != "test":
        return OODEvaluation(replicate.values["test"], replicate.values[split])
    raw = SplitEvaluation(replicate.values["test"])
    if replicate.scaled is None or not scaled:
        return raw
    at_temperature = MeanEvaluation([replicate.scaled])

    def both(weights: Tensor) -> dict[str, Tensor]:
        found = at_temperature(weights)
        return raw(weights) | {name: found[measure] for measure, name in AT_TEMPERATURE.items()}

    return both
