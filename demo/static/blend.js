// Several prompts at once, each with a weight: applied together, and live from then on.
import { make } from "./element.js";

const MOST = 16;
const REST_MS = 200;

export class Blend {
  /** @param {import("./live.js").Live} live */
  constructor(live) {
    this.live = live;
    /** @type {{ prompt: string, weight: number }[]} */
    this.rows = [];
    // whether the words that hold are this blend, so that a weight that moves is sent
    this.plays = false;
    this.asked = 0;
    /** @type {ReturnType<typeof setTimeout> | undefined} */
    this.timer = undefined;
    const { part } = live;
    part.blendAdd.addEventListener("click", () => this.add(part.prompt.value));
    part.blendApply.addEventListener("click", () => this.apply());
    live.on("receipt", (receipt) => {
      if (receipt.kind !== "prompt" || receipt.status === "accepted") return;
      if (receipt.id === this.asked) this.plays = receipt.status === "applied" || this.plays;
      else if (receipt.status === "applied" && !receipt.superseded.includes("prompt")) this.plays = false;
    });
    live.on("place", () => { this.plays = false; });
    this.draw();
  }

  /** @param {string} words */
  add(words) {
    const { live } = this;
    words = words.trim();
    if (!words || live.prompts.tooLong(words)) { this.say("Write the words into the field first."); return; }
    if (this.rows.length >= MOST) { this.say(`A blend has at most ${MOST} prompts.`); return; }
    this.rows.push({ prompt: words, weight: 1 });
    this.say("Weights are live once the blend plays.");
    this.draw();
  }

  apply() {
    const blend = this.rows.filter((row) => row.weight > 0);
    if (!blend.length) {
      this.say(this.rows.length ? "Give one of them a weight above 0." : "Add some prompts first.");
      return;
    }
    if (!this.live.running || !this.live.prompts.words({ blend })) return;
    this.asked = this.live.prompts.last;
  }

  /** @param {string} text */
  say(text) { this.live.part.blendHint.textContent = text; }

  changed() {
    if (!this.plays) return;
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.apply(), REST_MS);
  }

  draw() {
    this.live.part.blendRows.replaceChildren(...this.rows.map((row) => this.row(row)));
  }

  /** @param {{ prompt: string, weight: number }} row */
  row(row) {
    const input = make("input", { type: "range", min: 0, max: 1, step: 0.05, value: row.weight, label: `Weight of “${row.prompt}”` });
    const value = make("output");
    const write = () => { value.textContent = row.weight.toFixed(2); };
    input.addEventListener("input", () => { row.weight = Number(input.value); write(); this.changed(); });
    write();
    const click = () => {
      this.rows = this.rows.filter((other) => other !== row);
      this.draw();
      this.changed();
    };
    const remove = make("button", { className: "sg-quiet", text: "✕", label: `Take “${row.prompt}” out of the blend`, click });
    return make("li", {}, make("span", { text: row.prompt, title: row.prompt }), input, value, remove);
  }
}
