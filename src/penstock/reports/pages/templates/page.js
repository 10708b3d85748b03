// State of the page: which site is shown, which SAE is highlighted, and what the tooltip says.

const state = { site: data.sites[0], pinned: null, controls: false };

function runTitle(index) {
  const record = data.records[index];
  const arm = data.arms[data.armOf[index]];
  const parts = [arm ? arm.label : data.controls[record.arch] || record.arch];
  if (isNumber(record.target_l0)) parts.push(`target L0 ${number(record.target_l0)}`);
  if (isNumber(record.paper_lambda)) parts.push(`λ ${number(record.paper_lambda)}`);
  if (isNumber(record.seed) && arm) parts.push(`seed ${record.seed}`);
  return parts.join(" · ");
}

// Highlights one run everywhere (null: none). A pinned run stays when the pointer leaves.
function highlight(index) {
  const shown = index === null ? state.pinned : index;
  document.body.classList.toggle("linked", shown !== null);
  for (const node of document.querySelectorAll("[data-run]")) {
    node.classList.toggle("hot", Number(node.dataset.run) === shown);
  }
}

function pin(index) {
  state.pinned = state.pinned === index ? null : index;
  highlight(null);
}

const TIP_ROWS = ["l0", "loss_recovered", "loss_recovered_mean", "delta_ce", "kl", "fvu", "mse", "cosine",
  "reconstruction_bias", "l1", "frac_alive", "frac_dense", "sparsity_coef", "tokens_trained", "tokens_evaluated"];

function showTip(box, index, extra) {
  const tip = document.getElementById("tip");
  tip.replaceChildren();
  make(tip, "b", {}, index === null ? "" : runTitle(index));
  const record = index === null ? {} : data.records[index];
  make(tip, "div", { class: "where" }, record.name || "");
  const list = make(tip, "dl");
  const rows = extra || TIP_ROWS.filter((key) => isNumber(record[key])).map((key) => {
    const interval = (record.intervals || {})[key];
    const range = interval ? `${number(interval[0], true)} to ${number(interval[1], true)}` : "";
    return [columnLabel(key), number(record[key]), range];
  });
  for (const [label, value, range] of rows) {
    make(list, "dt", {}, label);
    make(list, "dd", {}, value);
    make(list, "dd", { class: "range" }, range || "");
  }
  tip.hidden = false;
  if (getComputedStyle(tip).position === "fixed") {
    tip.style.left = tip.style.top = "";
    tip.classList.toggle("above", box.top > window.innerHeight / 2);
    return;
  }
  const { offsetWidth: width, offsetHeight: height } = tip;
  const right = box.right + 14 + width < document.documentElement.clientWidth;
  const top = Math.min(Math.max(box.top - height / 2, 54), Math.max(54, window.innerHeight - height - 8));
  tip.style.left = `${window.scrollX + (right ? box.right + 14 : Math.max(8, box.left - 14 - width))}px`;
  tip.style.top = `${window.scrollY + top}px`;
}

function hideTip() {
  document.getElementById("tip").hidden = true;
}

// Says below a table that columns hide behind its edge, as long as they do.
function hintAtScrolling() {
  for (const box of document.querySelectorAll(".scroll")) {
    const more = box.scrollWidth - box.clientWidth - box.scrollLeft > 4;
    box.classList.toggle("more", more);
    let hint = box.nextElementSibling;
    if (!hint || !hint.classList.contains("scroll-hint")) {
      if (!more) continue;
      hint = make(null, "p", { class: "scroll-hint" }, "Scroll sideways for more columns \u2192");
      box.after(hint);
      box.addEventListener("scroll", hintAtScrolling, { passive: true });
    }
    hint.hidden = !more;
  }
}

function drawSite() {
  hideTip();
  for (const node of document.querySelectorAll(".at-site")) node.textContent = data.sites.length > 1 ? state.site : "";
  for (const node of document.querySelectorAll(".comparison")) node.hidden = node.dataset.site !== state.site;
  drawLegend();
  drawPareto();
  drawDensities();
  drawCurves();
  drawStrips();
  hintAtScrolling();
  highlight(null);
}

document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") {
    state.pinned = null;
    hideTip();
    highlight(null);
  }
});

const select = document.getElementById("site");
if (select) {
  select.value = state.site;
  select.addEventListener("change", () => {
    state.site = select.value;
    state.pinned = null;
    drawSite();
  });
}

document.getElementById("controls").addEventListener("change", (event) => {
  state.controls = event.target.checked;
  drawPareto();
  highlight(null);
});

let drawnWidth = document.documentElement.clientWidth;
window.addEventListener("resize", () => {
  if (document.documentElement.clientWidth !== drawnWidth) {
    drawnWidth = document.documentElement.clientWidth;
    drawSite();
  }
});

drawTable();
drawSite();
