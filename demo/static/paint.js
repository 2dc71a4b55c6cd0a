// Motion painted on the live picture: drags, paths with timing, boxes, pins; by pointer, or with a cursor by keys.
import { COLOURS } from "./held.js";
import { Pen } from "./pen.js";
import { shaped, unit } from "./shapes.js";

/** @typedef {import("./types.js").Point} Point */
/**
 * @typedef {object} Stroke
 * @property {number} id
 * @property {string} tool
 * @property {number} began
 * @property {[number, number, number][]} points that were not sent yet: milliseconds, x, y
 * @property {Point[]} line all of it
 * @property {number} frame the picture it began on
 * @property {number} epoch
 * @property {boolean} said whether the server knows of it
 * @property {number[] | null} grid of tracks that go along: width, height, spacing
 */

const BATCH_MS = 33;
const MOST_POINTS = 64, MOST_PATH_POINTS = 512, MOST_PATH_MS = 30000, MOST_PINS = 64;
// A tap is no drag: it begins when the hand has gone this far, in parts of the picture, or holds for so long.
const FAR = 0.012, LONG_MS = 300;
/** @type {Record<string, string>} */
const HINTS = {
  drag: "Take hold of something in the picture and drag it. Let go, and the stream carries on by itself.",
  path: "Draw a path: what lies at its start follows it with the timing you drew it in.",
  shape: "Tap a thing: it follows the shape from there.",
  pin: "Tap places that should hold still. Tap a pin to remove it.",
};

export class Paint {
  /** @param {import("./live.js").Live} live */
  constructor(live) {
    this.live = live;
    this.canvas = live.part.paint;
    this.pen = new Pen(this.canvas);
    this.tool = "drag";
    /** @type {Map<number | string, Stroke>} */
    this.strokes = new Map();
    /** @type {import("./types.js").Pin[]} */
    this.pins = [];
    /** @type {Point | null} */
    this.cursor = null;
    this.drawing = false;
    /** @type {number | string | null} */
    this.boxing = null;
    // a model without tracks
    this.off = false;
    live.part.tools.addEventListener("change", (event) => this.choose(/** @type {HTMLInputElement} */ (event.target).value));
    const { canvas } = this;
    canvas.addEventListener("pointerdown", (event) => this.down(event));
    canvas.addEventListener("pointermove", (event) => this.move(event));
    canvas.addEventListener("pointerup", (event) => this.up(event.pointerId, this.at(event)));
    canvas.addEventListener("pointercancel", (event) => this.up(event.pointerId, this.at(event)));
    canvas.addEventListener("lostpointercapture", (event) => this.up(event.pointerId, this.at(event)));
    canvas.addEventListener("keydown", (event) => this.key(event));
    canvas.addEventListener("blur", () => { if (this.cursor) this.up("keys", this.cursor); });
    live.on("place", (place) => {
      this.strokes.clear();
      this.pins = place.pins.map(([x, y, ...grid]) => ({ x, y, grid: grid.length ? grid : null }));
      this.changed();
      live.held.changed();
    });
    live.on("hello", (hello) => {
      this.off = !hello.tracks;
      live.part.motion.hidden = this.off;
    });
    for (const part of [live.part.shape, live.part.gridSize]) part.addEventListener("change", () => this.told());
    this.choose("drag");
    setInterval(() => this.flush(), BATCH_MS);
    for (const seen of ["focus", "blur"]) canvas.addEventListener(seen, () => this.changed());
    new ResizeObserver(() => this.changed()).observe(canvas);
  }

  /** @param {string} tool */
  choose(tool) {
    const { part } = this.live;
    this.tool = tool;
    for (const radio of part.tools.querySelectorAll("input")) radio.checked = radio.value === tool;
    part.screen.dataset.tool = tool;
    for (const row of part.motion.querySelectorAll("[data-for]")) {
      /** @type {HTMLElement} */ (row).hidden = !(/** @type {HTMLElement} */ (row).dataset.for || "").split(" ").includes(tool);
    }
    this.told();
  }

  // what the tool asks for now
  told() {
    const { part, boxes } = this.live;
    const shape = this.tool === "path" && part.shape.value !== "free";
    part.hint.textContent = this.tool === "box" ? boxes.hint() : HINTS[shape ? "shape" : this.tool];
    this.changed();
  }

  // a patch of tracks in place of one, as the fields say
  grid() {
    const { gridSize, gridSpacing } = this.live.part;
    const size = Math.min(100, Math.max(0, Number(gridSize.value) || 0)) / 100;
    return size ? [size, size, Math.min(50, Math.max(4, Number(gridSpacing.value) || 10)) / 100] : null;
  }

  // what is placed while the stream is paused begins when it goes on
  waiting() {
    if (this.live.state === "paused") this.live.notices.chip("waits", "It begins when the stream goes on: Space.", 4);
  }

  /** @param {PointerEvent} event */
  at(event) {
    const box = this.canvas.getBoundingClientRect();
    return { x: unit((event.clientX - box.left) / box.width), y: unit((event.clientY - box.top) / box.height) };
  }

  /** @param {PointerEvent} event */
  down(event) {
    if (event.button > 0) return;
    this.canvas.setPointerCapture(event.pointerId);
    this.begin(event.pointerId, this.at(event));
  }

  /**
   * @param {number | string} pointer
   * @param {Point} at
   */
  begin(pointer, at) {
    const { live } = this;
    if (this.off || !live.running) return;
    if (this.tool === "pin") { this.pin(at); return; }
    if (this.tool === "box") { this.boxing = pointer; live.boxes.begin(at); this.changed(); return; }
    if (this.strokes.size >= 4) return;
    // nothing moves while paused: what is drawn then is a path
    const tool = live.state === "paused" || live.lane.additions.awaits ? "path" : this.tool;
    this.strokes.set(pointer, {
      id: live.id(), tool, began: performance.now(), points: [[0, at.x, at.y]], line: [at],
      frame: Math.max(0, live.player.shown), epoch: live.epoch, said: false, grid: this.grid(),
    });
    this.changed();
  }

  /** @param {PointerEvent} event */
  move(event) {
    if (!this.strokes.has(event.pointerId) && this.boxing !== event.pointerId) return;
    const all = event.getCoalescedEvents?.() || [];
    for (const each of all.length ? all : [event]) this.add(event.pointerId, this.at(each));
  }

  /**
   * @param {number | string} pointer
   * @param {Point} at
   */
  add(pointer, at) {
    if (this.boxing === pointer) { this.live.boxes.add(at); return; }
    const stroke = this.strokes.get(pointer);
    if (!stroke) return;
    const last = stroke.line[stroke.line.length - 1];
    if (Math.hypot(at.x - last.x, at.y - last.y) < 0.002) return;
    stroke.line.push(at);
    stroke.points.push([performance.now() - stroke.began, at.x, at.y]);
    this.changed();
    if (Math.hypot(at.x - stroke.line[0].x, at.y - stroke.line[0].y) >= FAR) this.start(stroke);
  }

  /**
   * From here on it is a drag and no tap.
   * @param {Stroke} stroke
   */
  start(stroke) {
    if (stroke.said || stroke.tool !== "drag") return;
    stroke.said = true;
    this.say(stroke, "begin");
    this.live.status.asked(stroke.id);
  }

  /**
   * @param {number | string} pointer
   * @param {Point} at
   */
  up(pointer, at) {
    if (this.boxing === pointer) {
      this.boxing = null;
      this.live.boxes.add(at);
      this.live.boxes.up();
      return;
    }
    const stroke = this.strokes.get(pointer);
    if (!stroke) return;
    this.add(pointer, at);
    this.strokes.delete(pointer);
    this.changed();
    if (stroke.tool === "path") this.path(stroke);
    else if (stroke.said) { this.live.held.lines.set(stroke.id, stroke.line); this.say(stroke, "end"); }
    else this.live.notices.chip("tap", "That was a tap. To drag, press on something and pull.", 3);
  }

  // drags are told while they are drawn, at most 30 times a second
  flush() {
    const now = performance.now();
    for (const stroke of this.strokes.values()) {
      if (stroke.tool !== "drag") continue;
      if (now - stroke.began > LONG_MS) this.start(stroke);
      if (stroke.said && stroke.points.length) this.say(stroke, "move");
    }
  }

  /**
   * @param {Stroke} stroke
   * @param {string} phase
   */
  say(stroke, phase) {
    const points = thin(stroke.points, MOST_POINTS);
    stroke.points = [];
    const { id, epoch, frame } = stroke;
    const grid = phase === "begin" && stroke.grid ? { grid: stroke.grid } : {};
    this.live.send({ type: "stroke", id, epoch, frame, phase, points, ...grid });
  }

  /** @param {Stroke} stroke */
  path(stroke) {
    const { id, epoch, frame, line } = stroke;
    let points = thin(stroke.points, MOST_PATH_POINTS).filter((point) => point[0] <= MOST_PATH_MS);
    if (points.length < 2 || !line.some((p) => Math.hypot(p.x - line[0].x, p.y - line[0].y) >= FAR)) {
      const shape = this.tool === "path" ? this.live.part.shape.value : "free";
      if (shape === "free") {
        this.live.notices.chip("tap", "That was a tap. To draw a path, press and pull along it.", 3);
        return;
      }
      points = shaped(shape, line[0]);
    }
    const grid = stroke.grid ? { grid: stroke.grid } : {};
    const message = { type: "path", id, epoch, frame, points, ...grid };
    if (this.live.lane.additions.takes(message) || !this.live.send(message)) return;
    this.live.status.asked(id);
    this.waiting();
  }

  /** @param {Point} at */
  pin(at) {
    const near = this.pins.findIndex((pin) => Math.hypot(pin.x - at.x, pin.y - at.y) < 0.05);
    this.pinned(near >= 0 ? this.pins.filter((_, i) => i !== near) : [...this.pins, { ...at, grid: this.grid() }]);
  }

  /** @param {number} index */
  unpin(index) { this.pinned(this.pins.filter((_, i) => i !== index)); }

  /** @param {import("./types.js").Pin[]} pins all of them from now on */
  pinned(pins) {
    const { live } = this;
    if (pins.length > MOST_PINS) { live.notices.tell(`At most ${MOST_PINS} pins hold at a time.`, { seconds: 8 }); return; }
    const id = live.id();
    if (!live.send({ type: "pins", id, points: pins.map((pin) => [pin.x, pin.y, ...(pin.grid || [])]) })) return;
    this.pins = pins;
    live.held.changed();
    this.changed();
    live.status.asked(id);
    this.waiting();
  }

  clear() {
    const { live } = this;
    const id = live.id();
    if (!live.availability.able().stream || !live.send({ type: "clear", id })) return;
    live.status.asked(id);
    this.strokes.clear();
    this.pins = [];
    live.boxes.cancel();
    live.held.changed();
    this.changed();
  }

  /** @param {KeyboardEvent} event */
  key(event) {
    /** @type {Record<string, [number, number]>} */
    const steps = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
    if (event.key in steps) {
      const from = this.cursor || { x: 0.5, y: 0.5 }, size = event.shiftKey ? 0.1 : 0.025;
      const [dx, dy] = steps[event.key];
      if (this.tool === "box" && this.live.boxes.waits) {
        this.live.boxes.nudge(0.025 * dx, 0.025 * dy, event.shiftKey);
        event.preventDefault();
        event.stopPropagation();
        return;
      }
      this.cursor = { x: unit(from.x + size * dx), y: unit(from.y + size * dy) };
      this.changed();
      this.add("keys", this.cursor);
    } else if (event.key === "Enter") {
      this.cursor ||= { x: 0.5, y: 0.5 };
      if (this.tool === "box" && this.live.boxes.waits) this.live.boxes.send();
      else if (this.boxing === "keys") this.up("keys", this.cursor);
      else if (this.strokes.has("keys")) this.up("keys", this.cursor);
      else this.begin("keys", this.cursor);
    } else if (event.key === "Escape") {
      if (this.cursor) this.up("keys", this.cursor);
      if (this.tool === "box") this.live.boxes.cancel();
      this.cursor = null;
      this.changed();
    } else return;
    event.preventDefault();
    event.stopPropagation();
  }

  // draws with the next picture of the browser, and not while nothing changes
  changed() {
    if (this.drawing) return;
    this.drawing = true;
    requestAnimationFrame(() => { this.drawing = false; this.draw(); });
  }

  draw() {
    const { pen, live } = this;
    if (!pen.clear()) return;
    live.held.draw(pen);
    live.boxes.draw(pen);
    for (const stroke of this.strokes.values()) {
      const colour = COLOURS[stroke.tool], hand = stroke.line[stroke.line.length - 1];
      pen.line(stroke.line, colour);
      pen.patch(hand, stroke.grid, colour);
      pen.dot(hand, colour, 7);
    }
    if (this.cursor && document.activeElement === this.canvas) pen.dot(this.cursor, "#fff", 5);
  }
}

/**
 * At most `most` points: the first, the last, and evenly what lies between.
 * @template T
 * @param {T[]} points
 * @param {number} most
 */
function thin(points, most) {
  if (points.length <= most) return points;
  return Array.from({ length: most }, (_, i) => points[Math.round((i * (points.length - 1)) / (most - 1))]);
}
