// Filter and sort. Rows are moved, never made: what is on the page is what the server-side text said.
for (const input of document.querySelectorAll("input[data-of]")) {
  const table = document.getElementById(input.dataset.of);
  const rows = [...table.tBodies[0].rows];
  const texts = rows.map(row => row.textContent.toLowerCase());
  const shown = document.getElementById(input.dataset.of + "-shown");
  input.addEventListener("input", () => {
    const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
    let n = 0;
    rows.forEach((row, i) => {
      const hit = words.every(word => texts[i].includes(word));
      row.hidden = !hit;
      n += hit;
    });
    shown.textContent = words.length ? n + " of " + rows.length + " shown" : "";
  });
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => head.firstChild.addEventListener("click", () => {
    const down = head.getAttribute("aria-sort") === "ascending";
    heads.forEach(other => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    const order = new Intl.Collator("en", { numeric: true });
    const sorted = rows.map((row, i) => [row.cells[column].textContent, i, row]);
    sorted.sort((a, b) => (down ? -1 : 1) * order.compare(a[0], b[0]) || a[1] - b[1]);
    table.tBodies[0].append(...sorted.map(entry => entry[2]));
  }));
}
