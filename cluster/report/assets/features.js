// Features: pictures drawn when they come into view, with the map of codes over the part of the image that the model saw.
const cards = $("#cards");
const heat = JSON.parse($("#heat").textContent);
const thumbnails = JSON.parse($("#thumbnails").textContent);
let overlay = true;

const decoded = new Map();
function picture(number) {
  if (!decoded.has(number)) {
    const image = new Image();
    image.src = "data:image/jpeg;base64," + thumbnails[number];
    decoded.set(number, image.decode().then(() => image));
  }
  return decoded.get(number);
}
const mapOf = (tile) => tile.dataset.map && Uint8Array.from(atob(tile.dataset.map), (c) => c.charCodeAt(0));

async function draw(tile) {
  const image = await picture(Number(tile.dataset.image));
  const side = tile.width = tile.height = Math.round(96 * Math.min(devicePixelRatio || 1, 2));
  const pen = tile.getContext("2d");
  const ratio = side / Math.max(image.width, image.height);
  const wide = image.width * ratio, high = image.height * ratio, left = (side - wide) / 2, top = (side - high) / 2;
  pen.drawImage(image, left, top, wide, high);
  const map = mapOf(tile);
  if (!map) return;
  const [rows, columns] = tile.dataset.grid.split(" ").map(Number);
  const [x, y, w, h] = tile.dataset.seen.split(" ").map(Number);
  const spot = { left: left + x * wide, top: top + y * high, wide: w * wide / columns, high: h * high / rows };
  tile.spot = { left: spot.left / side, top: spot.top / side, wide: spot.wide / side, high: spot.high / side, rows, columns };
  if (!overlay) return;
  for (let i = 0; i < map.length; i++) {
    if (!map[i]) continue;
    const share = map[i] / 255;
    pen.globalAlpha = 0.12 + 0.5 * share;
    pen.fillStyle = heat[Math.min(heat.length - 1, Math.floor(share * heat.length))];
    const column = i % columns, row = Math.floor(i / columns);
    pen.fillRect(spot.left + column * spot.wide, spot.top + row * spot.high, spot.wide, spot.high);
  }
  pen.globalAlpha = 1;
}

const drawn = new Set();
const seen = new IntersectionObserver((entries) => {
  for (const { target, isIntersecting } of entries) {
    if (isIntersecting && !drawn.has(target)) { drawn.add(target); draw(target); }
  }
}, { rootMargin: "600px" });
const tiles = $$("canvas.tile", cards);
tiles.forEach((tile) => seen.observe(tile));
addEventListener("beforeprint", () => tiles.forEach((tile) => { if (!drawn.has(tile)) { drawn.add(tile); draw(tile); } }));

function toggleOverlay() {
  overlay = !overlay;
  $("#overlay").setAttribute("aria-pressed", String(overlay));
  drawn.forEach(draw);
}
keys.o = toggleOverlay;
$("#overlay").addEventListener("click", toggleOverlay);

// ---------------------------------------------------------------- the value under the pointer
cards.addEventListener("pointermove", (event) => {
  const tile = event.target.closest("canvas.tile");
  if (!tile) return hideTip();
  const box = tile.getBoundingClientRect(), spot = tile.spot;
  let text = tile.dataset.words;
  if (spot) {
    const column = Math.floor(((event.clientX - box.left) / box.width - spot.left) / spot.wide);
    const row = Math.floor(((event.clientY - box.top) / box.height - spot.top) / spot.high);
    if (column >= 0 && row >= 0 && column < spot.columns && row < spot.rows) {
      const value = mapOf(tile)[row * spot.columns + column] / 255 * Number(tile.dataset.largest);
      text += `\nrow ${row}, column ${column}: ${value ? "about " + value.toPrecision(2) : "0"}`;
    }
  }
  showTip(text, event.clientX, event.clientY);
});
cards.addEventListener("pointerleave", hideTip);

// ---------------------------------------------------------------- search, order, and walking through
const all = [...cards.children];
const fields = { find: $("#find"), which: $("#which"), reason: $("#reason"), order: $("#order") };
function arrange() {
  const words = fields.find.value.toLowerCase().split(/\s+/).filter(Boolean);
  const { which, reason, order } = fields;
  let shown = 0;
  for (const card of all) {
    card.hidden = !((!which.value || card.dataset.sae === which.value) && (!reason.value || card.dataset.reason === reason.value)
      && words.every((word) => word.startsWith("#") ? card.dataset.feature === word.slice(1) : card.dataset.words.includes(word)));
    shown += !card.hidden;
  }
  const sign = order.value === "feature" ? 1 : -1;
  const key = (card) => (card.dataset[order.value] === undefined ? Infinity : sign * Number(card.dataset[order.value]));
  cards.append(...all.map((card, i) => [key(card), i, card]).sort((a, b) => (a[0] - b[0] || 0) || a[1] - b[1]).map((entry) => entry[2]));
  $("#found").textContent = `${shown} of ${all.length}`;
  $("#no-cards").hidden = shown > 0;
}
for (const field of Object.values(fields)) field.addEventListener("input", arrange);
if (all.length) fields.which.value = all[0].dataset.sae;
arrange();

keys["/"] = () => { fields.find.focus(); fields.find.select(); };
function walk(step) {
  const visible = [...cards.children].filter((card) => !card.hidden);
  const at = visible.indexOf(document.activeElement.closest(".card"));
  const next = visible[at < 0 ? 0 : Math.max(0, Math.min(visible.length - 1, at + step))];
  if (next) { next.focus({ preventScroll: true }); next.scrollIntoView({ block: "nearest" }); }
}
keys.j = () => walk(1);
keys.k = () => walk(-1);

function visit() {
  const card = location.hash.startsWith("#f-") && document.getElementById(location.hash.slice(1));
  if (!card) return;
  if (card.hidden) {
    fields.find.value = fields.reason.value = "";
    fields.which.value = card.dataset.sae;
    arrange();
  }
  card.focus({ preventScroll: true });
  card.scrollIntoView({ block: "start" });
}
addEventListener("hashchange", visit);
visit();
