// Shows frames at the viewer's own clock. The clock runs at the rate the server names, stops where no frames
// are announced yet, and starts again with a small cushion against jitter. What is shown is the newest frame
// that is due: a frame that comes late is shown at once, one that comes after a newer one never.
const CUSHION_MS = 40;
const LONGEST_TICK_MS = 250;
/** @type {Record<number, string>} */
const FORMATS = { 1: "image/jpeg", 2: "image/png" };

export class Player {
  /** @param {import("./live.js").Live} live */
  constructor(live) {
    this.live = live;
    this.canvas = live.part.video;
    this.context = /** @type {CanvasRenderingContext2D} */ (this.canvas.getContext("2d"));
    this.epoch = 0;
    this.head = 0;
    this.end = 0;
    this.shown = -1;
    /** @type {Map<number, import("./types.js").Decoded>} */
    this.waiting = new Map();
    this.holdUntil = 0;
    this.stepping = false;
    this.playing = false;
    this.seq = 0;
    this.rate = 16;
    this.counts = { shown: 0, late: 0, stalls: 0 };
    /** @type {number[]} */
    this.times = [];
    /** @type {number[]} */
    this.latencies = [];
    live.on("hello", (hello) => this.size(hello));
    live.on("place", (place) => this.place(place));
    live.on("chunk", (chunk) => this.chunk(chunk));
    live.on("frame", (frame) => this.frame(frame));
    live.on("state", (state) => this.turn(state.state === "playing"));
    live.on("online", (online) => { if (!online) this.turn(false); });
    this.last = performance.now();
    /** @param {number} now */
    const tick = (now) => { this.tick(now); requestAnimationFrame(tick); };
    requestAnimationFrame(tick);
  }

  /** @param {import("./types.js").Hello} hello */
  size(hello) {
    if (this.canvas.width !== hello.width || this.canvas.height !== hello.height) {
      this.canvas.width = hello.width;
      this.canvas.height = hello.height;
    }
    this.rate = hello.fps;
    this.seq = 0;
  }

  /** @param {boolean} playing */
  turn(playing) {
    // what is on screen when the pause comes stays there: a frame that was due but still under way waits
    if (this.playing && !playing) this.head = Math.min(this.head, Math.max(this.shown, 0));
    this.playing = playing;
  }

  /** @param {import("./types.js").Place} place */
  place(place) {
    this.epoch = place.epoch;
    this.head = this.end = place.frame;
    this.shown = place.frame - 1;
    for (const frame of this.waiting.values()) frame.bitmap.close();
    this.waiting.clear();
    this.holdUntil = 0;
    this.stepping = false;
    if (!place.picture) return;
    const image = new Image();
    image.onload = () => {
      if (this.epoch === place.epoch && this.shown < place.frame) this.draw(image);
    };
    image.src = place.picture;
  }

  /** @param {import("./types.js").Chunk} chunk */
  chunk(chunk) {
    if (chunk.epoch !== this.epoch) return;
    // the clock has run out of frames: it goes on after a moment, so that the next frames come in time
    if (this.head >= this.end) {
      this.holdUntil = performance.now() + (chunk.start ? CUSHION_MS : 0);
      if (this.playing && chunk.start > 1) this.counts.stalls += 1;
    }
    this.end = chunk.end;
    this.rate = chunk.rate;
  }

  /** @param {import("./types.js").Frame} frame */
  async frame(frame) {
    this.seq = frame.seq;
    this.acknowledge();
    if (frame.epoch !== this.epoch || !frame.picture) return;
    if (frame.frame <= this.shown) { this.counts.late += 1; return; }
    const blob = new Blob([frame.picture], { type: FORMATS[frame.encoding] });
    let bitmap;
    try { bitmap = await createImageBitmap(blob); } catch { return; }
    if (frame.epoch === this.epoch && frame.frame > this.shown) {
      this.waiting.set(frame.frame, { ...frame, picture: null, bitmap });
    } else bitmap.close();
  }

  /** @param {number} now */
  tick(now) {
    const elapsed = Math.min(now - this.last, LONGEST_TICK_MS);
    this.last = now;
    if (this.playing && now >= this.holdUntil) {
      this.head = Math.min(this.head + (elapsed / 1000) * this.rate, Math.max(this.end, this.head));
    } else if (this.stepping && this.waiting.size) {
      this.head = Math.max(this.head, Math.min(...this.waiting.keys()));
      this.stepping = false;
    }
    let newest = -1;
    for (const number of this.waiting.keys()) if (number <= this.head && number > newest) newest = number;
    const frame = this.waiting.get(newest);
    if (!frame) return;
    this.show(frame, now);
    for (const [number, passed] of this.waiting) {
      if (number > newest) continue;
      passed.bitmap.close();
      this.waiting.delete(number);
    }
  }

  /**
   * @param {import("./types.js").Decoded} frame
   * @param {number} now
   */
  show(frame, now) {
    this.draw(frame.bitmap);
    this.shown = frame.frame;
    this.counts.shown += 1;
    this.times.push(now);
    while (this.times.length && now - this.times[0] > 2000) this.times.shift();
    // server and browser share a clock on one machine only; the bench reads this there
    this.latencies.push(Date.now() / 1000 - frame.made);
    if (this.latencies.length > 4000) this.latencies.shift();
    this.acknowledge();
    this.live.emit("shown", frame);
  }

  /** @param {CanvasImageSource} image */
  draw(image) { this.context.drawImage(image, 0, 0, this.canvas.width, this.canvas.height); }

  step() {
    if (this.live.send({ type: "step", frame: this.shown + 1 })) this.stepping = true;
  }

  acknowledge() {
    if (!this.seq) return;
    const shown = Math.max(this.shown, 0);
    this.live.connection.send({ type: "ack", seq: this.seq, epoch: this.epoch, shown, head: Math.max(this.head, 0) });
  }

  // frames per second on screen over the last two seconds
  shownRate() {
    if (this.times.length < 2) return 0;
    return ((this.times.length - 1) * 1000) / (this.times[this.times.length - 1] - this.times[0]);
  }
}
