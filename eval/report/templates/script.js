(() => {
  const table = document.getElementById("all"), body = table.tBodies[0];
  const sorted = document.getElementById("sorted"), found = document.getElementById("found");
  table.querySelectorAll("thead button").forEach((button, column) => button.addEventListener("click", () => {
    const head = button.closest("th"), first = column === 0 ? "ascending" : "descending";
    const other = first === "ascending" ? "descending" : "ascending";
    const order = head.getAttribute("aria-sort") === first ? other : first, sign = order === "ascending" ? 1 : -1;
    table.querySelectorAll("th[aria-sort]").forEach((th) => th.setAttribute("aria-sort", "none"));
    head.setAttribute("aria-sort", order);
    const key = (row) => row.cells[column].dataset.order;
    // Rows without a number stay at the end in either order.
    [...body.rows].sort((a, b) => (key(a) === "") - (key(b) === "") || sign * (key(a) - key(b))).forEach((row) => body.append(row));
    sorted.textContent = `Sorted by ${button.textContent}, ${order}`;
  }));
  document.getElementById("find").addEventListener("input", (event) => {
    const words = event.target.value.toLowerCase().split(/\s+/).filter(Boolean);
    [...body.rows].forEach((row) => {
      const name = row.cells[0].textContent.toLowerCase();
      row.hidden = !words.every((word) => name.includes(word));
    });
    found.textContent = [...body.rows].filter((row) => !row.hidden).length + " rows";
  });
  const chosen = { outcome: "", kind: "" }, cards = [...document.querySelectorAll(".gallery > li")];
  document.querySelectorAll(".filters").forEach((group) => group.addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (!button) return;
    group.querySelectorAll("button").forEach((b) => b.setAttribute("aria-pressed", b === button));
    chosen[group.dataset.filter] = button.dataset.value;
    cards.forEach((card) => { card.hidden = Object.entries(chosen).some(([name, value]) => value && card.dataset[name] !== value); });
    document.getElementById("shown").textContent = cards.filter((card) => !card.hidden).length + " shown";
  }));
})();
