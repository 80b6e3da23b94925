// Units: a search shows, for the concepts whose names hold every word, the best units of every place by every method.
{
  const told = JSON.parse($("#finder").textContent);
  const MOST_CONCEPTS = 6, MOST_CHIPS = 72;
  const make = (name, attributes = {}, ...children) => {
    const element = Object.assign(document.createElement(name), attributes);
    element.append(...children.filter((child) => child !== null && child !== undefined));
    return element;
  };

  const cardId = (place, unit) => `u-${place}-${unit}`;
  const hasCard = (place, unit) => Boolean(document.getElementById(cardId(place, unit)));
  function unitChip(place, unit, score) {
    const words = [make("b", {}, `#${unit}`), score === null ? "" : ` ${score}`];
    return hasCard(place, unit)
      ? make("a", { href: `#${cardId(place, unit)}`, className: "chip", title: "To its card" }, ...words)
      : make("span", { className: "chip", title: "No card on this page; the table unit_concepts has it" }, ...words);
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
  function legend() {
    const chip = (kind, words) => make(kind, { className: "chip" }, make("b", {}, words));
    const link = chip("a", "#1");
    link.setAttribute("aria-hidden", "true");
    return make("p", { className: "note pills" }, link, " leads to the unit's card below; ", chip("span", "#2"), " has no card on this page, the table unit_concepts has it. Beside the number is the score of its method.");
  }
  // What is known of a unit by its number where cards are not.
  function cardless(unit, search) {
    const answered = told.places.map((_, place) => told.concepts.filter((_, n) => Object.values(told.lists[n][place] ?? {}).some((flat) => flat.some((value, i) => i % 2 && value === unit))));
    const lines = told.places.flatMap((title, place) => (answered[place].length && !hasCard(place, unit)
      ? [make("p", { className: "note cardless" }, `Unit ${unit} of ${title} has no card on this page; the table unit_concepts has it. It is among the answers for:`), conceptChips(answered[place], search)] : []));
    if (lines.length || told.places.some((_, place) => hasCard(place, unit))) return lines;
    return [make("p", { className: "note cardless" }, `Unit ${unit} has no card on this page and is in no answer of the search; if it was described, the table unit_concepts has it.`)];
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
    const numbers = words.filter((word) => /^#\d+$/.test(word)).map((word) => Number(word.slice(1)));
    $(".answers", finder).replaceChildren(
      ...numbers.flatMap((unit) => cardless(unit, search)), ...(tables.length ? [legend()] : []), ...tables,
      ...(rest.length && (asked.length || !numbers.length) ? [conceptChips(rest, search)] : []),
    );
    $$(".scroll", finder).forEach(hintSideways);
    $(".hint", finder).hidden = words.length > 0;
    for (const name of $$(".says .name", home)) name.classList.toggle("asked", asked.length > 0 && asked.every((word) => holds(name.textContent.toLowerCase(), word)));
  });
}
