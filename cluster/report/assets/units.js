// Units: a search shows, for the concepts whose names hold every word, the best units of every place by every method.
{
  const told = JSON.parse($("#finder").textContent);
  const MOST_CONCEPTS = 6, MOST_CHIPS = 72;
  const make = (name, attributes = {}, ...children) => {
    const element = Object.assign(document.createElement(name), attributes);
    element.append(...children.filter((child) => child !== null && child !== undefined));
    return element;
  };

  function unitChip(place, unit, score) {
    const id = `u-${place}-${unit}`, words = [make("b", {}, `#${unit}`), score === null ? "" : ` ${score}`];
    return document.getElementById(id) ? make("a", { href: `#${id}`, className: "chip" }, ...words) : make("span", { className: "chip", title: "not among the cards" }, ...words);
  }
  function answer(place, [calls, ...flat]) {
    const number = told.pictures[`${place}-${flat[0]}`];
    const tile = number === undefined ? null : make("canvas", { className: "tile", width: 96, height: 96 });
    if (tile) { tile.dataset.image = number; tile.setAttribute("role", "img"); tile.setAttribute("aria-label", `The image that drives unit ${flat[0]} most`); drawOnce(tile); }
    const chips = [];
    for (let i = 0; i < flat.length; i += 2) chips.push(unitChip(place, flat[i], flat[i + 1]));
    const named = make("span", { className: "calls" }, calls ? `named so: ${calls}` : "none is named so");
    return make("td", {}, make("div", { className: "answer" }, tile, make("div", { className: "chips" }, ...chips, named)));
  }
  function conceptTable(concept) {
    const lists = told.lists[told.concepts.indexOf(concept)];
    const methods = told.methods.map((_, n) => n).filter((n) => Object.values(lists).some((of) => n in of));
    const label = (n) => make("span", { className: `method s${told.methods[n].colour % 8}` }, make("i", { className: told.methods[n].colour < 8 ? "spot" : "spot hollow" }), told.methods[n].name);
    const head = make("tr", {}, make("th", { scope: "col" }, "units of"), ...methods.map((n) => make("th", { scope: "col" }, label(n))));
    const rows = Object.entries(lists).map(([place, of]) => make("tr", {}, make("th", { scope: "row" }, told.places[place]), ...methods.map((n) => (n in of ? answer(place, of[n]) : make("td", { className: "none" }, "–")))));
    const table = make("table", { className: "concept" }, make("caption", {}, `Units of ${concept}`), make("thead", {}, head), make("tbody", {}, ...rows));
    const region = make("div", { className: "scroll", tabIndex: 0 }, table);
    region.setAttribute("role", "region");
    region.setAttribute("aria-label", `Units of ${concept}`);
    return [make("h3", {}, concept), region];
  }
  function conceptChips(concepts, search) {
    const buttons = concepts.slice(0, MOST_CHIPS).map((concept) => {
      const button = make("button", { type: "button", className: "chip" }, concept);
      button.addEventListener("click", () => search(concept));
      return button;
    });
    const left = concepts.length - buttons.length;
    return make("div", { className: "chips" }, ...buttons, left > 0 ? make("span", { className: "calls" }, `and ${left.toLocaleString("en")} more`) : null);
  }

  const finder = $(".finder"), home = finder.closest(".browser"), box = browsers.find(({ root }) => root === home);
  const search = (text) => { box.find.value = text; box.arrange(); box.find.focus(); };
  home.addEventListener("arranged", ({ detail: words }) => {
    const asked = words.filter((word) => !word.startsWith("#")), all = told.concepts;
    const fitting = asked.length ? all.filter((concept) => asked.every((word) => holds(concept.toLowerCase(), word))) : [];
    const exact = fitting.filter((concept) => concept.toLowerCase() === asked.join(" "));
    const shown = [...exact, ...fitting.filter((concept) => !exact.includes(concept))];
    const rest = asked.length ? shown.slice(exact.length || MOST_CONCEPTS) : all;
    const tables = shown.slice(0, exact.length || MOST_CONCEPTS).flatMap(conceptTable);
    $(".answers", finder).replaceChildren(...tables, ...(rest.length ? [conceptChips(rest, search)] : []));
    $(".hint", finder).hidden = asked.length > 0;
    for (const name of $$(".says .name", home)) name.classList.toggle("asked", asked.length > 0 && asked.every((word) => holds(name.textContent.toLowerCase(), word)));
  });
}
