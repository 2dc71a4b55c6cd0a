// Everything by keyboard, wherever the focus is, but for fields that take text. A control that was reached by
// keyboard keeps Space and Enter for itself; one that was clicked gives the focus back to the picture.
/** @type {Record<string, string>} */
const CAMERA = { a: "left", f: "right", w: "up", s: "down", "+": "in", "=": "in", "-": "out", q: "ccw", e: "cw" };
const OWN_SPACE = "button, summary, select, input, textarea";

export class Keys {
  /** @param {import("./live.js").Live} live */
  constructor(live) {
    this.live = live;
    const { part, transport, paint, camera } = live;
    /** @type {Record<string, () => void>} */
    const once = {
      " ": () => (["playing", "paused"].includes(live.state) ? transport.play() : transport.start()),
      ".": () => transport.step(),
      r: () => { if (live.availability.able().stream) transport.restart(); },
      c: () => paint.clear(),
      d: () => paint.choose("drag"),
      p: () => paint.choose("path"),
      b: () => paint.choose("box"),
      i: () => paint.choose("pin"),
      "/": () => part.prompt.focus(),
      v: () => live.share.full(),
    };
    window.addEventListener("keydown", (event) => {
      const target = /** @type {Element} */ (event.target);
      if (event.key === "Escape" && target.matches?.(OWN_SPACE) && live.root.contains(target)) { this.back(); return; }
      if (event.ctrlKey || event.metaKey || event.altKey || typing(target)) return;
      const key = event.key.toLowerCase();
      if (key === " " && target.closest?.(OWN_SPACE)) return;
      // a page that only watches has one key, and a dialog has its own
      if ((live.watching && key !== "v") || target.closest?.("dialog")) return;
      if (key in CAMERA) camera.press(CAMERA[key]);
      else if (key in once) { if (!event.repeat) once[key](); }
      else return;
      event.preventDefault();
    });
    window.addEventListener("keyup", (event) => {
      const key = event.key.toLowerCase();
      if (key in CAMERA) camera.release(CAMERA[key]);
    });
    window.addEventListener("blur", () => camera.releaseAll());
    this.byPointer = false;
    live.root.addEventListener("pointerdown", () => { this.byPointer = true; }, true);
    live.root.addEventListener("keydown", () => { this.byPointer = false; }, true);
    // after the control's own work is done
    live.root.addEventListener("click", (event) => this.clicked(event));
    live.root.addEventListener("change", (event) => {
      if (this.byPointer && /** @type {Element} */ (event.target).matches("select, input[type=range], input[type=file]")) this.back();
    });
  }

  /** @param {MouseEvent} event */
  clicked(event) {
    const control = /** @type {Element} */ (event.target).closest("button, summary, input[type=radio], input[type=checkbox]");
    if (!control || !this.byPointer || event.detail < 1) return;
    // a button that its own click took away leaves the focus to nobody
    const active = document.activeElement;
    if (control.contains(active) || active === document.body) this.back();
  }

  back() { this.live.part.paint.focus({ preventScroll: true }); }
}

/** @param {Element} target */
function typing(target) {
  return target.matches?.("textarea, select, input:not([type=range]):not([type=checkbox]):not([type=radio]), [contenteditable]");
}
