// The plots: which models have data for each, how many it draws at most, and how.

function chosen(figure, name) {
  return figure.querySelector(`[name=${name}]`).value;
}

function ticked(figure, name) {
  return figure.querySelector(`[name=${name}]`)?.checked ?? false;
}

function axis(name) {
  return data.axes.find((one) => one.name === name);
}

function pareto(figure, models) {
  const [x, y] = [axis(chosen(figure, "x")), axis(chosen(figure, "y"))];
  const found = models.filter((model) => x.name in model.axes && y.name in model.axes);
  const front = x === y ? [] : undominated(found, x, y);
  const names = front.map((model) => model.label).join(", ");
  const told = `${y.title} against ${x.title} of ${found.length} models.` + (names ? ` On the Pareto front: ${names}.` : "");
  const chart = new Chart(figure, HEIGHT + 60, told);
  if (!found.length) return chart.add("text", { x: 4, y: 40 }, "No model shown has both.");
  const box = chart.box();
  const whiskers = (one, model) => (one.name === "latency_ms_median" && model.interval[0] ? model.interval : []);
  const reach = (one) => found.flatMap((model) => [model.axes[one.name], ...whiskers(one, model)]);
  const across = scaled(reach(x), box.left, box.right, { log: ticked(figure, "logx") });
  const up = scaled(reach(y), box.bottom, box.top, { log: ticked(figure, "logy") });
  chart.axes(box, across, up, { x: x.title, y: y.title });
  const at = (model) => [across.place(model.axes[x.name]), up.place(model.axes[y.name])];
  if (front.length > 1) {
    const steps = front.map(at).map(([px, py], i) => (i ? `H${px}V${py}` : `M${px},${py}`));
    chart.add("path", { class: "front", d: steps.join("") });
  }
  const taken = found.map(at).map(([px, py]) => [px - 6, py - 6, px + 6, py + 6]);
  for (const model of found) {
    const [px, py] = at(model);
    for (const [one, scale] of [[x, across], [y, up]]) {
      const [low, high] = whiskers(one, model).map(scale.place);
      const d = one === x ? `M${low},${py}H${high}` : `M${px},${low}V${high}`;
      if (low !== undefined) chart.add("path", { class: `line thin ${colour(model)}`, d });
    }
    const place = { d: outline(model), transform: `translate(${px},${py})` };
    const said = `${model.label}: ${x.title} ${rounded(model.axes[x.name])}; ${y.title} ${rounded(model.axes[y.name])}`;
    chart.mark("path", { class: `full ${colour(model)}`, ...place }, said + (front.includes(model) ? "; on the front" : ""));
  }
  const rest = found.filter((model) => !front.includes(model));
  const unnamed = [...front, ...rest].filter((model) => !label(chart, box, taken, model, at(model)));
  return unnamed.length ? `Without a name, for want of room: ${unnamed.length}. Point at them, or show fewer.` : "";
}

// Models that none other beats: sorted by x, each one better in y than all before it.
function undominated(models, x, y) {
  const cost = (model, one) => (one.better === "lower" ? 1 : -1) * model.axes[one.name];
  const sorted = [...models].sort((a, b) => cost(a, x) - cost(b, x) || cost(a, y) - cost(b, y));
  let best = Infinity;
  return sorted.filter((model) => cost(model, y) < best && ((best = cost(model, y)), true));
}

// Write a name beside its mark where it covers nothing; tell whether there was room.
function label(chart, box, taken, model, [x, y]) {
  const text = shortened(model.label, chart.narrow ? 18 : 30);
  const made = chart.add("text", { x, y }, text);
  const wide = made.getComputedTextLength();
  for (const [left, base] of [[x + 9, y + 4], [x - 9 - wide, y + 4], [x - wide / 2, y - 9], [x - wide / 2, y + 19]]) {
    const area = [left - 2, base - 11, left + wide + 2, base + 3];
    const inside = area[0] >= box.left && area[2] <= chart.width && area[1] >= box.top - 8 && area[3] <= box.bottom;
    const free = taken.every((other) => area[0] >= other[2] || area[2] <= other[0] || area[1] >= other[3] || area[3] <= other[1]);
    if (inside && free) {
      made.setAttribute("x", left);
      made.setAttribute("y", base);
      taken.push(area);
      return true;
    }
  }
  made.remove();
  return false;
}

function times(figure, models) {
  const range = models.map((m) => `${m.label} ${rounded(m.times[0])} to ${rounded(m.times.at(-1))} ms`);
  const chart = new Chart(figure, HEIGHT, `Distribution of times: ${range.join("; ")}.`);
  const box = chart.box();
  const all = models.flatMap((model) => model.times);
  const across = scaled(all, box.left, box.right, { log: ticked(figure, "logx"), room: 0.02 });
  const up = scaled([0, 1], box.bottom, box.top, { room: 0 });
  chart.axes(box, across, { ...up, ticks: [0, 0.25, 0.5, 0.75, 1] }, { x: "time of an iteration, ms", y: "share of iterations" });
  for (const model of models) {
    const drawn = model.times.length;
    const share = (i) => (Math.floor((i * (model.count - 1)) / Math.max(drawn - 1, 1)) + 1) / model.count;
    const steps = model.times.map((time, i) => `H${across.place(time).toFixed(1)}V${up.place(share(i)).toFixed(1)}`);
    const middle = model.times[Math.floor((drawn - 1) / 2)];
    const said = `${model.label}: ${model.count} iterations, ${rounded(model.times[0])} to ${rounded(model.times.at(-1))} ms, half within ${rounded(middle)} ms`;
    const start = `M${across.place(model.times[0]).toFixed(1)},${box.bottom}`;
    chart.mark("path", { class: `line ${colour(model)} ${dash(model)}`, d: start + steps.join("") }, said);
    chart.add("path", { class: `full ${colour(model)}`, d: outline(model), transform: `translate(${across.place(middle)},${up.place(0.5)})` });
  }
  legend(figure, models, true);
  const thinned = models.filter((model) => model.times.length < model.count).length;
  return thinned ? `Thinned out to ${models.find((m) => m.times.length < m.count).times.length} of the sorted times for ${thinned} models.` : "";
}

function ratios(figure, models) {
  const several = new Set(models.map((model) => model.ratio.baseline)).size > 1;
  const tall = 30;
  const said = (m) => `${m.label}: ${m.ratio.told} against ${m.ratio.baseline}`;
  const chart = new Chart(figure, 0, models.map(said).join("; "));
  const rowed = chart.narrow ? tall + 16 : tall;
  chart.height = 30 + models.length * rowed + 42;
  chart.svg.setAttribute("viewBox", `0 0 ${chart.width} ${chart.height}`);
  const box = chart.narrow ? { left: 12, right: chart.width - 12 } : { left: 230, right: chart.width - 240 };
  Object.assign(box, { top: 20, bottom: chart.height - 42 });
  const ends = models.flatMap(({ ratio }) => [ratio.value, ratio.lo ?? 1, ratio.hi ?? 1, 1 / (1 + (ratio.margin ?? 0)), 1 + (ratio.margin ?? 0)]);
  const across = scaled(ends, box.left, box.right, { log: true });
  models.forEach((model, i) => {
    const { lo, hi, value, verdict, margin, told, baseline } = model.ratio;
    const top = box.top + 6 + i * rowed;
    const y = top + rowed - tall / 2;
    if (margin) {
      const [left, right] = [1 / (1 + margin), 1 + margin].map(across.place);
      chart.add("rect", { class: "band", x: left, width: right - left, y: top, height: rowed });
    }
    const words = told + (several ? ` against ${baseline}` : "");
    const [where, most] = chart.narrow ? [top + 12, 18] : [y + 4, 32];
    chart.add("text", { x: chart.narrow ? box.left : 4, y: where }, shortened(model.label, most));
    chart.add("text", { class: "quiet", x: chart.width - 4, y: where, "text-anchor": "end" }, shortened(words, 36));
    if (lo && hi) chart.add("path", { class: "line verdict", d: `M${across.place(lo)},${y}H${across.place(hi)}` });
    const filled = verdict && verdict !== "INCONCLUSIVE" ? "full" : "open";
    chart.mark("path", { class: `${filled} verdict`, d: VERDICTS[verdict] ?? SHAPES[0], transform: `translate(${across.place(value)},${y})` }, said(model));
  });
  const one = across.place(1);
  chart.axes(box, across, null, { x: "ratio of times, logarithmic" });
  chart.add("line", { class: "one", x1: one, x2: one, y1: box.top, y2: box.bottom });
  chart.svg.prepend(...chart.svg.querySelectorAll(".band"), ...chart.svg.querySelectorAll(".grid, .one"));
  return "";
}

function drift(figure, models) {
  const relative = chosen(figure, "y") === "relative";
  const middle = (model) => [...model.slots].map((slot) => slot[1]).sort((a, b) => a - b)[Math.floor(model.slots.length / 2)];
  const unit = new Map(models.map((model) => [model, relative ? middle(model) : 1]));
  const count = (kind) => models.reduce((sum, model) => sum + model.slots.filter((slot) => slot[2] === kind).length, 0);
  const all = models.flatMap((model) => model.slots.map(([at, ms, kind]) => ({ model, at, value: ms / unit.get(model), ms, kind })));
  const told = `Slot medians over time of ${models.length} models: ${count("disturbed")} disturbed and ${count("redone")} redone slots drawn.`;
  const chart = new Chart(figure, HEIGHT, told);
  const box = chart.box();
  const across = scaled(all.map((slot) => slot.at), box.left, box.right, { room: 0.02 });
  const up = scaled(all.map((slot) => slot.value), box.bottom, box.top);
  chart.axes(box, across, up, { x: "seconds since the first slot of the run", y: relative ? "slot median over the model's own" : "slot median, ms" });
  for (const model of models) {
    const kept = all.filter((slot) => slot.model === model && slot.kind !== "redone");
    const line = kept.map((slot) => `${across.place(slot.at).toFixed(1)},${up.place(slot.value).toFixed(1)}`);
    chart.add("path", { class: `line thin ${colour(model)} ${dash(model)}`, d: `M${line.join("L")}` });
  }
  for (const slot of all) {
    const place = `translate(${across.place(slot.at).toFixed(1)},${up.place(slot.value).toFixed(1)})`;
    const kind = slot.kind ? `, ${slot.kind}` : "";
    const said = `${slot.model.label}: ${rounded(slot.ms)} ms after ${rounded(slot.at)} s${kind}`;
    const small = slot.kind ? "" : " scale(.55)";
    const d = { disturbed: CROSS, redone: SHAPES[1] }[slot.kind] ?? outline(slot.model);
    chart.mark("path", { class: `${slot.kind ? "open" : "full"} ${colour(slot.model)} ${slot.kind}`, d, transform: place + small }, said);
  }
  legend(figure, models, true);
  const thinned = models.filter((model) => model.slots.length < model.slot_count).length;
  return thinned ? `Thinned out for ${thinned} models; disturbed and redone slots were kept first.` : "";
}

function memory(figure, models) {
  const kinds = (model) => data.memory.filter((kind) => kind.name in model.memory);
  const said = (model, kind) => `${model.label}, ${kind.title}: ${rounded(model.memory[kind.name])} MiB`;
  const told = models.flatMap((model) => kinds(model).map((kind) => said(model, kind)));
  const height = models.reduce((sum, model) => sum + 26 + 17 * kinds(model).length, 60);
  const chart = new Chart(figure, height, told.join("; "));
  const box = { left: 8, right: chart.width - (chart.narrow ? 192 : 210), top: 8, bottom: height - 42 };
  const all = models.flatMap((model) => Object.values(model.memory));
  const across = scaled(all, box.left, box.right, { zero: true, room: 0 });
  chart.axes(box, across, null, { x: "MiB" });
  let y = box.top;
  for (const model of models) {
    y += 22;
    chart.add("text", { x: box.left, y: y - 3 }, shortened(model.label, Math.floor(chart.width / 8)));
    for (const kind of kinds(model)) {
      const end = across.place(model.memory[kind.name]);
      chart.mark("rect", { class: `full c${data.memory.indexOf(kind)}`, x: box.left, y: y + 2, width: end - box.left, height: 11 }, said(model, kind));
      chart.add("text", { class: "quiet", x: end + 6, y: y + 12 }, `${kind.title} ${rounded(model.memory[kind.name])}`);
      y += 17;
    }
    y += 4;
  }
  return "";
}

// A panel for each of latency, throughput and memory, one below the other, against the batch.
function batches(figure, models) {
  const drawn = ["latency_ms_median", "throughput_img_s", "peak_allocated_mib"].map(axis)
    .filter((y) => models.some((model) => y.name in model.axes));
  const curves = [...Map.groupBy(models, (model) => model.curve)].map(([place, points]) => ({ ...data.curves[place], points }));
  const tall = 240;
  const told = curves.map((one) => `${one.label}: ${one.saturation ? `saturated from batch ${one.saturation} on` : "not saturated"}`);
  const chart = new Chart(figure, tall * drawn.length + 14, `Against the batch: ${told.join("; ")}.`);
  const sizes = [...new Set(models.map((model) => model.batch))].sort((a, b) => a - b);
  const box = chart.box();
  const across = scaled(sizes, box.left, box.right, { log: true });
  drawn.forEach((y, panel) => {
    const place = { ...box, top: 28 + tall * panel, bottom: tall * (panel + 1) - 42 };
    const whiskers = (model) => (y.name === "latency_ms_median" && model.interval[0] ? model.interval : []);
    const points = (curve) => curve.points.filter((model) => y.name in model.axes).sort((a, b) => a.batch - b.batch);
    const all = curves.flatMap((curve) => points(curve).flatMap((model) => [model.axes[y.name], ...whiskers(model)]));
    const log = ticked(figure, "logy");
    const up = scaled(all, place.bottom, place.top, { log, zero: !log });
    chart.axes(place, { ...across, ticks: sizes.length > 12 ? across.ticks : sizes }, up, { x: "batch, logarithmic", y: y.title });
    for (const curve of curves) {
      const at = (model) => [across.place(model.batch), up.place(model.axes[y.name])];
      const line = points(curve).map((model) => at(model).join(",")).join("L");
      if (line) chart.add("path", { class: `line ${colour(curve)} ${dash(curve)}`, d: `M${line}` });
      for (const model of points(curve)) {
        const [px, py] = at(model);
        const [low, high] = whiskers(model).map(up.place);
        if (low !== undefined) chart.add("path", { class: `line thin ${colour(curve)}`, d: `M${px},${low}V${high}` });
        const saturated = model.batch === curve.saturation;
        const said = `${curve.label}, batch ${model.batch}: ${y.title} ${rounded(model.axes[y.name])}`;
        const transform = `translate(${px},${py})`;
        if (saturated) chart.add("path", { class: `open ${colour(curve)}`, d: SHAPES[0], transform: `${transform} scale(2.2)`, "vector-effect": "non-scaling-stroke" });
        chart.mark("path", { class: `full ${colour(curve)}`, d: outline(curve), transform }, said + (saturated ? "; saturated from here on" : ""));
      }
    }
  });
  legend(figure, curves, true);
  return "";
}

const PLOTS = {
  batches: { draw: batches, most: 200, has: (model) => "curve" in model },
  pareto: { draw: pareto, most: 300, has: (model) => Object.keys(model.axes).length > 1 },
  times: { draw: times, most: 12, has: (model) => model.times },
  ratios: { draw: ratios, most: 40, has: (model) => model.ratio },
  drift: { draw: drift, most: 12, has: (model) => model.slots },
  memory: { draw: memory, most: 20, has: (model) => Object.keys(model.memory).length },
};
