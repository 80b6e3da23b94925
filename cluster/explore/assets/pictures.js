// Strips of thumbnails, and maps of values over the part of a picture that the model saw.
import { HEAT } from "./heat.js";
import { h, hideTip, short, showTip } from "./dom.js";
import { readCover } from "./lake.js";

export const shown = { overlay: true };
const SIDE = 64;
const drawn = new Set();

const decode = (bytes) => createImageBitmap(new Blob([bytes], { type: "image/jpeg" }));

// The canvases of a unit's images, in order; each is drawn when its strip is decoded.
export function tilesOf(unit) {
  const strip = unit.thumbnails && decode(unit.thumbnails);
  const cells = unit.map_h * unit.map_w;
  drawn.clear();
  return unit.images.map((image, n) => {
    const map = unit.maps && unit.maps.subarray(n * cells, (n + 1) * cells);
    const words = `${short(image.value)}  ${image.words}`;
    const canvas = h("canvas", { class: "tile", width: 96, height: 96, role: "img", "aria-label": `Image ${n + 1}, value ${words}` });
    const tile = { canvas, image, n, map, unit, words };
    // A bitmap of its own: drawn from the strip, a tile would take colour from its neighbours at the edges.
    strip.then((all) => createImageBitmap(all, n * SIDE, 0, SIDE, SIDE)).then((bitmap) => { tile.bitmap = bitmap; draw(tile); drawn.add(tile); });
    canvas.addEventListener("pointermove", (event) => tell(tile, event));
    canvas.addEventListener("pointerleave", hideTip);
    return canvas;
  });
}

function draw(tile) {
  const { canvas, bitmap, image, map, unit } = tile;
  const side = canvas.width = canvas.height = Math.round(136 * Math.min(devicePixelRatio || 1, 2));
  const pen = canvas.getContext("2d");
  pen.imageSmoothingQuality = "high";
  const ratio = 1 / Math.max(image.width, image.height);
  const wide = image.width * ratio, high = image.height * ratio;
  const left = (1 - wide) / 2, top = (1 - high) / 2;
  pen.drawImage(bitmap, left * SIDE, top * SIDE, wide * SIDE, high * SIDE, left * side, top * side, wide * side, high * side);
  if (!map) return;
  const [x, y, w, tall] = image.seen;
  const spot = { left: left + x * wide, top: top + y * high, wide: (w * wide) / unit.map_w, high: (tall * high) / unit.map_h };
  tile.spot = spot;
  if (!shown.overlay) return;
  const neuron = unit.unit_kind === "neurons";
  for (let i = 0; i < map.length; i++) {
    if (!map[i]) continue;
    const share = map[i] / 255, box = [(spot.left + (i % unit.map_w) * spot.wide) * side, (spot.top + Math.floor(i / unit.map_w) * spot.high) * side, spot.wide * side, spot.high * side];
    if (neuron) {
      // Of a neuron only the place of its largest value is known.
      for (const [colour, width] of [["#000", side / 26], ["#ffe14d", side / 60]]) {
        pen.strokeStyle = colour;
        pen.lineWidth = Math.max(1, width);
        pen.strokeRect(...box);
      }
      continue;
    }
    pen.globalAlpha = 0.12 + 0.5 * share;
    pen.fillStyle = HEAT[Math.min(HEAT.length - 1, Math.floor(share * HEAT.length))];
    pen.fillRect(...box);
  }
  pen.globalAlpha = 1;
}

export function toggleOverlay() {
  shown.overlay = !shown.overlay;
  drawn.forEach(draw);
}

function tell(tile, event) {
  const { canvas, spot, unit, map, words } = tile;
  const box = canvas.getBoundingClientRect();
  let text = words;
  if (spot && unit.unit_kind !== "neurons") {
    const column = Math.floor(((event.clientX - box.left) / box.width - spot.left) / spot.wide);
    const row = Math.floor(((event.clientY - box.top) / box.height - spot.top) / spot.high);
    if (column >= 0 && row >= 0 && column < unit.map_w && row < unit.map_h) {
      const value = (map[row * unit.map_w + column] / 255) * unit.map_most;
      text += `\nrow ${row}, column ${column}: ${value ? `about ${value.toPrecision(2)}` : "0"}`;
    }
  }
  showTip(text, event.clientX, event.clientY);
}

// The small pictures of a unit, filled in when they have been read; `still` says whether anybody still wants them.
export function coverOf(set, unit, still = () => true) {
  const cover = h("span", { class: "cover", "aria-hidden": "true" });
  setTimeout(async () => {
    if (!still(cover)) return;
    try {
      const bytes = await readCover(set, unit);
      if (!bytes || !still(cover)) return;
      const bitmap = await decode(bytes);
      const canvas = h("canvas", { width: bitmap.width, height: bitmap.height });
      canvas.getContext("2d").drawImage(bitmap, 0, 0);
      cover.append(canvas);
    } catch { cover.classList.add("lost"); }
  }, 60);
  return cover;
}
