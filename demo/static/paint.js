// Motion painted on the live picture: drags, paths with timing, pins; by pointer, or with a cursor by keys.
const BATCH_MS = 33;
const MOST_POINTS = 64;
const HINTS = {
  drag: "Take hold of something in the picture and drag it. Let go, and the stream carries on by itself.",
  path: "Draw a path: what lies at its start follows it with the timing you drew it in.",
  pin: "Tap places that should hold still. Tap a pin to remove it.",
};

export class Paint {
  constructor(live) {
    this.live = live;
    this.canvas = live.part.paint;
    this.tool = "drag";
    this.strokes = new Map();
    this.pins = [];
    this.trails = [];
    this.cursor = null;
    for (const button of live.root.querySelectorAll("button[data-tool]")) {
      button.addEventListener("click", () => this.choose(button.dataset.tool));
    }
    this.canvas.addEventListener("pointerdown", (event) => this.down(event));
    this.canvas.addEventListener("pointermove", (event) => this.move(event));
    for (const end of ["pointerup", "pointercancel", "lostpointercapture"]) {
      this.canvas.addEventListener(end, (event) => this.up(event.pointerId, this.at(event)));
    }
    this.canvas.addEventListener("keydown", (event) => this.key(event));
    this.canvas.addEventListener("blur", () => { if (this.strokes.has("keys")) this.up("keys", this.cursor); });
    live.on("place", () => this.forget());
    live.on("hello", (hello) => {
      this.off = !hello.tracks;
      live.part.motion.hidden = this.off;
    });
    this.choose("drag");
    setInterval(() => this.flush(), BATCH_MS);
    const draw = (now) => { this.draw(now); requestAnimationFrame(draw); };
    requestAnimationFrame(draw);
  }

  choose(tool) {
    this.tool = tool;
    this.live.part.screen.dataset.tool = tool;
    this.live.part.hint.textContent = HINTS[tool];
    for (const button of this.live.root.querySelectorAll("button[data-tool]")) {
      button.setAttribute("aria-checked", String(button.dataset.tool === tool));
    }
  }

  at(event) {
    const box = this.canvas.getBoundingClientRect();
    const unit = (value) => Math.min(1, Math.max(0, value));
    return { x: unit((event.clientX - box.left) / box.width), y: unit((event.clientY - box.top) / box.height) };
  }

  down(event) {
    if (event.button > 0) return;
    this.canvas.setPointerCapture(event.pointerId);
    this.begin(event.pointerId, this.at(event));
  }

  begin(pointer, at) {
    const { live } = this;
    if (this.off) return;
    if (this.tool === "pin") { this.pin(at); return; }
    if (!["playing", "paused"].includes(live.state) || this.strokes.size >= 4) return;
    const stroke = { id: live.id(), tool: this.tool, began: performance.now(), points: [], line: [at], frame: Math.max(0, live.player.shown), epoch: live.epoch };
    stroke.points.push([0, at.x, at.y]);
    this.strokes.set(pointer, stroke);
    if (stroke.tool === "drag") {
      this.say(stroke, "begin");
      live.status.asked(stroke.id);
    }
  }

  move(event) {
    if (!this.strokes.has(event.pointerId)) return;
    const all = event.getCoalescedEvents?.() || [];
    for (const each of all.length ? all : [event]) this.add(event.pointerId, this.at(each));
  }

  add(pointer, at) {
    const stroke = this.strokes.get(pointer);
    const last = stroke.line.at(-1);
    if (Math.hypot(at.x - last.x, at.y - last.y) < 0.002) return;
    stroke.line.push(at);
    stroke.points.push([performance.now() - stroke.began, at.x, at.y]);
  }

  up(pointer, at) {
    const stroke = this.strokes.get(pointer);
    if (!stroke) return;
    if (stroke.line.length) this.add(pointer, at);
    this.strokes.delete(pointer);
    if (stroke.tool === "drag") this.say(stroke, "end");
    else this.path(stroke);
    this.trails.push({ line: stroke.line, gone: performance.now() + 1200 });
  }

  // drags are told while they are drawn, at most 30 times a second
  flush() {
    for (const stroke of this.strokes.values()) {
      if (stroke.tool === "drag" && stroke.points.length) this.say(stroke, "move");
    }
  }

  say(stroke, phase) {
    const points = thin(stroke.points, MOST_POINTS);
    stroke.points = [];
    if (phase === "move" && !points.length) return;
    const { id, epoch, frame } = stroke;
    this.live.send({ type: "stroke", id, epoch, frame, phase, points });
  }

  path(stroke) {
    const { id, epoch, frame } = stroke;
    const points = thin(stroke.points, 512).filter((point) => point[0] <= 30000);
    if (points.length < 2) return;
    this.live.send({ type: "path", id, epoch, frame, points });
    this.live.status.asked(id);
  }

  pin(at) {
    const near = this.pins.findIndex((pin) => Math.hypot(pin.x - at.x, pin.y - at.y) < 0.05);
    if (near >= 0) this.pins.splice(near, 1);
    else if (this.pins.length < 64) this.pins.push(at);
    this.live.send({ type: "pins", points: this.pins.map((pin) => [pin.x, pin.y]) });
  }

  clear() {
    this.forget();
    this.live.send({ type: "clear" });
  }

  forget() {
    this.strokes.clear();
    this.pins = [];
    this.trails = [];
  }

  key(event) {
    const steps = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
    if (event.key in steps) {
      this.cursor ||= { x: 0.5, y: 0.5 };
      const size = event.shiftKey ? 0.1 : 0.025;
      const unit = (value) => Math.min(1, Math.max(0, value));
      const [dx, dy] = steps[event.key];
      this.cursor = { x: unit(this.cursor.x + size * dx), y: unit(this.cursor.y + size * dy) };
      if (this.strokes.has("keys")) this.add("keys", this.cursor);
    } else if (event.key === "Enter") {
      this.cursor ||= { x: 0.5, y: 0.5 };
      if (this.strokes.has("keys")) this.up("keys", this.cursor);
      else this.begin("keys", this.cursor);
    } else if (event.key === "Escape") {
      if (this.strokes.has("keys")) this.up("keys", this.cursor);
      this.cursor = null;
    } else return;
    event.preventDefault();
    event.stopPropagation();
  }

  draw(now) {
    const { canvas } = this;
    const scale = window.devicePixelRatio || 1;
    const width = Math.round(canvas.clientWidth * scale), height = Math.round(canvas.clientHeight * scale);
    if (!width) return;
    if (canvas.width !== width || canvas.height !== height) { canvas.width = width; canvas.height = height; }
    const pen = canvas.getContext("2d");
    pen.clearRect(0, 0, width, height);
    pen.lineCap = pen.lineJoin = "round";
    const line = (points, colour) => {
      // a dark edge keeps the line visible on any picture
      for (const [style, thick] of [["rgba(0,0,0,.55)", 6], [colour, 3]]) {
        pen.strokeStyle = style;
        pen.lineWidth = thick * scale;
        pen.beginPath();
        points.forEach((point, i) => pen[i ? "lineTo" : "moveTo"](point.x * width, point.y * height));
        pen.stroke();
      }
    };
    const dot = (point, colour, size) => {
      pen.beginPath();
      pen.arc(point.x * width, point.y * height, size * scale, 0, 7);
      pen.fillStyle = colour;
      pen.fill();
      pen.strokeStyle = "rgba(0,0,0,.6)";
      pen.lineWidth = 2 * scale;
      pen.stroke();
    };
    this.trails = this.trails.filter((trail) => trail.gone > now);
    for (const trail of this.trails) {
      pen.globalAlpha = (trail.gone - now) / 1200;
      line(trail.line, "#fff");
    }
    pen.globalAlpha = 1;
    for (const stroke of this.strokes.values()) {
      const colour = stroke.tool === "drag" ? "#34d399" : "#60a5fa";
      line(stroke.line, colour);
      dot(stroke.line.at(-1), colour, 7);
    }
    for (const pin of this.pins) dot(pin, "#f87171", 6);
    if (this.cursor && document.activeElement === canvas) dot(this.cursor, "#fff", 5);
  }
}

// at most `most` points: the first, the last, and evenly what lies between
function thin(points, most) {
  if (points.length <= most) return points;
  return Array.from({ length: most }, (_, i) => points[Math.round((i * (points.length - 1)) / (most - 1))]);
}
