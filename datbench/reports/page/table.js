// Tables that sort and filter; copy buttons.

const rows = [...document.querySelectorAll(".figures tbody tr")];
const hiddenLabels = new Set();

function cellValue(row, column, number) {
  const cell = row.cells[column];
  if (!number) return cell.textContent.trim() || null;
  const value = parseFloat(cell.title);
  return Number.isNaN(value) ? null : value;
}

// Sort by a column; empty cells come last both ways, equal rows keep their order.
function sortBy(table, head) {
  const column = head.cellIndex;
  const number = head.dataset.kind === "number";
  const down = head.getAttribute("aria-sort") === "ascending";
  for (const other of head.parentElement.cells) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", down ? "descending" : "ascending");
  const sign = down ? -1 : 1;
  const words = new Intl.Collator("en", { numeric: true });
  const keyed = [...table.tBodies[0].rows].map((row) => ({ row, key: cellValue(row, column, number) }));
  keyed.sort((a, b) => {
    if (a.key === null || b.key === null) return (a.key === null) - (b.key === null);
    return sign * (number ? a.key - b.key : words.compare(a.key, b.key));
  });
  table.tBodies[0].append(...keyed.map(({ row }) => row));
}

function makeSortable(table) {
  for (const head of table.tHead.rows[0].cells) {
    const button = html("button", { type: "button" }, ...head.childNodes);
    button.addEventListener("click", () => sortBy(table, head));
    head.replaceChildren(button);
  }
}

// Show the rows that hold all words and whose model is ticked; return their places.
function applyFilter(labelOf) {
  const words = document.getElementById("filter").value.toLowerCase().split(/\s+/).filter(Boolean);
  const shown = new Set();
  for (const row of rows) {
    const hit = words.every((word) => row.dataset.find.includes(word));
    row.hidden = !hit || hiddenLabels.has(labelOf(row));
    if (!row.hidden) shown.add(Number(row.dataset.record));
  }
  document.getElementById("shown").textContent = `${shown.size} of ${rows.length} shown`;
  return shown;
}

// Offer a box for each model; `changed` is called after each tick.
function makeToggles(models, changed) {
  const group = document.querySelector("#toggles fieldset");
  if (!group) return;
  const boxes = [];
  for (const model of new Map(models.map((one) => [one.label, one])).values()) {
    const box = html("input", { type: "checkbox", checked: true, value: model.label });
    box.addEventListener("change", () => tick([box], box.checked));
    boxes.push(box);
    group.append(html("label", {}, box, swatch(model), model.label));
  }
  const tick = (some, on) => {
    for (const box of some) {
      box.checked = on;
      hiddenLabels[on ? "delete" : "add"](box.value);
    }
    changed();
  };
  document.getElementById("all").addEventListener("click", () => tick(boxes, true));
  document.getElementById("none").addEventListener("click", () => tick(boxes, false));
}

// Copy what stands in the same box; where the browser refuses, select it.
function makeCopy(button) {
  const box = button.closest(".copied");
  const source = box.querySelector(".source");
  const status = box.querySelector("[role=status]");
  button.addEventListener("click", async () => {
    const parts = source.querySelectorAll("p, code");
    const text = [...parts].map((part) => part.textContent).join("\n\n");
    try {
      await navigator.clipboard.writeText(text);
      status.textContent = "Copied";
    } catch {
      getSelection().selectAllChildren(source);
      status.textContent = "Selected: copy it with the keyboard";
    }
  });
}
