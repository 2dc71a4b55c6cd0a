// Words: applied at the next chunk, or queued and applied one after the other.
export class Prompts {
  constructor(live) {
    this.live = live;
    this.queue = [];
    this.since = 0;
    const { part, options } = live;
    part.prompt.value = options.examples[0];
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
    live.on("place", (place) => { part.prompt.value = place.prompt; this.since = place.frame; });
    live.on("receipt", (receipt) => this.receipt(receipt));
    live.on("shown", (frame) => this.due(frame.frame));
  }

  apply(words) {
    const { live } = this;
    words = words.trim();
    if (!words) return;
    if (!["playing", "paused"].includes(live.state)) { live.transport.start(); return; }
    const id = live.id();
    const { policy, sink } = live.part;
    const sent = live.send({
      type: "event", id, epoch: live.epoch, prompt: words, policy: policy.value, sink: sink.value,
    });
    if (sent) live.status.asked(id);
    this.say("Takes effect with the next chunk …");
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

  receipt(receipt) {
    if (receipt.kind !== "prompt") return;
    if (receipt.status === "accepted") {
      const { words } = this.live.part;
      if (receipt.unknown?.length) {
        const list = receipt.unknown.slice(0, 8).map((word) => `“${word}”`).join(", ");
        words.dataset.kind = "unknown";
        this.unknown = `${list} ${receipt.unknown.length > 1 ? "mean" : "means"} nothing to this model; the model card lists its words.`;
        this.say("");
      } else { this.unknown = ""; words.dataset.kind = ""; }
    } else if (receipt.status === "applied") {
      this.since = receipt.frame;
      this.say(`In effect from ${this.live.strip.time(receipt.frame)} (frame ${receipt.frame}).`);
    } else this.say(`Not taken: ${receipt.reason}.`);
  }

  say(text) {
    const { words } = this.live.part;
    words.textContent = [text, this.unknown].filter(Boolean).join(" ");
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
