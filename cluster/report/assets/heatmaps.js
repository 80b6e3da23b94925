// Matrices: drawn from their numbers; the words of a cell come under the pointer, a finger or the arrow keys.
const svgNode = (name, attributes = {}, text = "") => {
  const node = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  node.textContent = text;
  return node;
};
const shadeOf = (share) => 0.06 + 0.94 * Math.max(0, Math.min(1, share));
const cut = (label, most) => (label.length > most ? label.slice(0, most - 1) + "…" : label);

for (const figure of $$(".heatmap")) {
  const told = JSON.parse($("script.matrices", figure).textContent), plot = $(".plot", figure), selects = $$("[data-control]", figure);
  const LETTER = 6.4, LEAST = 13, MOST = 62;
  let shown, spot, cells;

  // As wide as its place; columns have a least width, beyond which the figure scrolls sideways.
  function layout(matrix) {
    const [rows, columns] = [told.axes[matrix.rows], told.axes[matrix.columns]], room = plot.clientWidth || 440;
    const letters = Math.max(10, Math.min(30, Math.floor((0.38 * room) / LETTER)));
    const longest = (labels) => Math.min(letters, Math.max(1, ...labels.map((label) => label.length)));
    const left = longest(rows) * LETTER + 12, flat = longest(columns) <= 4;
    const top = (flat ? 16 : longest(columns) * LETTER * 0.87 + 16) + (matrix.columnTitle ? 18 : 0);
    const lean = flat ? 0 : Math.max(0, 0.5 * longest(columns) * LETTER);
    const wide = Math.max(LEAST, Math.min(MOST, (room - left - lean - 4) / columns.length));
    return { rows, columns, letters, left, top, flat, wide, lean, high: Math.max(Math.min(wide, 34), 18) };
  }
  const words = {
    percent: (value) => (100 * value).toFixed(value && 100 * value < 9.95 ? 1 : 0),
    count: (value) => value.toLocaleString("en"),
    number: (value) => value.toFixed(2),
  };

  function draw() {
    const choice = selects.map((select) => select.value).join("|");
    const matrix = told.matrices.find((one) => one.choice === choice);
    plot.replaceChildren();
    $(".key", figure).hidden = !matrix;
    if (!matrix) return plot.append(Object.assign(document.createElement("p"), { className: "none", textContent: "Nothing was found here." }));
    shown = layout(matrix);
    cells = new Map();
    const { rows, columns, letters, left, top, flat, wide, high, lean } = shown, width = left + wide * columns.length + lean + 4, height = top + high * rows.length + 6;
    const svg = svgNode("svg", { width, height, viewBox: `0 0 ${width} ${height}`, role: "img", tabindex: 0, "aria-label": `${told.title}: ${matrix.rowTitle || "rows"} by ${matrix.columnTitle || "columns"}; arrow keys walk through the cells` });
    if (matrix.columnTitle) svg.append(svgNode("text", { x: 0, y: 12, class: "axis" }, `↓ ${matrix.rowTitle}    → ${matrix.columnTitle}`));
    rows.forEach((label, r) => svg.append(svgNode("text", { x: left - 6, y: top + high * (r + 0.5) + 4, "text-anchor": "end" }, cut(label, letters))));
    columns.forEach((label, c) => {
      const [x, y] = [left + wide * (c + 0.5), top - 6];
      svg.append(svgNode("text", flat ? { x, y, "text-anchor": "middle" } : { x: x + 3, y, transform: `rotate(-60 ${x} ${y})` }, cut(label, letters)));
    });
    svg.append(svgNode("rect", { x: left, y: top, width: wide * columns.length, height: high * rows.length, class: "nothing" }));
    drawCells(svg, matrix);
    spot = svgNode("rect", { class: "at", width: wide, height: high, visibility: "hidden" });
    svg.append(spot);
    listen(svg);
    plot.append(svg);
    $(".most", figure).textContent = words[matrix.values](matrix.most) + (matrix.values === "percent" ? " %" : "");
  }
  function drawCells(svg, matrix) {
    const { left, top, wide, high } = shown, texts = [];
    let dots = "";
    for (let i = 0; i < matrix.cells.length; i += 5) {
      const [r, c, value, said, marked] = matrix.cells.slice(i, i + 5), opacity = shadeOf(value / (matrix.most || 1));
      const [x, y] = [left + wide * c, top + high * r];
      cells.set(r * shown.columns.length + c, said);
      svg.append(svgNode("rect", { x, y, width: wide, height: high, "fill-opacity": opacity.toFixed(2) }));
      if (marked) { const size = Math.min(3, wide / 6); dots += `M${x + wide - 2 * size - 1.5} ${y + size + 1.5}a${size} ${size} 0 1 0 ${2 * size} 0a${size} ${size} 0 1 0 ${-2 * size} 0`; }
      if (wide >= 30) texts.push(svgNode("text", { x: x + wide / 2, y: y + high / 2 + 4, "text-anchor": "middle", class: opacity > 0.82 ? "strong" : opacity > 0.6 ? "middling" : "" }, words[matrix.values](value)));
    }
    svg.append(...texts);
    if (dots) svg.append(svgNode("path", { d: dots, class: "dots" }));
  }
  function tell(r, c, x, y) {
    const { rows, columns, left, top, wide, high } = shown, said = cells.get(r * columns.length + c);
    spot.setAttribute("x", left + wide * c);
    spot.setAttribute("y", top + high * r);
    spot.setAttribute("visibility", "visible");
    const head = document.createElement("b");
    head.textContent = `${rows[r]} · ${columns[c]}`;
    showTip([head, `\n${said === undefined ? "nothing" : told.words[said]}`], x, y);
  }
  function listen(svg) {
    const { rows, columns, left, top, wide, high } = shown;
    const leave = () => { spot.setAttribute("visibility", "hidden"); hideTip(); };
    const point = (event) => {
      const box = svg.getBoundingClientRect();
      const c = Math.floor(((event.clientX - box.left) - left) / wide), r = Math.floor(((event.clientY - box.top) - top) / high);
      r >= 0 && c >= 0 && r < rows.length && c < columns.length ? tell(r, c, event.clientX, event.clientY) : leave();
    };
    onPoint(svg, point, leave);
    svg.addEventListener("blur", () => { if (at) leave(); });
    let at = null;
    svg.addEventListener("keydown", (event) => {
      const step = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }[event.key];
      if (!step) return;
      event.preventDefault();
      at = at === null ? [0, 0] : [Math.max(0, Math.min(rows.length - 1, at[0] + step[0])), Math.max(0, Math.min(columns.length - 1, at[1] + step[1]))];
      const box = svg.getBoundingClientRect();
      tell(...at, box.left + (left + wide * (at[1] + 1)), box.top + (top + high * (at[0] + 0.5)));
    });
  }
  for (const select of selects) {
    select.addEventListener("input", () => {
      for (const other of $$(`[data-control="${select.dataset.control}"]`, figure.closest("section"))) {
        if (other === select || other.value === select.value || ![...other.options].some((option) => option.value === select.value)) continue;
        other.value = select.value;
        other.dispatchEvent(new CustomEvent("follow"));
      }
      draw();
    });
    select.addEventListener("follow", draw);
  }
  let room;
  new ResizeObserver(() => { if (plot.clientWidth !== room) { room = plot.clientWidth; draw(); } }).observe(plot);
}
