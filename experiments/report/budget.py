"""The section that says what to deploy within a budget, with tables that need no script."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from html import escape

from ..comparison.budgets import Answer, Budget, Difference, answers, budgets_of, family_of
from ..comparison.verdicts import Comparison
from ..cost.axes import AXES, multiple_text
from .budget_data import main_places, method_mean, script_data, summary, told_place
from .splits import number, signed
from .verdict_list import BADGES

INTRODUCTION = (
    "A budget affords every method that costs at most 2 % more. The best single model within it is "
    "the one of lowest validation NLL; of each kind of ensemble the dearest is looked at. Nothing "
    "is chosen on the test images. An ensemble counts as better only if its difference to that "
    "single model holds after Holm's correction for all metrics, splits and kinds of ensemble at "
    "the budget."
)
"""What a budget is and how the answer comes about, on the page and in Markdown."""

KEY = (
    "✓ an ensemble is shown to be better than the best single model; ○ none is; ✗ none is, and the "
    "single model is shown to be better than one. Numbers are ensemble minus single model."
)
"""What the signs of the overview mean."""

_SIGNS = {"better": "✓", "worse": "✗", "undecided": "○", "undefined": "—", "too few": "○"}
_WORDS = {
    "worse": "single model better",
    "undecided": "no ensemble better",
    "undefined": "undefined",
    "too few": "too few replicates",
}
_BADGES = {**BADGES, "too few": "○ too few replicates"}

Answers = Mapping[tuple[str, str], Answer]


def budget_html(comparison: Comparison) -> str:
    """Write what to deploy at each budget: an overview, the script's part, a table a budget.

    Args:
        comparison: With verdicts of every ensemble against every single model.

    Returns:
        HTML, or nothing where there are no such verdicts or no budget can be set.
    """
    data = script_data(comparison)
    if not data:
        return ""
    found = answered(comparison)
    parts = [f"<p>{escape(INTRODUCTION)}</p>"]
    if found:
        parts += [_overview(found), f'<p class="key">{escape(KEY)}</p>']
    # In an attribute, since the page's policy and its tests know of one script only.
    parts.append(f"<div id=\"budget-explorer\" hidden data-budget='{_attribute(data)}'></div>")
    if found:
        parts.append("<h3>Main metrics at each budget <span>MACs per image</span></h3>")
        last = len(found) - 1  # the largest, which the others lead up to, is not folded
        parts += [_budget(*each, unfolded=index == last) for index, each in enumerate(found)]
    return "\n".join(parts)


def answered(comparison: Comparison) -> list[tuple[Budget, Answers]]:
    """List the budgets of the main cost, MACs, with what to deploy at each."""
    if not comparison.against_singles:
        return []
    return [(budget, answers(comparison, budget)) for budget in budgets_of(comparison, AXES[0])]


def overview_rows(found: Sequence[tuple[Budget, Answers]]) -> tuple[list[str], list[list[str]]]:
    """Lay out the overview as plain text, a row a budget and a column a metric.

    Args:
        found: Budgets and their answers.

    Returns:
        The heads and the rows.
    """
    places = _main(found)
    heads = ["Budget", "Best single model", *map(told_place, places), "All metrics"]
    rows = []
    for budget, here in found:
        cells = [" ".join(_deployed(here[p])) if p in here else "—" for p in places]
        single = "none" if budget.single is None else budget.single.name
        rows.append([budget.title, single, *cells, _tally(here)])
    return heads, rows


def _attribute(text: str) -> str:
    """Escape for an attribute in single quotes; JSON is full of double ones."""
    return escape(text, quote=False).replace("'", "&#39;")


def _main(found: Sequence[tuple[Budget, Answers]]) -> list[tuple[str, str]]:
    return main_places(list(dict.fromkeys(place for _, here in found for place in here)))


def _overview(found: Sequence[tuple[Budget, Answers]]) -> str:
    places = _main(found)
    heads = "".join(f'<th scope="col">{escape(told_place(place))}</th>' for place in places)
    rows = []
    for budget, here in found:
        single = "none affordable" if budget.single is None else budget.single.name
        head = (
            f'<th scope="row">{multiple_text(budget.multiple)} '
            f"<small>{escape(budget.axis.text(budget.amount))}; best single: {escape(single)}"
            "</small></th>"
        )
        cells = "".join(_cell(here.get(place)) for place in places)
        rows.append(f"<tr>{head}{cells}<td>{escape(_tally(here))}</td></tr>")
    table = _table("What to deploy", f"Budget</th>{heads}", "All metrics", rows)
    basis = "MACs per image, in multiples of the plain single model"
    return f"<h3>At each budget <span>{basis}</span></h3>\n{table}"


def _table(title: str, heads: str, last: str, rows: Sequence[str]) -> str:
    """Write a table of words; ``heads`` goes on from the first cell of the head."""
    body = "\n".join(rows)
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(title)}">\n'
        f'<table class="scores budgets">\n<thead><tr><th scope="col">{heads}'
        f'<th scope="col">{last}</th></tr></thead>\n<tbody>\n{body}\n</tbody></table>\n</div>'
    )


def _deployed(answer: Answer) -> tuple[str, str]:
    """Name what to deploy, behind its sign, and say why in short."""
    if answer.deploy is None:
        return f"{_SIGNS[answer.outcome]} {_WORDS[answer.outcome]}", ""
    named = f"{_SIGNS[answer.outcome]} {answer.deploy.name}"
    return named, _difference(answer.winners[0]) if answer.winners else _WORDS[answer.outcome]


def _cell(answer: Answer | None) -> str:
    if answer is None:
        return "<td></td>"
    named, why = map(escape, _deployed(answer))
    kind = "undecided" if answer.outcome == "too few" else answer.outcome
    return f'<td class="{kind}"><span class="badge">{named}</span> <small>{why}</small></td>'


def _difference(difference: Difference) -> str:
    verdict = difference.verdict
    if not all(map(math.isfinite, (verdict.estimate, verdict.low, verdict.high))):
        return ""
    return signed((verdict.estimate, verdict.low, verdict.high))[0]


def _tally(here: Answers) -> str:
    """Count by how many metrics, on all splits, ensembles or the single model are ahead."""
    counts = Counter(answer.outcome for answer in here.values())
    total = counts["better"] + counts["worse"] + counts["undecided"]
    if not total:
        return "no claim"
    return f"✓ {counts['better']}, ✗ {counts['worse']} of {total}"


def _budget(budget: Budget, here: Answers, *, unfolded: bool) -> str:
    """Write one budget: a row a metric, a column a family, and what to deploy."""
    title = f"{multiple_text(budget.multiple)} <span>{escape(budget.axis.text(budget.amount))}"
    if budget.single is None:
        text = "No single model is affordable, so there is nothing to hold ensembles against."
        return f"<details><summary>{title}</span></summary>\n<p>{text}</p></details>"
    places = main_places(list(here))
    methods = budget.representatives
    heads = "".join(
        f'<th scope="col">{escape(m.name)}'
        f" <small>{escape(family_of(m) if family_of(m) != m.name else '')}</small></th>"
        for m in methods
    )
    rows = []
    for place in places:
        answer = here[place]
        held = {d.method.name: d for d in answer.differences}
        cells = "".join(_family(held.get(m.name)) for m in methods)
        mean = number(method_mean(budget.single, place))
        rows.append(
            f'<tr><th scope="row">{escape(told_place(place))}</th><td>{mean}</td>{cells}'
            f'<td class="deploy">{escape(answer.deploy.name if answer.deploy else "—")}</td></tr>'
        )
    single = escape(budget.single.name)
    start = f'Metric</th><th scope="col">{single} <small>best single</small></th>{heads}'
    table = _table(f"At {budget.title}", start, "Deploy", rows)
    by = "lowest validation NLL" if budget.by_validation else "dearest; no validation log to choose"
    return (
        f"<details{' open' if unfolded else ''}><summary>{title}; best single model: {single} "
        f"({by})</span></summary>\n<p>{escape(summary(here, budget.single))}</p>\n{table}</details>"
    )


def _family(difference: Difference | None) -> str:
    if difference is None:
        return "<td></td>"
    kind = "undecided" if difference.outcome == "too few" else difference.outcome
    badge = f'<span class="badge">{_BADGES[difference.outcome]}</span>'
    told = "" if difference.outcome == "undefined" else _difference(difference)
    return f'<td class="{kind}">{badge} <small>{told}</small></td>'
