// Prompts that play one after the other, each after so many seconds of video.
import { make } from "./element.js";
import { keep, recall } from "./kept.js";

const MOST = 20;

export class Queue {
  /** @param {import("./live.js").Live} live */
  constructor(live) {
    this.live = live;
    /** @type {{ items: { words: string, seconds: number }[], since: number, epoch: number }} */
    const was = recall("queue") || { items: [], since: 0, epoch: 0 };
    this.items = was.items;
    // the frame where the words before took effect
    this.since = was.since;
    this.epoch = was.epoch;
    keep("queue", null);
    window.addEventListener("pagehide", () => {
      if (this.items.length) keep("queue", { items: this.items, since: this.since, epoch: live.epoch });
    });
    live.on("place", (place) => {
      if (place.epoch !== this.epoch) this.since = place.frame;
      this.epoch = place.epoch;
    });
    live.on("receipt", (receipt) => {
      if (receipt.kind !== "prompt" || receipt.status !== "applied" || receipt.epoch !== live.epoch) return;
      if (!receipt.superseded.includes("prompt")) this.since = receipt.frame;
    });
    live.on("shown", (frame) => this.due(frame.frame));
    this.draw();
  }

  add() {
    const { live } = this;
    const { prompt, hold } = live.part;
    const words = prompt.value.trim();
    if (!words || live.prompts.tooLong(words)) return;
    if (this.items.length >= MOST) {
      live.prompts.say(`The queue is full: ${MOST} prompts wait. The text stays here.`, true);
      return;
    }
    this.items.push({ words, seconds: Math.min(600, Math.max(1, Number(hold.value) || 5)) });
    prompt.value = "";
    live.prompts.said = "";
    this.draw();
  }

  /**
   * The next prompt's turn, counted in frames of video since the last change of words.
   * @param {number} frame
   */
  due(frame) {
    const next = this.items[0], { fps } = this.live;
    if (!next) return;
    const left = next.seconds - (frame - this.since) / fps;
    if (left > 0) { this.count(left); return; }
    this.items.shift();
    this.since = frame;
    this.live.prompts.fill(next.words);
    this.live.prompts.apply(next.words);
    this.draw();
  }

  /** @param {number} left seconds until the first one's turn */
  count(left) {
    const cell = this.live.part.queue.querySelector("small");
    const text = `in ${Math.ceil(left)} s`;
    if (cell && cell.textContent !== text) cell.textContent = text;
  }

  draw() {
    const { queue } = this.live.part;
    queue.hidden = !this.items.length;
    queue.replaceChildren(...this.items.map((item, index) => {
      const after = make("small", { text: index ? `${item.seconds} s later` : `after ${item.seconds} s` });
      const click = () => { this.items.splice(index, 1); this.draw(); };
      const remove = make("button", { className: "sg-quiet", text: "✕", label: `Remove “${item.words}” from the queue`, click });
      return make("li", {}, make("span", { text: item.words }), after, remove);
    }));
  }
}
