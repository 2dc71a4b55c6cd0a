// Words: applied at the next chunk, or queued and applied one after the other.
export class Prompts {
  constructor(live) {
    this.live = live;
    this.queue = [];
    this.since = 0;
    this.last = 0;
    this.notes = this.kept = "";
    const { part, options } = live;
    part.prompt.value = options.examples[0];
    part.sink.value = options.settings.sink_policy || "refresh";
    part.promptForm.addEventListener("submit", (event) => { event.preventDefault(); this.apply(part.prompt.value); });
    part.prompt.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" || event.isComposing) return;
      event.preventDefault();
      if (event.shiftKey) this.add(); else this.apply(part.prompt.value);
    });
    for (const words of options.examples) {
      const button = document.createElement("button");
      button.type = "button";
      button.className = "sg-quiet";
      button.textContent = words;
      button.addEventListener("click", () => { part.prompt.value = words; this.apply(words); });
      part.examples.append(button);
    }
    live.on("place", (place) => this.place(place));
    live.on("receipt", (receipt) => this.receipt(receipt));
    live.on("shown", (frame) => this.due(frame.frame));
  }

  apply(words) {
    const { live } = this;
    words = words.trim();
    if (!words) return;
    if (!["playing", "paused"].includes(live.state)) { live.transport.start(); return; }
    const { cache, sink } = live.part;
    if (!this.ask({ prompt: words, cache: cache.value, sink: sink.value })) return;
    this.notes = "";
    this.say("Takes effect with the next chunk …");
  }

  // the past under the words that hold: read again, or forgotten
  past(cache) {
    if (["playing", "paused"].includes(this.live.state)) this.ask({ cache, sink: this.live.part.sink.value });
  }

  ask(change) {
    const { live } = this;
    const id = live.id();
    if (!live.send({ type: "event", id, epoch: live.epoch, ...change })) return false;
    live.status.asked(id);
    if (change.prompt) this.last = id;
    return true;
  }

  add() {
    const { prompt, hold } = this.live.part;
    const words = prompt.value.trim();
    if (!words || this.queue.length >= 20) return;
    this.queue.push({ words, seconds: Math.min(600, Math.max(1, Number(hold.value) || 5)) });
    prompt.value = "";
    prompt.focus();
    this.draw();
  }

  // the next prompt's turn, counted in frames of video since the last change of words
  due(frame) {
    const next = this.queue[0];
    if (!next || frame - this.since < next.seconds * this.live.hello.fps) return;
    this.queue.shift();
    this.since = frame;
    this.live.part.prompt.value = next.words;
    this.apply(next.words);
    this.draw();
  }

  place(place) {
    this.live.part.prompt.value = place.prompt;
    this.since = place.frame;
    this.note(place);
    this.say(this.kept);
    this.kept = "";
  }

  // what became of the words that were sent last; those before have their lines in the log
  receipt(receipt) {
    if (receipt.kind !== "prompt") return;
    const applied = receipt.status === "applied";
    if (applied && receipt.epoch !== this.live.epoch) return;
    if (applied && !receipt.superseded.includes("prompt")) this.since = receipt.frame;
    if (receipt.id !== this.last) return;
    if ((receipt.status === "accepted" && !receipt.waiting) || applied) this.note(receipt);
    this.kept = "";
    if (receipt.status === "accepted") {
      this.say(receipt.waiting ? `Waiting: ${receipt.waiting}. Takes effect with the first chunk after that …` : "Takes effect with the next chunk …");
    } else if (applied && receipt.superseded.includes("prompt")) this.say("Replaced by newer words before it took effect.");
    else if (applied) this.say(`In effect from ${this.live.strip.time(receipt.frame)} (frame ${receipt.frame}).`);
    else {
      this.kept = receipt.status === "withdrawn" ? "Taken back." : `Not taken: ${receipt.reason}.`;
      this.notes = "";
      this.say(this.kept);
    }
  }

  // words without meaning, and the end that was cut off
  note({ unknown = [], dropped = 0, note = "" }) {
    const list = unknown.slice(0, 8).map((word) => `“${word}”`).join(", ");
    this.notes = [
      unknown.length && `${list} ${unknown.length > 1 ? "mean" : "means"} nothing to this model; the model card lists its words.`,
      dropped && `The end was cut off: ${dropped} ${dropped > 1 ? "tokens" : "token"} more than the model reads.`,
      note,
    ].filter(Boolean).join(" ");
  }

  say(text) {
    const { words } = this.live.part;
    words.textContent = [text, this.notes].filter(Boolean).join(" ");
    words.dataset.kind = this.notes ? "unknown" : "";
    words.hidden = !words.textContent;
  }

  draw() {
    const { queue } = this.live.part;
    queue.hidden = !this.queue.length;
    queue.replaceChildren(...this.queue.map((item, index) => {
      const row = document.createElement("li");
      const words = document.createElement("span");
      words.textContent = item.words;
      const after = document.createElement("small");
      after.textContent = `after ${item.seconds} s`;
      const remove = document.createElement("button");
      remove.type = "button";
      remove.className = "sg-quiet";
      remove.textContent = "✕";
      remove.setAttribute("aria-label", `Remove “${item.words}” from the queue`);
      remove.addEventListener("click", () => { this.queue.splice(index, 1); this.draw(); });
      row.append(words, after, remove);
      return row;
    }));
  }
}
