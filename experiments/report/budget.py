"""What to deploy within a budget, as tables that need no script."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from ..comparison.budgets import (
    CANNOT_TELL,
    TOO_FEW,
    Answer,
    Budget,
    Difference,
    answers,
    budgets_of,
)
from ..comparison.formatting import number
from ..comparison.single_models import family_of
from ..comparison.verdicts import Comparison
from ..cost.axes import AXES, multiple_text
from .budget_text import listed_summary, main_places, method_mean, place_label
from .explorer import explorer
from .model import Cell, Explorer, Folded, Row, Table, Text
from .verdict_view import difference_text

INTRODUCTION = (
    "The best affordable method per metric, with effect size and confidence interval. A budget "
    "affords every method that costs at most 2 % more. The best single model within it is the one "
    "of lowest validation NLL; each kind of ensemble is represented by its most expensive "
    "affordable method. Nothing is chosen on the test images. An ensemble is better only if its "
    "difference to that single model holds after Holm's correction for all metrics, splits and "
    "kinds of ensemble at the budget."
)
"""What a budget is and how the answer comes about."""

KEY = (
    "✓ an ensemble is shown to be better than the best single model; ○ none is; ✗ none is, and the "
    "single model is shown to be better than one. Numbers are ensemble minus single model."
)
"""What the signs of the overview mean."""

MARKS = {TOO_FEW: "undecided", CANNOT_TELL: "undecided"}
_WORDS = {
    "worse": "single model better",
    "undecided": "no ensemble better",
    "undefined": "undefined",
    TOO_FEW: "too few replicates",
    CANNOT_TELL: "cannot tell on this data",
}

Answers = Mapping[tuple[str, str], Answer]


def budget_blocks(comparison: Comparison) -> Iterator[Text | Table | Explorer | Folded]:
    """Yield an overview, the explorer, and one folded table per budget in MACs."""
    data = explorer(comparison)
    if data is None:
        return
    yield Text(INTRODUCTION)
    found = [(each, answers(comparison, each)) for each in budgets_of(comparison, AXES[0])]
    if found:
        yield _overview(found)
        yield Text(KEY, "key")
    yield data
    for index, (budget, here) in enumerate(found):
        # The largest, which the others lead up to, is not folded.
        yield _budget(budget, here, unfolded=index == len(found) - 1)


def _overview(found: Sequence[tuple[Budget, Answers]]) -> Table:
    places = main_places(list(dict.fromkeys(place for _, here in found for place in here)))
    rows = []
    for budget, here in found:
        single = "none affordable" if budget.single is None else budget.single.name
        note = f"{budget.axis.text(budget.amount)}; best single: {single}"
        cells = (*(_answer(here.get(place)) for place in places), Cell(_tally(here)))
        rows.append(Row(multiple_text(budget.multiple), cells, note=note))
    heads = ("Budget", *map(place_label, places), "All metrics")
    where = "MACs per image, in multiples of the plain single model"
    return Table("At each budget", where, heads, tuple(rows), kind="words")


def _answer(answer: Answer | None) -> Cell:
    """Name what to deploy, and say why in short."""
    if answer is None:
        return Cell("")
    mark = MARKS.get(answer.outcome, answer.outcome)
    if answer.deploy is None:
        return Cell(_WORDS[answer.outcome], mark=mark)
    why = (
        difference_text(answer.winners[0].verdict)[0] if answer.winners else _WORDS[answer.outcome]
    )
    return Cell(answer.deploy.name, why, mark)


def _tally(here: Answers) -> str:
    """Count by how many metrics, on all splits, ensembles or the single model are ahead."""
    counts = Counter(answer.outcome for answer in here.values())
    total = counts["better"] + counts["worse"] + counts["undecided"]
    return f"✓ {counts['better']}, ✗ {counts['worse']} of {total}" if total else "no claim"


def _budget(budget: Budget, here: Answers, *, unfolded: bool) -> Folded:
    """Make the table of one budget: a row per metric, a column per family, and what to deploy."""
    title, amount = multiple_text(budget.multiple), budget.axis.text(budget.amount)
    if budget.single is None:
        text = "No single model is affordable, so there is nothing to compare ensembles with."
        return Folded(title, amount, (Text(text),))
    methods = budget.representatives
    rows = []
    for place in main_places(list(here)):
        answer = here[place]
        differences = {d.method.name: d for d in answer.differences}
        deployed = answer.deploy.name if answer.deploy else "—"
        cells = (
            Cell(number(method_mean(budget.single, place))),
            *(_difference(differences.get(method.name)) for method in methods),
            Cell(deployed, mark=""),
        )
        rows.append(Row(place_label(place), cells))
    names = (m.name + ("" if family_of(m) == m.name else f" ({family_of(m)})") for m in methods)
    heads = ("Metric", f"{budget.single.name} (best single model)", *names, "Deploy")
    table = Table("", "", heads, tuple(rows), label=f"At {budget.title}", kind="words")
    by = "lowest validation NLL" if budget.by_validation else "no validation log: most expensive"
    note = f"{amount}; best single model: {budget.single.name} ({by})"
    return Folded(title, note, (Text(listed_summary(here, budget.single)), table), unfolded)


def _difference(difference: Difference | None) -> Cell:
    if difference is None:
        return Cell("")
    words = {TOO_FEW: "too few replicates", "undecided": "not shown"}
    word = words.get(difference.outcome, difference.outcome)
    mark = MARKS.get(difference.outcome, difference.outcome)
    return Cell(word, difference_text(difference.verdict)[0], mark)
