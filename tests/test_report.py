"""The HTML report: what it says is what was measured, and it stands on its own."""

import base64
import dataclasses
import hashlib
import math
import re
import statistics
from html import escape
from html.parser import HTMLParser

import pytest
import torch
from deepens.experiments.comparison.examples import Examples, choose_examples
from deepens.experiments.comparison.sentences import verdict_sentence
from deepens.experiments.comparison.verdicts import Comparison, MethodSummary, Replicate, Verdict
from deepens.experiments.cost.measurement import Cost
from deepens.experiments.report import figures, render_page, write_report
from deepens.experiments.report.markdown import CAPTIONS
from deepens.experiments.report.splits import severity_groups, split_groups, split_title
from deepens.experiments.report.tables import OOD_SCORES
from deepens.experiments.report.verdict_list import scoreboard
from deepens.metrics.core.catalogue import METRICS, metrics_with
from deepens.metrics.suite import SampleValues

COUNTS = {"n", "n_id", "n_ood", "n_gradients"}
TIMES = "\N{MULTIPLICATION SIGN}"
OOD = ("near_ood/letters", "far_ood/noise")
SHIFTS = ("shift/gaussian_noise/1", "shift/gaussian_noise/3", "shift/blur/3")
# Name, MACs, accuracy: wide is the single model of deep's cost.
METHODS = (("single", 1_000_000, 0.90), ("deep", 4_000_000, 0.93), ("wide", 4_016_000, 0.92))
# How unsure a method is of the images of each kind of split.
DOUBTS = {"test": 0.2, "near_ood": 0.7, "far_ood": 1.5}


def make_values(images: int, accuracy: float, seed: int, *, doubt: float) -> SampleValues:
    labelled = doubt < 0.5
    generator = torch.Generator().manual_seed(seed)
    unsure = torch.rand(images, generator=generator, dtype=torch.float64) ** (1 / doubt)
    confidence = 1 - 0.9 * unsure
    entropy = -(confidence * confidence.log()) + (1 - confidence) * 2.0
    right = torch.rand(images, generator=generator) < confidence * accuracy + 0.05
    return SampleValues(
        nll=-confidence.log() if labelled else None,
        brier=(1 - confidence) ** 2 if labelled else None,
        correct=right if labelled else None,
        confidence=confidence,
        entropy=entropy,
        mutual_information=0.1 * entropy,
        disagreement=0.1 * entropy,
    )


def add_diversity(metrics: dict[str, dict[str, float]], *, several: bool) -> None:
    """Add how members differ, with decompositions that hold; of one network, that they do not."""
    for split, held in metrics.items():
        gap = 0.11 if several else 0.0
        held |= {"mutual_information": gap / 2, "pairwise_kl": 2 * gap}
        if several:
            held |= {"input_gradient_similarity": 0.23, "n_gradients": 20.0}
            held |= {"cosine_similarity": 0.9}
        if not split.partition("/")[0].endswith("ood"):
            held |= {
                "mean_member_nll": held["nll"] + gap,
                "jensen_gap": gap,
                "mean_member_brier": held["brier"] + gap / 3,
                "brier_ambiguity": gap / 3,
            }


def make_replicate(
    name: str, accuracy: float, seed: int, images: int, splits: tuple[str, ...]
) -> Replicate:
    generator = torch.Generator().manual_seed(seed)
    noise = 0.004 * torch.randn(15 * len(splits), generator=generator, dtype=torch.float64)
    draw = iter(noise.tolist())
    metrics: dict[str, dict[str, float]] = {}
    for split in splits:
        if split.partition("/")[0].endswith("ood"):
            continue
        level = accuracy - (0.06 * int(split[-1]) if split.startswith("shift") else 0.0)
        metrics[split] = {
            "n": float(images),
            "accuracy": level + next(draw),
            "nll": 3 * (1 - level) + next(draw),
            "brier": 1.4 * (1 - level) + next(draw),
            "ece": 0.03 + next(draw),
            "aurc": 0.02 + next(draw),
            "augrc": 0.01 + next(draw),
            "coverage_at_5_risk": 0.9 + next(draw),
            "confidence": 0.9 + next(draw),
            "disagreement": 0.05 + next(draw),
        }
    for split in splits:
        if not split.partition("/")[0].endswith("ood"):
            continue
        metrics[split] = {
            "n_id": float(images),
            "n_ood": images / 2,
            **{
                f"{measure}_{score}": accuracy - 0.05 + next(draw)
                for measure in ("auroc", "aupr_out", "aupr_in", "fpr95")
                for score in ("msp", "entropy", "mutual_information")
            },
            "confidence": 0.6 + next(draw),
        }
    add_diversity(metrics, several=name not in ("single", "wide"))
    values = {
        split: make_values(images, accuracy, seed, doubt=DOUBTS[kind])
        for split in splits
        if (kind := split.partition("/")[0]) in DOUBTS
    }
    directory = f"runs/{name}-{seed}"
    return Replicate(directory=directory, metrics=metrics, values=values, log=make_log(seed))


def make_log(seed: int, epochs: int = 5) -> tuple[dict[str, int | float], ...]:
    return tuple(
        {
            "epoch": epoch,
            "train/loss": 2 / epoch + seed / 1e4,
            "val/nll": 1.5 / epoch,
            "val/accuracy": 1 - 0.5 / epoch,
        }
        for epoch in range(1, epochs + 1)
    )


def make_examples(methods=METHODS, images: int = 40) -> Examples:
    """Pictures of noise, with class names that are long."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (images, 1, 8, 8), generator=generator, dtype=torch.uint8)
    logits = 3 * torch.randn(len(methods), 2, images, 3, generator=generator)
    return choose_examples(
        pixels,
        torch.arange(images) % 3,
        classes=("7", "golden retriever", "Pembroke Welsh corgi with a long name"),
        runs=[f"runs/{name}" for name, *_ in methods],
        predictions=[(name, [here]) for (name, *_), here in zip(methods, logits, strict=True)],
    )


def make_verdict(split: str, metric: str, estimate: float, half: float, images: int) -> Verdict:
    info = METRICS[metric]
    low, high = estimate - half, estimate + half
    outcome = "undecided"
    if low > 0 or high < 0:
        outcome = "better" if (estimate > 0) == info.higher_is_better else "worse"
    return Verdict(
        split=split,
        metric=metric,
        challenger="deep",
        baseline="wide",
        estimate=estimate,
        low=low,
        high=high,
        agreeing=3,
        replicates=3,
        n=images,
        outcome=outcome,
        p_value=0.5 if outcome == "undecided" else 0.01,
        compared=20,
    )


def make_comparison(
    images: int = 200, replicates: int = 3, methods=METHODS, splits=("test", *SHIFTS, *OOD)
) -> Comparison:
    summaries = tuple(
        MethodSummary(
            name=name,
            description=f"the {name} method",
            cost=Cost(
                macs=macs,
                parameters=macs // 100,
                latency_ms_batch1=macs / 1e6,
                latency_ms_batch256=macs / 2e7,
                peak_memory_bytes=macs * 8,
                training_seconds=None if name == "wide" else macs / 5e4,
            ),
            replicates=tuple(
                make_replicate(name, accuracy, 100 * index + replicate, images, splits)
                for replicate in range(replicates)
            ),
        )
        for index, (name, macs, accuracy) in enumerate(methods)
    )
    verdicts = (
        make_verdict("test", "accuracy", 0.010, 0.004, images),
        make_verdict("test", "nll", -0.030, 0.010, images),
        make_verdict("test", "ece", 0.004, 0.002, images),
        make_verdict("test", "aurc", -0.001, 0.003, images),
        make_verdict("near_ood/letters", "auroc_entropy", 0.02, 0.01, images),
        make_verdict("far_ood/noise", "fpr95_entropy", -0.02, 0.03, images),
        make_verdict("shift", "accuracy", -0.02, 0.01, images),
    )
    return Comparison(
        data="digits",
        caveat="This data cannot tell strong methods apart: use it to try the tool out.",
        methods=summaries,
        judgements=verdicts,
        draws=400,
        notes=("wide is matched within 0.4 % of deep's MACs",),
        configuration="data: digits\nreplicates: 3\n",
        environment={"versions": {"torch": "2.6.0"}, "git": "abc123", "wall time": "12 s"},
        command="deepens compare --data digits",
        cautions=("40 of 200 test images are copies of training images.",),
        data_notes=("3 images are left out as unreadable.",),
        verdict_notes=("No verdict on packed: nothing costs the same.",),
        picture_notes=("There are no pictures of test images: the file is missing.",),
    )


def without_images(comparison: Comparison) -> Comparison:
    """Drop the per-image values, whose figures take most of the time."""
    methods = tuple(
        dataclasses.replace(
            method,
            replicates=tuple(
                dataclasses.replace(replicate, values={}) for replicate in method.replicates
            ),
        )
        for method in comparison.methods
    )
    return dataclasses.replace(comparison, methods=methods)


@pytest.fixture
def undrawn(monkeypatch):
    """Leave the figures out, which take most of the time."""
    for name in [name for name in vars(figures) if name.endswith(("_panels", "_panel"))]:
        monkeypatch.setattr(figures, name, lambda comparison: iter(()))


@pytest.fixture(scope="module")
def comparison() -> Comparison:
    return make_comparison()


@pytest.fixture(scope="module")
def page(comparison) -> str:
    return render_page(comparison)


class Reader(HTMLParser):
    """Collects text and alternative texts, and remembers every tag that was not closed in order."""

    VOID = frozenset({"meta", "img", "line", "circle", "br", "input"})

    def __init__(self, page: str):
        super().__init__()
        self.open: list[str] = []
        self.wrong: list[str] = []
        self.texts: list[str] = []
        self.alternatives: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attrs):
        if tag not in self.VOID:
            self.open.append(tag)
        if tag == "img":
            self.alternatives.append(dict(attrs).get("alt") or "")

    def handle_startendtag(self, tag, attrs):
        pass

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.wrong.append(tag)

    def handle_data(self, data):
        self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())


def cells_of(page: str, title: str, method: str) -> list[str]:
    """Return the text of one table row."""
    table = page[page.index(f"<h3>{title} <span>") :].partition("</table>")[0]
    row = next(row for row in table.split("<tr>") if f">{method}</th>" in row)
    return [Reader(cell).text for cell in re.findall(r"<td.*?</td>", row)]


def heads_of(page: str, title: str) -> list[str]:
    table = page[page.index(f"<h3>{title} <span>") :].partition("</thead>")[0]
    return [Reader(cell).text for cell in re.findall(r"<th .*?</th>", table)]


def test_every_verdict_sentence_appears(page, comparison):
    text = Reader(page).text
    for verdict in comparison.judgements:
        assert verdict_sentence(verdict) in text


def test_caveat_notes_command_configuration_and_environment_are_shown(page, comparison):
    text = Reader(page).text
    for expected in (comparison.caveat, *comparison.notes, comparison.command, "versions.torch"):
        assert expected in text
    for kind in ("cautions", "data_notes", "verdict_notes", "picture_notes"):
        assert getattr(comparison, kind)[0] in text
    assert "replicates: 3" in text
    assert "abc123" in text
    assert text.index(comparison.caveat) < text.index(verdict_sentence(comparison.judgements[0]))


def test_each_note_stands_where_it_belongs(page, comparison):
    assert f"</strong> {comparison.cautions[0]}</p>" in page.partition("<main>")[0]
    for kind, anchor in (
        ("data_notes", "reproduce"),
        ("verdict_notes", "verdict"),
        ("picture_notes", "images"),
        ("notes", "cost"),
    ):
        section = page[page.index(f'<section id="{anchor}"') :].partition("</section>")[0]
        assert f"<li>{escape(getattr(comparison, kind)[0])}</li>" in section


def test_figures_say_what_bars_bands_and_thin_lines_are(page):
    for anchor, names in (
        ("quality", ["quality"]),
        ("calibration", ["reliability"]),
        ("selective", ["risk-coverage"]),
        ("ood", ["ood", "roc"]),
        ("shift", ["severity"]),
        ("training", ["training"]),
    ):
        section = page[page.index(f'<section id="{anchor}"') :].partition("</section>")[0]
        for name in names:
            assert CAPTIONS[name] in Reader(section).text


def test_ood_section_says_which_scores_its_figures_rest_on(page):
    section = page[page.index('<section id="ood"') :].partition("</section>")[0]
    assert OOD_SCORES in Reader(section).text


def test_tags_are_balanced(page):
    reader = Reader(page)
    assert not reader.wrong
    assert not reader.open


def test_page_refers_to_nothing_outside_itself(page):
    assert "http:" not in page
    assert "https:" not in page
    assert page.count("<script") == 1
    assert "@import" not in page
    assert all(source.startswith("data:") for source in re.findall(r'src="([^"]*)"', page))
    assert not re.findall(r"url\(|\bsrcset\b|<link|<base", page)


def test_policy_allows_the_script_of_the_page_and_no_other(page):
    (policy,) = re.findall(r'Content-Security-Policy"\s+content="([^"]*)"', page)
    (script,) = re.findall(r"<script>(.*?)</script>", page, flags=re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    allowed = dict(part.strip().split(" ", 1) for part in policy.split(";"))
    assert allowed == {
        "default-src": "'none'",
        "style-src": "'unsafe-inline'",
        "script-src": f"'sha256-{digest}'",
        "img-src": "data:",
    }


@pytest.mark.slow
def test_page_is_small_for_realistic_numbers_of_images():
    names = ("single", "deep", "wide", "packed", "lora", "deep-small")
    methods = tuple((name, 10**6 * (i + 1), 0.9 + i / 100) for i, name in enumerate(names))
    assert len(render_page(make_comparison(images=10_000, methods=methods)).encode()) < 5_000_000


def test_hostile_text_is_escaped():
    hostile = '"><script>alert(1)</script>&amp;'
    methods = ((hostile, 1000, 0.9), *METHODS[1:])
    plain = make_comparison(50, 1, methods, splits=("test", OOD[0]))
    verdict = dataclasses.replace(plain.judgements[0], challenger=hostile)
    page = render_page(
        dataclasses.replace(
            plain,
            data=hostile,
            caveat=hostile,
            notes=(hostile,),
            cautions=(hostile,),
            data_notes=(hostile,),
            verdict_notes=(hostile,),
            picture_notes=(hostile,),
            judgements=(verdict,),
            configuration=hostile,
            environment={hostile: hostile},
            command=hostile,
        )
    )
    reader = Reader(page)
    assert page.count("<script") == 1
    assert not reader.wrong
    assert reader.text.count(hostile) >= 12


@pytest.mark.parametrize(
    ("metric", "title"),
    [
        ("accuracy", "Test images"),
        ("nll", "Test images"),
        ("confidence", "Test images, without a direction"),
    ],
)
@pytest.mark.parametrize("method", range(3))
def test_cells_are_mean_and_standard_deviation_over_replicates(
    page, comparison, metric, title, method
):
    summary = comparison.methods[method]
    values = [replicate.metrics["test"][metric] for replicate in summary.replicates]
    expected = f"{statistics.mean(values):.4f} ± {statistics.stdev(values):.4f}"
    heads = [head.rstrip(" \N{NO-BREAK SPACE}↑↓") for head in heads_of(page, title)]
    column = heads.index(METRICS[metric].label) - 1
    assert expected in cells_of(page, title, summary.name)[column]


def test_shift_row_is_the_unweighted_mean_over_shifted_splits(page, comparison):
    deep = comparison.methods[1]
    values = [
        statistics.mean(replicate.metrics[split]["accuracy"] for split in SHIFTS)
        for replicate in deep.replicates
    ]
    expected = f"{statistics.mean(values):.4f} ± {statistics.stdev(values):.4f}"
    assert any(expected in cell for cell in cells_of(page, "Shift (mean of 3)", "deep"))


@pytest.mark.parametrize("title", ["Test images", "Test images, without a direction"])
def test_best_is_marked_once_in_directed_columns_and_never_in_others(page, title):
    heads = heads_of(page, title)[1:]
    rows = [cells_of(page, title, name) for name, _, _ in METHODS]
    for head, *cells in zip(heads, *rows, strict=True):
        directed = head.endswith(("↑", "↓"))
        assert directed == (title == "Test images")
        assert sum("★" in cell for cell in cells) == int(directed), head


def test_detection_has_a_row_a_score_and_method_and_the_best_method_of_each_score(page, comparison):
    title = "Near OOD: letters"
    assert heads_of(page, title)[:2] == ["Score", "Method"]
    table = page[page.index(f"<h3>{title} <span>") :].partition("</table>")[0]
    rows = [row for row in table.split("<tr")[2:]]
    # Three scores, of which mutual information says nothing of the two single models.
    assert len(rows) == 3 * len(METHODS) - 2
    values = [
        replicate.metrics[OOD[0]]["aupr_in_entropy"]
        for replicate in comparison.methods[1].replicates
    ]
    cells = [Reader(cell).text for cell in re.findall(r"<td.*?</td>", rows[len(METHODS) + 1])]
    assert f"{statistics.mean(values):.4f} ± {statistics.stdev(values):.4f}" in cells[2]
    assert table.count("★") == 2 * 4  # four measures of the scores that several methods have


def long_rows(page: str) -> list[list[str]]:
    """Return the cells of the table of all results."""
    table = page[page.index('<table id="results-table">') :].partition("</table>")[0]
    body = table[table.index("<tbody>") :]
    return [
        [Reader(cell).text for cell in re.findall(r"<td.*?</td>", row)]
        for row in body.split("<tr>")[1:]
    ]


def test_long_table_holds_every_method_split_and_compared_metric_once(page, comparison):
    rows = long_rows(page)
    keys = [tuple(row[:3]) for row in rows]
    assert len(set(keys)) == len(keys)
    for split, title in (("test", "Test images"), *((s, split_title(s)) for s in OOD)):
        for method in comparison.methods:
            # Measures of diversity and the like have tables of their own.
            measured = (
                set(method.replicates[0].metrics[split])
                - COUNTS
                - set(metrics_with(role="diversity"))
            )
            if method.name != "deep":
                measured = {key for key in measured if not key.endswith("_mutual_information")}
            shown = {
                metric for name, where, metric in keys if (name, where) == (method.name, title)
            }
            assert len(shown) == len(measured)


def test_long_table_shows_the_interval_beside_the_ensemble_that_was_judged(page, comparison):
    judged = {(row[0], row[1], row[2].rstrip(" ↑↓")): row for row in long_rows(page)}
    titles = {"shift": f"Shift (mean of {len(SHIFTS)})"}
    assert "shift" in {verdict.split for verdict in comparison.judgements}
    for verdict in comparison.judgements:
        title = titles.get(verdict.split, split_title(verdict.split))
        place = (title, METRICS[verdict.metric].label)
        *_, difference, outcome = judged[verdict.challenger, *place]
        assert difference == f"{verdict.estimate:+.4f} [{verdict.low:+.4f}, {verdict.high:+.4f}]"
        assert outcome.endswith(verdict.outcome)
        assert judged[verdict.baseline, *place][-2:] == ["", ""]


def test_means_over_ood_sets_leave_out_what_was_encoded_a_second_time():
    sets = ("near_ood/a", "near_ood/b", "near_ood/a.encoded", "near_ood/b.encoded", "far_ood/c")
    groups = split_groups(without_images(make_comparison(splits=("test", *sets))))
    assert [(group.title, group.splits) for group in groups if len(group.splits) > 1] == [
        ("Near OOD (mean of 2)", sets[:2]),
        ("Near OOD (mean of 2, encoded)", sets[2:4]),
    ]
    alone = [group.splits[0] for group in groups if len(group.splits) == 1]
    assert sorted(alone) == sorted(("test", *sets))


def test_severities_are_means_over_corruptions(page):
    groups = severity_groups(make_comparison(images=10, replicates=1))
    assert [group.splits for group in groups] == [SHIFTS[:1], SHIFTS[1:]]
    assert "Shift, severity 3 (mean of 2)" in Reader(page).text


def test_index_leads_to_every_section_that_is_there(page):
    links = re.findall(r'<li><a href="#(\w+)">', page)
    assert links == re.findall(r'<section id="(\w+)"', page)
    assert links[:3] == ["verdict", "results", "quality"]


def test_scoreboard_has_a_row_a_split_and_a_column_a_pair(comparison):
    other = dataclasses.replace(comparison.judgements[0], challenger="packed")
    board = Reader(scoreboard((*comparison.judgements, other))).text
    assert "deep against wide packed against wide" in board
    holm = "after Holm's correction"
    assert f"✓✗ mixed 2 better, 1 worse, 1 undecided; 3 {holm} ✓ better 1 better; 1 {holm}" in board
    assert "Shift ✗ worse 1 worse" in board


def test_number_of_images_and_of_replicates_are_stated(page):
    assert "n = 200 images, 3 replicates" in Reader(page).text
    assert "n = 200 test images and 100 OOD images, 3 replicates" in Reader(page).text
    assert "n = 200 images in each, 3 replicates" in Reader(page).text
    assert "the deep method; 3 replicates" in Reader(page).text


def test_undefined_metrics_are_called_undefined():
    plain = without_images(make_comparison(images=50))
    first, *others = plain.methods
    lacking = tuple(
        dataclasses.replace(
            replicate,
            metrics={**replicate.metrics, "test": {**replicate.metrics["test"], "nll": math.nan}},
        )
        for replicate in first.replicates
    )
    verdict = dataclasses.replace(
        plain.judgements[1],
        estimate=math.nan,
        low=math.nan,
        high=math.nan,
        outcome="undefined",
    )
    page = render_page(
        dataclasses.replace(
            plain,
            methods=(dataclasses.replace(first, replicates=lacking), *others),
            judgements=(verdict, *plain.judgements),
        )
    )
    text = Reader(page).text
    assert "undefined" in cells_of(page, "Test images", "single")
    assert "NLL is undefined here." in text
    assert page.count('<svg class="bar"') == len(plain.judgements)
    assert not re.search(r"\bnan\b", text)
    assert not any("nan" in alternative for alternative in Reader(page).alternatives)


def test_what_is_undefined_shows_no_number_and_is_told_once_a_split(undrawn):
    plain = without_images(make_comparison(images=50))
    lacking = [
        dataclasses.replace(
            plain.judgements[4],
            metric=f"{measure}_mutual_information",
            estimate=0.4321,
            low=0.3,
            high=0.5,
            outcome="undefined",
        )
        for measure in ("auroc", "fpr95")
    ]
    changed = dataclasses.replace(plain, judgements=(*plain.judgements, *lacking))
    page = render_page(changed)
    reader = Reader(page)
    assert "0.4321" not in page
    assert "mutual information: no verdict" not in reader.text
    said = "2 comparisons without a verdict, since one network has no mutual information."
    assert reader.text.count(said) == 1
    assert page.count('<svg class="bar"') == len(plain.judgements)
    cells = [row for row in long_rows(page) if row[-1].endswith("undefined")]
    assert [row[-2] for row in cells] == ["", ""]
    assert scoreboard(changed.judgements) == scoreboard(plain.judgements)


def test_titles_of_splits_hold_single_spaces_and_filters_name_them_exactly(undrawn):
    split = "near_ood/od-d-  -x- "
    assert split_title(split) == "Near OOD: od-d- -x-"
    page = render_page(without_images(make_comparison(20, 1, splits=("test", split))))
    assert '<option value="Near OOD: od-d- -x-">Near OOD: od-d- -x-</option>' in page
    assert "Near OOD: od-d- -x-" in {row[1] for row in long_rows(page)}


def test_outcomes_and_numbers_of_images_have_what_sorts_them(page):
    ranks = dict(re.findall(r'<td class="(better|undecided|worse)" data-v="(\d)"', page))
    assert ranks == {"better": "0", "undecided": "1", "worse": "2"}
    counts = dict(re.findall(r'data-v="(\d+)">((?:\d+ \S )?200)</td>', page))
    assert counts == {"200": "200", "400": f"2 {TIMES} 200", "600": f"3 {TIMES} 200"}


def test_costs_are_shown_relative_to_the_single_model(page):
    cells = cells_of(page, "Cost of each method", "deep")
    assert cells[0] == "4 M \u00d7 4.00"
    assert cells[4] == "30.5 MiB \u00d7 4.00"
    assert cells_of(page, "Cost of each method", "wide")[-1] == "not measured"


def test_energy_and_training_compute_have_columns_where_they_are_known(page, undrawn):
    assert not {"Training MACs", "Training energy"} & set(heads_of(page, "Cost of each method"))
    assert "There is no energy here" in page
    known = {
        "single": {"training_macs": 2 * 10**15, "training_joules": 122.0, "joules_per_image": 0.02},
        "deep": {"training_joules": 5.2e4},
    }
    comparison = make_comparison(20, 1)
    methods = tuple(
        dataclasses.replace(
            method, cost=dataclasses.replace(method.cost, **known.get(method.name, {}))
        )
        for method in comparison.methods
    )
    page = render_page(dataclasses.replace(comparison, methods=methods))
    title = "Cost of each method"
    heads = heads_of(page, title)
    assert heads[-3:] == ["Training MACs", "Training energy", "Energy per image"]
    assert cells_of(page, title, "single")[-3:] == [
        *("2 P \u00d7 1.00", "122 J \u00d7 1.00", "20 mJ \u00d7 1.00")
    ]
    assert cells_of(page, title, "deep")[-3:] == [
        *("not counted", "52 kJ \u00d7 426.23", "not measured")
    ]
    assert "There is no energy here" not in page
    assert "also for other work" in page


def test_quality_is_drawn_against_energy_and_training_compute_where_they_are_known():
    comparison = make_comparison(20, 1, splits=("test",))
    before = {panel.group for panel in figures.quality_panels(comparison)}
    first, *others = comparison.methods
    cost = dataclasses.replace(first.cost, training_macs=3 * 10**12, joules_per_image=0.02)
    methods = (dataclasses.replace(first, cost=cost), *others)
    panels = list(figures.quality_panels(dataclasses.replace(comparison, methods=methods)))
    assert {panel.group for panel in panels} - before == {"Training compute", "Energy"}
    (told,) = [p.alternative for p in panels if p.group == "Energy" and "Accuracy" in p.alternative]
    assert f"{first.name} " in told
    assert "at 20 mJ" in told
    assert "at unknown cost" in told


def test_every_figure_is_described_with_numbers(page):
    alternatives = Reader(page).alternatives
    assert len(alternatives) >= 10
    for alternative in alternatives:
        assert alternative.endswith(".")
        assert re.search(r"\d\.\d", alternative)


def test_few_replicates_are_warned_of(page, undrawn):
    few = make_comparison(50, replicates=2)
    assert "trust no interval" not in page
    assert "Only 2 replicates" in Reader(render_page(few)).text


def test_single_replicate_has_no_standard_deviation(undrawn):
    page = render_page(make_comparison(50, replicates=1))
    assert all("±" not in cell for cell in cells_of(page, "Test images", "deep"))


def test_interval_bars_show_the_better_side_on_the_right(page, comparison):
    items = re.findall(r'<li class="(\w+)">.*?<circle cx="([\d.]+)"', page)
    assert len(items) == len(comparison.judgements)
    for outcome, dot in items:
        if outcome != "undecided":
            assert (float(dot) > 100) == (outcome == "better")


def test_comparison_without_verdicts_or_methods_still_renders(comparison):
    empty = dataclasses.replace(comparison, judgements=(), methods=(), caveat="", notes=())
    reader = Reader(render_page(empty))
    assert "no verdict was reached" in reader.text
    assert not reader.wrong


def test_write_report_writes_the_same_page_again_and_leaves_nothing_beside_it(
    tmp_path, page, comparison
):
    path = tmp_path / "report.html"
    path.write_text("old")
    write_report(comparison, path)
    assert path.read_text(encoding="utf-8") == page
    assert list(tmp_path.iterdir()) == [path]
