// The budget explorer: what to deploy for a cost, drawn and told from numbers that the page holds.
// Every choice and every correction was made when the page was written; nothing is judged here.

const SHAPES = [
  ["●", "M-5.5 0a5.5 5.5 0 1 0 11 0a5.5 5.5 0 1 0-11 0z"],
  ["■", "M-5-5H5V5H-5z"],
  ["▲", "M0-6.5L6.5 5H-6.5z"],
  ["◆", "M0-7L7 0L0 7L-7 0z"],
  ["▼", "M0 6.5L6.5-5H-6.5z"],
  ["✚", "M-2-6H2V-2H6V2H2V6H-2V2H-6V-2H-2z"],
  ["★", "M0-7L2-2L7-2L3 1.5L4.5 7L0 3.5L-4.5 7L-3 1.5L-7-2L-2-2z"],
  ["⬢", "M-6 0L-3-5.5H3L6 0L3 5.5H-3z"],
];
const BADGES = ["✓ better", "✗ worse", "○ undecided", "— undefined", "○ too few replicates"];
const [BETTER, WORSE, UNDECIDED, UNDEFINED, FEW] = BADGES.keys();
const ANSWERS = ["better", "worse", "undecided", "undefined", "too few"];

function make(name, attributes = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...children);
  return element;
}

// The browser's own name of the kind of elements that drawings are made of, which is an address.
const DRAWING = Object.assign(document.createElement("div"), { innerHTML: "<svg></svg>" }).firstChild
  .namespaceURI;

function draw(name, attributes = {}, ...children) {
  const element = document.createElementNS(DRAWING, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...children);
  return element;
}

function told(value) {
  if (value === null || value === undefined) return "undefined";
  const size = Math.abs(value);
  return size === 0 || (size >= 1e-3 && size < 1000)
    ? value.toFixed(4)
    : String(Number(value.toPrecision(3)));
}

// An estimate and the ends of its interval, with the decimals that tell the ends apart.
function signed([estimate, low, high]) {
  const values = [estimate, low, high];
  const width = Math.max(...values) - Math.min(...values);
  const decimals = width > 0 ? Math.max(4, 1 - Math.floor(Math.log10(width))) : 4;
  return values.map((value) => (value >= 0 ? "+" : "") + value.toFixed(decimals));
}

const toldP = (p) => (p < 0.001 ? "< 0.001" : `= ${p.toFixed(3)}`);
const times = (multiple) => `${Number(multiple.toPrecision(3))}×`;

// The answer by one metric in one scene: what its families came to, and the sentence.
function answer(data, scene, metric) {
  const differences = scene.methods
    .map((method, index) => ({
      method,
      outcome: Number(scene.outcomes[index][metric]),
      p: scene.p[index][metric],
      numbers: data.pairs[`${method},${scene.single}`]?.[metric] ?? null,
    }));
  const sign = data.metrics[metric][2] ? 1 : -1;
  const winners = differences
    .filter(({ outcome }) => outcome === BETTER)
    .sort((a, b) => sign * (b.numbers[0] - a.numbers[0]));
  const order = [BETTER, WORSE, UNDECIDED, FEW, UNDEFINED];
  const outcome = order.find((each) => differences.some((d) => d.outcome === each)) ?? UNDEFINED;
  const names = (some) => some.map(({ method }) => data.methods[method][0]).join(", ");
  const words = { single: data.methods[scene.single]?.[0], metric: data.metrics[metric][1] };
  if (winners.length) {
    const [difference, low, high] = signed(winners[0].numbers);
    const others = names(winners.slice(1));
    Object.assign(words, { difference, low, high, others, p: toldP(winners[0].p) });
    words.method = names(winners.slice(0, 1));
  } else words.others = names(differences.filter((d) => d.outcome === WORSE));
  const kinds = winners.length > 1 ? ["better", "others"] : [ANSWERS[outcome]];
  const sentence = kinds
    .map((kind) => data.phrases[kind].replace(/\{(\w+)\}/g, (_, name) => words[name]))
    .join(" ");
  const silent = outcome === FEW || outcome === UNDEFINED; // then nothing can be said
  return { differences, sentence, deploy: silent ? null : winners[0]?.method ?? scene.single };
}

// Round numbers that divide a range into a few steps.
function ticks(low, high) {
  const rough = (high - low) / 4;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = power * [1, 2, 5, 10].find((each) => each * power >= rough);
  const decimals = Math.max(0, -Math.floor(Math.log10(step) + 1e-9));
  const found = [];
  for (let k = Math.ceil(low / step); k * step <= high; k++) found.push([k * step, decimals]);
  return found.map(([value, places]) => [value, value.toFixed(places)]);
}

// The place beside a mark where its name covers no other mark or name.
function placeName(mark, width, taken, frame) {
  const [x, y] = [mark.x, mark.y];
  const free = mark.single ? [[x - width / 2, y - 24]] : []; // their line runs to the right
  for (const far of [0, 14, 28]) {
    free.push([x + 11, y - 7 - far], [x - 11 - width, y - 7 - far], [x - width / 2, y - 24 - far]);
    free.push([x + 11, y - 7 + far], [x - width / 2, y + 10 + far], [x - 11 - width, y - 7 + far]);
  }
  const boxes = free.map(([left, top]) => ({ left, top, right: left + width, bottom: top + 15 }));
  const clash = (a) =>
    taken.filter((b) => a.left < b.right && b.left < a.right && a.top < b.bottom && b.top < a.bottom)
      .length;
  const inside = (a) =>
    a.left >= frame.left && a.right <= frame.right && a.top >= frame.top && a.bottom <= frame.bottom;
  const fitting = boxes.filter(inside);
  const known = fitting.length ? fitting : boxes;
  return known.find((box) => !clash(box)) ?? known.sort((a, b) => clash(a) - clash(b))[0];
}

function drawChart(host, data, state, found, say) {
  const { axis, budget, metric, hidden } = state;
  const width = Math.max(280, Math.min(host.clientWidth || 720, 900));
  const height = width < 500 ? 320 : 380;
  const frame = { left: 58, right: width - 12, top: 34, bottom: height - 46 };
  const families = [...new Set(data.methods.map(([, family]) => family))];
  const marks = data.methods
    .map(([name, family, single, replicates, frontier], index) => {
      const [mean, spread, count] = data.values[metric][index] ?? [null, null, 0];
      const cost = axis.costs[index];
      const fits = cost !== null && cost <= budget[0] * 1.02;
      return { name, family, single, replicates, frontier, index, mean, spread, count, cost, fits };
    })
    .filter(({ mean, cost, index }) => mean !== null && cost !== null && !hidden.has(index));
  const svg = draw("svg", { viewBox: `0 0 ${width} ${height}`, class: "chart", role: "group" });
  svg.setAttribute("aria-label", `${data.metrics[metric][1]} against ${axis.label}`);
  if (!marks.length) {
    host.replaceChildren(make("p", {}, "No method to draw."));
    return;
  }
  const costs = [budget[0], ...marks.map(({ cost }) => cost)];
  const [least, most] = [Math.log2(Math.min(...costs)) - 0.35, Math.log2(Math.max(...costs)) + 0.35];
  const ends = marks.flatMap(({ mean, spread }) => [mean - (spread ?? 0), mean + (spread ?? 0)]);
  let [low, high] = [Math.min(...ends), Math.max(...ends)];
  const margin = 0.12 * (high - low) || 0.1 * Math.abs(high) || 1;
  [low, high] = [low - margin, high + margin];
  const atX = (cost) =>
    frame.left + ((Math.log2(cost) - least) / (most - least)) * (frame.right - frame.left);
  const atY = (value) =>
    frame.bottom - ((value - low) / (high - low)) * (frame.bottom - frame.top);
  const line = (x1, y1, x2, y2, kind) => draw("line", { x1, y1, x2, y2, class: kind });
  const text = (x, y, anchor, words, kind = "") =>
    draw("text", { x, y, "text-anchor": anchor, class: kind }, words);

  const edge = Math.min(atX(budget[0] * 1.02), frame.right);
  const wide = edge - frame.left;
  const tall = frame.bottom - frame.top;
  svg.append(
    draw("rect", { x: frame.left, y: frame.top, width: wide, height: tall, class: "affordable" }),
  );
  for (const [value, shown] of ticks(low, high)) {
    svg.append(line(frame.left, atY(value), frame.right, atY(value), "grid"));
    svg.append(text(frame.left - 8, atY(value) + 4, "end", shown));
  }
  for (let power = Math.ceil(least); power <= most; power++) {
    const x = atX(2 ** power);
    svg.append(line(x, frame.bottom, x, frame.bottom + 5, "edge"));
    svg.append(text(x, frame.bottom + 19, "middle", times(2 ** power)));
  }
  svg.append(line(frame.left, frame.bottom, frame.right, frame.bottom, "edge"));
  svg.append(line(frame.left, frame.top, frame.left, frame.bottom, "edge"));
  svg.append(line(edge, frame.top, edge, frame.bottom, "budget"));
  const right = edge - frame.left > 90;
  svg.append(
    text(edge + (right ? -6 : 6), frame.top + 14, right ? "end" : "start", `budget ${times(budget[0])}`, "at"),
  );
  const [, label, higher] = data.metrics[metric];
  svg.append(text(4, 18, "start", `${label} — ${higher ? "↑ more" : "↓ less"} is better`, "title"));
  svg.append(
    text(frame.right, height - 8, "end", `${axis.label}, multiples of ${data.plain}`, "title"),
  );
  const singles = marks.filter(({ frontier }) => frontier).sort((a, b) => a.cost - b.cost);
  const points = singles.map(({ cost, mean }) => `${atX(cost)},${atY(mean)}`).join(" ");
  if (singles.length > 1) svg.append(draw("polyline", { points, class: "frontier" }));

  for (const mark of marks) Object.assign(mark, { x: atX(mark.cost), y: atY(mark.mean) });
  const around = ({ x, y }) => ({ left: x - 8, top: y - 8, right: x + 8, bottom: y + 8 });
  const taken = marks.map(around);
  taken.push({ left: edge - 90, right: edge + (right ? 2 : 90), top: frame.top, bottom: frame.top + 18 });
  for (const mark of [...marks].sort((a, b) => a.cost - b.cost)) {
    const { name, family, x, y, mean, spread, fits, index } = mark;
    const chosen = index === found.deploy;
    const kind = `mark${mark.single ? " single" : ""}${fits ? "" : " beyond"}${chosen ? " deploy" : ""}`;
    const amount = `${axis.told[index]} (${times(mark.cost)})`;
    const spreads = spread === null ? "" : ` ± ${told(spread)}`;
    const count = `${mark.count} replicate${mark.count === 1 ? "" : "s"}`;
    const sentence = `${name} (${family}): ${label} ${told(mean)}${spreads}, ${count}; ${amount}${
      fits ? "" : ", beyond the budget"
    }${chosen ? "; to deploy at this budget" : ""}.`;
    const group = draw("g", { class: kind, tabindex: "0", role: "img", "aria-label": sentence });
    if (spread !== null) group.append(line(x, atY(mean - spread), x, atY(mean + spread), "spread"));
    if (chosen) group.append(draw("circle", { cx: x, cy: y, r: 11, class: "ring" }));
    const shape = SHAPES[families.indexOf(family) % SHAPES.length][1];
    group.append(draw("path", { d: shape, transform: `translate(${x} ${y})` }));
    const short = name.length > 24 ? `${name.slice(0, 23)}…` : name;
    const shown = text(0, 0, "start", chosen ? `${short}: deploy` : short);
    group.append(shown);
    for (const event of ["mouseenter", "focus"]) group.addEventListener(event, () => say(sentence));
    svg.append(group);
    mark.shown = shown;
  }
  host.replaceChildren(svg);
  for (const mark of [...marks].sort((a, b) => (b.index === found.deploy) - (a.index === found.deploy))) {
    const length = mark.shown.getComputedTextLength() || 7 * mark.shown.textContent.length;
    const box = placeName(mark, length, taken, frame);
    taken.push(box);
    mark.shown.setAttribute("x", box.left);
    mark.shown.setAttribute("y", box.top + 12);
  }
}

function familyRows(data, state, found, scene) {
  const { axis, metric, hidden } = state;
  const value = (index) => {
    const [mean, spread] = data.values[metric][index] ?? [null, null];
    return told(mean) + (spread === null ? "" : ` ± ${told(spread)}`);
  };
  const cost = (index) => `${axis.told[index]} (${times(axis.costs[index])})`;
  const row = (index, ...cells) => {
    const [name, family] = data.methods[index];
    const head = make("th", { scope: "row" }, name, make("small", {}, family === name ? "" : family));
    const first = [cost(index), value(index)].map((each) => make("td", {}, each));
    return make("tr", {}, head, ...first, ...cells);
  };
  const rows = [];
  if (scene.single !== null) {
    const held = make("td", { colspan: "4" }, "the best single model: what ensembles are held against");
    rows.push(row(scene.single, held));
  }
  for (const { method, outcome, p, numbers } of found.differences) {
    if (hidden.has(method)) continue;
    const [difference, low, high] = numbers ? signed(numbers) : ["", "", ""];
    const kinds = ["better", "worse", "undecided", "undefined", "undecided"];
    rows.push(
      row(
        method,
        make("td", {}, difference),
        make("td", {}, numbers ? `[${low}, ${high}]` : ""),
        make("td", {}, numbers && p !== null ? toldP(p).replace("= ", "") : ""),
        make("td", { class: kinds[outcome] }, make("span", { class: "badge" }, BADGES[outcome])),
      ),
    );
  }
  return rows;
}

function exploreBudgets(host) {
  const data = JSON.parse(host.dataset.budget);
  const choices = {};
  const controls = make("div", { class: "controls", role: "group", "aria-label": "Budget and metric" });
  for (const name of ["Cost", "Budget", "Split", "Metric"]) {
    choices[name] = make("select");
    controls.append(make("label", {}, `${name} `, choices[name]));
  }
  const families = [...new Set(data.methods.map(([, family]) => family))];
  const shown = make("fieldset", { class: "shown" }, make("legend", {}, "Methods shown"));
  const boxes = data.methods.map(([name, family]) => {
    const box = make("input", { type: "checkbox", checked: "" });
    const sign = make("span", { "aria-hidden": "true" }, SHAPES[families.indexOf(family) % SHAPES.length][0]);
    shown.append(make("label", {}, box, sign, ` ${name}`));
    return box;
  });
  const sentence = make("p", { class: "recommendation", "aria-live": "polite" });
  const chart = make("div", { class: "chart-frame" });
  const detail = make("p", { class: "key detail", "aria-live": "polite" });
  const caption = make("h4");
  const body = make("tbody");
  const heads = ["Method", "Cost", "Mean ± sd", "Difference", "95 % interval", "Holm p", "Outcome"];
  const head = make("tr", {}, ...heads.map((each) => make("th", { scope: "col" }, each)));
  const table = make("table", { class: "scores families" }, make("thead", {}, head), body);
  const scroll = { class: "scroll", tabindex: "0", role: "region", "aria-label": "Families at this budget" };

  const fill = (choice, options, kept) => {
    choice.replaceChildren(...options.map(([value, words]) => make("option", { value }, words)));
    choice.value = String(kept);
  };
  const fillBudgets = (wanted) => {
    const { budgets } = data.axes[choices.Cost.value];
    const near = budgets.map(([multiple]) => Math.abs(Math.log(multiple / wanted)));
    const kept = near.indexOf(Math.min(...near));
    fill(choices.Budget, budgets.map(([, title], index) => [index, title]), kept);
  };
  const fillMetrics = (wanted) => {
    const split = Number(choices.Split.value);
    const here = data.metrics.map(([each, label], index) => [index, label, each]);
    const options = here.filter(([, , each]) => each === split);
    const kept = options.find(([, label]) => label === wanted) ?? options[0];
    fill(choices.Metric, options, kept[0]);
  };
  const hint = () => "Point at a mark, or reach it with Tab, for its numbers. Bars are ± one standard "
    + "deviation over replicates; the line joins the single models that differ in size alone; "
    + "hollow marks cost too much.";

  function update() {
    const axis = data.axes[choices.Cost.value];
    const budget = axis.budgets[choices.Budget.value];
    const metric = Number(choices.Metric.value);
    const hidden = new Set(boxes.flatMap((box, index) => (box.checked ? [] : [index])));
    kept = { multiple: budget[0], label: data.metrics[metric][1] };
    const scene = data.scenes[budget[2]];
    const state = { axis, budget, metric, hidden };
    const found = answer(data, scene, metric);
    sentence.textContent =
      scene.single === null
        ? "No single model is affordable, so there is nothing to hold ensembles against."
        : found.sentence;
    detail.textContent = hint();
    drawChart(chart, data, state, found, (words) => { detail.textContent = words; });
    const split = data.splits[data.metrics[metric][0]];
    caption.textContent = `Families at ${budget[1]}, ${data.metrics[metric][1]}, ${split}`;
    body.replaceChildren(...familyRows(data, state, found, scene));
  }

  fill(choices.Cost, data.axes.map(({ label }, index) => [index, label]), 0);
  fillBudgets(Infinity);
  choices.Budget.value = String(data.axes[0].budgets.length - 1);
  fill(choices.Split, data.splits.map((title, index) => [index, title]), 0);
  fillMetrics("NLL");
  // What another kind of cost or another split has too is kept: the metric, and about the budget.
  let kept = {};
  choices.Cost.addEventListener("input", () => fillBudgets(kept.multiple));
  choices.Split.addEventListener("input", () => fillMetrics(kept.label));
  host.addEventListener("input", () => update());
  const frame = make("div", scroll, table);
  host.append(controls, shown, sentence, chart, detail, caption, frame);
  host.hidden = false;
  update();
  let width = chart.clientWidth;
  new ResizeObserver(() => {
    if (chart.clientWidth === width) return;
    width = chart.clientWidth;
    update();
  }).observe(chart);
}

const explorer = document.getElementById("budget-explorer");
if (explorer) exploreBudgets(explorer);
