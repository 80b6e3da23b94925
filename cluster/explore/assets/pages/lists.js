// All units of one set, and a search over the whole zoo: the same list.
import { $, h, plural } from "../dom.js";
import { about, getSet, loadAll, loadIndex, makeSearch, modelLink, site, setsOf } from "../lake.js";
import { ORDERS, arrange, makeList, select } from "../list.js";

const ONLY = [["", "all units"], ["alive", "active ones"], ["named", "named ones"], ["shared", "in other models too"]];

// What a list is asked for is in the address, so that a link or going back leads to the same.
function makeBrowser({ query, go, withModel, rows, order, only = "", extra = [], field }) {
  const asked = { q: query.get("q") ?? "", order: query.get("order") ?? order, only: query.get("only") ?? only, model: query.get("model") ?? "" };
  const list = makeList(withModel), found = h("span", { class: "found", role: "status" });
  let all = [];
  function show() {
    const sought = makeSearch(asked.q);
    const kept = asked.model ? all.filter((row) => row.set.model === asked.model) : all;
    const fitting = arrange(kept, sought, asked.order, asked.only);
    found.textContent = fitting.length === all.length ? plural(all.length, "unit") : `${fitting.length.toLocaleString("en")} of ${plural(all.length, "unit")}`;
    none.hidden = fitting.length > 0;
    list.show(fitting, sought.patterns);
  }
  const none = h("p", { class: "none", hidden: true }, "Nothing fits. A word is found where it begins a word: “red” finds “dark red”, not “checkered”; #12 finds unit 12.");
  function change(name, value) {
    asked[name] = value;
    go({ q: asked.q, order: asked.order === order ? "" : asked.order, only: asked.only === only ? "" : asked.only, model: asked.model });
    show();
  }
  const choices = Object.entries(ORDERS).map(([name, [word]]) => [name, `by ${word}`]);
  const bar = h("div", { class: "bar" },
    field && h("input", { type: "search", class: "find here", placeholder: "Search this set  /", "aria-label": "Search this set", value: asked.q, oninput: (event) => change("q", event.target.value) }),
    extra.map(([label, options, name]) => select(label, options, asked[name], (value) => change(name, value))),
    select("Which units", ONLY, asked.only, (value) => change("only", value)),
    select("Order", choices, asked.order, (value) => change("order", value)),
    found);
  found.textContent = "reading…";
  const ready = rows((done, of) => { found.textContent = `reading ${done} of ${of} sets…`; }).then((read) => { all = read; show(); });
  ready.catch((error) => { found.textContent = ""; none.hidden = false; none.textContent = `The list could not be read: ${error.message}`; });
  return { body: [bar, none, list.box], ready, end: list.end, keys: { j: () => list.walk(1), k: () => list.walk(-1) }, ask: (q) => change("q", q) };
}

export function set({ name, query, go }) {
  const one = getSet(name);
  if (!one) return missing(name);
  const browser = makeBrowser({ query, go, rows: () => loadIndex(one), order: "unit", field: true });
  return {
    title: `${one.site} of ${one.model}`, page: "zoo", ...browser,
    body: [
      h("p", { class: "crumbs" }, h("a", { href: "#/" }, "Zoo"), h("a", { href: modelLink(one.model) }, one.model)),
      h("h1", {}, one.site, h("span", { class: "kind" }, `${one.units.toLocaleString("en")} ${about(one)}`)),
      ...browser.body,
    ],
    keys: { ...browser.keys, u: () => { location.hash = modelLink(one.model); }, "/": () => { const field = $(".find.here"); field.focus(); field.select(); } },
  };
}
export const missing = (what) => ({ title: "Not here", body: [h("h1", {}, "Not here"), h("p", {}, `These pages have nothing named ${what}. It may be of a run that they were not made of.`), h("p", {}, h("a", { href: "#/" }, "All models"))] });

export function search({ query, go }) {
  const models = [["", "all models"], ...site.models.map((one) => one.model).filter((name) => setsOf(name).length).map((name) => [name, name])];
  const browser = makeBrowser({ query, go, withModel: true, rows: loadAll, order: "fit", only: "", extra: [["Model", models, "model"]] });
  const q = query.get("q");
  return {
    title: q ? `“${q}”` : "Search", ...browser,
    body: [h("h1", {}, q ? ["Units that say ", h("q", {}, q)] : "All units"), ...browser.body],
  };
}
