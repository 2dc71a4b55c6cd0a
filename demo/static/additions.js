// What is put on the lane: words, settings, moves of the camera, and what is drawn on the picture for it.
import { PRESET_NAMES, presetOf } from "./camera.js";

// Seconds ahead of the picture, so that it is still to come.
const AHEAD = 2;

export class Additions {
  /**
   * @param {import("./live.js").Live} live
   * @param {import("./lane.js").Lane} lane
   */
  constructor(live, lane) {
    this.live = live;
    this.lane = lane;
    // whether the next thing that is drawn on the picture is for the lane
    this.awaits = false;
    this.count = 0;
    // what added blocks are called
    /** @type {Map<string, string>} */
    this.labels = new Map();
    const { part } = live;
    for (const [name, { label }] of Object.entries(live.settings.inputs)) part.laneSetting.add(new Option(label, name));
    for (const [value, name] of Object.entries(PRESET_NAMES)) part.laneKind.add(new Option(name, value));
    part.laneSetting.addEventListener("change", () => this.setting());
    part.laneValue.addEventListener("change", () => this.write());
    live.on("hello", ({ tracks }) => {
      for (const option of part.laneKind.options) option.hidden = option.disabled = !tracks && !["words", "settings"].includes(option.value);
    });
  }

  add() {
    const { live, lane } = this, { laneKind, prompt } = live.part, kind = laneKind.value;
    this.awaits = kind === "drawn";
    if (this.awaits) { lane.say("Draw a path or a box on the picture now: it becomes a block."); return; }
    if (kind === "settings") this.put({ settings: { text_guidance: live.settings.values().text_guidance } });
    else if (kind !== "words") this.put({ motion: presetOf(kind) }, laneKind.selectedOptions[0].text);
    else if (!prompt.value.trim() || live.prompts.tooLong(prompt.value)) lane.say("Write the words into the field What to show first.");
    else this.put({ prompt: prompt.value.trim() });
  }

  /**
   * @param {import("./lane.js").Change} change
   * @param {string} [label]
   */
  put(change, label) {
    const { live, lane } = this, id = `new ${(this.count += 1)}`;
    if (label) this.labels.set(id, label);
    lane.changes.set(id, { frame: Math.max(1, live.player.shown + Math.round(AHEAD * live.fps)), ...change });
    lane.choose(id);
  }

  /**
   * A message that was drawn; true where the lane has waited for it, so that it is not sent.
   * @param {Record<string, any>} message
   */
  takes({ type, points, grid, name }) {
    if (!this.awaits) return false;
    this.awaits = false;
    this.put({ motion: { type, points, ...(grid && { grid }), ...(name && { name }) } }, name || type);
    return true;
  }

  // -- the fields of a block of settings

  /** @param {Record<string, any> | null | undefined} settings of the block that is chosen */
  show(settings) {
    const { laneWords, laneSetting, laneValue } = this.live.part;
    laneWords.hidden = Boolean(settings);
    laneSetting.hidden = laneValue.hidden = !settings;
    if (!settings) return;
    if (!(laneSetting.value in settings)) laneSetting.value = Object.keys(settings)[0];
    const { input } = this.live.settings.inputs[laneSetting.value] || {};
    if (input) for (const name of /** @type {const} */ (["min", "max", "step"])) laneValue[name] = input[name];
    laneValue.value = settings[laneSetting.value] ?? "";
  }

  // another setting: of a block that was just added in place of the one it has
  setting() {
    const { lane, live } = this, name = live.part.laneSetting.value, block = lane.find(lane.chosen);
    if (!block?.settings) return;
    if (name in block.settings) this.show(block.settings);
    else lane.edit(block.id, { settings: { ...(lane.isAdded(block.id) ? {} : block.settings), [name]: live.settings.values()[name] } });
  }

  write() {
    const { lane } = this, { laneSetting, laneValue } = this.live.part, block = lane.find(lane.chosen);
    if (block?.settings && laneSetting.value && laneValue.checkValidity()) lane.edit(block.id, { settings: { ...block.settings, [laneSetting.value]: Number(laneValue.value) } });
    else lane.draw();
  }
}

/**
 * Frames that a motion takes as it was drawn.
 * @param {Record<string, any>} motion
 * @param {number} fps
 */
export function lasts({ points, seconds }, fps) {
  return Math.max(1, Math.round((points ? (points[points.length - 1][0] - points[0][0]) / 1000 : seconds) * fps));
}

/** @param {Record<string, any>} settings */
export function told(settings) { return Object.entries(settings).map((pair) => pair.join(" ")).join(", "); }
