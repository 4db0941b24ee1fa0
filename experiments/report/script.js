"use strict";
// The page says everything without this script. It marks the section that is being read, lets the
// table of results be sorted and filtered, and opens what is folded before the page is printed.

function markSection() {
  const bar = document.querySelector("nav ol");
  const links = new Map();
  for (const link of bar.querySelectorAll("a")) links.set(link.hash.slice(1), link);
  const seen = new Set();
  const observer = new IntersectionObserver(
    (entries) => {
      for (const { target, isIntersecting } of entries) {
        if (isIntersecting) seen.add(target.id);
        else seen.delete(target.id);
      }
      const current = [...links.keys()].find((id) => seen.has(id));
      if (!current) return;
      for (const [id, link] of links) {
        if (id === current) link.setAttribute("aria-current", "true");
        else link.removeAttribute("aria-current");
      }
      // On a phone the bar scrolls sideways: keep the current link in it, and the page where it is.
      bar.scrollLeft = links.get(current).offsetLeft - bar.offsetLeft - 16;
    },
    { rootMargin: "-15% 0px -75% 0px" },
  );
  for (const section of document.querySelectorAll("main > section")) observer.observe(section);
}

const isNumber = (cell) => cell.cellIndex >= 3 && cell.cellIndex < 8; // mean to difference

function numberIn(cell) {
  if (cell.dataset.v !== undefined) return Number(cell.dataset.v);
  return isNumber(cell) ? Number.parseFloat(cell.textContent) : NaN;
}

// Words by alphabet, what has a number by its size; what is undefined or empty comes last in both
// directions.
function compare(a, b, sign) {
  const [v, w] = [numberIn(a), numberIn(b)];
  if (!Number.isNaN(v) && !Number.isNaN(w)) return sign * (v - w);
  if (Number.isNaN(v) !== Number.isNaN(w)) return Number.isNaN(v) - Number.isNaN(w);
  if (isNumber(a)) return 0;
  const [x, y] = [a.textContent, b.textContent];
  if (!x || !y) return !x - !y;
  return sign * x.localeCompare(y, "en", { numeric: true });
}

function makeSortable(table) {
  const body = table.tBodies[0];
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const descending = head.getAttribute("aria-sort") === "ascending";
      for (const other of heads) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", descending ? "descending" : "ascending");
      const sign = descending ? -1 : 1;
      // Array.sort is stable: rows that are alike here keep the order of an earlier sort.
      const rows = [...body.rows];
      rows.sort((a, b) => compare(a.cells[column], b.cells[column], sign));
      body.append(...rows);
    });
  });
}

function makeFilterable(table, form) {
  const rows = [...table.tBodies[0].rows];
  const texts = rows.map((row) => row.textContent.toLowerCase());
  const words = form.querySelector("input");
  const choices = [...form.querySelectorAll("select")]; // in the order of the first columns
  const count = form.querySelector("output");
  const all = rows.length.toLocaleString("en");

  function apply() {
    const wanted = words.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    rows.forEach((row, index) => {
      const fits =
        choices.every(({ value }, column) => !value || row.cells[column].textContent === value) &&
        wanted.every((word) => texts[index].includes(word));
      row.hidden = !fits;
      shown += fits;
    });
    count.textContent = `${shown.toLocaleString("en")} of ${all} rows`;
  }

  form.hidden = false;
  form.addEventListener("input", apply);
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("reset", (event) => {
    event.preventDefault();
    words.value = "";
    for (const choice of choices) choice.value = "";
    for (const head of table.tHead.rows[0].cells) head.removeAttribute("aria-sort");
    table.tBodies[0].append(...rows);
    apply();
  });
  apply(); // a browser may have kept what was typed before a reload
}

function hintAtCutTables() {
  const observer = new ResizeObserver((entries) => {
    for (const { target } of entries) {
      const frame = target.closest(".scroll");
      frame.toggleAttribute("data-cut", frame.scrollWidth > frame.clientWidth + 1);
    }
  });
  for (const frame of document.querySelectorAll(".scroll")) {
    observer.observe(frame);
    observer.observe(frame.querySelector("table"));
  }
}

function unfoldForPrint() {
  let folded = [];
  addEventListener("beforeprint", () => {
    folded = [...document.querySelectorAll("details:not([open])")];
    for (const part of folded) part.open = true;
  });
  addEventListener("afterprint", () => {
    for (const part of folded) part.open = false;
  });
}

markSection();
addEventListener("load", hintAtCutTables); // by then the budget explorer has its table too
unfoldForPrint();
const results = document.getElementById("results-table");
if (results) {
  makeSortable(results);
  makeFilterable(results, document.getElementById("filters"));
}
