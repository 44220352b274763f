// Trying a model: its ways, and the answer with where its time went.

import { ask, timing, Trouble } from "./calls.js";
import { byId, element, seconds, short, words } from "./dom.js";
import { waysOf } from "./ways.js";

const MOST_TEXT = 20000;
let turn = 0;

export function showTrying(model) {
  const place = byId("ways");
  turn += 1;
  byId("answer").replaceChildren();
  if (!model.serves) {
    place.replaceChildren();
    byId("way").replaceChildren(element("p", { class: "quiet" }, "It is not in service."));
    return;
  }
  const ways = waysOf(model);
  const show = (way) => {
    byId("answer").replaceChildren();
    byId("work").className = way.narrow ? "beside" : "";
    byId("way").replaceChildren(way.make(model, send));
  };
  const choice = element("fieldset", { class: "choice" }, element("legend", { class: "unseen" }, "What to give it"),
    ...ways.map((way, i) => element("label", {}, element("input", {
      type: "radio", name: "way", value: way.id, checked: i === 0, onchange: () => show(way),
    }), ` ${way.label}`)));
  place.replaceChildren(...(ways.length > 1 ? [choice] : []));
  show(ways[0]);
}

/** Make a call and show what came of it. `prepare` gives [path, options], or nothing where there is no call to be made. */
async function send(prepare, { quiet = false } = {}) {
  const mine = turn += quiet ? 0 : 1;
  const place = byId("answer");
  if (!quiet) place.setAttribute("aria-busy", "true");
  try {
    const call = await prepare();
    if (!call) return;
    const began = performance.now();
    const response = await ask(...call);
    const told = await response.json();
    // Who asked again meanwhile gets the later answer only.
    if (mine === turn) place.replaceChildren(...answer(told), latency(timing(response), performance.now() - began));
  } catch (error) {
    if (!(error instanceof Trouble)) throw error;
    if (mine === turn) place.replaceChildren(element("p", { class: "notice bad", role: "alert" }, error.message));
  } finally {
    place.removeAttribute("aria-busy");
  }
}

function answer(told) {
  if (!told.predictions) {
    const text = JSON.stringify(told.outputs ?? told, null, 1).replace(/\[[^[\]{}]*\]/g, (list) => list.replace(/\s+/g, " "));
    const cut = text.length > MOST_TEXT ? `${text.slice(0, MOST_TEXT)}\n… ${text.length - MOST_TEXT} more characters` : text;
    return [element("pre", { id: "outputs", tabindex: "0", "aria-label": "Outputs" }, cut)];
  }
  const [one] = told.predictions;
  if ("value" in one) {
    const range = ` from ${figure(one.low)} to ${figure(one.high)}`;
    return [element("p", { class: "label" }, element("strong", { id: "label" }, figure(one.value)), element("span", {}, range))];
  }
  if ("items" in one) {
    return [element("ol", { class: "scores", "aria-label": "Items" }, ...one.items.map((each) => element("li", {},
      element("span", { class: "name" }, each.label), element("span", { class: "figure" }, figure(each.score)))))];
  }
  if ("vector" in one) {
    const text = JSON.stringify(one.vector.map((value) => Number(value.toPrecision(5)))).replaceAll(",", ", ");
    return [element("p", { class: "label" }, element("strong", { id: "label" }, `${short(one.vector.length)} numbers`)),
      element("pre", { id: "outputs", tabindex: "0", "aria-label": "Vector" }, text)];
  }
  if ("entities" in one) {
    if (!one.entities.length) return [element("p", { class: "label" }, element("strong", { id: "label" }, "Nothing found"))];
    return [element("ol", { class: "scores", "aria-label": "Entities" }, ...one.entities.map((each) => element("li", {},
      element("span", { class: "name" }, `${each.text} (${each.label})`), element("span", { class: "figure" }, percent(each.score)))))];
  }
  if (!("label" in one)) return answer({ outputs: one.custom ?? one });
  const { label, score, top_k: scores } = one;
  return [
    element("p", { class: "label" }, element("strong", { id: "label" }, label), element("span", {}, ` ${percent(score)}`)),
    element("ol", { class: "scores", "aria-label": "Scores" }, ...scores.map((each) => {
      const bar = element("span", { class: "bar", "aria-hidden": "true" }, element("span", {}));
      bar.firstChild.style.width = `${each.score * 100}%`;
      return element("li", { class: each.label === label ? "best" : null }, element("span", { class: "name" }, each.label), bar,
        element("span", { class: "figure" }, percent(each.score)));
    })),
  ];
}

const figure = (value) => String(Number(value.toPrecision(6)));
const percent = (score) => `${(score * 100).toFixed(score > 0.9995 || score < 0.0995 ? 2 : 1)} %`;

/** One bar of all stages in the server, its parts as wide as they were long. */
function latency({ stages, total, rows }, browserMs) {
  const bar = element("div", { class: "stages", role: "img", "aria-label": `${seconds(total / 1e3)} in the server, stages listed below` });
  const list = element("ul", { class: "legend" });
  for (const { name, ms, note } of stages) {
    const part = element("span", { class: `stage ${name}` });
    part.style.flexGrow = String(ms);
    bar.append(part);
    const why = note && note !== "none" ? ` (${words(note)})` : "";
    list.append(element("li", {}, element("i", { class: `stage ${name}`, "aria-hidden": "true" }),
      element("span", {}, words(name) + why), element("span", { class: "figure" }, seconds(ms / 1e3))));
  }
  const company = rows > 1 ? `, in a batch of ${short(rows)} rows` : "";
  return element("div", { id: "latency" }, element("h4", {}, `${seconds(total / 1e3)} in the server${company}`,
    element("small", {}, ` ${seconds(browserMs / 1e3)} as the browser saw it`)), bar, list);
}
