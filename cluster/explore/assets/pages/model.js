// One model: its facts, its sets of units, its autoencoders, how methods do on it, and what it shares.
import { amount, count, h, percent, short, table } from "../dom.js";
import { about, modelLink, setLink, setsOf, site } from "../lake.js";

const interval = (row) => (row.low === null ? short(row.value) : [short(row.value), h("span", { class: "range" }, ` ${short(row.low)} – ${short(row.high)}`)]);

export function model({ name }) {
  const facts = site.models.find((one) => one.model === name), sets = setsOf(name);
  if (!facts) return { title: "No such model", body: [h("h1", {}, "No such model"), h("p", {}, `No published table knows ${name}.`)] };
  const told = [
    ["family", facts.family], ["blocks", facts.n_layers], ["width", count(facts.width)], ["MLP width", facts.mlp_width && count(facts.mlp_width)],
    ["patch grid", facts.grid_h && `${facts.grid_h} × ${facts.grid_w}`], ["input", facts.input_h && `${facts.input_h} × ${facts.input_w}`],
    ["embedding", facts.embed_dim], ["nonlinearity", facts.act_kind], ["pooling", facts.pool],
    ["parameters", amount(facts.parameters)], ["FLOPs an image", amount(facts.flops)], ["text tower", facts.has_text === undefined ? null : facts.has_text ? "yes" : "no"],
  ].filter(([, value]) => value !== null && value !== undefined && value !== "–");
  return {
    title: name,
    body: [
      h("p", { class: "crumbs" }, h("a", { href: "#/" }, "Zoo")),
      h("h1", {}, name),
      h("dl", { class: "facts" }, told.map(([what, value]) => h("div", {}, h("dt", {}, what), h("dd", {}, String(value))))),
      h("h2", {}, "Units"),
      sets.length ? h("div", { class: "sets" }, sets.map(card)) : h("p", { class: "none" }, "No stage of kind explorer has made pages for this model."),
      section("Autoencoders", saes(name)),
      section("How methods name its units", scores(name)),
      section("How well explanations fit", explanations(name)),
      section("Shared with other models", pairs(name)),
    ],
  };
}

const METRICS = { iou: "IoU", clip: "CLIP", auroc_macro: "AUROC, mean of features", auroc_pooled: "AUROC, pooled" };
const section = (title, content) => content && [h("h2", {}, title), content];

function card(set) {
  const sae = site.saes.find((one) => one.sae === set.sae);
  return h("a", { class: "card set", href: setLink(set) },
    h("strong", {}, set.site),
    h("span", {}, `${count(set.units)} ${about(set)}`),
    sae && h("span", { class: "sub" }, `${sae.arch}${sae.k ? ` k ${sae.k}` : ""} · variance explained ${percent(1 - sae.fvu)} · ${percent(sae.dead_fraction)} dead`));
}

function saes(name) {
  const rows = site.saes.filter((one) => one.model === name);
  return rows.length && table("Autoencoders", [
    { name: "site", value: (r) => r.site, show: (r) => r.site },
    { name: "sae", value: (r) => r.sae, show: (r) => h("code", {}, r.sae.slice(0, 12)) },
    { name: "kind", value: (r) => r.arch, show: (r) => r.arch },
    { name: "latents", number: true, value: (r) => r.latents, show: (r) => count(r.latents) },
    { name: "active a token", title: "latents that are active on a token", number: true, value: (r) => r.l0, show: (r) => short(r.l0) },
    { name: "FVU", title: "share of variance that is not explained", number: true, value: (r) => r.fvu, show: (r) => short(r.fvu) },
    { name: "dead", number: true, value: (r) => r.dead_fraction, show: (r) => percent(r.dead_fraction) },
    { name: "loss recovered", number: true, value: (r) => r.recovered_zero, show: (r) => percent(r.recovered_zero) },
    { name: "accuracy, spliced", title: "with the reconstruction in place of the site, beside the model as it is", number: true, value: (r) => r.top1_spliced, show: (r) => (r.top1_spliced === null ? "–" : `${percent(r.top1_spliced)} of ${percent(r.top1_original)}`) },
  ], rows);
}

function scores(name) {
  const rows = site.scores.filter((one) => one.model === name && one.value !== null);
  return rows.length && table("Scores of methods", [
    { name: "units", value: (r) => r.site, show: (r) => `${r.sae ? "features" : "neurons"} at ${r.site}` },
    { name: "method", value: (r) => r.variant, show: (r) => r.variant + (r.seed === null ? "" : ` seed ${r.seed}`) },
    { name: "measure", value: (r) => r.measure, show: (r) => r.measure.replaceAll("_", " ") },
    { name: "value", title: "mean and its 95 % interval", number: true, value: (r) => r.value, show: interval },
    { name: "at best", title: "what a perfect method would have", number: true, value: (r) => r.ceiling, show: (r) => (r.ceiling === null ? "" : short(r.ceiling)) },
    { name: "n", number: true, value: (r) => r.n, show: (r) => count(r.n) },
  ], rows);
}

function explanations(name) {
  const rows = site.explanations.filter((one) => one.model === name && one.value !== null);
  return rows.length && table("Explanations", [
    { name: "site", value: (r) => r.site, show: (r) => r.site },
    { name: "written by", value: (r) => r.vlm, show: (r) => r.vlm },
    { name: "method", value: (r) => `${r.method} ${r.masking} ${r.direction}`, show: (r) => [r.method, r.masking, r.direction].filter((word) => word !== "none").join(" ") },
    { name: "measure", value: (r) => r.metric, show: (r) => METRICS[r.metric] ?? r.metric.replaceAll("_", " ") },
    { name: "value", number: true, value: (r) => r.value, show: interval },
    { name: "n", number: true, value: (r) => r.n, show: (r) => count(r.n) },
  ], rows);
}

function pairs(name) {
  const rows = site.pairs.filter((pair) => pair.model_a !== pair.model_b && [pair.model_a, pair.model_b].includes(name))
    .map((pair) => {
      const [[, ownUnits, own], [other, theirUnits, theirs]] = pair.model_a === name ? [sideA(pair), sideB(pair)] : [sideB(pair), sideA(pair)];
      return { ...pair, other, own, theirs, units: ownUnits === theirUnits ? ownUnits : `${ownUnits} – ${theirUnits}` };
    });
  return rows.length && table("Other models", [
    { name: "with", value: (r) => r.other, show: (r) => h("a", { href: modelLink(r.other) }, r.other) },
    { name: "units", title: "own units, and those of the other model", value: (r) => r.units, show: (r) => r.units },
    { name: "k", title: "units are buddies if each is among the k nearest of the other", number: true, value: (r) => r.k, show: (r) => r.k },
    { name: "own units with a buddy", number: true, value: (r) => r.own, show: (r) => percent(r.own) },
    { name: "theirs", number: true, value: (r) => r.theirs, show: (r) => percent(r.theirs) },
    { name: "pairs above chance", number: true, value: (r) => r.above_null, show: (r) => count(r.above_null) },
    { name: "median r", number: true, value: (r) => r.r_p50, show: (r) => short(r.r_p50) },
  ], rows);
}

const sideA = (pair) => [pair.model_a, unitsOf(pair.sae_a), pair.share_a];
const sideB = (pair) => [pair.model_b, unitsOf(pair.sae_b), pair.share_b];

function unitsOf(ref) {
  const sae = site.saes.find((one) => one.sae === ref);
  return ref === null ? "neurons" : sae ? `${count(sae.latents)} features at ${sae.site}` : "features";
}
