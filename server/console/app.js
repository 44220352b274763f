// The page: what is chosen, and its clock: the counts each second, the models each fifth.

import { json, Trouble } from "./calls.js";
import { makeCharts, point } from "./charts.js";
import { byId, element, seconds, short } from "./dom.js";
import { keyOf, showModel, stateClass } from "./model.js";
import { showTrying } from "./trying.js";

const KEPT = 120;
const TICK_MS = 1000;
const MODELS_EACH = 5;

const page = { models: [], chosen: "", shown: "", before: null, points: new Map(), scope: "model", asking: false, ticks: 0, away: false };
const draw = makeCharts(byId("charts"));

async function refreshModels() {
  const told = await json("console/models");
  byId("server-version").textContent = told.version;
  const state = byId("server-state");
  state.textContent = told.ready ? "ready" : "not ready";
  state.className = `badge ${told.ready ? "good" : "bad"}`;
  page.models = told.models;
  page.mode = told.control_mode;
  if (!page.models.some((model) => keyOf(model) === page.chosen)) page.chosen = first();
  showList();
  showChosen();
}

/** That of the address, where there is one: a link to a model is good to send around. */
function first() {
  const wanted = decodeURIComponent(location.hash.slice(1));
  const name = page.chosen.split("/")[0];
  const found = page.models.find((m) => keyOf(m) === wanted)
    || page.models.find((m) => name && m.name === name)
    || page.models.find((m) => m.predict && m.predict.input.kind === "image")
    || page.models.find((m) => m.serves) || page.models[0];
  return found ? keyOf(found) : "";
}

function showList() {
  const list = byId("models");
  const focused = list.contains(document.activeElement) ? document.activeElement.dataset.key : null;
  list.replaceChildren(...page.models.map((model) => element("li", {}, element("button", {
    type: "button",
    "data-key": keyOf(model),
    "aria-current": keyOf(model) === page.chosen ? "true" : null,
    onclick: () => choose(keyOf(model)),
  }, element("span", { class: `dot ${stateClass(model)}`, "aria-hidden": "true" }),
  element("span", { class: "name" }, model.name, element("small", {}, model.version ? ` ${model.version}` : "")),
  element("span", { class: "note" }, note(model))))));
  if (focused) list.querySelector(`[data-key="${CSS.escape(focused)}"]`)?.focus();
  if (!page.models.length) list.append(element("li", { class: "quiet" }, "The repository holds no models yet. One that is put there shows here once it is loaded."));
}

function note(model) {
  if (model.state !== "READY") return model.state.toLowerCase();
  const last = (page.points.get(keyOf(model)) || []).at(-1);
  if (!last || !last.answered) return "idle";
  return `${short(last.answered)}/s · ${seconds(last.p99)}`;
}

function choose(key) {
  page.chosen = key;
  if (!page.away) say("");
  history.replaceState(null, "", `#${encodeURIComponent(key)}`);
  showList();
  showChosen();
  drawCharts();
}

/** What can be typed into is made anew only when it is of something else. */
function showChosen() {
  const model = page.models.find((each) => keyOf(each) === page.chosen);
  byId("main").hidden = !model;
  if (!model) {
    page.shown = "";
    return;
  }
  const { state, reason } = model;
  const now = JSON.stringify([keyOf(model), state, reason, page.mode, model.certificate, model.inputs, model.predict]);
  if (now === page.shown) return;
  const asItWas = JSON.parse(page.shown || "[]");
  const same = asItWas[0] === keyOf(model) && asItWas[1] === state && JSON.stringify(asItWas[6]) === JSON.stringify(model.predict);
  page.shown = now;
  showModel(model, page.mode, changed);
  if (!same) showTrying(model);
}

async function changed(error) {
  page.shown = "";
  if (await guarded(refreshModels)) say(error ? error.message : "");
}

async function refreshCounts() {
  const now = await json("console/counts");
  const { before } = page;
  page.before = now;
  // Of another process: a proxy's other server, or a restart.
  if (!before || now.at_ns <= before.at_ns) return;
  const elapsedS = (now.at_ns - before.at_ns) / 1e9;
  keep("*", point(before.models, now.models, elapsedS));
  for (const model of now.models) keep(keyOf(model), point(before.models, [model], elapsedS));
  for (const key of page.points.keys()) {
    if (key !== "*" && !now.models.some((model) => keyOf(model) === key)) page.points.delete(key);
  }
  drawCharts();
  for (const button of byId("models").querySelectorAll("button")) {
    const model = page.models.find((each) => keyOf(each) === button.dataset.key);
    if (model) button.querySelector(".note").textContent = note(model);
  }
}

function keep(key, value) {
  page.points.set(key, [...(page.points.get(key) || []), value].slice(-KEPT));
}

function drawCharts() {
  draw(page.points.get(page.scope === "all" ? "*" : page.chosen) || []);
}

function say(text) {
  const away = byId("away");
  away.textContent = text;
  away.hidden = !text;
}

/** What the page knows of the models is of before. */
function setAway(away) {
  page.away = away;
  document.body.classList.toggle("away", away);
}

/** Whether it went well; what went wrong stands on top of the page until it is well again. */
async function guarded(work) {
  try {
    await work();
    return true;
  } catch (error) {
    if (!(error instanceof Trouble)) throw error;
    say(error.message);
    byId("server-state").textContent = "away";
    byId("server-state").className = "badge bad";
    setAway(true);
    return false;
  }
}

/** Nothing is asked for while nobody looks, nor again before the last answer is there. */
async function tick() {
  if (document.hidden || page.asking) return;
  page.asking = true;
  try {
    const well = await guarded(refreshCounts);
    page.ticks = well && page.away ? 0 : page.ticks + 1;
    if (well && page.ticks % MODELS_EACH === 0 && await guarded(refreshModels) && page.away) {
      setAway(false);
      say("");
    }
  } finally {
    page.asking = false;
  }
}

byId("scope").addEventListener("change", (event) => {
  page.scope = event.target.value;
  drawCharts();
});
draw([]);
await guarded(refreshModels);
setInterval(tick, TICK_MS);
await tick();
