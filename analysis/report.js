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
  const box = table.closest(".box"), label = document.createElement("label"), input = document.createElement("input");
  if (body.rows.length < 4) continue;
  input.type = "search";
  label.className = "filter";
  label.append("Rows that hold ", input);
  box.before(label);
  input.addEventListener("input", () => {
    for (const row of body.rows) row.hidden = !row.textContent.toLowerCase().includes(input.value.toLowerCase());
  });
}
// On paper all numbers are open, but for posts' texts.
addEventListener("beforeprint", () => document.querySelectorAll("details:not(.posts)").forEach((of) => (of.open = true)));
