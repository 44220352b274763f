// The ways to give a model something: each makes its elements, and calls `send(path, options, what)` with a call.

import { ask, json, post, Trouble } from "./calls.js";
import { chat, goOn, writes } from "./chat.js";
import { bytes, element, short } from "./dom.js";

const SIDE = 280;
const PEN = 20;
const STEP = 14;
const PAUSE_MS = 250;
const MOST_LABELS = 10;
const MOST_ELEMENTS = 4096;

const base = (model) => `v2/models/${encodeURIComponent(model.name)}/versions/${model.version}`;
const predictPath = (model) => `${base(model)}/predict${model.predict.labels.length ? `?top_k=${Math.min(MOST_LABELS, model.predict.labels.length)}` : ""}`;
const examplePath = (model) => `console/models/${encodeURIComponent(model.name)}/versions/${model.version}/example`;

/** Those that the model has, the one that suits it first: [{id, label, make}]. */
export function waysOf(model) {
  const kind = model.predict?.input.kind;
  const draw = { id: "draw", label: "Draw", narrow: true, make: drawing };
  const file = { id: "file", label: "Picture", narrow: true, make: picture };
  const ways = [];
  // Labels of a character or two are things that people draw.
  if (kind === "image") ways.push(...(model.predict.labels.every((label) => label.length < 3) ? [draw, file] : [file, draw]));
  if (kind === "row") ways.push({ id: "row", label: "Row", make: row });
  if (kind === "text") ways.push({ id: "text", label: "Text", make: text });
  if (writes(model)) ways.push({ id: "chat", label: "Chat", make: chat }, { id: "go-on", label: "Go on with a text", make: goOn });
  return [...ways, { id: "tensors", label: "Tensors", make: tensors }];
}

const button = (label, onclick, more = {}) => element("button", { type: "button", onclick, ...more }, label);

// --- pictures -----------------------------------------------------------------------------------------

function drawing(model, send) {
  const canvas = element("canvas", {
    width: SIDE, height: SIDE, id: "canvas", tabindex: "0", role: "img",
    "aria-label": "Drawing area. With the keyboard: arrows move the pen, space puts it down or lifts it.",
  });
  const pen = element("span", { class: "pen", hidden: true, "aria-hidden": "true" });
  const context = canvas.getContext("2d");
  const at = { x: SIDE / 2, y: SIDE / 4, down: false, drawn: false, timer: 0 };
  const clear = () => {
    clearTimeout(at.timer);
    context.fillStyle = "#fff";
    context.fillRect(0, 0, SIDE, SIDE);
    Object.assign(at, { x: SIDE / 2, y: SIDE / 4, down: false, drawn: false });
    showPen();
  };
  const showPen = () => {
    pen.style.left = `${(at.x / SIDE) * 100}%`;
    pen.style.top = `${(at.y / SIDE) * 100}%`;
    pen.classList.toggle("down", at.down);
  };
  const line = (x, y) => {
    Object.assign(context, { lineWidth: PEN, lineCap: "round", lineJoin: "round", strokeStyle: "#111" });
    context.beginPath();
    context.moveTo(at.x, at.y);
    context.lineTo(x, y);
    context.stroke();
    at.drawn = true;
  };
  const predict = async () => {
    clearTimeout(at.timer);
    if (!at.drawn) throw new Trouble("Nothing is drawn yet.");
    const blob = await new Promise((done) => { canvas.toBlob(done, "image/png"); });
    return [predictPath(model), post(blob, "image/png")];
  };
  const soon = () => {
    clearTimeout(at.timer);
    at.timer = setTimeout(() => send(predict), PAUSE_MS);
  };
  const place = (event) => {
    const box = canvas.getBoundingClientRect();
    return [((event.clientX - box.left) * SIDE) / box.width, ((event.clientY - box.top) * SIDE) / box.height];
  };
  const moveTo = (x, y) => {
    if (at.down) line(x, y);
    Object.assign(at, { x, y });
    showPen();
  };
  canvas.addEventListener("pointerdown", (event) => {
    canvas.setPointerCapture(event.pointerId);
    pen.hidden = true;
    [at.x, at.y] = place(event);
    at.down = true;
    moveTo(at.x, at.y);
  });
  canvas.addEventListener("pointermove", (event) => {
    if (at.down && event.buttons) moveTo(...place(event));
  });
  for (const name of ["pointerup", "pointercancel"]) {
    canvas.addEventListener(name, () => {
      if (at.down) soon();
      at.down = false;
    });
  }
  canvas.addEventListener("keydown", (event) => {
    const [dx, dy] = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key] || [0, 0];
    if (event.key === " ") {
      at.down = !at.down;
      moveTo(at.x, at.y);
      if (!at.down) soon();
    } else if (dx || dy) {
      const inside = (value) => Math.min(SIDE - PEN, Math.max(PEN, value));
      moveTo(inside(at.x + dx * STEP), inside(at.y + dy * STEP));
    } else if (event.key === "Enter") send(predict);
    else return;
    pen.hidden = false;
    showPen();
    event.preventDefault();
  });
  canvas.addEventListener("blur", () => { pen.hidden = true; at.down = false; });
  clear();
  return element("div", {}, element("div", { class: "easel" }, canvas, pen), element("div", { class: "buttons" },
    button("Predict", () => send(predict), { class: "main" }), button("Clear", clear)),
  element("p", { class: "quiet" }, "Draw with the mouse, a finger or the arrow keys: space puts the pen down."));
}

function picture(model, send) {
  const { formats, max_bytes: most } = model.predict.input;
  const shown = element("img", { class: "preview", alt: "", hidden: true });
  const input = element("input", { type: "file", id: "file", class: "unseen", accept: formats.map((f) => `image/${f.toLowerCase()}`).join() });
  const zone = element("label", { class: "zone", for: "file" }, shown,
    element("span", {}, "Drop a picture here, paste one, or ", element("u", {}, "choose a file")),
    element("small", { class: "quiet" }, `${formats.join(", ")}; up to ${bytes(most)}`));
  const give = (blob, name) => send(async () => {
    if (!blob) throw new Trouble("That holds no picture: drop or paste a file.");
    if (blob.size > most) throw new Trouble(`${name} has ${bytes(blob.size)}; this model takes pictures of up to ${bytes(most)}.`);
    await preview(shown, blob);
    if (shown.hidden && !blob.type.startsWith("image/")) {
      throw new Trouble(`${name} is no picture. This model takes ${formats.join(", ")}.`);
    }
    return [predictPath(model), post(blob, blob.type || "application/octet-stream")];
  });
  input.addEventListener("change", () => {
    if (input.files.length) give(input.files[0], input.files[0].name);
    input.value = "";
  });
  const over = (on) => (event) => {
    event.preventDefault();
    zone.classList.toggle("over", on);
  };
  zone.addEventListener("dragover", over(true));
  zone.addEventListener("dragleave", over(false));
  zone.addEventListener("drop", (event) => {
    over(false)(event);
    const file = event.dataTransfer.files[0];
    give(file, file?.name);
  });
  const whole = element("div", {}, input, zone, element("div", { class: "buttons" }, button("Use the model's example", () => send(async () => {
    const blob = await (await ask(examplePath(model))).blob();
    await preview(shown, blob);
    return [predictPath(model), post(blob, blob.type)];
  }))));
  // Wherever it is pasted, as long as this is on the page; text that is pasted into a field is that field's.
  const paste = (event) => {
    if (!whole.isConnected) document.removeEventListener("paste", paste);
    else if (event.clipboardData.files.length) give(event.clipboardData.files[0], "What was pasted");
  };
  document.addEventListener("paste", paste);
  return whole;
}

/** Show the picture, if the browser can. */
async function preview(shown, blob) {
  URL.revokeObjectURL(shown.src);
  shown.src = URL.createObjectURL(blob);
  try {
    await shown.decode();
    shown.hidden = false;
  } catch {
    shown.hidden = true;
  }
}

// --- texts --------------------------------------------------------------------------------------------

function text(model, send) {
  const { min_characters: least, max_characters: most, max_tokens: tokens, truncation } = model.predict.input;
  const editor = element("textarea", { id: "text", rows: "6", "aria-describedby": "text-limits" });
  const fill = async () => { editor.value = (await json(examplePath(model))).input; };
  const predict = async () => {
    const { length } = [...editor.value];
    if (editor.value.trim().length < least) throw new Trouble(`This model takes texts of ${least} character${least === 1 ? "" : "s"} or more.`);
    if (length > most) throw new Trouble(`The text has ${short(length)} characters; this model takes up to ${short(most)}.`);
    return [predictPath(model), post(JSON.stringify({ inputs: [editor.value] }))];
  };
  editor.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) send(predict);
  });
  send(async () => { await fill(); }, { quiet: true });
  const beyond = truncation === "cut" ? "what comes after them is not seen" : "a longer text is refused";
  return element("div", {}, element("label", { for: "text" }, "Text"), editor,
    element("p", { class: "quiet", id: "text-limits" }, `Up to ${short(tokens)} tokens; ${beyond}. Ctrl+Enter sends it.`),
    element("div", { class: "buttons" }, button("Predict", () => send(predict), { class: "main" }),
      button("Back to the example", () => send(async () => { await fill(); }, { quiet: true }))));
}

// --- rows ---------------------------------------------------------------------------------------------

function row(model, send) {
  const { columns } = model.predict.input;
  const fields = columns.map((column, i) => field(column, `column-${i}`));
  const fill = async () => {
    const { input: values } = await json(examplePath(model));
    fields.forEach(({ control }, i) => {
      const value = Array.isArray(values) ? values[i] : values[columns[i].name];
      control.value = value === null || value === undefined ? "" : String(value);
    });
  };
  const submit = (event) => {
    event.preventDefault();
    send(async () => [predictPath(model), post(JSON.stringify({ inputs: [Object.fromEntries(fields.map(read))] }))]);
  };
  send(async () => { await fill(); }, { quiet: true });
  return element("form", { id: "row", novalidate: true, onsubmit: submit },
    element("div", { class: "fields" }, ...fields.map(({ whole }) => whole)),
    element("div", { class: "buttons" }, element("button", { class: "main" }, "Predict"),
      button("Back to the example", () => send(async () => { await fill(); }, { quiet: true }))));
}

function field(column, id) {
  const { name, kind, nullable } = column;
  const numeric = kind === "numeric";
  const options = numeric ? [] : column.categories.map((value) => element("option", { value }, value));
  const hint = numeric && Number.isFinite(column.minimum) ? `${short(column.minimum)} to ${short(column.maximum)}` : "";
  let control;
  let list = null;
  if (!numeric && column.closed) {
    control = element("select", { id }, ...(nullable ? [element("option", { value: "" }, "(missing)")] : []), ...options);
  } else {
    control = element("input", { id, type: "text", inputmode: numeric ? "decimal" : null, autocomplete: "off", placeholder: nullable ? "missing" : null, list: options.length ? `${id}-list` : null });
    if (options.length) list = element("datalist", { id: `${id}-list` }, ...options);
  }
  const whole = element("div", { class: "field" }, element("label", { for: id }, name.replaceAll("_", " "),
    hint ? element("small", {}, ` ${hint}`) : null), control, list);
  return { column, control, whole };
}

/** A column with its value. An empty field is a missing value, where the column has such. */
function read({ column, control }) {
  const text = control.value.trim();
  const wrong = (problem) => {
    control.focus();
    throw new Trouble(`${column.name.replaceAll("_", " ")} ${problem}.`);
  };
  if (text === "") return column.nullable ? [column.name, null] : wrong("needs a value");
  if (column.kind !== "numeric") return [column.name, text];
  const number = Number(text);
  return Number.isFinite(number) ? [column.name, number] : wrong(`must be a number, and "${text}" is none`);
}

// --- tensors ------------------------------------------------------------------------------------------

function tensors(model, send) {
  const editor = element("textarea", { id: "tensors", rows: "12", spellcheck: "false", autocomplete: "off" });
  const path = `${base(model)}/infer`;
  const reset = async () => {
    editor.value = JSON.stringify(await template(model), null, 1).replace(/\[[^[\]{}]*\]/g, (list) => list.replace(/\s+/g, " "));
  };
  const infer = async () => {
    try {
      JSON.parse(editor.value);
    } catch (error) {
      throw new Trouble(`This is no JSON yet: ${error.message}`);
    }
    return [path, post(editor.value)];
  };
  editor.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) send(infer);
  });
  send(async () => { await reset(); }, { quiet: true });
  return element("div", {}, element("label", { for: "tensors" }, "The body of ", element("code", {}, `POST /${path}`)), editor,
    element("div", { class: "buttons" }, button("Infer", () => send(infer), { class: "main" }),
      button("Reset", () => send(async () => { await reset(); }, { quiet: true })),
      element("small", { class: "quiet" }, "Ctrl+Enter sends it.")));
}

/** Zeros of the smallest shape that the model takes. */
async function template(model) {
  const inputs = model.inputs.map(({ name, datatype, shape }) => {
    const smallest = shape.map((dim) => Math.max(1, Number(dim)));
    const size = smallest.reduce((product, dim) => product * dim, 1);
    const zero = { BYTES: "", BOOL: false }[datatype] ?? 0;
    return { name, datatype, shape: smallest, data: size > MOST_ELEMENTS ? [] : Array(size).fill(zero) };
  });
  const { sequence_batching: sequences } = await json(`${base(model)}/config`);
  if (!sequences) return { inputs };
  const text = JSON.stringify(sequences).includes("TYPE_STRING");
  return { parameters: { sequence_id: text ? "1" : 1, sequence_start: true, sequence_end: true }, inputs };
}
