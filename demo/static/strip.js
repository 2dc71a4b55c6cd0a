// The strip under the video: every change where it took effect, and the scrubber to moments one can go back to.
const NAMES = { prompt: "words", settings: "settings", drag: "drag", path: "path", pins: "pins", camera: "camera", release: "let go", cache: "past" };
const LABELS = { recache: "read again", clear: "forgotten" };

export class Strip {
  constructor(live) {
    this.live = live;
    this.marks = [];
    this.rows = [];
    this.takes = [];
    this.chosen = null;
    const { scrub } = live.part;
    scrub.addEventListener("input", () => this.choose(Number(scrub.value)));
    scrub.addEventListener("keydown", (event) => this.key(event));
    live.on("place", (place) => this.place(place));
    live.on("mark", (mark) => this.mark(mark));
    live.on("receipt", (receipt) => this.receipt(receipt));
    setInterval(() => this.draw(), 250);
  }

  time(frame) {
    const seconds = frame / (this.live.hello?.fps || 16);
    const whole = Math.floor(seconds / 60);
    return `${whole}:${(seconds - 60 * whole).toFixed(1).padStart(4, "0")}`;
  }

  place(place) {
    this.marks = place.marks;
    this.takes = place.takes;
    this.rows = [];
    this.live.part.log.replaceChildren();
    for (const row of place.strip) this.add(row);
    this.cancel();
    this.drawTakes();
    this.live.part.scrub.disabled = !this.marks.length;
    this.live.part.track.title = place.no_rewind;
  }

  mark(mark) {
    this.marks = this.marks.filter((kept) => !mark.gone.includes(kept.id));
    this.marks.push({ id: mark.id, frame: mark.frame, picture: mark.picture });
    this.live.part.scrub.disabled = false;
  }

  receipt(receipt) {
    if (receipt.status === "applied" && receipt.epoch === this.live.epoch) this.add(receipt);
  }

  add(row) {
    this.rows.push(row);
    if (this.rows.length > 400) this.rows.shift();
    const item = document.createElement("li");
    item.dataset.kind = row.kind;
    item.dataset.frame = row.frame;
    const label = row.label && row.label !== row.kind ? `: ${said(row)}` : "";
    const replaced = row.superseded?.length ? ` (${row.superseded.join(", ")} replaced by a later change)` : "";
    const time = document.createElement("time");
    time.textContent = this.time(row.frame);
    item.append(time, ` ${NAMES[row.kind] || row.kind}${label}${replaced} `);
    const frame = document.createElement("small");
    frame.textContent = `frame ${row.frame}`;
    item.append(frame);
    const { log } = this.live.part;
    log.prepend(item);
    while (log.children.length > 100) log.lastChild.remove();
  }

  // marks and events between the oldest moment that is kept and now
  draw() {
    const { part, player } = this.live;
    const now = Math.max(player.shown, 1);
    const first = this.marks.length ? Math.min(this.marks[0].frame, now) : 0;
    const from = Math.max(0, first - 4);
    const place = (frame) => `${(100 * (frame - from)) / Math.max(1, now - from)}%`;
    part.marks.replaceChildren(...this.marks.filter((mark) => mark.frame <= now).map((mark) => {
      const tick = document.createElement("i");
      tick.style.left = place(mark.frame);
      if (mark.id === this.chosen?.id) tick.className = "chosen";
      return tick;
    }));
    const seen = this.rows.filter((row) => row.frame >= from && row.frame <= now);
    part.events.replaceChildren(...seen.map((row) => {
      const flag = document.createElement("span");
      flag.dataset.kind = row.kind;
      flag.style.left = place(row.frame);
      flag.title = `${this.time(row.frame)} · frame ${row.frame} · ${NAMES[row.kind] || row.kind}: ${said(row)}`;
      return flag;
    }));
    part.scrub.min = from;
    part.scrub.max = now;
    if (!this.chosen) part.scrub.value = now;
  }

  choose(frame) {
    if (!this.marks.length) return;
    const near = (mark) => Math.abs(mark.frame - frame);
    this.chosen = this.marks.reduce((best, mark) => (near(mark) < near(best) ? mark : best));
    const { part, player } = this.live;
    part.preview.hidden = false;
    part.previewPicture.src = this.chosen.picture;
    const ago = (player.shown - this.chosen.frame) / (this.live.hello?.fps || 16);
    part.rewind.textContent = `Go on from ${this.time(this.chosen.frame)} (${Math.max(0, ago).toFixed(0)} s ago)`;
    this.draw();
  }

  key(event) {
    const steps = { ArrowLeft: -1, ArrowDown: -1, ArrowRight: 1, ArrowUp: 1 };
    if (event.key in steps && this.marks.length) {
      const at = this.chosen ? this.marks.findIndex((mark) => mark.id === this.chosen.id) : this.marks.length;
      const mark = this.marks[Math.min(this.marks.length - 1, Math.max(0, at + steps[event.key]))];
      this.live.part.scrub.value = mark.frame;
      this.choose(mark.frame);
    } else if (event.key === "Enter") this.go();
    else if (event.key === "Escape") this.cancel();
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
    const { takes } = this.live.part;
    takes.hidden = !this.takes.length;
    for (const button of takes.querySelectorAll("button")) button.remove();
    for (const take of this.takes) {
      const button = document.createElement("button");
      button.type = "button";
      button.title = `Go on with this branch at ${this.time(take.frame)}`;
      const picture = new Image();
      picture.src = take.picture;
      picture.alt = "";
      const words = document.createElement("span");
      words.textContent = `${this.time(take.frame)} ${take.prompt}`;
      button.append(picture, words);
      button.addEventListener("click", () => this.live.send({ type: "take", take: take.id }));
      takes.append(button);
    }
  }
}

function said(row) {
  return (row.kind === "cache" && LABELS[row.label]) || row.label;
}
