// Elements from values, and numbers as people read them.
const SVG = "http://www.w3.org/2000/svg";

// h("a", {href, class, onclick, "aria-label"}, children…): null, false and undefined are left out, text is text.
export function h(name, attributes, ...children) { return build(document.createElement(name), attributes, children); }
export function svg(name, attributes, ...children) { return build(document.createElementNS(SVG, name), attributes, children); }

function build(element, attributes, children) {
  for (const [key, value] of Object.entries(attributes ?? {})) {
    if (value === null || value === undefined || value === false) continue;
    if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else element.setAttribute(key, value === true ? "" : value);
  }
  element.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

export const $ = (selector, root = document) => root.querySelector(selector);
export const $$ = (selector, root = document) => [...root.querySelectorAll(selector)];

// Three significant digits, without an exponent where that stays short.
export function short(value, digits = 3) {
  if (value === null || value === undefined || Number.isNaN(value)) return "–";
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size < 1e-4 || size >= 1e7) return value.toExponential(digits - 1).replace("e+", "e");
  if (Number.isInteger(value) || size >= 1000) return Math.round(value).toLocaleString("en");
  return value.toFixed(Math.max(0, digits - 1 - Math.floor(Math.log10(size))));
}
export const count = (value) => (value === null || value === undefined ? "–" : Number(value).toLocaleString("en"));
export function percent(share) {
  if (share === null || share === undefined) return "–";
  return share === 0 || Math.abs(share) >= 0.01 ? `${(100 * share).toFixed(1)} %` : `${Number((100 * share).toPrecision(2))} %`;
}
export function amount(value, unit = "") {
  if (!value) return "–";
  let i = 0;
  while (Math.abs(value) >= 1000 && i < 5) { value /= 1000; i++; }
  return `${Number(value.toPrecision(3))} ${["", "k", "M", "G", "T", "P"][i]}${unit}`.trim();
}
export function duration(seconds) {
  if (seconds < 60) return seconds < 10 ? `${seconds.toFixed(1)}s` : `${Math.round(seconds)}s`;
  const minutes = Math.floor(Math.round(seconds) / 60), rest = Math.round(seconds) % 60;
  return minutes < 60 ? `${minutes}m${String(rest).padStart(2, "0")}s` : `${Math.floor(minutes / 60)}h${String(minutes % 60).padStart(2, "0")}m`;
}
export const plural = (n, word) => `${count(n)} ${word}${n === 1 ? "" : "s"}`;

// ---------------------------------------------------------------- what is under the pointer
const tip = $("#tip");
export function showTip(content, x, y) {
  tip.replaceChildren(...[content].flat());
  tip.hidden = false;
  const box = tip.getBoundingClientRect();
  tip.style.left = `${Math.max(4, x + 14 + box.width > innerWidth ? x - 14 - box.width : x + 14)}px`;
  tip.style.top = `${Math.max(4, Math.min(y + 14, innerHeight - box.height - 4))}px`;
}
export const hideTip = () => { tip.hidden = true; };
addEventListener("scroll", hideTip, { passive: true });
addEventListener("pointerdown", hideTip, { capture: true });

// ---------------------------------------------------------------- a table whose columns sort
// columns: {name, title, number, value(row) to sort by, show(row)}; the first order is that of the rows.
export function table(label, columns, rows) {
  const body = h("tbody");
  const draw = (ordered) => body.replaceChildren(...ordered.map((row) => h("tr", {}, columns.map((column) => h("td", { class: column.number ? "number" : column.long && "long" }, column.show(row))))));
  const heads = columns.map((column) => {
    const head = h("th", { scope: "col", class: column.number && "number", title: column.title }, h("button", { type: "button", onclick: () => sort(column, head) }, column.name));
    return head;
  });
  function sort(column, head) {
    const down = head.getAttribute("aria-sort") === (column.number ? "descending" : "ascending") ? !column.number : Boolean(column.number);
    heads.forEach((other) => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    const keyed = rows.map((row) => [column.value(row), row]);
    const missing = (value) => value === null || value === undefined || value === "";
    keyed.sort(([a], [b]) => missing(a) - missing(b) || (missing(a) ? 0 : (a < b ? -1 : a > b ? 1 : 0) * (down ? -1 : 1)));
    draw(keyed.map(([, row]) => row));
  }
  draw(rows);
  return h("div", { class: "table" }, h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": label }, h("table", {}, h("caption", {}, label), h("thead", {}, h("tr", {}, heads)), body)));
}
