// What the page does when it opens, and when something on it is chosen.

const data = JSON.parse(document.getElementById("data")?.textContent ?? "null");
const models = data?.models ?? [];
const labels = new Map(models.map((model) => [model.record, model.label]));
let shown = new Set(rows.map((row) => Number(row.dataset.record)));

function machine() {
  return Number(document.querySelector("#machine select")?.value || 0);
}

function draw(name) {
  const { draw: plot, most, has } = PLOTS[name];
  const figure = document.getElementById(name);
  const here = models.filter((model) => model.machine === machine() && has(model));
  figure.hidden = !here.length;
  if (!here.length) return;
  const left = here.filter((model) => shown.has(model.record));
  const drawn = left.slice(0, most);
  const told = figure.querySelector(".left-out");
  figure.querySelector(".legend").replaceChildren();
  if (!drawn.length) {
    figure.querySelector(".canvas").replaceChildren();
    told.textContent = "No model shown has it: change the filter or the boxes.";
    return;
  }
  const limited = drawn.length < left.length
    ? [`${drawn.length} of ${left.length} models are drawn; filter or boxes choose others.`] : [];
  const timed = name === "times" || name === "drift";
  if (timed && models.length > data.sampled) limited.push(`Only the first ${data.sampled} rows of the report have their times in this page.`);
  const said = plot(figure, drawn);
  told.textContent = [...limited, typeof said === "string" ? said : ""].join(" ").trim();
}

function drawAll() {
  if (data) Object.keys(PLOTS).forEach(draw);
}

function refresh() {
  shown = applyFilter((row) => labels.get(Number(row.dataset.record)));
  drawAll();
}

function fill(select, options, preferred) {
  select.replaceChildren(...options.map(([value, text]) => html("option", { value, textContent: text })));
  if (preferred !== undefined) select.value = preferred;
}

function fillChoices() {
  const many = (name) => models.filter((model) => name in model.axes).length;
  const axes = data.axes.filter((one) => many(one.name)).map((one) => [one.name, one.title]);
  const names = axes.map(([name]) => name);
  const x = names[0];
  const y = ["published_top1", ...names].find((name) => name !== x && many(name) > 1) ?? names[1];
  const figure = document.getElementById("pareto");
  fill(figure.querySelector("[name=x]"), axes, x);
  fill(figure.querySelector("[name=y]"), axes, y);
  fill(document.querySelector("#drift [name=y]"), [["relative", "over the model's own median"], ["ms", "ms"]]);
  fill(document.querySelector("#machine select"), data.machines.map((name, i) => [String(i), name]));
}

for (const part of document.querySelectorAll(".scripted")) part.hidden = false;
document.querySelectorAll(".figures").forEach(makeSortable);
document.querySelectorAll("button.copy").forEach(makeCopy);
document.getElementById("filter").addEventListener("input", refresh);
if (data) {
  fillChoices();
  document.getElementById("machine").hidden = data.machines.length < 2;
  document.querySelector("#machine select").addEventListener("change", drawAll);
  for (const name of Object.keys(PLOTS)) document.getElementById(name).addEventListener("change", () => draw(name));
  makeToggles(models, refresh);
  let width = 0;
  new ResizeObserver(([entry]) => {
    if (entry.contentRect.width === width) return;
    width = entry.contentRect.width;
    drawAll();
  }).observe(document.querySelector("main"));
}
refresh();
addEventListener("beforeprint", () => {
  for (const one of document.querySelectorAll("details:not([open])")) {
    one.dataset.closed = "";
    one.open = true;
  }
  printing = true;
  drawAll();
});
addEventListener("afterprint", () => {
  for (const one of document.querySelectorAll("details[data-closed]")) {
    delete one.dataset.closed;
    one.open = false;
  }
  printing = false;
  drawAll();
});
