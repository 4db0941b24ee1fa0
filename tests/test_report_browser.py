"""The report in a real browser: no error, nothing over anything else, readable and usable."""

import dataclasses
import json

import pytest
from browser import Browser, find_chromium
from deepens.experiments.comparison.budgets import answers, budgets_of
from deepens.experiments.cost.axes import AXES
from deepens.experiments.report import render_page
from deepens.experiments.report.budget_data import recommendation
from deepens.experiments.report.splits import metric_label, split_title
from test_budgets import judged
from test_report import make_comparison, make_examples

CHROMIUM = find_chromium()
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium or Chrome, on the path or $CHROME"),
]

METHODS = (
    ("single", 1_000_000, 0.90),
    ("deep", 4_000_000, 0.93),
    ("wide", 4_016_000, 0.92),
    ("packed-ensemble-of-four-members", 2_000_000, 0.91),
)
SPLITS = (
    "test",
    *(f"shift/{name}/{severity}" for name in ("gaussian_noise", "blur") for severity in (1, 3)),
    "near_ood/letters",
    "near_ood/letters.encoded",
    "near_ood/tiny_imagenet_without_the_classes_of_cifar",
    "far_ood/noise",
    "far_ood/describable_textures",
)
WIDTHS = (360, 768, 1280)
A4 = 688  # CSS pixels between the margins

# What is drawn: texts (as the rectangles of their lines), pictures, fields and cards, cut to the
# frames that scroll. Two of them overlap unless one is inside the other.
OVERLAPS = """(() => {
  const cards =
    "figure, img, svg, input, select, button, th, td, li, dt, dd, p, h1, h2, h3, summary, pre";
  const clip = (rect, element) => {
    let [left, top, right, bottom] = [rect.left, rect.top, rect.right, rect.bottom];
    for (let up = element.parentElement; up; up = up.parentElement) {
      if (getComputedStyle(up).overflowX === "visible") continue;
      const frame = up.getBoundingClientRect();
      [left, right] = [Math.max(left, frame.left), Math.min(right, frame.right)];
      [top, bottom] = [Math.max(top, frame.top), Math.min(bottom, frame.bottom)];
    }
    return { left, top, right, bottom };
  };
  const boxes = [];
  const add = (rect, owner, node, name) => {
    const box = clip(rect, owner);
    if (box.right - box.left > 1 && box.bottom - box.top > 1) boxes.push({ ...box, node, name });
  };
  for (const card of document.body.querySelectorAll(cards)) {
    const name = `<${card.localName}> ${card.textContent.trim().slice(0, 30)}`;
    if (card.checkVisibility()) add(card.getBoundingClientRect(), card, card, name);
  }
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const text = walker.currentNode;
    if (!text.data.trim() || !text.parentElement.checkVisibility()) continue;
    if (text.parentElement.closest("select, script, svg")) continue;
    const range = document.createRange();
    range.selectNodeContents(text);
    for (const rect of range.getClientRects()) {
      add(rect, text.parentElement, text, `"${text.data.trim().slice(0, 30)}"`);
    }
  }
  boxes.sort((a, b) => a.top - b.top);
  const found = [];
  let open = [];
  for (const box of boxes) {
    open = open.filter((other) => other.bottom > box.top + 1);
    for (const other of open) {
      const wide = Math.min(box.right, other.right) - Math.max(box.left, other.left);
      const high = Math.min(box.bottom, other.bottom) - Math.max(box.top, other.top);
      if (wide <= 1 || high <= 1) continue;
      if (box.node.contains(other.node) || other.node.contains(box.node)) continue;
      found.push(`${other.name} and ${box.name}: ${wide.toFixed(1)} x ${high.toFixed(1)} px`);
    }
    open.push(box);
  }
  return found.slice(0, 10);
})()"""

# Contrast as WCAG 2 defines it, of each text with the nearest background that is not transparent.
FAINT = """(() => {
  const channels = (colour) => colour.match(/[\\d.]+/g).map(Number);
  const luminance = (colour) => {
    const [r, g, b] = channels(colour).map((value) => {
      const share = value / 255;
      return share <= 0.04045 ? share / 12.92 : ((share + 0.055) / 1.055) ** 2.4;
    });
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const backdrop = (element) => {
    for (let up = element; up; up = up.parentElement) {
      const colour = getComputedStyle(up).backgroundColor;
      if (channels(colour).length === 3) return colour;
    }
    return "rgb(255, 255, 255)";
  };
  const found = new Map();
  for (const element of document.body.querySelectorAll("*")) {
    const said = [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
    if ((!said && element.localName !== "input") || !element.checkVisibility()) continue;
    if (element.closest("script, svg")) continue;
    const [front, back] = [getComputedStyle(element).color, backdrop(element)];
    const [low, high] = [luminance(front), luminance(back)].sort((a, b) => a - b);
    const ratio = (high + 0.05) / (low + 0.05);
    const name = `${element.localName}.${element.className}: ${front} on ${back}`;
    if (!(ratio >= 4.5)) found.set(name, ratio);
  }
  return [...found].map(([name, ratio]) => `${name}: ${ratio.toFixed(2)}`);
})()"""

UNFOLD = "document.querySelectorAll('details').forEach(part => { part.open = true; })"
ROWS = "[...document.querySelectorAll('#results-table tbody tr')]"


@pytest.fixture(scope="module")
def comparison():
    plain = make_comparison(60, 3, METHODS, SPLITS)
    against = judged(plain.methods, 0.01)
    return dataclasses.replace(plain, examples=make_examples(METHODS), against_singles=against)


@pytest.fixture(scope="module")
def report(tmp_path_factory, comparison):
    path = tmp_path_factory.mktemp("page") / "report.html"
    page = render_page(comparison)
    path.write_text(page, encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def chromium(tmp_path_factory):
    assert CHROMIUM is not None
    with Browser(CHROMIUM, tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@pytest.fixture
def browser(chromium, report):
    """A browser that shows the whole report in daylight, on a wide screen."""
    chromium.emulate()
    chromium.resize(1280)
    chromium.open(report)
    yield chromium
    assert not chromium.complaints


def column(browser: Browser, index: int) -> list[str]:
    """Return the texts of one column of the rows that are shown."""
    return browser.evaluate(
        f"{ROWS}.filter(row => !row.hidden).map(row => row.cells[{index}].textContent)"
    )


def numbers(browser: Browser, index: int) -> list[float | None]:
    """Return what one column is sorted by, None where there is no number."""
    cells = f"{ROWS}.map(row => row.cells[{index}].dataset.v ?? null)"
    return [None if each is None else float(each) for each in browser.evaluate(cells)]


def head(index: int) -> str:
    return f"document.querySelectorAll('#results-table thead th')[{index}]"


def choose(browser: Browser, field: str, value: str) -> None:
    """Fill in a field as a reader does."""
    browser.evaluate(
        f"(() => {{ const field = document.querySelector({json.dumps(field)}); "
        f"field.value = {json.dumps(value)}; "
        "field.dispatchEvent(new Event('input', { bubbles: true })); })()"
    )


def test_every_section_of_the_index_is_there_and_every_picture_loads(browser):
    titles = browser.evaluate(
        "[...document.querySelectorAll('nav a')].map("
        "link => document.querySelector(`main > section${link.hash} > h2`)?.textContent)"
    )
    assert len(titles) >= 10
    assert None not in titles
    assert browser.evaluate("[...document.images].every(image => image.naturalWidth > 0)")


@pytest.mark.parametrize("width", WIDTHS)
def test_page_never_scrolls_sideways(browser, width):
    browser.evaluate(UNFOLD)
    browser.resize(width)
    assert browser.evaluate("document.documentElement.scrollWidth") <= width


def test_no_table_scrolls_sideways_on_a_wide_screen(browser):
    browser.evaluate(UNFOLD)
    cut = "[...document.querySelectorAll('.scroll')].filter(e => e.scrollWidth > e.clientWidth + 1)"
    assert browser.evaluate(f"{cut}.map(frame => frame.ariaLabel)") == []


@pytest.mark.parametrize("width", WIDTHS)
def test_nothing_overlaps(browser, width):
    browser.resize(width)
    assert browser.evaluate(OVERLAPS) == []
    browser.evaluate(UNFOLD)
    assert browser.evaluate(OVERLAPS) == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_all_text_has_enough_contrast(browser, scheme):
    browser.emulate(scheme=scheme)
    browser.evaluate(UNFOLD)
    assert browser.evaluate(FAINT) == []
    dark = (
        browser.evaluate("getComputedStyle(document.body).backgroundColor") != "rgb(255, 255, 255)"
    )
    assert dark == (scheme == "dark")
    paper = (
        "[...document.querySelectorAll('figure img')].map(e => getComputedStyle(e).backgroundColor)"
    )
    assert set(browser.evaluate(paper)) == {"rgb(255, 255, 255)"}


def test_heads_and_methods_stay_in_sight_while_the_results_scroll(browser):
    browser.resize(360)
    browser.evaluate("document.querySelector('.tall').scrollTo(150, 400)")
    browser.settle()
    inside = """(() => {
      const frame = document.querySelector('.tall').getBoundingClientRect();
      const table = document.querySelector('#results-table');
      const head = table.tHead.rows[0].cells[1].getBoundingClientRect();
      const names = [...table.tBodies[0].rows].map(row => row.cells[0].getBoundingClientRect());
      return [Math.abs(head.top - frame.top) < 2,
              names.every(name => Math.abs(name.left - frame.left) < 2)];
    })()"""
    assert browser.evaluate(inside) == [True, True]


@pytest.mark.parametrize("index", [3, 4, 6, 7])
@pytest.mark.parametrize("way", ["click", "Enter"])
def test_head_sorts_its_column_by_number_and_says_so(browser, index, way):
    for order, sign in (("ascending", 1), ("descending", -1)):
        if way == "click":
            browser.evaluate(f"{head(index)}.firstChild.click()")
        else:
            browser.evaluate(f"{head(index)}.firstChild.focus()")
            browser.press("Enter")
        found = numbers(browser, index)
        known = [value for value in found if value is not None]
        assert known == sorted(known, key=lambda value: sign * value)
        assert len(set(known)) > 1
        assert found[: len(known)] == known  # what is undefined comes last either way
        assert browser.evaluate(f"{head(index)}.ariaSort") == order
        marked = "document.querySelectorAll('#results-table th[aria-sort]').length"
        assert browser.evaluate(marked) == 1


def test_sorting_keeps_the_order_of_rows_that_are_alike(browser):
    before = list(zip(*(column(browser, index) for index in range(3)), strict=True))
    browser.evaluate(f"{head(0)}.firstChild.click()")
    after = list(zip(*(column(browser, index) for index in range(3)), strict=True))
    assert after == sorted(before, key=lambda row: row[0])
    assert after != before


def test_filters_leave_the_rows_that_fit_and_count_them(browser):
    every = len(column(browser, 0))
    told = "document.querySelector('#filters output').textContent"
    choose(browser, "#filters label:nth-of-type(2) select", "deep")
    assert set(column(browser, 0)) == {"deep"}
    choose(browser, "#filters label:nth-of-type(3) select", "Test images")
    assert set(column(browser, 1)) == {"Test images"}
    choose(browser, "#filters input", "aur")
    left = column(browser, 2)
    assert [metric.split("\N{NO-BREAK SPACE}")[0] for metric in left] == ["AURC"]
    assert browser.evaluate(told) == f"{len(left)} of {every:,} rows"
    choose(browser, "#filters input", "aur <b>nowhere")
    assert browser.evaluate(told) == f"0 of {every:,} rows"
    browser.evaluate("document.querySelector('#filters button').click()")
    assert browser.evaluate(told) == f"{every:,} of {every:,} rows"
    assert len(column(browser, 0)) == every


def test_keyboard_reaches_index_filters_and_heads_in_order_and_sees_where_it_is(browser):
    reached: list[str] = []
    look = """(() => {
      const at = document.activeElement;
      const name = at.closest('nav, form, thead')?.localName ?? at.className;
      return [name, getComputedStyle(at).outlineStyle];
    })()"""
    for _ in range(150):
        browser.press("Tab")
        seen = browser.evaluate(look)
        assert seen[1] != "none", reached
        reached.append(seen[0])
        if reached.count("thead") == 9:
            break
    links = browser.evaluate("document.querySelectorAll('nav a').length")
    assert reached[: links + 1] == ["skip", *["nav"] * links]
    assert [each for each in reached if each in ("form", "thead")] == 5 * ["form"] + 9 * ["thead"]


def test_index_marks_the_section_that_is_read(browser):
    for anchor in ("calibration", "ood", "metrics"):
        browser.evaluate(f"document.querySelector('nav a[href=\"#{anchor}\"]').click()")
        browser.settle()
        browser.settle()
        current = "[...document.querySelectorAll('nav a[aria-current]')].map(link => link.hash)"
        assert browser.evaluate(current) == [f"#{anchor}"]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_print_shows_everything_but_the_index_on_white(browser, scheme):
    browser.emulate(media="print", scheme=scheme)
    shown = "[...document.querySelectorAll('{}')].map(each => each.checkVisibility())"
    assert set(browser.evaluate(shown.format("nav, #filters, .skip"))) == {False}
    everything = "main section, main p, main figure, main td, main dd, details > *"
    assert set(browser.evaluate(shown.format(everything))) == {True}
    paper = "getComputedStyle(document.body).backgroundColor"
    assert browser.evaluate(paper) == "rgb(255, 255, 255)"
    assert browser.evaluate(FAINT) == []


def test_head_of_the_results_is_printed_on_every_page(browser):
    # Chromium does not repeat a table's head with buttons, which are not to be boxes then.
    browser.emulate(media="print")
    shown = "new Set([...document.querySelectorAll('#results-table th button')].map("
    assert browser.evaluate(f"[...{shown}each => getComputedStyle(each).display))]") == ["contents"]
    group = "getComputedStyle(document.querySelector('#results-table thead')).display"
    assert browser.evaluate(group) == "table-header-group"


def test_outcomes_are_sorted_from_better_to_worse(browser):
    browser.evaluate(f"{head(8)}.firstChild.click()")
    known = [value for value in numbers(browser, 8) if value is not None]
    assert known == sorted(known)
    assert set(known) == {0, 1, 2}
    assert column(browser, 8)[-1] == ""


def test_printed_page_fits_the_paper(browser):
    browser.emulate(media="print")
    browser.resize(A4)
    assert browser.evaluate("document.documentElement.scrollWidth") <= A4
    assert browser.evaluate(OVERLAPS) == []


def test_what_is_folded_opens_for_the_printer_and_folds_again(browser):
    folded = "document.querySelectorAll('details:not([open])').length"
    before = browser.evaluate(folded)
    assert before > 0
    browser.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert browser.evaluate(folded) == 0
    browser.evaluate("dispatchEvent(new Event('afterprint'))")
    assert browser.evaluate(folded) == before


def test_page_says_everything_without_its_script(browser, report):
    rows = len(column(browser, 0))
    browser.emulate(script=False)
    browser.open(report)
    assert not browser.evaluate("document.querySelector('#filters').checkVisibility()")
    assert browser.evaluate(f"{ROWS}.filter(row => row.checkVisibility()).length") == rows
    assert browser.evaluate("document.querySelectorAll('thead button').length") == 0
    browser.resize(360)
    assert browser.evaluate(OVERLAPS) == []


EXPLORER = "document.querySelector('#budget-explorer')"


def pick(name: str) -> str:
    """Return the expression of one of the explorer's fields."""
    fields = f"[...{EXPLORER}.querySelectorAll('.controls label')]"
    return f"{fields}.find(each => each.textContent.startsWith('{name}')).querySelector('select')"


def told_by_explorer(browser: Browser) -> dict:
    """Return what the explorer shows now."""
    return browser.evaluate(f"""(() => {{
      const host = {EXPLORER};
      const texts = (each) => [...host.querySelectorAll(each)].map((e) => e.textContent);
      const chosen = [...host.querySelectorAll('select')].map((e) => e.selectedOptions[0].text);
      return {{
        chosen,
        sentence: host.querySelector('.recommendation').textContent,
        title: host.querySelector('svg').getAttribute('aria-label'),
        marks: texts('.mark text'),
        budget: texts('.at'),
        rows: [...host.querySelectorAll('tbody tr')].map((row) =>
          [...row.cells].map((cell) => cell.textContent)),
      }};
    }})()""")


def test_explorer_is_changed_by_the_keyboard_alone_and_all_of_it_follows(browser):
    before = told_by_explorer(browser)
    cost, _, split, metric = before["chosen"]
    assert (cost, split, metric) == ("MACs per image", "Test images", "NLL")
    assert before["budget"] == ["budget 4\N{MULTIPLICATION SIGN}"]
    for name, place in (("Cost", 0), ("Budget", 1), ("Split", 2), ("Metric", 3)):
        browser.evaluate(f"{pick(name)}.focus()")
        last = browser.evaluate(f"{pick(name)}.selectedIndex === {pick(name)}.length - 1")
        browser.press("ArrowUp" if last else "ArrowDown")
        after = told_by_explorer(browser)
        assert after["chosen"][place] != before["chosen"][place], name
        assert (after["title"], after["rows"], after["budget"]) != (
            before["title"],
            before["rows"],
            before["budget"],
        )
        metric, cost = after["chosen"][3], after["chosen"][0]
        assert after["title"] == f"{metric} against {cost}"
        before = after


def test_a_method_is_hidden_by_the_keyboard_and_what_is_said_of_the_others_stays(browser):
    before = told_by_explorer(browser)
    assert len(before["marks"]) == len(METHODS)
    boxes = f"[...{EXPLORER}.querySelectorAll('.shown label')]"
    deep = f"{boxes}.find(each => each.textContent.endsWith(' deep')).querySelector('input')"
    browser.evaluate(f"{deep}.focus()")
    browser.press(" ")
    after = told_by_explorer(browser)
    assert len(after["marks"]) == len(METHODS) - 1
    assert not any(mark.startswith("deep") for mark in after["marks"])
    assert after["rows"] == [row for row in before["rows"] if not row[0].startswith("deep")]
    assert after["rows"] != before["rows"]
    assert after["sentence"] == before["sentence"]  # hiding cannot make a difference significant
    browser.press(" ")
    assert told_by_explorer(browser) == before


def test_explorer_says_of_every_cost_budget_split_and_metric_what_python_says(browser, comparison):
    said = browser.evaluate(f"""(() => {{
      const [cost, budget, split, metric] = {EXPLORER}.querySelectorAll('select');
      const set = (field, index) => {{
        field.selectedIndex = index;
        field.dispatchEvent(new Event('input', {{ bubbles: true }}));
      }};
      const found = [];
      for (let a = 0; a < cost.length; a++) {{
        set(cost, a);
        for (let b = 0; b < budget.length; b++) {{
          set(budget, b);
          for (let s = 0; s < split.length; s++) {{
            set(split, s);
            for (let m = 0; m < metric.length; m++) {{
              set(metric, m);
              const told = [cost, budget, split, metric].map((e) => e.selectedOptions[0].text);
              found.push([...told, {EXPLORER}.querySelector('.recommendation').textContent]);
            }}
          }}
        }}
      }}
      return found;
    }})()""")
    expected = [
        [axis.label, budget.title, split_title(split), metric_label(metric), sentence]
        for axis in AXES
        for budget in budgets_of(comparison, axis)
        for (split, metric), answer in answers(comparison, budget).items()
        if answer.outcome != "undefined"
        for sentence in [recommendation(answer, metric)]
    ]
    assert len(expected) > 100
    assert sorted(said) == sorted(expected)


def test_a_mark_that_is_reached_tells_its_numbers(browser):
    mark = f"{EXPLORER}.querySelector('.mark')"
    browser.evaluate(f"{mark}.focus()")
    told = browser.evaluate(f"{EXPLORER}.querySelector('.detail').textContent")
    assert told == browser.evaluate(f"{mark}.getAttribute('aria-label')")
    assert told.startswith("single (single model): NLL 0.")
    assert "3 replicates; 1 M MACs (1\N{MULTIPLICATION SIGN})" in told


def test_names_in_the_chart_cover_no_other_name(browser):
    for width in WIDTHS:
        browser.resize(width)
        boxes = browser.evaluate(
            f"[...{EXPLORER}.querySelectorAll('.mark text')].map(e => e.getBoundingClientRect())"
            ".map(r => [r.left, r.top, r.right, r.bottom])"
        )
        frame = browser.evaluate(
            f"(r => [r.left, r.right])({EXPLORER}.querySelector('svg').getBoundingClientRect())"
        )
        for index, (left, top, right, bottom) in enumerate(boxes):
            assert frame[0] <= left + 1
            assert right <= frame[1] + 1
            for a, b, c, d in boxes[:index]:
                wide, high = min(right, c) - max(left, a), min(bottom, d) - max(top, b)
                assert wide <= 1 or high <= 4, width


def test_explorer_is_printed_without_its_fields(browser):
    browser.emulate(media="print")
    shown = "[...document.querySelectorAll('{}')].map(each => each.checkVisibility())"
    fields = "#budget-explorer select, #budget-explorer input"
    assert set(browser.evaluate(shown.format(fields))) == {False}
    rest = "#budget-explorer svg, #budget-explorer td, #budget table"
    assert set(browser.evaluate(shown.format(rest))) == {True}


def test_tables_of_budgets_are_there_without_a_script(browser, report, comparison):
    browser.emulate(script=False)
    browser.open(report)
    assert not browser.evaluate(f"{EXPLORER}.checkVisibility()")
    browser.evaluate(UNFOLD)
    tables = "[...document.querySelectorAll('#budget table')].map(each => each.checkVisibility())"
    assert browser.evaluate(tables) == [True] * (1 + len(budgets_of(comparison, AXES[0])))


def test_page_is_smaller_than_five_megabytes(report):
    assert report.stat().st_size < 5_000_000


def test_an_overlap_would_be_found(browser):
    browser.evaluate("document.querySelector('h2').style.marginTop = '-4rem'")
    assert any("<h2>" in each for each in browser.evaluate(OVERLAPS))


def test_a_faint_text_would_be_found(browser):
    browser.evaluate("document.querySelector('h1').style.color = '#888'")
    assert len(browser.evaluate(FAINT)) == 1


def test_a_script_error_would_be_found(browser):
    browser.evaluate("setTimeout(() => { throw new Error('on purpose'); }, 0)")
    browser.evaluate("new Promise(done => setTimeout(done, 20))")
    assert [each for each in browser.complaints if "on purpose" in each]
    browser.complaints.clear()


def test_a_script_that_the_page_did_not_come_with_is_refused(browser, report, tmp_path):
    changed = tmp_path / "changed.html"
    text = report.read_text(encoding="utf-8")
    changed.write_text(text.replace('<script>"use strict"', "<script>'use strict'"), "utf-8")
    browser.open(changed)
    assert len(browser.complaints) == 1
    assert "Content Security Policy" in browser.complaints[0]
    assert browser.evaluate("document.querySelectorAll('thead button').length") == 0
    browser.complaints.clear()
