// Everything by keyboard, wherever the focus is, but for fields that take text.
const CAMERA = { a: "left", f: "right", w: "up", s: "down", "+": "in", "=": "in", "-": "out", q: "ccw", e: "cw" };

export class Keys {
  constructor(live) {
    const { part, transport, paint, camera } = live;
    const once = {
      " ": () => (["playing", "paused"].includes(live.state) ? transport.play() : transport.start()),
      ".": () => transport.step(),
      r: () => transport.restart(),
      c: () => paint.clear(),
      d: () => paint.choose("drag"),
      p: () => paint.choose("path"),
      i: () => paint.choose("pin"),
      "/": () => part.prompt.focus(),
    };
    window.addEventListener("keydown", (event) => {
      if (event.ctrlKey || event.metaKey || event.altKey || typing(event.target)) return;
      const key = event.key.toLowerCase();
      if (key === " " && event.target.closest?.("button, summary, select")) return;
      if (key in CAMERA) camera.press(CAMERA[key]);
      else if (key in once) { if (!event.repeat) once[key](); }
      else return;
      event.preventDefault();
    });
    window.addEventListener("keyup", (event) => {
      const key = event.key.toLowerCase();
      if (key in CAMERA) camera.release(CAMERA[key]);
    });
    window.addEventListener("blur", () => { for (const move of [...camera.held.keys()]) camera.release(move); });
  }
}

function typing(target) {
  return target.matches?.("textarea, select, input:not([type=range]):not([type=checkbox]), [contenteditable]");
}
