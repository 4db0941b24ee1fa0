"""The report in a real browser: no error under its policy, nothing over anything else, usable."""

import dataclasses
import json

import pytest
from browser import Browser, find_chromium
from deepens.experiments.report import build_report, render_page
from report_data import blocks_of, make_comparison, make_examples
from test_budgets import judged

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
    "figure, img, .plot, input, select, button, th, td, li, dt, dd, p, h1, h2, h3, summary, pre";
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
    path.write_text(render_page(comparison), encoding="utf-8")
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


def drawn(browser: Browser) -> None:
    """Wait until every chart is drawn, which the page does in idle time."""
    browser.evaluate(
        "new Promise(done => { const wait = () => "
        "[...document.querySelectorAll('.plot')].every(host => host.querySelector('svg')) "
        "? done() : setTimeout(wait, 50); wait(); })"
    )


def column(browser: Browser, index: int) -> list[str]:
    """Return the texts of one column of the rows that are shown."""
    return browser.evaluate(
        f"{ROWS}.filter(row => !row.hidden).map(row => row.cells[{index}].textContent)"
    )


def choose(browser: Browser, field: str, value: str) -> None:
    """Fill in a field as a reader does."""
    browser.evaluate(
        f"(() => {{ const field = document.querySelector({json.dumps(field)}); "
        f"field.value = {json.dumps(value)}; "
        "field.dispatchEvent(new Event('input', { bubbles: true })); })()"
    )


def test_every_chart_is_drawn_under_the_policy_of_the_page(browser):
    drawn(browser)
    assert browser.evaluate("document.querySelectorAll('.plot[data-chart] svg').length") > 20
    marks = "document.querySelector('[data-chart=quality-01] svg').querySelectorAll('path').length"
    assert browser.evaluate(marks) > len(METHODS)


def test_a_method_is_hidden_in_every_chart_by_the_keyboard(browser):
    drawn(browser)
    symbols = "document.querySelectorAll('[data-chart=quality-01] .mark-symbol.role-mark path')"
    before = browser.evaluate(f"{symbols}.length")
    browser.evaluate("document.querySelector('#methods input').focus()")
    browser.press(" ")
    browser.evaluate("new Promise(done => setTimeout(done, 300))")
    assert browser.evaluate(f"{symbols}.length") == before - 1


@pytest.mark.parametrize("width", WIDTHS)
def test_page_never_scrolls_sideways_and_nothing_overlaps(browser, width):
    browser.resize(width)
    drawn(browser)
    browser.evaluate(UNFOLD)
    browser.settle()
    assert browser.evaluate("document.documentElement.scrollWidth") <= width
    assert browser.evaluate(OVERLAPS) == []


CUT = """(() => [...document.querySelectorAll('.scroll')].filter(each => each.offsetParent).map(
  each => [each.scrollWidth > each.clientWidth + 1, each.hasAttribute('data-cut')]))()"""


@pytest.mark.parametrize("width", [400, 1280])
def test_a_table_that_is_cut_off_says_so(browser, width):
    browser.resize(width)
    browser.evaluate(UNFOLD)
    browser.settle()
    frames = browser.evaluate(CUT)
    assert all(cut == told for cut, told in frames)
    assert (any(cut for cut, _ in frames)) == (width == 400)
    shadows = browser.evaluate("getComputedStyle(document.querySelector('.scroll')).background")
    assert shadows.count("gradient") == 4


@pytest.mark.parametrize("width", [400, 1280])
def test_zero_stands_at_one_place_in_every_line_of_a_forest(browser, width):
    browser.resize(width)
    places = browser.evaluate(
        "[...document.querySelectorAll('.forest .zero')].filter(each => each.checkVisibility())"
        ".map(each => Math.round(each.getBoundingClientRect().left))"
    )
    assert len(places) > 3
    assert len(set(places)) == 1


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_all_text_has_enough_contrast(browser, scheme):
    browser.emulate(scheme=scheme)
    browser.evaluate(UNFOLD)
    assert browser.evaluate(FAINT) == []


def test_heads_sort_by_number_and_by_outcome_with_the_keyboard(browser):
    for index, head in ((3, "Mean"), (8, "Outcome")):
        button = f"document.querySelectorAll('#results-table thead th')[{index}]"
        browser.evaluate(f"{button}.querySelector('button').focus()")
        browser.press("Enter")
        assert browser.evaluate(f"{button}.getAttribute('aria-sort')") == "ascending"
        texts = column(browser, index)
        if head == "Mean":
            numbers = [float(text) for text in texts if text != "undefined"]
            assert numbers == sorted(numbers)
        else:
            ranks = ["better", "not shown", "worse", ""]
            order = [ranks.index(text.lstrip("✓✗○ ")) for text in texts]
            assert order == sorted(order)


def test_filters_leave_the_rows_that_fit_and_count_them(browser):
    choose(browser, "#filters label:nth-of-type(2) select", "deep")
    choose(browser, "#filters input", "nll")
    assert set(column(browser, 0)) == {"deep"}
    assert all("NLL" in text for text in column(browser, 2))
    count = browser.evaluate("document.querySelector('#filters output').textContent")
    assert count.startswith(f"{len(column(browser, 0))} of ")
    browser.evaluate("document.querySelector('#filters button').click()")
    assert len(set(column(browser, 0))) == len(METHODS)


def test_explorer_says_of_every_budget_and_metric_what_the_page_was_given(browser, comparison):
    (given,) = (
        b.data for b in blocks_of(build_report(comparison), "budget") if b.block == "explorer"
    )
    text = "document.querySelector('.recommendation').textContent"
    for axis in range(2):
        choose(browser, "#budget-explorer label:nth-child(1) select", str(axis))
        for budget, (*_, scene) in enumerate(given["axes"][axis]["budgets"]):
            choose(browser, "#budget-explorer label:nth-child(2) select", str(budget))
            metric = int(
                browser.evaluate(
                    "document.querySelector('.controls label:nth-child(4) select').value"
                )
            )
            assert browser.evaluate(text) == given["scenes"][scene]["sentences"][metric]
    rows = browser.evaluate("document.querySelectorAll('#budget-explorer tbody tr').length")
    assert rows == len(METHODS)


def test_explorer_is_changed_by_the_keyboard_alone(browser):
    caption = "document.querySelector('#budget-explorer h4').textContent"
    before = browser.evaluate(caption)
    browser.evaluate("document.querySelector('.controls label:nth-child(3) select').focus()")
    browser.press("ArrowDown")
    assert browser.evaluate(caption) != before


def test_sentence_of_a_verdict_opens_by_the_keyboard(browser):
    browser.evaluate("document.querySelector('.forest summary').focus()")
    browser.press("Enter")
    assert browser.evaluate("document.querySelector('.forest p').checkVisibility()")


def test_page_says_everything_without_its_script(browser, report):
    browser.emulate(script=False)
    browser.open(report)
    browser.emulate()
    assert browser.evaluate("document.querySelector('#budget-explorer').hidden")
    assert browser.evaluate("document.querySelector('#filters').hidden")
    assert browser.evaluate(f"{ROWS}.length") > 100
    assert "charts are not drawn" in browser.evaluate("document.body.innerText")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_print_is_on_white_without_the_index(browser, scheme):
    browser.emulate(media="print", scheme=scheme)
    assert not browser.evaluate("document.querySelector('nav').checkVisibility()")
    style = "getComputedStyle(document.body).backgroundColor"
    assert browser.evaluate(style) == "rgb(255, 255, 255)"
    browser.resize(A4)
    assert browser.evaluate("document.documentElement.scrollWidth") <= A4


def test_a_script_that_the_page_did_not_come_with_is_refused(browser, report, tmp_path):
    changed = tmp_path / "changed.html"
    page = report.read_text(encoding="utf-8")
    changed.write_text(page.replace("</body>", "<script>window.alien = 1</script></body>"))
    browser.open(changed)
    assert browser.evaluate("window.alien === undefined")
    assert any("Content Security Policy" in each for each in browser.complaints)
    browser.complaints.clear()
