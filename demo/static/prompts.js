// Words: what is asked for, what became of it, and what holds now. Text that is being typed is nobody's but its
// writer's: examples, the queue and going back leave it alone.
import { make } from "./element.js";
import { keep, recall } from "./kept.js";

export class Prompts {
  /** @param {import("./live.js").Live} live */
  constructor(live) {
    this.live = live;
    this.last = 0;
    this.notes = this.kept = this.holds = "";
    // words that came while a stream was being begun
    this.awaited = "";
    const { part, options } = live;
    const draft = recall("draft");
    // what the field held when it was last sent, or set from the stream
    this.said = options.examples[0];
    part.prompt.value = typeof draft === "string" ? draft : this.said;
    keep("draft", null);
    window.addEventListener("pagehide", () => { if (this.typing) keep("draft", part.prompt.value); });
    part.sink.value = options.settings.sink_policy || "refresh";
    part.promptForm.addEventListener("submit", (event) => { event.preventDefault(); this.apply(part.prompt.value, true); });
    part.prompt.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" || event.isComposing) return;
      event.preventDefault();
      if (event.shiftKey) live.queue.add(); else this.apply(part.prompt.value, true);
    });
    part.prompt.addEventListener("input", () => this.tooLong(part.prompt.value));
    for (const words of options.examples) {
      const click = () => { this.fill(words); this.apply(words); };
      part.examples.append(make("button", { className: "sg-quiet", text: words, data: { needs: "online" }, click }));
    }
    live.on("place", (place) => this.place(place));
    live.on("receipt", (receipt) => this.receipt(receipt));
    live.on("turned", (state) => this.turned(state));
  }

  // whether there is text in the field that was not sent
  get typing() {
    const { value } = this.live.part.prompt;
    return value.trim() !== "" && value.trim() !== this.said.trim();
  }

  /**
   * Put words into the field, unless somebody is at it.
   * @param {string} words
   */
  fill(words) {
    if (this.typing) return;
    this.live.part.prompt.value = words;
    this.said = words;
    this.live.wordList?.changed();
  }

  /**
   * The words of the field were sent.
   * @param {string} words
   */
  settled(words) { if (this.live.part.prompt.value.trim() === words) this.said = words; }

  /**
   * Whether words are more than is taken, which is said.
   * @param {string} words
   */
  tooLong(words) {
    const most = this.live.options.limit, over = words.trim().length - most;
    if (over > 0) {
      this.notes = "";
      this.say(`Too long: ${most} characters are taken, these are ${over} more. Nothing has been sent.`, true);
    } else if (this.long) this.say("");
    this.long = over > 0;
    return this.long;
  }

  apply(words = "", own = false) {
    const { live } = this;
    words = words.trim();
    if (!words || this.tooLong(words)) return;
    if (live.state === "opening") {
      this.awaited = words;
      this.say("Takes effect once the stream has begun …");
      return;
    }
    if (!live.running) {
      if (own || !this.typing) live.transport.start();
      return;
    }
    if (!this.words({ prompt: words })) return;
    this.settled(words);
  }

  /** @param {import("./types.js").State} state */
  turned(state) {
    const words = this.awaited;
    if (!words || state === "opening" || state === "retry") return;
    this.awaited = "";
    if (this.live.running) this.apply(words);
  }

  /**
   * Ask for new words, a prompt or a blend, in the way that the page says.
   * @param {Record<string, any>} words
   */
  words(words) {
    const { cache, sink, over, way } = this.live.part;
    const seconds = Math.min(60, Math.max(0, Number(over.value) || 0));
    const passage = seconds && cache.value !== "clear" ? { over: seconds, way: way.value } : {};
    if (!this.ask({ ...words, cache: cache.value, sink: sink.value, ...passage })) return false;
    this.notes = "";
    this.say("Takes effect with the next chunk …");
    return true;
  }

  /**
   * The past under the words that hold: read again, or forgotten.
   * @param {string} cache
   */
  past(cache) { if (this.live.running) this.ask({ cache, sink: this.live.part.sink.value }); }

  /** @param {Record<string, any>} change */
  ask(change) {
    const { live } = this;
    const id = live.id();
    if (!live.send({ type: "event", id, epoch: live.epoch, ...change })) return false;
    live.status.asked(id);
    if (change.prompt || change.blend) this.last = id;
    return true;
  }

  /** @param {import("./types.js").Place} place */
  place(place) {
    this.fill(place.prompt);
    this.now(place.prompt);
    this.note(place);
    this.say(this.kept);
    this.kept = "";
  }

  /** @param {string} words */
  now(words) {
    this.holds = words;
    this.live.part.now.textContent = words ? `Now: ${words}` : "";
    this.live.part.now.title = words;
  }

  /**
   * What became of the words that were sent last; those before have their lines in the log.
   * @param {import("./types.js").Receipt} receipt
   */
  receipt(receipt) {
    if (receipt.kind !== "prompt") return;
    const applied = receipt.status === "applied", replaced = receipt.superseded?.includes("prompt");
    if (applied && receipt.epoch !== this.live.epoch) return;
    if (applied && !replaced) this.now(receipt.label);
    if (receipt.id !== this.last) return;
    if ((receipt.status === "accepted" && !receipt.waiting) || applied) this.note(receipt);
    this.kept = "";
    if (receipt.status === "accepted") {
      this.say(receipt.waiting ? `Waiting: ${receipt.waiting}. Takes effect with the first chunk after that …` : "Takes effect with the next chunk …");
    } else if (replaced) this.say("Replaced by newer words before it took effect.");
    else if (applied && receipt.until && receipt.until > receipt.frame) {
      this.say(`Come from ${this.live.time(receipt.frame)} to ${this.live.time(receipt.until)} (frames ${receipt.frame} to ${receipt.until}).`);
    } else if (applied) this.say(`In effect from ${this.live.time(receipt.frame)} (frame ${receipt.frame}).`);
    else {
      this.kept = receipt.status === "withdrawn" ? "Taken back." : `Not taken: ${receipt.reason}.`;
      this.notes = "";
      this.say(this.kept);
    }
  }

  /**
   * Words and symbols without meaning, and the end that was cut off.
   * @param {{ unknown?: string[], dropped?: number, note?: string }} said
   */
  note({ unknown = [], dropped = 0, note = "" }) {
    const list = unknown.slice(0, 8).map((word) => `“${word.length > 40 ? `${word.slice(0, 38)}…` : word}”`).join(", ");
    const more = unknown.length > 8 ? ` and ${unknown.length - 8} more` : "";
    this.notes = [
      unknown.length && `${list}${more} ${unknown.length > 1 ? "mean" : "means"} nothing to this model; the model card lists its words.`,
      dropped && `The end was cut off: ${dropped} ${dropped > 1 ? "tokens" : "token"} more than the model reads.`,
      note,
    ].filter(Boolean).join(" ");
  }

  /** @param {string} text */
  say(text, warns = false) {
    const { words } = this.live.part;
    words.textContent = [text, this.notes].filter(Boolean).join(" ");
    words.dataset.kind = this.notes || warns ? "warning" : "";
  }
}
