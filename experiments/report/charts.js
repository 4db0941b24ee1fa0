// Draws the charts from the specifications in the page, when they are about to be seen, and lets
// methods be hidden in all of them. Vega evaluates its expressions by an interpreter, so that the
// page's policy need not allow evaluated code.

const { config, methods, specs } = JSON.parse(document.getElementById("chart-data").textContent);
const views = new Set();
let hiddenMethods = [];

function drawChart(host, spec) {
  return vegaEmbed(host, spec, { ast: true, renderer: "svg", actions: false, config }).then((drawn) => {
    host.querySelector("svg").setAttribute("aria-hidden", "true");
    return drawn;
  });
}

async function drawFigure(host) {
  const spec = structuredClone(specs[host.dataset.chart]);
  for (const each of spec.params ?? []) if (each.name === "hidden") each.value = hiddenMethods;
  const { view } = await drawChart(host, spec);
  if ((spec.params ?? []).some(({ name }) => name === "hidden")) views.add(view);
}

function drawLazily() {
  const waiting = new Set(document.querySelectorAll(".plot[data-chart]"));
  const draw = (host) => {
    if (waiting.delete(host)) drawFigure(host);
  };
  const observer = new IntersectionObserver(
    (entries) => entries.filter((each) => each.isIntersecting).forEach(({ target }) => draw(target)),
    { rootMargin: "600px" },
  );
  for (const host of waiting) observer.observe(host);
  // The others follow in idle time, so that they are there when the page is printed.
  const idle = globalThis.requestIdleCallback ?? ((next) => setTimeout(next, 200));
  const next = () => {
    const [host] = waiting;
    if (!host) return;
    draw(host);
    idle(next);
  };
  addEventListener("load", () => idle(next));
}

function chooseMethods() {
  const field = document.getElementById("methods");
  for (const name of methods) {
    const label = document.createElement("label");
    const box = Object.assign(document.createElement("input"), { type: "checkbox", checked: true });
    label.append(box, ` ${name}`);
    field.append(label);
    box.addEventListener("input", () => {
      hiddenMethods = methods.filter((each, index) => !field.querySelectorAll("input")[index].checked);
      for (const view of views) view.signal("hidden", hiddenMethods).runAsync();
    });
  }
  field.hidden = methods.length < 2;
}

drawLazily();
chooseMethods();
