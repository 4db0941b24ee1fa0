"""The section on the frontier: its tables show the numbers of the analysis, and escape names."""

import dataclasses
import re

import pytest
from deepens.experiments.comparison.frontier import conditional_diversity, frontier_gaps, robustness
from deepens.experiments.comparison.gains import gain_table
from deepens.experiments.report.analysis import (
    FEW_SINGLES,
    analysis_html,
    gap_notes,
    gap_tables,
)
from deepens.experiments.report.markdown import write_markdown
from deepens.experiments.report.page import render_page
from deepens.experiments.report.splits import directed_label
from test_report import METHODS, Reader, cells_of, heads_of, make_comparison, without_images

WIDER = (*METHODS, ("wide-9", 9_000_000, 0.925), ("large", 20_000_000, 0.95))


@pytest.fixture(scope="module")
def comparison():
    return make_comparison(images=60, replicates=4, methods=WIDER)


@pytest.fixture(scope="module")
def html(comparison):
    return analysis_html(comparison)


def test_cells_of_gaps_are_estimate_interval_and_sign(html, comparison):
    deep = next(each for each in frontier_gaps(comparison) if each.method.name == "deep")
    titles = {
        "test": "Test images",
        "shift": "Shift (mean of 3)",
        "near_ood": "Near OOD: letters",
        "far_ood": "Far OOD: noise",
    }
    for kind, title in titles.items():
        name = f"{title}, gap at equal MACs"
        column = heads_of(html, name).index("deep")
        table = html[html.index(name) :].partition("<tbody>")[2].partition("</tbody>")[0]
        rows = re.findall(r"<tr>(.*?)</tr>", table)
        gaps = [gap for gap in deep.gaps if gap.kind == kind]
        assert len(rows) == len(gaps)
        for row, gap in zip(rows, gaps, strict=True):
            assert f">{directed_label(gap.metric)}</th>" in row
            cell = re.findall(r"<td.*?>(.*?)</td>", row)[column - 1]
            cell = cell.replace("<small>", " ").replace("</small>", "")
            sign, *numbers = re.fullmatch(r"(.) (\S+) \[(\S+), (\S+)\]", cell).groups()
            assert sign == {"better": "✓", "worse": "✗", "undecided": "○"}[gap.outcome]
            expected = (gap.found.estimate, gap.found.low, gap.found.high)
            assert [float(n) for n in numbers] == pytest.approx(expected, abs=5.1e-5)
    assert {gap.outcome for gap in deep.gaps} > {"better"}


def test_ensemble_beyond_the_single_models_is_named_and_not_extrapolated(html, comparison):
    (note,) = gap_notes(frontier_gaps(comparison))
    assert note == (
        "large is beyond the single models: 20 M MACs an image, and the dearest, wide-9, takes "
        "9 M; add one as dear."
    )
    assert note in Reader(html).text
    table = html[html.index("gap at equal MACs") :].partition("</table>")[0]
    assert ">large<" not in table


def test_gain_correlations_stand_beside_their_nulls(html, comparison):
    row = next(row for row in gain_table(comparison).rows if row.loss == "nll")
    cells = cells_of(html, "Correlation of gains", "deep")
    found = (row.found.ensemble_big, row.found.ensemble_ensemble, row.found.big_big)
    told = [f"{each.estimate:.3f} [{each.low:.3f}, {each.high:.3f}]" for each in found]
    assert cells == ["wide", "NLL", *told, "2 and 2"]


def test_too_few_bases_are_counted():
    page = analysis_html(make_comparison(images=30, replicates=3, methods=WIDER))
    assert "at least 4 replicates of single" in page
    assert "Correlation of gains" not in page


def test_robustness_tells_how_many_single_models_and_warns_of_few(html, comparison):
    found = robustness(comparison)
    assert "line of 3 single models, mean of 3 shifted splits" in html
    assert FEW_SINGLES in Reader(html).text
    (cell, count) = cells_of(html, "Accuracy beyond the line", "large")
    assert count == "4"
    large = next(each for each in found.ensembles if each.method.name == "large")
    assert float(cell.split()[0]) == pytest.approx(large.estimate, abs=5.1e-5)
    two = make_comparison(images=30, replicates=2)
    assert "A line needs &gt;= 3 single models" in analysis_html(two)


def test_diversity_is_told_by_the_pooled_answer(html, comparison):
    found = next(e for e in conditional_diversity(comparison) if e.method.name == "deep")
    cells = cells_of(html, "Diversity by the pooled answer", "deep")
    halves = (*found.disagreement, *found.mutual_information)
    means = [sum(values) / len(values) for values in halves]
    assert [float(cell.split(" ± ")[0]) for cell in cells] == pytest.approx(means, abs=5.1e-5)
    assert all(" ± " in cell for cell in cells)


def test_comparison_without_ensembles_or_single_models_has_no_section():
    for chosen in (METHODS[:1], METHODS[1:2]):
        assert analysis_html(make_comparison(images=10, replicates=2, methods=chosen)) == ""


def test_hostile_names_are_escaped_and_the_section_stays_small():
    hostile = '"><script>alert(1)</script>&amp;'
    methods = tuple((f"m{i}", 10**6 * (i + 2), 0.9 + i / 100) for i in range(4))
    wide = (f"wide{hostile}", 4_000_000, 0.92)
    chosen = (METHODS[0], wide, *methods, (hostile, 4_000_000, 0.9))
    comparison = make_comparison(images=30, replicates=4, methods=chosen)
    page = analysis_html(comparison)
    reader = Reader(page)
    # Gaps, both names in both rows of gains, diversity, and wide beside the other ensemble.
    assert "<script" not in page
    assert reader.text.count(hostile) >= 4 + 2 * 2 + 1 + 2
    assert not reader.wrong
    assert not reader.open
    assert len(page.encode()) < 40_000


def test_section_is_in_the_page_and_its_gaps_in_the_markdown(tmp_path, comparison, undrawn):
    bare = dataclasses.replace(without_images(comparison), examples=None)
    page = render_page(bare)
    assert '<section id="analysis" aria-labelledby="analysis-title">' in page
    assert "Against the frontier" in page
    path = tmp_path / "report.md"
    write_markdown(bare, path)
    text = path.read_text(encoding="utf-8").partition("## Against the frontier")[2]
    for title, heads, rows in gap_tables(bare, frontier_gaps(bare)):
        assert f"### {title}, gap at equal MACs" in text
        assert f"| {' | '.join(heads)} |" in text
        for row in rows:
            assert f"| {' | '.join(row)} |" in text
    assert "- large is beyond the single models: 20 M MACs an image" in text


@pytest.fixture
def undrawn(monkeypatch):
    """Leave the figures out, which take most of the time."""
    from deepens.experiments.report import figures, markdown

    names = [name for name in vars(figures) if name.endswith(("_panels", "_panel"))]
    for name in names:
        monkeypatch.setattr(figures, name, lambda comparison: iter(()))
    monkeypatch.setattr(
        markdown, "_FIGURES", tuple((*each[:2], lambda _: iter(())) for each in markdown._FIGURES)
    )
