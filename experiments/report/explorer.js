// The budget explorer: what to deploy for a cost, from texts and places that the page has. Every
// choice, correction and number was made when the page was written; nothing is computed here.

function make(name, attributes = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...children);
  return element;
}

function exploreBudgets(host, data) {
  const choices = {};
  const controls = make("div", { class: "controls", role: "group", "aria-label": "Budget and metric" });
  for (const name of ["Cost", "Budget", "Split", "Metric"]) {
    choices[name] = make("select");
    controls.append(make("label", {}, `${name} `, choices[name]));
  }
  const sentence = make("p", { class: "recommendation", "aria-live": "polite" });
  const chart = make("div", { class: "plot wide", "aria-hidden": "true" });
  const hint = make("p", { class: "key" },
    "Bars are ± one standard deviation over replicates; the line joins the single models that " +
    "differ in size alone; faded marks exceed the budget (dashed), and a ring marks what to deploy.");
  const caption = make("h4");
  const body = make("tbody");
  const heads = ["Method", "Cost", "Mean ± sd", "Advantage", "95 % interval", "Holm p", "Outcome"];
  const head = make("tr", {}, ...heads.map((each) => make("th", { scope: "col" }, each)));
  const table = make("table", { class: "words" }, make("thead", {}, head), body);
  const frame = { class: "scroll", tabindex: "0", role: "region", "aria-label": "Methods at this budget" };

  const fill = (choice, options, kept) => {
    choice.replaceChildren(...options.map(([value, words]) => make("option", { value }, words)));
    choice.value = String(kept);
  };
  const fillBudgets = (wanted) => {
    const { budgets } = data.axes[choices.Cost.value];
    const near = budgets.map(([multiple]) => Math.abs(Math.log(multiple / wanted)));
    fill(choices.Budget, budgets.map(([, title], index) => [index, title]), near.indexOf(Math.min(...near)));
  };
  const fillMetrics = (wanted) => {
    const split = Number(choices.Split.value);
    const options = data.metrics
      .map(([each, label], index) => [index, label, each])
      .filter(([, , each]) => each === split);
    fill(choices.Metric, options, (options.find(([, label]) => label === wanted) ?? options[0])[0]);
  };

  function rows(scene, axis, metric, affordable) {
    const row = (method, ...cells) => {
      const [name, family] = data.methods[method];
      const small = make("small", {}, family === name ? "" : family);
      const value = data.values[metric][method]?.[3] ?? "undefined";
      const first = [axis.texts[method], value].map((each) => make("td", {}, each));
      return make("tr", {}, make("th", { scope: "row" }, `${name} `, small), ...first, ...cells);
    };
    const note = (words) => make("td", { colspan: "4" }, words);
    const found = [];
    if (scene.single !== null) {
      found.push(row(scene.single, note("the best single model, with which ensembles are compared")));
    }
    scene.methods.forEach((method, index) => {
      const [difference, interval] = data.pairs[`${method},${scene.single}`]?.[metric] ?? ["", ""];
      const [kind, words] = data.marks[scene.marks[index][metric]];
      const badge = make("td", { class: kind }, make("span", { class: "badge" }, words));
      const numbers = [difference, interval, scene.p[index][metric]].map((each) => make("td", {}, each));
      found.push(row(method, ...numbers, badge));
    });
    data.methods.forEach((_, method) => {
      if (method === scene.single || scene.methods.includes(method)) return;
      found.push(row(method, note(affordable[method] ? "within the budget, not the choice of its kind" : "beyond the budget")));
    });
    return found;
  }

  function points(scene, axis, metric, affordable) {
    const values = data.methods.map(([m, f, , s], index) => {
      const [y, l, h, text] = data.values[metric][index] ?? [null];
      const x = axis.costs[index];
      const a = Boolean(affordable[index]);
      const d = scene.deploy?.[metric] === index;
      return { m, f, s, x, y, l, h, a, d, t: `${m}: ${text} at ${axis.texts[index]}` };
    });
    const known = values.filter(({ x, y }) => x !== null && y !== null);
    known.sort((a, b) => a.y - b.y).forEach((each, index) => { each.e = index % 2; });
    return known;
  }

  let kept = {};
  function update() {
    const axis = data.axes[choices.Cost.value];
    const [budget, title, affordable, place] = axis.budgets[choices.Budget.value];
    const metric = Number(choices.Metric.value);
    const [split, label, directed] = data.metrics[metric];
    const scene = data.scenes[place];
    kept = { budget, label };
    sentence.textContent = scene.text ?? scene.sentences[metric];
    caption.textContent = `Methods at ${title}, ${label}, ${data.splits[split]}`;
    body.replaceChildren(...rows(scene, axis, metric, affordable));
    const spec = structuredClone(data.spec);
    spec.params[0].value = budget;
    spec.data.values = points(scene, axis, metric, affordable);
    for (const { encoding } of spec.layer.slice(1)) {
      encoding.x.title = `${axis.label}, multiples of ${data.plain} (log)`;
      encoding.y.title = directed;
    }
    drawChart(chart, spec);
  }

  fill(choices.Cost, data.axes.map(({ label }, index) => [index, label]), 0);
  fillBudgets(Infinity);
  choices.Budget.value = String(data.axes[0].budgets.length - 1);
  fill(choices.Split, data.splits.map((title, index) => [index, title]), 0);
  fillMetrics("NLL");
  // What another kind of cost or another split has too is kept: the metric, and about the budget.
  choices.Cost.addEventListener("input", () => fillBudgets(kept.budget));
  choices.Split.addEventListener("input", () => fillMetrics(kept.label));
  controls.addEventListener("input", update);
  host.append(controls, sentence, chart, hint, caption, make("div", frame, table));
  host.hidden = false;
  update();
}

const explorer = document.getElementById("budget-explorer");
if (explorer) exploreBudgets(explorer, JSON.parse(document.getElementById("budget-data").textContent));
