"""The report in Markdown: it says what the page says, and its figures are there as files."""

import dataclasses
import math
import re
import xml.etree.ElementTree as ElementTree
from html import unescape

import pytest
import torch
from deepens.experiments.comparison.examples import choose_examples
from deepens.experiments.comparison.sentences import verdict_sentence
from deepens.experiments.comparison.verdicts import Comparison, MethodSummary, Replicate, Verdict
from deepens.experiments.cost.measurement import Cost
from deepens.experiments.report import write_markdown
from deepens.experiments.report.markdown import CAPTIONS
from deepens.experiments.report.tables import OOD_SCORES
from deepens.metrics.core.catalogue import METRICS
from deepens.metrics.samples import sample_values
from PIL import Image

CLASSES = ("a|b", "<i>c</i>", "d_e [f](http://g) `h`")
IMAGES = 60
ACCURACIES = {"single": (0.80, 0.82), "deep": (0.90, 0.93)}


def make_logits(seed: int, images: int, members: int) -> torch.Tensor:
    return torch.randn(members, images, 3, generator=torch.Generator().manual_seed(seed))


def make_replicate(name: str, number: int, accuracy: float) -> Replicate:
    seed, members = 10 * number + len(name), 1 if name == "single" else 2
    targets = torch.arange(IMAGES) % 3
    metrics = {
        split: {"n": IMAGES, "accuracy": accuracy - 0.01 * severity, "nll": 1.0, "ece": 0.1}
        for severity, split in enumerate(("test", "shift/blur/1", "shift/blur/2"))
    }
    gap = 0.2 if members > 1 else 0.0
    for held in metrics.values():
        held |= {"mutual_information": gap, "mean_member_nll": 1.0 + gap, "jensen_gap": gap}
    metrics["far_ood/noise"] = {"n_id": IMAGES, "n_ood": 40, "auroc_entropy": 0.7}
    values = {
        "test": sample_values(make_logits(seed, IMAGES, members), targets),
        "far_ood/noise": sample_values(make_logits(seed + 5, 40, members)),
    }
    log = tuple({"epoch": e, "train/loss": 2.0 / e, "val/nll": 1.5 / e} for e in (1.0, 2.0, 3.0))
    return Replicate(f"{name}-{number}", metrics, values, log)


def make_verdict(split: str, metric: str, outcome: str, sentence: str) -> Verdict:
    interval = (0.1, 0.05, 0.15)
    return Verdict(split, metric, "deep", "single", *interval, 2, 2, 60, outcome, 0.04, 6, sentence)


def make_comparison(pictures: bool = True) -> Comparison:
    targets = torch.arange(IMAGES) % 3
    examples = choose_examples(
        torch.zeros(IMAGES, 1, 8, 8, dtype=torch.uint8),
        targets,
        classes=CLASSES,
        runs=("single-0",),
        predictions=[(n, [make_logits(len(n), IMAGES, 1)]) for n in ACCURACIES],
    )
    return Comparison(
        data="toy",
        caveat="Toy data | only.",
        methods=tuple(
            MethodSummary(
                name,
                f"the {name} method",
                Cost(macs, macs // 10, 1.25, 0.5, 2**20, None if name == "deep" else 12.0),
                tuple(make_replicate(name, r, a) for r, a in enumerate(ACCURACIES[name])),
            )
            for name, macs in zip(ACCURACIES, (1000, 2000), strict=True)
        ),
        judgements=(
            make_verdict(
                "test", "accuracy", "better", "Accuracy (test): deep wins (+0.1, [0, 1])."
            ),
            make_verdict(
                "test", "nll", "undecided", "NLL (test): nobody *wins* <script>x</script>."
            ),
            make_verdict("far_ood/noise", "auroc_entropy", "worse", "AUROC (far_ood/noise): lost."),
        ),
        draws=77,
        notes=("A note with | a bar.",),
        configuration="data: toy\nnote: '```'\n",
        environment={"versions": {"torch": "2.6"}, "gpu": None, "threads": 2},
        command="deepens compare --data toy",
        examples=examples if pictures else None,
        cautions=("40 of 200 are copies.",),
        data_notes=("Sent by @someone, see #12, for $5 or $6.",),
        verdict_notes=("No verdict on packed.",),
        picture_notes=("No pictures.",),
    )


def plain(text: str) -> str:
    """Undo the escapes, as a reader of the rendered text would see it."""
    return unescape(re.sub(r"\\([\\`*|~_()\[\]$])", r"\1", text.replace("<!-- -->", "")))


@pytest.fixture(scope="module")
def comparison() -> Comparison:
    return make_comparison()


@pytest.fixture(scope="module")
def folder(tmp_path_factory, comparison):
    folder = tmp_path_factory.mktemp("report")
    write_markdown(comparison, folder / "report.md")
    return folder


@pytest.fixture(scope="module")
def text(folder) -> str:
    return (folder / "report.md").read_text(encoding="utf-8")


def rows_after(text: str, heading: str) -> list[list[str]]:
    """Return the cells of the first table below a heading, its head first."""
    below = text.partition(f"{heading}\n")[2]
    lines = re.search(r"(?:^\|.*\n?)+", below, re.MULTILINE)[0].splitlines()
    cells = [[plain(c.strip()) for c in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
    return [cells[0], *cells[2:]]


def test_every_verdict_sentence_note_and_caution_is_told(text, comparison):
    told = plain(text)
    for verdict in comparison.judgements:
        assert verdict_sentence(verdict) in told
    for expected in (
        comparison.caveat,
        *comparison.notes,
        *comparison.cautions,
        *comparison.data_notes,
        *comparison.verdict_notes,
        *comparison.picture_notes,
        OOD_SCORES,
        *CAPTIONS.values(),
        "Only 2 of the 3 replicates",
        "77 draws",
    ):
        assert expected in told


def test_answer_comes_first(text):
    head = text.partition("## ")[0]
    assert "**Cannot tell on this data.** deep against single" in head
    assert "**Caution.** 40 of 200 are copies." in head


def test_every_link_leads_to_a_file_and_every_file_is_linked(text, folder):
    linked = re.findall(r"!\[[^\n]*\]\((report_figures/[^)]+)\)", text)
    assert len(linked) == len(set(linked)) > 10
    there = {f"report_figures/{file.name}" for file in (folder / "report_figures").iterdir()}
    assert set(linked) == there
    for name in linked:
        if name.endswith(".svg"):
            assert ElementTree.parse(folder / name).getroot().tag.endswith("svg")
        else:
            Image.open(folder / name).verify()


def test_every_kind_of_figure_is_there(folder):
    kinds = {re.sub(r"-\d+$", "", f.stem) for f in (folder / "report_figures").iterdir()}
    assert kinds == {
        "quality", "reliability", "risk-coverage", "ood", "roc", "severity", "training", "examples",
        "diversity",
    }  # fmt: skip


def test_every_figure_is_described_with_numbers(text):
    alternatives = re.findall(r"!\[([^\n]*)\]\(report_figures/[^)]+\)", text)
    for alternative in alternatives:
        assert re.search(r"\d", alternative)
        assert not re.search(r"(?<!\\)[\[\]]", alternative)


def test_quality_table_holds_mean_and_spread_and_marks_the_best(text):
    results = text.partition("## Results")[2]
    head, accuracy, nll, *_ = rows_after(results, "### Test images")
    assert head == ["Metric", "single", "deep"]
    assert accuracy == ["Accuracy\N{NO-BREAK SPACE}↑", "0.8100 ± 0.0141", "★ 0.9150 ± 0.0212"]
    assert nll[1:] == ["1.0000 ± 0.0000"] * 2  # all alike: there is no best


def test_shift_is_shown_by_severity_too(text):
    results = text.partition("## Results")[2]
    assert rows_after(results, "### Shift, severity 2 (mean of 1)")[1][2] == "★ 0.8950 ± 0.0212"


def test_costs_are_told_and_what_was_not_measured_is_named(text):
    head, single, deep = rows_after(text, "## Cost")
    assert dict(zip(head, single, strict=True))["MACs per image"] == "1,000"
    assert dict(zip(head, single, strict=True))["Training time (s)"] == "12.0"
    assert dict(zip(head, deep, strict=True))["Training time (s)"] == "not measured"


def test_pictures_are_told_by_number_with_what_the_methods_say(text, comparison):
    examples = comparison.examples
    head, *rows = rows_after(text, "### The hardest test images")
    assert head == ["Picture", "Test image", "True class", "Mean NLL", "single", "deep"]
    for row, position in zip(rows, examples.hardest, strict=True):
        assert row[:3] == [
            str(position + 1), str(int(examples.index[position])),
            CLASSES[examples.targets[position]],
        ]  # fmt: skip
        said = CLASSES[examples.predicted[1, position]]
        assert row[5].startswith(f"{said} ({examples.confidence[1, position]:.2f})")
    for method in examples.methods:
        _, *rows = rows_after(text, f"### The most overconfident errors of {method}")
        assert all(row[4].rpartition(" ")[0] != row[2] for row in rows)


def test_tables_keep_their_columns_whatever_the_names_hold(text):
    for table in re.findall(r"(?:^\|.*\n?)+", text, re.MULTILINE):
        bars = {len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}
        assert len(bars) == 1


def test_nothing_that_was_measured_becomes_markup(text):
    outside = re.sub(r"^(`{3,}).*?^\1$", "", text, flags=re.MULTILINE | re.DOTALL)
    assert "<script" not in outside
    assert "<i>" not in outside
    assert re.findall(r"(?<!!)\[[^\]]*\]\(", outside) == ["[results.csv]("]


def test_code_fences_are_longer_than_any_in_the_configuration(text):
    assert "````yaml\ndata: toy\nnote: '```'\n````" in text
    assert '"torch": "2.6"' in text
    assert "deepens compare --data toy" in text


def test_nothing_becomes_a_mention_an_issue_or_a_formula(text):
    outside = re.sub(r"^(`{3,}).*?^\1$", "", text, flags=re.MULTILINE | re.DOTALL)
    assert not re.search(r"@\w|#\d|(?<!\\)\$", outside)
    assert "@<!-- -->someone, see #<!-- -->12, for \\$5 or \\$6." in outside


def test_columns_of_words_stand_at_the_left(text):
    below = text.partition("### The hardest test images\n")[2]
    assert "\n| ---: | ---: | --- | ---: | --- | --- |\n" in below
    assert "| Method | What it is | Replicates |\n| --- | --- | ---: |" in text


def test_sections_come_in_the_order_of_the_page(text):
    titles = re.findall(r"^## (.*)$", text, re.MULTILINE)
    wanted = ["Verdict, metric by metric", "Results", "Quality against cost", "Calibration"]
    assert titles[:4] == wanted
    ends = ["The images themselves", "Training", "Cost", "Data and how to reproduce"]
    assert titles[-5:-1] == ends


def test_what_is_undefined_is_told_once_a_split(tmp_path, comparison):
    lacking = make_verdict("far_ood/noise", "auroc_mutual_information", "undefined", "No number.")
    bare = dataclasses.replace(
        comparison, methods=(), examples=None, judgements=(*comparison.judgements, lacking)
    )
    write_markdown(bare, tmp_path / "report.md")
    text = (tmp_path / "report.md").read_text()
    assert "No number." not in text
    assert "1 comparison without a verdict, since one network has no mutual information." in text


def test_metrics_are_explained(text):
    assert METRICS["accuracy"].description in text


def test_figures_of_an_earlier_report_go_and_other_files_stay(tmp_path):
    figures = tmp_path / "report_figures"
    figures.mkdir()
    for name in ("quality-99.svg", "old.png", "notes.txt"):
        (figures / name).write_text("old")
    bare = make_comparison(pictures=False)
    quick = [dataclasses.replace(m, replicates=(Replicate("x", {}, {}),)) for m in bare.methods]
    bare = dataclasses.replace(bare, methods=tuple(quick))
    write_markdown(bare, tmp_path / "report.md")
    there = {file.name for file in figures.iterdir()}
    assert not there & {"quality-99.svg", "old.png", "examples.png"}
    assert "notes.txt" in there
    before = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    write_markdown(bare, tmp_path / "report.md")
    assert before == {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}


def test_report_that_cannot_be_written_leaves_the_old_one(tmp_path, monkeypatch, comparison):
    (tmp_path / "report.md").write_text("old")

    def fail(examples):
        raise RuntimeError("no memory")

    monkeypatch.setattr("deepens.experiments.report.markdown.pictures.contact_sheet", fail)
    with pytest.raises(RuntimeError, match="no memory"):
        write_markdown(comparison, tmp_path / "report.md")
    assert [file.name for file in tmp_path.iterdir()] == ["report.md"]
    assert (tmp_path / "report.md").read_text() == "old"


def test_comparison_without_methods_still_becomes_a_report(tmp_path, comparison):
    empty = dataclasses.replace(comparison, methods=(), judgements=(), examples=None)
    write_markdown(empty, tmp_path / "report.md")
    assert "no verdict was reached" in (tmp_path / "report.md").read_text()


def test_undefined_values_are_called_so(tmp_path, comparison):
    method = comparison.methods[0]
    replicate = method.replicates[0]
    lacking = dataclasses.replace(replicate, metrics={"test": {"accuracy": math.nan}}, values={})
    alone = dataclasses.replace(method, replicates=(lacking,))
    write_markdown(
        dataclasses.replace(comparison, methods=(alone,), judgements=(), examples=None),
        tmp_path / "report.md",
    )
    text = (tmp_path / "report.md").read_text()
    assert rows_after(text.partition("## Results")[2], "### Test images")[1][1] == "undefined"
    assert not re.search(r"\bnan\b", text)
