// Sliders, and the strength and words of the camera: sent when they rest, and set to what holds when the stream goes elsewhere
// or refuses a change.
import { make } from "./element.js";

/** @type {[string, string, number, number, number][]} */
const SLIDERS = [
  ["text_guidance", "Text guidance", 0, 8, 0.1],
  ["motion_guidance", "Motion guidance", 0, 8, 0.1],
  ["steps", "Steps", 1, 16, 1],
];
/** @type {Record<string, string>} */
const TITLES = {
  text_guidance: "How strongly the words are followed", motion_guidance: "How strongly drags, paths and the camera are followed",
  steps: "How often a chunk is denoised: the model was made for so many; more takes longer, fewer blurs",
};
const REST_MS = 150;
const SMALL_PIXELS = 128 * 128;
// of a LoRA, as the server has it
const MOST_STRENGTH = 100;

export class Settings {
  /** @param {import("./live.js").Live} live */
  constructor(live) {
    this.live = live;
    /** @type {Record<string, { input: HTMLInputElement, value: HTMLElement, label: string }>} */
    this.inputs = {};
    for (const slider of SLIDERS) this.add(slider);
    this.wire("strength", "Camera's strength", { input: live.part.strength, value: live.part.strengthValue });
    // what holds in the stream, and changes on their way by the number of their message
    /** @type {Record<string, number | string>} */
    this.holds = {};
    /** @type {Map<number, Record<string, number | string>>} */
    this.asked = new Map();
    /** @type {Record<string, number | string>} */
    this.waiting = {};
    // of LoRAs whose strength may change, by name
    /** @type {Record<string, { input: HTMLInputElement, value: HTMLOutputElement, strength: number }>} */
    this.loras = {};
    this.suited = false;
    // what the field of the camera's words held when it was last sent, or set from the stream
    this.told = "";
    /** @type {ReturnType<typeof setTimeout> | undefined} */
    this.timer = undefined;
    const { inputPrompt } = live.part;
    inputPrompt.maxLength = live.options.limit;
    inputPrompt.addEventListener("change", () => {
      this.told = inputPrompt.value;
      this.waiting.input_prompt = this.told.trim();
      this.soon();
    });
    live.part.pixelated.addEventListener("change", () => this.sharp());
    this.sharp();
    live.on("hello", (hello) => this.suit(hello));
    live.on("place", (place) => this.place(place.settings));
    live.on("receipt", (receipt) => this.receipt(receipt));
  }

  /**
   * What a model does not have is not shown; larger pictures are enlarged smoothly.
   * @param {import("./types.js").Hello} hello
   */
  suit(hello) {
    for (const [name, strength] of Object.entries(hello.loras)) if (!(name in this.loras)) this.addLora(name, strength);
    const row = this.inputs.motion_guidance.input.closest("label");
    if (row) row.hidden = !hello.tracks;
    if (this.suited) return;
    this.suited = true;
    this.live.part.pixelated.checked = hello.width * hello.height <= SMALL_PIXELS;
    this.sharp();
  }

  /**
   * A slider for a LoRA; all of them are told together, as one setting.
   * @param {string} name
   * @param {number} strength
   */
  addLora(name, strength) {
    const about = { min: -1, max: 2, step: 0.05, value: strength, data: { lora: name, needs: "online" } };
    const { input, value } = this.loras[name] = { strength, ...this.slider(`LoRA ${name}`, about) };
    value.textContent = strength.toFixed(2);
    input.addEventListener("input", () => {
      value.textContent = Number(input.value).toFixed(2);
      this.waiting.lora = this.strengths();
      this.soon();
    });
    this.live.availability?.refresh();
  }

  // of all LoRAs, as one setting
  strengths() { return Object.entries(this.loras).map(([name, { input }]) => `${name}:${input.value}`).join(","); }

  /**
   * Sets LoRAs to the strengths of a setting, and those that it does not name to the model's own.
   * @param {string} text NAME:STRENGTH,..., or a number for all
   * @returns {string[]} what of it cannot be
   */
  setStrengths(text) {
    /** @type {Map<string, string>} */
    const said = new Map();
    const wrong = text.split(",").filter((part) => {
      const at = part.lastIndexOf(":"), name = part.slice(0, Math.max(0, at)), strength = part.slice(at + 1).trim();
      const fits = (!name || name in this.loras) && strength !== "" && Math.abs(Number(strength)) <= MOST_STRENGTH;
      if (fits) said.set(name, strength);
      return part.trim() && !fits;
    });
    for (const [name, { input, value, strength }] of Object.entries(this.loras)) {
      input.value = said.get(name) ?? said.get("") ?? String(strength);
      value.textContent = Number(input.value).toFixed(2);
    }
    return wrong;
  }

  /**
   * @param {string} text
   * @param {Record<string, any>} about its range, value and data
   */
  slider(text, about, title = "") {
    const input = make("input", { type: "range", ...about }), value = make("output");
    this.live.part.sliders.append(make("label", { className: "sg-slider", title }, make("span", { text }), input, value));
    return { input, value };
  }

  /** @param {[string, string, number, number, number]} slider */
  add([name, label, min, max, step]) {
    const { live } = this;
    const made = live.options.settings[name];
    const text = name === "steps" && made ? `${label} (made for ${made})` : label;
    const about = { min, max, step, value: made ?? min, data: { setting: name, needs: "online" } };
    this.wire(name, label, this.slider(text, about, TITLES[name]));
  }

  /**
   * @param {string} name of a setting
   * @param {string} label
   * @param {{ input: HTMLInputElement, value: HTMLElement }} slider
   */
  wire(name, label, { input, value }) {
    const made = this.live.options.settings[name];
    if (made !== undefined) input.value = String(made);
    this.inputs[name] = { input, value, label };
    input.addEventListener("input", () => { this.write(name); this.changed(name); });
    this.write(name);
  }

  /** @param {string} name */
  write(name) {
    const { input, value } = this.inputs[name];
    value.textContent = Number(input.value).toFixed(input.step.split(".")[1]?.length || 0);
  }

  /** @returns {Record<string, number | string>} */
  values() {
    const sliders = Object.fromEntries(Object.entries(this.inputs).map(([name, { input }]) => [name, Number(input.value)]));
    const words = this.live.part.inputPrompt.value.trim();
    const moved = Object.values(this.loras).some(({ input, strength }) => Number(input.value) !== strength);
    return { ...sliders, ...(words && { input_prompt: words }), ...(moved && { lora: this.strengths() }) };
  }

  // the words of the camera that hold, unless somebody is writing others
  tell() {
    const { live } = this, { inputPrompt } = live.part, holds = String(this.holds.input_prompt || "");
    if (inputPrompt.value !== this.told && inputPrompt.value.trim() !== holds) return;
    this.told = inputPrompt.value = holds;
    live.wordList?.changed();
  }

  /** @param {string} name */
  changed(name) {
    this.waiting[name] = Number(this.inputs[name].input.value);
    this.soon();
  }

  soon() {
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.send(), REST_MS);
  }

  send() {
    const { live } = this;
    const settings = this.waiting;
    this.waiting = {};
    if (!live.running) return;
    const id = live.id();
    if (!live.send({ type: "event", id, epoch: live.epoch, settings })) { this.show(); return; }
    this.asked.set(id, settings);
    live.status.asked(id);
  }

  /** @param {import("./types.js").Receipt} receipt */
  receipt(receipt) {
    const settings = this.asked.get(receipt.id) || receipt.settings;
    if (!settings || receipt.status === "accepted") return;
    this.asked.delete(receipt.id);
    if (receipt.status === "applied") {
      for (const name in settings) if (!receipt.superseded.includes(name)) this.holds[name] = settings[name];
    }
    if (receipt.settings || receipt.status !== "applied") this.show();
  }

  /** @param {Record<string, number | string>} settings */
  place(settings) {
    this.holds = { ...settings };
    this.asked.clear();
    this.show();
  }

  // they say what holds, but for those on which a hand is or whose change is still on its way
  show() {
    const busy = Object.assign({}, this.waiting, ...this.asked.values());
    for (const [name, { input }] of Object.entries(this.inputs)) {
      if (name in busy || !(name in this.holds)) continue;
      input.value = String(this.holds[name]);
      this.write(name);
    }
    if (!("input_prompt" in busy)) this.tell();
    if (!("lora" in busy)) this.setStrengths(String(this.holds.lora || ""));
  }

  sharp() { this.live.part.video.classList.toggle("sharp", this.live.part.pixelated.checked); }
}
