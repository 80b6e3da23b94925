// The shell: which page the address asks for, keys, theme, and the search field that every page has.
import { $, $$, h, hideTip } from "./dom.js";
import { openSite } from "./lake.js";
import { search, set } from "./pages/lists.js";
import { map } from "./pages/map.js";
import { model } from "./pages/model.js";
import { run, runs } from "./pages/runs.js";
import { unit } from "./pages/unit.js";
import { zoo } from "./pages/zoo.js";

const ROUTES = [
  [/^\/?$/, () => zoo()],
  [/^\/model\/(.+)$/, (asked, [name]) => model({ ...asked, name: decodeURIComponent(name) })],
  [/^\/set\/([^/]+)$/, (asked, [name]) => set({ ...asked, name: decodeURIComponent(name) })],
  [/^\/unit\/([^/]+)\/(\d+)$/, (asked, [name, number]) => unit({ ...asked, name: decodeURIComponent(name), number })],
  [/^\/search$/, (asked) => search(asked)],
  [/^\/map(?:\/([^/]+))?$/, (asked, [name]) => map({ ...asked, name: name && decodeURIComponent(name) })],
  [/^\/runs$/, () => runs()],
  [/^\/runs\/([^/]+)$/, (asked, [name]) => run({ ...asked, name: decodeURIComponent(name) })],
];
const content = $("#content"), field = $("#seek input");
let current = {}, turn = 0, at = null;

// Where the reader was on each page of the history.
history.scrollRestoration = "manual";
const places = new Map();
const placeOf = () => history.state?.place ?? "";
let placed = 0;

async function visit() {
  const mine = ++turn;
  const [path, asked = ""] = location.hash.replace(/^#/, "").split("?");
  if (!history.state?.place) history.replaceState({ place: `${Date.now()}-${++placed}` }, "");
  hideTip();
  const route = ROUTES.find(([pattern]) => pattern.test(path));
  const query = new URLSearchParams(asked);
  const go = (values) => {
    const kept = new URLSearchParams(Object.entries(values).filter(([, value]) => value));
    history.replaceState(history.state, "", `#${path}${kept.size ? `?${kept}` : ""}`);
  };
  let page;
  try {
    page = route ? await route[1]({ query, go }, path.match(route[0]).slice(1)) : { title: "Not here", body: [h("h1", {}, "Not here"), h("p", {}, h("a", { href: "#/" }, "All models"))] };
  } catch (error) {
    page = { title: "Not read", body: [h("h1", {}, "This page could not be read"), h("p", { class: "alarm", role: "alert" }, error.message)] };
  }
  if (mine !== turn) { page.end?.(); return; }
  current.end?.();
  current = page;
  content.replaceChildren(...page.body.flat(Infinity).filter(Boolean));
  document.title = `${page.title} · miclip`;
  const name = page.page ?? (path.split("/")[1] || "zoo");
  for (const link of $$("header.top nav a")) link.dataset.page === name ? link.setAttribute("aria-current", "page") : link.removeAttribute("aria-current");
  if (document.activeElement !== field) { field.value = name === "search" ? query.get("q") ?? "" : ""; content.focus({ preventScroll: true }); }
  page.start?.();
  at = placeOf();
  const kept = places.get(at) ?? 0;
  scrollTo(0, kept);
  if (kept && page.ready) page.ready.then(() => { if (mine === turn) requestAnimationFrame(() => scrollTo(0, kept)); }, () => {});
}
addEventListener("scroll", () => { if (at !== null && at === placeOf()) places.set(at, scrollY); }, { passive: true });
addEventListener("hashchange", visit);

// ---------------------------------------------------------------- search
let waiting;
function seek() {
  const asked = `#/search${field.value ? `?q=${encodeURIComponent(field.value)}` : ""}`;
  if (location.hash.startsWith("#/search")) {
    history.replaceState(history.state, "", asked);
    current.ask ? (current.ask(field.value), rename()) : visit();
  } else location.hash = asked;
}
function rename() {
  const head = $("h1", content);
  if (field.value) head.replaceChildren("Units that say ", h("q", {}, field.value));
  else head.replaceChildren("All units");
}
field.addEventListener("input", () => { clearTimeout(waiting); waiting = setTimeout(seek, 160); });
$("#seek").addEventListener("submit", (event) => { event.preventDefault(); clearTimeout(waiting); seek(); field.blur(); content.focus({ preventScroll: true }); });

// ---------------------------------------------------------------- theme: as the system has it, until somebody chooses
const root = document.documentElement;
try { const kept = localStorage.getItem("miclip-theme"); if (kept) root.dataset.theme = kept; } catch { /* not everywhere allowed */ }
function turnTheme() {
  const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = dark ? "light" : "dark";
  try { localStorage.setItem("miclip-theme", root.dataset.theme); } catch { /* not everywhere allowed */ }
  current.restyle?.();
}
$("#theme").addEventListener("click", turnTheme);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => current.restyle?.());

// ---------------------------------------------------------------- keys
const KEYS = [["/", "search"], ["j  k", "next and previous: line of a list, unit, point of the map"], ["Enter", "open it"], ["u", "up: the list, the model, the runs"],
  ["o", "overlay on or off"], ["z  m  r", "zoo, map, runs"], ["+  −  0", "map: nearer, farther, all of it; arrows move it"], ["t", "light or dark"], ["?", "these keys"], ["Esc", "close, leave a field"]];
const dialog = $("#keys");
$("tbody", dialog).append(...KEYS.map(([key, what]) => h("tr", {}, h("td", {}, key.split("  ").map((one) => [h("kbd", {}, one), " "])), h("td", {}, what))));
const toggleKeys = () => (dialog.open ? dialog.close() : dialog.showModal());
$("#help").addEventListener("click", toggleKeys);
const GLOBAL = {
  "/": () => { field.focus(); field.select(); }, t: turnTheme, "?": toggleKeys,
  z: () => { location.hash = "#/"; }, m: () => { location.hash = "#/map"; }, r: () => { location.hash = "#/runs"; },
};
addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const writing = event.target.matches("input, select, textarea");
  if (event.key === "Escape") { hideTip(); if (writing) event.target.blur(); return; }
  const act = current.keys?.[event.key] ?? GLOBAL[event.key];
  if (writing || !act || (dialog.open && event.key !== "?")) return;
  event.preventDefault();
  act(event);
});

openSite().then(visit, (error) => {
  content.replaceChildren(h("h1", {}, "These pages have nothing to show"), h("p", { class: "alarm", role: "alert" }, `${error.message}. Opened from a disk, a browser reads no files: serve the folder, by miclip explore --to DIR --open or by any server.`));
});
