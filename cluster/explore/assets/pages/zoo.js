// The zoo: every model, how large it is, and what there is to look at.
import { amount, count, h, percent, plural, table } from "../dom.js";
import { modelLink, setsOf, site } from "../lake.js";

const sum = (sets) => sets.reduce((total, set) => total + set.units, 0);
const of = (model, kind) => sum(setsOf(model).filter((set) => set.kind === kind));
// The largest share of its units that another model has too, and which model that is.
export function bestShare(model) {
  const shares = site.pairs.filter((pair) => pair.model_a !== pair.model_b && (pair.model_a === model || pair.model_b === model))
    .map((pair) => (pair.model_a === model ? [pair.share_a, pair.model_b] : [pair.share_b, pair.model_a]));
  return shares.sort((a, b) => b[0] - a[0])[0] ?? null;
}

export function zoo() {
  const columns = [
    { name: "model", value: (m) => m.model, show: (m) => (setsOf(m.model).length ? h("a", { href: modelLink(m.model), class: "strong" }, m.model) : h("a", { href: modelLink(m.model) }, m.model)) },
    { name: "family", value: (m) => m.family, show: (m) => m.family ?? "–" },
    { name: "features", title: "latents of sparse autoencoders that have a page", number: true, value: (m) => of(m.model, "features"), show: (m) => count(of(m.model, "features") || null) },
    { name: "neurons", title: "neurons that have a page", number: true, value: (m) => of(m.model, "neurons"), show: (m) => count(of(m.model, "neurons") || null) },
    { name: "shared units", title: "largest share of its units that another model has too", number: true, value: (m) => bestShare(m.model)?.[0], show: (m) => percent(bestShare(m.model)?.[0]) },
    { name: "blocks", number: true, value: (m) => m.n_layers, show: (m) => count(m.n_layers) },
    { name: "width", number: true, value: (m) => m.width, show: (m) => count(m.width) },
    { name: "grid", title: "patches", number: true, value: (m) => m.grid_h, show: (m) => (m.grid_h ? `${m.grid_h}×${m.grid_w}` : "–") },
    { name: "input", title: "pixels", number: true, value: (m) => m.input_h, show: (m) => (m.input_h ? `${m.input_h}×${m.input_w}` : "–") },
    { name: "parameters", number: true, value: (m) => m.parameters, show: (m) => amount(m.parameters) },
    { name: "FLOPs an image", number: true, value: (m) => m.flops, show: (m) => amount(m.flops) },
    { name: "text", title: "has a text tower", value: (m) => (m.has_text ? "yes" : ""), show: (m) => (m.has_text ? "yes" : "") },
  ];
  const total = sum(site.sets), newest = site.runs.find((run) => run.stands);
  return {
    title: "Zoo",
    body: [
      h("h1", {}, "Zoo"),
      h("p", { class: "lead" }, `${plural(site.models.length, "model")}, ${plural(total, "unit")} with a page in ${plural(site.sets.length, "set")}`, newest && [" · newest run ", h("a", { href: `#/runs/${newest.run}` }, newest.run)]),
      table("Models", columns, site.models),
    ],
  };
}
