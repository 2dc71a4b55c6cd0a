// The lane under the strip: every change as a block that can be moved, stretched, taken out and added. Edits are
// collected here and sent together; the server plays again from the first frame that they make different.
import { Additions, lasts, told } from "./additions.js";
import { make } from "./element.js";
import { fetched } from "./fetched.js";

const PER_SECOND = 26, ROW = 30, REST_MS = 400, AHEAD_SECONDS = 8;
// the words that the stream begins with: they can be changed and stay where they are
const FIRST = "first";
const ROWS = ["prompt", "motion", "settings"];
/** @type {Record<string, string>} */
const ROW_OF = { prompt: "prompt", settings: "settings", cache: "settings", release: "motion" };

/**
 * @typedef {object} Block
 * @property {string} id
 * @property {string} kind
 * @property {string} label
 * @property {number} frame
 * @property {number | null} end
 * @property {number} over frames on which new words come
 * @property {boolean} planned
 * @property {Record<string, any> | null} settings
 *
 * @typedef {{ block?: string, copy?: string, frame?: number, frames?: number, prompt?: string, settings?: Record<string, any>, motion?: Record<string, any>, delete?: boolean }} Change
 */

export class Lane {
  /** @param {import("./live.js").Live} live */
  constructor(live) {
    this.live = live;
    /** @type {Block[]} */
    this.blocks = [];
    // edits by block; those without one of the server's have an id of this page
    /** @type {Map<string, Change>} */
    this.changes = new Map();
    this.epoch = this.loads = 0;
    this.chosen = "";
    this.additions = new Additions(live, this);
    /** @type {ReturnType<typeof setTimeout> | undefined} */
    this.timer = undefined;
    const { part } = live;
    live.does({
      laneAdd: () => this.additions.add(), laneCopy: () => this.copy(), laneDelete: () => this.remove(),
      laneUndo: () => this.undo(), lanePlay: () => this.send(),
    });
    part.lane.addEventListener("toggle", () => this.soon());
    part.laneBlocks.addEventListener("pointerdown", (event) => this.down(event));
    part.laneBlocks.addEventListener("keydown", (event) => this.key(event));
    part.laneBlocks.addEventListener("focusin", (event) => {
      const id = /** @type {HTMLElement} */ (event.target).dataset.block || "";
      // drawing gives the focus back to the block that had it
      if (id !== this.chosen) this.choose(id);
    });
    part.laneWords.addEventListener("input", () => this.write());
    for (const input of [part.laneAt, part.laneLong]) input.addEventListener("change", () => this.numbers());
    live.on("place", () => { this.undo(); this.soon(); });
    live.on("receipt", (receipt) => { if (receipt.status !== "accepted") this.soon(); });
    live.on("online", () => this.soon());
    setInterval(() => this.playhead(), 200);
    this.draw();
  }

  // what is there now, unless somebody is at it
  soon() {
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.load(), REST_MS);
  }

  async load() {
    const { live } = this;
    if (!live.part.lane.open || !live.online || live.watching || this.changes.size || !live.connection.token) return;
    const load = (this.loads += 1);
    try {
      const { epoch, blocks } = await (await fetched(live.connection.url("lane"))).json();
      // somebody is at it by now, or a later answer says what is there
      if (this.changes.size || load !== this.loads) return;
      this.epoch = epoch;
      this.blocks = blocks;
      this.draw();
      this.follow();
    } catch { /* the line in the head says that there is no connection */ }
  }

  // what plays is in sight, until somebody looks elsewhere
  follow() {
    const { part, player } = this.live, box = part.laneBlocks.parentElement;
    if (!box || box.contains(document.activeElement) || box.matches(":hover")) return;
    box.scrollLeft = (player.shown / this.live.fps) * PER_SECOND - 0.6 * box.clientWidth;
  }

  // the blocks as they would be
  now() {
    /** @type {Block[]} */
    const made = [];
    for (const block of this.blocks) {
      const change = this.changes.get(block.id);
      if (change?.delete) continue;
      made.push(changed(block, change));
    }
    for (const [id, change] of this.changes) {
      if (change.block) continue;
      const copied = this.blocks.find((block) => block.id === change.copy), { motion, settings, frame = 1 } = change;
      const kind = copied?.kind || motion?.type || (settings ? "settings" : "prompt");
      const length = motion ? lasts(motion, this.live.fps) : copied?.end ? copied.end - copied.frame : 0;
      const label = copied?.label || this.additions.labels.get(id) || "";
      made.push(changed({ id, kind, label, frame, end: length ? frame + length : null, over: 0, planned: true, settings: copied?.settings || null }, change));
    }
    return made.sort((a, b) => a.frame - b.frame);
  }

  /** @param {string} id */
  find(id) { return this.now().find((block) => block.id === id); }

  /**
   * @param {string} id
   * @param {Change} change
   */
  edit(id, change) {
    this.changes.set(id, { ...(this.changes.get(id) || { block: id }), ...change });
    this.draw();
  }

  copy() {
    const block = this.chosen === FIRST ? undefined : this.find(this.chosen);
    if (!block) this.say("Choose a block behind the first one.");
    else if (this.isAdded(block.id)) this.say("Play it first, then copy it.");
    else this.additions.put({ copy: block.id });
  }

  remove() {
    if (!this.find(this.chosen)) { this.say("Choose a block first."); return; }
    if (this.chosen === FIRST) { this.say("A stream begins with some words; change them instead."); return; }
    if (this.isAdded(this.chosen)) this.changes.delete(this.chosen);
    else this.edit(this.chosen, { delete: true });
    this.chosen = "";
    this.draw();
  }

  /** @param {string} id */
  isAdded(id) { return !this.blocks.some((block) => block.id === id); }

  undo() {
    this.changes.clear();
    this.additions.awaits = false;
    this.chosen = "";
    this.draw();
    this.soon();
  }

  async send() {
    const { live } = this;
    const edits = [...this.changes.values()];
    if (!edits.length || !live.online) return;
    try {
      const body = JSON.stringify({ epoch: this.epoch, edits });
      await fetched(live.connection.url("lane"), { method: "POST", body });
      this.undo();
      this.say("Plays as edited; what played before is a branch.");
    } catch (error) { this.say(`Not taken: ${error.message}.`); }
  }

  // -- one block

  /** @param {string} id */
  choose(id) {
    this.chosen = id;
    this.draw();
  }

  write() {
    const block = this.find(this.chosen);
    const words = this.live.part.laneWords.value.trim();
    if (block?.kind === "prompt" && words) this.edit(block.id, { prompt: words });
  }

  numbers() {
    const block = this.find(this.chosen);
    const { laneAt, laneLong } = this.live.part;
    if (!block) return;
    if (block.id === FIRST) { this.draw(); return; }
    const frame = Math.max(1, Math.round(Number(laneAt.value) * this.live.fps)), frames = Math.max(0, Math.round(Number(laneLong.value) * this.live.fps));
    if (frame !== block.frame) this.edit(block.id, { frame });
    if (stretches(block) && frames !== length(block)) this.edit(block.id, { frames });
  }

  /** @param {PointerEvent} event */
  down(event) {
    const node = /** @type {HTMLElement} */ (event.target).closest("[data-block]");
    const id = /** @type {HTMLElement} */ (node)?.dataset.block;
    const block = id && this.find(id);
    if (!block || event.button) return;
    if (block.id === FIRST) { this.choose(FIRST); return; }
    const stretch = /** @type {HTMLElement} */ (event.target).matches("i") && stretches(block);
    const from = event.clientX, { laneBlocks } = this.live.part;
    this.choose(block.id);
    /** @param {PointerEvent} moved */
    const move = (moved) => {
      const by = Math.round(((moved.clientX - from) / PER_SECOND) * this.live.fps);
      if (!by) return;
      if (stretch) this.edit(block.id, { frames: Math.max(0, length(block) + by) });
      else this.edit(block.id, { frame: Math.max(1, block.frame + by) });
    };
    laneBlocks.setPointerCapture(event.pointerId);
    laneBlocks.addEventListener("pointermove", move);
    laneBlocks.addEventListener("lostpointercapture", () => laneBlocks.removeEventListener("pointermove", move), { once: true });
  }

  /** @param {KeyboardEvent} event */
  key(event) {
    const id = /** @type {HTMLElement} */ (event.target).dataset.block, block = id && this.find(id);
    if (!block) return;
    const step = this.live.hello?.chunk_frames || 4, by = { ArrowLeft: -step, ArrowRight: step }[event.key];
    if (by && event.shiftKey && stretches(block)) this.edit(block.id, { frames: Math.max(0, length(block) + by) });
    else if (by && block.id !== FIRST) this.edit(block.id, { frame: Math.max(1, block.frame + by) });
    else if (event.key === "Delete" || event.key === "Backspace") this.remove();
    else if (event.key === "Enter") this.live.part.laneWords.focus();
    else return;
    event.preventDefault();
    event.stopPropagation();
  }

  // -- how it looks

  /** @param {string} text */
  say(text) { this.live.part.laneText.textContent = text; }

  // the first frame that the edits make different, as far as this page knows
  first() {
    const frames = [...this.changes.values()].flatMap((change) => {
      const block = this.blocks.find((one) => one.id === change.block);
      return [change.frame, block?.frame].filter((frame) => frame !== undefined);
    });
    return Math.min(...frames.map(Number));
  }

  draw() {
    const { part, player } = this.live;
    const blocks = this.now(), fps = this.live.fps, chosen = this.find(this.chosen);
    const focused = part.laneBlocks.contains(document.activeElement);
    const last = Math.max(player.shown, ...blocks.map((block) => block.end || block.frame)) + AHEAD_SECONDS * fps;
    part.laneBlocks.style.width = `${(last / fps) * PER_SECOND}px`;
    part.laneBlocks.replaceChildren(part.lanePlayhead, ...blocks.map((block) => this.node(block, last)));
    if (focused && chosen) /** @type {HTMLElement | null} */ (part.laneBlocks.querySelector(`[data-block="${CSS.escape(chosen.id)}"]`))?.focus();
    this.playhead();
    if (document.activeElement !== part.laneWords) part.laneWords.value = chosen?.kind === "prompt" ? chosen.label : "";
    part.laneWords.readOnly = Boolean(chosen) && chosen?.kind !== "prompt";
    part.laneWords.placeholder = !chosen || chosen.kind === "prompt" ? "Words of the chosen block" : this.live.strip.name(chosen);
    this.additions.show(chosen?.settings);
    part.laneAt.value = chosen ? (chosen.frame / fps).toFixed(2) : "";
    part.laneLong.value = chosen && stretches(chosen) ? (length(chosen) / fps).toFixed(2) : "";
    const count = this.changes.size;
    part.lanePlay.dataset.needs = count ? "stream" : "never";
    part.laneUndo.dataset.needs = count ? "online" : "never";
    this.live.availability?.refresh();
    if (!count) return;
    const first = this.first(), past = first <= player.shown;
    this.say(`${count} ${count > 1 ? "edits" : "edit"}. ${past ? `Plays again from ${this.live.time(first)}.` : `From ${this.live.time(first)} on, without going back.`}`);
  }

  /**
   * @param {Block} block
   * @param {number} last
   */
  node(block, last) {
    const fps = this.live.fps, name = this.live.strip.name(block), time = this.live.time(block.frame);
    const row = ROWS.indexOf(ROW_OF[block.kind] || "motion");
    const end = block.kind === "prompt" ? block.end || last : block.end || block.frame;
    const node = make(
      "button",
      { data: { block: block.id, kind: block.kind }, title: `${time} ${name}`, label: `${name}, from ${time}; arrow keys move it, with Shift they stretch it` },
      make("span", { text: block.label }),
    );
    if (block.id === this.chosen) node.setAttribute("aria-current", "true");
    if (block.planned) node.dataset.planned = "";
    node.style.cssText = `left:${(block.frame / fps) * PER_SECOND}px;top:${row * ROW}px;width:${Math.max(stretches(block) ? 20 : 72, ((end - block.frame) / fps) * PER_SECOND - 2)}px`;
    if (stretches(block)) {
      const handle = make("i");
      if (block.kind === "prompt") handle.style.left = `${(block.over / fps) * PER_SECOND}px`;
      node.append(handle);
    }
    return node;
  }

  playhead() {
    const { part, player } = this.live;
    if (part.lane.open) part.lanePlayhead.style.left = `${(Math.max(0, player.shown) / this.live.fps) * PER_SECOND}px`;
  }
}

/**
 * @param {Block} block
 * @param {Change} [change]
 * @returns {Block}
 */
function changed(block, change) {
  if (!change) return block;
  const frame = change.frame ?? block.frame, moved = frame - block.frame;
  const made = { ...block, frame, end: block.end === null ? null : block.end + moved, label: change.prompt ?? (change.settings ? told(change.settings) : block.label), settings: change.settings ?? block.settings };
  if (change.frames === undefined) return made;
  if (block.kind === "prompt") made.over = change.frames;
  else made.end = frame + change.frames;
  return made;
}

/** @param {Block} block */
function stretches(block) { return block.id !== FIRST && (block.kind === "prompt" || !["settings", "cache", "release"].includes(block.kind)); }

/** @param {Block} block */
function length(block) { return block.kind === "prompt" ? block.over : (block.end || block.frame) - block.frame; }
