// The strip under the picture: every change where it took effect, and the scrubber to moments one can go back to.
import { make } from "./element.js";

/** @type {Record<string, string>} */
const NAMES = {
  prompt: "words", settings: "settings", drag: "drag", path: "path", box: "box", pins: "pins", camera: "camera",
  release: "let go", cache: "past",
};
/** @type {Record<string, string>} */
const PAST = { recache: "read again", clear: "forgotten" };

export class Strip {
  /** @param {import("./live.js").Live} live */
  constructor(live) {
    this.live = live;
    /** @type {import("./types.js").Mark[]} */
    this.marks = [];
    /** @type {import("./types.js").Row[]} */
    this.rows = [];
    /** @type {import("./types.js").Take[]} */
    this.takes = [];
    /** @type {import("./types.js").Mark | null} */
    this.chosen = null;
    const { part } = live;
    part.scrub.addEventListener("input", () => this.choose(Number(part.scrub.value)));
    part.scrub.addEventListener("keydown", (event) => this.key(event));
    live.does({ rewind: () => this.go(), cancel: () => this.cancel() });
    for (const [kind, name] of Object.entries(NAMES)) part.legend.append(entry(kind, name));
    live.on("place", (place) => this.place(place));
    live.on("mark", (mark) => this.mark(mark));
    live.on("receipt", (receipt) => this.receipt(receipt));
    live.on("relabelled", (row) => this.relabel(row));
    this.drawTakes();
    setInterval(() => this.draw(), 250);
  }

  /** @param {import("./types.js").Place} place */
  place(place) {
    this.marks = place.marks;
    this.takes = place.takes;
    this.rows = [];
    this.live.part.log.replaceChildren();
    for (const row of place.strip) this.add(row);
    this.live.part.scrub.title = place.no_rewind;
    this.cancel();
    this.drawTakes();
  }

  /** @param {import("./types.js").NewMark} mark */
  mark(mark) {
    this.marks = this.marks.filter((kept) => !mark.gone.includes(kept.id));
    this.marks.push({ id: mark.id, frame: mark.frame, picture: mark.picture });
  }

  /** @param {import("./types.js").Receipt} receipt */
  receipt(receipt) {
    if (receipt.status === "applied" && receipt.epoch === this.live.epoch) this.add(receipt);
  }

  /**
   * What a change is, in words.
   * @param {{ kind: string, label?: string }} row
   */
  name(row) {
    const name = NAMES[row.kind] || row.kind;
    return row.label && row.label !== row.kind ? `${name}: ${said(row)}` : name;
  }

  /** @param {import("./types.js").Row} row */
  add(row) {
    this.rows.push(row);
    if (this.rows.length > 400) this.rows.shift();
    const replaced = row.superseded?.length ? ` (${row.superseded.join(", ")} replaced by a later change)` : "";
    const time = make("time", { text: this.live.time(row.frame) }), what = make("span", { text: `${this.name(row)}${replaced}` });
    const data = { kind: row.kind, frame: String(row.frame), id: String(row.id || 0) };
    const { log } = this.live.part;
    log.prepend(make("li", { title: this.name(row), data }, time, " ", what, " ", make("small", { text: `frame ${row.frame}` })));
    while (log.children.length > 100) log.lastChild?.remove();
  }

  /**
   * A drag has come to its end, and says where it led.
   * @param {{ id: number, label: string }} row
   */
  relabel({ id, label }) {
    const row = this.rows.findLast((each) => each.id === id);
    if (!row) return;
    row.label = label;
    const item = /** @type {HTMLElement | null} */ (this.live.part.log.querySelector(`[data-id="${id}"]`));
    const what = item?.querySelector("span");
    if (item && what) what.textContent = item.title = this.name(row);
  }

  // marks and events between the oldest moment that is kept and now
  draw() {
    const { part, player } = this.live;
    const now = Math.max(player.shown, 1);
    const first = this.marks.length ? Math.min(this.marks[0].frame, now) : 0;
    const from = Math.max(0, first - 4);
    /** @param {number} frame */
    const place = (frame) => `${(100 * (frame - from)) / Math.max(1, now - from)}%`;
    part.marks.replaceChildren(...this.marks.filter((mark) => mark.frame <= now).map((mark) => {
      const tick = make("i", { className: mark.id === this.chosen?.id ? "chosen" : "" });
      tick.style.left = place(mark.frame);
      return tick;
    }));
    const seen = this.rows.filter((row) => row.frame >= from && row.frame <= now);
    part.events.replaceChildren(...seen.map((row) => {
      const title = `${this.live.time(row.frame)} · frame ${row.frame} · ${this.name(row)}`;
      const flag = make("span", { data: { kind: row.kind }, title });
      flag.style.left = place(row.frame);
      return flag;
    }));
    part.scrub.min = String(from);
    part.scrub.max = String(now);
    if (!this.chosen) part.scrub.value = String(now);
    else this.ago();
  }

  /** @param {number} frame */
  choose(frame) {
    if (!this.marks.length) return;
    /** @param {import("./types.js").Mark} mark */
    const near = (mark) => Math.abs(mark.frame - frame);
    this.chosen = this.marks.reduce((best, mark) => (near(mark) < near(best) ? mark : best));
    const { part } = this.live;
    part.preview.hidden = false;
    part.previewPicture.src = this.chosen.picture;
    this.draw();
  }

  ago() {
    const { part, player, fps } = this.live;
    if (!this.chosen) return;
    const seconds = Math.max(0, (player.shown - this.chosen.frame) / fps);
    const text = `Go on from ${this.live.time(this.chosen.frame)} (${seconds.toFixed(0)} s ago)`;
    if (part.rewind.textContent !== text) part.rewind.textContent = text;
  }

  /** @param {KeyboardEvent} event */
  key(event) {
    /** @type {Record<string, number>} */
    const steps = { ArrowLeft: -1, ArrowDown: -1, ArrowRight: 1, ArrowUp: 1 };
    if (event.key in steps && this.marks.length) {
      const at = this.chosen ? this.marks.findIndex((mark) => mark.id === this.chosen?.id) : this.marks.length;
      const mark = this.marks[Math.min(this.marks.length - 1, Math.max(0, at + steps[event.key]))];
      this.live.part.scrub.value = String(mark.frame);
      this.choose(mark.frame);
    } else if (event.key === "Enter") this.go();
    else if (event.key === "Escape" && this.chosen) { this.cancel(); event.stopPropagation(); }
    else return;
    event.preventDefault();
  }

  go() {
    if (this.chosen) this.live.send({ type: "rewind", mark: this.chosen.id });
    this.cancel();
  }

  cancel() {
    this.chosen = null;
    this.live.part.preview.hidden = true;
    this.draw();
  }

  drawTakes() {
    const { takes, takesText } = this.live.part;
    takesText.textContent = this.takes.length ? "Branches you left:" : "Going back and restarting keep what played before as a branch here.";
    for (const button of takes.querySelectorAll("button")) button.remove();
    for (const take of this.takes) {
      const data = { needs: "stream" }, time = this.live.time(take.frame);
      const button = make(
        "button", { data, title: `Go on with this branch at ${time}`, click: () => this.live.send({ type: "take", take: take.id }) },
        make("img", { src: take.picture, alt: "" }), make("span", { text: `${time} ${take.prompt}` }),
      );
      const label = `Look at this branch beside the one that plays: ${take.prompt}`;
      takes.append(button, make("button", { data, className: "sg-quiet sg-beside", text: "A|B", label, click: () => this.live.compare.open(take) }));
    }
  }
}

/** @param {{ kind: string, label?: string }} row */
function said(row) {
  return (row.kind === "cache" && PAST[row.label || ""]) || row.label || "";
}

/**
 * @param {string} kind
 * @param {string} name
 */
function entry(kind, name) {
  return make("li", {}, make("span", { data: { kind } }), name);
}
