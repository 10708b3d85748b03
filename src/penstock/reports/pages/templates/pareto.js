// Linked panels of one metric each against L0, with controls as reference marks.

const PANELS = [
  { key: "loss_recovered", title: "Loss recovered", hint: "higher is better" },
  { key: "delta_ce", title: "Delta CE, nats per token", hint: "lower is better" },
  { key: "fvu", title: "Fraction of variance unexplained (FVU)", hint: "lower is better" },
  { key: "reconstruction_bias", title: "Reconstruction bias γ", hint: "1 is unbiased, below 1 shrinks" },
];

const atSite = (index) => String(data.records[index].site) === state.site;
const siteRuns = () => data.records.map((_, index) => index).filter(atSite);
const isSae = (index) => data.armOf[index] !== null;

// Only PCA varies its number of components; identity, zero and mean ablation are levels, not points.
const levelOnly = (record) => record.arch !== "pca" || !isNumber(record.l0) || record.l0 <= 0;

function drawLegend() {
  const legend = document.getElementById("legend");
  legend.replaceChildren();
  const runs = siteRuns();
  data.arms.forEach((arm, position) => {
    if (!runs.some((index) => data.armOf[index] === position)) return;
    const item = make(legend, "span");
    swatch(item, arm);
    make(item, "span", {}, arm.label);
  });
  if (runs.some((index) => data.records[index].arch === "pca")) {
    const item = make(legend, "span");
    swatch(item, null);
    make(item, "span", {}, "PCA, k components");
  }
}

function drawPareto() {
  const panels = document.getElementById("panels");
  panels.replaceChildren();
  for (const panel of PANELS) drawPanel(panels, panel);
}

function drawPanel(parent, panel) {
  const box = make(parent, "div", { class: "panel" });
  const heading = make(box, "h3", {}, panel.title);
  const measured = siteRuns().filter((index) => isNumber(data.records[index][panel.key]));
  const points = measured.filter((index) => isSae(index) && data.records[index].l0 > 0);
  const controls = measured.filter((index) => !isSae(index));
  if (!points.length) {
    make(box, "p", { class: "empty" }, "No SAE of this site has this metric.");
    return;
  }
  const axes = axesOf(panel, points, controls);
  make(heading, "small", {}, panel.hint + (axes.yLog ? ", log scale" : ""));
  const plot = frame(box, { ...axes, xTitle: "L0, firing latents per token (log scale)", role: "group" });
  drawControls(box, plot, panel, controls, points);
  const undrawn = siteRuns().filter(isSae).length - points.length;
  if (undrawn) make(box, "p", { class: "note" }, `Not drawn, no positive L0 or no value: ${undrawn} ${undrawn === 1 ? "SAE" : "SAEs"}.`);
  drawArmLines(plot, panel, points);
  drawPoints(plot, panel, points);
}

function axesOf(panel, points, controls) {
  const spread = (index, key) => [data.records[index][key], ...((data.records[index].intervals || {})[key] || [])].filter(isNumber);
  const shown = state.controls ? [...points, ...controls] : points;
  const values = shown.flatMap((index) => spread(index, panel.key));
  if (panel.key === "reconstruction_bias") values.push(1);
  const across = points.flatMap((index) => spread(index, "l0").filter((value) => value > 0));
  if (state.controls) across.push(...controls.filter((index) => !levelOnly(data.records[index])).map((index) => data.records[index].l0));
  const [low, high] = extent(values);
  const middle = Math.sqrt(Math.min(...across) * Math.max(...across));
  across.push(middle / 1.4, middle * 1.4);
  const yLog = low > 0 && high / low > 6;
  return {
    x: padded(extent(across), 0.06, true), xLog: true, doubling: true, xSpacing: 36, y: padded([low, high], 0.07, yLog), yLog,
    height: 300, label: `${panel.title} against L0, ${points.length} SAEs at ${state.site}${yLog ? ", log scale" : ""}`,
  };
}

function drawControls(box, plot, panel, controls, points) {
  const lines = [], outside = [];
  const bias = panel.key === "reconstruction_bias";
  if (bias) lines.push({ value: 1 });
  for (const index of controls) {
    const record = data.records[index], value = record[panel.key];
    const name = data.controls[record.arch];
    if (!levelOnly(record)) {
      if (plot.y.has(value) && plot.x.has(record.l0)) {
        interactive(drawMark(plot.svg, null, plot.x.map(record.l0), plot.y.map(value), 4), index, plot, panel);
      } else outside.push(`PCA of ${number(record.l0)} at ${number(value)}`);
    } else if (bias) continue;
    else if (!plot.y.has(value)) outside.push(`${name.toLowerCase()} at ${number(value)}`);
    else lines.push({ value, label: `${name} ${number(value)}` });
  }
  const taken = measuredAt(plot, panel, [...points, ...controls.filter((index) => !levelOnly(data.records[index]))]);
  for (const line of lines) {
    const at = plot.y.map(line.value);
    make(plot.svg, "line", { class: "reference", x1: plot.left, x2: plot.right, y1: at, y2: at });
    if (line.label) placeLabel(plot, line.label, at, taken);
  }
  const count = `${outside.length} ${outside.length === 1 ? "control is" : "controls are"} off the scale.`;
  make(box, "p", { class: "note", title: outside.join(", ") || null }, outside.length ? `${count} Tick the box above to fit the axes to them.` : "");
}

const measuredAt = (plot, panel, runs) => runs.map((index) => {
  const [x, y] = [plot.x.map(data.records[index].l0), plot.y.map(data.records[index][panel.key])];
  return { left: x - 7, right: x + 7, top: y - 7, bottom: y + 7 };
});

// Puts a level's name beside its line where it covers no mark and no other name; leaves it out if there is no room.
function placeLabel(plot, label, at, taken) {
  const text = make(plot.svg, "text", {}, label);
  const width = text.getComputedTextLength();
  for (const baseline of [at - 5, at + 14]) {
    for (const left of [plot.right - width, plot.left + 4, (plot.left + plot.right - width) / 2]) {
      const box = { left, right: left + width, top: baseline - 11, bottom: baseline + 3 };
      const clash = taken.some((other) => other.left < box.right && other.right > box.left && other.top < box.bottom && other.bottom > box.top);
      if (clash || box.top < 0 || box.bottom > plot.bottom + 2) continue;
      text.setAttribute("x", left);
      text.setAttribute("y", baseline);
      taken.push(box);
      return;
    }
  }
  text.remove();
}

// One line per arm and seed: joining different seeds would draw a zigzag that means nothing.
function drawArmLines(plot, panel, points) {
  const groups = new Map();
  for (const index of points) {
    const key = `${data.armOf[index]}/${data.records[index].seed}`;
    groups.set(key, [...(groups.get(key) || []), index]);
  }
  for (const members of groups.values()) {
    const arm = data.arms[data.armOf[members[0]]];
    const path = members
      .map((index) => data.records[index])
      .sort((a, b) => a.l0 - b.l0)
      .map((record) => `${plot.x.map(record.l0)} ${plot.y.map(record[panel.key])}`);
    make(plot.svg, "path", { d: `M${path.join("L")}`, fill: "none", stroke: armColor(arm), "stroke-width": 1.4, "stroke-dasharray": armDash(arm), opacity: 0.55 });
  }
}

function drawPoints(plot, panel, points) {
  const ordered = [...points].sort((a, b) => data.armOf[a] - data.armOf[b] || data.records[a].l0 - data.records[b].l0);
  for (const index of ordered) {
    const record = data.records[index];
    const arm = data.arms[data.armOf[index]];
    const [x, y] = [plot.x.map(record.l0), plot.y.map(record[panel.key])];
    const group = make(plot.svg, "g");
    const bar = (from, to) => make(group, "line", { x1: from[0], y1: from[1], x2: to[0], y2: to[1], stroke: armColor(arm), "stroke-width": 1.4, opacity: 0.7 });
    const intervals = record.intervals || {};
    if (intervals[panel.key]) bar([x, plot.y.map(intervals[panel.key][0])], [x, plot.y.map(intervals[panel.key][1])]);
    if (intervals.l0) bar([plot.x.map(intervals.l0[0]), y], [plot.x.map(intervals.l0[1]), y]);
    make(group, "circle", { cx: x, cy: y, r: 14, fill: "transparent" });
    drawMark(group, arm, x, y, 5);
    interactive(group, index, plot, panel);
  }
}

// Pointer, touch and keyboard. Each panel is one tab stop; arrow keys walk through its marks.
function interactive(mark, index, plot, panel) {
  const first = !plot.svg.querySelector("[tabindex='0']");
  const record = data.records[index];
  mark.dataset.run = index;
  mark.classList.add("mark");
  mark.setAttribute("tabindex", first ? 0 : -1);
  mark.setAttribute("role", "button");
  mark.setAttribute("aria-label", `${runTitle(index)}: L0 ${number(record.l0)}, ${panel.title} ${number(record[panel.key])}`);
  const show = () => {
    highlight(index);
    showTip(mark.querySelector(".shape") ? mark.querySelector(".shape").getBoundingClientRect() : mark.getBoundingClientRect(), index);
  };
  const leave = () => {
    hideTip();
    highlight(null);
  };
  mark.addEventListener("pointerenter", show);
  mark.addEventListener("focus", show);
  mark.addEventListener("pointerleave", leave);
  mark.addEventListener("blur", leave);
  mark.addEventListener("click", () => pin(index));
  mark.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    if (event.key === "Enter" || event.key === " ") pin(index);
    else if (step) {
      const marks = [...plot.svg.querySelectorAll(".mark")];
      marks[(marks.indexOf(mark) + step + marks.length) % marks.length].focus();
    } else return;
    event.preventDefault();
  });
}
