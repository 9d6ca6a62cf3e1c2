"use strict";
// Sorts a table by a click on a header, and hides the rows that do not hold what is typed. Without it all is there to read.
const number = (text) => (/^[<±]?\s*[-−]?[\d.]/.test(text) ? Number.parseFloat(text.replace(/^[<±]\s*/, "").replace(/,/g, "")) : NaN);
function compare(a, b) {
  if (a === "" || b === "") return (a === "") - (b === "");
  const [x, y] = [number(a), number(b)];
  if (Number.isNaN(x) || Number.isNaN(y)) return Number.isNaN(x) - Number.isNaN(y) || a.localeCompare(b);
  return x - y;
}
for (const table of document.querySelectorAll("table")) {
  const heads = [...table.tHead.rows[0].cells], body = table.tBodies[0];
  heads.forEach((head, place) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    head.setAttribute("aria-sort", "none");
    button.addEventListener("click", () => {
      const sign = head.getAttribute("aria-sort") === "ascending" ? -1 : 1;
      for (const other of heads) other.setAttribute("aria-sort", "none");
      head.setAttribute("aria-sort", sign > 0 ? "ascending" : "descending");
      const text = (row) => row.cells[place].textContent.trim();
      const order = (a, b) => (text(a) === "" || text(b) === "" ? 1 : sign) * compare(text(a), text(b));
      body.append(...[...body.rows].sort(order));
    });
  });
  if (body.rows.length < 8) continue;
  const label = document.createElement("label"), input = document.createElement("input"), count = document.createElement("output");
  input.type = "search";
  label.className = "filter";
  label.append("Only rows with ", input, count);
  table.closest(".box").before(label);
  input.addEventListener("input", () => {
    const rows = [...body.rows], wanted = input.value.toLowerCase();
    for (const row of rows) row.hidden = !row.textContent.toLowerCase().includes(wanted);
    count.value = wanted && `${rows.filter((row) => !row.hidden).length} of ${rows.length}`;
  });
}
// On paper all numbers are open, but for posts' texts; afterwards they are as they were.
let opened = [];
addEventListener("beforeprint", () => {
  opened = [...document.querySelectorAll("details:not(.posts):not([open])")];
  for (const of of opened) of.open = true;
});
addEventListener("afterprint", () => opened.forEach((of) => (of.open = false)));
