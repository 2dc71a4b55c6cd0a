// What happens, in figures. Control to picture: from sending a change to showing the first frame made under it.
const ROWS = [
  ["shown", "Shown"], ["first", "First picture"], ["control", "Control to picture"], ["chunk", "Making a chunk"],
  ["dropped", "Dropped"], ["cache", "Cache"], ["buffer", "Buffered"], ["link", "Round trip"], ["recorded", "Recorded"],
  ["time", "Played"],
];

export class Status {
  constructor(live) {
    this.live = live;
    this.cells = {};
    for (const [name, label] of ROWS) {
      const title = document.createElement("dt");
      title.textContent = label;
      const value = document.createElement("dd");
      value.dataset.figure = name;
      value.textContent = "–";
      const pair = document.createElement("div");
      pair.append(title, value);
      live.part.status.append(pair);
      this.cells[name] = value;
    }
    this.sent = new Map();
    this.due = [];
    this.controls = [];
    live.on("receipt", (receipt) => this.receipt(receipt));
    live.on("shown", (frame) => this.shown(frame));
    live.on("stats", (stats) => { this.stats = stats; });
    live.on("place", () => { this.sent.clear(); this.due = []; });
    setInterval(() => this.draw(), 500);
  }

  asked(id) {
    this.sent.set(id, performance.now());
    if (this.sent.size > 100) this.sent.delete(this.sent.keys().next().value);
  }

  receipt(receipt) {
    const began = this.sent.get(receipt.id);
    if (began === undefined || receipt.status === "accepted") return;
    this.sent.delete(receipt.id);
    if (receipt.status === "applied" && !receipt.superseded.length) this.due.push({ ...receipt, began });
  }

  shown(frame) {
    this.due = this.due.filter((change) => {
      if (frame.epoch !== change.epoch || frame.frame < change.frame) return true;
      this.controls.push(performance.now() - change.began);
      if (this.controls.length > 200) this.controls.shift();
      return false;
    });
  }

  draw() {
    const { live, cells, stats } = this;
    const { player, hello } = live;
    if (!hello) return;
    const rate = live.state === "playing" ? player.shownRate() : 0;
    const slow = live.state === "playing" && player.rate < 0.98 * hello.fps;
    cells.shown.textContent = live.state === "playing" ? `${rate.toFixed(1)} fps of ${hello.fps}` : "–";
    live.transport.chip(slow ? `The engine makes ${player.rate.toFixed(1)} of ${hello.fps} frames per second: slow motion` : live.state === "opening" ? live.transport.opening : "");
    cells.first.textContent = live.firstMs ? `${Math.round(live.firstMs)} ms` : "–";
    if (this.controls.length) {
      const sorted = [...this.controls].sort((a, b) => a - b);
      cells.control.textContent = `${Math.round(this.controls.at(-1))} ms (median ${Math.round(sorted[sorted.length >> 1])})`;
    }
    cells.time.textContent = live.strip.time(Math.max(0, player.shown));
    if (!stats) return;
    cells.chunk.textContent = `${Math.round(stats.generation_ms)} ms for ${hello.chunk_frames} frames`;
    cells.dropped.textContent = `${stats.skipped + player.counts.late} frames`;
    cells.cache.textContent = `${stats.cache[0]} of ${stats.cache[1]} latent frames`;
    cells.buffer.textContent = `${stats.buffered} frames`;
    cells.link.textContent = `${Math.round(stats.round_trip_ms)} ms`;
    cells.recorded.textContent = `${live.strip.time(stats.recorded)}${stats.recording_full ? " (disk share full)" : ""}`;
  }
}
