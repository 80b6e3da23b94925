// The published tables: site.json once, the short rows of a set whole, the row of a unit by one range.
import { parquetMetadataAsync, parquetReadObjects, zstd } from "./vendor/hyparquet.js";

const compressors = { ZSTD: (input, length) => zstd(input, new Uint8Array(length)) };
const FOOTER = 1 << 16;
const SHORT = ["unit", "name", "name_score", "text", "text_iou", "concept", "auroc", "words", "images_active", "density", "largest",
  "monosemanticity", "partners", "best_r", "x", "y", "topic"];

export let site;
const byId = new Map(), byStage = new Map();
export async function openSite() {
  const answer = await fetch("site.json");
  if (!answer.ok) throw new Error(`site.json: ${answer.status} ${answer.statusText}`);
  site = await answer.json();
  for (const set of site.sets) {
    let first = 0;
    for (const part of set.features) { part.first = first; first += part.rows; }
    byId.set(set.id, set);
    byStage.set(set.stage, set);
  }
  return site;
}
// By its id, or by its stage or the beginning of that, as addresses of older pages have it.
export const getSet = (name) => byId.get(name) ?? byStage.get(name) ?? site.sets.find((set) => set.stage.startsWith(name));
export const setsOf = (model) => site.sets.filter((set) => set.model === model);
const pathOf = (where) => where.split("@")[0];
// The set that has the page of a unit which another model names.
export const findSet = ({ model, sae, site: where }) => site.sets.find((set) => set.model === model && (sae || set.sae ? set.sae === sae : pathOf(set.site) === pathOf(where)));
export const about = (set) => (set.kind === "features" ? "SAE features" : "neurons");

// ---------------------------------------------------------------- ranges
// A bucket that nobody may list says 403 of what is not there.
const problem = (url, { status, statusText }) =>
  new Error(`${url}: ${status} ${statusText}${[403, 404].includes(status) ? " - if these pages were renewed since you opened them, load them again" : ""}`);
async function getRange(url, start, stop) {
  const answer = await fetch(url, { headers: { Range: `bytes=${start}-${stop - 1}` } });
  if (answer.status === 206) return answer.arrayBuffer();
  if (!answer.ok) throw problem(url, answer);
  return (await answer.arrayBuffer()).slice(start, stop); // a server without ranges gave the whole file
}
const footers = new Map();
function openPart(part) {
  if (!footers.has(part.url)) {
    const file = { byteLength: part.bytes, slice: (start, stop = part.bytes) => getRange(part.url, start, stop) };
    const opened = parquetMetadataAsync(file, { initialFetchSize: FOOTER }).then((metadata) => {
      const groups = [];
      let row = 0;
      for (const group of metadata.row_groups) { groups.push(row); row += Number(group.num_rows); }
      return { file, metadata, groups: [...groups, row] };
    });
    opened.catch(() => footers.delete(part.url));
    footers.set(part.url, opened);
  }
  return footers.get(part.url);
}

// The newest `most` answers; one that failed is asked for again.
class Recent {
  constructor(most) { this.most = most; this.kept = new Map(); }
  get(key, ask) {
    const found = this.kept.get(key) ?? ask();
    this.kept.delete(key);
    this.kept.set(key, found);
    found.catch(() => this.kept.delete(key));
    if (this.kept.size > this.most) this.kept.delete(this.kept.keys().next().value);
    return found;
  }
  has(key) { return this.kept.has(key); }
}
const pages = new Recent(48), covers = new Recent(600);

async function locate(set, unit) {
  const part = set.features.find((one) => unit < one.first + one.rows);
  const opened = await openPart(part);
  const row = unit - part.first;
  const group = opened.groups.findIndex((_, i) => row < opened.groups[i + 1]);
  return { opened, key: `${part.url}#${group}`, start: opened.groups[group], stop: opened.groups[group + 1], row };
}
const readRows = ({ opened, start, stop }, columns) =>
  parquetReadObjects({ file: opened.file, metadata: opened.metadata, compressors, utf8: false, rowStart: start, rowEnd: stop, columns });

// Everything about a unit: the neighbours that the same range holds are kept.
export async function readUnit(set, unit) {
  const at = await locate(set, unit);
  const rows = await pages.get(at.key, () => readRows(at));
  return parsed(rows[at.row - at.start]);
}
function parsed(row) {
  const read = Object.fromEntries(["figures", "names", "concepts", "texts", "partners", "neighbours", "images"].map((name) => [name, JSON.parse(row[name])]));
  return { ...row, ...read, histogram: row.histogram?.map(Number) };
}
// The small pictures of a unit, as JPEG bytes, or null.
export async function readCover(set, unit) {
  const at = await locate(set, unit);
  const rows = await (pages.has(at.key) ? pages.get(at.key) : covers.get(at.key, () => readRows(at, ["cover"])));
  return rows[at.row - at.start].cover;
}

// ---------------------------------------------------------------- all units of a set in short
const indexes = new Map();
export const isIndexed = (set) => indexes.has(set.stage);
export function loadIndex(set) {
  if (!indexes.has(set.stage)) {
    const loading = Promise.all(set.index.map(readWhole)).then((parts) => parts.flat().map((row) => ({ ...row, set, images_active: row.images_active === null ? null : Number(row.images_active) })));
    loading.catch(() => indexes.delete(set.stage));
    indexes.set(set.stage, loading);
  }
  return indexes.get(set.stage);
}
async function readWhole(part) {
  const answer = await fetch(part.url);
  if (!answer.ok) throw problem(part.url, answer);
  const data = await answer.arrayBuffer();
  const file = { byteLength: data.byteLength, slice: async (start, stop) => data.slice(start, stop) };
  return parquetReadObjects({ file, compressors, columns: SHORT });
}
export async function loadAll(told) {
  const rows = [];
  let done = 0;
  await Promise.all(site.sets.map((set, i) => loadIndex(set).then((some) => { rows[i] = some; told?.(++done, site.sets.length); })));
  return rows.flat();
}

// ---------------------------------------------------------------- words
export const titleOf = (row) => row.text ?? row.name ?? row.concept ?? null;
export const unitLink = (set, unit) => `#/unit/${encodeURIComponent(set.id)}/${unit}`;
export const setLink = (set) => `#/set/${encodeURIComponent(set.id)}`;
export const mapLink = (set) => `#/map/${encodeURIComponent(set.id)}`;
export const modelLink = (model) => `#/model/${encodeURIComponent(model)}`;

// A search finds what begins a word: "red" is in "dark red" and in "colour=red", and not in "checkered"; "#12" is unit 12.
export function makeSearch(text) {
  const words = text.toLowerCase().split(/\s+/).filter(Boolean);
  const numbers = words.filter((word) => /^#\d+$/.test(word)).map((word) => Number(word.slice(1)));
  const patterns = words.filter((word) => !/^#\d+$/.test(word)).map((word) => {
    const exact = word.replace(/[.*+?^${}()|[\]\\]/g, "\\$&");
    return new RegExp((/^[\p{L}\p{N}]/u.test(word) ? "(?<![\\p{L}\\p{N}])" : "") + exact, "u");
  });
  const all = (said) => patterns.every((pattern) => pattern.test(said));
  // 0 where it does not fit; else higher where what people read first says it.
  const fits = (row) => {
    if (numbers.length && !numbers.includes(row.unit)) return 0;
    if (!all(row.words)) return 0;
    if (!patterns.length) return 1;
    return 1 + 2 * (row.text !== null && all(row.text.toLowerCase())) + 1 * (row.name !== null && all(row.name.toLowerCase())) + 1 * (row.concept !== null && all(row.concept.toLowerCase()));
  };
  return Object.assign(fits, { patterns });
}
