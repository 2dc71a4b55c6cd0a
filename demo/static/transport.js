// Start, pause, step, restart. Every start that is asked for before the page is ready happens when it is.
const LARGEST_SEED = 2147483647;

export class Transport {
  /** @param {import("./live.js").Live} live */
  constructor(live) {
    this.live = live;
    this.startedAt = 0;
    this.before = 0;
    // a start that is waited for: the page is not ready, or it is not this viewer's turn
    this.wanted = false;
    live.does({
      start: () => this.start(), play: () => this.play(), step: () => this.step(), restart: () => this.restart(),
      dice: () => this.dice(), clear: () => live.paint.clear(), queue: () => live.queue.add(),
      recache: () => live.prompts.past("recache"), scene: () => live.prompts.past("clear"),
    });
    live.on("hello", (hello) => {
      live.part.model.textContent = `${hello.model} · ${hello.width}×${hello.height} at ${hello.fps} fps · ${hello.device}`;
    });
    live.on("place", (place) => { live.part.seed.value = String(place.seed); });
    live.on("turned", (state) => {
      live.part.play.textContent = state === "playing" ? "Pause" : "Go on";
      if (state === "ready" && this.wanted) { this.wanted = false; this.restart(); }
    });
    live.on("shown", (frame) => { if (this.startedAt && frame.epoch !== this.before) this.firstPicture(); });
  }

  start() {
    const { live } = this;
    if (live.state === "failed") { live.notices.tell(""); live.send({ type: "resume" }); return; }
    if (live.state === "lost") { live.connection.renew(); return; }
    if (!live.online || ["loading", "opening", "queue"].includes(live.state)) {
      this.wanted = live.state !== "opening";
      if (this.wanted && live.state === "loading") live.cover.show("loading", "Starts as soon as the page is ready …", "▶ Start");
      return;
    }
    this.restart();
  }

  restart() {
    const { live } = this;
    if (live.timelines.start()) return;
    const { part } = live;
    const prompt = part.prompt.value.trim() || live.options.examples[0];
    if (live.prompts.tooLong(prompt)) return;
    const seed = Math.min(LARGEST_SEED, Math.max(0, Math.round(Number(part.seed.value) || 0)));
    part.seed.value = String(seed);
    live.strip.cancel();
    const message = { type: "start", prompt, seed, settings: live.settings.values(), picture: Boolean(live.picture.url) };
    if (!live.send(message)) return;
    this.startedAt = performance.now();
    this.before = live.epoch;
    live.prompts.settled(prompt);
  }

  firstPicture() {
    this.live.firstMs = performance.now() - this.startedAt;
    this.startedAt = 0;
  }

  play() { this.live.send({ type: this.live.state === "playing" ? "pause" : "resume" }); }

  step() { if (this.live.state === "paused") this.live.player.step(); else this.play(); }

  dice() { this.live.part.seed.value = String(Math.floor(Math.random() * 10000)); this.restart(); }
}
