// What is in force on the picture: drawn for as long as it is, numbered, and let go of one by one.
import { make } from "./element.js";

/** @typedef {import("./types.js").HeldRow} HeldRow */
/** @typedef {import("./types.js").Point} Point */
/** @type {Record<string, string>} */
export const COLOURS = { drag: "#34d399", path: "#60a5fa", box: "#fbbf24", pin: "#f87171", pins: "#f87171" };

export class Held {
  /** @param {import("./live.js").Live} live */
  constructor(live) {
    this.live = live;
    /** @type {HeldRow[]} */
    this.rows = [];
    // lines of drags, which the server does not say again, by the number of their message
    /** @type {Map<number, Point[]>} */
    this.lines = new Map();
    this.listed = "";
    live.on("place", (place) => { this.rows = place.held; this.lines.clear(); this.changed(); });
    live.on("held", (message) => { this.rows = message.held; this.changed(); });
    live.on("shown", () => this.changed());
    live.on("turned", (state) => { if (state !== "paused") live.notices.chip("waits", ""); this.changed(); });
    live.part.held.addEventListener("click", (event) => this.clicked(event));
    this.changed();
  }

  // those that are asked for, or in force in the picture that is shown
  visible() {
    const now = this.live.player.shown;
    return this.rows.filter((row) => (row.start === null || row.start <= now || this.live.state === "paused") && (row.end === null || row.end > now));
  }

  changed() {
    this.list();
    if (this.visible().length || this.live.paint?.pins.length) this.live.paint?.changed();
  }

  list() {
    const { part, paint } = this.live;
    const rows = this.visible(), pins = paint?.pins || [];
    const told = JSON.stringify([rows.map((row) => [row.number, row.label, row.start === null]), pins.length]);
    if (told === this.listed) return;
    // a row that goes leaves the focus to the picture
    const focused = part.held.contains(document.activeElement);
    if (this.listed) this.live.paint?.changed();
    this.listed = told;
    const items = rows.map((row) => item(`${row.number}`, `${row.kind}: ${row.label}${row.start === null ? " (waits)" : ""}`, "number", row.number, row.kind));
    items.push(...pins.map((_, i) => item(`p${i + 1}`, "pin", "pin", i, "pins")));
    if (!items.length) items.push(make("li", { text: "Nothing holds or leads anything." }));
    part.held.replaceChildren(...items);
    if (focused) this.live.keys.back();
  }

  /** @param {Event} event */
  clicked(event) {
    const { live } = this;
    const button = /** @type {HTMLElement} */ (event.target).closest("button");
    if (!button) return;
    if (button.dataset.pin) { live.paint.unpin(Number(button.dataset.pin)); return; }
    const id = live.id();
    if (live.send({ type: "remove", id, number: Number(button.dataset.number) })) live.status.asked(id);
  }

  /** @param {import("./pen.js").Pen} pen */
  draw(pen) {
    const now = this.live.player.shown;
    for (const row of this.visible()) {
      if (row.kind === "camera") continue;
      const colour = COLOURS[row.kind], at = row.start === null ? 0 : now - row.start;
      if (row.kind === "box") this.box(pen, row, at, colour);
      else if (row.kind === "pins") this.pins(pen, row);
      else this.line(pen, row, at, colour);
    }
    this.live.paint.pins.forEach((pin, i) => {
      pen.patch(pin, pin.grid, COLOURS.pin);
      pen.dot(pin, COLOURS.pin, 6);
      pen.badge(`p${i + 1}`, { x: pin.x, y: pin.y - 0.05 }, COLOURS.pin);
    });
  }

  /**
   * @param {import("./pen.js").Pen} pen
   * @param {HeldRow} row
   * @param {number} at frames since its beginning
   * @param {string} colour
   */
  line(pen, row, at, colour) {
    const drawn = this.lines.get(row.id) || row.knots.map(([, x, y]) => ({ x, y }));
    if (!drawn.length) return;
    pen.line(drawn, colour, row.start === null ? 0.55 : 0.9);
    if (row.knots.length) {
      const [x, y] = between(row.knots, at);
      pen.patch({ x, y }, row.grid, colour);
      pen.dot({ x, y }, colour, 7);
    }
    pen.badge(String(row.number), drawn[0], colour);
  }

  /**
   * @param {import("./pen.js").Pen} pen
   * @param {HeldRow} row
   */
  pins(pen, { knots, number }) {
    for (const [, x, y] of knots) pen.dot({ x, y }, COLOURS.pin, 6);
    pen.badge(String(number), { x: knots[0][1], y: knots[0][2] - 0.05 }, COLOURS.pin);
  }

  /**
   * @param {import("./pen.js").Pen} pen
   * @param {HeldRow} row
   * @param {number} at
   * @param {string} colour
   */
  box(pen, row, at, colour) {
    const first = row.knots[0].slice(1), last = row.knots[row.knots.length - 1].slice(1);
    pen.line(row.knots.map(([, l, t, r, b]) => ({ x: (l + r) / 2, y: (t + b) / 2 })), colour, 0.6);
    pen.frame(last, colour, true);
    const here = between(row.knots, at);
    pen.frame(here, colour);
    pen.badge(`${row.number}${row.name ? ` ${row.name}` : ""}`, { x: first[0], y: first[1] }, colour);
  }
}

/**
 * The values between knots of (frame, values ...) at a frame.
 * @param {number[][]} knots
 * @param {number} at
 */
export function between(knots, at) {
  for (let i = 1; i < knots.length; i += 1) {
    const [t0, ...before] = knots[i - 1], [t1, ...after] = knots[i];
    if (at > t1) continue;
    const share = Math.min(1, Math.max(0, (at - t0) / Math.max(1e-6, t1 - t0)));
    return before.map((value, k) => value + share * (after[k] - value));
  }
  return knots[knots.length - 1].slice(1);
}

/**
 * @param {string} badge
 * @param {string} text
 * @param {string} key
 * @param {number} value
 * @param {string} kind
 */
function item(badge, text, key, value, kind) {
  const data = { [key]: String(value), needs: "stream" };
  const button = make("button", { className: "sg-quiet", text: "✕", label: `Let go of ${kind} ${badge}`, data });
  return make("li", { data: { kind } }, make("b", { text: badge }), make("span", { text, title: text }), button);
}
