// Cards: search, filters, order, and walking through them. A section that shows more of a search listens to "arranged".
// A search finds what begins a word: "red" is in "dark red" and in "colour=red", and not in "checkered".
function holds(text, sought) {
  const exact = sought.replace(/[.*+?^${}()|[\]\\]/g, "\\$&");
  return new RegExp((/^[\p{L}\p{N}]/u.test(sought) ? "(?<![\\p{L}\\p{N}])" : "") + exact, "u").test(text);
}

// A page shows some of the cards that fit; the others wait behind a button, and keys walk on into them.
const FIRST = 12, MORE = 24;

const browsers = $$(".browser").map((root) => {
  const box = $(".cards", root), all = [...box.children], [earlier, later] = $$(".more-cards", root);
  const find = $(".find", root), order = $(".order", root), within = $("[data-within]", root), filters = $$("[data-filter]", root);
  const words = () => find.value.toLowerCase().split(/\s+/).filter(Boolean);
  let fitting = [], from = 0, to = 0;
  function arrange() {
    const wanted = words(), field = within?.value || "words", [by, up] = [order.value.replace("+", ""), order.value.endsWith("+")];
    const says = (card, word) => (word.startsWith("#") ? (card.dataset.numbers ?? card.dataset.number ?? "").split(" ").includes(word.slice(1)) : holds(card.dataset[field] ?? "", word));
    const fits = (card) => filters.every((f) => !f.value || card.dataset[f.dataset.filter] === f.value || (card.dataset[f.dataset.filter] ?? "").split(" ").includes(f.value)) && wanted.every((word) => says(card, word));
    const key = (card) => (card.dataset[by] === undefined ? Infinity : (up ? 1 : -1) * Number(card.dataset[by]));
    const ordered = all.map((card, i) => [key(card), i, card]).sort((a, b) => (a[0] - b[0] || 0) || a[1] - b[1]).map((entry) => entry[2]);
    box.append(...ordered);
    fitting = ordered.filter(fits);
    show(0, FIRST);
    $(".found", root).textContent = `${fitting.length} of ${all.length}`;
    $(".no-cards", root).hidden = fitting.length > 0 || !all.length;
    root.dispatchEvent(new CustomEvent("arranged", { detail: wanted }));
  }
  function show(start, end) {
    [from, to] = [Math.max(0, start), Math.min(fitting.length, end)];
    const shown = new Set(fitting.slice(from, to));
    for (const card of all) card.hidden = !shown.has(card);
    offer(earlier, from, "earlier");
    offer(later, fitting.length - to, "more");
  }
  function offer(button, left, word) {
    button.hidden = !left;
    button.textContent = left > MORE ? `Show ${MORE} ${word} of ${left}` : `Show ${left} ${word}`;
  }
  function reach(at) {
    if (at < from) show(Math.min(at, from - MORE), to);
    if (at >= to) show(from, Math.max(at + 1, to + MORE));
  }
  function focus(at, block) {
    fitting[at].focus({ preventScroll: true });
    fitting[at].scrollIntoView({ block });
  }
  function reveal(card) {
    if (!all.includes(card)) return;
    if (!fitting.includes(card)) {
      find.value = "";
      if (within) within.selectedIndex = 0;
      for (const f of filters) if (f.value) f.value = "first" in f.dataset ? card.dataset[f.dataset.filter] : "";
      arrange();
    }
    const at = fitting.indexOf(card), start = at - (at % FIRST);
    if (at < from || at >= to) show(start, start + FIRST);
    focus(at, "start");
  }
  function walk(step) {
    if (!fitting.length) return;
    const at = fitting.indexOf(document.activeElement.closest(".card"));
    const next = at < 0 ? from : Math.max(0, Math.min(fitting.length - 1, at + step));
    reach(next);
    focus(next, "nearest");
  }
  later.addEventListener("click", () => { const at = to; reach(at); focus(at, "nearest"); });
  earlier.addEventListener("click", () => { const at = from - 1; reach(at); focus(at, "nearest"); });
  for (const field of [find, order, within, ...filters]) field?.addEventListener("input", arrange);
  for (const f of filters) if ("first" in f.dataset && f.options.length > 1) f.selectedIndex = 1;
  revealers.push(reveal);
  return { root, find, arrange, walk };
});
// The scripts of sections run after this one and may listen by then.
addEventListener("DOMContentLoaded", () => { browsers.forEach((browser) => browser.arrange()); });

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
