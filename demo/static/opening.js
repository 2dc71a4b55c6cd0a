// Before a start: a recorded stream plays in the picture's place, with the drag drawn over it.
import { Pen } from "./pen.js";
import { COLOURS, between } from "./held.js";

/**
 * @typedef {object} Loop what `python -m demo.loop` recorded
 * @property {number} fps
 * @property {number} frames
 * @property {number} columns of frames in the picture
 * @property {number} width
 * @property {number} height
 * @property {[number, number, number][]} line of the drag: frame, x, y
 * @property {[number, string][]} words from which frame on they hold
 * @property {string} model
 */
// How long the line stays after the hand has let go.
const STAYS_FRAMES = 10;

export class Opening {
  /** @param {import("./live.js").Live} live */
  constructor(live) {
    this.live = live;
    /** @type {Loop | null} */
    this.loop = null;
    this.sheet = new Image();
    this.began = performance.now();
    this.held = matchMedia("(prefers-reduced-motion: reduce)").matches ? this.began : 0;
    this.pen = new Pen(live.part.loopPaint);
    this.frame = -1;
    live.part.loopHold.addEventListener("click", () => this.hold(!this.held));
    live.on("hello", () => this.load());
  }

  async load() {
    const { part, base } = this.live;
    if (this.loop) return;
    try {
      const answer = await fetch(new URL("live/static/loop.json", base));
      if (!answer.ok) return;
      this.loop = await answer.json();
      this.sheet.src = new URL("live/static/loop.webp", base).href;
      await this.sheet.decode();
    } catch {
      // without it the cover is as plain as it was
      this.loop = null;
      return;
    }
    part.loop.width = this.loop?.width || 1;
    part.loop.height = this.loop?.height || 1;
    this.began = performance.now();
    if (this.held) this.held = this.began;
    part.opening.hidden = false;
    this.hold(Boolean(this.held));
    this.tick();
  }

  /** @param {boolean} held */
  hold(held) {
    const now = performance.now();
    if (this.held && !held) this.began += now - this.held;
    this.held = held ? this.held || now : 0;
    this.live.part.loopHold.textContent = held ? "Play the recording" : "Hold the recording";
  }

  // runs until a stream has begun
  tick() {
    const { live, loop } = this;
    if (!loop || live.player.shown >= 0) { live.part.opening.hidden = true; return; }
    const seconds = ((this.held || performance.now()) - this.began) / 1000;
    const frame = Math.floor(seconds * loop.fps) % loop.frames;
    if (frame !== this.frame && !live.part.cover.hidden) { this.frame = frame; this.draw(loop, frame); }
    requestAnimationFrame(() => this.tick());
  }

  /**
   * @param {Loop} loop
   * @param {number} frame
   */
  draw(loop, frame) {
    const { pen } = this;
    const { part } = this.live;
    const { width, height, columns, line } = loop;
    const [x, y] = [(frame % columns) * width, Math.floor(frame / columns) * height];
    part.loop.getContext("2d")?.drawImage(this.sheet, x, y, width, height, 0, 0, width, height);
    const said = loop.words.findLast(([from]) => from <= frame)?.[1] || "";
    if (part.loopWords.textContent !== `“${said}”`) part.loopWords.textContent = `“${said}”`;
    if (!pen.clear()) return;
    const first = line[0][0], last = line[line.length - 1][0];
    if (frame < first || frame > last + STAYS_FRAMES) return;
    const drawn = line.filter(([at]) => at <= frame).map(([, px, py]) => ({ x: px, y: py }));
    const [px, py] = between(line, frame);
    pen.line([...drawn, { x: px, y: py }], COLOURS.drag);
    if (frame <= last) pen.dot({ x: px, y: py }, COLOURS.drag, 8);
  }
}
