// What happens, in figures. Control to picture: from sending a change to showing the first frame made under it,
// without the time that the stream was paused.
import { make } from "./element.js";

/** @type {[string, string][]} */
const ROWS = [
  ["shown", "Shown"], ["first", "First picture"], ["control", "Control to picture"], ["chunk", "Making a chunk"],
  ["dropped", "Dropped"], ["cache", "Cache"], ["buffer", "Buffered"], ["link", "Round trip"], ["recorded", "Recorded"],
  ["time", "Played"],
];
// Slow motion is said when it has lasted this long, and no more when it has been over for as long.
const SLOW_MS = 3000;

export class Status {
  /** @param {import("./live.js").Live} live */
  constructor(live) {
    this.live = live;
    /** @type {Record<string, HTMLElement>} */
    this.cells = {};
    for (const [name, label] of ROWS) {
      this.cells[name] = make("dd", { text: "–", data: { figure: name } });
      live.part.status.append(make("div", {}, make("dt", { text: label }), this.cells[name]));
    }
    /** @type {Map<number, number>} */
    this.sent = new Map();
    /** @type {{ epoch: number, frame: number, began: number }[]} */
    this.due = [];
    /** @type {number[]} */
    this.controls = [];
    /** @type {import("./types.js").Stats | null} */
    this.stats = null;
    this.paused = 0;
    this.pausedSince = 0;
    this.slow = false;
    this.turnedSlow = 0;
    live.on("receipt", (receipt) => this.receipt(receipt));
    live.on("shown", (frame) => this.shown(frame));
    live.on("stats", (stats) => { this.stats = stats; });
    live.on("place", () => { this.sent.clear(); this.due = []; });
    live.on("turned", (state) => this.turned(state));
    setInterval(() => this.draw(), 500);
  }

  // time that runs while the stream does
  clock() {
    const now = performance.now();
    return now - this.paused - (this.pausedSince ? now - this.pausedSince : 0);
  }

  /** @param {string} state */
  turned(state) {
    if (state === "playing" && this.pausedSince) {
      this.paused += performance.now() - this.pausedSince;
      this.pausedSince = 0;
    } else if (state !== "playing" && !this.pausedSince) this.pausedSince = performance.now();
  }

  /** @param {number} id */
  asked(id) {
    this.sent.set(id, this.clock());
    if (this.sent.size > 100) this.sent.delete(/** @type {number} */ (this.sent.keys().next().value));
  }

  /** @param {import("./types.js").Receipt} receipt */
  receipt(receipt) {
    const began = this.sent.get(receipt.id);
    if (began === undefined || receipt.status === "accepted") return;
    this.sent.delete(receipt.id);
    const { epoch, frame } = receipt;
    if (receipt.status === "applied" && !receipt.superseded.length) this.due.push({ epoch, frame, began });
  }

  /** @param {import("./types.js").Frame} frame */
  shown(frame) {
    this.due = this.due.filter((change) => {
      if (frame.epoch !== change.epoch || frame.frame < change.frame) return true;
      const took = this.clock() - change.began;
      this.controls.push(took);
      this.live.part.appeared.textContent = `appeared after ${(took / 1000).toFixed(1).replace(/^0/, "")} s`;
      if (this.controls.length > 200) this.controls.shift();
      return false;
    });
  }

  // whether it plays in slow motion; a moment of it is not told
  slowMotion() {
    const { live } = this;
    const { fps } = live, now = performance.now();
    const is = live.state === "playing" && live.player.rate < (this.slow ? 0.98 : 0.95) * fps;
    if (is === this.slow) this.turnedSlow = now;
    else if (now - this.turnedSlow > SLOW_MS || live.state !== "playing") { this.slow = is; this.turnedSlow = now; }
    return this.slow;
  }

  draw() {
    const { live, cells, stats } = this;
    const { player, hello } = live;
    if (!hello) return;
    const playing = live.state === "playing";
    cells.shown.textContent = playing ? `${player.shownRate().toFixed(1)} fps of ${hello.fps}` : "–";
    const slow = this.slowMotion() ? `Slow motion: the engine makes ${player.rate.toFixed(0)} of ${hello.fps} frames per second` : "";
    live.notices.chip("slow", slow);
    cells.first.textContent = live.firstMs ? `${Math.round(live.firstMs)} ms` : "–";
    if (this.controls.length) {
      const sorted = [...this.controls].sort((a, b) => a - b), last = this.controls[this.controls.length - 1];
      cells.control.textContent = `${Math.round(last)} ms (median ${Math.round(sorted[sorted.length >> 1])})`;
    }
    cells.time.textContent = live.time(Math.max(0, player.shown));
    if (!stats) return;
    cells.chunk.textContent = `${Math.round(stats.generation_ms)} ms for ${hello.chunk_frames} frames`;
    cells.dropped.textContent = `${stats.skipped + player.counts.late} frames`;
    cells.cache.textContent = `${stats.cache[0]} of ${stats.cache[1]} latent frames`;
    cells.buffer.textContent = `${stats.buffered} frames`;
    cells.link.textContent = `${Math.round(stats.round_trip_ms)} ms`;
    cells.recorded.textContent = `${live.time(stats.recorded)}${stats.recording_full ? " (disk share full)" : ""}`;
  }
}
