// Live charts, from the difference of two samples of the server's counts.

import { element, seconds, short } from "./dom.js";

const POINTS = 90;
const WIDTH = 300;
const HEIGHT = 72;
const SVG = "http://www.w3.org/2000/svg";

const per = (value) => `${value > 0 && value < 0.1 ? value.toFixed(2) : short(value)}/s`;
const percent = (value) => `${value < 0.1 ? Number((value * 100).toFixed(1)) : short(value * 100)} %`;
export const CHARTS = [
  { id: "throughput", title: "Answered", show: per, least: 1, lines: [["requests", (p) => p.answered]] },
  { id: "latency", title: "Latency", show: seconds, least: 1e-4, lines: [["p50", (p) => p.p50], ["p99", (p) => p.p99]] },
  { id: "queue", title: "Waiting", show: short, least: 1, lines: [["requests", (p) => p.pending]] },
  { id: "batch", title: "Rows in a batch", show: short, least: 1, lines: [["mean", (p) => p.batch]] },
  { id: "saturation", title: "Saturation", show: percent, least: 0.01, lines: [["work", (p) => p.saturation]] },
  { id: "refusals", title: "Refused or failed", show: per, least: 1, lines: [["refused", (p) => p.refused], ["failed", (p) => p.failed]] },
];

/** The value under which a part `q` of what the buckets hold lies, linear within its bucket; NaN where they are empty. */
export function quantile(q, counts, bounds) {
  const all = counts.reduce((sum, count) => sum + count, 0);
  if (!all) return NaN;
  let seen = 0;
  for (let i = 0; i < counts.length; i += 1) {
    if (counts[i] && seen + counts[i] >= q * all) {
      const low = i ? bounds[i - 1] : 0;
      const high = i < bounds.length ? bounds[i] : low;
      return low + (high - low) * Math.max(0, (q * all - seen) / counts[i]);
    }
    seen += counts[i];
  }
  return bounds[bounds.length - 1];
}

const total = (models, key) => models.reduce((sum, model) => sum + model[key], 0);
const totals = (models, key) => models.reduce((sum, m) => m[key].map((n, i) => n + (sum[i] || 0)), []);

/** What happened between two samples, each the counts of some models. Counts of a model loaded anew begin again at 0. */
export function point(before, now, elapsedS) {
  const known = new Map(before.map((model) => [`${model.name}/${model.version}`, model]));
  const grown = now.map((model) => {
    const old = known.get(`${model.name}/${model.version}`);
    return old && old.answered <= model.answered && old.failed <= model.failed ? difference(model, old) : null;
  }).filter(Boolean);
  const duration = totals(grown, "duration");
  const bounds = now.length ? now[0].duration_bounds_ns : [];
  const passes = total(grown, "passes");
  const refused = total(grown, "refused") + total(grown, "expired");
  return {
    answered: total(grown, "answered") / elapsedS,
    p50: quantile(0.5, duration, bounds) / 1e9,
    p99: quantile(0.99, duration, bounds) / 1e9,
    pending: total(now, "pending"),
    batch: passes ? total(grown, "rows") / passes : NaN,
    saturation: Math.max(0, ...now.map((model) => model.saturation)),
    refused: refused / elapsedS,
    failed: Math.max(0, total(grown, "failed") - refused) / elapsedS,
  };
}

function difference(model, old) {
  const made = {};
  for (const [key, value] of Object.entries(model)) {
    if (Array.isArray(value)) made[key] = value.map((n, i) => n - old[key][i]);
    else if (typeof value === "number") made[key] = value - old[key];
  }
  return made;
}

/** The elements of all charts, and `draw(points)`, which shows the last of them. */
export function makeCharts(place) {
  const drawn = CHARTS.map((chart) => {
    const value = element("output", { class: "value", id: `${chart.id}-value`, "aria-live": "off" }, "–");
    const svg = document.createElementNS(SVG, "svg");
    svg.setAttribute("viewBox", `0 0 ${WIDTH} ${HEIGHT}`);
    svg.setAttribute("preserveAspectRatio", "none");
    svg.setAttribute("aria-hidden", "true");
    const top = element("span", { class: "scale" });
    place.append(element("figure", { class: "chart", id: `chart-${chart.id}` },
      element("figcaption", {}, element("span", {}, chart.title), value), element("div", { class: "plot" }, svg, top)));
    return { chart, value, svg, top };
  });
  return (points) => drawn.forEach((each) => draw(each, points.slice(-POINTS)));
}

function draw({ chart, value, svg, top }, points) {
  const series = chart.lines.map(([, read]) => points.map(read));
  const highest = Math.max(...series.flat().filter(Number.isFinite), 0);
  const scale = nice(Math.max(highest, chart.least));
  const several = chart.lines.length > 1;
  value.replaceChildren(...chart.lines.map(([name], i) => element("span", { class: `line${i}` },
    several ? element("i", {}, name) : null, chart.show(series[i].length ? series[i].at(-1) : NaN))));
  top.textContent = highest > 0 ? chart.show(scale) : "";
  svg.replaceChildren(...series.flatMap((values, i) => paths(values, scale, i, several)));
}

/** The next of 1, 2, 5, 10, 20, ... above. */
function nice(value) {
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 5, 10].map((step) => step * power).find((step) => step >= value);
}

/** A line for each run of values without a gap, over an area where it is the only one. */
function paths(values, scale, line, several) {
  const offset = POINTS - values.length;
  const runs = [];
  values.forEach((value, i) => {
    if (!Number.isFinite(value)) return;
    const at = `${((offset + i) * WIDTH / (POINTS - 1)).toFixed(1)},${(HEIGHT - 2 - (HEIGHT - 6) * value / scale).toFixed(1)}`;
    if (i && Number.isFinite(values[i - 1])) runs.at(-1).push(at);
    else runs.push([at]);
  });
  return runs.flatMap((run) => {
    const [first, last] = [run[0].split(",")[0], run.at(-1).split(",")[0]];
    const made = [shape(`M${run.join("L")}${run.length === 1 ? "h0.1" : ""}`, `stroke line${line}`)];
    if (!several) made.unshift(shape(`M${first},${HEIGHT}L${run.join("L")}L${last},${HEIGHT}Z`, `area line${line}`));
    return made;
  });
}

function shape(d, name) {
  const path = document.createElementNS(SVG, "path");
  path.setAttribute("d", d);
  path.setAttribute("class", name);
  return path;
}
