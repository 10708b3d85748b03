// Density histograms, training curves and the strips that show a ratio with its interval.

function drawDensities() {
  const parent = document.getElementById("densities");
  parent.replaceChildren();
  const runs = siteRuns().filter((index) => isSae(index) && data.records[index].density_histogram);
  if (!runs.length) {
    make(parent, "p", { class: "empty" }, "No record of this site holds a density histogram.");
    return;
  }
  const histograms = runs.map((index) => data.records[index].density_histogram);
  const fired = histograms.flatMap((histogram) => histogram.log10_edges.filter((_, bin) => (histogram.counts[bin] || histogram.counts[bin - 1])));
  const x = [Math.floor(Math.min(-1, ...fired)), 0];
  const y = [0, Math.max(1, ...histograms.flatMap((histogram) => histogram.counts)) * 1.05];
  data.arms.forEach((arm, position) => {
    const mine = runs.filter((index) => data.armOf[index] === position);
    if (!mine.length) return;
    const heading = make(parent, "h3", { class: "group" });
    swatch(heading, arm);
    make(heading, "span", {}, arm.label);
    const grid = make(parent, "div", { class: "small" });
    for (const members of bySparsity(mine)) drawDensity(grid, arm, members, x, y);
  });
}

// Runs that differ in nothing but the seed, in the order of L0.
function bySparsity(runs) {
  const groups = new Map();
  for (const index of [...runs].sort((a, b) => data.records[a].l0 - data.records[b].l0)) {
    const record = data.records[index];
    const key = isNumber(record.target_l0) ? `target ${record.target_l0}` : `coefficient ${record.sparsity_coef}`;
    groups.set(key, [...(groups.get(key) || []), index]);
  }
  return [...groups.values()];
}

function drawDensity(parent, arm, members, x, y) {
  const box = make(parent, "div", { class: "panel" });
  const l0 = members.map((index) => number(data.records[index].l0, true));
  make(box, "h4", {}, `L0 ${l0.join(", ")}`);
  const plot = frame(box, {
    x, y, height: 130, xSpacing: 30, ySpacing: 24, label: `Density histogram, ${arm.label}, L0 ${l0.join(" and ")}`,
    xLabel: (tick) => (Number.isInteger(tick.value) ? tick.label : ""),
  });
  for (const index of members) {
    const { log10_edges: edges, counts } = data.records[index].density_histogram;
    let path = `M${plot.x.map(Math.max(edges[0], x[0]))} ${plot.bottom}`;
    counts.forEach((count, bin) => {
      if (edges[bin + 1] < x[0]) return;
      const at = plot.y.map(count);
      path += `L${plot.x.map(Math.max(edges[bin], x[0]))} ${at}L${plot.x.map(edges[bin + 1])} ${at}`;
    });
    path += `L${plot.x.map(edges[edges.length - 1])} ${plot.bottom}`;
    const shape = make(plot.svg, "path", { d: path, fill: armColor(arm), "fill-opacity": 0.14, stroke: armColor(arm), "stroke-width": 1.2, "data-run": index });
    make(shape, "title", {}, runTitle(index));
  }
  const never = members.map((index) => number(data.records[index].density_histogram.never_fired));
  const width = data.records[members[0]].d_sae;
  make(box, "p", { class: "note" }, `never fired: ${never.join(", ")}${width ? ` of ${number(width)}` : ""}`);
}

const CURVE_PANELS = [
  { key: "reconstruction", title: "Reconstruction loss", log: true },
  { key: "l0", title: "L0 on the training batch", log: true },
  { key: "dead_share", title: "Dead share", log: false },
  { key: "sparsity_coef", title: "Sparsity coefficient λ", log: true },
];

function drawCurves() {
  const parent = document.getElementById("curves");
  parent.replaceChildren();
  // A curve without a record (training stopped before evaluation) has no site of its own: it is shown at each.
  const mine = data.curves.filter((curve) => curve.record === null || atSite(curve.record));
  if (!mine.length) {
    make(parent, "p", { class: "empty" }, "There is no training log (metrics.jsonl) for this site.");
    return;
  }
  for (const panel of CURVE_PANELS) drawCurvePanel(parent, panel, mine);
}

function drawCurvePanel(parent, panel, all) {
  const box = make(parent, "div", { class: "panel" });
  const curves = all.filter((curve) => curve[panel.key].some(isNumber));
  const values = curves.flatMap((curve) => curve[panel.key].filter(isNumber));
  const log = panel.log && values.some((value) => value > 0);
  const heading = make(box, "h3", {}, panel.title);
  make(heading, "small", {}, log ? "log scale" : "");
  if (!curves.length) {
    make(box, "p", { class: "empty" }, "Not in the training log.");
    return;
  }
  const shown = log ? values.filter((value) => value > 0) : [0, ...values];
  const y = padded(extent(shown), 0.04, log);
  if (!log) y[0] = Math.min(0, extent(shown)[0]);
  const plot = frame(box, {
    x: [0, Math.max(...curves.flatMap((curve) => curve.tokens.filter(isNumber)))], y, yLog: log, height: 230,
    right: 40, xTitle: "tokens seen in training", xSpacing: 70, label: `${panel.title} against tokens, ${curves.length} SAEs`,
  });
  const drawn = [], labelled = [];
  for (const curve of curves) {
    const arm = curve.record === null ? null : data.arms[data.armOf[curve.record]];
    const points = curve.tokens
      .map((tokens, row) => ({ tokens, value: curve[panel.key][row] }))
      .filter((point) => isNumber(point.tokens) && isNumber(point.value) && (!log || point.value > 0))
      .map((point) => ({ ...point, x: plot.x.map(point.tokens), y: plot.y.map(point.value) }));
    if (!points.length) continue;
    const path = points.map((point) => `${point.x.toFixed(1)} ${point.y.toFixed(1)}`).join("L");
    make(plot.svg, "path", { d: `M${path}`, fill: "none", stroke: armColor(arm), "stroke-width": 1.3, "stroke-dasharray": armDash(arm), "stroke-opacity": lineOpacity(curve), "data-run": curve.record });
    drawn.push({ curve, points });
    labelEnd(plot, curve, arm, points[points.length - 1], labelled);
  }
  nearestCurve(plot, panel, drawn);
}

const targetOf = (curve) => (curve.record === null ? null : data.records[curve.record].target_l0);

// Lines of one arm differ in strength by their target: the lowest is faintest.
function lineOpacity(curve) {
  const mine = data.curves.filter((other) => other.record !== null && data.armOf[other.record] === data.armOf[curve.record]);
  const targets = [...new Set(mine.map(targetOf).filter(isNumber))].sort((a, b) => a - b);
  const place = targets.indexOf(targetOf(curve));
  return place < 0 || targets.length < 2 ? 1 : (0.45 + (0.55 * place) / (targets.length - 1)).toFixed(2);
}

// The target L0 at a line's right end, where no other label of the panel stands.
function labelEnd(plot, curve, arm, point, labelled) {
  const target = targetOf(curve);
  if (!isNumber(target) || labelled.some((other) => Math.abs(other - point.y) < 11)) return;
  labelled.push(point.y);
  make(plot.svg, "text", { x: plot.right + 5, y: point.y + 4, style: `fill: ${armColor(arm)}` }, number(target));
}

// The tooltip follows the drawn point nearest to the pointer.
function nearestCurve(plot, panel, drawn) {
  plot.svg.addEventListener("pointermove", (event) => {
    const corner = plot.svg.getBoundingClientRect();
    const [x, y] = [event.clientX - corner.left, event.clientY - corner.top];
    let best = { distance: 18 };
    for (const { curve, points } of drawn) {
      for (const point of points) {
        const distance = Math.hypot(point.x - x, point.y - y);
        if (distance < best.distance) best = { distance, curve, point };
      }
    }
    if (!best.curve) {
      hideTip();
      highlight(null);
      return;
    }
    highlight(best.curve.record);
    const at = { left: corner.left + best.point.x, right: corner.left + best.point.x, top: corner.top + best.point.y };
    const rows = [["tokens", number(best.point.tokens)], [panel.title, number(best.point.value, true)]];
    showTip(at, best.curve.record, best.curve.record === null ? [["SAE", best.curve.name], ...rows] : rows);
  });
  plot.svg.addEventListener("pointerleave", () => {
    hideTip();
    highlight(null);
  });
}

// The strip under the headline holds 1; those of the tables zoom in on their own ratios, so that these part.
function drawStrips() {
  const endsOf = (strips) => strips.flatMap((strip) => [Number(strip.dataset.low), Number(strip.dataset.high)]).filter((value) => value > 0);
  const strips = [...document.querySelectorAll("[data-ratio]")];
  const large = strips.filter((strip) => strip.tagName === "DIV");
  if (large.length) {
    const domain = padded(extent([...endsOf(large), 0.8, 1.25]), 0.05, true);
    for (const strip of large) drawStrip(strip, domain, true);
  }
  for (const table of document.querySelectorAll(".comparison")) {
    const rows = [...table.querySelectorAll("[data-ratio]")];
    if (!rows.length) continue;
    const domain = padded(extent(endsOf(rows)), 0.12, true);
    table.querySelector(".strip-head").textContent = `Ratio, ${number(domain[0])} to ${number(domain[1])}, log scale`;
    for (const strip of rows) drawStrip(strip, domain, false);
  }
}

function drawStrip(strip, domain, large) {
  strip.replaceChildren();
  if (!strip.clientWidth) return;
  const width = large ? strip.clientWidth : strip.clientWidth - 28;
  const [height, middle] = large ? [84, 26] : [26, 13];
  const [ratio, low, high] = ["ratio", "low", "high"].map((name) => Number(strip.dataset[name]));
  const x = logScale(domain[0], domain[1], [6, width - 6], 56);
  const label = `ratio ${number(ratio)}, 95% interval ${number(low)} to ${number(high)}`;
  const svg = make(strip, "svg", { width, height, viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": label });
  if (large) {
    make(svg, "line", { class: "axis", x1: 0, x2: width, y1: 44, y2: 44 });
    for (const tick of x.ticks) {
      make(svg, "line", { class: "axis", x1: x.map(tick.value), x2: x.map(tick.value), y1: 44, y2: 48 });
      make(svg, "text", { x: x.map(tick.value), y: 61, "text-anchor": "middle" }, tick.label);
    }
    make(svg, "text", { x: width / 2, y: 80, "text-anchor": "middle" }, "L0 relative to the baseline (log scale)");
    make(svg, "text", { x: x.map(1), y: 9, "text-anchor": "middle" }, "equal");
  }
  if (x.has(1)) make(svg, "line", { class: "reference", x1: x.map(1), x2: x.map(1), y1: large ? 13 : 0, y2: large ? 44 : height });
  // A band for the interval and a thin stroke for the ratio: a dot would hide a narrow interval.
  const half = large ? 9 : 6;
  const band = Math.max(2, x.map(high) - x.map(low));
  make(svg, "rect", { x: (x.map(low) + x.map(high) - band) / 2, y: middle - half, width: band, height: 2 * half, rx: 2, fill: "var(--accent)", opacity: 0.35 });
  make(svg, "line", { x1: x.map(ratio), x2: x.map(ratio), y1: middle - half - 4, y2: middle + half + 4, stroke: "var(--accent)", "stroke-width": 2 });
}
