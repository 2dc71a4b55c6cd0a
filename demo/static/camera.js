// Camera moves while a button or a key is held. Rates are per second of video, within what the model was shown.
const PAN = 0.2, ZOOM = 1.12, TURN = 14;
const MOVES = {
  left: { pan: [-PAN, 0] }, right: { pan: [PAN, 0] }, up: { pan: [0, -PAN] }, down: { pan: [0, PAN] },
  in: { zoom: ZOOM }, out: { zoom: 1 / ZOOM }, ccw: { rotate: -TURN }, cw: { rotate: TURN },
};
// a tap moves for this long
const SHORTEST_MS = 500;

export class Camera {
  constructor(live) {
    this.live = live;
    this.held = new Map();
    for (const button of live.root.querySelectorAll("[data-camera]")) {
      const move = button.dataset.camera;
      button.addEventListener("pointerdown", (event) => {
        button.setPointerCapture(event.pointerId);
        this.press(move);
      });
      for (const end of ["pointerup", "pointercancel"]) button.addEventListener(end, () => this.release(move));
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
    live.on("place", () => this.held.clear());
  }

  press(move) {
    if (this.held.has(move) || this.live.state !== "playing" || !this.live.hello.tracks) return;
    this.held.set(move, performance.now());
    this.say();
  }

  release(move) {
    if (!this.held.has(move)) return;
    const left = SHORTEST_MS - (performance.now() - this.held.get(move));
    if (left > 0) { setTimeout(() => this.release(move), left); return; }
    this.held.delete(move);
    this.say();
  }

  say() {
    const all = { pan: [0, 0], zoom: 1, rotate: 0 };
    for (const name of this.held.keys()) {
      const { pan = [0, 0], zoom = 1, rotate = 0 } = MOVES[name];
      all.pan = [all.pan[0] + pan[0], all.pan[1] + pan[1]];
      all.zoom *= zoom;
      all.rotate += rotate;
    }
    this.live.send({ type: "camera", ...all });
    for (const button of this.live.root.querySelectorAll("[data-camera]")) {
      button.classList.toggle("held", this.held.has(button.dataset.camera));
    }
  }
}
