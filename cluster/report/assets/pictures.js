// Pictures: drawn when they come into view, with a map of values over the part of the image that the model saw.
const heat = JSON.parse($("#heat").textContent);
const thumbnails = JSON.parse($("#thumbnails")?.textContent ?? "[]");
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
  if (tile.closest(".masked")) return cover(pen, map, spot, rows, columns, side);
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

// All but where the map is above zero is black, as masks show an image to a model.
function cover(pen, map, spot, rows, columns, side) {
  const hole = new Path2D();
  hole.rect(0, 0, side, side);
  for (let i = 0; i < map.length; i++) if (map[i]) hole.rect(spot.left + (i % columns) * spot.wide, spot.top + Math.floor(i / columns) * spot.high, spot.wide, spot.high);
  pen.fillStyle = "#000";
  pen.fill(hole, "evenodd");
}

const drawn = new Set();
const drawOnce = (tile) => { if (!drawn.has(tile)) { drawn.add(tile); draw(tile); } };
const inSight = new IntersectionObserver((entries) => {
  for (const { target, isIntersecting } of entries) if (isIntersecting) drawOnce(target);
}, { rootMargin: "600px" });
const tiles = [];
function adopt(tile) {
  tiles.push(tile);
  inSight.observe(tile);
  onPoint(tile, (event) => tellValue(tile, event));
}

keys.o = () => {
  overlay = !overlay;
  $$("button.overlay").forEach((button) => button.setAttribute("aria-pressed", String(overlay)));
  drawn.forEach(draw);
};
$$("button.overlay").forEach((button) => button.addEventListener("click", keys.o));

// ---------------------------------------------------------------- the value under the pointer
function tellValue(tile, event) {
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
}
$$("canvas.tile").forEach(adopt);

// ---------------------------------------------------------------- sheets: the same images under several maps, made when they come near
function unpack(sheet) {
  sheets.delete(sheet);
  const images = sheet.dataset.images.split(" "), said = JSON.parse(sheet.dataset.words);
  for (const strip of $$(".strip", sheet)) {
    const { maps, seen, largest, grid } = strip.dataset, label = strip.getAttribute("aria-label");
    const map = maps?.split(" "), box = seen?.split(";"), words = strip.dataset.words?.split("\n");
    strip.append(...images.map((image, n) => {
      const text = [label, words?.[n], said[n]].filter(Boolean).join("\n");
      if (image === "-") return Object.assign(document.createElement("span"), { className: "tile", title: text, textContent: "no thumbnail" });
      const tile = Object.assign(document.createElement("canvas"), { className: "tile", width: 96, height: 96 });
      Object.assign(tile.dataset, { image, words: text }, map && map[n] !== "-" ? { map: map[n], largest, grid, seen: box[n] ?? box[0] } : {});
      tile.setAttribute("role", "img");
      tile.setAttribute("aria-label", text.replaceAll("\n", ", "));
      adopt(tile);
      return tile;
    }));
  }
}
const sheets = new Set($$(".sheet"));
const nearSheets = new IntersectionObserver((entries) => {
  for (const { target, isIntersecting } of entries) if (isIntersecting && sheets.has(target)) { nearSheets.unobserve(target); unpack(target); }
}, { rootMargin: "600px" });
sheets.forEach((sheet) => nearSheets.observe(sheet));
addEventListener("beforeprint", () => {
  [...sheets].filter((sheet) => !sheet.closest("[hidden]")).forEach(unpack);
  tiles.forEach(drawOnce);
});
