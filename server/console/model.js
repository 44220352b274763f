// What is known of a model version: tensors and certificate, and the buttons that load and unload it.

import { ask, post } from "./calls.js";
import { byId, element, short, words } from "./dom.js";

export const keyOf = (model) => `${model.name}/${model.version}`;

export function stateClass(model) {
  if (model.state === "READY") return "good";
  return model.state === "LOADING" || model.state === "UNLOADING" ? "busy" : model.reason === "unloaded" ? "off" : "bad";
}

export function showModel(model, mode, changed) {
  byId("model-name").replaceChildren(model.name, element("small", {}, model.version ? ` version ${model.version}` : ""));
  const badge = byId("model-state");
  badge.textContent = model.state.toLowerCase() || "unknown";
  badge.className = `badge ${stateClass(model)}`;
  const reason = byId("model-reason");
  reason.textContent = model.reason;
  reason.hidden = !model.reason;
  byId("control").replaceChildren(...control(model, mode, changed));
  byId("facts").replaceChildren(...(model.serves ? [certificate(model), ...tensors(model)] : [
    element("p", { class: "quiet" }, "What it takes and gives is known when it is in service."),
  ]));
}

function control(model, mode, changed) {
  const open = mode === "explicit";
  const why = open ? null : element("p", { id: "control-why", class: "quiet" },
    `Loading and unloading need --model-control-mode explicit; this server runs with ${mode}.`);
  const button = (verb, can) => element("button", {
    type: "button",
    disabled: !open || !can,
    "aria-describedby": open ? null : "control-why",
    onclick: (event) => act(event.target, verb, model.name, changed),
  }, verb === "load" ? (model.serves ? "Load anew" : "Load") : "Unload");
  return [button("load", true), button("unload", model.serves), why].filter(Boolean);
}

async function act(button, verb, name, changed) {
  button.disabled = true;
  const badge = byId("model-state");
  badge.textContent = `${verb}ing`;
  badge.className = "badge busy";
  try {
    await ask(`v2/repository/models/${encodeURIComponent(name)}/${verb}`, post("{}"));
    await changed(null);
  } catch (error) {
    await changed(error);
  }
}

function certificate(model) {
  const held = model.certificate;
  if (!held) {
    return element("div", { id: "certificate" }, element("h4", {}, "Uncertified"),
      element("p", { class: "quiet" }, "It has no manifest.json here: its files and answers were held against nothing."));
  }
  const rows = Object.entries(held.metrics).map(([name, value]) => element("tr", {},
    element("th", { scope: "row" }, words(name)), element("td", {}, value.toFixed(3)),
    element("td", {}, typeof held.baseline[name] === "number" ? held.baseline[name].toFixed(3) : "–")));
  const synthetic = held.synthetic ? element("span", { class: "badge busy" }, "synthetic data") : null;
  return element("div", { id: "certificate" },
    element("h4", {}, "Certificate ", synthetic),
    element("div", { class: "wide", tabindex: "0", role: "region", "aria-label": "Metrics" }, element("table", {},
      element("thead", {}, element("tr", {}, element("th", { scope: "col" }, "on the test set"),
        element("th", { scope: "col" }, "model"), element("th", { scope: "col" }, "baseline"))),
      element("tbody", {}, ...rows))),
    element("p", { class: "quiet" }, `Baseline: ${held.baseline.name || "none"}. ${held.source}. `
      + `Trained on ${short(held.rows.train)}, tested on ${short(held.rows.test)} rows, ${held.created.slice(0, 10)}, ${held.precision}. `
      + `${held.files} files verified by hash and golden answers.`));
}

function tensors(model) {
  const table = (title, specs) => element("div", {}, element("h4", {}, title), element("div", {
    class: "wide", tabindex: "0", role: "region", "aria-label": title,
  }, element("table", {}, element("thead", {}, element("tr", {}, element("th", { scope: "col" }, "name"),
    element("th", { scope: "col" }, "datatype"), element("th", { scope: "col" }, "shape"))),
  element("tbody", {}, ...specs.map((spec) => element("tr", {}, element("th", { scope: "row" }, spec.name),
    element("td", {}, spec.datatype), element("td", {}, `[${spec.shape.join(", ")}]`)))))));
  return [table("Inputs", model.inputs), table("Outputs", model.outputs),
    element("p", { class: "quiet" }, `Platform ${model.platform || "unknown"}`
      + `${model.predict ? `, task ${model.predict.task}, ${model.predict.labels.length} labels` : ", no pipeline: tensors only"}.`)];
}
