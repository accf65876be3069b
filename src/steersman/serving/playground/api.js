// What the page asks of the server it came from. Errors are `ServerError`s in the server's own words.

const KEY = "steersman.key";
const base = new URL(".", document.baseURI);

export class ServerError extends Error {
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

export function useKey(key) {
  sessionStorage.setItem(KEY, key);
}

async function call(path, options = {}) {
  const headers = { "content-type": "application/json" };
  const key = sessionStorage.getItem(KEY);
  if (key) headers.authorization = `Bearer ${key}`;
  let response;
  try {
    response = await fetch(new URL(path, base), { ...options, headers });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ServerError("The server does not answer. Is it still running?", 0);
  }
  if (!response.ok) throw new ServerError(await explain(response), response.status);
  return response;
}

async function explain(response) {
  const wait = response.headers.get("retry-after");
  const again = wait ? ` Try again in ${wait} s.` : "";
  try {
    return (await response.json()).error.message + again;
  } catch {
    return `The server answered ${response.status}.${again}`;
  }
}

export async function getJson(path) {
  return (await call(path)).json();
}

export async function predict(messages, signal) {
  const body = JSON.stringify({ messages });
  return (await call("v1/attributes", { method: "POST", body, signal })).json();
}

// Yields {text} and, at the end, {finish, usage}.
export async function* streamChat(body, signal) {
  const options = { ...body, stream: true, stream_options: { include_usage: true } };
  const response = await call("v1/chat/completions", { method: "POST", body: JSON.stringify(options), signal });
  for await (const data of serverSentEvents(response.body)) {
    if (data === "[DONE]") return;
    const event = JSON.parse(data);
    if (event.error) throw new ServerError(event.error.message, event.error.code);
    const choice = event.choices[0];
    yield { text: choice?.delta.content ?? "", finish: choice?.finish_reason, usage: event.usage };
  }
}

async function* serverSentEvents(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let waiting = "";
  while (true) {
    const { value, done } = await reader.read();
    if (done) return;
    const events = (waiting + value).split("\n\n");
    waiting = events.pop();
    for (const event of events) if (event.startsWith("data: ")) yield event.slice(6);
  }
}
