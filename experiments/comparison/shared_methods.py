"""Which methods of a comparison hold the same networks, and what a reader must know of that."""

from collections.abc import Sequence

from .formatting import listed
from .verdicts import MethodSummary


def shared_methods(methods: Sequence[MethodSummary]) -> list[list[MethodSummary]]:
    """Group the methods that have members in common, as their runs say, the smallest first.

    Cascades, which run the members of an ensemble by definition, are left out.
    """
    groups: dict[tuple[str, ...], list[MethodSummary]] = {}
    for method in methods:
        if not method.over and all(method.networks):
            groups.setdefault(tuple(sorted(method.networks)), []).append(method)
    return [
        sorted(group, key=lambda method: method.cost.macs)
        for group in groups.values()
        if len(group) > 1
    ]


def sharing_notes(methods: Sequence[MethodSummary]) -> list[str]:
    """Say which methods share members, and what follows from it."""
    notes = []
    for group in shared_methods(methods):
        names = listed([method.name for method in group])
        notes.append(
            f"In each replicate {names} share members: the networks of a smaller one are the first "
            "of a larger one's, and were trained once. Their differences are judged in pairs of "
            "replicates. The training cost of each is what training it alone takes."
        )
    return notes


def shares_with(method: MethodSummary, others: Sequence[MethodSummary]) -> list[str]:
    """Name those of other methods that have members in common with a method."""
    names = {*method.networks} - {""}
    return [each.name for each in others if each is not method and names & {*each.networks}]
