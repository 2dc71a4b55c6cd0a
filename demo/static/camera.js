// Camera moves while a button or a key is held. Rates are per second of video, within what the model was shown.
import { make } from "./element.js";

const PAN = 0.2, ZOOM = 1.12, TURN = 14;
/** @type {Record<string, { pan?: [number, number], zoom?: number, rotate?: number }>} */
const MOVES = {
  left: { pan: [-PAN, 0] }, right: { pan: [PAN, 0] }, up: { pan: [0, -PAN] }, down: { pan: [0, PAN] },
  in: { zoom: ZOOM }, out: { zoom: 1 / ZOOM }, ccw: { rotate: -TURN }, cw: { rotate: TURN },
};
// what their buttons show, their key, and what they are called
/** @type {[string, string, string, string][]} */
const BUTTONS = [
  ["left", "←", "A", "Pan left"], ["right", "→", "F", "Pan right"], ["up", "↑", "W", "Pan up"], ["down", "↓", "S", "Pan down"],
  ["in", "+", "+", "Zoom in"], ["out", "−", "-", "Zoom out"], ["ccw", "↺", "Q", "Turn left"], ["cw", "↻", "E", "Turn right"],
];
// moves that end by themselves
const PRESET_SECONDS = 4;
/** @type {typeof MOVES} */
const PRESETS = { in: { zoom: 1.1 }, out: { zoom: 1 / 1.1 }, drift: { pan: [0.12, 0] }, roll: { rotate: 9 } };
export const PRESET_NAMES = { in: "Push in", out: "Pull out", drift: "Drift right", roll: "Roll" };
// a tap moves for this long
const SHORTEST_MS = 500;

export class Camera {
  /** @param {import("./live.js").Live} live */
  constructor(live) {
    this.live = live;
    /** @type {Map<string, number>} */
    this.held = new Map();
    /** @type {HTMLButtonElement[]} */
    this.buttons = BUTTONS.map(([camera, text, title, label]) => make("button", { text, title, label, data: { camera, needs: "online" } }));
    live.part.camera.append(...this.buttons);
    for (const button of this.buttons) {
      const move = button.dataset.camera || "";
      button.addEventListener("pointerdown", (event) => {
        button.setPointerCapture(event.pointerId);
        this.press(move);
      });
      button.addEventListener("pointerup", () => this.release(move));
      button.addEventListener("pointercancel", () => this.release(move));
      button.addEventListener("keydown", (event) => {
        if (event.key !== "Enter" && event.key !== " ") return;
        event.preventDefault();
        event.stopPropagation();
        if (!event.repeat) this.press(move);
      });
      button.addEventListener("keyup", () => this.release(move));
      button.addEventListener("blur", () => this.release(move));
      button.addEventListener("contextmenu", (event) => event.preventDefault());
    }
    live.part.presets.append(...Object.entries(PRESET_NAMES).map(
      ([preset, text]) => make("button", { text, data: { preset, needs: "live" }, click: () => this.preset(preset) }),
    ));
    live.on("place", () => { this.held.clear(); this.mark(); });
    live.on("online", () => { this.held.clear(); this.mark(); });
  }

  /** @param {string} name */
  preset(name) {
    const { live } = this;
    if (!live.running) return;
    const id = live.id();
    if (live.send({ id, ...presetOf(name) })) live.status.asked(id);
    live.paint.waiting();
  }

  /** @param {string} move */
  press(move) {
    const { live } = this;
    if (this.held.has(move) || !live.hello?.tracks) return;
    if (live.state !== "playing" || !live.online) {
      const why = live.state === "paused" ? "The camera moves while the stream plays: press Space first." : "There is no stream yet that a camera could move in.";
      live.notices.chip("camera", why, 4);
      live.notices.speak(why);
      return;
    }
    this.held.set(move, performance.now());
    this.say();
  }

  /** @param {string} move */
  release(move) {
    const since = this.held.get(move);
    if (since === undefined) return;
    const left = SHORTEST_MS - (performance.now() - since);
    if (left > 0) { setTimeout(() => this.release(move), left); return; }
    this.held.delete(move);
    this.say();
  }

  releaseAll() { for (const move of [...this.held.keys()]) this.release(move); }

  say() {
    const { live } = this;
    /** @type {{ pan: [number, number], zoom: number, rotate: number }} */
    const all = { pan: [0, 0], zoom: 1, rotate: 0 };
    for (const name of this.held.keys()) {
      const { pan = [0, 0], zoom = 1, rotate = 0 } = MOVES[name];
      all.pan = [all.pan[0] + pan[0], all.pan[1] + pan[1]];
      all.zoom *= zoom;
      all.rotate += rotate;
    }
    const id = live.id();
    if (live.send({ type: "camera", id, ...all }) && this.held.size) live.status.asked(id);
    this.mark();
  }

  mark() {
    for (const button of this.buttons) button.classList.toggle("held", this.held.has(button.dataset.camera || ""));
  }
}

/** @param {string} name */
export function presetOf(name) {
  return { type: "camera", seconds: PRESET_SECONDS, pan: [0, 0], zoom: 1, rotate: 0, ...PRESETS[name] };
}
