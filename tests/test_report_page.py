"""The rendered report: it escapes everything, stands on its own, and both forms say the same."""

import base64
import dataclasses
import hashlib
import json
import re
from html import unescape

import pytest
from deepens.experiments.comparison.sentences import verdict_sentence
from deepens.experiments.report import build_report, render_page, write_markdown, write_report
from deepens.experiments.report.grid_index import Outcome, index_markdown, index_page
from deepens.experiments.report.render import markdown_text
from report_data import METHODS, Reader, make_comparison, make_examples, without_images
from test_budgets import judged

HOSTILE = "'\"><script>alert(1)</script>&amp;{{ 7 * 7 }}|`*_](x)"
NUMBER = re.compile(r"[+-]?\d[\d,]*\.\d+")


@pytest.fixture(scope="module")
def comparison():
    plain = make_comparison()
    return dataclasses.replace(
        plain, examples=make_examples(), against_singles=judged(plain.methods, 0.01)
    )


@pytest.fixture(scope="module")
def page(comparison) -> str:
    return render_page(comparison)


@pytest.fixture(scope="module")
def folder(comparison, tmp_path_factory):
    path = tmp_path_factory.mktemp("report")
    write_markdown(comparison, path / "report.md")
    return path


@pytest.fixture(scope="module")
def text(folder) -> str:
    return (folder / "report.md").read_text(encoding="utf-8")


@pytest.fixture
def undrawn(monkeypatch):
    """Draw no figures for Markdown, which takes most of the time."""
    monkeypatch.setattr("deepens.experiments.report.render.svg", lambda spec: "<svg/>")


def scripts_of(page: str) -> list[str]:
    return re.findall(r"<script>(.*?)</script>", page, re.DOTALL)


def plain(page: str) -> str:
    """Return what is read, without scripts, drawings and style."""
    body = re.sub(r"<(script|style|svg)\b.*?</\1>", " ", page, flags=re.DOTALL)
    attributes = " ".join(re.findall(r'(?:alt|title|aria-label)="([^"]*)"', body))
    return unescape(re.sub(r"<[^>]+>", " ", body) + attributes)


def test_tags_are_balanced(page):
    body = page
    for script in scripts_of(page):
        body = body.replace(script, "")
    reader = Reader(body)
    assert not reader.wrong
    assert not reader.open


def test_page_refers_to_nothing_outside_itself(page):
    without_scripts = re.sub(r"<script.*?</script>", "", page, flags=re.DOTALL)
    assert "http:" not in without_scripts
    assert "https:" not in without_scripts
    sources = re.findall(r'(?:src|href|data|action|poster)="([^"]*)"', without_scripts)
    assert all(each.startswith(("#", "data:image/png;base64,")) for each in sources)
    assert "url(" not in without_scripts
    assert "@import" not in without_scripts


def test_policy_allows_the_scripts_of_the_page_and_no_evaluated_code(page):
    policy = re.search(r'http-equiv="Content-Security-Policy"\s+content="([^"]*)"', page)[1]
    policy = unescape(policy)
    digests = [
        base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        for script in scripts_of(page)
    ]
    allowed = re.findall(r"'sha256-([^']+)'", policy)
    assert allowed == digests
    assert "default-src 'none'" in policy
    assert "unsafe-eval" not in policy
    assert policy.count("unsafe-inline") == policy.count("style-src 'unsafe-inline'")
    assert not re.search(r"\son\w+=", re.sub(r"<script.*?</script>", "", page, flags=re.DOTALL))


def test_index_leads_to_every_section_and_every_anchor_is_there_once(page):
    links = re.findall(r'<li><a href="#([\w-]+)">', page)
    anchors = re.findall(r'<section id="([\w-]+)"', page)
    assert links == anchors
    assert len(set(anchors)) == len(anchors)


def test_every_chart_has_its_specification_and_a_description_that_can_be_read(page, comparison):
    data = json.loads(re.search(r'id="chart-data">(.*?)</script>', page, re.DOTALL)[1])
    hosts = re.findall(r'data-chart="([\w-]+)" role="img" aria-label="([^"]+)"', page)
    assert [name for name, _ in hosts] == list(data["specs"])
    assert data["methods"] == [name for name, *_ in METHODS]
    for _, description in hosts:
        assert page.count(description) >= 2  # as a label, and to be unfolded


def test_hostile_text_is_escaped_in_both_forms(tmp_path, comparison, undrawn):
    method = dataclasses.replace(comparison.methods[1], name=HOSTILE, description=HOSTILE)
    verdicts = tuple(dataclasses.replace(v, challenger=HOSTILE) for v in comparison.against_singles)
    changed = without_images(
        dataclasses.replace(
            comparison,
            data=HOSTILE,
            caveat=HOSTILE,
            methods=(comparison.methods[0], method, comparison.methods[2]),
            judgements=tuple(
                dataclasses.replace(v, challenger=HOSTILE) for v in comparison.judgements
            ),
            against_singles=verdicts,
            notes=(HOSTILE,),
            configuration=f"{HOSTILE}\n```",
            command=HOSTILE,
            environment={HOSTILE: HOSTILE},
            examples=None,
        )
    )
    page = render_page(changed)
    assert "alert(1)</script>" not in page
    assert len(scripts_of(page)) == 2
    assert HOSTILE in plain(page)
    assert not Reader(re.sub(r"<script.*?</script>", "", page, flags=re.DOTALL)).wrong
    write_markdown(changed, tmp_path / "report.md")
    text = (tmp_path / "report.md").read_text()
    outside = re.sub(r"````.*?````", "", text, flags=re.DOTALL)
    outside = re.sub(r"```.*?```", "", outside, flags=re.DOTALL)
    assert "<script" not in outside
    tables = re.findall(r"(?:^\|.*\n)+", outside, re.MULTILINE)
    for table in tables:
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}) == 1


def test_both_forms_show_the_same_numbers(page, text):
    read = plain(page)
    in_page, in_text = set(NUMBER.findall(read)), set(NUMBER.findall(text))
    assert len(in_text) > 300
    assert in_text <= in_page
    sentences = set(NUMBER.findall(" ".join(re.findall(r"<small>\[.*?\]</small>", page))))
    assert sentences <= in_text


def test_both_forms_have_the_same_answers_sections_and_cautions(page, text, comparison):
    report = build_report(comparison)
    for answer, sentence in report.answers:
        assert sentence in plain(page)
        assert f"**{markdown_text(answer)}** {markdown_text(sentence)}" in text
    for caution in report.cautions:
        assert f"> **Caution.** {markdown_text(caution)}" in text
    assert re.findall(r"^## (.*)$", text, re.MULTILINE)[-len(report.sections) :] == [
        section.title for section in report.sections
    ]


def test_page_has_the_sentence_of_every_verdict(page, comparison):
    for verdict in comparison.judgements:
        assert verdict_sentence(verdict) in plain(page)


def test_every_link_leads_to_a_file_and_every_file_is_linked(text, folder):
    links = re.findall(r"\]\((report_figures/[^)]+)\)", text)
    files = {f"report_figures/{each.name}" for each in (folder / "report_figures").iterdir()}
    assert set(links) == files
    assert all(each.stat().st_size > 500 for each in (folder / "report_figures").iterdir())


def test_figures_of_an_earlier_report_go_and_other_files_stay(tmp_path, comparison, undrawn):
    figures = tmp_path / "report_figures"
    figures.mkdir()
    for name in ("old.svg", "notes.txt"):
        (figures / name).write_text("x")
    write_markdown(
        without_images(dataclasses.replace(comparison, examples=None)), tmp_path / "r.md"
    )
    assert not (figures / "old.svg").exists()
    assert (figures / "notes.txt").exists()


def test_tables_of_markdown_keep_their_columns(text):
    for table in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        counts = {len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}
        assert len(counts) == 1, table[:300]


def test_nothing_becomes_a_mention_an_issue_or_a_formula():
    assert markdown_text("@me #12 $x$ _a_ b_c") == "@<!-- -->me #<!-- -->12 \\$x\\$ \\_a\\_ b_c"


def test_page_is_written_again_alike_and_small(tmp_path, comparison, page):
    write_report(comparison, tmp_path / "report.html")
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == page
    assert [each.name for each in tmp_path.iterdir()] == ["report.html"]
    assert len(page.encode()) < 2_000_000


def test_failed_write_leaves_the_old_report(tmp_path, monkeypatch, comparison):
    path = tmp_path / "report.md"
    path.write_text("old")

    def fail(spec):
        raise OSError("no space left")

    monkeypatch.setattr("deepens.experiments.report.render.svg", fail)
    with pytest.raises(OSError, match="no space left"):
        write_markdown(comparison, path)
    assert path.read_text() == "old"


def test_index_of_a_grid_escapes_and_links_reports_that_there_are():
    outcomes = [
        Outcome("a b", HOSTILE, "resnet18", warnings=(HOSTILE,)),
        Outcome("c", "digits", "vit", error=HOSTILE),
    ]
    page = index_page(outcomes)
    assert "<script" not in page
    assert HOSTILE in Reader(page).text
    assert re.findall(r'href="([^"]+)"', page) == ["a%20b/report.html", "results.csv"]
    text = index_markdown(outcomes)
    assert "(a%20b/report.html)" in text
    assert "<script" not in text


def test_no_number_has_dozens_of_digits_or_a_negative_zero(comparison, tmp_path, undrawn):
    sizes = (3e27, 1e-60, -0.0, 1e-300, 1e9, -3e27, 1e-8)
    verdicts = tuple(
        dataclasses.replace(v, estimate=v.estimate * k, low=-abs(v.low * k), high=abs(v.high * k))
        for v, k in zip(comparison.judgements, sizes, strict=True)
    )
    counts = ("n", "n_id", "n_ood", "n_gradients")
    methods = tuple(
        dataclasses.replace(
            method,
            replicates=tuple(
                dataclasses.replace(
                    each,
                    metrics={
                        split: {name: v if name in counts else v * size for name, v in held.items()}
                        for split, held in each.metrics.items()
                    },
                )
                for each in method.replicates
            ),
        )
        for method, size in zip(comparison.methods, (1e-60, 3e27, 1.0), strict=True)
    )
    examples = dataclasses.replace(comparison.examples, nll=comparison.examples.nll * 3e27)
    made = dataclasses.replace(
        comparison,
        methods=methods,
        judgements=verdicts,
        against_singles=verdicts,
        examples=examples,
    )
    write_markdown(made, tmp_path / "report.md")
    for said in (
        (tmp_path / "report.md").read_text("utf-8"),
        Reader(plain(render_page(made))).text,
    ):
        assert not re.findall(r"\d{9,}|-0\.0+\b", said)
