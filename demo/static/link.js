// Links that carry what a stream begins with, behind the # of the address: words, seed and settings. What a link
// says is put into the fields and nowhere else; nothing begins before somebody presses Start.

const LARGEST_SEED = 2147483647;

/**
 * The address of this page with what is set now.
 * @param {import("./live.js").Live} live
 */
export function settingsLink(live) {
  const values = new URLSearchParams();
  values.set("prompt", live.prompts.holds || live.part.prompt.value.trim() || live.options.examples[0]);
  values.set("seed", live.part.seed.value);
  for (const [name, value] of Object.entries(live.settings.values())) values.set(name, String(value));
  if (live.hello) values.set("model", live.hello.model);
  return address(live, values);
}

/**
 * @param {import("./live.js").Live} live
 * @param {URLSearchParams} values
 */
export function address(live, values) {
  const url = new URL(live.base);
  url.hash = values.toString();
  return url.href;
}

export class Link {
  /** @param {import("./live.js").Live} live */
  constructor(live) {
    this.live = live;
    window.addEventListener("hashchange", () => this.read());
    // once a stream plays, the address is that of the page again
    live.on("place", () => { if (location.hash.length > 1 && !live.watching) history.replaceState(null, "", location.pathname + location.search); });
    live.on("hello", () => { this.model(); this.loras(); });
    this.asked = "";
    // of LoRAs, until the model has said which it has
    this.strengths = "";
    this.read();
  }

  // take over what the address says, and tell what of it cannot be
  read() {
    const { live } = this;
    const said = new URLSearchParams(location.hash.slice(1));
    /** @type {string[]} */
    const notes = [];
    for (const [name, text] of said) {
      if (name === "prompt") { const words = this.words(name, text, notes); if (words) live.part.prompt.value = live.prompts.said = words; }
      else if (name === "input_prompt") live.part.inputPrompt.value = live.settings.told = this.words(name, text, notes);
      else if (name === "seed") this.seed(text, notes);
      else if (name === "model") this.asked = text;
      else if (name === "lora") this.strengths = text;
      else if (name in live.settings.inputs) this.setting(name, text, notes);
      else if (!["watch", "timeline"].includes(name)) notes.push(`${short(name)} is nothing that this page knows`);
    }
    this.leftOut(notes);
    this.model();
    this.loras();
  }

  /** @param {string[]} notes */
  leftOut(notes) {
    if (!notes.length) return;
    this.live.notices.tell(`Of the link was left out: ${notes.slice(0, 4).join("; ")}${notes.length > 4 ? "; and more" : ""}.`, { key: "link", seconds: 30 });
  }

  loras() {
    const { hello, settings } = this.live;
    if (!hello || !this.strengths) return;
    const known = Object.keys(hello.loras).join(", ") || "no LoRA";
    this.leftOut(settings.setStrengths(this.strengths).map((part) => `lora: expected NAME:STRENGTH of ${known}, found ${short(part)}`));
    this.strengths = "";
  }

  /**
   * What can be taken of a text; "" for nothing.
   * @param {string} name
   * @param {string} text
   * @param {string[]} notes
   */
  words(name, text, notes) {
    const { limit } = this.live.options, words = text.replace(/\s+/g, " ").trim();
    if (!words) notes.push(`${name}: it has no words`);
    else if (words.length > limit) notes.push(`${name}: ${limit} characters are taken, found ${words.length}`);
    else return words;
    return "";
  }

  /**
   * @param {string} text
   * @param {string[]} notes
   */
  seed(text, notes) {
    const fits = /^\d{1,10}$/.test(text) && Number(text) <= LARGEST_SEED;
    if (fits) this.live.part.seed.value = text;
    else notes.push(`seed: expected 0 to ${LARGEST_SEED}, found ${short(text)}`);
  }

  /**
   * @param {string} name of a slider
   * @param {string} text
   * @param {string[]} notes
   */
  setting(name, text, notes) {
    const { input } = this.live.settings.inputs[name];
    const value = text.trim() === "" ? NaN : Number(text);
    if (value >= Number(input.min) && value <= Number(input.max)) {
      input.value = text;
      this.live.settings.write(name);
    } else notes.push(`${name}: expected ${input.min} to ${input.max}, found ${short(text)}`);
  }

  // a link that was made with another model
  model() {
    const { hello, notices } = this.live;
    if (!hello || !this.asked || this.asked === hello.model) return;
    notices.tell(`This link was made with the model ${short(this.asked)}; here it is ${hello.model}, which will show something else.`, { key: "link", seconds: 30 });
    this.asked = "";
  }
}

/** @param {string} text */
function short(text) { return `“${text.length > 40 ? `${text.slice(0, 38)}…` : text}”`; }
