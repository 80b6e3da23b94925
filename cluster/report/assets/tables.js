// Tables: a click on a heading sorts, once more turns round; the field above keeps rows that hold every word.
for (const box of $$(".table")) {
  const body = $("tbody", box), heads = $$("th", box), rows = [...body.rows];
  const value = (row, n, number) => {
    const cell = row.cells[n], kept = cell.dataset.sort;
    if (!number) return (kept ?? cell.textContent).toLowerCase();
    const found = kept ?? cell.textContent.replace(/[,\s%]/g, "");
    return found === "" || Number.isNaN(Number(found)) ? null : Number(found);
  };
  heads.forEach((head, n) => $("button", head).addEventListener("click", () => {
    const number = head.classList.contains("number");
    const before = head.getAttribute("aria-sort");
    const up = before ? before === "descending" : !number;
    heads.forEach((h) => h.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", up ? "ascending" : "descending");
    const order = rows.map((row, i) => [value(row, n, number), i, row]);
    order.sort(([a, i], [b, j]) => {
      if (a === null || b === null) return (a === null) - (b === null) || i - j;
      return (number ? a - b : a.localeCompare(b, undefined, { numeric: true })) * (up ? 1 : -1) || i - j;
    });
    body.append(...order.map((entry) => entry[2]));
  }));
  $(".filter", box)?.addEventListener("input", (event) => {
    const words = event.target.value.toLowerCase().split(/\s+/);
    for (const row of rows) row.hidden = !words.every((word) => row.textContent.toLowerCase().includes(word));
  });
}

// A table that is wider than its place says so, and fades where it goes on.
function hintSideways(region) {
  const hint = document.createElement("p");
  hint.className = "sideways";
  hint.textContent = "More columns: scroll sideways →";
  region.before(hint);
  const look = () => {
    const wider = region.scrollWidth - region.clientWidth > 2;
    hint.hidden = !wider;
    region.classList.toggle("beyond", wider && region.scrollLeft + region.clientWidth < region.scrollWidth - 2);
  };
  region.addEventListener("scroll", look, { passive: true });
  new ResizeObserver(look).observe(region);
}
$$(".scroll").forEach(hintSideways);
