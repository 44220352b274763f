// Elements and words: nothing here knows of models.

/** An element with attributes and children. Text is always text: nothing from a server becomes markup. */
export function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
    else if (value === true) made.setAttribute(key, "");
    else if (value !== false && value !== null && value !== undefined) made.setAttribute(key, value);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

export const byId = (id) => document.getElementById(id);

/** A number as people read it: three digits that matter. */
export function short(value) {
  if (!Number.isFinite(value)) return "–";
  const size = Math.abs(value);
  if (size >= 1e6) return `${(value / 1e6).toPrecision(3)} M`;
  if (size >= 1e4) return `${(value / 1e3).toPrecision(3)} k`;
  if (size >= 100) return value.toFixed(0);
  if (size === 0 || Number.isInteger(value)) return String(value);
  return String(Number(value.toPrecision(3)));
}

/** Seconds, in the unit that suits them. */
export function seconds(value) {
  if (!Number.isFinite(value)) return "–";
  if (value >= 1) return `${short(value)} s`;
  if (value >= 1e-3) return `${short(value * 1e3)} ms`;
  return `${short(value * 1e6)} µs`;
}

export function bytes(value) {
  if (value >= 1 << 20) return `${short(value / (1 << 20))} MB`;
  if (value >= 1 << 10) return `${short(value / (1 << 10))} kB`;
  return `${value} bytes`;
}

/** precision_at_threshold to "precision at threshold": names of metrics and of parts, for people. */
export const words = (name) => name.replaceAll("_", " ");
