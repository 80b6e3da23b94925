// The map of explanations: a point per unit, coloured by topic; nearer with the wheel, moved by dragging, walked by keys.
import { h, hideTip, plural, showTip } from "../dom.js";
import { getSet, loadIndex, makeSearch, mapLink, setLink, site, titleOf, unitLink } from "../lake.js";
import { select } from "../list.js";
import { coverOf } from "../pictures.js";

const N_COLOURS = 8, CELLS = 128, REACH = 14;
// Points whose colour comes again are hollow.
const isHollow = (topic) => Math.floor(topic / N_COLOURS) % 2 === 1;

export async function map({ name, query, go }) {
  const sets = site.sets.filter((one) => one.map);
  const set = name ? getSet(name) : sets[0];
  if (!set || !sets.includes(set)) return nothing();
  const rows = (await loadIndex(set)).filter((row) => row.x !== null && row.y !== null);
  if (!rows.length) return nothing();
  const topics = rank(rows);
  const view = new View(rows, topics);
  const found = h("span", { class: "found", role: "status" });
  const find = h("input", { type: "search", class: "find here", placeholder: "Light up points  /", "aria-label": "Light up points", value: query.get("q") ?? "", oninput: () => { go({ q: find.value }); seek(); } });
  function seek() {
    const lit = view.light(find.value ? makeSearch(find.value) : null);
    found.textContent = find.value ? `${lit.toLocaleString("en")} of ${plural(rows.length, "point")}` : plural(rows.length, "point");
  }
  const names = sets.map((one) => [one.id, `${one.model} · ${one.site}`]);
  const legend = h("ul", { class: "legend" }, topics.map(({ topic, size }, i) => h("li", { class: `s${i % N_COLOURS}` },
    h("button", { type: "button", "aria-pressed": "false", onclick: (event) => { const on = view.only(topic); legend.querySelectorAll("button").forEach((button) => button.setAttribute("aria-pressed", "false")); event.currentTarget.setAttribute("aria-pressed", String(on)); } },
      h("i", { class: isHollow(i) ? "swatch hollow" : "swatch", "aria-hidden": "true" }), topic, h("span", { class: "remark" }, size.toLocaleString("en"))))));
  return {
    title: `Map of ${set.model}`, page: "map", end: () => view.end(), restyle: () => view.restyle(),
    body: [
      h("h1", {}, "Map of explanations", h("span", { class: "kind" }, h("a", { href: setLink(set) }, `${set.model} · ${set.site}`))),
      h("p", { class: "lead" }, "What means much the same lies near each other; larger points are several with one text."),
      h("div", { class: "bar" }, find, names.length > 1 && select("Units", names, set.id, (value) => { location.hash = mapLink(getSet(value)); }),
        h("button", { type: "button", onclick: () => view.zoom(1.5) , title: "Nearer (+)", "aria-label": "Nearer" }, "+"), h("button", { type: "button", onclick: () => view.zoom(1 / 1.5), title: "Farther (−)", "aria-label": "Farther" }, "−"),
        h("button", { type: "button", onclick: () => view.fit(), title: "All of it (0)" }, "All"), found),
      h("div", { class: "atlas" }, h("div", { class: "plane" }, view.canvas, view.card), legend),
    ],
    start() { view.start(); seek(); },
    keys: {
      "/": () => { find.focus(); find.select(); }, j: () => view.walk(1), k: () => view.walk(-1), Enter: () => view.open(),
      "+": () => view.zoom(1.5), "=": () => view.zoom(1.5), "-": () => view.zoom(1 / 1.5), 0: () => view.fit(), u: () => { location.hash = setLink(set); },
      ArrowLeft: () => view.move(60, 0), ArrowRight: () => view.move(-60, 0), ArrowUp: () => view.move(0, 60), ArrowDown: () => view.move(0, -60),
    },
  };
}
const nothing = () => ({ title: "Map", page: "map", body: [h("h1", {}, "Map"), h("p", { class: "none" }, "No explanations have a place on a map: let the explorer stage read a map_explanations stage.")] });

// Topics by size, with the middle of their points.
function rank(rows) {
  const found = new Map();
  for (const row of rows) {
    const one = found.get(row.topic) ?? { topic: row.topic, size: 0, xs: [], ys: [] };
    one.size++; one.xs.push(row.x); one.ys.push(row.y);
    found.set(row.topic, one);
  }
  const middle = (values) => values.sort((a, b) => a - b)[values.length >> 1];
  return [...found.values()].sort((a, b) => b.size - a.size).map((one) => ({ ...one, x: middle(one.xs), y: middle(one.ys) }));
}

class View {
  constructor(rows, topics) {
    this.rows = rows;
    this.topics = topics;
    const place = new Map(topics.map((one, i) => [one.topic, i]));
    this.topicOf = Uint16Array.from(rows, (row) => place.get(row.topic));
    // By topic: points of one colour are drawn together, and keys walk through what belongs together.
    this.order = Uint32Array.from(rows.keys()).sort((a, b) => this.topicOf[a] - this.topicOf[b] || rows[a].x - rows[b].x);
    this.xs = Float32Array.from(rows, (row) => row.x);
    this.ys = Float32Array.from(rows, (row) => row.y);
    this.lit = null; this.topic = null; this.at = -1;
    this.canvas = h("canvas", { tabindex: "0", role: "img", "aria-label": `Map of ${rows.length} explanations; j and k walk through its points, Enter opens one` });
    this.card = h("a", { class: "picked", hidden: true });
    this.grid();
  }

  // Points by cells of the plane, for what lies under the pointer.
  grid() {
    const bounds = (values) => values.reduce(([low, high], value) => [Math.min(low, value), Math.max(high, value)], [Infinity, -Infinity]);
    [this.x0, this.x1] = bounds(this.xs); [this.y0, this.y1] = bounds(this.ys);
    this.cells = new Map();
    const same = new Map();
    this.xs.forEach((x, i) => { const key = `${x} ${this.ys[i]}`; same.set(key, (same.get(key) ?? 0) + 1); });
    this.many = Float32Array.from(this.xs, (x, i) => same.get(`${x} ${this.ys[i]}`));
    this.xs.forEach((x, i) => { const key = this.cell(x, this.ys[i]); (this.cells.get(key) ?? this.cells.set(key, []).get(key)).push(i); });
  }
  column(x) { return Math.min(CELLS - 1, Math.max(0, Math.floor(((x - this.x0) / (this.x1 - this.x0 || 1)) * CELLS))); }
  line(y) { return Math.min(CELLS - 1, Math.max(0, Math.floor(((y - this.y0) / (this.y1 - this.y0 || 1)) * CELLS))); }
  cell(x, y) { return this.column(x) + CELLS * this.line(y); }

  start() {
    this.observer = new ResizeObserver(() => this.resize());
    this.observer.observe(this.canvas);
    this.canvas.addEventListener("wheel", (event) => { event.preventDefault(); this.zoom(Math.exp(-event.deltaY / 400), event.offsetX, event.offsetY); }, { passive: false });
    this.canvas.addEventListener("pointerdown", (event) => { this.from = [event.offsetX, event.offsetY, this.left, this.top, false]; this.canvas.setPointerCapture(event.pointerId); });
    this.canvas.addEventListener("pointermove", (event) => this.point(event));
    this.canvas.addEventListener("pointerup", (event) => { const dragged = this.from?.[4]; this.from = null; if (!dragged) { const i = this.near(event.offsetX, event.offsetY); if (i >= 0) this.choose(i); } });
    this.canvas.addEventListener("pointerleave", hideTip);
    this.restyle();
  }
  end() { this.observer?.disconnect(); }
  resize() {
    const { clientWidth: wide, clientHeight: high } = this.canvas;
    if (!wide || (this.wide === wide && this.high === high)) return;
    const fresh = !this.wide;
    [this.wide, this.high, this.ratio] = [wide, high, Math.min(devicePixelRatio || 1, 2)];
    this.canvas.width = wide * this.ratio; this.canvas.height = high * this.ratio;
    fresh ? this.fit() : this.draw();
  }
  restyle() {
    const probe = h("span", { hidden: true });
    this.canvas.parentElement.append(probe);
    this.colours = Array.from({ length: N_COLOURS }, (_, i) => { probe.className = `s${i}`; probe.style.color = "var(--series)"; return getComputedStyle(probe).color; });
    const own = getComputedStyle(this.canvas);
    [this.ink, this.ground] = [own.color, own.backgroundColor];
    probe.remove();
    this.draw();
  }
  fit() {
    const margin = 48;
    this.scale = Math.min((this.wide - 2 * margin) / (this.x1 - this.x0 || 1), (this.high - 2 * margin) / (this.y1 - this.y0 || 1));
    this.least = this.scale / 2;
    this.left = (this.wide - this.scale * (this.x1 + this.x0)) / 2;
    this.top = (this.high + this.scale * (this.y1 + this.y0)) / 2;
    this.draw();
  }
  zoom(by, x = this.wide / 2, y = this.high / 2) {
    const scale = Math.min(this.least * 400, Math.max(this.least, this.scale * by)), ratio = scale / this.scale;
    this.left = x - (x - this.left) * ratio; this.top = y - (y - this.top) * ratio; this.scale = scale;
    this.draw();
  }
  move(x, y) { this.left += x; this.top += y; this.draw(); }
  grown(i) { return Math.min(4, Math.sqrt(this.many[i])); }
  px(i) { return this.left + this.xs[i] * this.scale; }
  py(i) { return this.top - this.ys[i] * this.scale; }

  // Which topics have a point that is lit, and how large theirs are drawn.
  tally() {
    for (const one of this.topics) { one.any = false; one.grown = 1; }
    this.rows.forEach((_, i) => { if (this.isLit(i)) { const one = this.topics[this.topicOf[i]]; one.any = true; one.grown = Math.max(one.grown, this.grown(i)); } });
  }
  light(fits) {
    this.lit = fits ? Uint8Array.from(this.rows, (row) => (fits(row) ? 1 : 0)) : null;
    this.tally();
    this.draw();
    return this.lit ? this.lit.reduce((a, b) => a + b, 0) : this.rows.length;
  }
  only(topic) { this.topic = this.topic === topic ? null : topic; this.tally(); this.draw(); return this.topic !== null; }
  isLit(i) { return (!this.lit || this.lit[i]) && (this.topic === null || this.rows[i].topic === this.topic); }

  draw() {
    if (this.asked || !this.wide) return;
    this.asked = true;
    requestAnimationFrame(() => { this.asked = false; this.paint(); });
  }
  paint() {
    const pen = this.canvas.getContext("2d"), { wide, high } = this;
    pen.setTransform(this.ratio, 0, 0, this.ratio, 0, 0);
    pen.clearRect(0, 0, wide, high);
    const closer = Math.sqrt(this.scale / (this.least * 2));
    const size = Math.max(1.6, Math.min(9, (this.rows.length > 20000 ? 1.8 : this.rows.length > 2000 ? 3 : 5.5) * closer));
    for (const bright of [false, true]) {
      pen.globalAlpha = bright ? (this.rows.length > 20000 ? 0.7 : 0.85) : 0.1;
      let colour = -1;
      for (const i of this.order) {
        if (this.isLit(i) !== bright) continue;
        const x = this.px(i), y = this.py(i);
        if (x < -9 || y < -9 || x > wide + 9 || y > high + 9) continue;
        const own = this.topicOf[i] % N_COLOURS;
        if (own !== colour) { colour = own; pen.fillStyle = pen.strokeStyle = this.colours[own]; }
        const side = size * this.grown(i), hollow = isHollow(this.topicOf[i]);
        if (side < 3) { pen.fillRect(x - side / 2, y - side / 2, side, side); continue; }
        pen.beginPath(); pen.arc(x, y, (hollow ? side - 1.6 : side) / 2, 0, 7);
        if (hollow) { pen.lineWidth = 1.6; pen.stroke(); } else pen.fill();
      }
    }
    pen.globalAlpha = 1;
    this.label(pen);
    if (this.at >= 0) { pen.strokeStyle = this.ink; pen.lineWidth = 2; pen.beginPath(); pen.arc(this.px(this.at), this.py(this.at), (size * this.grown(this.at)) / 2 + 4, 0, 7); pen.stroke(); }
  }
  // Names of the largest topics, as many as have room.
  label(pen) {
    pen.font = "600 13px system-ui, sans-serif"; pen.textAlign = "center"; pen.textBaseline = "middle"; pen.lineJoin = "round";
    const taken = [];
    for (const { topic, x, y, any, grown } of this.topics) {
      if (!any) continue;
      const px = this.left + x * this.scale, py = this.top - y * this.scale - 12 - 3 * grown, half = pen.measureText(topic).width / 2 + 6;
      if (px < half || px > this.wide - half || py < 12 || py > this.high - 12) continue;
      if (taken.some((box) => Math.abs(box[0] - px) < box[2] + half && Math.abs(box[1] - py) < 20)) continue;
      taken.push([px, py, half]);
      pen.strokeStyle = this.ground; pen.lineWidth = 4; pen.strokeText(topic, px, py);
      pen.fillStyle = this.ink; pen.fillText(topic, px, py);
    }
  }

  near(x, y) {
    let best = -1, least = REACH ** 2;
    const span = (value) => [value - REACH / this.scale, value + REACH / this.scale];
    const [x0, x1] = span((x - this.left) / this.scale), [y0, y1] = span((this.top - y) / this.scale);
    for (let line = this.line(y0); line <= this.line(y1); line++) for (let column = this.column(x0); column <= this.column(x1); column++) {
      for (const i of this.cells.get(column + CELLS * line) ?? []) {
        const away = Math.max(0, Math.hypot(this.px(i) - x, this.py(i) - y) - 3 * (this.grown(i) - 1)) ** 2;
        if (away < least && this.isLit(i)) { least = away; best = i; }
      }
    }
    return best;
  }
  point(event) {
    if (this.from) {
      const [x, y, left, top] = this.from;
      if (Math.abs(event.offsetX - x) + Math.abs(event.offsetY - y) > 4) this.from[4] = true;
      if (this.from[4]) { this.left = left + event.offsetX - x; this.top = top + event.offsetY - y; hideTip(); this.draw(); }
      return;
    }
    const i = this.near(event.offsetX, event.offsetY);
    this.canvas.style.cursor = i < 0 ? "grab" : "pointer";
    if (i < 0) hideTip();
    else showTip([h("b", {}, titleOf(this.rows[i])), h("br"), `#${this.rows[i].unit}${this.many[i] > 1 ? ` and ${this.many[i] - 1} more` : ""} · ${this.rows[i].topic}`], event.clientX, event.clientY);
  }
  // The point that was chosen, with its pictures and the way to its page.
  choose(i) {
    this.at = i;
    const row = this.rows[i];
    this.card.hidden = false;
    this.card.href = unitLink(row.set, row.unit);
    this.card.replaceChildren(coverOf(row.set, row.unit, (cover) => cover.isConnected), h("span", { class: "what" }, h("strong", {}, titleOf(row)), h("span", { class: "sub" }, `#${row.unit} · ${row.topic}`)), h("span", { class: "go" }, "open ›"));
    const x = this.px(i), y = this.py(i);
    if (x < 20 || y < 20 || x > this.wide - 20 || y > this.high - 20) { this.left += this.wide / 2 - x; this.top += this.high / 2 - y; }
    this.draw();
  }
  walk(step) {
    const lit = Array.from(this.order).filter((i) => this.isLit(i));
    if (!lit.length) return;
    const place = lit.indexOf(this.at);
    this.choose(lit[place < 0 ? 0 : (place + step + lit.length) % lit.length]);
  }
  open() { if (this.at >= 0) location.hash = this.card.hash; }
}
