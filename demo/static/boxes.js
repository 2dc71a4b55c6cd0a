// A box around a thing, taken to a place and a size: draw it, move it along its way or pull its corner, send it.
import { COLOURS } from "./held.js";

/** @typedef {import("./types.js").Point} Point */
/** @typedef {{ x: number, y: number, w: number, h: number }} Area middle and sides */
/**
 * @typedef {object} Draft
 * @property {Area} from
 * @property {Area | null} to
 * @property {[number, number, number][]} way milliseconds, and where its middle was taken
 * @property {number} frame the picture it was drawn on
 * @property {number} epoch
 */
// Least side in parts of the picture; how near to the corner a hand takes hold of it.
const LEAST = 0.04, NEAR = 0.06;
const MOST_POINTS = 200;
const DRAW = "Draw a box around a thing. Keys: Enter begins and ends it.";
const TAKE = "Take the box where the thing shall go; pull its corner for the size. Then send it. Keys: arrows, with Shift for the size, Enter sends.";

export class Boxes {
  /** @param {import("./live.js").Live} live */
  constructor(live) {
    this.live = live;
    /** @type {Draft | null} */
    this.draft = null;
    this.mode = "";
    /** @type {Point} */
    this.anchor = { x: 0, y: 0 };
    this.began = 0;
    live.on("place", () => this.cancel());
    live.does({ boxSend: () => this.send(), boxCancel: () => this.cancel() });
  }

  hint() { return this.draft && this.mode !== "draw" ? TAKE : DRAW; }

  /** @param {Point} at */
  begin(at) {
    const { live, draft } = this;
    if (draft) {
      const area = draft.to || draft.from;
      const corner = { x: area.x + area.w / 2, y: area.y + area.h / 2 };
      this.anchor = { x: at.x - area.x, y: at.y - area.y };
      if (Math.hypot(at.x - corner.x, at.y - corner.y) < NEAR) this.mode = "size";
      else if (Math.abs(at.x - area.x) < area.w / 2 && Math.abs(at.y - area.y) < area.h / 2) {
        this.mode = "move";
        draft.way = [[0, draft.from.x, draft.from.y]];
        this.began = performance.now();
      }
      if (this.mode) return;
    }
    this.mode = "draw";
    this.anchor = at;
    this.draft = { from: { ...at, w: 0, h: 0 }, to: null, way: [], frame: Math.max(0, live.player.shown), epoch: live.epoch };
  }

  /** @param {Point} at */
  add(at) {
    const { draft, anchor } = this;
    if (!draft || !this.mode) return;
    if (this.mode === "draw") {
      draft.from = { x: (at.x + anchor.x) / 2, y: (at.y + anchor.y) / 2, w: Math.abs(at.x - anchor.x), h: Math.abs(at.y - anchor.y) };
    } else {
      const area = draft.to || draft.from;
      if (this.mode === "size") {
        draft.to = { ...area, w: clamp(2 * (at.x - area.x)), h: clamp(2 * (at.y - area.y)) };
      } else {
        draft.to = { ...area, x: at.x - anchor.x, y: at.y - anchor.y };
        draft.way.push([performance.now() - this.began, draft.to.x, draft.to.y]);
      }
    }
    this.live.paint.changed();
  }

  up() {
    const { live, draft } = this;
    if (this.mode === "draw" && draft && Math.min(draft.from.w, draft.from.h) < LEAST) {
      live.notices.chip("tap", "That box has no size. Press at one corner and pull to the other.", 3);
      this.draft = null;
    }
    this.mode = "";
    live.paint.told();
  }

  /**
   * By keyboard: moves the box, or changes its size.
   * @param {number} dx
   * @param {number} dy
   * @param {boolean} size
   */
  nudge(dx, dy, size) {
    const { draft } = this;
    if (!draft) return;
    const area = draft.to || draft.from;
    draft.to = size ? { ...area, w: clamp(area.w + 2 * dx), h: clamp(area.h - 2 * dy) } : { ...area, x: area.x + dx, y: area.y + dy };
    draft.way = [];
    this.live.paint.changed();
  }

  // whether there is a box that is not sent yet
  get waits() { return Boolean(this.draft) && !this.mode; }

  send() {
    const { live, draft } = this;
    if (!draft || this.mode || !live.running) return;
    if (!draft.to) { live.notices.chip("tap", "Move the box or pull its corner first.", 3); return; }
    const { part } = live;
    const seconds = Math.min(30, Math.max(0.25, Number(part.boxSeconds.value) || 2));
    const id = live.id();
    const message = { type: "box", id, epoch: draft.epoch, frame: draft.frame, name: part.boxName.value.trim().slice(0, 60), points: knots(draft, draft.to, seconds) };
    if (!live.lane.additions.takes(message)) {
      if (!live.send(message)) return;
      live.status.asked(id);
      live.paint.waiting();
    }
    part.boxName.value = "";
    this.cancel();
  }

  cancel() {
    this.draft = null;
    this.mode = "";
    this.live.paint?.told();
  }

  /** @param {import("./pen.js").Pen} pen */
  draw(pen) {
    const { draft } = this;
    if (!draft) return;
    const colour = COLOURS.box;
    pen.frame(edges(draft.from), colour, Boolean(draft.to));
    if (!draft.to) return;
    const way = draft.way.length > 1 ? draft.way.map(([, x, y]) => ({ x, y })) : [draft.from, draft.to];
    pen.line(way, colour, 0.6);
    pen.frame(edges(draft.to), colour);
    pen.dot({ x: draft.to.x + draft.to.w / 2, y: draft.to.y + draft.to.h / 2 }, colour, 5);
  }
}

/**
 * @param {Draft} draft
 * @param {Area} to
 * @param {number} seconds
 */
function knots(draft, to, seconds) {
  /** @type {[number, number, number][]} */
  let way = draft.way.length > 1 ? draft.way : [[0, draft.from.x, draft.from.y], [1, to.x, to.y]];
  const step = Math.ceil(way.length / MOST_POINTS);
  way = way.filter((_, i) => i % step === 0 || i === way.length - 1);
  const whole = way[way.length - 1][0] || 1;
  return way.map(([time, x, y]) => {
    const share = time / whole;
    const w = draft.from.w + share * (to.w - draft.from.w), h = draft.from.h + share * (to.h - draft.from.h);
    return [1000 * seconds * share, ...edges({ x, y, w, h })];
  });
}

/** @param {Area} area */
function edges({ x, y, w, h }) { return [x - w / 2, y - h / 2, x + w / 2, y + h / 2]; }

/** @param {number} side */
function clamp(side) { return Math.min(1.5, Math.max(LEAST, side)); }
