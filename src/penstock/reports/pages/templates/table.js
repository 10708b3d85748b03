// The table of all records: sortable, linked to the panels, downloadable.

const table = { sort: null, descending: false, all: false };
const LAST_COLUMNS = ["intervals", "density_histogram", "warnings"];

function tableColumns() {
  const keys = [...new Set(data.records.flatMap((record) => Object.keys(record)))].filter((key) => !LAST_COLUMNS.includes(key));
  // A column that says the same of every SAE waits behind "all columns"; so does a recipe that follows from the arch.
  const distinct = (make) => new Set(data.records.filter((_, index) => isSae(index)).map(make)).size;
  const dull = {
    site: data.sites.length < 2,
    d_sae: distinct((record) => record.d_sae) < 2,
    recipe: distinct((record) => `${record.arch}/${record.recipe}`) === distinct((record) => record.arch),
  };
  const main = data.mainColumns.filter((key) => keys.includes(key) && !dull[key]);
  const rest = keys.filter((key) => !main.includes(key));
  return (table.all ? [...main, ...rest] : main).map((key) => {
    const values = data.records.map((record) => record[key]).filter((value) => value !== null && value !== undefined);
    return {
      key, label: columnLabel(key), numeric: values.length > 0 && values.every(isNumber),
      real: values.some((value) => isNumber(value) && !Number.isInteger(value)), long: values.some((value) => String(value).length > 40),
    };
  });
}

function columnLabel(key) {
  const own = { name: "SAE", d_in: "d_in", d_sae: "d_sae", target_l0: "target L0" };
  return own[key] || data.labels[key] || key.replaceAll("_", " ");
}

// Numbers by size, text by name, missing values last in either direction; equal values keep their order.
function sortedRuns(columns) {
  const order = data.records.map((_, index) => index);
  const column = columns.find((candidate) => candidate.key === table.sort);
  if (!column) return order;
  const missing = (value) => value === null || value === undefined;
  const compare = (a, b) => (column.numeric ? a - b : String(a).localeCompare(String(b), "en", { numeric: true }));
  return order.sort((i, j) => {
    const [a, b] = [data.records[i][column.key], data.records[j][column.key]];
    if (missing(a) || missing(b)) return missing(a) - missing(b);
    return table.descending ? compare(b, a) : compare(a, b);
  });
}

function drawTable() {
  const node = document.getElementById("table");
  node.replaceChildren();
  const columns = tableColumns();
  const head = make(make(node, "thead"), "tr");
  for (const column of columns) {
    const sorted = table.sort === column.key ? (table.descending ? "descending" : "ascending") : null;
    const cell = make(head, "th", { scope: "col", "aria-sort": sorted, class: column.numeric ? null : "words", "data-key": column.key });
    const button = make(cell, "button", { type: "button", title: data.help[column.key] || column.key }, column.label);
    button.addEventListener("click", () => {
      table.descending = table.sort === column.key && !table.descending;
      table.sort = column.key;
      drawTable();
      document.querySelector(`th[aria-sort] button`).focus();
      highlight(null);
    });
  }
  const body = make(node, "tbody");
  for (const index of sortedRuns(columns)) drawRow(body, columns, index);
}

function drawRow(body, columns, index) {
  const record = data.records[index];
  const row = make(body, "tr", { "data-run": index, class: isSae(index) ? null : "control" });
  for (const column of columns) {
    const value = record[column.key];
    if (column.key === "name") {
      const cell = make(row, "th", { scope: "row" });
      swatch(cell, isSae(index) ? data.arms[data.armOf[index]] : null);
      make(cell, "span", {}, value);
      continue;
    }
    const text = column.numeric ? number(value, column.real) : value === null || value === undefined ? "–" : String(value);
    make(row, "td", { class: column.numeric ? null : column.long ? "long" : "words", title: column.numeric && isNumber(value) ? String(value) : null }, text);
  }
  row.addEventListener("pointerenter", () => highlight(index));
  row.addEventListener("pointerleave", () => highlight(null));
  row.addEventListener("click", () => pin(index));
}

function download(name, type, text) {
  const link = make(null, "a", { href: URL.createObjectURL(new Blob([text], { type })), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

document.getElementById("all-columns").addEventListener("change", (event) => {
  table.all = event.target.checked;
  drawTable();
  hintAtScrolling();
  highlight(null);
});
document.getElementById("download-csv").addEventListener("click", () => download(`${data.run}.csv`, "text/csv", data.csv));
document.getElementById("download-json").addEventListener("click", () =>
  download(`${data.run}.json`, "application/json", JSON.stringify(data.records, null, 2)));
