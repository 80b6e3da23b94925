// Cards: search, filters, order, and walking through them. A section that shows more of a search listens to "arranged".
// A search finds what begins a word: "red" is in "dark red" and in "colour=red", and not in "checkered".
function holds(text, sought) {
  const exact = sought.replace(/[.*+?^${}()|[\]\\]/g, "\\$&");
  return new RegExp((/^[\p{L}\p{N}]/u.test(sought) ? "(?<![\\p{L}\\p{N}])" : "") + exact, "u").test(text);
}

const browsers = $$(".browser").map((root) => {
  const box = $(".cards", root), all = [...box.children];
  const find = $(".find", root), order = $(".order", root), within = $("[data-within]", root), filters = $$("[data-filter]", root);
  const words = () => find.value.toLowerCase().split(/\s+/).filter(Boolean);
  function arrange() {
    const wanted = words(), field = within?.value || "words", [by, up] = [order.value.replace("+", ""), order.value.endsWith("+")];
    const fits = (card, word) => (word.startsWith("#") ? card.dataset.number === word.slice(1) : holds(card.dataset[field] ?? "", word));
    let shown = 0;
    for (const card of all) {
      card.hidden = !(filters.every((f) => !f.value || card.dataset[f.dataset.filter] === f.value) && wanted.every((word) => fits(card, word)));
      shown += !card.hidden;
    }
    const key = (card) => (card.dataset[by] === undefined ? Infinity : (up ? 1 : -1) * Number(card.dataset[by]));
    box.append(...all.map((card, i) => [key(card), i, card]).sort((a, b) => (a[0] - b[0] || 0) || a[1] - b[1]).map((entry) => entry[2]));
    $(".found", root).textContent = `${shown} of ${all.length}`;
    $(".no-cards", root).hidden = shown > 0 || !all.length;
    root.dispatchEvent(new CustomEvent("arranged", { detail: wanted }));
  }
  function reveal(card) {
    if (card.hidden) {
      find.value = "";
      if (within) within.selectedIndex = 0;
      for (const f of filters) if (f.value) f.value = "first" in f.dataset ? card.dataset[f.dataset.filter] : "";
      arrange();
    }
    card.focus({ preventScroll: true });
    card.scrollIntoView({ block: "start" });
  }
  function walk(step) {
    const visible = [...box.children].filter((card) => !card.hidden);
    const at = visible.indexOf(document.activeElement.closest(".card"));
    const next = visible[at < 0 ? 0 : Math.max(0, Math.min(visible.length - 1, at + step))];
    if (next) { next.focus({ preventScroll: true }); next.scrollIntoView({ block: "nearest" }); }
  }
  for (const field of [find, order, within, ...filters]) field?.addEventListener("input", arrange);
  for (const f of filters) if ("first" in f.dataset && f.options.length > 1) f.selectedIndex = 1;
  return { root, find, arrange, reveal, walk };
});
// The scripts of sections run after this one and may listen by then.
addEventListener("DOMContentLoaded", () => { browsers.forEach((browser) => browser.arrange()); visit(); });

function nearestBrowser() {
  const focused = browsers.find((browser) => browser.root.contains(document.activeElement));
  const away = ({ root }) => { const { top, bottom } = root.getBoundingClientRect(), middle = innerHeight / 2; return Math.max(top - middle, middle - bottom, 0); };
  return focused ?? browsers.reduce((a, b) => (away(b) < away(a) ? b : a));
}
if (browsers.length) {
  keys["/"] = () => { const { find } = nearestBrowser(); find.focus(); find.select(); };
  keys.j = () => nearestBrowser().walk(1);
  keys.k = () => nearestBrowser().walk(-1);
}

function visit() {
  const card = location.hash && document.getElementById(location.hash.slice(1));
  const browser = card && card.matches(".card") && browsers.find(({ root }) => root.contains(card));
  if (browser) browser.reveal(card);
}
addEventListener("hashchange", visit);
