// Charts: values under the pointer (or, with arrow keys, under a cursor), and legends that hide and light up series.
function lineTip(told, lines, index) {
  const head = document.createElement("b");
  head.textContent = `${told.x} ${lines[0].at[index(lines[0])]}`;
  const rows = lines.map((line) => {
    const row = document.createElement("span"), value = document.createElement("b");
    row.className = "row " + line.group.getAttribute("class");
    value.textContent = line.value[index(line)];
    row.append(line.key?.cloneNode(true) ?? "", line.name, value);
    return row;
  });
  return [head, ...rows];
}
const nearest = (xs, at) => {
  let low = 0, high = xs.length - 1;
  while (high - low > 1) { const middle = (low + high) >> 1; xs[middle] < at ? (low = middle) : (high = middle); }
  return Math.abs(xs[low] - at) <= Math.abs(xs[high] - at) ? low : high;
};

for (const figure of $$(".chart")) {
  const plot = $(".plot > svg", figure), marks = $(".marks", figure);
  if (!plot) continue;
  for (const mark of $$("[data-tip]", plot)) {
    onPoint(mark, (event) => showTip(mark.dataset.tip, event.clientX, event.clientY));
    mark.addEventListener("focus", () => { const b = mark.getBoundingClientRect(); showTip(mark.dataset.tip, b.right, b.bottom); });
    mark.addEventListener("blur", hideTip);
  }
  const dots = $$(".cloud circle", plot);
  if (dots.length) walkDots(plot, dots);
  const groups = $$("g[data-series]", marks);
  for (const button of $$(".legend button", figure)) {
    const mine = groups.filter((g) => g.dataset.series === button.dataset.series);
    const light = (on) => { marks.classList.toggle("dimmed", on); mine.forEach((g) => g.classList.toggle("lit", on)); };
    for (const name of ["pointerenter", "focus"]) button.addEventListener(name, () => light(true));
    for (const name of ["pointerleave", "blur"]) button.addEventListener(name, () => light(false));
    button.addEventListener("click", () => {
      const off = button.getAttribute("aria-pressed") === "true";
      button.setAttribute("aria-pressed", String(!off));
      mine.forEach((g) => g.classList.toggle("off", off));
    });
  }
  const data = $("script.hover", figure);
  if (data) hoverLines(plot, groups, $$(".legend svg", figure), JSON.parse(data.textContent));
}

function hoverLines(plot, groups, swatches, told) {
  const [left, top, right, bottom] = told.plot;
  const cursor = document.createElementNS("http://www.w3.org/2000/svg", "path");
  cursor.setAttribute("class", "cursor");
  plot.append(cursor);
  let at = right;
  const show = (x, clientX, clientY) => {
    const lines = told.lines.map((line, n) => ({ ...line, group: groups[n], key: swatches[n] })).filter((line) => !line.group.classList.contains("off"));
    if (!lines.length) return leave();
    at = Math.max(left, Math.min(right, x));
    const longest = lines.reduce((a, b) => (b.x.length > a.x.length ? b : a));
    at = longest.x[nearest(longest.x, at)];
    cursor.setAttribute("d", `M${at} ${top}V${bottom}`);
    showTip(lineTip(told, lines, (line) => nearest(line.x, at)), clientX, clientY);
  };
  const leave = () => { cursor.removeAttribute("d"); hideTip(); };
  const scale = () => plot.getBoundingClientRect().width / plot.viewBox.baseVal.width;
  plot.addEventListener("pointermove", (event) => show((event.clientX - plot.getBoundingClientRect().left) / scale(), event.clientX, event.clientY));
  plot.addEventListener("pointerleave", leave);
  plot.addEventListener("blur", leave);
  plot.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -4, ArrowRight: 4 }[event.key];
    if (!step) return;
    event.preventDefault();
    const box = plot.getBoundingClientRect();
    show(at + step, box.left + (at + step) * scale(), box.top + 20 * scale());
  });
}

// Many points: the chart is one stop of the tab key, and the arrow keys walk from point to point, from left to right.
function walkDots(plot, dots) {
  const order = [...dots].sort((a, b) => a.cx.baseVal.value - b.cx.baseVal.value);
  plot.setAttribute("tabindex", "0");
  plot.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!step) return;
    event.preventDefault();
    const there = order.filter((dot) => !dot.closest(".off")), at = there.indexOf(document.activeElement);
    there[at < 0 ? 0 : Math.max(0, Math.min(there.length - 1, at + step))]?.focus({ preventScroll: true });
  });
}
