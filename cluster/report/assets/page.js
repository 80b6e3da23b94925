"use strict";
// The shell: theme, navigation, tips and keys. Each part of the page adds its own keys to `keys`.
const $ = (selector, root = document) => root.querySelector(selector);
const $$ = (selector, root = document) => [...root.querySelectorAll(selector)];
const keys = {};

const tip = $("#tip");
function showTip(content, x, y) {
  tip.replaceChildren(...[content].flat());
  tip.hidden = false;
  const box = tip.getBoundingClientRect();
  const left = x + 14 + box.width > innerWidth ? x - 14 - box.width : x + 14;
  tip.style.left = Math.max(4, left) + "px";
  tip.style.top = Math.max(4, Math.min(y + 14, innerHeight - box.height - 4)) + "px";
}
const hideTip = () => { tip.hidden = true; };
addEventListener("scroll", hideTip, { passive: true });
// What the pointer is over, or what a finger taps; that stays until the finger taps elsewhere.
function onPoint(element, show, leave = hideTip) {
  element.addEventListener("pointermove", show);
  element.addEventListener("pointerdown", show);
  element.addEventListener("pointerleave", (event) => { if (event.pointerType !== "touch") leave(); });
}
addEventListener("pointerdown", hideTip, { capture: true });

// ---------------------------------------------------------------- theme: as the system has it, until somebody chooses
const root = document.documentElement;
const remember = (value) => { try { localStorage.setItem("miclip-theme", value); } catch { /* a file may not */ } };
try { const kept = localStorage.getItem("miclip-theme"); if (kept) root.dataset.theme = kept; } catch { /* a file may not */ }
keys.t = () => {
  const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = dark ? "light" : "dark";
  remember(root.dataset.theme);
};
$("#theme").addEventListener("click", keys.t);

// ---------------------------------------------------------------- keys
const dialog = $("#keys");
keys["?"] = () => (dialog.open ? dialog.close() : dialog.showModal());
$("#help").addEventListener("click", keys["?"]);
addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const writing = event.target.matches("input, select, textarea");
  if (event.key === "Escape") { hideTip(); if (writing) event.target.blur(); return; }
  if (writing || !keys[event.key]) return;
  event.preventDefault();
  keys[event.key](event);
});

// ---------------------------------------------------------------- a link leads to its place, also to one that is not shown yet
const revealers = [];
let landing = 0;
// Things above a place may still change their height: it is gone to again until it stays, or until the reader moves.
function land(target) {
  const mine = ++landing;
  let frames = 0, still = 0, before;
  const step = () => {
    if (mine !== landing) return;
    target.scrollIntoView({ block: "start", behavior: "instant" });
    const now = scrollY;
    still = now === before ? still + 1 : 0;
    before = now;
    if (still < 5 && ++frames < 60) requestAnimationFrame(step);
  };
  step();
}
function visit() {
  const target = location.hash && document.getElementById(location.hash.slice(1));
  if (!target) return;
  revealers.forEach((reveal) => reveal(target));
  land(target);
}
for (const event of ["load", "hashchange"]) addEventListener(event, visit);
for (const event of ["wheel", "touchstart", "pointerdown", "keydown"]) addEventListener(event, () => { landing++; }, { passive: true, capture: true });
// The same link once more is no change of the hash.
addEventListener("click", (event) => {
  const link = event.target.closest("a");
  if (link?.hash && link.hash === location.hash && !event.ctrlKey && !event.metaKey && !event.shiftKey) visit();
});

// ---------------------------------------------------------------- navigation says where the reader is
const links = new Map($$("nav a").map((a) => [a.hash.slice(1), a]));
const inView = new Set();
const watch = new IntersectionObserver((entries) => {
  for (const entry of entries) entry.isIntersecting ? inView.add(entry.target.id) : inView.delete(entry.target.id);
  const current = [...links.keys()].find((id) => inView.has(id));
  for (const [id, a] of links) id === current ? a.setAttribute("aria-current", "true") : a.removeAttribute("aria-current");
}, { rootMargin: "-35% 0px -65% 0px" });
$$("main > section").forEach((section) => watch.observe(section));
