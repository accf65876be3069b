// One setting: its dials above, what was said under it below.

import { predict, streamChat } from "./api.js";
import { NAMES, presets } from "./settings.js";

const copyOf = (id) => document.getElementById(id).content.firstElementChild.cloneNode(true);

export class Column {
  // `changed` hears of every move of a dial; `copy(kind)` puts a snippet on the clipboard.
  constructor(key, schema, setting, judged, { changed, copy }) {
    this.schema = schema;
    this.setting = setting;
    this.judged = judged;
    this.turns = [];
    this.element = copyOf("column");
    this.element.dataset.setting = key;
    this.element.setAttribute("aria-label", NAMES[key]);
    this.find("h2").textContent = schema.length ? NAMES[key] : `${NAMES[key]}: this model has no dials`;
    this.inputs = new Map();
    for (const attribute of schema) this.addDial(key, attribute, changed);
    if (schema.length) this.addGuidance(key, changed);
    this.addPresets(changed);
    this.find(".curl").onclick = () => copy("curl");
    this.find(".python").onclick = () => copy("python");
    this.show();
  }

  find(selector) {
    return this.element.querySelector(selector);
  }

  addDial(key, attribute, changed) {
    this.dial(`${key}-${attribute.name}`, attribute.name.replaceAll("_", " "), attribute.low, attribute.high, 1, {
      name: attribute.name,
      read: () => this.setting.values[attribute.name],
      write: (value) => (this.setting.values[attribute.name] = value),
      changed,
    });
  }

  addGuidance(key, changed) {
    const row = this.dial(`${key}-guidance`, "guidance", 1, 4, 0.5, {
      name: "guidance",
      read: () => this.setting.guidance,
      write: (value) => (this.setting.guidance = value),
      changed,
    });
    row.classList.add("guidance");
    row.title = "Above 1, the answer is pushed away from the opposite attributes";
  }

  dial(id, text, low, high, step, { name, read, write, changed }) {
    const row = copyOf("dial");
    const input = row.querySelector("input");
    const label = row.querySelector("label");
    Object.assign(input, { id, min: low, max: high, step });
    Object.assign(label, { htmlFor: id, textContent: text });
    row.querySelector("output").htmlFor = id;
    input.oninput = () => {
      write(Number(input.value));
      this.show();
      changed();
    };
    this.inputs.set(name, { input, read });
    this.find(".dials").append(row);
    return row;
  }

  addPresets(changed) {
    for (const [name, values] of this.schema.length ? presets(this.schema) : []) {
      const button = document.createElement("button");
      Object.assign(button, { type: "button", className: "plain", textContent: name });
      button.onclick = () => {
        Object.assign(this.setting.values, values);
        this.show();
        changed();
      };
      button.values = values;
      this.find(".presets").append(button);
    }
  }

  // Puts the setting into the controls.
  show() {
    for (const { input, read } of this.inputs.values()) {
      input.value = read();
      input.parentElement.querySelector("output").textContent = read();
    }
    for (const button of this.element.querySelectorAll(".presets button")) {
      const same = this.schema.every((a) => button.values[a.name] === this.setting.values[a.name]);
      button.setAttribute("aria-pressed", String(same));
    }
  }

  label() {
    return this.schema.map((a) => `${a.name}:${this.setting.values[a.name]}`).join(",");
  }

  // The request for an answer to `question`.
  body(question, sampling) {
    const { seed, ...rest } = sampling;
    return {
      messages: [...this.turns, { role: "user", content: question }],
      ...rest,
      ...(seed === null ? {} : { seed }),
      ...(this.schema.length ? { attributes: { ...this.setting.values } } : {}),
      ...(this.schema.length && this.setting.guidance !== 1 ? { attribute_guidance: this.setting.guidance } : {}),
    };
  }

  // Asks, shows the answer as it comes, then what the predictor says of it.
  async ask(question, sampling, signal) {
    const body = this.body(question, sampling);
    const asked = { ...this.setting.values };
    const label = this.label();
    const turn = copyOf("turn");
    const answer = turn.querySelector(".answer");
    const text = turn.querySelector(".text");
    turn.querySelector(".question").textContent = question;
    turn.querySelector(".facts").textContent = this.schema.length ? label.replaceAll(",", ", ") : "";
    answer.setAttribute("aria-busy", "true");
    this.find(".transcript").append(turn);
    turn.scrollIntoView({ block: "nearest" });
    try {
      for await (const piece of streamChat(body, signal)) {
        text.textContent += piece.text;
        if (piece.finish === "length") turn.querySelector(".facts").textContent += " · cut at the longest answer";
      }
    } catch (error) {
      if (error.name !== "AbortError") {
        answer.classList.add("failed");
        text.textContent = error.message;
        throw error;
      }
    } finally {
      answer.setAttribute("aria-busy", "false");
    }
    const said = text.textContent.trim();
    if (!said) text.textContent = "(no words)";
    else {
      this.turns.push({ role: "user", content: question });
      this.turns.push({ role: "assistant", content: said, ...(label ? { label } : {}) });
      if (this.judged.length) await this.judge(turn.querySelector(".bars"), asked, signal);
    }
  }

  async judge(bars, asked, signal) {
    const messages = this.turns.map(({ role, content }) => ({ role, content }));
    const { expected } = await predict(messages, signal);
    for (const { name, low, high } of this.judged) {
      const share = (value) => `${(100 * (value - low)) / (high - low)}%`;
      const row = document.createElement("div");
      row.append(Object.assign(document.createElement("dt"), { textContent: name.replaceAll("_", " ") }));
      const gauge = Object.assign(document.createElement("dd"), { className: "gauge", ariaHidden: "true" });
      const fill = document.createElement("span");
      fill.style.width = share(expected[name]);
      gauge.append(fill);
      const words = document.createElement("dd");
      words.textContent = expected[name].toFixed(1);
      if (name in asked) {
        const mark = document.createElement("i");
        mark.style.left = share(asked[name]);
        gauge.append(mark);
        words.textContent += ` (asked ${asked[name]})`;
      }
      row.append(gauge, words);
      bars.append(row);
    }
    bars.hidden = false;
    bars.closest(".turn").scrollIntoView({ block: "nearest" });
  }

  forget() {
    this.turns = [];
    this.find(".transcript").replaceChildren();
  }
}
