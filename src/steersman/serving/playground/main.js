// The page: learns what model is served, shows one setting or two, asks both the same question.

import { getJson, useKey } from "./api.js";
import { Column } from "./column.js";
import { load, SAMPLING, save } from "./settings.js";
import { asCurl, asPython } from "./snippets.js";

const byId = (id) => document.getElementById(id);
const question = byId("question");
let settings, columns, running;

function tell(message) {
  byId("notice").textContent = message;
  byId("notice").hidden = !message;
}

async function start() {
  let attributes, models;
  try {
    [attributes, models] = await Promise.all([getJson("v1/attributes"), getJson("v1/models")]);
  } catch (error) {
    if (error.status === 401) return askForKey(error);
    return tell(error.message);
  }
  tell("");
  byId("model").textContent = models.data[0].id;
  settings = load(attributes.attributes);
  const changed = () => save(settings);
  columns = Object.fromEntries(
    ["a", "b"].map((key) => [
      key,
      new Column(key, attributes.attributes, settings[key], attributes.predicted, {
        changed,
        copy: (kind) => copy(key, kind),
      }),
    ]),
  );
  byId("compare").checked = settings.compare;
  for (const name of Object.keys(SAMPLING)) byId(name).value = settings.sampling[name] ?? "";
  arrange();
  for (const control of document.querySelectorAll(".bar :disabled, .composer :disabled")) control.disabled = false;
}

function askForKey(error) {
  const dialog = byId("key");
  tell(error.message);
  dialog.onclose = () => {
    useKey(byId("key-value").value);
    start();
  };
  dialog.showModal();
}

const shown = () => (settings.compare ? [columns.a, columns.b] : [columns.a]);

function arrange() {
  byId("columns").replaceChildren(...shown().map((column) => column.element));
  byId("columns").classList.toggle("two", settings.compare);
}

async function ask(text) {
  running = new AbortController();
  busy(true);
  tell("");
  const asked = shown().map((column) => column.ask(text, settings.sampling, running.signal));
  const failures = (await Promise.allSettled(asked)).filter(({ status }) => status === "rejected");
  const failure = failures.map(({ reason }) => reason).find(({ name }) => name !== "AbortError");
  if (failure) tell(failure.message);
  busy(false);
  question.focus();
}

function busy(is) {
  byId("ask").disabled = is;
  byId("stop").hidden = !is;
  byId("compare").disabled = is;
  byId("reset").disabled = is;
}

async function copy(key, kind) {
  const url = new URL(".", document.baseURI).href.replace(/\/$/, "");
  const body = columns[key].body(question.value || "What is a good name for a boat?", settings.sampling);
  const text = kind === "curl" ? asCurl(url, body) : asPython(url, { model: byId("model").textContent, ...body });
  const button = columns[key].find(`.${kind}`);
  const before = button.textContent;
  try {
    await navigator.clipboard.writeText(text);
    button.textContent = "Copied";
  } catch {
    button.textContent = "The browser forbids it";
  }
  setTimeout(() => (button.textContent = before), 1500);
}

byId("composer").onsubmit = (event) => {
  event.preventDefault();
  const text = question.value.trim();
  if (!text || byId("ask").disabled) return;
  question.value = "";
  ask(text);
};
question.onkeydown = (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    byId("composer").requestSubmit();
  }
};
byId("stop").onclick = () => running.abort();
byId("compare").onchange = ({ target }) => {
  settings.compare = target.checked;
  save(settings);
  arrange();
};
byId("reset").onclick = () => {
  for (const column of Object.values(columns)) column.forget();
  question.focus();
};
for (const name of Object.keys(SAMPLING)) {
  byId(name).onchange = ({ target }) => {
    if (!target.checkValidity()) return target.reportValidity();
    settings.sampling[name] = target.value === "" ? SAMPLING[name] : Number(target.value);
    save(settings);
  };
}
start();
