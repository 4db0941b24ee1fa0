"""What to deploy within a budget, as tables that need no script."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from ..comparison.budgets import Answer, Budget, Difference, answers, budgets_of
from ..comparison.formatting import number
from ..comparison.sentences import difference_text
from ..comparison.single_models import family_of
from ..comparison.verdicts import Comparison
from ..cost.axes import AXES, multiple_text
from .budget_text import NONE_AFFORDABLE, listed_summary, main_places, place_label, place_values
from .explorer import explorer
from .model import Cell, Explorer, Folded, Row, Table, Text
from .splits import mean_and_spread

INTRODUCTION = (
    "The best affordable method per metric, with effect size and confidence interval. A budget "
    "affords every method that costs at most {tolerance:g} % more. The best single model within it "
    "is the one of lowest validation NLL; each kind of ensemble is represented by its most "
    "expensive affordable method. Nothing is chosen on the test images. An ensemble is better "
    "only where its verdict against that single model says so, as everywhere after Holm's "
    "correction for all metrics and splits of the two methods; that several kinds of ensemble are "
    "looked at is not corrected for."
)
KEY = (
    "✓ an ensemble is shown to be better than the best single model; ○ none is; ✗ none is, and "
    "the single model is shown to be better than one. Numbers are the ensemble's advantage over "
    "the single model, positive where it is better."
)
"""What the signs of the overview mean."""

_WHY = {"worse": "single model better", "not shown": "no ensemble better"}

Answers = Mapping[tuple[str, str], Answer]


def budget_blocks(comparison: Comparison) -> Iterator[Text | Table | Explorer | Folded]:
    """Yield an overview, the explorer, and one folded table per budget in MACs."""
    data = explorer(comparison)
    if data is None:
        return
    yield Text(INTRODUCTION.format(tolerance=100 * comparison.cost_tolerance))
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
        single = budget.single.name if budget.single else "none affordable"
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
    why = _WHY.get(answer.outcome, answer.outcome)
    if answer.deploy is None:
        return Cell(why, mark=answer.outcome)
    if answer.winners:
        why = " ".join(difference_text(answer.winners[0].verdict))
    return Cell(answer.deploy.name, why, answer.outcome)


def _tally(here: Answers) -> str:
    """Count by how many metrics, on all splits, ensembles or the single model are ahead."""
    counts = Counter(answer.outcome for answer in here.values())
    total = counts["better"] + counts["worse"] + counts["not shown"]
    return f"✓ {counts['better']}, ✗ {counts['worse']} of {total}" if total else "no claim"


def _budget(budget: Budget, here: Answers, *, unfolded: bool) -> Folded:
    """Make the table of one budget: a row per metric, a column per family, and what to deploy."""
    title, amount = multiple_text(budget.multiple), budget.axis.text(budget.amount)
    single, methods = budget.single, budget.representatives
    if single is None:
        return Folded(title, amount, (Text(NONE_AFFORDABLE),))
    rows = []
    for place in main_places(list(here)):
        answer = here[place]
        differences = {d.method.name: d for d in answer.differences}
        cells = (
            Cell(number(mean_and_spread(place_values(single, place))[0])),
            *(_difference(differences.get(method.name)) for method in methods),
            Cell(answer.deploy.name if answer.deploy else "—"),
        )
        rows.append(Row(place_label(place), cells))
    names = (m.name + ("" if family_of(m) == m.name else f" ({family_of(m)})") for m in methods)
    heads = ("Metric", f"{single.name} (best single model)", *names, "Deploy")
    table = Table("", "", heads, tuple(rows), label=f"At {budget.title}", kind="words")
    by = "lowest validation NLL" if budget.by_validation else "no validation log: most expensive"
    note = f"{amount}; best single model: {single.name} ({by})"
    return Folded(title, note, (Text(listed_summary(here, single)), table), unfolded)


def _difference(difference: Difference | None) -> Cell:
    if difference is None:
        return Cell("")
    note = " ".join(filter(None, difference_text(difference.verdict)))
    return Cell(difference.outcome, note, difference.outcome)
