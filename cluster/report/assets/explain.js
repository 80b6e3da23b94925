// Explained features: maps as masks, texts of features without a card, and the map of texts.
{
  const home = $("#explanations .browser"), box = browsers.find(({ root }) => root === home);
  const cardOf = (who, feature) => document.getElementById(`x-${who}-${feature}`);
  const goTo = (id) => { location.hash === "#" + id ? visit() : (location.hash = id); };
  const make = (name, attributes = {}, ...children) => {
    const element = Object.assign(document.createElement(name), attributes);
    element.append(...children);
    return element;
  };

  // A click on a point or a row: its card, or where there is none the search for its number.
  function open(who, feature) {
    if (cardOf(who, feature)) return goTo(`x-${who}-${feature}`);
    if (!box) return;
    box.find.value = `#${feature}`;
    box.arrange();
    goTo("explanations");
  }

  const button = $(".as-masks", home ?? document.createElement("div"));
  button?.addEventListener("click", () => {
    const on = home.classList.toggle("masked");
    button.setAttribute("aria-pressed", String(on));
    drawn.forEach((tile) => { if (home.contains(tile)) draw(tile); });
  });

  // ---------------------------------------------------------------- features without a card
  const told = JSON.parse($("#cardless-texts")?.textContent ?? "null"), MOST = 60;
  const chosen = (field) => (home && $(`[data-filter=${field}]`, home)?.value) || "";
  function fitting(words) {
    const [place, method, passed, cluster] = ["place", "method", "passed", "cluster"].map(chosen);
    const says = (text, feature, word) => (word.startsWith("#") ? word === `#${feature}` : holds(text, word));
    return told.rows.filter(([who, feature, text, , by, good, group]) => (!place || place === String(who)) && (!method || method === by)
      && (!passed || (passed === "yes") === Boolean(good)) && (!cluster || cluster === `${who}-${group}`)
      && words.every((word) => says(told.texts[text].toLowerCase(), feature, word)));
  }
  function listed(rows) {
    const several = Object.keys(told.titles).length > 1;
    const cells = ([who, feature, text, iou]) => [`#${feature}`, told.texts[text], iou ?? "–", ...(several ? [told.titles[who]] : [])];
    const head = ["feature", "text", "IoU", ...(several ? ["of"] : [])].map((word) => make("th", { scope: "col" }, word));
    const body = rows.slice(0, MOST).map((row) => make("tr", {}, ...cells(row).map((cell) => make("td", {}, cell))));
    const region = make("div", { className: "scroll", tabIndex: 0 }, make("table", {}, make("thead", {}, make("tr", {}, ...head)), make("tbody", {}, ...body)));
    region.setAttribute("role", "region");
    region.setAttribute("aria-label", "Features without a card");
    return region;
  }
  if (told && home) home.addEventListener("arranged", ({ detail: words }) => {
    // What one way says is known of cards alone.
    const asked = words.length || ["method", "passed", "cluster"].some(chosen), within = $("[data-within]", home).value;
    const found = asked && ["words", "chosen"].includes(within) ? fitting(words) : [];
    const many = found.length === 1 ? "1 feature without a card fits" : `${found.length.toLocaleString("en")} features without a card fit`;
    const more = found.length > MOST ? `, the first ${MOST} are here` : "", missing = told.missing ? ` ${told.missing.toLocaleString("en")} more are not in this search.` : "";
    const said = make("summary", {}, `${many} by one text${more}; the table explanations has all.${missing}`);
    const open = $$(".card:not([hidden])", home).length === 0;
    $(".cardless-texts", home).replaceChildren(...(found.length ? [make("details", { open }, said, listed(found))] : []));
  });

  // ---------------------------------------------------------------- from a cluster to its cards
  for (const link of $$("[data-show-cluster]")) link.addEventListener("click", () => {
    const filter = home && $("[data-filter=cluster]", home);
    if (!filter) return;
    const wanted = link.dataset.showCluster, place = $("[data-filter=place]", home);
    box.find.value = "";
    for (const other of $$("[data-filter]", home)) other.value = "";
    if (place) place.value = wanted.split("-")[0];
    filter.value = wanted;
    box.arrange();
  });

  // ---------------------------------------------------------------- the map
  const STRIDE = 5, REACH = 14;
  for (const figure of $$(".textmap")) {
    const plot = $(".plot > svg", figure), here = $(".here", plot), groups = $$("g[data-series]", plot);
    const map = JSON.parse($("script.texts", figure).textContent);
    const points = map.clusters.flatMap(({ topic, points: flat }, series) => Array.from({ length: flat.length / STRIDE }, (_, i) => {
      const [x, y, feature, text, who] = flat.slice(STRIDE * i, STRIDE * (i + 1));
      return { x, y, feature, who, topic, series, text: map.texts[text] };
    }));
    const visible = (point) => !groups[point.series].classList.contains("off");
    const scale = () => plot.getBoundingClientRect().width / plot.viewBox.baseVal.width;
    let at = null, tapped = null;
    const least = (cost) => points.reduce((best, point) => { const now = visible(point) ? cost(point) : Infinity; return now < best.now ? { now, point } : best; }, { now: Infinity, point: null });
    function mark(point) {
      at = point;
      here.toggleAttribute("hidden", !point);
      if (!point) return hideTip();
      here.setAttribute("cx", point.x);
      here.setAttribute("cy", point.y);
      const frame = plot.getBoundingClientRect(), twins = points.filter((p) => p !== point && visible(p) && p.x === point.x && p.y === point.y).length;
      const lines = [make("b", {}, `#${point.feature} `), point.text, `\n${point.topic}`, twins ? `\n${twins} more at this place` : "", cardOf(point.who, point.feature) ? "" : "\nno card on this page"];
      showTip(lines, frame.left + point.x * scale(), frame.top + point.y * scale());
    }
    function under(event) {
      const frame = plot.getBoundingClientRect(), x = (event.clientX - frame.left) / scale(), y = (event.clientY - frame.top) / scale();
      const { now, point } = least((p) => Math.hypot(p.x - x, p.y - y));
      return now * scale() <= REACH ? point : null;
    }
    const point = (event) => { const found = under(event); if (found !== at || tip.hidden) mark(found); };
    onPoint(plot, point, () => mark(null));
    plot.addEventListener("click", (event) => {
      const found = under(event);
      if (!found) return;
      // A finger cannot hover: its first tap says what the point is, its second goes there.
      if (event.pointerType === "touch" && tapped !== found) { tapped = found; return; }
      open(found.who, found.feature);
    });
    plot.addEventListener("blur", () => mark(null));
    plot.addEventListener("keydown", (event) => {
      const way = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
      if (event.key === "Enter" && at) return open(at.who, at.feature);
      if (!way) return;
      event.preventDefault();
      const middle = { x: plot.viewBox.baseVal.width / 2, y: plot.viewBox.baseVal.height / 2 };
      if (!at) return mark(least((p) => Math.hypot(p.x - middle.x, p.y - middle.y)).point);
      const from = at, order = points.indexOf(from);
      // Points at one place come one after another, on the way to the right or down.
      const twin = points.find((p, i) => visible(p) && p.x === from.x && p.y === from.y && (way[0] + way[1] > 0 ? i > order : i < order));
      const ahead = (p) => { const [dx, dy] = [p.x - from.x, p.y - from.y], along = dx * way[0] + dy * way[1]; return along > 0 ? along + 3 * Math.abs(dx * way[1] - dy * way[0]) : Infinity; };
      const next = twin ?? least(ahead).point;
      if (next) mark(next);
    });
  }
}
