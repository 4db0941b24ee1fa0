"""The report's page on diversity: its numbers are the runs', and what is missing is said."""

import dataclasses
import re
import statistics

import pytest
from deepens.experiments.comparison.verdicts import Comparison, MethodSummary, Replicate
from deepens.experiments.cost.measurement import Cost
from deepens.experiments.report import render_page, write_markdown
from deepens.experiments.report.diversity import (
    LACKING,
    decomposition_panels,
    diversity_tables,
    lacks,
)
from deepens.experiments.report.splits import directed_label

# Method -> mean member NLL, Jensen gap and similarity on test images; single models have neither.
METHODS = {"single": (0.8, 0.0, None), "deep": (0.8, 0.2, 0.31), "repelled": (0.9, 0.25, 0.17)}
OOD = ("near_ood/letters", "near_ood/letters.encoded", "far_ood/noise")
SHIFTS = ("shift/blur/1", "shift/blur/2")


def split_metrics(name: str, split: str, number: int) -> dict[str, float]:
    member_nll, gap, similarity = METHODS[name]
    several = similarity is not None
    step = 0.01 * number + 0.1 * len(split)
    metrics = {
        "disagreement": step if several else 0.0,
        "mutual_information": 0.5 * step if several else 0.0,
        "pairwise_kl": 2 * step if several else 0.0,
    }
    if several:
        metrics |= {"input_gradient_similarity": similarity - step / 10, "n_gradients": 50.0}
        metrics |= {"cosine_similarity": 0.9 - step / 10}
    if "_ood/" in split:
        return metrics | {"n_id": 200.0, "n_ood": 70.0, "auroc_entropy": 0.9}
    member_nll += step
    ambiguity = gap / 4
    if several:
        metrics |= {"normalized_disagreement": 2 * step, "double_fault": step / 3}
        metrics |= {"q_statistic": 0.4 - step, "error_correlation": 0.3 - step}
    return metrics | {
        "n": 200.0,
        "accuracy": 0.9,
        "nll": member_nll - gap,
        "mean_member_nll": member_nll,
        "jensen_gap": gap,
        "brier": 0.3 - ambiguity,
        "mean_member_brier": 0.3,
        "brier_ambiguity": ambiguity,
    }


def make_comparison(*names: str) -> Comparison:
    methods = tuple(
        MethodSummary(
            name,
            f"the {name} method",
            Cost(1000, 100, 1.25, 0.5, 2**20, None),
            tuple(
                Replicate(
                    f"{name}-{number}",
                    {s: split_metrics(name, s, number) for s in ("test", *SHIFTS, *OOD)},
                    {},
                    (),
                )
                for number in range(2)
            ),
        )
        for name in names
    )
    return Comparison("toy", "", methods, (), 10, (), "", {}, "deepens compare")


def changed(comparison: Comparison, change) -> Comparison:
    """Change the metrics of every replicate."""
    methods = [
        dataclasses.replace(
            method,
            replicates=tuple(
                dataclasses.replace(
                    replicate,
                    metrics={s: change(method.name, m) for s, m in replicate.metrics.items()},
                )
                for replicate in method.replicates
            ),
        )
        for method in comparison.methods
    ]
    return dataclasses.replace(comparison, methods=tuple(methods))


@pytest.fixture(scope="module")
def comparison() -> Comparison:
    return make_comparison(*METHODS)


@pytest.fixture(scope="module")
def markdown(comparison, tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("report") / "report.md"
    write_markdown(comparison, path)
    return path.read_text()


def plain(text: str) -> str:
    """Undo Markdown's escapes."""
    return re.sub(r"\\(.)", r"\1", text)


def section(page: str) -> str:
    found = re.search(r'<section id="diversity".*?</section>', page, re.DOTALL)
    return found[0] if found else ""


def test_each_kind_of_split_has_a_table_of_the_ensembles_and_of_what_it_can_tell(comparison):
    tables = {table.group.title: table for table in diversity_tables(comparison)}
    assert list(tables) == [
        "Test images",
        "Shift (mean of 2)",
        "Near OOD: letters",
        "Near OOD: letters (encoded)",
        "Far OOD: noise",
    ]
    seen = ("disagreement", "pairwise_kl", "cosine_similarity", "input_gradient_similarity")
    differ = ("disagreement", "normalized_disagreement", "pairwise_kl", "cosine_similarity")
    differ += ("double_fault", "q_statistic", "error_correlation", "input_gradient_similarity")
    losses = ("mean_member_nll", "jensen_gap", "nll")
    losses += ("mean_member_brier", "brier_ambiguity", "brier")
    for title, table in tables.items():
        assert [method.name for method in table.methods] == ["deep", "repelled"]
        assert table.metrics == (seen if "OOD" in title else differ + losses)
        assert not lacks(table)
    assert tables["Far OOD: noise"].basis == (
        "n = 70 OOD images, input gradients on 50, 2 replicates"
    )
    assert tables["Shift (mean of 2)"].basis == (
        "n = 200 images in each, input gradients on 50 in each, 2 replicates"
    )


def expected_cell(name: str, metric: str, splits: tuple[str, ...]) -> str:
    values = [
        statistics.mean(split_metrics(name, split, number)[metric] for split in splits)
        for number in range(2)
    ]
    return f"{statistics.mean(values):.4f} ± {statistics.stdev(values):.4f}"


@pytest.mark.parametrize(
    ("title", "splits"),
    [("Test images", ("test",)), ("Shift (mean of 2)", SHIFTS), ("Far OOD: noise", OOD[2:])],
)
def test_both_forms_of_the_report_tell_mean_and_spread_of_the_runs(
    comparison, markdown, title, splits
):
    table = next(t for t in diversity_tables(comparison) if t.group.title == title)
    page = section(render_page(comparison))
    html = page[page.index(f"<h3>{title}, diversity") :].partition("</table>")[0]
    text = re.sub(r"<[^>]*>", "", html)
    below = plain(markdown).partition("## Diversity")[2].partition(f"### {title}\n")[2]
    below = below.partition("###")[0]
    rows = {
        row.split("|")[1].strip(): row.split("|")[2:-1] for row in below.splitlines() if "|" in row
    }
    for metric in table.metrics:
        cells = [expected_cell(name, metric, splits) for name in ("deep", "repelled")]
        assert all(cell in text for cell in cells)
        assert [cell.strip() for cell in rows[directed_label(metric)]] == cells


def test_arrows_lead_from_the_members_loss_to_the_ensembles(comparison):
    test, shift = decomposition_panels(comparison)
    assert test.title == "What pooling takes off the members' NLL · Test images"
    # len("test") is 4, and the mean number of a replicate is 0.5.
    assert "deep: members 1.2050, less a Jensen gap of 0.2000, is 1.0050" in test.alternative
    assert "repelled: members 1.3050, less a Jensen gap of 0.2500, is 1.0550" in test.alternative
    assert "single, a single model: 1.2050" in test.alternative
    assert "Shift" in shift.title


def test_what_was_not_measured_is_said_with_the_remedy(comparison):
    assert LACKING not in section(render_page(comparison))

    def change(name, metrics):
        return {k: v for k, v in metrics.items() if name != "deep" or "gradient" not in k}

    older = changed(comparison, change)
    page = section(render_page(older))
    assert LACKING in page
    assert page.count("not measured") >= len(diversity_tables(older)) == 5


def test_runs_of_an_earlier_version_have_a_table_of_disagreement_and_no_figure(comparison):
    known = {"n", "n_id", "n_ood", "accuracy", "nll", "brier", "disagreement"}
    known |= {"mutual_information", "auroc_entropy"}

    def change(name, metrics):
        return {k: v for k, v in metrics.items() if k in known}

    older = changed(comparison, change)
    assert {table.metrics for table in diversity_tables(older)} == {("disagreement",)}
    assert not list(decomposition_panels(older))
    assert LACKING in section(render_page(older))


def test_single_models_alone_have_no_page_of_diversity(tmp_path):
    comparison = make_comparison("single")
    assert diversity_tables(comparison) == []
    assert section(render_page(comparison)) == ""
    write_markdown(comparison, tmp_path / "report.md")
    assert "Diversity" not in (tmp_path / "report.md").read_text()


def test_how_members_differ_is_never_called_best(comparison):
    page = section(render_page(comparison))
    assert page
    assert "★" not in page
