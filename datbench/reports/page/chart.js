"use strict";
// Axes, marks and their names: what all plots share. Text is set as text, never as markup.

const HEIGHT = 340;
const PAPER = 700; // width in pixels of what is printed
const DOWN = "http://www.w3.org/2000/svg";
const SHAPES = [
  "M-4.5,0a4.5,4.5 0 1,0 9,0a4.5,4.5 0 1,0 -9,0Z",
  "M-4,-4H4V4H-4Z",
  "M0,-5.5L5.2,4H-5.2Z",
  "M0,-5.8L5.8,0L0,5.8L-5.8,0Z",
  "M0,5.5L5.2,-4H-5.2Z",
];
const CROSS = "M-4,-4L4,4M-4,4L4,-4";
const VERDICTS = {
  FASTER: "M-6,0L4,-5V5Z",
  SLOWER: "M6,0L-4,-5V5Z",
  SAME: SHAPES[1],
  INCONCLUSIVE: SHAPES[3],
  "": SHAPES[0],
};

let printing = false;

function shape(tag, attributes, text = "") {
  const made = document.createElementNS(DOWN, tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  if (text) made.textContent = text;
  return made;
}

function html(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  Object.assign(made, attributes);
  made.append(...children);
  return made;
}

// Three significant digits without an exponent, as in the tables.
function rounded(value) {
  if (value === 0) return "0";
  const digits = Math.max(0, 2 - Math.floor(Math.log10(Math.abs(value))));
  return value.toFixed(Math.min(digits, 12));
}

function shortened(text, most) {
  return text.length > most ? text.slice(0, most - 1) + "…" : text;
}

function colour(model) {
  return `c${model.style % 8}`;
}

function dash(model) {
  return `dash${Math.floor(model.style / 8) % 4}`;
}

function outline(model) {
  return SHAPES[(model.style + Math.floor(model.style / 8)) % SHAPES.length];
}

// A scale from values to pixels with ticks; `log` needs values above zero.
function scaled(values, from, to, { log = false, zero = false, room = 0.06 } = {}) {
  let [low, high] = [Infinity, -Infinity];
  for (const value of values) {
    low = Math.min(low, value);
    high = Math.max(high, value);
  }
  if (zero) low = 0;
  const turn = log ? Math.log : (value) => value;
  const back = log ? Math.exp : (value) => value;
  const spread = turn(high) - turn(low) || (log ? 0.2 : Math.abs(high) * 0.2 || 1);
  if (high === low) [low, high] = [back(turn(low) - spread / 2), back(turn(high) + spread / 2)];
  const first = zero ? 0 : turn(low) - room * spread;
  const last = turn(high) + room * spread;
  const place = (value) => from + ((turn(value) - first) / (last - first)) * (to - from);
  const count = Math.max(2, Math.min(8, Math.floor(Math.abs(to - from) / 50)));
  return { place, ticks: ticks(back(first), back(last), log, count) };
}

function ticks(low, high, log, count) {
  if (log && high / low > 8) {
    const found = [];
    const steps = Math.log10(high / low) > count / 3 ? [1] : [1, 2, 5];
    const every = Math.ceil(Math.log10(high / low) / count);
    for (let power = Math.floor(Math.log10(low)); power <= Math.log10(high); power += every) {
      for (const step of steps) found.push(Number(`${step}e${power}`));
    }
    return found.filter((tick) => tick >= low && tick <= high);
  }
  const rough = (high - low) / count;
  const unit = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((part) => part * unit).find((part) => part >= rough);
  const found = [];
  for (let i = Math.ceil(low / step); i * step <= high; i += 1) found.push(i * step);
  return found;
}

function tickText(tick) {
  return Number(tick.toPrecision(10)).toLocaleString("en", { maximumSignificantDigits: 6 });
}

// A drawing in a figure; its marks can be walked through with the arrow keys.
class Chart {
  constructor(figure, height, told) {
    this.canvas = figure.querySelector(".canvas");
    this.readout = figure.querySelector(".readout");
    this.readout.textContent = "";
    this.width = printing ? PAPER : Math.max(260, this.canvas.clientWidth);
    this.height = height;
    this.narrow = this.width < 560;
    this.marks = [];
    this.current = -1;
    this.svg = shape("svg", {
      class: "chart", viewBox: `0 0 ${this.width} ${height}`, role: "img", tabindex: 0, "aria-label": told,
    });
    this.svg.addEventListener("keydown", (event) => this.walk(event));
    this.svg.addEventListener("blur", () => this.show(-1));
    this.canvas.replaceChildren(this.svg);
  }

  add(tag, attributes, text = "") {
    const made = shape(tag, attributes, text);
    this.svg.append(made);
    return made;
  }

  // Something that tells a figure: to the pointer by its title, to the keyboard by the readout.
  mark(tag, attributes, told) {
    const made = this.add(tag, attributes);
    made.append(shape("title", {}, told));
    made.addEventListener("click", () => (this.readout.textContent = told));
    this.marks.push({ node: made, told });
    return made;
  }

  walk(event) {
    const steps = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 };
    if (event.key === "Escape") this.show(-1);
    if (!(event.key in steps) || !this.marks.length) return;
    event.preventDefault();
    const count = this.marks.length;
    const from = this.current < 0 && steps[event.key] < 0 ? 0 : this.current;
    this.show((from + steps[event.key] + count) % count);
  }

  show(place) {
    this.marks[this.current]?.node.classList.remove("current");
    this.current = place;
    this.marks[place]?.node.classList.add("current");
    this.readout.textContent = this.marks[place]?.told ?? "";
  }

  // Lines and figures of both axes; `box` is the room for marks.
  axes(box, across, up, titles) {
    for (const tick of across?.ticks ?? []) {
      const x = across.place(tick);
      this.add("line", { class: "grid", x1: x, x2: x, y1: box.top, y2: box.bottom });
      this.add("text", { class: "quiet", x, y: box.bottom + 16, "text-anchor": "middle" }, tickText(tick));
    }
    for (const tick of up?.ticks ?? []) {
      const y = up.place(tick);
      this.add("line", { class: "grid", x1: box.left, x2: box.right, y1: y, y2: y });
      this.add("text", { class: "quiet", x: box.left - 6, y: y + 4, "text-anchor": "end" }, tickText(tick));
    }
    this.add("text", { x: box.right, y: box.bottom + 34, "text-anchor": "end" }, titles.x);
    if (titles.y) this.add("text", { x: 4, y: box.top - 14 }, titles.y);
  }

  box() {
    return { left: 52, right: this.width - 14, top: 28, bottom: this.height - 42 };
  }
}

// Marks and names of models under a plot.
function legend(figure, models, lines) {
  const items = models.map((model) => html("li", {}, swatch(model, lines), ` ${model.label}`));
  figure.querySelector(".legend").replaceChildren(...items);
}

function swatch(model, line = true) {
  const made = shape("svg", { width: 30, height: 14, viewBox: "-15 -7 30 14", "aria-hidden": "true" });
  if (line) made.append(shape("path", { class: `line ${colour(model)} ${dash(model)}`, d: "M-14,0H14" }));
  made.append(shape("path", { class: `full ${colour(model)}`, d: outline(model) }));
  return made;
}
