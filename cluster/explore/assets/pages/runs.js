// Runs: what became of each, and what failed and why.
import { count, duration, h, plural, table } from "../dom.js";
import { site } from "../lake.js";
import { missing } from "./lists.js";

const KIND = { DONE: "good", RUNNING: "", FAILED: "bad", STOPPED: "bad", LOST: "bad", INTERRUPTED: "warm", CANCELLED: "warm", published: "good", cached: "good", failed: "bad", "to do": "warm" };
const badge = (word) => h("span", { class: `state ${KIND[word] ?? ""}` }, word);
const done = (run) => run.stages.filter((stage) => stage.state === "published" || stage.state === "cached").length;
const failed = (run) => run.stages.filter((stage) => stage.state === "failed").length;

export function runs() {
  const bad = site.runs.filter((run) => run.stands && failed(run)).length;
  return {
    title: "Runs", page: "runs",
    body: [
      h("h1", {}, "Runs"),
      h("p", { class: "lead" }, bad ? [h("span", { class: "state bad" }, "attention"), ` ${plural(bad, "run")} that tables are read from failed in part`] : "All runs that tables are read from are whole."),
      site.runs.length ? table("Runs", [
        { name: "run", value: (r) => r.run, show: (r) => [h("a", { href: `#/runs/${r.run}`, class: r.stands ? "strong" : "" }, r.run), r.stands && h("span", { class: "sub" }, " tables are read from it")] },
        { name: "status", value: (r) => r.status, show: (r) => badge(r.status) },
        { name: "stages", number: true, value: (r) => done(r), show: (r) => `${count(done(r))} of ${count(r.stages.length)}` },
        { name: "failed", number: true, value: failed, show: (r) => (failed(r) ? h("b", { class: "bad" }, count(failed(r))) : "0") },
        { name: "time", number: true, value: (r) => r.seconds, show: (r) => duration(r.seconds) },
        { name: "message", long: true, value: (r) => r.message, show: (r) => [r.limited && "trial ", r.message] },
      ], site.runs) : h("p", { class: "none" }, "No run is in this store."),
    ],
  };
}

// What differs from the night before, subject by subject.
function changed({ before, unchanged, subjects }) {
  const kind = { new: "good", recovered: "good", changed: "warm", failed: "bad", "still failing": "bad", gone: "warm" };
  return [
    h("h2", {}, "What changed", before && [" since ", h("a", { href: `#/runs/${before}` }, before)]),
    subjects.length ? table("What changed", [
      { name: "subject", value: (s) => s.subject, show: (s) => s.subject },
      { name: "change", value: (s) => s.change, show: (s) => h("span", { class: `state ${kind[s.change] ?? ""}` }, s.change) },
      { name: "cells", number: true, value: (s) => s.cells.length, show: (s) => count(s.cells.length) },
      { name: "why", long: true, value: (s) => s.why.join("; "), show: (s) => s.why.join("; ") },
    ], subjects) : null,
    h("p", { class: "note" }, `${plural(unchanged, "subject")} as before.`),
  ];
}

export function run({ name }) {
  const one = site.runs.find((other) => other.run === name);
  if (!one) return missing(name);
  const order = ["failed", "to do", "published", "cached"];
  const stages = [...one.stages].sort((a, b) => order.indexOf(a.state) - order.indexOf(b.state));
  const failures = stages.filter((stage) => stage.failures.length);
  return {
    title: one.run, page: "runs",
    body: [
      h("p", { class: "crumbs" }, h("a", { href: "#/runs" }, "Runs")),
      h("h1", {}, one.run, " ", badge(one.status)),
      h("p", { class: "lead" }, `${count(done(one))} of ${plural(one.stages.length, "stage")} in ${duration(one.seconds)}`, one.message && ` · ${one.message}`),
      failures.map((stage) => h("div", { class: "alarm", role: "alert" }, h("strong", {}, stage.cell), ` ${stage.what}`, h("ul", {}, stage.failures.map((one) => h("li", {}, `shard ${one.shard}, ${plural(one.attempts, "attempt")}: ${one.error}`))))),
      one.changes && changed(one.changes),
      h("h2", {}, "Stages"),
      table("Stages", [
        { name: "cell", value: (s) => s.cell, show: (s) => s.cell },
        { name: "output", value: (s) => s.what, show: (s) => s.what },
        { name: "state", value: (s) => order.indexOf(s.state), show: (s) => badge(s.state) },
        { name: "shards", number: true, value: (s) => s.done, show: (s) => `${count(s.done)}/${count(s.shards)}` },
        { name: "stage", value: (s) => s.digest, show: (s) => h("code", {}, s.digest.slice(0, 8)) },
        { name: "error", value: (s) => s.error, show: (s) => s.error },
      ], stages),
    ],
    keys: { u: () => { location.hash = "#/runs"; } },
  };
}
