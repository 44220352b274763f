// Calls of the server that the page came from. Addresses are relative, so that a proxy may put a prefix before them.

/** An error whose message is a sentence for people. */
export class Trouble extends Error {}

const AWAY = "The server does not answer. It may have been stopped, or the network is down.";
const SENTENCES = {
  401: (text) => `The server asks for a key: ${text}. Load the page anew to give one.`,
  403: (text) => `That is not for this key: ${text}.`,
  404: (text) => `The server does not know that: ${text}.`,
  413: (text) => `That is too large for this model: ${text}.`,
  429: (text) => `The server has too much to do and refused the request: ${text}. Try again in a moment.`,
  500: () => "The server failed at this request. Its log says why.",
  503: (text) => `Not in service at the moment: ${text}.`,
  504: (text) => `The answer did not come in time: ${text}.`,
};

const KEY = "forwardpass-key";
let declined = false;

/** With the API key that was given in this tab; it is asked for when the server asks, once. */
export async function ask(path, options = {}) {
  const shown = sessionStorage.getItem(KEY);
  let response = await sent(path, options, shown);
  if (response.status === 401 && another(shown)) {
    response = await sent(path, options, sessionStorage.getItem(KEY));
  }
  if (response.ok) return response;
  throw new Trouble(await told(response));
}

async function sent(path, options, key) {
  const headers = key ? { ...options.headers, "X-Api-Key": key } : options.headers;
  try {
    return await fetch(path, { cache: "no-cache", ...options, headers });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Trouble(AWAY);
  }
}

/** Whether there is another key than the one that was refused. */
function another(refused) {
  if (sessionStorage.getItem(KEY) !== refused) return true;
  if (declined) return false;
  const key = window.prompt("This server asks for an API key:");
  if (key) sessionStorage.setItem(KEY, key.trim());
  else declined = true;
  return Boolean(key);
}

async function told(response) {
  let text = `${response.status} ${response.statusText}`.trim();
  try {
    const { error } = await response.json();
    text = error?.message || error || text;
  } catch {
    // A proxy's page, for example: the status has to do.
  }
  const sentence = SENTENCES[response.status];
  return sentence ? sentence(text) : `The server can't take this: ${text}.`;
}

export const json = async (path, options) => (await ask(path, options)).json();

export const post = (body, type = "application/json") => ({
  method: "POST",
  body,
  headers: { "Content-Type": type, "X-Explain": "1" },
});

/** Where the time went, of Server-Timing: stages [{name, ms, note}], their total, and the rows of the batch. */
export function timing(response) {
  const stages = [];
  let total = 0;
  let rows = 0;
  for (const entry of (response.headers.get("server-timing") || "").split(", ")) {
    const [, name, duration, note] = /^([a-z_]+)(?:;dur=([0-9.]+))?(?:;desc="([^"]*)")?$/.exec(entry) || [];
    if (name === "total") total = Number(duration);
    else if (name === "batch_rows") rows = Number(note);
    else if (duration) stages.push({ name, ms: Number(duration), note: note || "" });
  }
  return { stages, total, rows };
}
