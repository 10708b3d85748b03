// Numbers, scales, axes and marks. Text only ever reaches the page through textContent.

const data = JSON.parse(document.getElementById("penstock-data").textContent);

function make(parent, tag, attributes, text) {
  const inSvg = tag === "svg" || (parent && parent.namespaceURI.endsWith("svg"));
  const node = inSvg ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes || {})) {
    if (value !== null && value !== undefined) node.setAttribute(name, value);
  }
  if (text !== undefined) node.textContent = text;
  if (parent) parent.append(node);
  return node;
}

const isNumber = (value) => typeof value === "number" && Number.isFinite(value);
const truly = (text) => text.replace(/^-/, "\u2212");

// Four significant digits; integers in full, unless `real` says that their column holds fractions.
function number(value, real) {
  if (!isNumber(value)) return "–";
  const size = Math.abs(value);
  if (value === 0 || (Number.isInteger(value) && (!real || size >= 1000) && size < 1e15)) {
    return truly(value.toLocaleString("en-US"));
  }
  if (size < 1e-4 || size >= 1e6) return truly(value.toExponential(3).replace("e+", "e"));
  return truly(size >= 1000 ? Math.round(value).toLocaleString("en-US") : value.toPrecision(4));
}

function compact(value) {
  if (value === 0) return "0";
  for (const [size, suffix] of [[1e9, "G"], [1e6, "M"], [1e3, "k"]]) {
    if (Math.abs(value) >= size) return `${+(value / size).toPrecision(3)}${suffix}`;
  }
  return truly(Math.abs(value) < 1e-3 ? value.toExponential(0) : String(+value.toPrecision(3)));
}

// A scale maps values to pixels and knows its ticks. `pixels` goes from the low end to the high end.
function linearScale(low, high, pixels, spacing) {
  if (low === high) [low, high] = [low - (Math.abs(low) || 1) * 0.05, high + (Math.abs(high) || 1) * 0.05];
  const rough = (high - low) / Math.max(2, Math.abs(pixels[1] - pixels[0]) / spacing);
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = power * ([1, 2, 5, 10].find((factor) => factor * power >= rough * 0.999));
  const decimals = Math.max(0, -Math.floor(Math.log10(step) + 1e-9));
  const ticks = [];
  for (let index = Math.ceil(low / step - 1e-9); index * step <= high + step * 1e-9; index++) {
    const value = index * step;
    const label = Math.abs(high) >= 10000 ? compact(+value.toPrecision(12)) : truly(value.toFixed(decimals).replace(/^-(0\.?0*)$/, "$1"));
    ticks.push({ value, label });
  }
  return scale(low, high, pixels, ticks, (value) => value);
}

// `doubling` prefers 4, 8, 16, ..., the steps in which sparsity is usually swept.
function logScale(low, high, pixels, spacing, doubling) {
  if (low === high) [low, high] = [low / 1.5, high * 1.5];
  const room = Math.max(2, Math.abs(pixels[1] - pixels[0]) / spacing);
  if (doubling) {
    const powers = [];
    for (let power = Math.ceil(Math.log2(low)); 2 ** power <= high; power++) powers.push(2 ** power);
    if (powers.length >= 3 && powers.length <= room) {
      return scale(low, high, pixels, powers.map((value) => ({ value, label: String(value) })), Math.log10);
    }
  }
  const candidates = [[1, 1.5, 2, 3, 4, 5, 6, 7, 8, 9], [1, 2, 3, 5, 7], [1, 2, 5], [1, 3], [1]];
  let values = [];
  for (const mantissas of candidates) {
    values = [];
    for (let power = Math.floor(Math.log10(low)) - 1; power <= Math.ceil(Math.log10(high)); power++) {
      for (const mantissa of mantissas) values.push(Number(`${mantissa}e${power}`));
    }
    values = values.filter((value) => value >= low * 0.9999 && value <= high * 1.0001);
    if (values.length <= room) break;
  }
  const every = Math.max(1, Math.ceil(values.length / room));
  const ticks = values.filter((_, index) => index % every === 0).map((value) => ({ value, label: compact(value) }));
  return scale(low, high, pixels, ticks, Math.log10);
}

function scale(low, high, pixels, ticks, transform) {
  const [start, end] = [transform(low), transform(high)];
  const map = (value) => pixels[0] + ((transform(value) - start) / (end - start)) * (pixels[1] - pixels[0]);
  return { low, high, ticks, map, has: (value) => value >= low && value <= high };
}

// A frame with axes; returns the svg and its scales. Wide enough left margins come from the longest label.
function frame(parent, options) {
  const width = Math.max(120, Math.floor(options.width || parent.clientWidth));
  const height = options.height;
  const top = 8, bottom = options.xTitle ? 44 : 26, right = options.right || 12;
  const makeY = options.yLog ? logScale : linearScale;
  const y = makeY(options.y[0], options.y[1], [height - bottom, top], options.ySpacing || 34);
  const left = 12 + 7 * Math.max(2, ...y.ticks.map((tick) => tick.label.length));
  const makeX = options.xLog ? logScale : linearScale;
  const x = makeX(options.x[0], options.x[1], [left, width - right], options.xSpacing || 52, options.doubling);
  const svg = make(parent, "svg", { width, height, viewBox: `0 0 ${width} ${height}`, role: options.role || "img", "aria-label": options.label });
  for (const tick of y.ticks) {
    const at = y.map(tick.value);
    make(svg, "line", { class: "grid", x1: left, x2: width - right, y1: at, y2: at });
    make(svg, "text", { x: left - 7, y: at + 4, "text-anchor": "end" }, tick.label);
  }
  for (const tick of x.ticks) {
    const at = x.map(tick.value);
    make(svg, "line", { class: "axis", x1: at, x2: at, y1: height - bottom, y2: height - bottom + 4 });
    make(svg, "text", { x: at, y: height - bottom + 17, "text-anchor": "middle" }, (options.xLabel || ((t) => t.label))(tick));
  }
  make(svg, "line", { class: "axis", x1: left, x2: width - right, y1: height - bottom, y2: height - bottom });
  if (options.xTitle) {
    make(svg, "text", { class: "axis-title", x: (left + width - right) / 2, y: height - 6, "text-anchor": "middle" }, options.xTitle);
  }
  return { svg, x, y, left, right: width - right, top, bottom: height - bottom };
}

const SHAPES = {
  circle: (r) => `M${-r} 0a${r} ${r} 0 1 0 ${2 * r} 0a${r} ${r} 0 1 0 ${-2 * r} 0Z`,
  square: (r) => `M${-r} ${-r}H${r}V${r}H${-r}Z`,
  triangle: (r) => `M0 ${-1.2 * r}L${1.15 * r} ${0.9 * r}H${-1.15 * r}Z`,
  diamond: (r) => `M0 ${-1.35 * r}L${1.35 * r} 0L0 ${1.35 * r}L${-1.35 * r} 0Z`,
  down: (r) => `M0 ${1.2 * r}L${1.15 * r} ${-0.9 * r}H${-1.15 * r}Z`,
  hexagon: (r) => `M${r * 1.15} 0L${r * 0.58} ${r}H${-r * 0.58}L${-r * 1.15} 0L${-r * 0.58} ${-r}H${r * 0.58}Z`,
  star: (r) => `M0 ${-1.4 * r}L${0.4 * r} ${-0.4 * r}L${1.4 * r} 0L${0.4 * r} ${0.4 * r}L0 ${1.4 * r}L${-0.4 * r} ${0.4 * r}L${-1.4 * r} 0L${-0.4 * r} ${-0.4 * r}Z`,
  cross: (r) => `M${-r} ${-r}L${r} ${r}M${-r} ${r}L${r} ${-r}`,
};
const DASHES = [null, "6 4", "2 3", "8 3 2 3"];

const armColor = (arm) => (arm ? `var(--arm${arm.slot})` : "var(--quiet)");
const armDash = (arm) => (arm ? DASHES[arm.variant % DASHES.length] : "1 4");

function drawMark(parent, arm, x, y, radius) {
  const color = armColor(arm);
  const hollow = !arm || arm.variant % 2 === 1;
  return make(parent, "path", {
    class: "shape", d: SHAPES[arm ? arm.shape : "cross"](radius), transform: `translate(${x} ${y})`,
    fill: hollow ? "var(--paper)" : color, stroke: color, "stroke-width": 1.6,
  });
}

function swatch(parent, arm) {
  const svg = make(parent, "svg", { class: "swatch", width: 30, height: 14, "aria-hidden": "true" });
  if (arm) make(svg, "line", { x1: 0, x2: 30, y1: 7, y2: 7, stroke: armColor(arm), "stroke-width": 1.6, "stroke-dasharray": armDash(arm) });
  drawMark(svg, arm, 15, 7, 4.5);
  return svg;
}

const extent = (values) => [Math.min(...values), Math.max(...values)];

function padded([low, high], share, log) {
  if (log) {
    const factor = Math.max(high / low, 1.2) ** share;
    return [low / factor, high * factor];
  }
  const margin = (high - low || Math.abs(high) || 1) * share;
  return [low - margin, high + margin];
}
