// What the page says: a line at its top, a chip on the picture, and what is only read aloud. All of them have
// their place before they have words, so that nothing moves when they come.

export class Notices {
  /** @param {import("./live.js").Live} live */
  constructor(live) {
    this.live = live;
    /** @type {(() => void) | null} */
    this.does = null;
    this.key = "";
    /** @type {ReturnType<typeof setTimeout> | undefined} */
    this.timer = undefined;
    /** @type {Map<string, string>} */
    this.chips = new Map();
    live.does({ act: () => this.does?.(), dismiss: () => this.tell("") });
    live.on("error", (error) => this.tell(error.text, { seconds: 12 }));
    live.on("receipt", (receipt) => this.receipt(receipt));
  }

  /**
   * The line at the top; no text takes it away.
   * @param {string} text
   * @param {{ key?: string, seconds?: number, label?: string, act?: () => void }} [how] `key` names who says it,
   *   so that they can take back what is theirs; after `seconds` it goes by itself
   */
  tell(text, { key = "", seconds = 0, label = "", act } = {}) {
    const { part } = this.live;
    clearTimeout(this.timer);
    this.key = text ? key : "";
    part.notice.hidden = !text;
    part.model.hidden = Boolean(text);
    part.noticeText.textContent = text;
    part.noticeDo.hidden = !label;
    part.noticeDo.textContent = label;
    this.does = act || null;
    if (text && seconds) this.timer = setTimeout(() => this.tell(""), 1000 * seconds);
  }

  /** @param {string} key */
  takeBack(key) { if (this.key === key) this.tell(""); }

  /**
   * A few words on the picture. Each speaker has one; the newest is shown.
   * @param {string} key
   * @param {string} text
   */
  chip(key, text, seconds = 0) {
    // what is said already is not newer for being said again
    if (text && !seconds && this.chips.get(key) === text) return;
    this.chips.delete(key);
    if (text) this.chips.set(key, text);
    const { chip } = this.live.part;
    const shown = [...this.chips.values()].at(-1) || "";
    if (chip.textContent !== shown) chip.textContent = shown;
    chip.hidden = !shown;
    if (text && seconds) setTimeout(() => { if (this.chips.get(key) === text) this.chip(key, ""); }, 1000 * seconds);
  }

  /** @param {string} text */
  speak(text) { this.live.part.spoken.textContent = text; }

  /** @param {import("./types.js").Receipt} receipt */
  receipt(receipt) {
    const { live } = this;
    const what = live.strip.name(receipt);
    if (receipt.status === "applied" && receipt.epoch === live.epoch) {
      this.speak(`In effect from ${live.time(receipt.frame)}: ${what}`);
    } else if (receipt.status === "refused") this.speak(`Not taken: ${receipt.reason}`);
    else if (receipt.status === "withdrawn") this.speak(`Taken back: ${what}`);
    // words have a line of their own
    if (receipt.status === "refused" && receipt.kind !== "prompt") {
      this.tell(`Not taken: ${receipt.reason}.`, { key: "refused", seconds: 10 });
    } else if (receipt.status === "applied") this.takeBack("refused");
  }
}
