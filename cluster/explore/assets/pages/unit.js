// One unit: what excites it and where, how often, what it is called and explained as, and where other models have it.
import { count, h, percent, short, svg } from "../dom.js";
import { about, findSet, getSet, isIndexed, loadIndex, modelLink, readUnit, setLink, titleOf, unitLink } from "../lake.js";
import { coverOf, shown, tilesOf, toggleOverlay } from "../pictures.js";
import { HEAT } from "../heat.js";
import { missing } from "./lists.js";

const COVERS = 2;
// A page reads one range of its own, and one for each of the first other models' units.
const FIGURES = [
  ["density", "density", "share of tokens on which it is active", percent], ["images_active", "images", "images where it is active", count],
  ["max", "largest", "largest value", short], ["p50", "median", "median of active codes", short], ["mean", "mean", "mean of active codes; of a neuron, of all values", short],
  ["positive", "positive", "share of values above zero", percent], ["min", "smallest", "smallest value", short],
  ["monosemanticity", "monosemanticity", "mean cosine of image embeddings, weighted by codes", short],
  ["clarity", "clarity", "mean cosine of the embeddings of its top images", short], ["clarity_baseline", "clarity of chance", "the same of random images", short],
  ["kurtosis", "kurtosis", "over all tokens with their zeros, in excess of the normal distribution's", short], ["enc_dec_cos", "enc·dec cosine", "cosine of its encoder and decoder rows", short],
];

export async function unit({ name, number }) {
  const set = getSet(name), n = Number(number);
  if (!set || !(n >= 0 && n < set.units)) return missing(`${name} / ${number}`);
  const one = await readUnit(set, n);
  const title = titleOf({ text: one.texts.find((text) => !text.control)?.text ?? null, name: one.names[0]?.concepts[0]?.[0] ?? null, concept: one.concepts[0]?.concept ?? null });
  const step = (by) => { const to = n + by; if (to >= 0 && to < set.units) location.hash = unitLink(set, to); };
  const other = (by, word, key) => h("a", { class: "step", href: n + by >= 0 && n + by < set.units ? unitLink(set, n + by) : null, "aria-disabled": n + by < 0 || n + by >= set.units ? "true" : null, title: `${word} (${key})` }, by < 0 ? "‹" : "›");
  const overlay = h("button", { type: "button", class: "overlay", "aria-pressed": String(shown.overlay), title: "Overlay on or off (o)", onclick: () => flip() }, "Overlay");
  function flip() { toggleOverlay(); overlay.setAttribute("aria-pressed", String(shown.overlay)); }
  return {
    title: `${title ?? `#${n}`} · ${set.model}`, page: "zoo",
    body: [
      h("div", { class: "above" },
        h("p", { class: "crumbs" }, h("a", { href: "#/" }, "Zoo"), h("a", { href: modelLink(set.model) }, set.model), h("a", { href: setLink(set) }, set.site), h("span", {}, `#${n}`)),
        h("span", { class: "steps" }, other(-1, "Previous", "k"), other(1, "Next", "j"))),
      h("h1", { class: "unit" }, title ?? `${set.kind === "features" ? "Feature" : "Neuron"} ${n}`, h("span", { class: "kind" }, `${one.images.length ? "" : "never active · "}#${n} of ${count(set.units)} ${about(set)}`)),
      h("div", { class: "halves" },
        h("div", {},
          h("div", { class: "bar still" }, h("h2", {}, "Where it is active"), one.maps && overlay, one.maps && set.kind === "features" && heatKey(one.map_most)),
          one.images.length ? h("div", { class: "tiles" }, tilesOf(one)) : h("p", { class: "none" }, "Active on none of the images."),
          set.kind === "neurons" && one.maps && h("p", { class: "note" }, "The frame is the patch with the neuron's largest value."),
          one.histogram && [h("h2", {}, "How strongly"), histogram(one.histogram)],
          h("dl", { class: "figures" }, FIGURES.filter(([name]) => name in one.figures).map(([name, word, hint, show]) => h("div", { title: hint }, h("dt", {}, word), h("dd", {}, show(one.figures[name])))))),
        h("div", {}, texts(one), names(one), concepts(one), partners(one), neighbours(set, one)))],
    keys: { j: () => step(1), k: () => step(-1), ArrowRight: () => step(1), ArrowLeft: () => step(-1), o: flip, u: () => { location.hash = setLink(set); } },
  };
}

function heatKey(most) {
  return h("span", { class: "heat", title: "codes of patches" }, "0 ", svg("svg", { width: 6 * HEAT.length, height: 10, "aria-hidden": "true" }, HEAT.map((fill, i) => svg("rect", { x: 6 * i, width: 6, height: 10, fill }))), ` ${short(most)}`);
}

// Bin i begins at 2^(-16 + i/2); heights are square roots, so that rare strong codes are seen.
function histogram(counts) {
  const filled = counts.map((n, i) => (n ? i : -1)).filter((i) => i >= 0);
  if (!filled.length) return h("p", { class: "none" }, "Never active.");
  const first = Math.max(0, filled[0] - 1), last = Math.min(counts.length - 1, filled.at(-1) + 1), most = Math.max(...counts), wide = 640 / (last - first + 1);
  const bars = filled.map((i) => {
    const high = 4 + 100 * Math.sqrt(counts[i] / most);
    return svg("rect", { x: ((i - first) * wide + 1).toFixed(1), y: (112 - high).toFixed(1), width: (wide - 2).toFixed(1), height: high.toFixed(1), rx: 2 }, svg("title", {}, `${count(counts[i])} codes from ${short(2 ** (i / 2 - 16))} to ${short(2 ** ((i + 1) / 2 - 16))}`));
  });
  const ticks = [];
  for (let i = first; i <= last + 1; i++) if (i % 2 === 0 && (last - first < 14 || i % 4 === 0)) ticks.push(svg("text", { x: ((i - first) * wide).toFixed(1), y: 130, "text-anchor": "middle" }, short(2 ** (i / 2 - 16), 2)));
  return h("figure", { class: "histogram" }, svg("svg", { viewBox: "-14 0 668 136", role: "img", "aria-label": `Histogram of ${count(counts.reduce((a, b) => a + b, 0))} active codes` }, svg("path", { d: "M0 112.5H640", class: "base" }), bars, ticks),
    h("figcaption", {}, `${count(counts.reduce((a, b) => a + b, 0))} active codes by size (log); heights are square roots of counts`));
}

const block = (title, ...content) => h("section", { class: "block" }, h("h2", {}, title), ...content);

function texts(one) {
  if (!one.texts.length) return null;
  const own = one.texts.filter((text) => !text.control), controls = one.texts.filter((text) => text.control);
  const line = (text) => h("li", { class: text.chosen ? "chosen" : "" },
    h("p", { class: "saying" }, text.text),
    h("p", { class: "sub" }, text.chosen && h("span", { class: "state good" }, "chosen"), ` ${text.how} · ${text.vlm}`, scoresOf(text)));
  return block("Explanations", h("ul", { class: "sayings" }, own.map(line)),
    controls.length > 0 && h("details", {}, h("summary", {}, `${controls.length} of random directions, to compare`), h("ul", { class: "sayings control" }, controls.map(line))));
}
function scoresOf(text) {
  const told = [["IoU", text.iou], ["CLIP", text.clip], ["made images", text.synthetic], ["AUROC", text.auroc]].filter(([, value]) => value !== undefined);
  return [told.map(([word, value]) => h("span", { class: "score" }, `${word} `, h("b", {}, short(value)))), text.named === true && h("span", { class: "score good" }, "names its concept")];
}

function names(one) {
  if (!one.names.length) return null;
  const truth = one.names.find((entry) => entry.truth)?.truth;
  return block("Names by method",
    h("ul", { class: "names" }, one.names.map((entry) => h("li", {},
      h("span", { class: "by" }, entry.method, entry.variant !== entry.method && h("span", { class: "sub" }, entry.variant.replace(`${entry.method} `, ""))),
      h("span", { class: "said" }, entry.concepts.map(([concept, score], i) => h("span", { class: i ? "later" : "first", title: `score ${short(score)}, comparable within this method` }, concept, h("small", {}, short(score))))),
      "correct" in entry && h("span", { class: `verdict ${entry.correct ? "good" : "bad"}`, title: `it stands for ${entry.truth}` }, entry.correct ? "✓ right" : "✗ wrong")))),
    truth && h("p", { class: "note" }, "It stands for ", h("b", {}, truth), " by the labels of images."));
}

function concepts(one) {
  if (!one.concepts.length) return null;
  return block("What labels say", h("ul", { class: "meters" }, one.concepts.map((row) => h("li", { title: `F1 ${short(row.f1)} at its best threshold` },
    h("span", {}, row.concept.replace("=", " "), h("span", { class: "sub" }, row.level)), meter(Math.max(0, row.auroc - 0.5) * 2), h("b", {}, row.auroc.toFixed(3)))),
  ), h("p", { class: "note" }, "AUROC: how well its codes tell images or patches with the label from all others; bars begin at 0.5."));
}
const meter = (share) => svg("svg", { class: "meter", viewBox: "0 0 100 8", preserveAspectRatio: "none", "aria-hidden": "true" }, svg("rect", { width: 100, height: 8, rx: 2, class: "rest" }), svg("rect", { width: (100 * share).toFixed(1), height: 8, rx: 2 }));

function partners(one) {
  if (!one.partners.length) return null;
  const known = one.partners.filter(findSet), best = known.filter((row, i) => known.findIndex((other) => other.model === row.model) === i);
  // One of each model before a second of any.
  const first = [...new Set([...best, ...known])].slice(0, COVERS), others = one.partners.filter((row) => !first.includes(row));
  return block("In other models", h("ul", { class: "partners" }, first.map((row) => {
    const set = findSet(row);
    const what = [coverOf(set, row.unit), h("span", { class: "what" }, h("strong", {}, row.model), h("span", { class: "sub" }, `${row.site} #${row.unit}`)), h("b", { class: "r", title: "correlation of their maps over images" }, `r ${row.r.toFixed(2)}`)];
    return h("li", {}, h("a", { class: "partner", href: unitLink(set, row.unit) }, what));
  })), others.length > 0 && h("ul", { class: "chips" }, others.map((row) => {
    const set = findSet(row);
    return h("li", {}, h("a", { class: "chip", href: set && unitLink(set, row.unit), title: set ? `r ${short(row.r)}` : "this unit has no page" }, h("b", {}, row.model), h("span", {}, `${row.site} #${row.unit}`), h("span", { class: "sub" }, row.r.toFixed(2))));
  })));
}

function neighbours(set, one) {
  if (!one.neighbours.length) return null;
  const list = h("ul", { class: "chips" }, one.neighbours.map(([unit, cosine]) => h("li", {}, h("a", { class: "chip", href: unitLink(set, unit), title: `cosine ${cosine.toFixed(3)}`, "data-unit": unit }, h("b", {}, `#${unit}`), h("span", { class: "sub" }, cosine.toFixed(2))))));
  // Their names are told where the list has been read already.
  if (isIndexed(set)) loadIndex(set).then((rows) => list.querySelectorAll("[data-unit]").forEach((what) => { const title = titleOf(rows[Number(what.dataset.unit)]); if (title) what.firstChild.after(h("span", {}, title)); }));
  return block("Nearest directions", list);
}
