// Models that write text: a conversation, or a text that goes on; told word by word as it is written.

import { ask, Trouble } from "./calls.js";
import { element, seconds, short } from "./dom.js";

const MOST_TOKENS = 64;

/** Whether a model writes text: what its tensors are called says so. */
export function writes(model) {
  const has = (specs, name) => (specs || []).some((spec) => spec.name === name);
  return has(model.inputs, "text_input") && has(model.outputs, "text_output")
    && (has(model.inputs, "sampling_parameters") || has(model.inputs, "max_tokens"));
}

export function chat(model) {
  const messages = [];
  const turns = element("ol", { id: "turns", class: "turns", tabindex: "0", "aria-label": "Conversation" });
  const add = (role, content) => {
    const text = element("p", {}, content);
    turns.append(element("li", { class: role }, element("small", {}, role === "user" ? "You" : model.name), text));
    turns.scrollTop = turns.scrollHeight;
    return text;
  };
  const say = async (editor, write) => {
    const content = editor.value.trim();
    if (!content) throw new Trouble("Nothing is said yet.");
    add("user", content);
    editor.value = "";
    messages.push({ role: "user", content });
    const place = add("assistant", "");
    try {
      await write("v1/chat/completions", { messages }, (choice) => {
        place.append(choice.delta.content || "");
        turns.scrollTop = turns.scrollHeight;
      });
    } catch (error) {
      if (!place.isConnected) throw error; // It was cleared meanwhile.
      if (error.name === "AbortError" && place.textContent) messages.push({ role: "assistant", content: place.textContent });
      else {
        // What failed is not said: it may be said again.
        messages.pop();
        editor.value = content;
        turns.lastChild.remove();
        turns.lastChild.remove();
      }
      throw error;
    }
    messages.push({ role: "assistant", content: place.textContent });
  };
  const clear = () => { messages.length = 0; turns.replaceChildren(); };
  return box(model, "Message", "Send", say, clear, turns);
}

export function goOn(model) {
  const say = async (editor, write) => {
    if (!editor.value) throw new Trouble("There is no text to go on with yet.");
    await write("v1/completions", { prompt: editor.value }, (choice) => {
      editor.value += choice.text;
      editor.scrollTop = editor.scrollHeight;
    });
  };
  return box(model, "Text", "Go on", say, (editor) => { editor.value = ""; }, null);
}

/** An editor, what the model may do with it, and what came of it. `say(editor, write)` makes the call. */
function box(model, label, verb, say, clear, above) {
  const editor = element("textarea", { id: "say", rows: above ? "3" : "10", "aria-describedby": "say-how" });
  const most = element("input", { id: "most", type: "number", min: "1", value: String(MOST_TOKENS) });
  const temperature = element("input", { id: "temperature", type: "number", min: "0", max: "2", step: "0.1", value: "0.8" });
  const told = element("p", { id: "written", class: "quiet", role: "status" });
  const trouble = element("p", { class: "notice bad", role: "alert", hidden: true });
  let stop = null;
  const write = async (path, body, each) => {
    const began = performance.now();
    const asked = { ...body, model: model.name, stream: true, max_tokens: Number(most.value), temperature: Number(temperature.value) };
    const response = await ask(path, {
      method: "POST", body: JSON.stringify(asked), headers: { "Content-Type": "application/json" }, signal: stop.signal,
    });
    let [first, pieces] = [0, 0];
    for await (const event of events(response)) {
      if (event.error) throw new Trouble(`The text ended early: ${event.error.message}.`);
      for (const choice of event.choices) {
        if (choice.text || choice.delta?.content) {
          first ||= performance.now() - began;
          pieces += 1;
        }
        each(choice);
      }
    }
    const rest = (performance.now() - began - first) / 1e3;
    told.textContent = first ? `First words after ${seconds(first / 1e3)}, then ${short(pieces / Math.max(rest, 1e-3))} pieces a second.` : "No text came.";
  };
  const run = async () => {
    if (stop) return;
    stop = new AbortController();
    trouble.hidden = true;
    halt.disabled = false;
    go.disabled = true;
    try {
      await say(editor, write);
    } catch (error) {
      if (error.name === "AbortError") told.textContent = "Stopped.";
      else {
        trouble.textContent = error instanceof Trouble ? error.message : "The connection broke before the text was over.";
        trouble.hidden = false;
      }
    } finally {
      stop = null;
      halt.disabled = true;
      go.disabled = false;
      editor.focus();
    }
  };
  const go = element("button", { type: "button", class: "main", onclick: run }, verb);
  const halt = element("button", { type: "button", disabled: true, onclick: () => stop?.abort() }, "Stop");
  const anew = element("button", { type: "button", onclick: () => { stop?.abort(); clear(editor); told.textContent = ""; } }, "Clear");
  editor.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) run();
  });
  return element("div", { class: "chat" }, above, element("label", { for: "say" }, label), editor,
    element("div", { class: "fields" },
      element("div", { class: "field" }, element("label", { for: "most" }, "At most tokens"), most),
      element("div", { class: "field" }, element("label", { for: "temperature" }, "Temperature"), temperature)),
    element("div", { class: "buttons" }, go, halt, anew, element("small", { class: "quiet", id: "say-how" }, "Ctrl+Enter sends it.")),
    trouble, told);
}

/** The events of a stream of OpenAI's form, to its [DONE]. */
async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const parts = (held + value).split("\n\n");
    held = parts.pop();
    for (const part of parts) {
      const data = part.replace(/^data: /, "");
      if (data === "[DONE]") return;
      yield JSON.parse(data);
    }
  }
}
