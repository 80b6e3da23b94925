// A list of units of any length: only the lines in sight exist, and only their pictures are read.
import { $, h, percent, plural, short } from "./dom.js";
import { coverOf } from "./pictures.js";
import { titleOf, unitLink } from "./lake.js";

const HEIGHT = 64, AHEAD = 6;

// Text with what a search found in it marked.
function marked(text, patterns) {
  const low = text.toLowerCase(), spans = patterns.flatMap((pattern) => [...low.matchAll(new RegExp(pattern, "gu"))]).map((found) => [found.index, found.index + found[0].length]).sort((a, b) => a[0] - b[0]);
  if (!spans.length || low.length !== text.length) return text;
  const pieces = [];
  let from = 0;
  for (const [start, stop] of spans) if (start >= from) { pieces.push(text.slice(from, start), h("mark", {}, text.slice(start, stop))); from = stop; }
  return [...pieces, text.slice(from)];
}
// What else is said of a unit, where a search fits that and nothing that its line shows.
function reason(row, said, patterns) {
  if (!patterns.length || patterns.some((pattern) => pattern.test(said.toLowerCase()))) return null;
  return row.words.split("\n").find((one) => patterns.some((pattern) => pattern.test(one)));
}

export function makeList(withModel) {
  const box = h("div", { class: "lines", role: "list" });
  let rows = [], at = -1, lines = new Map(), patterns = [];

  function line(i) {
    const row = rows[i], { set } = row, title = titleOf(row);
    const said = [row.name && row.text && `named ${row.name}`, row.concept && row.auroc !== null && `${row.concept.replace("=", " ")} ${row.auroc.toFixed(2)}`].filter(Boolean).join(" · ");
    const also = reason(row, `${title} ${said}`, patterns);
    const element = h("a", { class: "line", href: unitLink(set, row.unit), role: "listitem", "data-i": i },
      coverOf(set, row.unit, (cover) => cover.isConnected),
      h("span", { class: "what" },
        h("span", { class: "title" }, title === null ? h("span", { class: "none" }, row.images_active === 0 ? "never active" : `${set.kind === "features" ? "feature" : "neuron"} ${row.unit}`) : marked(title, patterns)),
        h("span", { class: "sub" }, h("b", {}, `#${row.unit}`), withModel && ` ${set.model} · ${set.site}`, said && [` ${withModel ? "· " : ""}`, marked(said, patterns)], also && [" · also ", marked(also, patterns)])),
      h("span", { class: "side" },
        row.partners > 0 && h("span", { class: "shared", title: `best r ${short(row.best_r)}` }, `in ${plural(row.partners, "other model")}`),
        h("span", { class: "density", title: set.kind === "features" ? "share of tokens on which it is active" : "share of values above zero" }, !row.density ? "" : `${set.kind === "features" ? "active" : "positive"} ${percent(row.density)}`)));
    element.style.top = `${i * HEIGHT}px`;
    return element;
  }
  function draw() {
    if (!box.isConnected) return;
    const above = -box.getBoundingClientRect().top;
    const first = Math.max(0, Math.floor(above / HEIGHT) - AHEAD), last = Math.min(rows.length, Math.ceil((above + innerHeight) / HEIGHT) + AHEAD);
    for (const [i, element] of lines) if (i < first || i >= last) { element.remove(); lines.delete(i); }
    for (let i = first; i < last; i++) if (!lines.has(i)) { const element = line(i); lines.set(i, element); box.append(element); mark(i); }
  }
  const mark = (i) => lines.get(i)?.classList.toggle("at", i === at);
  let asked = false;
  const soon = () => { if (!asked) { asked = true; requestAnimationFrame(() => { asked = false; draw(); }); } };
  addEventListener("scroll", soon, { passive: true });
  addEventListener("resize", soon, { passive: true });
  const observer = new ResizeObserver(soon);
  observer.observe(box);

  return {
    box,
    show(found, sought = []) {
      rows = found; at = -1; patterns = sought;
      lines.forEach((element) => element.remove());
      lines = new Map();
      box.style.height = `${rows.length * HEIGHT}px`;
      soon();
    },
    walk(step) {
      if (!rows.length) return;
      const before = at;
      at = Math.max(0, Math.min(rows.length - 1, at + step));
      const head = $("header.top").getBoundingClientRect().bottom + 70, top = box.getBoundingClientRect().top + at * HEIGHT;
      if (top < head) scrollBy({ top: top - head });
      else if (top + HEIGHT > innerHeight - 8) scrollBy({ top: top + HEIGHT - innerHeight + 8 });
      draw(); mark(before); mark(at);
      lines.get(at)?.focus({ preventScroll: true });
    },
    rows: () => rows,
    end() { removeEventListener("scroll", soon); removeEventListener("resize", soon); observer.disconnect(); },
  };
}

// ---------------------------------------------------------------- the bar above a list
export const ORDERS = {
  fit: ["best fit", null],
  unit: ["number", (row) => -row.unit],
  auroc: ["AUROC", (row) => row.auroc],
  iou: ["IoU of the text", (row) => row.text_iou],
  mono: ["monosemanticity", (row) => row.monosemanticity],
  density: ["density", (row) => row.density],
  rare: ["rarity", (row) => (row.density ? -row.density : null)],
  r: ["likeness to other models", (row) => row.best_r],
};
export function arrange(rows, fits, order, only) {
  const kept = [];
  for (const row of rows) {
    if (only === "alive" && row.images_active === 0) continue;
    if (only === "named" && titleOf(row) === null) continue;
    if (only === "shared" && !row.partners) continue;
    const fit = fits(row);
    if (fit) kept.push([fit, row]);
  }
  const key = ORDERS[order]?.[1];
  const value = key ? ([, row]) => key(row) ?? -Infinity : ([fit, row]) => fit + (row.auroc ?? 0) / 2 + (row.text_iou ?? 0) / 4;
  const keyed = kept.map((entry) => [value(entry), entry[1]]);
  keyed.sort((a, b) => b[0] - a[0] || a[1].unit - b[1].unit);
  return keyed.map((entry) => entry[1]);
}
export function select(label, options, value, onchange) {
  return h("select", { "aria-label": label, title: label, onchange: (event) => onchange(event.target.value) },
    options.map(([name, word]) => h("option", { value: name, selected: name === value }, word)));
}
